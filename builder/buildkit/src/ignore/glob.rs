//! Go's `path/filepath.Match`, for one name: the syntax that every pattern must have, and the match that following
//! links through wildcards needs. It must not know of `**`, which this syntax lacks.

/// The pattern has a wildcard that is not escaped.
pub(crate) fn has_wildcards(pattern: &str) -> bool {
    let mut chars = pattern.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => {
                chars.next();
            }
            '*' | '?' | '[' => return true,
            _other => {}
        }
    }
    false
}

/// The pattern is well-formed: every `[` is closed and holds something, ranges have two ends, and no escape hangs at
/// the end.
pub(crate) fn is_well_formed(pattern: &str) -> bool {
    let mut rest = pattern;
    while let Some(char) = rest.chars().next() {
        rest = &rest[char.len_utf8()..];
        match char {
            '[' => match class(rest) {
                Some((_, after)) => rest = after,
                None => return false,
            },
            '\\' => match rest.chars().next() {
                Some(escaped) => rest = &rest[escaped.len_utf8()..],
                None => return false,
            },
            _literal => {}
        }
    }
    true
}

/// The pattern matches the whole name. A malformed pattern matches nothing.
pub(crate) fn matches_name(pattern: &str, name: &str) -> bool {
    is_well_formed(pattern) && matches(pattern, name)
}

fn matches(pattern: &str, name: &str) -> bool {
    // Where to take up again when a later part fails: after the latest star, one character further on in the name.
    let (mut pattern, mut name) = (pattern, name);
    let mut again: Option<(&str, &str)> = None;
    loop {
        if let Some(rest) = pattern.strip_prefix('*') {
            again = Some((rest, name));
            pattern = rest;
            continue;
        }
        if pattern.is_empty() && name.is_empty() {
            return true;
        }
        if let Some((pattern_rest, name_rest)) = one(pattern, name) {
            (pattern, name) = (pattern_rest, name_rest);
            continue;
        }
        let Some((after_star, from)) = again else {
            return false;
        };
        match from.chars().next() {
            Some(skipped) if skipped != '/' => {
                name = &from[skipped.len_utf8()..];
                pattern = after_star;
                again = Some((after_star, name));
            }
            Some(_) | None => return false,
        }
    }
}

/// Matches one character. Gives what is left of both.
fn one<'a>(pattern: &'a str, name: &'a str) -> Option<(&'a str, &'a str)> {
    let wanted = pattern.chars().next()?;
    let found = name.chars().next()?;
    let pattern = &pattern[wanted.len_utf8()..];
    let name = &name[found.len_utf8()..];
    match wanted {
        '?' => (found != '/').then_some((pattern, name)),
        '[' => {
            let (class, rest) = class(pattern)?;
            class.has(found).then_some((rest, name))
        }
        '\\' => {
            let escaped = pattern.chars().next()?;
            (escaped == found).then(|| (&pattern[escaped.len_utf8()..], name))
        }
        literal => (literal == found).then_some((pattern, name)),
    }
}

struct Class {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Class {
    fn has(&self, char: char) -> bool {
        self.ranges
            .iter()
            .any(|(low, high)| (*low..=*high).contains(&char))
            != self.negated
    }
}

/// Reads a class after its `[`. Gives it and what follows its `]`.
fn class(after_bracket: &str) -> Option<(Class, &str)> {
    let negated = after_bracket.starts_with('^');
    let mut rest = if negated {
        &after_bracket[1..]
    } else {
        after_bracket
    };
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty()
            && let Some(after) = rest.strip_prefix(']')
        {
            return Some((Class { negated, ranges }, after));
        }
        let low;
        (low, rest) = class_member(rest)?;
        let mut high = low;
        if let Some(after_dash) = rest.strip_prefix('-') {
            (high, rest) = class_member(after_dash)?;
        }
        ranges.push((low, high));
    }
}

fn class_member(rest: &str) -> Option<(char, &str)> {
    let rest = match rest.chars().next()? {
        '-' | ']' => return None,
        '\\' => &rest[1..],
        _member => rest,
    };
    let member = rest.chars().next()?;
    let rest = &rest[member.len_utf8()..];
    // Something must follow, at least the closing bracket.
    (!rest.is_empty()).then_some((member, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match() {
        for (pattern, name, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "a/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[^b-d]", "abc", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("a?b", "aäb", true),
            ("a[^a]b", "aäb", true),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("[]a]", "]", false),
            ("[\\]a]", "]", true),
            ("[x\\-]", "-", true),
            ("*x", "xxx", true),
        ] {
            assert_eq!(matches_name(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn malformed_patterns_are_known() {
        for bad in [
            "[", "[a", "[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[^bc", "a[", "\\", "[^]", "[\\",
        ] {
            assert!(!is_well_formed(bad), "{bad}");
        }
        for good in ["", "a", "[\\-x]", "]", "a]", "[a-b]", "[^a]*?", "\\["] {
            assert!(is_well_formed(good), "{good}");
        }
    }
}
