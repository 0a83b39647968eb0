//! Mounting, unmounting, and what is mounted where.
//!
//! Must not know: volumes.

use nix::mount::{MntFlags, MsFlags};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Mounts an ext4 device. Freed blocks are given back (`discard`); devices on it do nothing. Setuid files keep
/// their meaning, since images have them, so that `target` must lie where only root can enter.
pub(crate) fn mount_ext4(device: &Path, target: &Path) -> io::Result<()> {
    nix::mount::mount(
        Some(device),
        target,
        Some("ext4"),
        MsFlags::MS_NODEV | MsFlags::MS_NOATIME,
        Some("discard,errors=remount-ro"),
    )
    .map_err(io::Error::from)
}

/// Unmounts `target`, never lazily: success means that nothing in this namespace uses this mount any more.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW).map_err(io::Error::from)
}

/// Whether something is mounted at `target` (a canonical path) in this namespace.
pub(crate) fn is_mount_point(target: &Path) -> io::Result<bool> {
    Ok(mount_points(&std::fs::read("/proc/self/mountinfo")?).any(|point| point == target))
}

/// The mount points of a `mountinfo` text (fifth field, see proc_pid_mountinfo(5)).
fn mount_points(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    mountinfo
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsString::from_vec(unescape(field))))
}

/// Undoes the octal escapes (`\040` for a space) of the mount tables.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| {
                let text = std::str::from_utf8(digits).ok()?;
                u8::from_str_radix(text, 8).ok()
            });
        if let Some(byte) = code {
            out.push(byte);
            rest = &tail[3..];
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mount_points_with_escapes() {
        let table = b"22 1 0:21 / /proc rw - proc proc rw\n\
                      31 1 7:0 / /var/lib/a\\040b\\134c rw,nodev shared:1 - ext4 /dev/loop0 rw\n";
        let points: Vec<_> = mount_points(table).collect();
        assert_eq!(
            points,
            [PathBuf::from("/proc"), PathBuf::from("/var/lib/a b\\c")]
        );
    }

    #[test]
    fn odd_escapes_stay_as_they_are() {
        for text in ["\\", "\\0", "\\99", "a\\9", "\\777"] {
            assert_eq!(unescape(text.as_bytes()), text.as_bytes(), "{text}");
        }
    }
}
