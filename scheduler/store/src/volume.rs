//! The records of volumes and their snapshots, as plain data.

use slipway_core::fence::{Fence, VolumeFence};
use slipway_core::host_api::VolumeSource;
use slipway_core::id::{HostId, OrgId, SnapshotId, VolumeId};
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use slipway_core::volume::{MoveStep, Stage, VolumeNow, VolumePolicy};

/// What is known of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    /// Promised; the host may not have made it yet.
    Planned,
    /// The host has made it.
    Ready,
    /// Replaced because builders would not start on it; kept for a look.
    Aside,
    /// To be destroyed by the host; still counted until it is.
    Deleting,
}

/// What a volume is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumePurpose {
    /// The cache of a builder.
    Cache,
    /// The org's own data.
    Data,
}

/// A persistent disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Whose it is.
    pub org: OrgId,
    /// Where it is.
    pub host: HostId,
    /// Raised by each decision about its copies; every verb on it carries it.
    pub fence: Fence,
    /// Its name for people; several may have the same.
    pub name: String,
    /// What it is for.
    pub purpose: VolumePurpose,
    /// Hard cap, as wanted.
    pub size: ByteSize,
    /// Hard cap, as its host has said; 0 before it is made.
    pub made: ByteSize,
    /// Whether it is encrypted on disk; absent until its host has said so.
    pub encrypted: Option<bool>,
    /// What is known of it.
    pub state: VolumeState,
    /// What it was made from; absent: nothing. That may be gone.
    pub source: Option<VolumeSource>,
    /// Its contents are still being sent; absent once they are there.
    pub import: Option<Import>,
    /// It is being moved, or a move has left something to be cleared away.
    pub moving: Option<Move>,
    /// What its owner wants of it.
    pub policy: VolumePolicy,
    /// From then on it is to go.
    pub destroy_at: Option<Timestamp>,
    /// Something its owner should know.
    pub notice: Option<String>,
    /// When it was promised.
    pub created_at: Timestamp,
}

impl Volume {
    /// What a verb carries that follows from this record.
    pub fn fenced(&self) -> VolumeFence {
        VolumeFence {
            volume: self.id.clone(),
            number: self.fence,
        }
    }

    /// What the destruction of its earlier contents carries, when it has just been emptied.
    pub fn fenced_before(&self) -> VolumeFence {
        VolumeFence {
            volume: self.id.clone(),
            number: self.fence.of_what_was_there(),
        }
    }

    /// As it is held against what is to be done; `held` if a machine has it.
    pub fn now(&self, held: bool) -> VolumeNow {
        VolumeNow {
            stage: match self.state {
                VolumeState::Planned => Stage::Planned,
                VolumeState::Ready | VolumeState::Aside => Stage::Made,
                VolumeState::Deleting => Stage::Deleting,
            },
            // One that was set aside stays as it is.
            size: match self.state {
                VolumeState::Aside => self.made,
                VolumeState::Planned | VolumeState::Ready | VolumeState::Deleting => self.size,
            },
            made: self.made,
            destroy_at: self.destroy_at,
            moving: self.moving.as_ref().map(|moving| moving.step),
            import_until: self.import.as_ref().map(|import| import.until),
            held,
        }
    }
}

/// Contents that are sent to a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// From then on nobody waits for them any longer.
    pub until: Timestamp,
    /// What the sender says the whole stream has as its checksum, in hexadecimal: so that it knows what it began to send.
    pub digest: Option<String>,
}

/// The move of a volume to another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// How far it is.
    pub step: MoveStep,
    /// Where the copy is that the volume's record does not name.
    pub copy: HostId,
    /// The snapshot that it is made from: known to its host and here alone.
    pub snapshot: SnapshotId,
    /// The one that what has changed since is sent from; of a volume that is in use alone, and from then on it is not.
    pub second: Option<SnapshotId>,
    /// The host of both: where the volume was when the move began.
    pub source: HostId,
    /// What the pool of that has promised for them.
    pub reserve: ByteSize,
}

impl Move {
    /// Its end is not decided yet.
    pub fn is_under_way(&self) -> bool {
        match self.step {
            MoveStep::Sending | MoveStep::CatchingUp => true,
            MoveStep::Clearing | MoveStep::Halted => false,
        }
    }
}

/// A move to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMove {
    /// Where to.
    pub to: HostId,
    /// The name of the snapshot that it is made from.
    pub snapshot: SnapshotId,
    /// What that will take, as far as is known.
    pub reserve: ByteSize,
}

/// A volume to promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// Its id.
    pub id: VolumeId,
    /// Where it will be. A source must be there as well.
    pub host: HostId,
    /// Its name for people.
    pub name: String,
    /// Hard cap; at least its source's.
    pub size: ByteSize,
    /// What it is made from.
    pub source: Option<VolumeSource>,
    /// Its contents will be sent; then it has no source.
    pub import: Option<Import>,
    /// What its owner wants of it.
    pub policy: VolumePolicy,
    /// Now.
    pub at: Timestamp,
}

/// What is known of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotState {
    /// Promised; the host may not have made it yet.
    Planned,
    /// The host has made it.
    Ready,
    /// To be deleted by the host; still counted until it is.
    Deleting,
}

/// What a volume held at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Whose it is.
    pub org: OrgId,
    /// Where it is.
    pub host: HostId,
    /// Of which volume; that may be gone.
    pub volume: VolumeId,
    /// No lower than the volume's number when the volume was forgotten. Of no meaning before.
    pub fence: Fence,
    /// What that is, or was, called.
    pub volume_name: String,
    /// The volume's hard cap at that time: a volume made from it has at least this.
    pub size: ByteSize,
    /// What the pool has promised for it.
    pub stored: ByteSize,
    /// What is known of it.
    pub state: SnapshotState,
    /// Nobody asked for it but its volume's schedule.
    pub scheduled: bool,
    /// It is encrypted, with the key of its volume.
    pub encrypted: bool,
    /// When it was promised.
    pub created_at: Timestamp,
    /// It is not kept from then on.
    pub expires_at: Timestamp,
}

impl Snapshot {
    /// What its deletion carries when its volume is forgotten.
    pub fn fenced(&self) -> VolumeFence {
        VolumeFence {
            volume: self.volume.clone(),
            number: self.fence,
        }
    }

    /// How far it is.
    pub fn stage(&self) -> Stage {
        match self.state {
            SnapshotState::Planned => Stage::Planned,
            SnapshotState::Ready => Stage::Made,
            SnapshotState::Deleting => Stage::Deleting,
        }
    }
}

/// A snapshot to promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Of which volume.
    pub volume: VolumeId,
    /// What it will take, as far as is known.
    pub reserve: ByteSize,
    /// Nobody asked for it but the volume's schedule.
    pub scheduled: bool,
    /// Now.
    pub at: Timestamp,
    /// It is not kept from then on.
    pub expires_at: Timestamp,
}
