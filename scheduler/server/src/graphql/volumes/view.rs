//! Volumes and snapshots, as shown.

use super::super::Result;
use super::super::access::Access;
use super::super::limits::GRAPHQL_GUEST_WEIGHT;
use super::super::scalar::{DateTime, Long};
use super::super::view::{Builder, host};
use crate::farm::BuilderView;
use crate::transfer_path::Transfer;
use async_graphql::{Context, Enum, ID, Object};
use slipway_core::host_api::VolumeSource;
use slipway_core::id::VolumeId;
use slipway_core::volume::{AutoExtend, MoveStep};
use slipway_store as store;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// What is known of a volume.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
enum VolumeState {
    /// Promised, perhaps not made yet.
    Creating,
    /// The same, of one that gets what a snapshot kept.
    Restoring,
    /// The same, of one that gets what another volume holds.
    Forking,
    /// Promised; its contents are sent to `importPath`.
    Importing,
    /// Made.
    Created,
    /// Made, and a copy is being made on another host, `movingTo`, where it will be.
    Moving,
    /// A move of it is halted: the host that should have it does not have it, and the copy on the other one is kept until
    /// `keepVolumeCopy` says which of the two it is.
    Halted,
    /// Made, and still to be made larger.
    Extending,
    /// Replaced because its builder would not start; kept for a look.
    Aside,
    /// To be destroyed at `destroyAt`, unless it is restored before.
    PendingDestroy,
    /// Being destroyed.
    Destroying,
}

/// What a volume is for.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "store::VolumePurpose")]
enum VolumePurpose {
    /// The cache of a builder.
    Cache,
    /// The org's own data.
    Data,
}

/// What is known of a snapshot.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
enum SnapshotState {
    /// Promised, perhaps not made yet.
    Creating,
    /// Made.
    Created,
    /// Being deleted.
    Deleting,
}

/// What hosts say of the space that volumes take, asked once for all that are shown together.
type Used = Arc<OnceCell<HashMap<VolumeId, u64>>>;

/// A persistent disk.
pub(in crate::graphql) struct Volume {
    row: store::Volume,
    used: Used,
}

impl From<store::Volume> for Volume {
    fn from(row: store::Volume) -> Self {
        let used = Used::default();
        Self { row, used }
    }
}

impl Volume {
    /// Volumes of one org that are shown together.
    pub(super) fn all(rows: Vec<store::Volume>) -> Vec<Self> {
        let used = Used::default();
        let with = |row| Self {
            row,
            used: Arc::clone(&used),
        };
        rows.into_iter().map(with).collect()
    }

    fn builder(&self, context: &Context<'_>) -> Result<Option<BuilderView>> {
        let builders = Access::of(context)?.parts.farm.builders(&self.row.org);
        Ok(builders.into_iter().find(|view| view.volume == self.row.id))
    }

    fn sending(&self) -> Option<&store::Move> {
        let moving = self.row.moving.as_ref();
        moving.filter(|moving| moving.is_under_way())
    }

    fn is_halted(&self) -> bool {
        let moving = self.row.moving.as_ref();
        moving.is_some_and(|moving| moving.step == MoveStep::Halted)
    }

    fn importing(&self) -> Option<&store::Import> {
        let planned = self.row.state == store::VolumeState::Planned;
        self.row.import.as_ref().filter(|_| planned)
    }

    fn auto_extend(&self) -> Option<&AutoExtend> {
        self.row.policy.auto_extend.as_ref()
    }
}

/// A persistent disk.
#[Object]
impl Volume {
    /// Its id.
    async fn id(&self) -> ID {
        ID(self.row.id.to_string())
    }

    /// Its name for people; several may have the same.
    async fn name(&self) -> &str {
        &self.row.name
    }

    /// What it is for.
    async fn purpose(&self) -> VolumePurpose {
        self.row.purpose.into()
    }

    /// What is known of it.
    async fn state(&self) -> VolumeState {
        match self.row.state {
            store::VolumeState::Deleting => VolumeState::Destroying,
            _ if self.row.destroy_at.is_some() => VolumeState::PendingDestroy,
            store::VolumeState::Aside => VolumeState::Aside,
            store::VolumeState::Ready if self.sending().is_some() => VolumeState::Moving,
            store::VolumeState::Ready if self.is_halted() => VolumeState::Halted,
            store::VolumeState::Ready if self.row.made < self.row.size => VolumeState::Extending,
            store::VolumeState::Ready => VolumeState::Created,
            store::VolumeState::Planned if self.row.import.is_some() => VolumeState::Importing,
            store::VolumeState::Planned => match self.row.source {
                Some(VolumeSource::Snapshot { .. }) => VolumeState::Restoring,
                Some(VolumeSource::Volume { .. }) => VolumeState::Forking,
                None => VolumeState::Creating,
            },
        }
    }

    /// Region of the host it is on.
    async fn region(&self, context: &Context<'_>) -> Result<Option<String>> {
        let found = host(context, &self.row.host).await?;
        Ok(found.map(|host| host.region))
    }

    /// Name of the host it is on: volumes with the same one are lost together.
    async fn zone(&self, context: &Context<'_>) -> Result<Option<String>> {
        let found = host(context, &self.row.host).await?;
        Ok(found.map(|host| host.name))
    }

    /// Name of the host that it is being moved to; absent if it is not, or has come there.
    async fn moving_to(&self, context: &Context<'_>) -> Result<Option<String>> {
        let Some(moving) = self.sending() else {
            return Ok(None);
        };
        let found = host(context, &moving.copy).await?;
        Ok(found.map(|host| host.name))
    }

    /// Hard cap.
    async fn size_bytes(&self) -> Long {
        Long(self.row.size.0)
    }

    /// Bytes in use, as the builder that runs on it says, else bytes taken on its host's disk; absent if neither can be asked.
    #[graphql(complexity = "GRAPHQL_GUEST_WEIGHT")]
    async fn used_bytes(&self, context: &Context<'_>) -> Result<Option<Long>> {
        if let Some(view) = self.builder(context)?
            && let Some(used) = Builder::from(view).used(context).await
        {
            return Ok(Some(Long(used)));
        }
        let farm = &Access::of(context)?.parts.farm;
        let used = self.used.get_or_init(|| farm.volume_use(&self.row.org));
        Ok(used.await.get(&self.row.id).copied().map(Long))
    }

    /// Whether it is encrypted on disk; absent until its host has said so.
    async fn encrypted(&self) -> Option<bool> {
        self.row.encrypted
    }

    /// Id of the builder that has it.
    async fn attached_to(&self, context: &Context<'_>) -> Result<Option<ID>> {
        Ok(self
            .builder(context)?
            .map(|view| ID(view.machine.to_string())))
    }

    /// Id of the snapshot or the volume that it was made from; that may be gone.
    async fn source(&self) -> Option<ID> {
        self.row.source.as_ref().map(|source| match source {
            VolumeSource::Snapshot { snapshot } => ID(snapshot.to_string()),
            VolumeSource::Volume { volume } => ID(volume.to_string()),
        })
    }

    /// Where its contents are sent, below the API's address, as long as they are not there: `POST` says from which byte on, `PUT`
    /// takes a stream that begins there. Both need the role admin.
    async fn import_path(&self) -> Option<String> {
        let waits = self.importing();
        waits.map(|_| Transfer::import_path(&self.row.id))
    }

    /// The checksum of the whole stream, in hexadecimal, as its sender has said, as long as the contents are not there.
    async fn import_digest(&self) -> Option<&str> {
        self.importing()?.digest.as_deref()
    }

    /// From then on nobody waits for its contents any longer, and it goes; absent once they are there. Whatever is sent puts
    /// it off.
    async fn import_until(&self) -> Option<DateTime> {
        self.importing().map(|import| DateTime(import.until))
    }

    /// New snapshots of it are kept for so many days.
    async fn snapshot_retention_days(&self) -> u32 {
        self.row.policy.snapshot_retention_days
    }

    /// A snapshot of it is made every day.
    async fn scheduled_snapshots(&self) -> bool {
        self.row.policy.scheduled_snapshots
    }

    /// It grows by itself from so many percent in use on; absent: it does not.
    async fn auto_extend_threshold_percent(&self) -> Option<u32> {
        self.auto_extend().map(|auto| auto.threshold_percent)
    }

    /// By so much at a time.
    async fn auto_extend_increment_bytes(&self) -> Option<Long> {
        self.auto_extend().map(|auto| Long(auto.increment.0))
    }

    /// Up to this size.
    async fn auto_extend_limit_bytes(&self) -> Option<Long> {
        self.auto_extend().map(|auto| Long(auto.limit.0))
    }

    /// When it is destroyed, unless it is restored before.
    async fn destroy_at(&self) -> Option<DateTime> {
        self.row.destroy_at.map(DateTime)
    }

    /// Something its owner should know, such as what could not be done yet.
    async fn notice(&self) -> Option<&str> {
        self.row.notice.as_deref()
    }

    /// When it was promised.
    async fn created_at(&self) -> DateTime {
        DateTime(self.row.created_at)
    }
}

/// What a volume held at one moment.
pub(in crate::graphql) struct VolumeSnapshot(pub(super) store::Snapshot);

/// What a volume held at one moment.
#[Object]
impl VolumeSnapshot {
    /// Its id.
    async fn id(&self) -> ID {
        ID(self.0.id.to_string())
    }

    /// Id of the volume; that may be gone.
    async fn volume(&self) -> ID {
        ID(self.0.volume.to_string())
    }

    /// What the volume is, or was, called.
    async fn volume_name(&self) -> &str {
        &self.0.volume_name
    }

    /// What is known of it.
    async fn state(&self) -> SnapshotState {
        match self.0.state {
            store::SnapshotState::Planned => SnapshotState::Creating,
            store::SnapshotState::Ready => SnapshotState::Created,
            store::SnapshotState::Deleting => SnapshotState::Deleting,
        }
    }

    /// The volume's hard cap at that time: a volume made from it has at least this.
    async fn volume_size_bytes(&self) -> Long {
        Long(self.0.size.0)
    }

    /// What it counts for the pool.
    async fn stored_bytes(&self) -> Long {
        Long(self.0.stored.0)
    }

    /// Where its contents can be read, below the API's address, with `?offset=` from a byte of them on, in clear even if the
    /// volume is encrypted; absent until it is made. Needs the role admin.
    async fn export_path(&self) -> Option<String> {
        let made = self.0.state == store::SnapshotState::Ready;
        made.then(|| Transfer::export_path(&self.0.id))
    }

    /// Nobody asked for it but its volume's schedule.
    async fn scheduled(&self) -> bool {
        self.0.scheduled
    }

    /// When it was made.
    async fn created_at(&self) -> DateTime {
        DateTime(self.0.created_at)
    }

    /// It is not kept from then on.
    async fn expires_at(&self) -> DateTime {
        DateTime(self.0.expires_at)
    }
}
