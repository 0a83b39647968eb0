//! The `file` driver: each volume is a sparse image in the pool's directory, attached through a loop device.
//!
//! ```text
//! POOL/volumes/ID.img              the image; its length is the volume's size, its blocks are taken when written
//! POOL/volumes/ID.luks             the same of an encrypted volume, with its header before the contents
//! POOL/volumes/ID.SIZE.img.tmp     one being made, with what is reserved for it; a leftover after a crash
//! POOL/volumes/ID.SIZE.img.part    an import, which may be taken up again
//! POOL/snapshots/SNP.ID.img        what a volume held
//! POOL/snapshots/SNP.ID.SIZE.img.tmp   one being made
//! ```
//!
//! **What in use means.** The loop device is given an image file that is `flock`ed, and the kernel keeps that lock for as
//! long as the device lives: through the death of this process, and through any other mount of the same file system in any
//! namespace. So an image is in use exactly while its lock is taken, and no second device of it can be made.
//!
//! Must not know: file systems, keys, holders.

mod clone;
mod names;

#[cfg(feature = "fuzz")]
pub(crate) use names::fuzz_name;

use crate::account::Account;
use crate::backing::{
    Active, Backing, Claim, Device, FileSystem, Inventory, Making, MayGoOn, Origin, State, Stored,
    StoredSnapshot, Traits, Unfinished,
};
use crate::driver::{Encryption, VolumeDriver};
use crate::error::VolumeError;
use crate::limits::{IMAGE_LOCK_WAIT_MAX, POLL_PAUSE};
use crate::loopdev::{self, LoopDevice};
use crate::luks;
use crate::marker::{remove_if_there, sync_parent};
use crate::pool::Pool;
use crate::pool::layout::{Layout, make_dir};
use names::{Kind, Name};
use nix::sys::statvfs::Statvfs;
use slipway_core::host_api::Cloning;
use slipway_core::id::{SnapshotId, VolumeId};
use slipway_core::units::ByteSize;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// `st_blocks` counts these, whatever the file system's own block is (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

/// Opens the pool in `pool_dir`, making the directory if need be; clears what a crash left half made, and adopts
/// what is attached. Several openings, in one process or in several, may work on one pool.
///
/// `capacity` is how much may be promised to volumes in all.
///
/// # Errors
/// [`VolumeError::EncryptionUnavailable`] if encryption is required where it cannot be, [`VolumeError::Io`] if the
/// directory cannot be used.
pub fn open_file_pool(
    pool_dir: &Path,
    capacity: Capacity,
    encryption: Encryption,
) -> Result<Arc<dyn VolumeDriver>, VolumeError> {
    Ok(Arc::new(open(pool_dir, capacity, encryption)?))
}

/// How much a pool of images may promise, and what of its disk is not its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// Absent: 90% of the room that is free when it is opened and owed to nobody else, and of what the volumes already take, so
    /// that every promise can be kept however full the rest of the disk already is.
    pub set: Option<ByteSize>,
    /// What others were promised of the disk and do not take yet.
    pub owed_to_others: ByteSize,
}

impl Capacity {
    /// So much, whatever the disk has.
    pub fn of(size: ByteSize) -> Self {
        Self {
            set: Some(size),
            ..Self::default()
        }
    }
}

pub(crate) fn open(
    pool_dir: &Path,
    capacity: Capacity,
    encryption: Encryption,
) -> Result<Pool<Images>, VolumeError> {
    loopdev::check()?;
    luks::check(encryption)?;
    let layout = Layout::make(pool_dir)?;
    let images = Images::open(&layout, capacity)?;
    Pool::open(layout, images, encryption)
}

/// The images of one pool.
#[derive(Debug)]
pub(crate) struct Images {
    volumes: PathBuf,
    snapshots: PathBuf,
    capacity: u64,
    owed_to_others: u64,
    discard: bool,
    cloning: Cloning,
}

impl Images {
    fn open(layout: &Layout, capacity: Capacity) -> Result<Self, VolumeError> {
        let snapshots = layout.root().join("snapshots");
        make_dir(&snapshots)?;
        let mut images = Self {
            volumes: layout.volumes_dir(),
            snapshots,
            capacity: 0,
            owed_to_others: capacity.owed_to_others.0,
            discard: false,
            cloning: Cloning::FullCopy,
        };
        images.discard = clone::can_punch_holes(&images.volumes)?;
        if clone::can_share_blocks(&images.volumes)? {
            images.cloning = Cloning::Reflink;
        }
        images.capacity = match capacity.set {
            Some(capacity) => capacity.0,
            None => images.default_capacity()?,
        };
        Ok(images)
    }

    /// What may be promised when nobody said: a share of what is free and what the volumes already take.
    fn default_capacity(&self) -> Result<u64, VolumeError> {
        let statistics = self.statistics()?;
        let fragment = statistics.fragment_size();
        let mut used = 0_u64;
        for (_, path) in self.all()? {
            used = used.saturating_add(taken(&path)?);
        }
        // Blocks that images share were counted for each.
        let whole = (statistics.blocks() - statistics.blocks_free()) * fragment;
        let account = Account {
            free: statistics.blocks_available() * fragment,
            taken: used.min(whole),
            promised: 0,
            owed_to_others: self.owed_to_others,
        };
        Ok(account.capacity())
    }

    fn statistics(&self) -> Result<Statvfs, VolumeError> {
        nix::sys::statvfs::statvfs(&self.volumes)
            .map_err(VolumeError::io("read the free space of", &self.volumes))
    }

    fn file_system(&self) -> Result<FileSystem, VolumeError> {
        let statistics = self.statistics()?;
        let metadata =
            std::fs::metadata(&self.volumes).map_err(VolumeError::io("read", &self.volumes))?;
        Ok(FileSystem {
            device: metadata.dev(),
            free: statistics.blocks_available() * statistics.fragment_size(),
            owed_to_others: self.owed_to_others,
        })
    }

    /// All files that are ours, of any kind.
    fn all(&self) -> Result<Vec<(Name, PathBuf)>, VolumeError> {
        let mut found = Vec::new();
        for dir in [&self.volumes, &self.snapshots] {
            for name in Layout::file_names(dir)? {
                if let Some(parsed) = Name::parse(&name) {
                    found.push((parsed, dir.join(name)));
                }
            }
        }
        Ok(found)
    }

    fn path(&self, name: &Name) -> PathBuf {
        match name.snapshot {
            Some(_) => self.snapshots.join(name.to_string()),
            None => self.volumes.join(name.to_string()),
        }
    }

    fn image(&self, id: &VolumeId, sealed: bool) -> PathBuf {
        self.path(&Name {
            snapshot: None,
            volume: id.clone(),
            sealed,
            kind: Kind::Whole,
        })
    }

    /// The image of a volume and what it has, if it is there.
    fn look(&self, id: &VolumeId) -> Result<Option<(PathBuf, bool, Metadata)>, VolumeError> {
        for sealed in [false, true] {
            let path = self.image(id, sealed);
            match std::fs::metadata(&path) {
                Ok(metadata) => return Ok(Some((path, sealed, metadata))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(VolumeError::io("read", &path)(error)),
            }
        }
        Ok(None)
    }

    fn find_in_making(
        &self,
        id: &VolumeId,
        making: Making,
    ) -> Result<Option<(Name, PathBuf)>, VolumeError> {
        Ok(self.all()?.into_iter().find(|(name, _)| {
            name.snapshot.is_none() && name.volume == *id && name.kind.making() == Some(making)
        }))
    }

    fn find_snapshot(
        &self,
        snapshot: &SnapshotId,
        whole: bool,
    ) -> Result<Option<(Name, PathBuf)>, VolumeError> {
        Ok(self.all()?.into_iter().find(|(name, _)| {
            name.snapshot.as_ref() == Some(snapshot) && (name.kind == Kind::Whole) == whole
        }))
    }

    fn origin_path(&self, origin: &Origin) -> Result<PathBuf, VolumeError> {
        match origin {
            Origin::Volume(id) => self
                .look(id)?
                .map(|(path, _, _)| path)
                .ok_or_else(|| VolumeError::NotFound { volume: id.clone() }),
            Origin::Snapshot(id) => self
                .find_snapshot(id, true)?
                .map(|(_, path)| path)
                .ok_or_else(|| VolumeError::SnapshotNotFound {
                    snapshot: id.clone(),
                }),
        }
    }
}

/// Bytes before the contents.
fn header(sealed: bool) -> u64 {
    if sealed { luks::HEADER_BYTES } else { 0 }
}

fn stored(metadata: &Metadata, sealed: bool) -> Stored {
    Stored {
        size: metadata.len().saturating_sub(header(sealed)),
        used: metadata.blocks() * STAT_BLOCK_BYTES,
        sealed,
    }
}

/// Bytes on disk; of one that has just gone: none.
fn taken(path: &Path) -> Result<u64, VolumeError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.blocks() * STAT_BLOCK_BYTES),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(VolumeError::io("read", path)(error)),
    }
}

/// The image and its lock. It must never be unlocked by hand, since a loop device of it shares the lock.
#[derive(Debug)]
pub(crate) struct HeldImage {
    file: File,
    path: PathBuf,
}

impl Backing for Images {
    type Held = HeldImage;

    fn traits(&self) -> Traits {
        Traits {
            name: "file",
            thin: true,
            discard: self.discard,
            cloning: self.cloning,
            stills_by_itself: false,
        }
    }

    fn round_up(&self, size: u64) -> u64 {
        size.next_multiple_of(luks::SECTOR_BYTES)
    }

    fn inventory(&self) -> Result<Inventory, VolumeError> {
        let mut inventory = Inventory::default();
        for (name, path) in self.all()? {
            if let Kind::Making(making, reserved) = name.kind {
                inventory.reserved = inventory.reserved.saturating_add(reserved);
                inventory.unfinished.push(match name.snapshot {
                    Some(snapshot) => Unfinished::Snapshot(snapshot, name.volume),
                    None => Unfinished::Volume {
                        id: name.volume,
                        making,
                        idle_s: idle_s(&path),
                    },
                });
                continue;
            }
            let metadata = match std::fs::metadata(&path) {
                Ok(metadata) => metadata,
                // One that goes while we look is not there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(VolumeError::io("read", &path)(error)),
            };
            let stored = stored(&metadata, name.sealed);
            match name.snapshot {
                None => inventory.volumes.push((name.volume, stored)),
                Some(snapshot) => inventory.snapshots.push(StoredSnapshot {
                    snapshot,
                    volume: name.volume,
                    stored,
                    made_at_ms: made_at_ms(&metadata),
                }),
            }
        }
        Ok(inventory)
    }

    fn survey(&self) -> Result<(Inventory, State), VolumeError> {
        let state = State {
            capacity: self.capacity,
            used: None,
            refuses_growth: None,
            file_system: Some(self.file_system()?),
            notices: Vec::new(),
        };
        Ok((self.inventory()?, state))
    }

    fn find(&self, id: &VolumeId) -> Result<Option<Stored>, VolumeError> {
        let found = self.look(id)?;
        Ok(found.map(|(_, sealed, metadata)| stored(&metadata, sealed)))
    }

    fn claim(&self, id: &VolumeId) -> Result<Claim<HeldImage>, VolumeError> {
        let deadline = Instant::now() + IMAGE_LOCK_WAIT_MAX;
        loop {
            let Some((path, sealed, metadata)) = self.look(id)? else {
                return Ok(Claim::Absent);
            };
            let stored = stored(&metadata, sealed);
            let file = match OpenOptions::new().read(true).write(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Claim::Absent),
                Err(error) => return Err(VolumeError::io("open", &path)(error)),
            };
            match file.try_lock() {
                Ok(()) => return Ok(Claim::Free(HeldImage { file, path }, stored)),
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
                return Ok(Claim::InUse(stored));
            }
            std::thread::sleep(POLL_PAUSE);
        }
    }

    fn activate(
        &self,
        _id: &VolumeId,
        held: &HeldImage,
        lasting: bool,
    ) -> Result<Device, VolumeError> {
        LoopDevice::attach(&held.file, lasting)
            .map(LoopDevice::into_device)
            .map_err(VolumeError::io("make a loop device of", &held.path))
    }

    fn active(&self, id: &VolumeId) -> Result<Option<PathBuf>, VolumeError> {
        let Some((path, _, _)) = self.look(id)? else {
            return Ok(None);
        };
        LoopDevice::find(&path).map_err(VolumeError::io("find the device of", &path))
    }

    fn all_active(&self) -> Result<Active, VolumeError> {
        let devices =
            loopdev::in_use().map_err(VolumeError::io("read", Path::new("/sys/block")))?;
        let ours = devices
            .iter()
            .filter(|(image, _)| image.parent() == Some(&self.volumes))
            .filter_map(|(image, _)| Name::parse(image.file_name()?.to_str()?))
            .filter(|name| name.kind == Kind::Whole);
        // Snapshots are read as files.
        Ok(Active {
            volumes: ours.map(|name| name.volume).collect(),
            snapshots: Vec::new(),
        })
    }

    fn deactivate(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let Some((path, _, _)) = self.look(id)? else {
            return Ok(());
        };
        loopdev::release(&path).map_err(VolumeError::io("free the device of", &path))
    }

    fn begin(
        &self,
        id: &VolumeId,
        stored: &Stored,
        making: Making,
        _from: Option<&Origin>,
    ) -> Result<(), VolumeError> {
        let path = self.path(&Name {
            snapshot: None,
            volume: id.clone(),
            sealed: stored.sealed,
            kind: Kind::Making(making, stored.size),
        });
        create(&path)?
            .set_len(stored.size + header(stored.sealed))
            .map_err(VolumeError::io("extend", &path))
    }

    fn fill(
        &self,
        id: &VolumeId,
        stored: &Stored,
        from: &Origin,
        may_go_on: MayGoOn<'_>,
    ) -> Result<(), VolumeError> {
        let from = self.origin_path(from)?;
        let Some((_, path)) = self.find_in_making(id, Making::Short)? else {
            return Err(VolumeError::NotFound { volume: id.clone() });
        };
        let file = create(&path)?;
        self.copy(id, &from, (&path, &file), may_go_on)?;
        file.set_len(stored.size + header(stored.sealed))
            .map_err(VolumeError::io("extend", &path))
    }

    fn is_begun(&self, id: &VolumeId, making: Making) -> Result<bool, VolumeError> {
        Ok(self.find_in_making(id, making)?.is_some())
    }

    fn making(&self, id: &VolumeId, making: Making) -> Result<Device, VolumeError> {
        let (_, path) = self
            .find_in_making(id, making)?
            .ok_or_else(|| VolumeError::NotFound { volume: id.clone() })?;
        // An image is written to as it is, without a device.
        Ok(Device { path, _open: None })
    }

    fn publish(&self, id: &VolumeId, making: Making) -> Result<(), VolumeError> {
        let Some((name, path)) = self.find_in_making(id, making)? else {
            return Err(VolumeError::NotFound { volume: id.clone() });
        };
        let image = self.image(id, name.sealed);
        std::fs::rename(&path, &image).map_err(VolumeError::io("rename", &path))
    }

    fn settle(&self) -> Result<(), VolumeError> {
        for dir in [&self.volumes, &self.snapshots] {
            sync_parent(&dir.join("x"))?;
        }
        Ok(())
    }

    fn abandon(&self, id: &VolumeId, makings: &[Making]) -> Result<(), VolumeError> {
        for making in makings {
            while let Some((_, path)) = self.find_in_making(id, *making)? {
                remove_if_there(&path)?;
            }
        }
        Ok(())
    }

    fn remove(&self, _id: &VolumeId, held: HeldImage) -> Result<(), VolumeError> {
        remove_if_there(&held.path)
    }

    fn grow(&self, id: &VolumeId, size: u64) -> Result<(), VolumeError> {
        let Some((path, sealed, _)) = self.look(id)? else {
            return Err(VolumeError::NotFound { volume: id.clone() });
        };
        let file = OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(VolumeError::io("open", &path))?;
        file.set_len(size + header(sealed))
            .and_then(|()| file.sync_all())
            .map_err(VolumeError::io("extend", &path))?;
        loopdev::follow(&path).map_err(VolumeError::io("extend the device of", &path))
    }

    fn snapshot_reserve(&self, stored: &Stored) -> u64 {
        stored.used
    }

    fn begin_snapshot(
        &self,
        volume: &VolumeId,
        stored: &Stored,
        snapshot: &SnapshotId,
    ) -> Result<(), VolumeError> {
        let name = Name {
            snapshot: Some(snapshot.clone()),
            volume: volume.clone(),
            sealed: stored.sealed,
            kind: Kind::Making(Making::Short, self.snapshot_reserve(stored)),
        };
        create(&self.path(&name)).map(drop)
    }

    fn fill_snapshot(
        &self,
        volume: &VolumeId,
        _stored: &Stored,
        snapshot: &SnapshotId,
        may_go_on: MayGoOn<'_>,
    ) -> Result<(), VolumeError> {
        let from = self.origin_path(&Origin::Volume(volume.clone()))?;
        let Some((_, path)) = self.find_snapshot(snapshot, false)? else {
            return Err(VolumeError::SnapshotNotFound {
                snapshot: snapshot.clone(),
            });
        };
        let file = create(&path)?;
        self.copy(volume, &from, (&path, &file), may_go_on)
    }

    fn publish_snapshot(
        &self,
        _volume: &VolumeId,
        _stored: &Stored,
        snapshot: &SnapshotId,
    ) -> Result<(), VolumeError> {
        let Some((mut name, path)) = self.find_snapshot(snapshot, false)? else {
            return Err(VolumeError::SnapshotNotFound {
                snapshot: snapshot.clone(),
            });
        };
        let file = File::open(&path).map_err(VolumeError::io("open", &path))?;
        file.sync_all().map_err(VolumeError::io("sync", &path))?;
        name.kind = Kind::Whole;
        std::fs::rename(&path, self.path(&name)).map_err(VolumeError::io("rename", &path))
    }

    fn abandon_snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        while let Some((_, path)) = self.find_snapshot(snapshot, false)? {
            remove_if_there(&path)?;
        }
        Ok(())
    }

    fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        while let Some((_, path)) = self.find_snapshot(snapshot, true)? {
            remove_if_there(&path)?;
        }
        Ok(())
    }

    fn open_snapshot(&self, snapshot: &StoredSnapshot) -> Result<Device, VolumeError> {
        self.origin_path(&Origin::Snapshot(snapshot.snapshot.clone()))
            .map(|path| Device { path, _open: None })
    }

    fn close_snapshot(&self, _snapshot: &StoredSnapshot) -> Result<(), VolumeError> {
        Ok(())
    }

    fn describe(&self, id: &VolumeId) -> PathBuf {
        match self.look(id) {
            Ok(Some((path, _, _))) => path,
            Ok(None) | Err(_) => self.image(id, false),
        }
    }
}

fn create(path: &Path) -> Result<File, VolumeError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(VolumeError::io("create", path))
}

/// A snapshot is written to when it is made, and never after.
fn made_at_ms(metadata: &Metadata) -> u64 {
    let since = metadata
        .modified()
        .ok()
        .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

fn idle_s(path: &Path) -> u64 {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    modified
        .ok()
        .and_then(|at| at.elapsed().ok())
        .map_or(0, |age| age.as_secs())
}
