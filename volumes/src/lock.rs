//! Advisory file locks (`flock`) with a deadline. They hold between threads too: each lock is its own open file.
//!
//! Must not know: what is guarded.

use crate::limits::POLL_PAUSE;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// A lock that is let go when this is dropped, or when the process ends.
#[derive(Debug)]
pub(crate) struct FileLock {
    held: File,
}

/// How a try to lock ended.
#[derive(Debug)]
pub(crate) enum Locked {
    Held(FileLock),
    TimedOut,
}

impl FileLock {
    /// Locks the file at `path`, making it if need be, and waits at most `wait` for others.
    ///
    /// The file may be removed by whoever holds the lock: a lock on a removed file guards nothing, so that the path is
    /// looked at again after the lock is held.
    pub(crate) fn acquire(path: &Path, wait: Duration) -> io::Result<Locked> {
        let deadline = Instant::now() + wait;
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(path)?;
            match file.try_lock() {
                Ok(()) if is_still_at(&file, path)? => {
                    return Ok(Locked::Held(Self { held: file }));
                }
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if Instant::now() >= deadline {
                return Ok(Locked::TimedOut);
            }
            std::thread::sleep(POLL_PAUSE);
        }
    }

    /// Writes into the file what the lock is held for, for those who wait in vain.
    pub(crate) fn note(&self, what: &str) -> io::Result<()> {
        self.held.set_len(0)?;
        self.held.write_all_at(what.as_bytes(), 0)
    }
}

fn is_still_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(now) => Ok((now.dev(), now.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
