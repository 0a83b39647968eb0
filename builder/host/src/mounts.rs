//! Mounts of one machine below a directory of its own: made, and all taken away again.
//!
//! A program that makes a mount namespace copies every mount of the one it comes from, and keeps the copies until it ends. So
//! what a machine's root is made of is mounted in a namespace that lives only while the machine is made
//! ([`in_own_namespace`]): the runtime makes the machine's own from it, and then nothing else has the mounts.
//!
//! Must not know: what is mounted for what.

use crate::driver::DriverError;
use crate::limits::UNMOUNT_WAIT_MAX;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Mounts an empty tmpfs.
pub(crate) fn tmpfs(target: &Path, options: &str) -> Result<(), DriverError> {
    mount(
        Some("slipway"),
        target,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options),
    )
    .map_err(DriverError::at("mount a tmpfs at", target))
}

/// Does `work` on a thread of its own, in a copy of this mount namespace: what it mounts goes when it returns, but for what
/// processes that it started have, and is never seen by any other namespace.
pub(crate) fn in_own_namespace<T: Send>(
    work: impl FnOnce() -> Result<T, DriverError> + Send,
) -> Result<T, DriverError> {
    let own = Path::new("/proc/thread-self/ns/mnt");
    let work = || {
        unshare(CloneFlags::CLONE_NEWNS).map_err(DriverError::at("make", own))?;
        // What the host unmounts meanwhile goes here too; nothing goes the other way.
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
            .map_err(DriverError::at("leave the peers of", own))?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("machine-root".to_owned());
        let thread = thread
            .spawn_scoped(scope, work)
            .map_err(DriverError::at("start a thread for", own))?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Unmounts everything at or below `dir`, the latest first, for later mounts lie on earlier ones.
pub(crate) fn unmount_below(dir: &Path) -> Result<(), DriverError> {
    unmount_each(dir, |_| true)
}

/// Unmounts everything below `dir`, and leaves `dir` itself mounted if it is a mount point.
pub(crate) fn unmount_inside(dir: &Path) -> Result<(), DriverError> {
    unmount_each(dir, |target| target != dir)
}

fn unmount_each(dir: &Path, wanted: impl Fn(&Path) -> bool) -> Result<(), DriverError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read(table).map_err(DriverError::at("read", table))?;
    let mut targets = mounts_below(&text, dir).into_iter().rev();
    targets.try_for_each(|target| {
        if wanted(&target) {
            unmount(&target)
        } else {
            Ok(())
        }
    })
}

fn unmount(target: &Path) -> Result<(), DriverError> {
    let deadline = Instant::now() + UNMOUNT_WAIT_MAX;
    loop {
        match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) if Instant::now() < deadline => {
                // The last process of the machine is gone but the kernel is still taking its namespaces down.
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(Errno::EBUSY) => {
                tracing::warn!(target = %target.display(), "still busy, detaching it lazily");
                return umount2(target, MntFlags::MNT_DETACH)
                    .map_err(DriverError::at("detach", target));
            }
            Err(errno) => return Err(DriverError::at("unmount", target)(errno)),
        }
    }
}

/// Mount points at or below `dir`, in the order they were made (proc_pid_mountinfo(5), field 5).
pub(crate) fn mounts_below(mountinfo: &[u8], dir: &Path) -> Vec<PathBuf> {
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .filter(|target| target.starts_with(dir))
        .collect()
}

/// Undoes the octal escapes of the mount tables: `\040` is a blank.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| first == b'\\');
        let code = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mounts_of_one_machine_only() {
        let text = b"36 35 98:0 / /run/s/m/a/root rw - overlay x rw\n37 36 8:1 / /run/s/m/a/root/var\\040x rw - ext4 y rw\n38 35 0:1 / /run/s/m/ab rw - tmpfs z rw\n";
        let found = mounts_below(text, Path::new("/run/s/m/a"));
        assert_eq!(
            found,
            [
                PathBuf::from("/run/s/m/a/root"),
                PathBuf::from("/run/s/m/a/root/var x")
            ]
        );
    }

    #[test]
    fn odd_escapes_stay_as_they_are() {
        for text in ["\\", "\\0", "\\99", "a\\9", "\\777"] {
            assert_eq!(unescape(text.as_bytes()), text.as_bytes(), "{text}");
        }
        assert_eq!(unescape(b"a\\040b\\134c"), b"a b\\c");
    }
}
