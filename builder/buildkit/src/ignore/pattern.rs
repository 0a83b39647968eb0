//! Patterns, and lists of them in which later ones overrule earlier ones.
//!
//! Docker translates each pattern to a regular expression of Go's dialect, and what comes out defines what matches.
//! The same text is made here and then translated to this language's dialect. It must not know of ignore files.

use super::glob::is_well_formed;
use super::path::clean;
use regex::Regex;

mod dialect;

/// A pattern that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed pattern {pattern:?}")]
pub struct BadPattern {
    /// As it was given.
    pub pattern: String,
}

/// One pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    negated: bool,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Exact,
    /// Begins with this.
    Prefix(String),
    /// Ends with this; when it begins with a slash, the rest alone matches too.
    Suffix(String),
    Expression(Regex),
}

/// A list of patterns. A path matches when the last pattern that says something of it is not negated.
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    patterns: Vec<Pattern>,
}

/// Which patterns matched a directory; what lies in it is matched with this. The default is for the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParentMatches {
    matched: Vec<bool>,
}

impl Pattern {
    /// The pattern, clean and without its `!`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// It began with `!`: what it matches is taken back in.
    pub fn is_negated(&self) -> bool {
        self.negated
    }

    fn new(given: &str) -> Result<Option<Pattern>, BadPattern> {
        let bad = || BadPattern {
            pattern: given.to_owned(),
        };
        let trimmed = given.trim();
        if trimmed.is_empty() {
            return Ok(None);
        }
        // The `!` is still there: `!a/../b` becomes `b` and loses it. So it does in Docker.
        let cleaned = clean(trimmed);
        let (negated, text) = match cleaned.strip_prefix('!') {
            Some("") => return Err(bad()),
            Some(rest) => (true, rest),
            None => (false, cleaned.as_str()),
        };
        if !is_well_formed(text) {
            return Err(bad());
        }
        let test = Test::new(text).ok_or_else(bad)?;
        Ok(Some(Pattern {
            text: text.to_owned(),
            negated,
            test,
        }))
    }

    fn matches(&self, path: &str) -> bool {
        match &self.test {
            Test::Exact => path == self.text,
            Test::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Test::Suffix(suffix) => {
                path.ends_with(suffix.as_str()) || suffix.strip_prefix('/') == Some(path)
            }
            Test::Expression(expression) => expression.is_match(path),
        }
    }

    fn matches_a_parent(&self, path: &str) -> bool {
        path.match_indices('/')
            .any(|(at, _)| self.matches(&path[..at]))
    }
}

impl Test {
    fn new(pattern: &str) -> Option<Test> {
        #[derive(Clone, Copy, PartialEq)]
        enum Found {
            Exact,
            Prefix,
            Suffix,
            Expression,
        }
        let mut expression = String::from("^");
        let mut found = Found::Exact;
        let mut chars = pattern.chars().peekable();
        let mut first = true;
        while let Some(char) = chars.next() {
            match char {
                '*' if chars.next_if_eq(&'*').is_some() => {
                    chars.next_if_eq(&'/');
                    if chars.peek().is_some() {
                        expression.push_str("(.*/)?");
                        found = Found::Expression;
                    } else if found == Found::Exact {
                        found = Found::Prefix;
                    } else {
                        expression.push_str(".*");
                        found = Found::Expression;
                    }
                    if first {
                        found = Found::Suffix;
                    }
                }
                '*' => {
                    expression.push_str("[^/]*");
                    found = Found::Expression;
                }
                '?' => {
                    expression.push_str("[^/]");
                    found = Found::Expression;
                }
                // Docker means to escape `|{}` too, but its table has no room for them.
                '.' | '+' | '(' | ')' | '$' => {
                    expression.push('\\');
                    expression.push(char);
                }
                '\\' => {
                    expression.push('\\');
                    if let Some(escaped) = chars.next() {
                        expression.push(escaped);
                        found = Found::Expression;
                    }
                }
                '[' | ']' => {
                    expression.push(char);
                    found = Found::Expression;
                }
                other => expression.push(other),
            }
            first = false;
        }
        Some(match found {
            Found::Exact => Test::Exact,
            Found::Prefix => Test::Prefix(pattern.strip_suffix("**").unwrap_or(pattern).to_owned()),
            Found::Suffix => Test::Suffix(pattern.strip_prefix("**").unwrap_or(pattern).to_owned()),
            Found::Expression => {
                expression.push('$');
                Test::Expression(Regex::new(&dialect::from_go(&expression)?).ok()?)
            }
        })
    }
}

impl Matcher {
    /// Takes patterns in order; blank ones are left out.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Matcher, BadPattern> {
        let parsed = patterns
            .iter()
            .filter_map(|pattern| Pattern::new(pattern.as_ref()).transpose());
        Ok(Matcher {
            patterns: parsed.collect::<Result<_, _>>()?,
        })
    }

    /// Its patterns, in order.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether any pattern takes something back in.
    pub fn has_negations(&self) -> bool {
        self.patterns.iter().any(Pattern::is_negated)
    }

    /// Whether the path, or a directory above it, is matched. `path` is relative, clean and with slashes.
    pub fn matches(&self, path: &str) -> bool {
        self.matches_within(path, &ParentMatches::default()).0
    }

    /// As [`Matcher::matches`], for a walk: takes what this gave for the directory that holds `path`, and gives what
    /// is to be passed for what `path` holds.
    pub fn matches_within(&self, path: &str, parent: &ParentMatches) -> (bool, ParentMatches) {
        let mut own = vec![false; self.patterns.len()];
        let mut matched = false;
        for (at, pattern) in self.patterns.iter().enumerate() {
            let mut hit = parent.matched.get(at).copied().unwrap_or(false);
            if !hit {
                // It could not change the verdict so far.
                if pattern.negated != matched {
                    continue;
                }
                hit = pattern.matches(path)
                    || (parent.matched.is_empty() && pattern.matches_a_parent(path));
            }
            own[at] = hit;
            if hit {
                matched = !pattern.negated;
            }
        }
        (matched, ParentMatches { matched: own })
    }
}
