//! Files that hold secrets: made once, whole, and readable by their owner alone.
//!
//! Must not know: what is in them.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::{NamedTempFile, PersistError};

/// Largest secret file that is read.
const BYTES_MAX: u64 = 64 << 10;

/// Why a secret could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
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
    /// Others may read it.
    #[error("{0} may be read by others (chmod 600 it)")]
    Open(PathBuf),
    /// The system has no randomness.
    #[error("draw a secret: {0}")]
    Entropy(#[from] getrandom::Error),
}

/// Reads the secret at `path`; if there is none, keeps there what `make` gives (0600). Of several that do so at once, one keeps its own and
/// the others get that.
///
/// # Errors
/// [`SecretFileError`].
pub(crate) fn read_or_make(
    path: &Path,
    make: impl FnOnce() -> Result<Vec<u8>, getrandom::Error>,
) -> Result<Vec<u8>, SecretFileError> {
    match read(path) {
        Err(SecretFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        done => return done,
    }
    let secret = make()?;
    match write(path, &secret, 0o600, |file, path| {
        file.persist_noclobber(path)
    }) {
        Ok(()) => Ok(secret),
        Err(SecretFileError::Io { source, .. })
            if source.kind() == io::ErrorKind::AlreadyExists =>
        {
            read(path)
        }
        Err(error) => Err(error),
    }
}

/// Reads a secret, and refuses one that group or others can read.
///
/// # Errors
/// [`SecretFileError`].
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, SecretFileError> {
    let failed = |source| SecretFileError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
        return Err(SecretFileError::Open(path.to_owned()));
    }
    let mut secret = Vec::new();
    file.take(BYTES_MAX)
        .read_to_end(&mut secret)
        .map_err(failed)?;
    Ok(secret)
}

/// Replaces a file that everybody may read: whole or not at all.
///
/// # Errors
/// [`SecretFileError`].
pub(crate) fn write_public(path: &Path, content: &[u8]) -> Result<(), SecretFileError> {
    write(path, content, 0o644, |file, path| file.persist(path))
}

/// Copies a file of this directory's kind to a name that does not exist yet, for as many to read as before.
///
/// # Errors
/// [`SecretFileError`].
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), SecretFileError> {
    let failed = |source| SecretFileError::Io {
        action: "read",
        path: from.to_owned(),
        source,
    };
    let file = File::open(from).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    let mut content = Vec::new();
    file.take(BYTES_MAX)
        .read_to_end(&mut content)
        .map_err(failed)?;
    write(to, &content, mode, |file, path| {
        file.persist_noclobber(path)
    })
}

/// Writes a file beside `path`, and has `place` put it there: whole or not at all, also after a power cut.
fn write(
    path: &Path,
    content: &[u8],
    mode: u32,
    place: impl FnOnce(NamedTempFile, &Path) -> Result<File, PersistError>,
) -> Result<(), SecretFileError> {
    let failed = |source| SecretFileError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) | None => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(mode))
        .suffix(".new")
        .tempfile_in(dir)
        .map_err(failed)?;
    file.write_all(content)
        .and_then(|()| file.as_file().sync_all())
        .map_err(failed)?;
    place(file, path).map_err(|error| failed(error.error))?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_must_stay_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(read_or_make(&path, || Ok(vec![1])).unwrap(), [1]);
        assert_eq!(read_or_make(&path, || Ok(vec![2])).unwrap(), [1]);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read(&path), Err(SecretFileError::Open(_))));
    }

    #[test]
    fn of_many_that_make_a_secret_at_once_all_get_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let together = std::sync::Barrier::new(8);
        let made: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let make = |n: u8| {
                let (together, path) = (&together, &path);
                scope.spawn(move || {
                    let make = || {
                        // Everybody has seen that there is none.
                        together.wait();
                        Ok(vec![n; 32])
                    };
                    read_or_make(path, make).unwrap()
                })
            };
            let threads: Vec<_> = (0..8).map(make).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().unwrap();
            threads.into_iter().map(join).collect()
        });
        let kept = read(&path).unwrap();
        assert!(made.iter().all(|one| *one == kept), "{made:?}");
        let mode = std::fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
