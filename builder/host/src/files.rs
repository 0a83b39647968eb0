//! Small files that are there whole or not at all, and directories with a mode.
//!
//! Must not know: what is in them.

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
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

/// The same for what must be written when the disk is full: from the second time on it takes no new room, for up to `room` bytes.
/// Spaces fill the file. It outlives the daemon's death.
pub(crate) fn write_in_room(path: &Path, bytes: &[u8], room: usize) -> io::Result<()> {
    if bytes.len() > room {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let filled = |bytes: &[u8]| [bytes, &vec![b' '; room - bytes.len()]].concat();
    let spare = path.with_extension("spare");
    let overwrite = |bytes: &[u8]| {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&spare)?;
        file.write_all_at(&filled(bytes), 0)
    };
    if !path.try_exists()? {
        overwrite(b"")?;
        return write_whole(path, &filled(bytes), Outlives::Crash);
    }
    overwrite(bytes)?;
    match renameat2(
        AT_FDCWD,
        &spare,
        AT_FDCWD,
        path,
        RenameFlags::RENAME_EXCHANGE,
    ) {
        // A file system that cannot exchange names.
        Err(Errno::EINVAL) => fs::rename(&spare, path),
        exchanged => Ok(exchanged?),
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

/// Whether an error comes from a disk that is full, or from what a user may have of one.
pub(crate) fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let system = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    };
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tmpfs counts pages as any file system counts blocks.
    #[test]
    fn what_was_written_once_is_written_again_on_a_full_disk() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        std::thread::scope(|scope| {
            let full = scope.spawn(|| {
                use nix::mount::{MsFlags, mount};
                let dir = tempfile::tempdir().unwrap();
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
                let (none, tmpfs) = (MsFlags::empty(), Some("tmpfs"));
                mount(tmpfs, dir.path(), tmpfs, none, Some("size=64k")).unwrap();
                let path = dir.path().join("record.json");
                write_in_room(&path, b"one", 4096).unwrap();
                let fill = fs::write(dir.path().join("fill"), vec![1; 1 << 20]).unwrap_err();
                assert_eq!(fill.kind(), io::ErrorKind::StorageFull);
                let other = write_in_room(&dir.path().join("other"), b"one", 4096).unwrap_err();
                assert_eq!(other.kind(), io::ErrorKind::StorageFull);
                for text in ["two", "three and more", "4"] {
                    write_in_room(&path, text.as_bytes(), 4096).unwrap();
                    assert_eq!(fs::read_to_string(&path).unwrap().trim_end(), text);
                }
                nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
            });
            full.join().unwrap();
        });
    }

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
