//! Moves of volumes between hosts: a copy is made on the other host from a snapshot, as it is on the disk; one transaction
//! says that it is the volume from now on; then the old copy goes. Whoever comes back after a crash reads from the record
//! which of the two copies counts.
//!
//! A builder goes on working on its cache meanwhile. When it has ended, it is kept from starting until what has changed since
//! the first snapshot is sent from a second one, or that is given up.
//!
//! Must not know: what a stream looks like, when anything is to be done ([`slipway_core::volume`] does).

use super::notice::told;
use super::taken_now;
use crate::chain::chain;
use crate::entropy::entropy;
use crate::farm::builder::Builder;
use crate::farm::volume_error::VolumeError;
use crate::farm::{Farm, FarmError, Shared};
use slipway_core::id::{HostId, OrgId, SnapshotId, VolumeId};
use slipway_core::placement::{HostLoad, PlacementRequest, VolumeRequest, place, place_volume};
use slipway_core::volume::{MoveStep, OtherCopy, other_copy};
use slipway_store::{Move, NewMove, StoreError, Volume, VolumeState, What};
use std::sync::Arc;

/// Where a volume is to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskedMove {
    /// To the host of this name.
    Zone(String),
    /// To any other host of this region.
    Region(String),
}

impl Farm {
    /// Begins to move a volume of the org's own to another host. Gives it as it is then; the rest is done by itself.
    ///
    /// # Errors
    /// [`FarmError::Volume`], [`FarmError::Place`], [`StoreError::PoolFull`], or the store's.
    pub async fn move_volume(
        &self,
        org: &OrgId,
        id: &VolumeId,
        asked: &AskedMove,
    ) -> Result<Volume, FarmError> {
        let shared = &self.0;
        let volume = shared.cleared(org, id).await?;
        may_move(&volume)?;
        let to = shared.place_move(&volume, asked).await?;
        let link = shared.link(&volume.host).ok_or(VolumeError::HostAway)?;
        if shared.compare_pools(&volume.host, &to).await? == OtherCopy::TheVolume {
            return Err(VolumeError::IsThere.into());
        }
        let new = NewMove {
            to,
            snapshot: SnapshotId::from_entropy(entropy()?),
            reserve: taken_now(&link, &volume).await?,
        };
        let begun = match shared.store.begin_move(org, id, &new).await {
            Err(StoreError::Changed(_)) => return Err(VolumeError::State(volume.state).into()),
            begun => begun?,
        };
        tracing::info!(%org, volume = %id, from = %volume.host, to = %new.to, "volume is moved");
        shared.begin_sending(&begun);
        Ok(begun)
    }

    /// Gives a move up that has not come to its end.
    ///
    /// # Errors
    /// [`VolumeError::NotMoving`], or the store's.
    pub async fn cancel_move(&self, org: &OrgId, id: &VolumeId) -> Result<Volume, FarmError> {
        let volume = match self.0.store.give_up_move(org, id).await {
            Err(StoreError::Changed(_)) => return Err(VolumeError::NotMoving.into()),
            given_up => given_up?,
        };
        tracing::info!(%org, volume = %id, "move is given up");
        self.0.finish(&volume).await
    }
}

/// What can be moved: what is made, stays, and is nobody's at the moment.
fn may_move(volume: &Volume) -> Result<(), VolumeError> {
    match volume.state {
        VolumeState::Ready if volume.destroy_at.is_some() => Err(VolumeError::ToBeDestroyed),
        VolumeState::Ready if volume.made < volume.size => {
            Err(VolumeError::Extending { to: volume.size })
        }
        // Asked for once more, or what the last one has left is still to be cleared away.
        VolumeState::Ready => match volume.moving.as_ref().map(|moving| moving.step) {
            None | Some(MoveStep::Sending | MoveStep::CatchingUp) => Ok(()),
            Some(MoveStep::Clearing) => Err(VolumeError::OtherCopy),
            Some(MoveStep::Halted) => Err(VolumeError::Halted),
        },
        VolumeState::Planned if volume.import.is_some() => Err(VolumeError::Importing),
        state @ (VolumeState::Planned | VolumeState::Aside | VolumeState::Deleting) => {
            Err(VolumeError::State(state))
        }
    }
}

/// Trying again changes nothing. (What is missing may be the volume itself: [`Shared::is_halted`] has seen to that before.)
fn is_for_good(error: &FarmError) -> bool {
    matches!(
        error,
        FarmError::Volume(
            VolumeError::NoSpace
                | VolumeError::Unsupported
                | VolumeError::Missing
                | VolumeError::NotTaken
        )
    )
}

/// The host that a builder's cache moves to, and the builder with it. Its region is part of what the builder is.
fn place_cache(
    builder: &Builder,
    volume: &Volume,
    asked: &AskedMove,
    mut loads: Vec<HostLoad>,
) -> Result<HostId, FarmError> {
    let key = &builder.key;
    if matches!(asked, AskedMove::Region(region) if *region != key.region) {
        let region = key.region.clone();
        return Err(VolumeError::CacheElsewhere { region }.into());
    }
    if loads.iter().all(|load| load.host == volume.host) && !loads.is_empty() {
        return Err(VolumeError::IsThere.into());
    }
    let encrypted = volume.encrypted.unwrap_or_default();
    loads.retain(|load| load.host != volume.host && load.encrypts == encrypted);
    let (memory, isolation) = {
        let inner = builder.lock();
        (inner.next_size().memory, inner.wishes.isolation)
    };
    let request = PlacementRequest {
        region: key.region.clone(),
        arch: key.arch.clone(),
        volume: volume.size,
        memory,
        volume_host: None,
        isolation,
    };
    Ok(place(&request, &loads)?)
}

impl Shared {
    /// The host that a volume moves to.
    async fn place_move(&self, volume: &Volume, asked: &AskedMove) -> Result<HostId, FarmError> {
        let mut loads = self.loads().await?;
        let hosts = self.store.hosts().await?;
        let name = |id: &HostId| {
            let found = hosts.iter().find(|used| used.host.id == *id);
            found.map_or_else(String::new, |used| used.host.name.clone())
        };
        let encrypted = volume.encrypted.unwrap_or_default();
        if let Some(builder) = self.builder_of(&volume.id) {
            if let AskedMove::Zone(zone) = asked {
                loads.retain(|load| name(&load.host) == *zone);
            }
            return place_cache(&builder, volume, asked, loads);
        }
        let zone = match asked {
            AskedMove::Region(region) => {
                let there = |load: &HostLoad| load.region == *region;
                let known = loads.iter().any(there);
                loads.retain(|load| load.host != volume.host);
                if known && !loads.iter().any(there) {
                    let region = region.clone();
                    return Err(VolumeError::NoOtherHost { region }.into());
                }
                let request = VolumeRequest {
                    region: region.clone(),
                    size: volume.size,
                    encrypted: Some(encrypted),
                    taken: vec![],
                    unique: false,
                };
                return Ok(place_volume(&request, &loads)?);
            }
            AskedMove::Zone(zone) => zone,
        };
        let Some(there) = loads.iter().find(|load| name(&load.host) == *zone) else {
            let mut known: Vec<String> = loads.iter().map(|load| name(&load.host)).collect();
            known.sort();
            return Err(VolumeError::NoSuchZone {
                zone: zone.clone(),
                known: known.join(", "),
            }
            .into());
        };
        if there.host == volume.host {
            return Err(VolumeError::IsThere.into());
        }
        if !there.reachable {
            return Err(VolumeError::HostAway.into());
        }
        if there.encrypts != encrypted {
            let encrypts = there.encrypts;
            return Err(VolumeError::MoveEncryption { encrypts }.into());
        }
        Ok(there.host.clone())
    }

    /// Has the copy of a volume made, unless somebody is at it.
    pub(super) fn begin_sending(self: &Arc<Self>, volume: &Volume) {
        let Ok(upload) = self.transfers.begin_upload(&volume.id) else {
            return;
        };
        let (shared, org, id) = (Arc::clone(self), volume.org.clone(), volume.id.clone());
        self.tasks.spawn(async move {
            let sent = tokio::select! {
                sent = shared.send(&org, &id, &upload) => sent,
                () = shared.cancel.cancelled() => return,
            };
            drop(upload);
            shared.after_sending(&org, &id, sent).await;
        });
    }

    /// What becomes of a move whose sending has ended.
    async fn after_sending(&self, org: &OrgId, id: &VolumeId, sent: Result<(), FarmError>) {
        if let Err(error) = &sent
            && !matches!(error, FarmError::Volume(VolumeError::NotMoving))
        {
            tracing::warn!(%org, volume = %id, why = ?chain(error), "copy not sent");
            let notice = format!("move: {}", told(error));
            self.tell(org, id, Some(&notice)).await;
            match self.is_halted(org, id, error).await {
                Ok(false) => {}
                Ok(true) => return self.release(org, id).await,
                Err(error) => {
                    tracing::warn!(%org, volume = %id, why = ?chain(&error), "move stays as it is");
                    return;
                }
            }
            match self.is_given_up(org, id, error).await {
                Ok(true) => {}
                Ok(false) => return self.release(org, id).await,
                Err(error) => {
                    tracing::warn!(%org, volume = %id, why = ?chain(&error), "move not given up");
                    return;
                }
            }
        }
        self.release(org, id).await;
        // What cannot be cleared away now is by the next look.
        if let Err(error) = self.clear_now(org, id).await {
            tracing::warn!(%org, volume = %id, why = ?chain(&error), "copy not cleared away");
        }
    }

    /// Halts a move of whose source the host says that it is missing. Gives whether it is.
    async fn is_halted(
        &self,
        org: &OrgId,
        id: &VolumeId,
        error: &FarmError,
    ) -> Result<bool, FarmError> {
        if !matches!(error, FarmError::Volume(VolumeError::Missing)) {
            return Ok(false);
        }
        let _held = self.volume_locks.hold(id).await;
        let volume = self.store.volume(org, id).await?;
        if volume.moving.is_none() || self.has_copy(&volume.host, &volume).await? {
            return Ok(false);
        }
        self.halt(&volume).await?;
        Ok(true)
    }

    /// Gives a move up whose error trying again does not change, or that keeps a builder from its work. Gives whether it is.
    async fn is_given_up(
        &self,
        org: &OrgId,
        id: &VolumeId,
        error: &FarmError,
    ) -> Result<bool, StoreError> {
        let volume = self.store.volume(org, id).await?;
        let catching_up = |moving: &Move| moving.step == MoveStep::CatchingUp;
        if !is_for_good(error) && !volume.moving.as_ref().is_some_and(catching_up) {
            return Ok(false);
        }
        match self.store.give_up_move(org, id).await {
            // Somebody was faster, or it had come to its end.
            Ok(_) | Err(StoreError::Changed(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Tells the builder of a volume where it is, unless that is still to be decided.
    pub(super) async fn release(&self, org: &OrgId, id: &VolumeId) {
        for builder in self.builders.waiting_for(id) {
            if let Err(error) = self.release_one(&builder, org, id).await {
                tracing::warn!(%org, volume = %id, why = ?chain(&error), "builder not told where it is");
            }
        }
    }

    async fn release_one(
        &self,
        builder: &Arc<Builder>,
        org: &OrgId,
        id: &VolumeId,
    ) -> Result<(), FarmError> {
        let volume = self.store.volume(org, id).await?;
        let catching_up = |moving: &Move| moving.step == MoveStep::CatchingUp;
        if volume.moving.as_ref().is_some_and(catching_up) {
            return Ok(());
        }
        let machine = builder.view().machine;
        let machine = self.store.machine(org, &machine).await?;
        let link = self.link(&volume.host).ok_or(FarmError::HostAway)?;
        // It stays where it is, too, if it was given another volume meanwhile.
        if machine.volume != *id || Arc::ptr_eq(&builder.host(), &link) {
            builder.go_on();
        } else {
            self.builders.gets_host(builder, &link, || {
                builder.is_on(&volume.host, &link, machine.generation);
            });
        }
        Ok(())
    }

    /// Clears away what a move has left, and leaves what its owner was told.
    async fn clear_now(&self, org: &OrgId, id: &VolumeId) -> Result<(), FarmError> {
        let _held = self.volume_locks.hold(id).await;
        let volume = self.store.volume(org, id).await?;
        match &volume.moving {
            Some(moving) if moving.step == MoveStep::Clearing => self.clear_move(&volume).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Asks both hosts now: what is remembered of them may be older than a change of the settings.
    async fn compare_pools(&self, named: &HostId, copy: &HostId) -> Result<OtherCopy, FarmError> {
        let (named, copy) = (self.reachable(named)?, self.reachable(copy)?);
        let (named, copy) = (named.client.info().await?, copy.client.info().await?);
        Ok(other_copy(named.pool.as_deref(), copy.pool.as_deref()))
    }

    /// Destroys the copy that the record does not name, and the snapshot.
    pub(super) async fn clear_move(&self, volume: &Volume) -> Result<(), FarmError> {
        let (org, id) = (&volume.org, &volume.id);
        let Some(moving) = &volume.moving else {
            return Ok(());
        };
        // The record says so already; this is the one place where a mistake would cost somebody's data.
        if moving.copy == volume.host || moving.step != MoveStep::Clearing {
            return Err(StoreError::Changed(What::Volume).into());
        }
        self.transfers.end_upload(id).await;
        // A record can be older than what it tells of (it was lost, or restored from a backup): the copy that it names has to be seen.
        // Of a cache that was emptied there is none. From here on that host does nothing to it that was decided before.
        let there = self.has_copy(&volume.host, volume).await?;
        if volume.made.0 > 0 && !there {
            self.halt(volume).await?;
            return Err(VolumeError::Halted.into());
        }
        self.release(org, id).await;
        match self.compare_pools(&volume.host, &moving.copy).await? {
            OtherCopy::Apart => {
                let copy = self.reachable(&moving.copy)?;
                copy.client.destroy_volume(volume.fenced()).await?;
            }
            OtherCopy::TheVolume => {
                tracing::error!(%org, volume = %id, host = %volume.host, copy = %moving.copy, "both hosts of a move are one; nothing is destroyed");
            }
            OtherCopy::Unknown => {
                tracing::warn!(%org, volume = %id, "a host does not say which pool it has, so the other copy stays until it does");
                return Err(VolumeError::HostAway.into());
            }
        }
        let source = self.reachable(&moving.source)?;
        let snapshots = [Some(&moving.snapshot), moving.second.as_ref()];
        for snapshot in snapshots.into_iter().flatten() {
            let client = &source.client;
            client
                .delete_snapshot(volume.fenced(), snapshot.clone())
                .await?;
        }
        self.store.forget_move(org, id).await?;
        tracing::info!(%org, volume = %id, "copy that a move has left is destroyed");
        Ok(())
    }
}
