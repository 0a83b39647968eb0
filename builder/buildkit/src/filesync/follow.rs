//! `followpaths`: paths of which a builder wants whatever they lead to, through any symbolic links on the way. They
//! become include patterns that name both the links and where they end, all beneath the root.
//!
//! It must not know how the patterns are matched.

use super::tree::{LookError, Name, Tree, Why};
use crate::ignore::{clean, has_wildcards, matches_name};
use crate::limits;
use std::collections::BTreeSet;

/// Include patterns: those given and what the paths lead to. An empty list means that everything is wanted.
pub(super) fn with_followed(
    tree: &Tree,
    include: Vec<String>,
    paths: &[String],
) -> Result<Vec<String>, LookError> {
    if paths.is_empty() {
        return Ok(include);
    }
    let mut follower = Follower {
        tree,
        reached: BTreeSet::new(),
        links: 0,
    };
    for path in paths {
        follower.follow(path)?;
    }
    let reached = without_inner(follower.reached.into_iter().collect());
    match reached {
        // The root itself is among them: it filters nothing.
        None => Ok(include),
        Some(reached) => {
            let all = include.into_iter().chain(reached).collect();
            Ok(without_inner(all).unwrap_or_default())
        }
    }
}

/// Drops paths that lie in the one before them. `None` if the root is among them.
fn without_inner(paths: Vec<String>) -> Option<Vec<String>> {
    let mut outer: Vec<String> = Vec::with_capacity(paths.len());
    for path in paths {
        if path == "." {
            return None;
        }
        let last = outer.last().map_or("", String::as_str);
        let within = path
            .strip_prefix(last)
            .is_some_and(|rest| rest.starts_with('/'));
        if !within {
            outer.push(path);
        }
    }
    Some(outer)
}

struct Follower<'a> {
    tree: &'a Tree,
    reached: BTreeSet<String>,
    links: usize,
}

impl Follower<'_> {
    fn follow(&mut self, path: &str) -> Result<(), LookError> {
        let path = beneath_root(path);
        let mut at = String::new();
        let mut parts = path.split('/');
        while let Some(part) = parts.next() {
            at = if at.is_empty() {
                part.to_owned()
            } else {
                format!("{at}/{part}")
            };
            let rest: Vec<&str> = parts.clone().collect();
            let targets = self.targets(&at, true)?;
            if targets.is_none() && !rest.is_empty() {
                continue;
            }
            if !self.reached.insert(at.clone()) {
                return Ok(());
            }
            for target in targets.into_iter().flatten() {
                self.links += 1;
                if self.links > limits::SYNC_LINKS_FOLLOWED_MAX {
                    return Ok(());
                }
                self.follow(&format!("{target}/{}", rest.join("/")))?;
            }
            return Ok(());
        }
        Ok(())
    }

    /// Where a path leads if it is a link, or where all the links lead that its wildcards match. `None`: no link.
    fn targets(&self, path: &str, wildcards: bool) -> Result<Option<Vec<String>>, LookError> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        if wildcards && has_wildcards(name) {
            return self.targets_of_all(dir, name);
        }
        let read = Name::new(name)
            .map_err(|_| LookError::missing())
            .and_then(|name| self.tree.open_dir(dir.as_bytes())?.link_of(&name));
        let link = match read {
            Ok(link) => String::from_utf8_lossy(&link).into_owned(),
            // It is no link, or is not there; the latter is for the builder to tell.
            Err(error) if matches!(error.why, Why::Missing | Why::OtherKind) => return Ok(None),
            Err(error) => return Err(error),
        };
        let target = if link.starts_with('/') {
            link
        } else {
            format!("{dir}/{link}")
        };
        Ok(Some(vec![beneath_root(&target)]))
    }

    fn targets_of_all(&self, dir: &str, pattern: &str) -> Result<Option<Vec<String>>, LookError> {
        let mut names = match self
            .tree
            .open_dir(dir.as_bytes())
            .and_then(|mut dir| dir.entries())
        {
            Ok(names) => names,
            Err(error) if matches!(error.why, Why::Missing | Why::OtherKind) => return Ok(None),
            Err(error) => return Err(error),
        };
        names.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        let mut all = Vec::new();
        for (name, _) in names {
            let Ok(name) = name.to_str() else { continue };
            if matches_name(pattern, name) {
                let path = if dir.is_empty() {
                    name.to_owned()
                } else {
                    format!("{dir}/{name}")
                };
                all.extend(self.targets(&path, false)?.into_iter().flatten());
            }
        }
        Ok((!all.is_empty()).then_some(all))
    }
}

/// Clean, relative, and never above the root; the root is `.`.
fn beneath_root(path: &str) -> String {
    let rooted = clean(&format!("/{path}"));
    match rooted.trim_start_matches('/') {
        "" => ".".to_owned(),
        relative => relative.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn followed(root: &std::path::Path, paths: &[&str]) -> Vec<String> {
        let tree = Tree::open(root).unwrap();
        let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
        with_followed(&tree, Vec::new(), &paths).unwrap()
    }

    #[test]
    fn links_are_followed_within_the_root() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        std::fs::create_dir_all(at("dir/sub")).unwrap();
        std::fs::write(at("dir/sub/file"), "").unwrap();
        symlink("dir", at("link")).unwrap();
        symlink("/dir/sub", at("absolute")).unwrap();
        symlink("../../../../dir/sub/file", at("above")).unwrap();
        symlink("loop2", at("loop1")).unwrap();
        symlink("loop1", at("loop2")).unwrap();
        symlink("sub/../sub/file", at("dir/inner")).unwrap();
        symlink(".", at("self")).unwrap();

        assert_eq!(followed(root.path(), &["dir/sub/file"]), ["dir/sub/file"]);
        assert_eq!(
            followed(root.path(), &["link/sub/file"]),
            ["dir/sub/file", "link"]
        );
        assert_eq!(
            followed(root.path(), &["/absolute/file"]),
            ["absolute", "dir/sub/file"]
        );
        assert_eq!(followed(root.path(), &["above"]), ["above", "dir/sub/file"]);
        assert_eq!(followed(root.path(), &["loop1/x"]), ["loop1", "loop2"]);
        assert_eq!(
            followed(root.path(), &["link/inn*"]),
            ["dir/inn*", "dir/sub/file", "link"]
        );
        assert_eq!(followed(root.path(), &["missing/x"]), ["missing/x"]);
        assert_eq!(followed(root.path(), &["dir", "dir/sub"]), ["dir"]);
        assert_eq!(followed(root.path(), &["dir", "."]), Vec::<String>::new());
        assert_eq!(followed(root.path(), &["self"]), Vec::<String>::new());
    }
}
