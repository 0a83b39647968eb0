//! The ext4 file systems on volumes: made, checked, grown; and how large one says it is.
//!
//! Must not know: where devices come from, who uses them.

use crate::error::VolumeError;
use crate::limits::{FSCK_DURATION_MAX, MKFS_DURATION_MAX, RESIZE_DURATION_MAX};
use crate::tool;
use nix::errno::Errno;
use slipway_core::fsck::{Checked, thorough};
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
///
/// # Errors
/// [`VolumeError::Damaged`] only for what the checker found and could not correct; [`VolumeError::Tool`] if it did not do its work.
pub(crate) fn check(id: &VolumeId, device: &Path) -> Result<(), VolumeError> {
    check_by(id, |mode| run_check(device, mode))
}

/// The same, with whatever runs `e2fsck` with these options.
fn check_by(
    id: &VolumeId,
    mut run: impl FnMut(&[&str]) -> Result<tool::Ended, VolumeError>,
) -> Result<(), VolumeError> {
    let ended = run(&["-p"])?;
    match ended.checked() {
        Checked::Sound => return Ok(()),
        // Killed in the middle: what a gentle check would have found is not known yet.
        Checked::Failed if ended.code.is_none() => return Err(ended.failed("e2fsck")),
        Checked::Damaged | Checked::Unfinished | Checked::Failed => {}
    }
    tracing::warn!(volume = %id, "repairing the file system, files may be lost");
    let (repaired, ended) = thorough(|| {
        let ended = run(&["-f", "-y"])?;
        Ok::<_, VolumeError>((ended.checked(), ended))
    })?;
    match repaired {
        Checked::Sound => Ok(()),
        Checked::Damaged | Checked::Unfinished => Err(VolumeError::Damaged {
            volume: id.clone(),
            detail: ended.output,
        }),
        Checked::Failed => Err(ended.failed("e2fsck")),
    }
}

fn run_check(device: &Path, mode: &[&str]) -> Result<tool::Ended, VolumeError> {
    tool::run_confined("e2fsck", mode, device, FSCK_DURATION_MAX)
}

/// Growth of less than this is left for later: less than a block group may be of no use to the file system.
pub(crate) const GROWTH_MIN: u64 = 8 << 20;

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
    if ended.checked() != Checked::Sound {
        return Err(ended.failed("e2fsck"));
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
/// `EBADMSG`) come from ext4's own checks, `EINVAL` from a superblock that is none. `EIO` is not among them: the disk below did not
/// answer, which says nothing of what is on it.
pub(crate) fn is_corruption(error: &io::Error) -> bool {
    [Errno::EUCLEAN, Errno::EBADMSG, Errno::EINVAL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

#[cfg(test)]
mod tests {
    use super::{check_by, is_corruption, size_in, superblock};
    use crate::error::VolumeError;
    use crate::tool;
    use nix::errno::Errno;
    use slipway_core::id::VolumeId;
    use std::ffi::OsStr;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;

    /// Real checks of the image at `image`, by a shell that first sets a limit.
    fn checked_with(limit: &str, image: &Path) -> Result<(), VolumeError> {
        let id = VolumeId::from_entropy([1; 10]);
        check_by(&id, |mode| {
            let script = format!(
                "{limit}; exec e2fsck {} {}",
                mode.join(" "),
                image.display()
            );
            let args = ["-c", &script].map(OsStr::new);
            tool::run("sh", &args, Duration::from_secs(300))
        })
    }

    /// An image with a root directory that is lost, which only the thorough check makes anew.
    fn broken_image(dir: &Path, bytes: u64) -> std::path::PathBuf {
        let image = dir.join("image");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(bytes).unwrap();
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).arg(&image).output();
            assert!(output.unwrap().status.success(), "{program}");
        };
        let lazy = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";
        run("mkfs.ext4", &["-q", "-F", "-E", lazy]);
        run("debugfs", &["-w", "-R", "clri <2>"]);
        // Else it is taken for clean, unread.
        run("debugfs", &["-w", "-R", "set_super_value state 2"]);
        image
    }

    /// It says nothing of the file system, so no cache may be replaced for it.
    #[test]
    fn a_checker_that_is_killed_or_short_of_memory_is_no_damage_and_the_next_check_repairs() {
        let dir = tempfile::tempdir().unwrap();
        // Sparse: some MiB on disk, and bitmaps that do not fit into the memory below.
        let image = broken_image(dir.path(), 64 << 30);
        for limit in [
            "ulimit -v 20000", // e2fsck ends with 8.
            "ulimit -f 0",     // SIGXFSZ with its first write.
        ] {
            match checked_with(limit, &image) {
                Err(VolumeError::Tool { program, .. }) => assert_eq!(program, "e2fsck", "{limit}"),
                other => panic!("{limit}: {other:?}"),
            }
        }
        checked_with("true", &image).unwrap();
        // What is damage stays damage: no superblock is left.
        std::fs::write(&image, vec![0; 64 << 20]).unwrap();
        let wiped = checked_with("true", &image);
        assert!(
            matches!(wiped, Err(VolumeError::Damaged { .. })),
            "{wiped:?}"
        );
    }

    /// Gives a superblock a right checksum.
    fn seal(block: &mut [u8; 1024]) {
        let sum = crc32c(&block[..0x3fc]);
        block[0x3fc..].copy_from_slice(&sum.to_le_bytes());
    }

    /// CRC32C as ext4 has it: not inverted in the end.
    fn crc32c(bytes: &[u8]) -> u32 {
        bytes.iter().fold(!0, |sum, byte| {
            (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
                (sum >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(sum & 1))
            })
        })
    }

    /// An image as after an unclean end: its journal holds a block, and the superblock's backup says that it needs recovery,
    /// as the kernel leaves it after an online growth.
    fn unclean_image(dir: &Path) -> std::path::PathBuf {
        let image = dir.join("image");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(300 << 20).unwrap();
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).arg(&image).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{program}: {output:?}");
        };
        run("mkfs.ext4", &["-q", "-F", "-b", "4096"]);
        // A block that holds nothing else, so that what is replayed is seen.
        let text = dir.join("block");
        std::fs::write(&text, [b'x'; 4096]).unwrap();
        let script = dir.join("script");
        let lines = format!("jo\njw -b 70000 {}\njc\n", text.display());
        std::fs::write(&script, lines).unwrap();
        run("debugfs", &["-w", "-f", script.to_str().unwrap()]);
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&image)
            .unwrap();
        let mut block = superblock(&image).unwrap().unwrap();
        assert_ne!(block[0x60] & 4, 0, "its journal is to be replayed");
        for group in [1_u8, 0] {
            block[0x5a] = group;
            seal(&mut block);
            let at = if group == 0 { 1024 } else { 32768 * 4096 };
            file.write_all_at(&block, at).unwrap();
        }
        image
    }

    /// A superblock that was half written when the power went, after a growth while it was mounted.
    #[test]
    fn a_torn_superblock_with_data_in_the_journal_is_repaired_by_one_check() {
        let dir = tempfile::tempdir().unwrap();
        let image = unclean_image(dir.path());
        let file = std::fs::File::options().write(true).open(&image).unwrap();
        file.write_all_at(&[0xff; 512], 1024 + 512).unwrap();
        let mut runs = vec![];
        let id = VolumeId::from_entropy([1; 10]);
        check_by(&id, |mode| {
            let args = [mode, &[image.to_str().unwrap()]].concat();
            let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
            let ended = tool::run("e2fsck", &args, Duration::from_secs(300));
            runs.extend(ended.as_ref().ok().and_then(|ended| ended.code));
            ended
        })
        .unwrap();
        assert_eq!(runs, [8, 12, 1], "the case is not made any more");
        let mut replayed = [0; 4096];
        let file = std::fs::File::open(&image).unwrap();
        file.read_exact_at(&mut replayed, 70000 * 4096).unwrap();
        assert_eq!(replayed, [b'x'; 4096]);
        checked_with("true", &image).unwrap();
    }

    /// e2fsck ends the same way however often it runs.
    #[test]
    fn a_journal_that_cannot_be_read_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let image = unclean_image(dir.path());
        let found = Command::new("debugfs")
            .args(["-R", "bmap <8> 0"])
            .arg(&image)
            .output()
            .unwrap();
        let found = String::from_utf8(found.stdout).unwrap();
        let journal: u64 = found.trim().parse().unwrap();
        let file = std::fs::File::options().write(true).open(&image).unwrap();
        // `s_feature_incompat` of the journal's superblock.
        file.write_all_at(&[0xff; 4], journal * 4096 + 0x28)
            .unwrap();
        let broken = checked_with("true", &image);
        assert!(
            matches!(broken, Err(VolumeError::Damaged { .. })),
            "{broken:?}"
        );
    }

    #[test]
    fn a_disk_that_does_not_answer_is_no_damage_of_the_file_system() {
        for (errno, damage) in [
            (Errno::EUCLEAN, true),
            (Errno::EBADMSG, true),
            (Errno::EINVAL, true),
            (Errno::EIO, false),
            (Errno::ENOMEM, false),
            (Errno::ENOSPC, false),
            (Errno::EBUSY, false),
        ] {
            assert_eq!(is_corruption(&errno.into()), damage, "{errno}");
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
