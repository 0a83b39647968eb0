//! Copies of images: by sharing their blocks where the pool's file system can, else of what is stored in them, holes left
//! out.
//!
//! Interface: `FICLONE` of `include/uapi/linux/fs.h`; copy_file_range(2).
//!
//! Must not know: volumes.

use super::Images;
use crate::backing::MayGoOn;
use crate::error::VolumeError;
use crate::limits::COPY_STRETCH_BYTES;
use crate::pool::too_slow;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag};
use nix::unistd::Whence;
use slipway_core::host_api::Cloning;
use slipway_core::id::VolumeId;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

#[expect(unsafe_code, reason = "sharing blocks is an ioctl alone")]
mod sys {
    use nix::libc::c_int;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    nix::ioctl_write_int!(ficlone, 0x94, 9);

    pub(super) fn clone(from: &File, to: &File) -> nix::Result<c_int> {
        let from = u64::from(from.as_raw_fd().cast_unsigned());
        // SAFETY: both descriptors are open for the call; the request takes no pointer.
        unsafe { ficlone(to.as_raw_fd(), from) }
    }
}

impl Images {
    /// Gives `to`, which is empty, the contents and the length of `from`.
    pub(super) fn copy(
        &self,
        id: &VolumeId,
        from: &Path,
        (to_path, to): (&Path, &File),
        may_go_on: MayGoOn<'_>,
    ) -> Result<(), VolumeError> {
        let from_file = File::open(from).map_err(VolumeError::io("open", from))?;
        if self.cloning == Cloning::Reflink {
            sys::clone(&from_file, to).map_err(VolumeError::io("share the blocks of", from))?;
            return Ok(());
        }
        // What a device has written through the page cache is in the file for every reader.
        let copied = copy_data(&from_file, to, may_go_on);
        if copied.map_err(VolumeError::io("copy to", to_path))? {
            to.sync_all().map_err(VolumeError::io("sync", to_path))
        } else {
            Err(too_slow(id))
        }
    }
}

/// Copies what is data. Gives whether it came to the end.
fn copy_data(from: &File, to: &File, may_go_on: MayGoOn<'_>) -> io::Result<bool> {
    let length = from.metadata()?.len();
    let signed = |at: u64| i64::try_from(at).map_err(io::Error::other);
    let unsigned = |at: i64| u64::try_from(at).map_err(io::Error::other);
    to.set_len(length)?;
    let mut at = 0;
    while at < length {
        let start = match nix::unistd::lseek(from, signed(at)?, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        };
        let end = unsigned(nix::unistd::lseek(from, start, Whence::SeekHole)?)?;
        at = unsigned(start)?;
        while at < end {
            if !may_go_on() {
                return Ok(false);
            }
            let stretch = usize::try_from((end - at).min(COPY_STRETCH_BYTES)).unwrap_or(usize::MAX);
            let (mut read_at, mut write_at) = (signed(at)?, signed(at)?);
            let copied = nix::fcntl::copy_file_range(
                from,
                Some(&mut read_at),
                to,
                Some(&mut write_at),
                stretch,
            )?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at += copied as u64;
        }
    }
    Ok(true)
}

/// A file without a name: nothing to clean up. Nothing where the file system has no such files.
fn probe(dir: &Path) -> Result<Option<File>, VolumeError> {
    match OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlag::O_TMPFILE.bits())
        .open(dir)
    {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Ok(None),
        Err(error) => Err(VolumeError::io("probe", dir)(error)),
    }
}

/// On a full disk nothing can be tried out. The volumes that are there must still be served, so it is no error.
fn is_full(error: &VolumeError) -> bool {
    matches!(error, VolumeError::Io { source, .. } if crate::error::is_full(source))
}

/// Whether the pool's file system can take blocks out of the middle of a file, as a discard asks. On a full disk: yes, for
/// freed blocks are what it needs, and where it cannot, a discard fails by itself.
pub(super) fn can_punch_holes(dir: &Path) -> Result<bool, VolumeError> {
    let probe = match probe(dir) {
        Ok(Some(probe)) => probe,
        Ok(None) => return Ok(false),
        Err(error) if is_full(&error) => return Ok(true),
        Err(error) => return Err(error),
    };
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match nix::fcntl::fallocate(&probe, flags, 0, 4096) {
        Ok(()) => Ok(true),
        Err(Errno::EOPNOTSUPP) => Ok(false),
        Err(Errno::ENOSPC | Errno::EDQUOT) => Ok(true),
        Err(errno) => Err(VolumeError::io("probe", dir)(errno)),
    }
}

/// Whether files there can share blocks. On a full disk: no, until the pool is opened again.
pub(super) fn can_share_blocks(dir: &Path) -> Result<bool, VolumeError> {
    let tried = try_sharing(dir);
    match tried {
        Err(error) if is_full(&error) => {
            tracing::warn!(dir = %dir.display(), "the disk is full; copies are not made by sharing blocks before the next start");
            Ok(false)
        }
        tried => tried,
    }
}

fn try_sharing(dir: &Path) -> Result<bool, VolumeError> {
    let (Some(from), Some(to)) = (probe(dir)?, probe(dir)?) else {
        return Ok(false);
    };
    let written = io::Write::write_all(&mut &from, &[1; 4096]);
    written.map_err(VolumeError::io("probe", dir))?;
    Ok(sys::clone(&from, &to).is_ok())
}
