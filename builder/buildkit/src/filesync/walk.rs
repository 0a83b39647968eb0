//! The walk of a tree in the order that receivers demand: depth first, names in byte order, a directory before what
//! it holds, and directories that hold something wanted even where they are not wanted themselves.
//!
//! It must not know how entries are sent.

use super::filter::{DirMatches, Filter, Verdict};
use super::tree::{Kind, LookError, Name, OpenDir, Seen, Tree, Why};
use super::{ReadFailure, Stop, go_mode};
use crate::limits;
use std::collections::HashMap;

/// Takes each entry as it is found; an error ends the walk.
pub(super) trait Visit {
    fn visit(&mut self, seen: Seen) -> Result<(), Stop>;
}

/// Walks the whole tree.
pub(super) fn walk(tree: &Tree, filter: &Filter, visitor: &mut dyn Visit) -> Result<(), Stop> {
    let scanner = Scanner { tree, filter };
    let mut first_names = HashMap::new();
    let mut levels = vec![Level::new(
        scanner.scan(&[], &DirMatches::default(), true)?,
        None,
    )];
    while let Some(level) = levels.last_mut() {
        let Some(found) = level.entries.next() else {
            levels.pop();
            continue;
        };
        let wanted = found.verdict == Verdict::Keep;
        if wanted {
            for level in &mut levels {
                if let Some(parent) = level.unannounced.take() {
                    visitor.visit(parent)?;
                }
            }
        }
        let is_dir = found.seen.stat.mode & go_mode::DIR != 0;
        if !is_dir {
            visitor.visit(linked_to_first(found.seen, &mut first_names))?;
            continue;
        }
        let path = found.seen.stat.path.clone();
        let unannounced = if wanted {
            visitor.visit(found.seen)?;
            None
        } else {
            Some(found.seen)
        };
        if levels.len() >= limits::SYNC_DEPTH_MAX {
            return Err(ReadFailure::new("open", &path, "directories are nested too deep").into());
        }
        let entries = scanner.scan(&path, &found.matches, wanted)?;
        levels.push(Level::new(entries, unannounced));
    }
    Ok(())
}

/// The second and later names of one file are announced as links to the first.
fn linked_to_first(mut seen: Seen, first_names: &mut HashMap<(u64, u64), Vec<u8>>) -> Seen {
    if let Some(inode) = seen.shared_inode {
        match first_names.get(&inode) {
            Some(first) => seen.stat.link.clone_from(first),
            None => {
                first_names.insert(inode, seen.stat.path.clone());
            }
        }
    }
    seen
}

/// A directory that the walk is in.
struct Level {
    entries: std::vec::IntoIter<Found>,
    /// The directory itself, if nothing in it was wanted so far.
    unannounced: Option<Seen>,
}

impl Level {
    fn new(entries: Vec<Found>, unannounced: Option<Seen>) -> Level {
        Level {
            entries: entries.into_iter(),
            unannounced,
        }
    }
}

struct Found {
    seen: Seen,
    verdict: Verdict,
    matches: DirMatches,
}

struct Scanner<'a> {
    tree: &'a Tree,
    filter: &'a Filter,
}

impl Scanner<'_> {
    /// All entries of a directory that are wanted or must be looked into, in order. `wanted`: the directory itself
    /// is; one that is not may be unreadable.
    fn scan(&self, path: &[u8], matches: &DirMatches, wanted: bool) -> Result<Vec<Found>, Stop> {
        let opened = self
            .tree
            .open_dir(path)
            .and_then(|mut dir| Ok((dir.entries()?, dir)));
        let (mut names, dir) = match opened {
            Ok(opened) => opened,
            Err(error) if error.why == Why::Denied && !wanted => return Ok(Vec::new()),
            // It went away since it was announced; so may files do.
            Err(error)
                if matches!(error.why, Why::Missing | Why::OtherKind) && !path.is_empty() =>
            {
                return Ok(Vec::new());
            }
            Err(error) => return Err(ReadFailure::of("open", path, &error).into()),
        };
        names.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        let mut found = Vec::with_capacity(names.len());
        for (name, kind) in names {
            found.extend(self.look(&dir, path, &name, kind, matches)?);
        }
        Ok(found)
    }

    fn look(
        &self,
        dir: &OpenDir,
        dir_path: &[u8],
        name: &Name,
        kind: Kind,
        matches: &DirMatches,
    ) -> Result<Option<Found>, Stop> {
        let path = joined(dir_path, name.to_bytes());
        let failed = |path: &[u8], error: LookError| match error.why {
            Why::Missing => Ok(None),
            Why::OtherKind | Why::Denied | Why::Other => {
                Err(ReadFailure::of("look at", path, &error).into())
            }
        };
        let (verdict, matches) = if self.filter.is_open() {
            (Verdict::Keep, DirMatches::default())
        } else {
            let is_dir = kind == Kind::Directory
                || kind == Kind::Unknown
                    && dir.type_of(name).is_ok_and(|kind| kind == Kind::Directory);
            let (verdict, matches) =
                self.filter
                    .judge(&String::from_utf8_lossy(&path), is_dir, matches);
            match verdict {
                Verdict::Prune => return Ok(None),
                Verdict::Skip if !is_dir => return Ok(None),
                Verdict::Skip | Verdict::Keep => (verdict, matches),
            }
        };
        match dir.look(name, path) {
            Ok(seen) => Ok(Some(Found {
                seen,
                verdict,
                matches,
            })),
            Err(error) => failed(&joined(dir_path, name.to_bytes()), error),
        }
    }
}

fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    #[derive(Default)]
    struct Paths(Vec<String>);

    impl Visit for Paths {
        fn visit(&mut self, seen: Seen) -> Result<(), Stop> {
            let path = String::from_utf8(seen.stat.path).unwrap();
            let link = String::from_utf8(seen.stat.link).unwrap();
            self.0.push(if link.is_empty() {
                path
            } else {
                format!("{path} -> {link}")
            });
            Ok(())
        }
    }

    fn walked(root: &Path, include: &[&str], exclude: &[&str]) -> Vec<String> {
        let owned =
            |patterns: &[&str]| patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
        let filter = Filter::new(&owned(include), &owned(exclude)).unwrap();
        let mut paths = Paths::default();
        walk(&Tree::open(root).unwrap(), &filter, &mut paths).unwrap();
        paths.0
    }

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for dir in ["a/b/c", "a.d", "empty", "ab"] {
            std::fs::create_dir_all(at(dir)).unwrap();
        }
        for file in ["a/b/c/deep", "a/b/x", "a/z", "a.d/f", "ab/f", "Z", "ü ü"] {
            std::fs::write(at(file), file).unwrap();
        }
        symlink("a/z", at("link")).unwrap();
        std::fs::hard_link(at("a/z"), at("hard")).unwrap();
        root
    }

    #[test]
    fn the_order_is_by_components() {
        let root = tree();
        assert_eq!(
            walked(root.path(), &[], &[]),
            [
                "Z",
                "a",
                "a/b",
                "a/b/c",
                "a/b/c/deep",
                "a/b/x",
                "a/z",
                "a.d",
                "a.d/f",
                "ab",
                "ab/f",
                "empty",
                "hard -> a/z",
                "link -> a/z",
                "ü ü"
            ]
        );
    }

    #[test]
    fn parents_of_what_is_wanted_are_announced_before_it() {
        let root = tree();
        assert_eq!(
            walked(root.path(), &["a/b/c"], &[]),
            ["a", "a/b", "a/b/c", "a/b/c/deep"]
        );
        assert_eq!(walked(root.path(), &["**/x"], &[]), ["a", "a/b", "a/b/x"]);
        assert_eq!(
            walked(root.path(), &[], &["*", "!a/b/x", "!empty"]),
            ["a", "a/b", "a/b/x", "empty"]
        );
        assert_eq!(walked(root.path(), &["hard"], &[]), ["hard"]);
        assert_eq!(walked(root.path(), &["nothing"], &[]), Vec::<String>::new());
    }
}
