//! Creation, removal and the accounts: everything that changes what the pool has promised.
//!
//! Must not know: attachment, beyond that an image in use is not removed.

use super::steps::Step;
use super::{FileDriver, Image, Layout};
use crate::error::VolumeError;
use crate::limits::{
    CAPACITY_DEFAULT_PERCENT, MKFS_DURATION_MAX, VOLUME_SIZE_MAX, VOLUME_SIZE_MIN,
};
use crate::marker::{Marker, remove_if_there, sync_parent};
use crate::undo::Undo;
use crate::{loopdev, tool};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag};
use slipway_core::host_api::VolumeReport;
use slipway_core::id::VolumeId;
use slipway_core::units::ByteSize;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// `st_blocks` counts these, whatever the file system's own block is (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

impl FileDriver {
    /// Makes the volume if it is not there. Whether the pool can promise it is decided under the same lock as it is
    /// made, and it gets its name last: it is there whole or not at all.
    pub(super) fn create(
        &self,
        id: &VolumeId,
        size: ByteSize,
    ) -> Result<VolumeReport, VolumeError> {
        if size < VOLUME_SIZE_MIN || size > VOLUME_SIZE_MAX {
            let (min, max) = (VOLUME_SIZE_MIN, VOLUME_SIZE_MAX);
            return Err(VolumeError::InvalidSize { size, min, max });
        }
        let _pool = self.lock_pool()?;
        if let Some(report) = self.report_now(id)? {
            let have = ByteSize(report.size_bytes);
            return if have == size {
                Ok(report)
            } else {
                Err(VolumeError::SizeDiffers {
                    volume: id.clone(),
                    have,
                    want: size,
                })
            };
        }
        let (promised, _) = sums(&self.layout)?;
        if promised.0.saturating_add(size.0) > self.capacity.0 {
            return Err(VolumeError::NoSpace {
                want: size,
                promised,
                capacity: self.capacity,
            });
        }
        self.make_image(id, size)?;
        tracing::info!(volume = %id, size = size.0, "volume made");
        self.report_now(id)?
            .ok_or_else(|| VolumeError::NotFound { volume: id.clone() })
    }

    fn make_image(&self, id: &VolumeId, size: ByteSize) -> Result<(), VolumeError> {
        let (temporary, image) = (self.layout.image_in_making(id), self.layout.image(id));
        let mut undo = Undo::new();
        self.steps.enter(Step::CreateImage)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(VolumeError::io("create", &temporary))?;
        undo.push("remove the image", || remove_quietly(&temporary));
        file.set_len(size.0)
            .map_err(VolumeError::io("extend", &temporary))?;
        self.steps.enter(Step::MakeFileSystem)?;
        make_file_system(&temporary, size)?;
        self.steps.enter(Step::SyncImage)?;
        file.sync_all()
            .map_err(VolumeError::io("sync", &temporary))?;
        self.steps.enter(Step::PublishImage)?;
        std::fs::rename(&temporary, &image).map_err(VolumeError::io("rename", &temporary))?;
        undo.push("remove the published image", || remove_quietly(&image));
        self.steps.enter(Step::SyncNames)?;
        sync_parent(&image)?;
        undo.disarm();
        Ok(())
    }

    /// Removes the volume. The image goes first, since it is what makes the volume exist.
    pub(super) fn remove(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let _volume = self.lock_volume(id)?;
        let image = self.layout.image(id);
        match self.open_image(id)? {
            Image::InUse => {
                let holder = match Marker::read(&self.layout.marker(id))? {
                    Marker::HeldBy(holder) => Some(holder),
                    Marker::Absent | Marker::Unreadable => None,
                };
                return Err(VolumeError::InUse {
                    volume: id.clone(),
                    holder,
                });
            }
            Image::Free(_held) => {
                remove_if_there(&image)?;
                tracing::info!(volume = %id, "volume destroyed");
            }
            Image::Absent => {}
        }
        remove_if_there(&self.layout.marker(id))?;
        let mount_point = self.layout.mount_point(id);
        match std::fs::remove_dir(&mount_point) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(VolumeError::io("remove", &mount_point)(error));
            }
            Ok(()) | Err(_) => {}
        }
        // The lock's own file last: whoever waits for it sees that it is gone and makes a new one.
        remove_if_there(&self.layout.lock(id))?;
        sync_parent(&image)
    }

    /// Removes what a crash left: images in making, and markers and locks of volumes that are not there.
    pub(super) fn clear_leftovers(&self) -> Result<(), VolumeError> {
        let _pool = self.lock_pool()?;
        for name in self.layout.file_names()? {
            let path = self.layout.volumes_dir().join(&name);
            let Some((stem, suffix)) = name.split_once('.') else {
                continue;
            };
            let Ok(id) = stem.parse::<VolumeId>() else {
                continue;
            };
            match suffix {
                // Made under the pool's lock, which we have: nobody is making it now.
                "img.tmp" => {
                    tracing::warn!(volume = %id, "half made volume removed");
                    remove_if_there(&path)?;
                }
                "attached.tmp" | "attached" | "lock" if !self.layout.image(&id).exists() => {
                    let _volume = self.lock_volume(&id)?;
                    if !self.layout.image(&id).exists() {
                        remove_if_there(&self.layout.marker(&id))?;
                        remove_if_there(&path)?;
                        remove_if_there(&self.layout.lock(&id))?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn report_now(&self, id: &VolumeId) -> Result<Option<VolumeReport>, VolumeError> {
        let devices =
            loopdev::in_use().map_err(VolumeError::io("read", Path::new("/sys/block")))?;
        self.report(id, &devices)
    }

    /// The volume as it is, if it is there; `devices` are the loop devices in use.
    pub(super) fn report(
        &self,
        id: &VolumeId,
        devices: &[(PathBuf, PathBuf)],
    ) -> Result<Option<VolumeReport>, VolumeError> {
        let image = self.layout.image(id);
        let metadata = match std::fs::metadata(&image) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(VolumeError::io("read", &image)(error)),
        };
        let attached = devices.iter().any(|(backing, _)| *backing == image);
        let attached_to = match Marker::read(&self.layout.marker(id))? {
            Marker::HeldBy(holder) if attached => Some(holder),
            Marker::HeldBy(_) | Marker::Absent | Marker::Unreadable => None,
        };
        Ok(Some(VolumeReport {
            volume: id.clone(),
            size_bytes: metadata.len(),
            used_bytes: metadata.blocks() * STAT_BLOCK_BYTES,
            attached_to,
        }))
    }
}

/// Sums over all volumes: what is promised, and what is taken on disk.
pub(super) fn sums(layout: &Layout) -> Result<(ByteSize, ByteSize), VolumeError> {
    let (mut promised, mut used) = (0_u64, 0_u64);
    for id in layout.volumes()? {
        let image = layout.image(&id);
        match std::fs::metadata(&image) {
            Ok(metadata) => {
                promised = promised.saturating_add(metadata.len());
                used = used.saturating_add(metadata.blocks() * STAT_BLOCK_BYTES);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(VolumeError::io("read", &image)(error)),
        }
    }
    Ok((ByteSize(promised), ByteSize(used)))
}

/// What may be promised when nobody said: a share of what is free and what the volumes already take.
pub(super) fn default_capacity(layout: &Layout) -> Result<ByteSize, VolumeError> {
    let statistics = nix::sys::statvfs::statvfs(&layout.root)
        .map_err(VolumeError::io("read the free space of", &layout.root))?;
    let free = statistics.blocks_available() * statistics.fragment_size();
    let (_, used) = sums(layout)?;
    Ok(ByteSize(
        free.saturating_add(used.0) / 100 * CAPACITY_DEFAULT_PERCENT,
    ))
}

/// Whether the pool's file system can take blocks out of the middle of a file, as a discard asks.
pub(super) fn can_punch_holes(layout: &Layout) -> Result<bool, VolumeError> {
    let dir = layout.volumes_dir();
    // A file without a name: nothing to clean up.
    let probe = match OpenOptions::new()
        .write(true)
        .mode(0o600)
        .custom_flags(OFlag::O_TMPFILE.bits())
        .open(&dir)
    {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => return Ok(false),
        Err(error) => return Err(VolumeError::io("probe", &dir)(error)),
    };
    punch(&probe).map_err(VolumeError::io("probe", &dir))
}

fn punch(file: &File) -> Result<bool, Errno> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match nix::fcntl::fallocate(file, flags, 0, 4096) {
        Ok(()) => Ok(true),
        Err(Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn make_file_system(image: &Path, size: ByteSize) -> Result<(), VolumeError> {
    // A journal larger than this gains nothing here, and all of it is taken from the pool sooner or later.
    let journal: &[&str] = if size >= ByteSize::gib(1) {
        &["-J", "size=64"]
    } else {
        &[]
    };
    let mut args: Vec<&std::ffi::OsStr> = [
        "-q",
        "-F", // The blocks that the loop device promises, whatever the size.
        "-b",
        "4096", // Image layers are many small files: one inode for 8 KiB.
        "-i",
        "8192", // Nothing is kept back for root: the machine's own root is a mapped user.
        "-m",
        "0",
        // A new sparse file reads as zeros: no inode table has to be written, now or later in the background,
        // and there is nothing to discard.
        "-E",
        "nodiscard,assume_storage_prezeroed=1",
        "-e",
        "remount-ro",
    ]
    .map(std::ffi::OsStr::new)
    .to_vec();
    args.extend(journal.iter().map(std::ffi::OsStr::new));
    args.push(image.as_os_str());
    let ended = tool::run("mkfs.ext4", &args, MKFS_DURATION_MAX)?;
    match ended.code {
        Some(0) => Ok(()),
        Some(_) | None => Err(VolumeError::Tool {
            program: "mkfs.ext4",
            detail: ended.output,
        }),
    }
}

fn remove_quietly(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
