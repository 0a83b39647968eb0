//! Mounts of one machine below a directory of its own: made, and all taken away again.
//!
//! Must not know: what is mounted for what.

use crate::driver::DriverError;
use crate::limits::UNMOUNT_WAIT_MAX;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
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

/// Keeps what is mounted at `dir` later out of every other mount namespace: one that had a copy would keep a volume busy.
pub(crate) fn keep_private(dir: &Path) -> Result<(), DriverError> {
    let none: Option<&str> = None;
    if !is_listed(dir) {
        mount(Some(dir), dir, none, MsFlags::MS_BIND, none)
            .map_err(DriverError::at("bind", dir))?;
    }
    mount(none, dir, none, MsFlags::MS_PRIVATE, none).map_err(DriverError::at("make private", dir))
}

/// Unmounts everything at or below `dir`, the latest first, for later mounts lie on earlier ones.
pub(crate) fn unmount_below(dir: &Path) -> Result<(), DriverError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(table).map_err(DriverError::at("read", table))?;
    mounts_below(&text, dir)
        .into_iter()
        .rev()
        .try_for_each(|target| unmount(&target))
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

/// Mount points at or below `dir`, in the order they were made (proc_pid_mountinfo(5), field 5; blanks are octal).
pub(crate) fn mounts_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    let targets = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let targets = targets.map(|text| PathBuf::from(text.replace("\\040", " ")));
    targets.filter(|target| target.starts_with(dir)).collect()
}

fn is_listed(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| {
        line.split(' ')
            .nth(4)
            .is_some_and(|target| Path::new(target) == dir)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mounts_of_one_machine_only() {
        let text = "36 35 98:0 / /run/s/m/a/root rw - overlay x rw\n37 36 8:1 / /run/s/m/a/root/var\\040x rw - ext4 y rw\n38 35 0:1 / /run/s/m/ab rw - tmpfs z rw\n";
        let found = mounts_below(text, Path::new("/run/s/m/a"));
        assert_eq!(
            found,
            [
                PathBuf::from("/run/s/m/a/root"),
                PathBuf::from("/run/s/m/a/root/var x")
            ]
        );
    }
}
