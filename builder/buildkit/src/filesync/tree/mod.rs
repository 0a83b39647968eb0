//! A directory on disk, looked at without ever leaving it: every path is opened beneath the root and through no
//! symbolic link.
//!
//! It must not know which entries are wanted, nor how they are sent.

#[cfg(any(not(unix), test))]
mod plain;
#[cfg(unix)]
mod unix;

#[cfg(not(unix))]
pub(super) use plain::{Name, OpenDir, Tree};
#[cfg(unix)]
pub(super) use unix::{Name, OpenDir, Tree};

use super::packet::Stat;

/// Bits of Go's `os.FileMode`.
pub(super) mod go_mode {
    pub(crate) const DIR: u32 = 1 << 31;
    pub(crate) const SYMLINK: u32 = 1 << 27;
    pub(crate) const DEVICE: u32 = 1 << 26;
    pub(crate) const NAMED_PIPE: u32 = 1 << 25;
    #[cfg(unix)]
    pub(crate) const SETUID: u32 = 1 << 23;
    #[cfg(unix)]
    pub(crate) const SETGID: u32 = 1 << 22;
    pub(crate) const CHAR_DEVICE: u32 = 1 << 21;
    #[cfg(unix)]
    pub(crate) const STICKY: u32 = 1 << 20;
    /// All that say what an entry is. A file has none of them.
    pub(crate) const TYPE: u32 = DIR | SYMLINK | DEVICE | NAMED_PIPE | CHAR_DEVICE;
}

/// What `lstat` says of an entry.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) stat: Stat,
    /// Set for a file with more than one name: device and inode.
    pub(super) shared_inode: Option<(u64, u64)>,
    /// A socket: announced as an empty file, as BuildKit's own client does.
    pub(super) is_socket: bool,
}

/// What an entry is, as far as a walk cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A directory.
    Directory,
    /// All else, links to directories included.
    Other,
    /// The file system does not tell in the directory.
    Unknown,
}

/// Why an entry could not be looked at.
#[derive(Debug)]
pub(super) struct LookError {
    pub(super) why: Why,
    error: std::io::Error,
}

/// What a walk distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Nothing has that name.
    Missing,
    /// It is there, and is something else: no directory, no link, or a link on the way.
    OtherKind,
    /// The user may not.
    Denied,
    /// All else.
    Other,
}

impl LookError {
    /// An error of the system, or one that says the same.
    pub(super) fn new(why: Why, error: std::io::Error) -> LookError {
        LookError { why, error }
    }

    /// Nothing has that name, any more.
    pub(super) fn missing() -> LookError {
        LookError::new(Why::Missing, std::io::ErrorKind::NotFound.into())
    }

    /// What the system said.
    pub(super) fn error(&self) -> &std::io::Error {
        &self.error
    }
}
