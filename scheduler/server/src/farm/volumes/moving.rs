//! Moves of volumes between hosts: a copy is made on the other host from a snapshot, as it is on the disk; one transaction
//! says that it is the volume from now on; then the old copy goes. Whoever comes back after a crash reads from the record
//! which of the two copies counts.
//!
//! Must not know: what a stream looks like, when anything is to be done ([`slipway_core::volume`] does).

use super::error::told;
use super::transfer::{ended, outcome, refused};
use super::transfers::Upload;
use super::{VolumeError, taken_now};
use crate::farm::host::{HostLink, chain};
use crate::farm::{Farm, FarmError, Shared, entropy};
use crate::limits::{IMPORT_HOST_WAIT_MAX, TRANSFER_BYTES};
use slipway_core::id::{HostId, OrgId, SnapshotId, VolumeId};
use slipway_core::placement::{HostLoad, VolumeRequest, place_volume};
use slipway_core::volume::MoveStep;
use slipway_store::{Move, NewMove, StoreError, Volume, VolumePurpose, VolumeState, What};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

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
        let volume = shared.store.volume(org, id).await?;
        may_move(&volume)?;
        let to = shared.place_move(&volume, asked).await?;
        let link = shared.link(&volume.host).ok_or(VolumeError::HostAway)?;
        let new = NewMove {
            to,
            snapshot: SnapshotId::from_entropy(entropy()?),
            reserve: taken_now(&link, id).await?,
        };
        let begun = match shared.store.begin_move(org, id, &new).await {
            Err(StoreError::InUse(_)) => return Err(VolumeError::Attached.into()),
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
    let sending = |moving: &Move| moving.step == MoveStep::Sending;
    match volume.state {
        _ if volume.purpose != VolumePurpose::Data => Err(VolumeError::Attached),
        VolumeState::Ready if volume.destroy_at.is_some() => Err(VolumeError::ToBeDestroyed),
        VolumeState::Ready if volume.made < volume.size => {
            Err(VolumeError::Extending { to: volume.size })
        }
        // Asked for once more, or what the last one has left is still to be cleared away.
        VolumeState::Ready if volume.moving.as_ref().is_some_and(sending) => Ok(()),
        VolumeState::Ready if volume.moving.is_some() => Err(VolumeError::OtherCopy),
        VolumeState::Ready => Ok(()),
        VolumeState::Planned if volume.import.is_some() => Err(VolumeError::Importing),
        state @ (VolumeState::Planned | VolumeState::Aside | VolumeState::Condemned) => {
            Err(VolumeError::State(state))
        }
    }
}

/// Trying again changes nothing.
fn is_for_good(error: &FarmError) -> bool {
    matches!(
        error,
        FarmError::Volume(
            VolumeError::NoSpace
                | VolumeError::Unsupported(_)
                | VolumeError::Missing
                | VolumeError::NotTaken
        )
    )
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
                sent = shared.send_in_turn(&org, &id, &upload) => sent,
                () = shared.cancel.cancelled() => return,
            };
            drop(upload);
            shared.after_sending(&org, &id, sent).await;
        });
    }

    async fn send_in_turn(
        &self,
        org: &OrgId,
        id: &VolumeId,
        upload: &Upload,
    ) -> Result<(), FarmError> {
        let turn = async {
            let volume = self.store.volume(org, id).await?;
            let copy = volume.moving.as_ref().map(|moving| &moving.copy);
            for host in [Some(&volume.host), copy].into_iter().flatten() {
                let link = self.link(host).ok_or(FarmError::HostAway)?;
                // The sender lives as long as the link.
                let _ = link.reachable.subscribe().wait_for(|there| *there).await;
            }
            self.moves.acquire().await.map_err(|_| FarmError::Closed)
        };
        let _turn = tokio::select! {
            turn = turn => turn?,
            () = upload.asked_to_end().cancelled() => return Ok(()),
        };
        let volume = self.store.volume(org, id).await?;
        match &volume.moving {
            Some(moving) if moving.step == MoveStep::Sending => {
                self.send_copy(&volume, moving, upload).await
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Makes the copy, and says that it is the volume from now on.
    async fn send_copy(
        &self,
        volume: &Volume,
        moving: &Move,
        upload: &Upload,
    ) -> Result<(), FarmError> {
        let (org, id) = (&volume.org, &volume.id);
        let source = self.reachable(&volume.host)?;
        let target = self.reachable(&moving.copy)?;
        let kept = {
            let _held = self.hold_unless_ended(id, upload).await?;
            let client = &source.client;
            client
                .create_snapshot(id.clone(), moving.snapshot.clone())
                .await
        };
        kept.map_err(refused)?;
        let into = target.client.import_volume(id.clone(), volume.size.0, true);
        let (offset, into) = into.await.map_err(refused)?;
        let out = &source.client;
        let out = out.export_snapshot(moving.snapshot.clone(), offset, true);
        let out = match out.await {
            Ok(out) => out,
            Err(error) => {
                ended(into).await;
                return Err(refused(error));
            }
        };
        tracing::info!(%org, volume = %id, offset, "copy is sent to another host");
        let into = self.copy(out, into, upload).await?;
        let report = tokio::select! {
            report = outcome(into) => report?,
            () = upload.asked_to_end().cancelled() => return Err(VolumeError::NotMoving.into()),
        };
        if report.size_bytes < volume.size.0 {
            return Err(VolumeError::NotTaken.into());
        }
        match self.store.finish_move(org, id).await {
            // It was given up at the last moment.
            Err(StoreError::Changed(_)) => return Err(VolumeError::NotMoving.into()),
            finished => finished?,
        };
        tracing::info!(%org, volume = %id, from = %volume.host, to = %moving.copy, "volume has moved");
        Ok(())
    }

    fn reachable(&self, host: &HostId) -> Result<Arc<HostLink>, FarmError> {
        let link = self.link(host).filter(|link| *link.reachable.borrow());
        link.ok_or(FarmError::HostAway)
    }

    /// Copies from one host to the other, as fast as both go.
    async fn copy(
        &self,
        mut from: UnixStream,
        mut to: UnixStream,
        upload: &Upload,
    ) -> Result<UnixStream, FarmError> {
        let mut buffer = vec![0; TRANSFER_BYTES];
        loop {
            let read = tokio::select! {
                read = timeout(IMPORT_HOST_WAIT_MAX, from.read(&mut buffer)) => read,
                () = upload.asked_to_end().cancelled() => {
                    ended(to).await;
                    return Err(VolumeError::NotMoving.into());
                }
            };
            // Whether that is the end of it all, the host that takes it says.
            let Ok(Ok(length @ 1..)) = read else {
                return Ok(to);
            };
            let written = timeout(IMPORT_HOST_WAIT_MAX, to.write_all(&buffer[..length]));
            if !matches!(written.await, Ok(Ok(()))) {
                return Ok(to);
            }
        }
    }

    /// What becomes of a move whose sending has ended.
    async fn after_sending(&self, org: &OrgId, id: &VolumeId, sent: Result<(), FarmError>) {
        let refusal = match sent {
            Ok(()) | Err(FarmError::Volume(VolumeError::NotMoving)) => None,
            Err(error) => {
                tracing::warn!(%org, volume = %id, why = chain(&error), "copy not sent");
                let notice = format!("move: {}", told(&error));
                self.tell(org, id, Some(&notice)).await;
                if !is_for_good(&error) {
                    return;
                }
                Some(error)
            }
        };
        if refusal.is_some()
            && let Err(error) = self.store.give_up_move(org, id).await
        {
            tracing::warn!(%org, volume = %id, why = chain(&error), "move not given up");
            return;
        }
        // What cannot be cleared away now is by the next look.
        if let Err(error) = self.clear_now(org, id).await {
            tracing::warn!(%org, volume = %id, why = chain(&error), "copy not cleared away");
        }
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
        let copy = self.reachable(&moving.copy)?;
        copy.client.destroy_volume(id.clone()).await?;
        let source = self.reachable(&moving.source)?;
        source
            .client
            .delete_snapshot(moving.snapshot.clone())
            .await?;
        self.store.forget_move(org, id).await?;
        tracing::info!(%org, volume = %id, "copy that a move has left is destroyed");
        Ok(())
    }
}
