//! Brings one volume, or one snapshot, in line with what is recorded of it. Whoever asked waits for it here, and after a
//! crash the keeper finds the same record and does the same.
//!
//! A host's refusal for good is undone in the record: a volume that cannot be made goes, one that cannot grow keeps its
//! size. Everything else stays as it is recorded, for later.
//!
//! Must not know: what should be done when ([`slipway_core::volume`] does).

use super::notice::{is_for_later, told};
use crate::chain::chain;
use crate::clock::now;
use crate::farm::host::HostLink;
use crate::farm::keys::{give_back, lend_for_work};
use crate::farm::volume_error::VolumeError;
use crate::farm::{FarmError, Shared};
use crate::host_client::HostClientError;
use slipway_core::fence::VolumeFence;
use slipway_core::host_api::{HostErrorCode, VolumeReport, VolumeSource};
use slipway_core::id::{OrgId, VolumeId};
use slipway_core::units::ByteSize;
use slipway_core::volume::{MoveStep, Todo, snapshot_todo, todo};
use slipway_store::{ErrorKind, Snapshot, StoreError, Volume, VolumePurpose, VolumeState};
use std::sync::Arc;

/// More steps than any volume needs; a store that never shows what was recorded ends here.
const STEPS_MAX: usize = 8;

/// Makes a volume on its host, or finds it there, at the size that was recorded last. Gives what the host says, and the size
/// that was reached.
pub(in crate::farm) async fn bring(
    link: &HostLink,
    volume: &Volume,
) -> Result<(VolumeReport, ByteSize), HostClientError> {
    let known = if volume.made.0 > 0 {
        volume.made
    } else {
        volume.size
    };
    let client = &link.client;
    let made = match &volume.source {
        Some(source) if volume.made.0 == 0 => {
            let source = Some(source.clone());
            client.ensure_volume(volume.fenced(), known.0, source).await
        }
        Some(_) | None => client.ensure_volume(volume.fenced(), known.0, None).await,
    };
    match made {
        Err(error) if error.code() == Some(HostErrorCode::BadRequest) => {
            // It may be there with a size of which the record was cut off.
            if client.show_volume(volume.fenced()).await?.is_none() {
                return Err(error);
            }
            let report = client.extend_volume(volume.fenced(), volume.size.0).await?;
            Ok((report, volume.size))
        }
        made => made.map(|report| (report, known)),
    }
}

fn is_halted(volume: &Volume) -> bool {
    let moving = volume.moving.as_ref();
    moving.is_some_and(|moving| moving.step == MoveStep::Halted)
}

impl Shared {
    /// Does what is to be done about a volume. Gives it as it is then, or nothing if it is gone.
    pub(in crate::farm) async fn settle_volume(
        self: &Arc<Self>,
        link: &Arc<HostLink>,
        org: &OrgId,
        id: &VolumeId,
    ) -> Result<Option<Volume>, FarmError> {
        let _held = self.volume_locks.hold(id).await;
        let done = self.settle_volume_held(link, org, id).await;
        let notice = match &done {
            Ok(Some(Volume { notice: None, .. }) | None) => return done,
            // Nothing is done to it before its owner chooses, and the notice is what says so.
            Ok(Some(volume)) if is_halted(volume) => return done,
            Ok(Some(_)) => None,
            Err(error) if is_for_later(error) => {
                tracing::warn!(%org, volume = %id, why = ?chain(error), "volume is settled later");
                Some(told(error))
            }
            Err(_) => return done,
        };
        self.tell(org, id, notice.as_deref()).await;
        match done {
            Ok(Some(volume)) => Ok(Some(Volume { notice, ..volume })),
            other => other,
        }
    }

    /// Leaves word for a volume's owner.
    pub(super) async fn tell(&self, org: &OrgId, id: &VolumeId, notice: Option<&str>) {
        if let Err(error) = self.store.set_volume_notice(org, id, notice).await {
            tracing::warn!(%org, volume = %id, why = ?chain(&error), "notice not recorded");
        }
    }

    async fn settle_volume_held(
        self: &Arc<Self>,
        link: &Arc<HostLink>,
        org: &OrgId,
        id: &VolumeId,
    ) -> Result<Option<Volume>, FarmError> {
        for _ in 0..STEPS_MAX {
            let volume = match self.store.volume(org, id).await {
                Ok(volume) => volume,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let held = self.is_held(&volume);
            match todo(now(), &volume.now(held)) {
                None => return Ok(Some(volume)),
                Some(Todo::Make) => self.make_volume(link, &volume).await?,
                Some(Todo::Look) if self.is_imported(link, &volume).await? => {}
                Some(Todo::Look) => return Ok(Some(volume)),
                Some(Todo::Send) => {
                    self.begin_sending(&volume);
                    return Ok(Some(volume));
                }
                Some(Todo::Clear) => self.clear_move(&volume).await?,
                Some(Todo::Extend) => self.make_larger(link, &volume).await?,
                Some(Todo::StartDeletion) => {
                    match self.store.start_volume_deletion(org, id, now()).await {
                        Ok(()) => {}
                        // Something is still made from it; it goes afterwards.
                        Err(StoreError::InUse(_)) => return Ok(Some(volume)),
                        Err(error) => return Err(error.into()),
                    }
                }
                Some(Todo::Destroy) => {
                    self.transfers.end_upload(id).await;
                    self.destroy(link, &volume).await?;
                    tracing::info!(%org, volume = %id, "volume destroyed");
                }
            }
        }
        Err(FarmError::Closed)
    }

    /// A builder has it, or is about to: its record is there a moment before the builder is, and what is made for it by
    /// anybody else would take its key for later than any start.
    pub(super) fn is_held(&self, volume: &Volume) -> bool {
        let a_builders = volume.purpose == VolumePurpose::Cache;
        (a_builders && volume.state == VolumeState::Planned)
            || self.builder_of(&volume.id).is_some()
    }

    async fn make_volume(&self, link: &Arc<HostLink>, volume: &Volume) -> Result<(), FarmError> {
        let org = &volume.org;
        let mut lent = Vec::new();
        if let Some(source) = self.key_source(volume).await? {
            lent.extend(lend_for_work(self, link, org, &source).await?);
        }
        lent.extend(lend_for_work(self, link, org, &volume.id).await?);
        let made = bring(link, volume).await;
        for lease in lent {
            give_back(link, lease).await;
        }
        match made {
            Ok((report, size)) => {
                let encrypted = Some(report.encrypted);
                self.store
                    .record_volume_made(org, &volume.id, size, encrypted)
                    .await?;
                tracing::info!(%org, volume = %volume.id, %size, "volume made");
                Ok(())
            }
            Err(error) => {
                let refusal = VolumeError::of_host(error)?;
                tracing::warn!(%org, volume = %volume.id, %refusal, "volume cannot be made");
                let deleting = self
                    .store
                    .set_volume_state(org, &volume.id, VolumeState::Deleting)
                    .await?;
                if let Err(error) = self.destroy(link, &deleting).await {
                    tracing::warn!(why = ?chain(&error), "refused volume is cleared away later");
                }
                Err(refusal.into())
            }
        }
    }

    /// Whether its host has a volume whole whose contents were sent; then that is recorded.
    async fn is_imported(&self, link: &HostLink, volume: &Volume) -> Result<bool, FarmError> {
        let report = link.client.show_volume(volume.fenced()).await?;
        if let Some(report) = &report {
            self.record_imported(volume, report).await?;
        }
        Ok(report.is_some())
    }

    /// The volume whose key opens what this one is made from.
    async fn key_source(&self, volume: &Volume) -> Result<Option<VolumeId>, FarmError> {
        Ok(match &volume.source {
            Some(VolumeSource::Volume { volume }) => Some(volume.clone()),
            Some(VolumeSource::Snapshot { snapshot }) => {
                match self.store.snapshot(&volume.org, snapshot).await {
                    Ok(snapshot) => Some(snapshot.volume),
                    // The host is about to say that it is not there.
                    Err(error) if error.kind() == ErrorKind::NotFound => None,
                    Err(error) => return Err(error.into()),
                }
            }
            None => None,
        })
    }

    async fn make_larger(&self, link: &Arc<HostLink>, volume: &Volume) -> Result<(), FarmError> {
        let (org, size) = (&volume.org, volume.size);
        let lent = lend_for_work(self, link, org, &volume.id).await?;
        let grown = link.client.extend_volume(volume.fenced(), size.0).await;
        if let Some(lease) = lent {
            give_back(link, lease).await;
        }
        match grown {
            Ok(report) => {
                let encrypted = Some(report.encrypted);
                self.store
                    .record_volume_made(org, &volume.id, size, encrypted)
                    .await?;
                self.tell_size(&volume.id, size);
                tracing::info!(%org, volume = %volume.id, %size, "volume extended");
                Ok(())
            }
            Err(error) => {
                let refusal = VolumeError::of_host(error)?;
                self.store.undo_extension(org, &volume.id, size).await?;
                self.tell_size(&volume.id, volume.made);
                Err(refusal.into())
            }
        }
    }

    /// The builder that has the volume knows its size.
    pub(super) fn tell_size(&self, volume: &VolumeId, size: ByteSize) {
        if let Some(builder) = self.builder_of(volume) {
            builder.change(|inner| inner.machine.size.volume = size);
        }
    }

    /// Does what is to be done about a snapshot. Gives it as it is then, or nothing if it is gone.
    pub(in crate::farm) async fn settle_snapshot(
        &self,
        link: &Arc<HostLink>,
        snapshot: &Snapshot,
    ) -> Result<Option<Snapshot>, FarmError> {
        let _held = self.volume_locks.hold(&snapshot.volume).await;
        let (org, id) = (&snapshot.org, &snapshot.id);
        for _ in 0..STEPS_MAX {
            let snapshot = match self.store.snapshot(org, id).await {
                Ok(snapshot) => snapshot,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            match snapshot_todo(now(), snapshot.stage(), snapshot.expires_at) {
                None | Some(Todo::Extend | Todo::Look | Todo::Send | Todo::Clear) => {
                    return Ok(Some(snapshot));
                }
                Some(Todo::Make) => self.make_snapshot(link, &snapshot).await?,
                Some(Todo::StartDeletion) => {
                    match self.store.start_snapshot_deletion(org, id).await {
                        Ok(()) => {}
                        Err(StoreError::InUse(_)) => return Ok(Some(snapshot)),
                        Err(error) => return Err(error.into()),
                    }
                }
                Some(Todo::Destroy) => self.remove_snapshot(link, &snapshot).await?,
            }
        }
        Err(FarmError::Closed)
    }

    async fn make_snapshot(
        &self,
        link: &Arc<HostLink>,
        snapshot: &Snapshot,
    ) -> Result<(), FarmError> {
        let (org, id) = (&snapshot.org, &snapshot.id);
        let fence = self.fence_of(snapshot).await?;
        let made = link.client.create_snapshot(fence, id.clone()).await;
        let refusal: FarmError = match made {
            Ok(report) => {
                let stored = ByteSize(report.stored_bytes);
                let recorded = self
                    .store
                    .record_snapshot_made(org, id, stored, report.encrypted);
                match recorded.await {
                    Ok(kept) => {
                        tracing::info!(%org, volume = %kept.volume, snapshot = %id, %stored, "snapshot made");
                        return Ok(());
                    }
                    // It has become more than was reserved for it, and more than there is.
                    Err(error @ StoreError::PoolFull { .. }) => error.into(),
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => VolumeError::of_host(error)?.into(),
        };
        self.store.start_snapshot_deletion(org, id).await?;
        if let Err(error) = self.remove_snapshot(link, snapshot).await {
            tracing::warn!(
                why = ?chain(&error),
                "refused snapshot is cleared away later"
            );
        }
        Err(refusal)
    }

    /// What a verb on a snapshot carries now: the number of its volume, or the last that it had.
    async fn fence_of(&self, snapshot: &Snapshot) -> Result<VolumeFence, StoreError> {
        match self.store.volume(&snapshot.org, &snapshot.volume).await {
            Ok(volume) => Ok(volume.fenced()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let now = self.store.snapshot(&snapshot.org, &snapshot.id).await?;
                Ok(now.fenced())
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes a snapshot whose deletion has started, and the key that only it still needed.
    async fn remove_snapshot(
        &self,
        link: &Arc<HostLink>,
        snapshot: &Snapshot,
    ) -> Result<(), FarmError> {
        let (org, id) = (&snapshot.org, &snapshot.id);
        let fence = self.fence_of(snapshot).await?;
        link.client.delete_snapshot(fence, id.clone()).await?;
        match self.store.volume(org, &snapshot.volume).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.destroy_key(link, org, &snapshot.volume).await?;
            }
            Err(error) => return Err(error.into()),
        }
        self.store.forget_snapshot(org, id).await?;
        tracing::info!(%org, volume = %snapshot.volume, snapshot = %id, "snapshot deleted");
        Ok(())
    }
}
