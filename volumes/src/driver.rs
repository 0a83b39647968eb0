//! What every volume driver can do, and how it says what it cannot.
//!
//! Must not know: how any driver does it.

use crate::error::VolumeError;
use slipway_core::host_api::VolumeReport;
use slipway_core::id::{MachineId, VolumeId};
use slipway_core::units::ByteSize;
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
    /// Contents are encrypted on disk.
    pub encryption: bool,
    /// Snapshots and forks.
    pub snapshots: bool,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolReport {
    /// How much may be promised in all.
    pub capacity: ByteSize,
    /// Sum of the volumes' sizes.
    pub promised: ByteSize,
    /// Bytes that the volumes take on disk now.
    pub used: ByteSize,
}

/// A place volumes come from. Every verb is idempotent, and safe to call from several threads and several processes
/// on one pool at a time.
pub trait VolumeDriver: Send + Sync + std::fmt::Debug {
    /// What this driver offers here, on this pool.
    fn capabilities(&self) -> Capabilities;

    /// Makes the volume if it is not there: an empty file system of `size` at most, nothing attached.
    ///
    /// # Errors
    /// [`VolumeError::SizeDiffers`] if it is there with another size, [`VolumeError::NoSpace`] if the pool cannot
    /// promise that much, [`VolumeError::InvalidSize`].
    fn ensure(&self, id: &VolumeId, size: ByteSize) -> Result<VolumeReport, VolumeError>;

    /// Removes the volume and all that is on it, for good. An absent one is fine.
    ///
    /// # Errors
    /// [`VolumeError::InUse`] while it is attached.
    fn destroy(&self, id: &VolumeId) -> Result<(), VolumeError>;

    /// All volumes, in id order.
    ///
    /// # Errors
    /// Only when the pool itself cannot be read.
    fn list(&self) -> Result<Vec<VolumeReport>, VolumeError>;

    /// Mounts the volume for `holder` and gives the directory. Again for the same holder gives the same directory.
    /// After an unclean end the file system is checked and repaired first, which can take minutes.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::InUse`] if another holder has it, [`VolumeError::Damaged`] if
    /// it cannot be repaired.
    fn attach(&self, id: &VolumeId, holder: &MachineId) -> Result<PathBuf, VolumeError>;

    /// Takes the volume from `holder`: unmounts it and frees its device. Fine if `holder` does not have it, whoever
    /// else may.
    ///
    /// # Errors
    /// [`VolumeError::Busy`] while files on it are open or another mount of it is alive; it then stays attached.
    fn detach(&self, id: &VolumeId, holder: &MachineId) -> Result<(), VolumeError>;

    /// The pool's accounts.
    ///
    /// # Errors
    /// Only when the pool itself cannot be read.
    fn pool(&self) -> Result<PoolReport, VolumeError>;
}
