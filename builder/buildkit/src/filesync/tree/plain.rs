//! A tree by the standard library alone, for systems that are not Unix. Each step of a path is looked at before it is taken; a
//! link that is put in place between the look and the step is followed, which only the caller's own programs can do.
//!
//! Owner and mode do not exist there: files are 0755, as BuildKit's own client has them, and belong to root.

use super::{Kind, LookError, Seen, Why, go_mode};
use crate::filesync::packet::Stat;
use std::fs::{self, File, Metadata};
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Permissions of everything.
const MODE: u32 = 0o755;

/// Name of an entry: one part of a path, Unicode.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::filesync) struct Name(String);

impl Name {
    /// Takes a name.
    ///
    /// # Errors
    /// Gives it back: it is no name.
    pub(in crate::filesync) fn new(name: &str) -> Result<Name, &str> {
        if is_name(name) {
            Ok(Name(name.to_owned()))
        } else {
            Err(name)
        }
    }

    /// The name, in UTF-8.
    pub(in crate::filesync) fn to_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The name. Always there: only a tree of Unix has others.
    pub(in crate::filesync) fn to_str(&self) -> Result<&str, std::str::Utf8Error> {
        Ok(&self.0)
    }
}

/// Neither `..` nor a drive, a separator, or what Windows would take for another name.
fn is_name(name: &str) -> bool {
    let odd = |byte: u8| byte < 32 || b"/\\:*?\"<>|".contains(&byte);
    !name.is_empty() && name != "." && name != ".." && !name.bytes().any(odd)
}

/// The root of a tree.
#[derive(Debug)]
pub(in crate::filesync) struct Tree {
    root: PathBuf,
}

/// A directory of a tree.
#[derive(Debug)]
pub(in crate::filesync) struct OpenDir {
    path: PathBuf,
}

impl From<Error> for LookError {
    fn from(error: Error) -> LookError {
        let is = |kind| error.kind() == kind;
        let why = if is(ErrorKind::NotFound) {
            Why::Missing
        } else if is(ErrorKind::NotADirectory) || is(ErrorKind::InvalidInput) {
            Why::OtherKind
        } else if is(ErrorKind::PermissionDenied) {
            Why::Denied
        } else {
            Why::Other
        };
        LookError::new(why, error)
    }
}

impl Tree {
    /// Opens a root. The root itself may be named through symbolic links.
    pub(in crate::filesync) fn open(root: &Path) -> Result<Tree, LookError> {
        let root = fs::canonicalize(root)?;
        if !fs::metadata(&root)?.is_dir() {
            return Err(Error::from(ErrorKind::NotADirectory).into());
        }
        Ok(Tree { root })
    }

    /// Opens a directory; the empty path is the root.
    pub(in crate::filesync) fn open_dir(&self, path: &[u8]) -> Result<OpenDir, LookError> {
        let (path, seen) = self.beneath(path)?;
        if !seen.is_dir() {
            return Err(Error::from(ErrorKind::NotADirectory).into());
        }
        Ok(OpenDir { path })
    }

    /// Opens a file to read.
    pub(in crate::filesync) fn open_file(&self, path: &[u8]) -> Result<File, LookError> {
        let (path, seen) = self.beneath(path)?;
        if !seen.is_file() {
            return Err(LookError::new(
                Why::OtherKind,
                ErrorKind::InvalidInput.into(),
            ));
        }
        Ok(File::open(path)?)
    }

    /// The path below the root, if no part of it is a link, and what is there.
    fn beneath(&self, path: &[u8]) -> Result<(PathBuf, Metadata), LookError> {
        let odd = || LookError::new(Why::OtherKind, ErrorKind::InvalidInput.into());
        let path = std::str::from_utf8(path).map_err(|_| odd())?;
        let mut at = self.root.clone();
        let mut seen = fs::symlink_metadata(&at)?;
        for step in path.split('/').filter(|_| !path.is_empty()) {
            if !is_name(step) {
                return Err(odd());
            }
            at.push(step);
            seen = fs::symlink_metadata(&at)?;
            if seen.is_symlink() {
                return Err(odd());
            }
        }
        Ok((at, seen))
    }
}

impl OpenDir {
    /// Names and types of all entries, in no order.
    pub(in crate::filesync) fn entries(&mut self) -> Result<Vec<(Name, Kind)>, LookError> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| is_name(name)) else {
                let text = format!("a name in it is not Unicode: {}", name.display());
                return Err(LookError::new(Why::Other, Error::other(text)));
            };
            let kind = match entry.file_type()?.is_dir() {
                true => Kind::Directory,
                false => Kind::Other,
            };
            entries.push((Name(name.to_owned()), kind));
        }
        Ok(entries)
    }

    /// What kind an entry is of.
    pub(in crate::filesync) fn type_of(&self, name: &Name) -> Result<Kind, LookError> {
        match fs::symlink_metadata(self.path.join(&name.0))?.is_dir() {
            true => Ok(Kind::Directory),
            false => Ok(Kind::Other),
        }
    }

    /// Where a symbolic link points to, with the separators of images.
    pub(in crate::filesync) fn link_of(&self, name: &Name) -> Result<Vec<u8>, LookError> {
        let path = self.path.join(&name.0);
        if !fs::symlink_metadata(&path)?.is_symlink() {
            return Err(LookError::new(
                Why::OtherKind,
                ErrorKind::InvalidInput.into(),
            ));
        }
        let target = fs::read_link(path)?;
        let target = target.to_string_lossy();
        Ok(target.replace(std::path::MAIN_SEPARATOR, "/").into_bytes())
    }

    /// All about an entry, as the sync tells it. `path` is the entry's path in the tree.
    pub(in crate::filesync) fn look(&self, name: &Name, path: Vec<u8>) -> Result<Seen, LookError> {
        let seen = fs::symlink_metadata(self.path.join(&name.0))?;
        let since = seen.modified()?.duration_since(UNIX_EPOCH);
        let mut stat = Stat {
            path,
            mode: MODE,
            modified: since.map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(0)),
            ..Stat::default()
        };
        if seen.is_dir() {
            stat.mode |= go_mode::DIR;
        } else {
            stat.size = i64::try_from(seen.len()).unwrap_or(i64::MAX);
        }
        if seen.is_symlink() {
            stat.mode = go_mode::SYMLINK | 0o777;
            stat.link = self.link_of(name)?;
        }
        Ok(Seen {
            stat,
            shared_inode: None,
            is_socket: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_root_is_opened() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        fs::create_dir_all(root.join("dir")).unwrap();
        fs::write(outer.path().join("secret"), "s").unwrap();
        fs::write(root.join("dir/file"), "f").unwrap();
        std::os::unix::fs::symlink("..", root.join("up")).unwrap();
        std::os::unix::fs::symlink("dir", root.join("in")).unwrap();
        let tree = Tree::open(&root).unwrap();
        for path in [
            "../secret",
            "up/secret",
            "in/file",
            "/etc/passwd",
            "dir/../../secret",
            "c:/x",
            "dir\\file",
        ] {
            assert!(tree.open_file(path.as_bytes()).is_err(), "{path}");
            assert!(tree.open_dir(path.as_bytes()).is_err(), "{path}");
        }
        assert!(tree.open_file(b"dir/file").is_ok());
        assert_eq!(tree.open_file(b"dir/none").unwrap_err().why, Why::Missing);
        assert_eq!(tree.open_file(b"dir").unwrap_err().why, Why::OtherKind);
        assert_eq!(tree.open_file(b"in").unwrap_err().why, Why::OtherKind);
        let name = Name::new("file").unwrap();
        assert_eq!(name.to_str(), Ok("file"));
        for odd in ["", "..", "a/b", "c:", "a\\b"] {
            assert_eq!(Name::new(odd), Err(odd));
        }
    }

    /// It sees what the tree of Unix sees, but for owners and modes.
    #[test]
    fn both_trees_see_the_same() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("dir")).unwrap();
        fs::write(root.path().join("file"), "contents").unwrap();
        std::os::unix::fs::symlink("dir/below", root.path().join("link")).unwrap();
        let (ours, theirs) = (
            Tree::open(root.path()).unwrap(),
            super::super::Tree::open(root.path()).unwrap(),
        );
        let mut dir = ours.open_dir(b"").unwrap();
        let other = theirs.open_dir(b"").unwrap();
        let mut names = dir.entries().unwrap();
        names.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(names.len(), 3);
        for (name, kind) in names {
            let same = super::super::Name::new(name.to_bytes()).unwrap();
            let seen = dir.look(&name, name.to_bytes().to_vec()).unwrap().stat;
            let there = other.look(&same, same.to_bytes().to_vec()).unwrap().stat;
            assert_eq!(dir.type_of(&name).unwrap(), other.type_of(&same).unwrap());
            assert_eq!(dir.type_of(&name).unwrap(), kind);
            let of = |stat: &Stat| {
                let what = stat.mode & go_mode::TYPE;
                (what, stat.modified, stat.size, stat.link.clone())
            };
            assert_eq!(of(&seen), of(&there), "{name:?}");
        }
    }
}
