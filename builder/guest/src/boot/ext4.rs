//! The ext4 file system of the cache volume: what its superblock says, its check, its growth.
//!
//! It must not know where the disk comes from or where it is mounted.

use crate::limits::CHECK_OUTPUT_BYTES_MAX;
use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use slipway_core::fsck::{Checked, checked, thorough};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

/// A file system that cannot be repaired, or that the kernel does not mount.
#[derive(Debug, thiserror::Error)]
#[error("the cache volume's file system is damaged: {0}")]
pub(super) struct Damaged(pub(super) String);

const CHECKER: &str = "/usr/sbin/e2fsck";
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;

/// Whether the file system was unmounted well and no error was found in it since: `s_magic`, `s_state` and `s_feature_incompat` of
/// `struct ext4_super_block` (Linux, Documentation/filesystems/ext4/super.rst).
fn is_sound(block: &[u8; SUPERBLOCK_BYTES]) -> bool {
    const UNMOUNTED_WELL: u8 = 1;
    const ERRORS_FOUND: u8 = 2;
    const NEEDS_RECOVERY: u8 = 4;
    let (state, incompatible) = (block[0x3a], block[0x60]);
    block[0x38..0x3a] == [0x53, 0xef]
        && state & (UNMOUNTED_WELL | ERRORS_FOUND) == UNMOUNTED_WELL
        && incompatible & NEEDS_RECOVERY == 0
}

/// Checks a file system that is not mounted, unless its last end was clean; repairs what is safe at first, everything if that does
/// not do. Minutes for a large one.
///
/// # Errors
/// [`Damaged`] if it cannot be repaired.
pub(super) fn check(disk: &Path) -> Result<()> {
    let failed = || format!("read {}", disk.display());
    let mut block = [0; SUPERBLOCK_BYTES];
    let opened = File::open(disk).with_context(failed)?;
    opened
        .read_exact_at(&mut block, SUPERBLOCK_AT)
        .with_context(failed)?;
    drop(opened);
    if is_sound(&block) {
        return Ok(());
    }
    tracing::warn!("unclean end before, checking the cache volume");
    let Some((gentle, Run { code, words })) = run_checker(disk, &["-p"])? else {
        tracing::warn!("the builder image has no e2fsck (hint: build it anew); the kernel decides");
        return Ok(());
    };
    match gentle {
        Checked::Sound => return Ok(()),
        Checked::Failed if code.is_none() => bail!("e2fsck was killed: {words}"),
        Checked::Damaged | Checked::Unfinished | Checked::Failed => {}
    }
    tracing::warn!("repairing the cache volume, files may be lost");
    let (repaired, Run { code, words }) = thorough(|| {
        run_checker(disk, &["-f", "-y"])?.context("e2fsck is gone from the builder image")
    })?;
    match repaired {
        Checked::Sound => Ok(()),
        Checked::Damaged | Checked::Unfinished => Err(Damaged(words).into()),
        Checked::Failed => bail!("e2fsck failed ({code:?}): {words}"),
    }
}

/// How the checker ended.
struct Run {
    /// Absent when a signal ended it.
    code: Option<i32>,
    words: String,
}

/// Nothing if there is no checker.
fn run_checker(disk: &Path, mode: &[&str]) -> Result<Option<(Checked, Run)>> {
    let mut command = Command::new(CHECKER);
    // /proc/mounts has no line of it: it is not mounted.
    command.args(mode).arg(disk).env("LC_ALL", "C");
    let output = match command.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        ended => ended.context("run e2fsck")?,
    };
    // Reasons come on the second stream, and must not be lost behind a long list of repairs.
    let mut words = output.stderr;
    words.extend_from_slice(&output.stdout);
    let code = output.status.code();
    let checked = checked(code, &String::from_utf8_lossy(&words));
    words.truncate(CHECK_OUTPUT_BYTES_MAX);
    let words = String::from_utf8_lossy(&words).trim().to_owned();
    Ok(Some((checked, Run { code, words })))
}

/// Whether an error of mount(2) says that the file system is none, or not whole. `EIO` does not: it says that the disk did not answer.
pub(super) fn is_corruption(error: Errno) -> bool {
    [Errno::EUCLEAN, Errno::EBADMSG, Errno::EINVAL].contains(&error)
}

/// Makes the mounted file system that `dir` is a directory of fill a disk of `bytes`. One that does already stays as it is.
///
/// # Errors
/// What the kernel said.
pub(super) fn grow(dir: &File, bytes: u64) -> io::Result<()> {
    let block = nix::sys::statvfs::fstatvfs(dir)?.fragment_size();
    Ok(sys::resize(dir, bytes / block.max(1))?)
}

/// `EXT4_IOC_RESIZE_FS` of `include/uapi/linux/ext4.h`.
#[expect(unsafe_code, reason = "a mounted ext4 is grown by an ioctl alone")]
mod sys {
    use std::fs::File;
    use std::os::fd::AsRawFd as _;

    nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);

    pub(super) fn resize(dir: &File, blocks: u64) -> nix::Result<()> {
        // SAFETY: the descriptor is open for the call, and the kernel reads one `u64`.
        unsafe { ext4_resize(dir.as_raw_fd(), &blocks) }.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_system_that_was_unmounted_well_is_not_checked() {
        let mut block = [0; SUPERBLOCK_BYTES];
        assert!(!is_sound(&block), "there is none");
        block[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        assert!(!is_sound(&block), "not unmounted");
        block[0x3a] = 1;
        block[0x60] = 0x42;
        assert!(is_sound(&block));
        block[0x60] |= 4;
        assert!(!is_sound(&block), "its journal is to be replayed");
        block[0x60] = 0x42;
        block[0x3a] = 3;
        assert!(!is_sound(&block), "errors were found");
    }

    #[test]
    fn a_disk_that_does_not_answer_is_no_damage() {
        assert!(is_corruption(Errno::EUCLEAN) && is_corruption(Errno::EINVAL));
        assert!(!is_corruption(Errno::EIO) && !is_corruption(Errno::ENOMEM));
    }
}
