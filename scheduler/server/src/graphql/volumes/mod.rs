//! Volumes and their snapshots: what may be asked and done.
//!
//! To see them takes the role read, to change anything the role admin, both for the whole org.

mod input;
#[cfg(test)]
mod tests;
mod view;

use super::access::Access;
use super::ids::parse_id;
use super::limits::GRAPHQL_LIST_WEIGHT;
use super::scalar::Long;
use super::{Refused, Result};
use crate::farm::AskedVolume;
use async_graphql::{Context, ID, Object};
use input::{CreateVolumeInput, ForkVolumeInput, ImportVolumeInput, UpdateVolumeInput};
use slipway_core::units::ByteSize;
use slipway_store::{Org, TokenRole};
use view::{Volume, VolumeSnapshot};

/// What may be asked about volumes.
#[derive(Default)]
pub(super) struct VolumeQuery;

/// What may be asked about volumes.
#[Object]
impl VolumeQuery {
    /// Volumes of an org, its builders' caches among them, oldest first.
    #[graphql(complexity = "GRAPHQL_LIST_WEIGHT * child_complexity")]
    async fn volumes(&self, context: &Context<'_>, org: Option<String>) -> Result<Vec<Volume>> {
        let access = Access::of(context)?;
        let org = access.enter_whole(org.as_deref(), TokenRole::Read).await?;
        let volumes = access.store().volumes(&org.id).await?;
        Ok(Volume::all(volumes))
    }

    /// One volume.
    async fn volume(&self, context: &Context<'_>, id: ID) -> Result<Volume> {
        let access = Access::of(context)?;
        let found = access.volume(&parse_id(&id)?, TokenRole::Read).await?;
        Ok(found.1.into())
    }

    /// Snapshots of a volume, which may be gone, oldest first.
    #[graphql(complexity = "GRAPHQL_LIST_WEIGHT * child_complexity")]
    async fn volume_snapshots(
        &self,
        context: &Context<'_>,
        volume: ID,
    ) -> Result<Vec<VolumeSnapshot>> {
        let access = Access::of(context)?;
        let snapshots = access.snapshots(&parse_id(&volume)?).await?;
        Ok(snapshots.into_iter().map(VolumeSnapshot).collect())
    }
}

/// What may be done about volumes.
#[derive(Default)]
pub(super) struct VolumeMutation;

/// What may be done about volumes.
#[Object]
impl VolumeMutation {
    /// Makes a volume, empty or from a snapshot. Needs the role admin, as all that changes volumes, for the whole org. What
    /// the host does not do now is recorded and done later: the volume's `state` and `notice` say so.
    async fn create_volume(
        &self,
        context: &Context<'_>,
        input: CreateVolumeInput,
    ) -> Result<Volume> {
        let org = input.org.clone();
        made(context, org.as_deref(), |org| input.asked(org)).await
    }

    /// Makes a volume that holds what another one holds now; nothing done to either shows in the other.
    async fn fork_volume(&self, context: &Context<'_>, input: ForkVolumeInput) -> Result<Volume> {
        let access = Access::of(context)?;
        let (org, from) = access
            .volume(&parse_id(&input.volume)?, TokenRole::Admin)
            .await?;
        let asked = input.asked(&from)?;
        let farm = &access.parts.farm;
        Ok(farm.create_volume(&org.id, asked).await?.into())
    }

    /// Makes a volume whose contents are sent afterwards, to its `importPath`. It counts for the pool from now on. If nothing is
    /// sent for a day, it goes.
    async fn import_volume(
        &self,
        context: &Context<'_>,
        input: ImportVolumeInput,
    ) -> Result<Volume> {
        let org = input.org.clone();
        made(context, org.as_deref(), |org| input.asked(org)).await
    }

    /// Changes what is wanted of a volume. What is left out stays.
    async fn update_volume(
        &self,
        context: &Context<'_>,
        input: UpdateVolumeInput,
    ) -> Result<Volume> {
        let access = Access::of(context)?;
        let (org, volume) = access
            .volume(&parse_id(&input.id)?, TokenRole::Admin)
            .await?;
        let farm = &access.parts.farm;
        let change = |volume: &slipway_store::Volume| input.policy(volume);
        let changed = farm.set_volume_policy::<Refused>(&org.id, &volume.id, change);
        Ok(changed.await?.into())
    }

    /// Makes a volume larger, in use or not. The size that it has is fine, a smaller one is INVALID.
    async fn extend_volume(
        &self,
        context: &Context<'_>,
        id: ID,
        size_bytes: Long,
    ) -> Result<Volume> {
        let access = Access::of(context)?;
        let (org, volume) = access.volume(&parse_id(&id)?, TokenRole::Admin).await?;
        let size = input::whole(ByteSize(size_bytes.0));
        let farm = &access.parts.farm;
        let extended = farm.extend_volume(&org.id, &volume.id, size);
        Ok(extended.await?.into())
    }

    /// Begins to move a volume to the host `zone`, or to any other one of `region`. Its `state` is MOVING until it is there, when
    /// `zone` is another; if that does not come to be, `notice` says why. A builder works on its cache meanwhile, and moves
    /// with it when it has ended. Snapshots stay where they are.
    async fn move_volume(
        &self,
        context: &Context<'_>,
        id: ID,
        zone: Option<String>,
        region: Option<String>,
    ) -> Result<Volume> {
        let access = Access::of(context)?;
        let (org, volume) = access.volume(&parse_id(&id)?, TokenRole::Admin).await?;
        let asked = input::destination(zone, region)?;
        let farm = &access.parts.farm;
        let moved = farm.move_volume(&org.id, &volume.id, &asked);
        Ok(moved.await?.into())
    }

    /// Gives the move of a volume up: it stays where it is.
    async fn cancel_volume_move(&self, context: &Context<'_>, id: ID) -> Result<Volume> {
        let access = Access::of(context)?;
        let (org, volume) = access.volume(&parse_id(&id)?, TokenRole::Admin).await?;
        let farm = &access.parts.farm;
        let stays = farm.cancel_move(&org.id, &volume.id);
        Ok(stays.await?.into())
    }

    /// Says which of its two copies a volume is, when its move is HALTED, or has left a copy on a host that does not answer: the one
    /// on the host `zone`. The other copy is destroyed. With `forgetOther`, which needs the administrator's token, a copy on a host
    /// that does not answer is only forgotten.
    async fn keep_volume_copy(
        &self,
        context: &Context<'_>,
        id: ID,
        zone: String,
        #[graphql(default)] forget_other: bool,
    ) -> Result<Volume> {
        let access = Access::of(context)?;
        let (owner, volume) = access.volume(&parse_id(&id)?, TokenRole::Admin).await?;
        if forget_other {
            access.principal.require_administrator()?;
        }
        let farm = &access.parts.farm;
        let kept = farm.keep_copy(&owner.id, &volume.id, &zone, forget_other);
        Ok(kept.await?.into())
    }

    /// Destroys a volume that no builder has: a day from now, until when `restoreVolume` keeps it and it counts for the pool,
    /// or `now`. Its snapshots stay for their time.
    async fn destroy_volume(
        &self,
        context: &Context<'_>,
        id: ID,
        #[graphql(default)] now: bool,
    ) -> Result<Volume> {
        let access = Access::of(context)?;
        let (org, volume) = access.volume(&parse_id(&id)?, TokenRole::Admin).await?;
        let farm = &access.parts.farm;
        let destroyed = farm.destroy_volume(&org.id, &volume.id, now);
        Ok(destroyed.await?.into())
    }

    /// Keeps a volume that was to be destroyed.
    async fn restore_volume(&self, context: &Context<'_>, id: ID) -> Result<Volume> {
        let access = Access::of(context)?;
        let (org, volume) = access.volume(&parse_id(&id)?, TokenRole::Admin).await?;
        let farm = &access.parts.farm;
        let restored = farm.restore_volume(&org.id, &volume.id);
        Ok(restored.await?.into())
    }

    /// Keeps what a volume holds now, as after a power cut at this moment, for the time that the volume says.
    async fn create_volume_snapshot(
        &self,
        context: &Context<'_>,
        volume: ID,
    ) -> Result<VolumeSnapshot> {
        let access = Access::of(context)?;
        let (org, volume) = access.volume(&parse_id(&volume)?, TokenRole::Admin).await?;
        let farm = &access.parts.farm;
        let made = farm.create_snapshot(&org.id, &volume.id);
        Ok(VolumeSnapshot(made.await?))
    }

    /// Deletes a snapshot, for good and at once. Volumes made from it stay.
    async fn delete_volume_snapshot(&self, context: &Context<'_>, id: ID) -> Result<bool> {
        let access = Access::of(context)?;
        let (org, snapshot) = access.snapshot(&parse_id(&id)?, TokenRole::Admin).await?;
        let farm = &access.parts.farm;
        farm.delete_snapshot(&org.id, &snapshot.id).await?;
        Ok(true)
    }
}

/// Makes a volume in an org, as `asked` says for it.
async fn made(
    context: &Context<'_>,
    org: Option<&str>,
    asked: impl FnOnce(&Org) -> Result<AskedVolume>,
) -> Result<Volume> {
    let access = Access::of(context)?;
    let org = access.enter_whole(org, TokenRole::Admin).await?;
    let asked = asked(&org)?;
    let farm = &access.parts.farm;
    Ok(farm.create_volume(&org.id, asked).await?.into())
}
