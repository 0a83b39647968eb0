//! The ext4 file systems on volumes: made, checked, grown; and how large one says it is.
//!
//! Must not know: where devices come from, who uses them.

use crate::error::VolumeError;
use crate::limits::{FSCK_DURATION_MAX, MKFS_DURATION_MAX, RESIZE_DURATION_MAX};
use crate::tool;
use nix::errno::Errno;
use slipway_core::id::VolumeId;
use slipway_core::units::ByteSize;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Makes an empty file system on `device`, which may read as zeros where nothing was written, or not.
pub(crate) fn make(device: &Path, size: ByteSize, zeroed: bool) -> Result<(), VolumeError> {
    // A journal larger than this gains nothing here, and all of it is taken from the pool sooner or later.
    let journal: &[&str] = if size >= ByteSize::gib(1) {
        &["-J", "size=64"]
    } else {
        &[]
    };
    let mut args: Vec<&OsStr> = [
        "-q",
        "-F", // The blocks that the loop device promises, whatever the size.
        "-b",
        "4096", // Image layers are many small files: one inode for 8 KiB.
        "-i",
        "8192", // Nothing is kept back for root: the machine's own root is a mapped user.
        "-m",
        "0", // There is nothing to discard.
        "-E",
        if zeroed {
            // No inode table has to be written, now or later in the background.
            "nodiscard,assume_storage_prezeroed=1"
        } else {
            "nodiscard,lazy_itable_init=1"
        },
        "-e",
        "remount-ro",
    ]
    .map(OsStr::new)
    .to_vec();
    args.extend(journal.iter().map(OsStr::new));
    args.push(device.as_os_str());
    tool::run("mkfs.ext4", &args, MKFS_DURATION_MAX)?.success("mkfs.ext4")
}

/// Checks and repairs a file system that nothing uses: what is safe at first, everything if that does not do.
pub(crate) fn check(id: &VolumeId, device: &Path) -> Result<(), VolumeError> {
    if is_sound(run_check(device, &["-p"])?.code) {
        return Ok(());
    }
    tracing::warn!(volume = %id, "repairing the file system, files may be lost");
    let ended = run_check(device, &["-f", "-y"])?;
    if is_sound(ended.code) {
        Ok(())
    } else {
        Err(VolumeError::Damaged {
            volume: id.clone(),
            detail: ended.output,
        })
    }
}

fn run_check(device: &Path, mode: &[&str]) -> Result<tool::Ended, VolumeError> {
    tool::run_confined("e2fsck", mode, device, FSCK_DURATION_MAX)
}

/// Growth of less than this is left for later: less than a block group may be of no use to the file system.
pub(crate) const GROWTH_MIN: u64 = 8 << 20;

/// Exit codes of e2fsck(8) are bits: 1 is "errors corrected", 2 "and the system should be rebooted", which means
/// nothing for a file system that is not mounted.
fn is_sound(code: Option<i32>) -> bool {
    code.is_some_and(|code| code & !3 == 0)
}

/// `EXT4_IOC_RESIZE_FS` of `include/uapi/linux/ext4.h`.
#[expect(unsafe_code, reason = "a mounted ext4 is grown by an ioctl alone")]
mod sys {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);

    pub(super) fn resize(dir: &File, blocks: u64) -> nix::Result<()> {
        // SAFETY: the descriptor is open for the call, and the kernel reads one `u64`.
        unsafe { ext4_resize(dir.as_raw_fd(), &blocks) }.map(drop)
    }
}

/// Makes the mounted file system that `dir` is a directory of as large as `bytes`, which its device has. Growing what has grown
/// already is fine.
pub(crate) fn grow_mounted(dir: &File, bytes: u64) -> io::Result<()> {
    let block = nix::sys::statvfs::fstatvfs(dir)?.fragment_size();
    Ok(sys::resize(dir, bytes / block.max(1))?)
}

/// Whether this process may grow a mounted file system: ext4 wants CAP_SYS_RESOURCE, which root in a container may lack.
pub(crate) fn may_grow_mounted() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .is_some_and(|set| set >> CAP_SYS_RESOURCE & 1 == 1)
}

/// Makes a file system that is not mounted as large as its device; resize2fs wants it checked.
pub(crate) fn grow_unmounted(device: &Path) -> Result<(), VolumeError> {
    let ended = run_check(device, &["-f", "-p"])?;
    if !is_sound(ended.code) {
        return Err(VolumeError::Tool {
            program: "e2fsck",
            detail: ended.output,
        });
    }
    tool::run_confined("resize2fs", &[], device, RESIZE_DURATION_MAX)?.success("resize2fs")
}

/// Bytes that the file system on `device` says it has; absent if there is none.
pub(crate) fn size(device: &Path) -> io::Result<Option<u64>> {
    Ok(superblock(device)?.and_then(|block| size_in(&block)))
}

/// Whether the file system says that errors were found in it, as when writes to it failed.
pub(crate) fn has_errors(device: &Path) -> io::Result<bool> {
    const ERRORS_DETECTED: u8 = 2;
    Ok(superblock(device)?.is_some_and(|block| block[0x3a] & ERRORS_DETECTED != 0))
}

/// Fields of `struct ext4_super_block` (Linux, Documentation/filesystems/ext4/super.rst).
fn superblock(device: &Path) -> io::Result<Option<[u8; 1024]>> {
    let mut block = [0; 1024];
    match File::open(device)?.read_exact_at(&mut block, 1024) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        read => read.map(|()| Some(block)),
    }
}

fn size_in(block: &[u8; 1024]) -> Option<u64> {
    let u32_at = |at: usize| {
        block[at..at + 4]
            .try_into()
            .map_or(0, |bytes| u64::from(u32::from_le_bytes(bytes)))
    };
    let magic = u32_at(0x38) & 0xffff;
    let block_bytes = 1024_u64.checked_shl(u32::try_from(u32_at(0x18)).ok()?)?;
    const INCOMPAT_64BIT: u64 = 0x80;
    let high = if u32_at(0x60) & INCOMPAT_64BIT == 0 {
        0
    } else {
        u32_at(0x150)
    };
    (magic == 0xef53)
        .then(|| (u32_at(0x4) | high << 32).checked_mul(block_bytes))
        .flatten()
}

/// Whether an error of mount(2) says that the file system is not one, or not whole: `EUCLEAN` and `EFSBADCRC` (which is
/// `EBADMSG`) come from ext4's own checks, `EINVAL` from a superblock that is none.
pub(crate) fn is_corruption(error: &io::Error) -> bool {
    [Errno::EUCLEAN, Errno::EBADMSG, Errno::EINVAL, Errno::EIO]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

#[cfg(test)]
mod tests {
    use super::{is_sound, size_in};

    #[test]
    fn exit_codes_of_the_checker() {
        for (code, sound) in [
            (Some(0), true),
            (Some(1), true),
            (Some(2), true),
            (Some(3), true),
            (Some(4), false),
            (Some(8), false),
            (Some(5), false),
            (Some(12), false),
            (None, false),
        ] {
            assert_eq!(is_sound(code), sound, "{code:?}");
        }
    }

    #[test]
    fn sizes_of_superblocks() {
        let mut block = [0; 1024];
        assert_eq!(size_in(&block), None);
        block[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        block[0x4..0x8].copy_from_slice(&7_u32.to_le_bytes());
        block[0x18] = 2;
        block[0x150] = 1;
        assert_eq!(size_in(&block), Some(7 * 4096));
        block[0x60] = 0x80;
        assert_eq!(size_in(&block), Some(((1 << 32) + 7) * 4096));
        block[0x18] = 255;
        assert_eq!(size_in(&block), None);
    }
}
