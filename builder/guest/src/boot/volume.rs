//! The cache volume of a virtual machine: a disk with an ext4 on it.

use super::ext4::{self, Damaged};
use crate::engine::DATA_ROOT;
use crate::limits;
use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use slipway_core::vm::VOLUME_SERIAL;
use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the disk may take to appear, and the volume to be free of users at the end.
const WAIT_MAX: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The mounted volume, whose file system follows its disk.
#[derive(Debug)]
pub(crate) struct OwnVolume {
    disk: File,
    /// Bytes of the disk that the file system was last made to fill.
    filled: u64,
}

impl OwnVolume {
    /// Checks it after an unclean end, and mounts it where dockerd keeps everything. Freed blocks go back to the pool.
    ///
    /// # Errors
    /// [`Damaged`] if the file system cannot be repaired or mounted.
    pub(super) fn mount() -> Result<Self> {
        let disk = disk()?;
        ext4::check(&disk)?;
        fs::create_dir_all(DATA_ROOT).with_context(|| format!("make {DATA_ROOT}"))?;
        let mounted = mount(
            Some(&disk),
            DATA_ROOT,
            Some("ext4"),
            MsFlags::MS_NODEV | MsFlags::MS_NOATIME,
            Some("discard"),
        );
        let failed = || format!("mount {}", disk.display());
        match mounted {
            Err(error) if ext4::is_corruption(error) => {
                return Err(Damaged(format!("not mounted: {error}")).into());
            }
            other => other.with_context(failed)?,
        }
        let disk = File::open(&disk).with_context(failed)?;
        let mut volume = Self { disk, filled: 0 };
        volume.follow();
        Ok(volume)
    }

    /// Has the file system fill the disk whenever that has become larger, for as long as it is polled.
    pub(crate) async fn keep_filled(mut self) {
        loop {
            tokio::time::sleep(limits::WATCH_PERIOD).await;
            if self.disk_bytes().is_ok_and(|bytes| bytes <= self.filled) {
                continue;
            }
            // It writes to the disk, and waits while the file system is frozen.
            let followed = tokio::task::spawn_blocking(move || {
                self.follow();
                self
            });
            let Ok(volume) = followed.await else {
                return;
            };
            self = volume;
        }
    }

    fn disk_bytes(&self) -> io::Result<u64> {
        (&self.disk).seek(SeekFrom::End(0))
    }

    /// What does not work now would not work in a second either: it is tried again when the disk has grown more, or at the next
    /// boot.
    fn follow(&mut self) {
        match self.fill() {
            Ok(true) => tracing::info!(bytes = self.filled, "the cache volume has grown"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the cache volume's file system does not grow"),
        }
    }

    /// Whether the file system has grown.
    fn fill(&mut self) -> io::Result<bool> {
        self.filled = self.disk_bytes()?;
        let root = File::open(DATA_ROOT)?;
        let blocks = || io::Result::Ok(nix::sys::statvfs::fstatvfs(&root)?.blocks());
        let before = blocks()?;
        ext4::grow(&root, self.filled)?;
        Ok(blocks()? > before)
    }
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
