//! Gives the free blocks of a mounted file system back to what is below it (`FITRIM`).
//!
//! Interface: `include/uapi/linux/fs.h` of Linux.
//!
//! Must not know: volumes, loop devices.

use std::fs::File;
use std::io;

/// `struct fstrim_range`, in bytes.
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
    min_len: u64,
}

#[expect(unsafe_code, reason = "trimming is an ioctl alone")]
mod sys {
    use super::Range;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    nix::ioctl_readwrite!(fitrim, b'X', 121, Range);

    pub(super) fn trim(dir: &File, range: &mut Range) -> nix::Result<()> {
        // SAFETY: the descriptor is open for the call, and `range` is a live `struct fstrim_range`, which is all the
        // kernel reads and writes.
        unsafe { fitrim(dir.as_raw_fd(), range) }.map(drop)
    }
}

/// Trims all of the file system that `dir` is a directory of. What was deleted before the call is given back, too.
pub(crate) fn trim(dir: &File) -> io::Result<()> {
    // Deleted blocks are free only when the deletion is committed.
    nix::unistd::syncfs(dir)?;
    sys::trim(
        dir,
        &mut Range {
            start: 0,
            len: u64::MAX,
            min_len: 0,
        },
    )?;
    Ok(())
}
