//! The data directory: made private, and held by one process at a time.
//!
//! Must not know: what is kept in it.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Its lock is what counts; what is in it tells whose that is.
const LOCK_FILE: &str = "serve.lock";

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The file system said no.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("{path} is in use by another `slipwayd serve`{}", of(.process))]
    InUse {
        /// Which directory.
        path: PathBuf,
        /// The number of that process, if it has written it.
        process: Option<u32>,
    },
}

fn of(process: &Option<u32>) -> String {
    process.map_or_else(String::new, |process| format!(" (process {process})"))
}

/// Held until it is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub(crate) struct DataDirLock {
    _file: Flock<File>,
}

/// Makes the directory (0700) if it is not there, and takes it.
///
/// # Errors
/// [`DataDirError`].
pub(crate) fn take(dir: &Path) -> Result<DataDirLock, DataDirError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| DataDirError::Io {
            action,
            path,
            source,
        }
    };
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.map_err(failed("make the data directory", dir))?;
    make_private(dir).map_err(failed("restrict the data directory", dir))?;
    let path = dir.join(LOCK_FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open", &path))?;
    file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            let write = |file: &mut File| {
                file.set_len(0)?;
                file.rewind()?;
                write!(file, "{}", std::process::id())
            };
            // It only tells others whose it is. On a full disk it cannot, and what is there must still be served.
            if let Err(error) = write(&mut file) {
                tracing::warn!(path = %path.display(), %error, "the lock of the data directory does not say whose it is");
            }
            return Ok(DataDirLock { _file: file });
        }
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(failed("lock", &path)(errno.into())),
    };
    let mut text = String::new();
    let read = file.take(16).read_to_string(&mut text);
    let process = read.ok().and_then(|_| text.parse().ok());
    Err(DataDirError::InUse {
        path: dir.to_owned(),
        process,
    })
}

/// One that was made by others may be open to all; what is in it is not for them.
fn make_private(dir: &Path) -> io::Result<()> {
    let mode = std::fs::metadata(dir)?.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let was = format!("{mode:o}");
    tracing::warn!(dir = %dir.display(), was, "others could enter the data directory; its mode is 700 now");
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode & !0o077))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_held_by_one_and_the_next_learns_by_whom() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let held = take(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        for _ in 0..2 {
            let refused = take(&path).unwrap_err();
            let text = refused.to_string();
            let own = format!("(process {})", std::process::id());
            assert!(text.contains(&own), "{text}");
        }
        drop(held);
        take(&path).unwrap();
    }

    #[test]
    fn a_data_directory_that_others_could_enter_is_made_private() {
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        take(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_full_disk_does_not_keep_the_data_directory_from_being_taken() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join(LOCK_FILE)).unwrap();
        take(dir.path()).unwrap();
    }
}
