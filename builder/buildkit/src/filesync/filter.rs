//! Which entries of a tree a builder wants: include and exclude patterns, and where a walk need not look at all.
//!
//! It must not know of disks or packets.

use crate::ignore::{BadPattern, Matcher, ParentMatches, Pattern};

/// What is to be done with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Announce it.
    Keep,
    /// Leave it out, but a directory may hold something that is wanted.
    Skip,
    /// Leave it out with all it holds.
    Prune,
}

/// Include and exclude patterns together.
#[derive(Debug, Default)]
pub(super) struct Filter {
    include: Option<Matcher>,
    exclude: Option<Matcher>,
    /// No include pattern has a wildcard other than at its end: whole directories can be told apart by prefix.
    plain_includes: bool,
    /// The same of the negated exclude patterns.
    plain_exceptions: bool,
}

/// What matched a directory, for the entries in it.
#[derive(Debug, Clone, Default)]
pub(super) struct DirMatches {
    include: ParentMatches,
    exclude: ParentMatches,
}

impl Filter {
    /// Takes the patterns as the builder sends them; no patterns of a kind means no filter of that kind.
    pub(super) fn new(include: &[String], exclude: &[String]) -> Result<Filter, BadPattern> {
        let matcher = |patterns: &[String]| match patterns {
            [] => Ok(None),
            some => Matcher::new(some).map(Some),
        };
        let (include, exclude) = (matcher(include)?, matcher(exclude)?);
        let all_plain = |matcher: &Option<Matcher>, negated: bool| {
            let patterns = matcher.iter().flat_map(Matcher::patterns);
            patterns
                .filter(|pattern| pattern.is_negated() == negated)
                .all(is_plain)
        };
        let (plain_includes, plain_exceptions) =
            (all_plain(&include, false), all_plain(&exclude, true));
        Ok(Filter {
            include,
            exclude,
            plain_includes,
            plain_exceptions,
        })
    }

    /// Everything is wanted.
    pub(super) fn is_open(&self) -> bool {
        self.include.is_none() && self.exclude.is_none()
    }

    /// Judges an entry; gives also what to judge its own entries by.
    pub(super) fn judge(
        &self,
        path: &str,
        is_dir: bool,
        parent: &DirMatches,
    ) -> (Verdict, DirMatches) {
        let mut own = DirMatches::default();
        let mut verdict = Verdict::Keep;
        if let Some(include) = &self.include {
            let matched;
            (matched, own.include) = include.matches_within(path, &parent.include);
            if !matched {
                let wanted = include
                    .patterns()
                    .iter()
                    .filter(|pattern| !pattern.is_negated());
                if is_dir && self.plain_includes && !any_beneath(wanted, path) {
                    return (Verdict::Prune, own);
                }
                verdict = Verdict::Skip;
            }
        }
        if let Some(exclude) = &self.exclude {
            let matched;
            (matched, own.exclude) = exclude.matches_within(path, &parent.exclude);
            if matched {
                let exceptions = exclude
                    .patterns()
                    .iter()
                    .filter(|pattern| pattern.is_negated());
                if is_dir && self.plain_exceptions && !any_beneath(exceptions, path) {
                    return (Verdict::Prune, own);
                }
                verdict = Verdict::Skip;
            }
        }
        (verdict, own)
    }
}

fn is_plain(pattern: &Pattern) -> bool {
    !stem(pattern).contains(['*', '[', ']', '?', '^', '\\'])
}

/// The pattern without a wildcard part at its end.
fn stem(pattern: &Pattern) -> &str {
    let text = pattern.text();
    let text = text.strip_suffix("/**").unwrap_or(text);
    text.strip_suffix("/*").unwrap_or(text)
}

/// Some pattern may match within the directory.
fn any_beneath<'a>(mut patterns: impl Iterator<Item = &'a Pattern>, dir: &str) -> bool {
    patterns.any(|pattern| {
        let stem = stem(pattern);
        stem.strip_prefix(dir)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(include: &[&str], exclude: &[&str], path: &str, is_dir: bool) -> Verdict {
        let owned =
            |patterns: &[&str]| patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
        let filter = Filter::new(&owned(include), &owned(exclude)).unwrap();
        filter.judge(path, is_dir, &DirMatches::default()).0
    }

    #[test]
    fn directories_are_pruned_only_where_nothing_in_them_can_be_wanted() {
        for (include, exclude, path, expected) in [
            (&[][..], &[][..], "a", Verdict::Keep),
            (&["a/b"], &[], "a", Verdict::Skip),
            (&["a/b"], &[], "ab", Verdict::Prune),
            (&["a/b"], &[], "a/b/c", Verdict::Keep),
            (&["*/b"], &[], "x", Verdict::Skip),
            (&["a/*"], &[], "a", Verdict::Skip),
            (&[], &["a"], "a", Verdict::Prune),
            (&[], &["a", "!a/b"], "a", Verdict::Skip),
            (&[], &["a", "!c"], "a", Verdict::Prune),
            (&[], &["a", "!**/x"], "a", Verdict::Skip),
            (&["a"], &["a/b"], "a/b", Verdict::Prune),
        ] {
            assert_eq!(
                judged(include, exclude, path, true),
                expected,
                "{include:?} {exclude:?} {path}"
            );
        }
        assert_eq!(judged(&["a"], &[], "b", false), Verdict::Skip);
    }
}
