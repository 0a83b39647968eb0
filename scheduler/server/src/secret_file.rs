//! Files that hold secrets: made once, whole, and readable by their owner alone.
//!
//! Must not know: what is in them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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

/// Reads the secret at `path`; if there is none, keeps there what `make` gives (0600).
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
    write_new(path, &secret)?;
    Ok(secret)
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

/// Writes a secret under a name that does not exist yet: whole or not at all.
///
/// # Errors
/// [`SecretFileError`].
pub(crate) fn write_new(path: &Path, secret: &[u8]) -> Result<(), SecretFileError> {
    write_as(path, secret, 0o600)
}

/// Replaces a file that everybody may read: whole or not at all.
///
/// # Errors
/// [`SecretFileError`].
pub(crate) fn write_public(path: &Path, content: &[u8]) -> Result<(), SecretFileError> {
    write_as(path, content, 0o644)
}

fn write_as(path: &Path, content: &[u8], mode: u32) -> Result<(), SecretFileError> {
    let failed = |source| SecretFileError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = path.with_file_name(name);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh)
        .map_err(failed)?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    std::fs::rename(&fresh, path).map_err(failed)?;
    let dir = path.parent().map_or_else(|| File::open("."), File::open);
    dir.and_then(|dir| dir.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_is_made_once_and_must_stay_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(read_or_make(&path, || Ok(vec![1])).unwrap(), [1]);
        assert_eq!(read_or_make(&path, || Ok(vec![2])).unwrap(), [1]);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read(&path), Err(SecretFileError::Open(_))));
    }
}
