//! The sending of a moving volume: from the one host's descriptor to the other's.
//!
//! Must not know: what becomes of a move that fails.

use super::taken_now;
use super::transfer::{ended, outcome, refused};
use super::under_way::Upload;
use crate::entropy::entropy;
use crate::farm::builder::Builder;
use crate::farm::host::HostLink;
use crate::farm::volume_error::VolumeError;
use crate::farm::{FarmError, Shared};
use crate::limits::{
    CATCH_UP_HOSTS_WAIT_MAX, IMPORT_HOST_WAIT_MAX, STAND_STILL_LOOK_EVERY, TRANSFER_BYTES,
};
use slipway_core::host_api::{ImportPart, VolumeReport};
use slipway_core::id::{HostId, OrgId, SnapshotId, VolumeId};
use slipway_store::{Move, StoreError, Volume, VolumeState};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

impl Shared {
    /// Makes the copy of a volume that is being moved, and says that it is the volume from now on.
    pub(super) async fn send(
        &self,
        org: &OrgId,
        id: &VolumeId,
        upload: &Upload,
    ) -> Result<(), FarmError> {
        let Some((volume, moving)) = self.still_moving(org, id).await? else {
            return Ok(());
        };
        self.both_answer(&volume, &moving, upload).await?;
        let report = match (self.builder_of(id), &moving.second) {
            (_, Some(second)) => self.catch_up(&volume, &moving, second, upload).await?,
            (None, None) => {
                let _turn = self.turn(upload).await?;
                self.send_part(&volume, &moving, ImportPart::Whole, upload)
                    .await?
            }
            (Some(builder), None) => {
                self.send_base(&volume, &moving, upload).await?;
                self.until_it_stands_still(&builder, &volume, upload)
                    .await?;
                let source = self.reachable(&volume.host)?;
                let now = self.store.volume(org, id).await?;
                let (second, reserve) = (
                    SnapshotId::from_entropy(entropy()?),
                    taken_now(&source, &now).await?,
                );
                let named = self.store.catch_up_move(org, id, &second, reserve).await;
                // One that was named before stays.
                let moving = given_up(named)?.moving.ok_or(VolumeError::NotMoving)?;
                let second = moving.second.as_ref().unwrap_or(&second);
                self.catch_up(&volume, &moving, second, upload).await?
            }
        };
        if report.is_none_or(|report| report.size_bytes < volume.size.0) {
            return Err(VolumeError::NotTaken.into());
        }
        given_up(self.store.finish_move(org, id).await)?;
        tracing::info!(%org, volume = %id, from = %volume.host, to = %moving.copy, "volume has moved");
        Ok(())
    }

    async fn still_moving(
        &self,
        org: &OrgId,
        id: &VolumeId,
    ) -> Result<Option<(Volume, Move)>, FarmError> {
        let volume = self.store.volume(org, id).await?;
        let moving = volume.moving.clone().filter(Move::is_under_way);
        Ok(moving.map(|moving| (volume, moving)))
    }

    /// Waits until both hosts answer; not for long if a builder waits for that.
    async fn both_answer(
        &self,
        volume: &Volume,
        moving: &Move,
        upload: &Upload,
    ) -> Result<(), FarmError> {
        let both = async {
            for host in [&volume.host, &moving.copy] {
                let link = self.link(host).ok_or(FarmError::HostAway)?;
                // The sender lives as long as the link.
                let _ = link.reachable.subscribe().wait_for(|there| *there).await;
            }
            Ok(())
        };
        let bounded = async {
            match &moving.second {
                None => both.await,
                Some(_) => timeout(CATCH_UP_HOSTS_WAIT_MAX, both)
                    .await
                    .unwrap_or(Err(FarmError::HostAway)),
            }
        };
        tokio::select! {
            both = bounded => both,
            () = upload.asked_to_end().cancelled() => Err(VolumeError::NotMoving.into()),
        }
    }

    async fn turn(&self, upload: &Upload) -> Result<tokio::sync::SemaphorePermit<'_>, FarmError> {
        tokio::select! {
            turn = self.moves.acquire() => turn.map_err(|_| FarmError::Closed),
            () = upload.asked_to_end().cancelled() => Err(VolumeError::NotMoving.into()),
        }
    }

    async fn send_base(
        &self,
        volume: &Volume,
        moving: &Move,
        upload: &Upload,
    ) -> Result<(), FarmError> {
        let _turn = self.turn(upload).await?;
        let snapshot = moving.snapshot.clone();
        let part = ImportPart::Base { snapshot };
        self.send_part(volume, moving, part, upload).await.map(drop)
    }

    /// Waits until nothing of the builder lives, and keeps it from starting.
    async fn until_it_stands_still(
        &self,
        builder: &Builder,
        volume: &Volume,
        upload: &Upload,
    ) -> Result<(), FarmError> {
        let mut told = false;
        loop {
            let mut changes = builder.changes();
            if builder.stand_still(&volume.id) {
                return Ok(());
            }
            if builder.lock().machine.volume != volume.id {
                // It was given another one, and this one was set aside.
                return Err(VolumeError::State(VolumeState::Aside).into());
            }
            if !std::mem::replace(&mut told, true) {
                let notice = "move: the rest waits until the builder has ended by itself, or by `slipway builders stop`";
                self.tell(&volume.org, &volume.id, Some(notice)).await;
            }
            tokio::select! {
                _ = changes.changed() => {}
                // What the host says is no change.
                () = tokio::time::sleep(STAND_STILL_LOOK_EVERY) => {}
                () = upload.asked_to_end().cancelled() => {
                    return Err(VolumeError::NotMoving.into());
                }
            }
        }
    }

    async fn catch_up(
        &self,
        volume: &Volume,
        moving: &Move,
        second: &SnapshotId,
        upload: &Upload,
    ) -> Result<Option<VolumeReport>, FarmError> {
        // After a start of the control plane it stands still by the record.
        if let Some(builder) = self.builder_of(&volume.id)
            && !builder.stand_still(&volume.id)
        {
            return Err(VolumeError::Attached.into());
        }
        let part = ImportPart::Difference {
            base: moving.snapshot.clone(),
            snapshot: second.clone(),
        };
        self.send_part(volume, moving, part, upload).await
    }

    /// Sends what a snapshot has, or what a second one has more. Gives the volume, if it is one with that.
    async fn send_part(
        &self,
        volume: &Volume,
        moving: &Move,
        part: ImportPart,
        upload: &Upload,
    ) -> Result<Option<VolumeReport>, FarmError> {
        let id = &volume.id;
        let source = self.reachable(&volume.host)?;
        let target = self.reachable(&moving.copy)?;
        let from = match &part {
            ImportPart::Whole | ImportPart::Base { .. } => &moving.snapshot,
            ImportPart::Difference { snapshot, .. } => snapshot,
        };
        let (offset, into) = {
            let _held = self.hold_unless_ended(id, upload).await?;
            // With the number that it has now: a snapshot that was deleted meanwhile has raised it.
            let now = self.still_moving(&volume.org, id).await?;
            let (now, _) = now.ok_or(VolumeError::NotMoving)?;
            let client = &source.client;
            let kept = client.create_snapshot(now.fenced(), from.clone()).await;
            kept.map_err(refused)?;
            let (client, size) = (&target.client, volume.size.0);
            let into = client.import_volume(now.fenced(), size, true, part.clone());
            into.await.map_err(refused)?
        };
        let out = match &part {
            ImportPart::Whole | ImportPart::Base { .. } => {
                let client = &source.client;
                client.export_snapshot(from.clone(), offset, true).await
            }
            ImportPart::Difference { base, snapshot } => {
                let client = &source.client;
                client
                    .export_difference(base.clone(), snapshot.clone())
                    .await
            }
        };
        let out = match out {
            Ok(out) => out,
            Err(error) => {
                ended(into).await;
                return Err(refused(error));
            }
        };
        tracing::info!(org = %volume.org, volume = %id, snapshot = %from, offset, "copy is sent to another host");
        let into = copy(out, into, upload).await?;
        tokio::select! {
            outcome = outcome(into) => outcome,
            () = upload.asked_to_end().cancelled() => Err(VolumeError::NotMoving.into()),
        }
    }

    pub(super) fn reachable(&self, host: &HostId) -> Result<Arc<HostLink>, FarmError> {
        let link = self.link(host).filter(|link| *link.reachable.borrow());
        link.ok_or(FarmError::HostAway)
    }
}

/// A record that was made; one that could not be because the move was given up at the last moment.
fn given_up(recorded: Result<Volume, StoreError>) -> Result<Volume, FarmError> {
    match recorded {
        Err(StoreError::Changed(_)) => Err(VolumeError::NotMoving.into()),
        recorded => Ok(recorded?),
    }
}

/// Copies from one host to the other, as fast as both go.
async fn copy(
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
