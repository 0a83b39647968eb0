//! The `file` driver: each volume is a sparse ext4 image in the pool's directory, attached through a loop device.
//!
//! ```text
//! POOL/pool.lock              held while the sum of the promises may change
//! POOL/volumes/ID.img         the image; its length is the volume's size, its blocks are taken when written
//! POOL/volumes/ID.img.tmp     one being made; a leftover after a crash
//! POOL/volumes/ID.attached    who holds it (see `marker`)
//! POOL/volumes/ID.lock        held during any operation on the one volume
//! POOL/mnt/ID                 where it is mounted; only root can enter POOL/mnt
//! ```
//!
//! **What attached means.** The loop device is given an image file that is `flock`ed, and the kernel keeps that lock
//! for as long as the device lives: through the death of this process, and through any other mount of the same file
//! system in any namespace. So an image is in use exactly while its lock is taken, and no second device of it can be
//! made. The marker only adds for whom, and, when the lock is free, that the last end was unclean.
//!
//! Must not know: machines, orgs.

mod attach;
mod pool;
mod steps;
#[cfg(test)]
mod tests;

use crate::driver::{Capabilities, Encryption, PoolReport, VolumeDriver};
use crate::error::VolumeError;
use crate::limits::{IMAGE_LOCK_WAIT_MAX, POLL_PAUSE, POOL_LOCK_WAIT_MAX, VOLUME_LOCK_WAIT_MAX};
use crate::lock::{FileLock, Locked};
use crate::loopdev::{self, LoopDevice};
use slipway_core::host_api::VolumeReport;
use slipway_core::id::{MachineId, VolumeId};
use slipway_core::units::ByteSize;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A pool of volumes in a directory. Several of these, in one process or in several, may work on one pool.
#[derive(Debug)]
pub struct FileDriver {
    layout: Layout,
    capacity: ByteSize,
    discard: bool,
    steps: steps::Steps,
}

impl FileDriver {
    /// Opens the pool in `pool_dir`, making the directory if need be; clears what a crash left half made, and adopts
    /// what is attached.
    ///
    /// `capacity` is how much may be promised to volumes in all. Without one it is 90% of the room that is free there
    /// now plus what the volumes already take, so that every promise can be kept however full the rest of the
    /// disk already is.
    ///
    /// # Errors
    /// [`VolumeError::EncryptionUnavailable`] if encryption is required, [`VolumeError::Io`] if the directory cannot be
    /// used.
    pub fn open(
        pool_dir: &Path,
        capacity: Option<ByteSize>,
        encryption: Encryption,
    ) -> Result<Self, VolumeError> {
        match encryption {
            Encryption::Off => {}
            Encryption::Required => {
                return Err(VolumeError::EncryptionUnavailable {
                    reason: no_encryption_because(),
                });
            }
        }
        let layout = Layout::make(pool_dir)?;
        let capacity = match capacity {
            Some(capacity) => capacity,
            None => pool::default_capacity(&layout)?,
        };
        let discard = pool::can_punch_holes(&layout)?;
        if !discard {
            tracing::warn!(pool = %layout.root.display(), "the pool's file system cannot give back freed blocks");
        }
        let driver = Self {
            layout,
            capacity,
            discard,
            steps: steps::Steps::default(),
        };
        driver.clear_leftovers()?;
        for report in driver.list()? {
            if let Some(holder) = report.attached_to {
                tracing::info!(volume = %report.volume, %holder, "attached volume adopted");
            }
        }
        Ok(driver)
    }

    fn lock_pool(&self) -> Result<FileLock, VolumeError> {
        let path = self.layout.pool_lock();
        match FileLock::acquire(&path, POOL_LOCK_WAIT_MAX)
            .map_err(VolumeError::io("lock", &path))?
        {
            Locked::Held(lock) => Ok(lock),
            Locked::TimedOut => Err(VolumeError::PoolBusy {
                waited: POOL_LOCK_WAIT_MAX,
            }),
        }
    }

    fn lock_volume(&self, id: &VolumeId) -> Result<FileLock, VolumeError> {
        let path = self.layout.lock(id);
        match FileLock::acquire(&path, VOLUME_LOCK_WAIT_MAX)
            .map_err(VolumeError::io("lock", &path))?
        {
            Locked::Held(lock) => Ok(lock),
            Locked::TimedOut => Err(VolumeError::Busy {
                volume: id.clone(),
                what: "another operation on it is going on",
                waited: VOLUME_LOCK_WAIT_MAX,
            }),
        }
    }

    /// Opens the image and takes its lock, which tells whether it is in use.
    fn open_image(&self, id: &VolumeId) -> Result<Image, VolumeError> {
        let path = self.layout.image(id);
        let deadline = Instant::now() + IMAGE_LOCK_WAIT_MAX;
        loop {
            let file = match OpenOptions::new().read(true).write(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Image::Absent),
                Err(error) => return Err(VolumeError::io("open", &path)(error)),
            };
            match file.try_lock() {
                Ok(()) => return Ok(Image::Free(file)),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(VolumeError::io("lock", &path)(error));
                }
            }
            // Without a device, the lock is with a copy of a descriptor: a program that is being started by another
            // thread has all of ours until it runs.
            let device =
                LoopDevice::find(&path).map_err(VolumeError::io("find the device of", &path))?;
            if device.is_some() || Instant::now() >= deadline {
                return Ok(Image::InUse);
            }
            std::thread::sleep(POLL_PAUSE);
        }
    }
}

impl VolumeDriver for FileDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "file",
            thin: true,
            discard: self.discard,
            encryption: false,
            snapshots: false,
        }
    }

    fn ensure(&self, id: &VolumeId, size: ByteSize) -> Result<VolumeReport, VolumeError> {
        self.create(id, size)
    }

    fn destroy(&self, id: &VolumeId) -> Result<(), VolumeError> {
        self.remove(id)
    }

    fn list(&self) -> Result<Vec<VolumeReport>, VolumeError> {
        let devices =
            loopdev::in_use().map_err(VolumeError::io("read", Path::new("/sys/block")))?;
        let mut reports = Vec::new();
        for id in self.layout.volumes()? {
            // One that goes while we look is not there.
            if let Some(report) = self.report(&id, &devices)? {
                reports.push(report);
            }
        }
        reports.sort_by(|a, b| a.volume.cmp(&b.volume));
        Ok(reports)
    }

    fn attach(&self, id: &VolumeId, holder: &MachineId) -> Result<PathBuf, VolumeError> {
        self.attach_to(id, holder)
    }

    fn detach(&self, id: &VolumeId, holder: &MachineId) -> Result<(), VolumeError> {
        self.detach_from(id, holder)
    }

    fn pool(&self) -> Result<PoolReport, VolumeError> {
        let (promised, used) = pool::sums(&self.layout)?;
        Ok(PoolReport {
            capacity: self.capacity,
            promised,
            used,
        })
    }
}

/// What a try to open and lock an image shows.
#[derive(Debug)]
enum Image {
    Absent,
    /// Ours until this file is closed everywhere. It must never be unlocked by hand, since a loop device of it shares
    /// the lock.
    Free(File),
    /// A loop device has it.
    InUse,
}

/// Where everything is. Ids are validated types, so that no path leaves the pool.
#[derive(Debug)]
struct Layout {
    root: PathBuf,
}

impl Layout {
    fn make(pool_dir: &Path) -> Result<Self, VolumeError> {
        let make_dir = |path: &Path| {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(VolumeError::io("make directory", path))
        };
        make_dir(pool_dir)?;
        // Device and mount tables show canonical paths.
        let root = pool_dir
            .canonicalize()
            .map_err(VolumeError::io("resolve", pool_dir))?;
        let layout = Self { root };
        // What is inside volumes, setuid files among it, must be out of reach of the host's users.
        for dir in [layout.volumes_dir(), layout.mounts_dir()] {
            make_dir(&dir)?;
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700))
                .map_err(VolumeError::io("restrict", &dir))?;
        }
        Ok(layout)
    }

    fn pool_lock(&self) -> PathBuf {
        self.root.join("pool.lock")
    }

    fn volumes_dir(&self) -> PathBuf {
        self.root.join("volumes")
    }

    fn mounts_dir(&self) -> PathBuf {
        self.root.join("mnt")
    }

    fn image(&self, id: &VolumeId) -> PathBuf {
        self.volumes_dir().join(format!("{id}.img"))
    }

    fn image_in_making(&self, id: &VolumeId) -> PathBuf {
        self.volumes_dir().join(format!("{id}.img.tmp"))
    }

    fn marker(&self, id: &VolumeId) -> PathBuf {
        self.volumes_dir().join(format!("{id}.attached"))
    }

    fn lock(&self, id: &VolumeId) -> PathBuf {
        self.volumes_dir().join(format!("{id}.lock"))
    }

    fn mount_point(&self, id: &VolumeId) -> PathBuf {
        self.mounts_dir().join(id.as_str())
    }

    /// The names of all files of the pool's volumes.
    fn file_names(&self) -> Result<Vec<String>, VolumeError> {
        let dir = self.volumes_dir();
        let fail = || VolumeError::io::<io::Error>("list", &dir);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(fail())? {
            // A name that is not UTF-8 is not one of ours.
            if let Ok(name) = entry.map_err(fail())?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// The volumes that have an image, in no order.
    fn volumes(&self) -> Result<Vec<VolumeId>, VolumeError> {
        let names = self.file_names()?;
        Ok(names
            .iter()
            .filter_map(|name| name.strip_suffix(".img")?.parse().ok())
            .collect())
    }
}

fn no_encryption_because() -> &'static str {
    // The control node of device-mapper, which LUKS needs.
    if Path::new("/dev/mapper/control").exists() {
        "the file driver cannot encrypt yet"
    } else {
        "this kernel has no device-mapper"
    }
}
