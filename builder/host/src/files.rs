//! Small files that are there whole or not at all, and directories with a mode.
//!
//! Must not know: what is in them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// What a written file must outlive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outlives {
    /// The daemon's death.
    Crash,
    /// The computer's too; costs a wait for the disk.
    PowerCut,
}

/// Replaces `path` by `bytes` in one step: afterwards, whatever happens, there is the old or the new.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], outlives: Outlives) -> io::Result<()> {
    let next = path.with_extension("next");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&next)?;
    file.write_all(bytes)?;
    match (outlives, path.parent()) {
        (Outlives::PowerCut, Some(parent)) => {
            file.sync_data()?;
            fs::rename(&next, path)?;
            File::open(parent)?.sync_all()
        }
        (Outlives::Crash, _) | (Outlives::PowerCut, None) => fs::rename(&next, path),
    }
}

/// Gives what was made at `from` the name `to`, under which it is then whole whatever happens to the computer. All of the file
/// system is written out for that: it is for what is made once.
pub(crate) fn publish(from: &Path, to: &Path) -> io::Result<()> {
    let parent = File::open(to.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    nix::unistd::syncfs(&parent)?;
    fs::rename(from, to)?;
    parent.sync_all()
}

/// Makes a directory and its parents; it has `mode` afterwards even if it was there.
pub(crate) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Removes a file or a directory with all in it; absent is fine.
pub(crate) fn remove_all(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_whole_and_removes() {
        let dir = std::env::temp_dir().join(format!("slipway-files-{}", std::process::id()));
        make_dir(&dir, 0o710).unwrap();
        write_whole(&dir.join("a.json"), b"one", Outlives::Crash).unwrap();
        write_whole(&dir.join("a.json"), b"two", Outlives::PowerCut).unwrap();
        assert_eq!(fs::read(dir.join("a.json")).unwrap(), b"two");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        remove_all(&dir).unwrap();
        remove_all(&dir).unwrap();
    }
}
