//! What every volume driver can do, and how it says what it cannot.
//!
//! Must not know: how any driver does it.

use crate::account::Account;
use crate::error::VolumeError;
use crate::mounts::Mounted;
use slipway_core::host_api::{Cloning, ImportPart, SnapshotReport, VolumeReport, VolumeSource};
use slipway_core::id::{MachineId, SnapshotId, VolumeId};
use slipway_core::key::VolumeKey;
use slipway_core::units::ByteSize;
use std::io::{Read, Write};
use std::path::PathBuf;

/// What a driver offers. Callers branch on these, never on the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// For logs and reports.
    pub name: &'static str,
    /// Blocks are taken when they are first written.
    pub thin: bool,
    /// Blocks come back to the pool when files are deleted.
    pub discard: bool,
    /// New volumes are encrypted on disk, and verbs on them need their key.
    pub encryption: bool,
    /// What a snapshot or a fork costs.
    pub cloning: Cloning,
    /// A mounted file system grows at once; else at the next attachment.
    pub grows_mounted: bool,
}

/// Whether a pool's volumes must be encrypted on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// They are stored as they are.
    Off,
    /// A pool that cannot encrypt refuses to open.
    Required,
}

/// A pool's accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolReport {
    /// Which pool it is: drawn once and kept with it. Absent while it cannot be kept, as on a full disk.
    pub id: Option<String>,
    /// How much may be promised in all.
    pub capacity: ByteSize,
    /// Sum of the volumes' sizes, and of what snapshots may take by themselves.
    pub promised: ByteSize,
    /// Bytes that they take on disk now; blocks that several share may count for each.
    pub used: ByteSize,
    /// What the operator must see to: a pool about to be full, things found that belong to nobody.
    pub notices: Vec<String>,
    /// The disk that volumes lie on, where others may write to it as well.
    pub disk: Option<SharedDisk>,
}

/// A disk that volumes share with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedDisk {
    /// `st_dev` of what lies on it (stat(2)).
    pub device: u64,
    /// What volumes were promised of it. Of others' promises it knows what the pool was opened with.
    pub account: Account,
}

/// A volume to make.
#[derive(Debug)]
pub struct NewVolume<'a> {
    /// Its name.
    pub id: &'a VolumeId,
    /// Its hard cap. Drivers round it up to their block; the report says to what.
    pub size: ByteSize,
    /// What it holds at first; absent: an empty file system.
    pub source: Option<&'a VolumeSource>,
    /// Its key; needed where new volumes are encrypted, or its source is.
    pub key: Option<&'a VolumeKey>,
    /// The key of its source, if that is encrypted. A fork has a key of its own from the start.
    pub source_key: Option<&'a VolumeKey>,
}

impl<'a> NewVolume<'a> {
    /// An empty volume without encryption.
    pub fn empty(id: &'a VolumeId, size: ByteSize) -> Self {
        Self {
            id,
            size,
            source: None,
            key: None,
            source_key: None,
        }
    }
}

/// How a holder wants to have a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachAs {
    /// Its file system mounted, in no namespace yet.
    Mount,
    /// As a block device, for a machine with a kernel of its own.
    Device,
}

/// An attached volume.
#[derive(Debug)]
pub enum Attachment {
    /// Its file system, mounted where nobody sees it. The volume stays attached when this is dropped, until
    /// [`VolumeDriver::detach`]; attaching it again gives the same file system.
    Mount(Mounted),
    /// A block device that takes discards. It holds an ext4 without a partition table, in clear.
    Device(PathBuf),
}

impl Attachment {
    /// A path to the root directory ([`Mounted::path`]), or the device.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Mount(mounted) => mounted.path(),
            Self::Device(path) => path.clone(),
        }
    }
}

/// A place volumes come from. Every verb is idempotent, and safe to call from several threads and several processes
/// on one pool at a time. A verb that was cut off anywhere is finished or taken back by the next one, or by the next
/// opening of the pool.
pub trait VolumeDriver: Send + Sync + std::fmt::Debug {
    /// What this driver offers here, on this pool.
    fn capabilities(&self) -> Capabilities;

    /// Makes the volume if it is not there, nothing attached. From a volume that is attached it holds what that would
    /// after a power cut now.
    ///
    /// # Errors
    /// [`VolumeError::SizeDiffers`] if it is there with another size, [`VolumeError::NoSpace`] if the pool cannot
    /// promise that much, [`VolumeError::InvalidSize`] (also for less than the source's),
    /// [`VolumeError::NotFound`] or [`VolumeError::SnapshotNotFound`] for the source, [`VolumeError::KeyNeeded`],
    /// [`VolumeError::Unsupported`].
    fn ensure(&self, new: &NewVolume<'_>) -> Result<VolumeReport, VolumeError>;

    /// Makes the volume larger, attached or not. Its file system follows at once where it is mounted (and
    /// [`Capabilities::grows_mounted`]), else when it is mounted next; of one that is attached as a device, the device grows.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::Shrink`], [`VolumeError::NoSpace`], [`VolumeError::InvalidSize`],
    /// [`VolumeError::KeyNeeded`] if it is encrypted and attached.
    fn extend(
        &self,
        id: &VolumeId,
        size: ByteSize,
        key: Option<&VolumeKey>,
    ) -> Result<VolumeReport, VolumeError>;

    /// Removes the volume and all that is on it, for good; what makes an encrypted one readable goes first. An absent one
    /// is fine. Its snapshots stay.
    ///
    /// # Errors
    /// [`VolumeError::InUse`] while it is attached.
    fn destroy(&self, id: &VolumeId) -> Result<(), VolumeError>;

    /// All volumes, in id order.
    ///
    /// # Errors
    /// Only when the pool itself cannot be read.
    fn list(&self) -> Result<Vec<VolumeReport>, VolumeError>;

    /// Volumes that are not whole: they are being made, or are imports that broke off and can be taken up again.
    /// [`Self::destroy`] removes one.
    ///
    /// # Errors
    /// Only when the pool itself cannot be read.
    fn unfinished(&self) -> Result<Vec<VolumeId>, VolumeError>;

    /// Gives the volume to `holder`. Again for the same holder gives the same. Before it is mounted, the file system is checked and
    /// repaired if the last end was unclean, which can take minutes. As a device it is given unread: its machine checks it.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::InUse`] if another holder has it, [`VolumeError::Damaged`] if
    /// it cannot be repaired, [`VolumeError::KeyNeeded`], [`VolumeError::Unsupported`] if the holder has it the other way.
    fn attach(
        &self,
        id: &VolumeId,
        holder: &MachineId,
        how: AttachAs,
        key: Option<&VolumeKey>,
    ) -> Result<Attachment, VolumeError>;

    /// Takes the volume from `holder`, whose mounts must be gone, and frees its device. Fine if `holder` does not have it,
    /// whoever else may.
    ///
    /// # Errors
    /// [`VolumeError::Busy`] while a mount or another user of it is alive; it then stays attached.
    fn detach(&self, id: &VolumeId, holder: &MachineId) -> Result<(), VolumeError>;

    /// Keeps what the volume holds now, attached or not. One of that name that is there is fine.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::NoSpace`], [`VolumeError::Unsupported`] where it would take too long while
    /// the volume stands still.
    fn snapshot(&self, id: &VolumeId, snapshot: &SnapshotId)
    -> Result<SnapshotReport, VolumeError>;

    /// Removes a snapshot; an absent one is fine.
    ///
    /// # Errors
    /// [`VolumeError::Busy`] while a volume is made from it.
    fn delete_snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError>;

    /// All snapshots, in id order.
    ///
    /// # Errors
    /// Only when the pool itself cannot be read.
    fn snapshots(&self) -> Result<Vec<SnapshotReport>, VolumeError>;

    /// Writes a snapshot's contents from `offset` on as a stream ([`crate::stream`]). Given the key of an encrypted
    /// one, in clear; else as they are on disk.
    ///
    /// # Errors
    /// [`VolumeError::SnapshotNotFound`], [`VolumeError::Stream`] when `to` fails.
    fn export(
        &self,
        snapshot: &SnapshotId,
        offset: u64,
        key: Option<&VolumeKey>,
        to: &mut dyn Write,
    ) -> Result<(), VolumeError>;

    /// Writes what `snapshot` has and `base`, one of the same volume, has not, as a stream; as they are on disk.
    ///
    /// # Errors
    /// [`VolumeError::SnapshotNotFound`], [`VolumeError::Unsupported`] for snapshots that cannot be compared,
    /// [`VolumeError::Stream`] when `to` fails.
    fn export_difference(
        &self,
        base: &SnapshotId,
        snapshot: &SnapshotId,
        to: &mut dyn Write,
    ) -> Result<(), VolumeError>;

    /// Where an import of this volume goes on: 0 for one that has not begun, and for differences.
    ///
    /// # Errors
    /// [`VolumeError::InvalidSize`] or [`VolumeError::NoSpace`] if it cannot be.
    fn import_offset(
        &self,
        id: &VolumeId,
        size: ByteSize,
        part: &ImportPart,
    ) -> Result<u64, VolumeError>;

    /// Makes the volume from a stream that begins at or before [`Self::import_offset`]. One that breaks off is kept for
    /// [`crate::limits::IMPORT_KEPT_FOR`]. If the volume is there, nothing is read. No report: it has all of its base, and waits for the
    /// difference.
    ///
    /// # Errors
    /// As [`Self::ensure`], and [`VolumeError::Stream`] when the stream is not one, or not whole, or a difference from something that
    /// is not there.
    fn import(
        &self,
        id: &VolumeId,
        size: ByteSize,
        key: Option<&VolumeKey>,
        part: &ImportPart,
        from: &mut dyn Read,
    ) -> Result<Option<VolumeReport>, VolumeError>;

    /// The pool's accounts.
    ///
    /// # Errors
    /// Only when the pool itself cannot be read.
    fn pool(&self) -> Result<PoolReport, VolumeError>;
}
