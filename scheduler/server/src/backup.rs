//! `slipwayd serve backup DIR`: everything that a control plane cannot be made anew from, in one directory, while it runs.
//!
//! ```text
//! DIR/database/slipway.db   everything that is recorded; without the secrets it opens no volume and no credential
//! DIR/secrets/...           the authority, the master keys, the administrator's token
//! ```
//! To restore, both are copied into an empty data directory. The database is copied as it is at one moment, and a machine's newest
//! generation is set ahead in the copy: hosts refuse the starts of a control plane that knows less than they do.
//!
//! Must not know: what is in the files.

use crate::ca::{CA_CERTIFICATE_FILE, CA_KEY_FILE};
use crate::keys::MASTER_KEYS_FILE;
use crate::seal::MASTER_KEY_FILE;
use crate::secret_file::{self, SecretFileError};
use crate::serve::{ADMIN_TOKEN_FILE, DATABASE_FILE};
use crate::settings::{KeySettings, ServeSettings};
use slipway_store::{SqliteStore, StoreError};
use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The directory is there already, or cannot be made.
    #[error("{action} {path}")]
    Directory {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// The database.
    #[error("copy the database")]
    Store(#[from] StoreError),
    /// A secret.
    #[error("copy a secret")]
    Secret(#[from] SecretFileError),
}

/// What a backup lacks, since it is kept elsewhere; in words for the operator.
type Elsewhere = Vec<&'static str>;

/// Writes a backup of the control plane with these settings, which may run meanwhile. `to` must not exist; it is there in the end, whole,
/// for its owner alone. Gives what is not in it, in words for the operator.
///
/// # Errors
/// [`BackupError`]; then nothing is left of it.
pub async fn backup(settings: &ServeSettings, to: &Path) -> Result<Vec<&'static str>, BackupError> {
    if to.symlink_metadata().is_ok() {
        let source = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(directory("make", to)(source));
    }
    let mut name = OsString::from(".");
    name.push(to.file_name().unwrap_or_default());
    name.push(".partial");
    let partial = to.with_file_name(name);
    remove(&partial)?;
    let written = write(settings, &partial).await.and_then(|elsewhere| {
        std::fs::rename(&partial, to).map_err(directory("make", to))?;
        sync(to.parent().filter(|dir| !dir.as_os_str().is_empty()))?;
        Ok(elsewhere)
    });
    if written.is_err() {
        remove(&partial)?;
    }
    written
}

async fn write(settings: &ServeSettings, dir: &Path) -> Result<Elsewhere, BackupError> {
    let (database, secrets) = (dir.join("database"), dir.join("secrets"));
    for dir in [dir, &database, &secrets] {
        let made = DirBuilder::new().mode(0o700).create(dir);
        made.map_err(directory("make", dir))?;
    }
    // Before the secrets: none that it needs is thrown away, and one that is made meanwhile is not too much.
    SqliteStore::back_up(
        &settings.data_dir.join(DATABASE_FILE),
        &database.join(DATABASE_FILE),
    )
    .await?;
    for name in [
        CA_CERTIFICATE_FILE,
        CA_KEY_FILE,
        MASTER_KEY_FILE,
        ADMIN_TOKEN_FILE,
    ] {
        secret_file::copy(&settings.data_dir.join(name), &secrets.join(name))?;
    }
    let elsewhere = write_volume_keys(settings, &secrets)?;
    for dir in [&database, &secrets, dir] {
        sync(Some(dir))?;
    }
    Ok(elsewhere)
}

/// The master keys of the volumes' keys, under the name that needs no setting.
fn write_volume_keys(settings: &ServeSettings, secrets: &Path) -> Result<Elsewhere, BackupError> {
    let own = settings.data_dir.join(MASTER_KEYS_FILE);
    let (file, previous) = match &settings.keys {
        KeySettings::Vault(_) => {
            return Ok(vec![
                "the keys of volumes, which are in Vault, and the files that open it",
            ]);
        }
        KeySettings::Embedded {
            master_key_file,
            previous_master_key_files,
        } => (
            master_key_file.as_ref().unwrap_or(&own),
            previous_master_key_files,
        ),
    };
    // A control plane that was started with the new settings has sealed everything anew; another may still need them.
    for (n, previous) in previous.iter().enumerate() {
        secret_file::copy(
            previous,
            &secrets.join(format!("{MASTER_KEYS_FILE}.previous-{n}")),
        )?;
    }
    match secret_file::copy(file, &secrets.join(MASTER_KEYS_FILE)) {
        Err(SecretFileError::Io { source, .. })
            if source.kind() == io::ErrorKind::NotFound && *file == own =>
        {
            Ok(vec![
                "the master key of the volumes' keys, which comes from a systemd credential or the environment",
            ])
        }
        done => Ok(done.map(|()| Elsewhere::new())?),
    }
}

fn directory<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> BackupError + 'a {
    move |source| BackupError::Directory {
        action,
        path: path.to_owned(),
        source,
    }
}

fn remove(dir: &Path) -> Result<(), BackupError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(directory("remove", dir)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sync(dir: Option<&Path>) -> Result<(), BackupError> {
    let dir = dir.unwrap_or(Path::new("."));
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(directory("sync", dir))
}

#[cfg(test)]
mod tests;
