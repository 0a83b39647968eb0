//! What a pool's volumes are made of: images in a directory, or thin volumes of device-mapper.
//!
//! [`crate::pool::Pool`] does everything that is the same whatever they are made of: locks, markers, keys, file systems, the
//! order of steps and their undoing. A backing knows blocks only.
//!
//! Must not know: file systems, keys, holders.

use crate::error::VolumeError;
use slipway_core::host_api::Cloning;
use slipway_core::id::{SnapshotId, VolumeId};
use std::path::PathBuf;

/// What a backing offers on this pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traits {
    pub(crate) name: &'static str,
    pub(crate) thin: bool,
    pub(crate) discard: bool,
    pub(crate) cloning: Cloning,
    /// A file system that lies on the bare volume stands still by itself while its blocks are cloned.
    pub(crate) stills_by_itself: bool,
}

/// A volume as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// What it can hold, in bytes.
    pub(crate) size: u64,
    /// What it takes on disk, in bytes.
    pub(crate) used: u64,
    /// It is encrypted.
    pub(crate) sealed: bool,
}

/// A snapshot as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredSnapshot {
    pub(crate) snapshot: SnapshotId,
    pub(crate) volume: VolumeId,
    pub(crate) stored: Stored,
    /// In milliseconds since 1970.
    pub(crate) made_at_ms: u64,
}

/// Everything in a pool.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) volumes: Vec<(VolumeId, Stored)>,
    pub(crate) snapshots: Vec<StoredSnapshot>,
    /// Sum of what is reserved for what is not whole yet, in bytes.
    pub(crate) reserved: u64,
    /// What is not whole yet: it is being made, or was cut off while it was.
    pub(crate) unfinished: Vec<Unfinished>,
}

/// What has a device right now; some of it may not be this pool's.
#[derive(Debug, Default)]
pub(crate) struct Active {
    pub(crate) volumes: Vec<VolumeId>,
    pub(crate) snapshots: Vec<SnapshotId>,
}

/// What a look at a volume shows.
#[derive(Debug)]
pub(crate) enum Claim<H> {
    Absent,
    /// Nothing uses it, and nothing can while this is kept.
    Free(H, Stored),
    /// Its device exists.
    InUse(Stored),
}

/// A block device in use by us. Dropping it lets go of it.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    pub(crate) _open: Option<std::fs::File>,
}

/// What blocks come from.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    Volume(VolumeId),
    Snapshot(SnapshotId),
}

/// How something in making ends if it is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Making {
    /// It is cleared away at the next opening.
    Short,
    /// It is an import, which may be taken up again.
    Import,
}

/// Says whether work that holds something up may go on.
pub(crate) type MayGoOn<'a> = &'a dyn Fn() -> bool;

/// A store of blocks. Whoever calls holds the lock of each volume that is named.
pub(crate) trait Backing: Send + Sync + std::fmt::Debug {
    /// Keeps a volume from being used by another.
    type Held;

    fn traits(&self) -> Traits;

    /// What a volume of at least `size` would have.
    fn round_up(&self, size: u64) -> u64;

    /// Everything, in no order.
    fn inventory(&self) -> Result<Inventory, VolumeError>;

    /// The same, with how much may be promised and what the operator must see to, all of one moment.
    fn survey(&self) -> Result<(Inventory, State), VolumeError>;

    /// One volume, if it is there and whole.
    fn find(&self, id: &VolumeId) -> Result<Option<Stored>, VolumeError>;

    fn claim(&self, id: &VolumeId) -> Result<Claim<Self::Held>, VolumeError>;

    /// Makes the device of a claimed volume, which keeps the claim for as long as it lives. Unless `lasting` it may go by itself
    /// when its last user goes.
    fn activate(
        &self,
        id: &VolumeId,
        held: &Self::Held,
        lasting: bool,
    ) -> Result<Device, VolumeError>;

    /// The device of a volume in use.
    fn active(&self, id: &VolumeId) -> Result<Option<PathBuf>, VolumeError>;

    /// Everything whose device exists.
    fn all_active(&self) -> Result<Active, VolumeError>;

    /// Lets go of the device of a volume. Gone already is fine; if it is still used elsewhere it may stay.
    fn deactivate(&self, id: &VolumeId) -> Result<(), VolumeError>;

    /// Reserves room for a volume that is not there, empty if there is no `from`. Short, since the pool is locked.
    fn begin(
        &self,
        id: &VolumeId,
        stored: &Stored,
        making: Making,
        from: Option<&Origin>,
    ) -> Result<(), VolumeError>;

    /// Takes the blocks of `from`, which is not larger, for what was begun. Gives up when it may not go on.
    fn fill(
        &self,
        id: &VolumeId,
        stored: &Stored,
        from: &Origin,
        may_go_on: MayGoOn<'_>,
    ) -> Result<(), VolumeError>;

    fn is_begun(&self, id: &VolumeId, making: Making) -> Result<bool, VolumeError>;

    /// What was begun, as a place to write to. Something was.
    fn making(&self, id: &VolumeId, making: Making) -> Result<Device, VolumeError>;

    /// Makes what was begun whole, by one indivisible act.
    fn publish(&self, id: &VolumeId, making: Making) -> Result<(), VolumeError>;

    /// Makes names durable.
    fn settle(&self) -> Result<(), VolumeError>;

    /// Takes back what was begun in any of these ways; none is fine.
    fn abandon(&self, id: &VolumeId, makings: &[Making]) -> Result<(), VolumeError>;

    /// Removes a claimed volume.
    fn remove(&self, id: &VolumeId, held: Self::Held) -> Result<(), VolumeError>;

    /// Makes a volume larger, and its device if there is one.
    fn grow(&self, id: &VolumeId, size: u64) -> Result<(), VolumeError>;

    /// What a snapshot of this volume may take by itself.
    fn snapshot_reserve(&self, stored: &Stored) -> u64;

    /// Reserves room for a snapshot. Short, since the pool is locked.
    fn begin_snapshot(
        &self,
        volume: &VolumeId,
        stored: &Stored,
        snapshot: &SnapshotId,
    ) -> Result<(), VolumeError>;

    /// Keeps the blocks of a volume under the name that was begun. Gives up when it may not go on.
    fn fill_snapshot(
        &self,
        volume: &VolumeId,
        stored: &Stored,
        snapshot: &SnapshotId,
        may_go_on: MayGoOn<'_>,
    ) -> Result<(), VolumeError>;

    /// Makes what was filled whole, by one indivisible act.
    fn publish_snapshot(
        &self,
        volume: &VolumeId,
        stored: &Stored,
        snapshot: &SnapshotId,
    ) -> Result<(), VolumeError>;

    /// Takes back a snapshot in making; none is fine.
    fn abandon_snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError>;

    /// Removes a snapshot; none is fine.
    fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError>;

    /// A snapshot as a place to read from.
    fn open_snapshot(&self, snapshot: &StoredSnapshot) -> Result<Device, VolumeError>;

    /// Undoes [`Self::open_snapshot`].
    fn close_snapshot(&self, snapshot: &StoredSnapshot) -> Result<(), VolumeError>;

    /// What a volume is called in messages.
    fn describe(&self, id: &VolumeId) -> PathBuf;
}

/// How a backing's store is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) capacity: u64,
    /// Used bytes, where the store itself knows better than the sum.
    pub(crate) used: Option<u64>,
    /// Nothing more may be promised, whatever the sums say, and why.
    pub(crate) refuses_growth: Option<String>,
    /// The file system that it all lies on, where it lies on one.
    pub(crate) file_system: Option<FileSystem>,
    pub(crate) notices: Vec<String>,
}

/// A file system that others use as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileSystem {
    pub(crate) device: u64,
    /// Free bytes.
    pub(crate) free: u64,
    /// Bytes that others were promised of it and do not take yet.
    pub(crate) owed_to_others: u64,
}

/// Something in making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unfinished {
    Volume {
        id: VolumeId,
        making: Making,
        /// Since it was last written to.
        idle_s: u64,
    },
    Snapshot(SnapshotId, VolumeId),
}

impl Unfinished {
    /// The volume that it is, or that it is a snapshot of.
    pub(crate) fn volume(&self) -> &VolumeId {
        match self {
            Self::Volume { id, .. } | Self::Snapshot(_, id) => id,
        }
    }
}
