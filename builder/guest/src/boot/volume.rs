//! The cache volume of a virtual machine: a disk with an ext4 on it.

use crate::engine::DATA_ROOT;
use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use slipway_core::vm::VOLUME_SERIAL;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the disk may take to appear, and the volume to be free of users at the end.
const WAIT_MAX: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Mounts it where dockerd keeps everything. Freed blocks go back to the pool.
pub(super) fn mount_volume() -> Result<()> {
    let disk = disk()?;
    fs::create_dir_all(DATA_ROOT).with_context(|| format!("make {DATA_ROOT}"))?;
    mount(
        Some(&disk),
        DATA_ROOT,
        Some("ext4"),
        MsFlags::MS_NODEV | MsFlags::MS_NOATIME,
        Some("discard"),
    )
    .with_context(|| format!("mount {}", disk.display()))
}

/// Unmounts it with everything below. Waits a moment for processes that were just killed.
pub(super) fn unmount_volume() -> Result<()> {
    let deadline = Instant::now() + WAIT_MAX;
    for target in mounts_below()?.into_iter().rev() {
        loop {
            match umount2(&target, MntFlags::UMOUNT_NOFOLLOW) {
                Err(Errno::EBUSY) if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(error) => {
                    return Err(error).with_context(|| format!("unmount {}", target.display()));
                }
            }
        }
    }
    Ok(())
}

/// Mount points at or below the volume's, in the order they were made.
fn mounts_below() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("list mounts")?;
    let targets = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(targets
        .map(|text| PathBuf::from(text.replace("\\040", " ")))
        .filter(|target| target.starts_with(DATA_ROOT))
        .collect())
}

fn disk() -> Result<PathBuf> {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        for entry in fs::read_dir("/sys/block").context("list disks")? {
            let entry = entry?;
            let serial = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
            if serial.trim() == VOLUME_SERIAL {
                return Ok(PathBuf::from("/dev").join(entry.file_name()));
            }
        }
        if Instant::now() >= deadline {
            bail!("no disk holds the cache volume");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
