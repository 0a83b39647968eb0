//! Volumes and their snapshots: what owners ask for, what is done by itself, and the acting on both.
//!
//! A verb records what is wanted in one transaction with the pool's accounting, and then has it settled like anybody who
//! finds the record: so a crash between any two steps is finished, or undone, by the next look. What the hosts do not do
//! now is done later, and the volume's notice says so.
//!
//! Must not know: who may do what, how a host makes a volume.

mod choosing;
mod copying;
mod keep;
mod locks;
mod moving;
mod notice;
mod plan;
mod settle;
mod transfer;
mod under_way;

pub(super) use keep::keep;
pub(super) use locks::Locks;
pub use moving::AskedMove;
pub(super) use settle::bring;
pub use transfer::{BodyEnded, Download, ImportBody, ImportedSoFar};
pub(super) use under_way::Transfers;

use super::host::HostLink;
use super::volume_error::VolumeError;
use super::{Farm, FarmError, Shared};
use crate::chain::chain;
use crate::clock::now;
use crate::entropy::entropy;
use crate::limits::{POLICY_TRIES_MAX, VOLUME_DESTROY_GRACE};
use notice::is_for_later;
use slipway_core::host_api::{VolumeReport, VolumeSource};
use slipway_core::id::{OrgId, SnapshotId, VolumeId};
use slipway_core::quota::{check_one_more_snapshot, check_volume_size};
use slipway_core::units::ByteSize;
use slipway_core::volume::{MoveStep, VolumePolicy};
use slipway_store::{Move, NewSnapshot, Snapshot, StoreError, Volume, VolumeState, What};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A volume that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedVolume {
    /// Its name for people.
    pub name: String,
    /// Region; with a source it is where that is.
    pub region: Option<String>,
    /// Hard cap; absent: what its source has.
    pub size: Option<ByteSize>,
    /// What it holds at first.
    pub source: Option<VolumeSource>,
    /// What it holds will be sent; then it has no source.
    pub import: Option<AskedImport>,
    /// What its owner wants of it.
    pub policy: VolumePolicy,
    /// It must be encrypted, or must not.
    pub encrypted: Option<bool>,
    /// Not on a host that has a volume of this name.
    pub unique: bool,
}

/// Contents that somebody wants to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedImport {
    /// The checksum of the whole stream, in hexadecimal, if the sender knows it: it is shown as long as the stream is not whole.
    pub digest: Option<String>,
}

impl Farm {
    /// Makes a volume of the org's own, empty, from a snapshot (a restore), or from another volume (a fork). If the host does
    /// not do it now, it is recorded as planned and made later.
    ///
    /// # Errors
    /// [`FarmError::Quota`], [`FarmError::Place`], [`FarmError::Volume`], or the store's.
    pub async fn create_volume(
        &self,
        org: &OrgId,
        asked: AskedVolume,
    ) -> Result<Volume, FarmError> {
        let planned = self.0.plan_volume(org, asked).await?;
        self.0.finish(&planned).await
    }

    /// Makes a volume larger, in use or not. The size that it has is fine.
    ///
    /// # Errors
    /// [`FarmError::Quota`], [`FarmError::Volume`], or the store's.
    pub async fn extend_volume(
        &self,
        org: &OrgId,
        id: &VolumeId,
        size: ByteSize,
    ) -> Result<Volume, FarmError> {
        check_volume_size(size)?;
        self.0.extend(org, id, size).await
    }

    /// Changes what its owner wants of a volume.
    ///
    /// # Errors
    /// [`FarmError::Quota`], or the store's.
    pub async fn set_volume_policy<E>(
        &self,
        org: &OrgId,
        id: &VolumeId,
        change: impl Fn(&Volume) -> Result<VolumePolicy, E>,
    ) -> Result<Volume, E>
    where
        E: From<FarmError>,
    {
        let store = &self.0.store;
        let mut tries = 0;
        let volume = loop {
            let now = store.volume(org, id).await.map_err(FarmError::from)?;
            let policy = change(&now)?;
            policy.check().map_err(FarmError::from)?;
            let set = store.set_volume_policy(org, id, &now.policy, &policy).await;
            match set {
                // Somebody else has changed something else of it meanwhile.
                Err(StoreError::Changed(_)) if tries < POLICY_TRIES_MAX => tries += 1,
                done => break done.map_err(FarmError::from)?,
            }
        };
        if let Some(link) = self.0.link(&volume.host) {
            link.volumes.notify_one();
        }
        Ok(volume)
    }

    /// Destroys a volume that no builder has, after [`VOLUME_DESTROY_GRACE`] or at once. One that is to go already goes no
    /// later than it was to. Its snapshots stay for their time.
    ///
    /// # Errors
    /// [`FarmError::Volume`], or the store's.
    pub async fn destroy_volume(
        &self,
        org: &OrgId,
        id: &VolumeId,
        at_once: bool,
    ) -> Result<Volume, FarmError> {
        let known = self.0.store.volume(org, id).await?;
        if known.state == VolumeState::Deleting {
            return Ok(known);
        }
        let at = now();
        let goes = match known.destroy_at {
            _ if at_once => at,
            Some(before) => before,
            None => at.after(VOLUME_DESTROY_GRACE),
        };
        match &known.moving {
            Some(moving) if moving.is_under_way() => return Err(VolumeError::Moving.into()),
            Some(moving) if moving.step == MoveStep::Halted => {
                return Err(VolumeError::Halted.into());
            }
            Some(_) | None => {}
        }
        let volume = match self.0.store.schedule_destruction(org, id, Some(goes)).await {
            Err(StoreError::InUse(_)) => return Err(VolumeError::Attached.into()),
            Err(StoreError::Changed(_)) => return Err(VolumeError::Gone.into()),
            done => done?,
        };
        tracing::info!(%org, volume = %id, at_once, "volume is to be destroyed");
        if !at_once {
            return Ok(volume);
        }
        let gone = Volume {
            state: VolumeState::Deleting,
            ..volume
        };
        match self.0.finish(&gone).await {
            Err(FarmError::Store(StoreError::NotFound(_))) => Ok(gone),
            Ok(still) if still.state != VolumeState::Deleting && still.destroy_at.is_some() => {
                Err(VolumeError::Needed.into())
            }
            done => done,
        }
    }

    /// Keeps a volume that was to be destroyed.
    ///
    /// # Errors
    /// [`VolumeError::Gone`], or the store's.
    pub async fn restore_volume(&self, org: &OrgId, id: &VolumeId) -> Result<Volume, FarmError> {
        match self.0.store.schedule_destruction(org, id, None).await {
            Err(StoreError::Changed(_)) => Err(VolumeError::Gone.into()),
            kept => self.0.finish(&kept?).await,
        }
    }

    /// Keeps what a volume holds now, as after a power cut at this moment.
    ///
    /// # Errors
    /// [`FarmError::Quota`], [`FarmError::Volume`], [`StoreError::PoolFull`], or the store's.
    pub async fn create_snapshot(&self, org: &OrgId, id: &VolumeId) -> Result<Snapshot, FarmError> {
        self.0.keep_now(org, id, false).await
    }

    /// Deletes a snapshot for good, at once. Volumes made from it stay.
    ///
    /// # Errors
    /// [`VolumeError::Needed`], or the store's.
    pub async fn delete_snapshot(&self, org: &OrgId, id: &SnapshotId) -> Result<(), FarmError> {
        let snapshot = self.0.store.snapshot(org, id).await?;
        match self.0.store.start_snapshot_deletion(org, id).await {
            Err(StoreError::InUse(_)) => return Err(VolumeError::Needed.into()),
            done => done?,
        }
        let link = self.0.link(&snapshot.host).ok_or(VolumeError::HostAway)?;
        match self.0.settle_snapshot(&link, &snapshot).await {
            Err(error) if is_for_later(&error) => {
                tracing::warn!(%org, snapshot = %id, why = ?chain(&error), "snapshot is deleted later");
                Ok(())
            }
            done => done.map(drop),
        }
    }

    /// Bytes taken on disk by an org's volumes. What cannot be learnt now (a host is silent) is left out.
    pub async fn volume_use(&self, org: &OrgId) -> HashMap<VolumeId, u64> {
        let mut used = HashMap::new();
        let volumes = match self.0.store.volumes(org).await {
            Ok(volumes) => volumes,
            Err(error) => {
                tracing::warn!(%org, why = ?chain(&error), "volumes not listed");
                return used;
            }
        };
        // A host tells of all volumes it has; only the org's own may be told on.
        let own: HashMap<_, _> = volumes.into_iter().map(|v| (v.id, v.host)).collect();
        let hosts: HashSet<_> = own.values().collect();
        for link in hosts.into_iter().filter_map(|host| self.0.link(host)) {
            if let Ok(volumes) = link.client.volumes().await {
                // One that moves may be on two.
                let is_here = |v: &VolumeReport| {
                    let counts = own.get(&v.volume).and_then(|host| self.0.link(host));
                    counts.is_some_and(|counts| Arc::ptr_eq(&counts, &link))
                };
                let volumes = volumes.into_iter().filter(is_here);
                used.extend(volumes.map(|v| (v.volume, v.used_bytes)));
            }
        }
        used
    }
}

impl Shared {
    /// Settles what was recorded, as far as it can be done now.
    async fn finish(self: &Arc<Self>, volume: &Volume) -> Result<Volume, FarmError> {
        let (org, id) = (&volume.org, &volume.id);
        let Some(link) = self.link(&volume.host) else {
            return Ok(self.store.volume(org, id).await?);
        };
        match self.settle_volume(&link, org, id).await {
            Ok(Some(volume)) => Ok(volume),
            Ok(None) => Err(StoreError::NotFound(What::Volume).into()),
            Err(error) if is_for_later(&error) => Ok(self.store.volume(org, id).await?),
            Err(error) => Err(error),
        }
    }

    /// A volume of the org's. One that has just moved is seen when the old copy is gone, if that can be done now.
    async fn cleared(self: &Arc<Self>, org: &OrgId, id: &VolumeId) -> Result<Volume, FarmError> {
        let volume = self.store.volume(org, id).await?;
        let moving = volume.moving.as_ref();
        if moving.is_none_or(Move::is_under_way) {
            return Ok(volume);
        }
        self.finish(&volume).await
    }

    async fn extend(
        self: &Arc<Self>,
        org: &OrgId,
        id: &VolumeId,
        size: ByteSize,
    ) -> Result<Volume, FarmError> {
        let known = self.cleared(org, id).await?;
        if let VolumeState::Aside | VolumeState::Deleting = known.state {
            return Err(VolumeError::State(known.state).into());
        }
        if known.destroy_at.is_some() {
            return Err(VolumeError::ToBeDestroyed.into());
        }
        if known.import.is_some() {
            return Err(VolumeError::Importing.into());
        }
        match &known.moving {
            Some(moving) if moving.is_under_way() => {
                return Err(VolumeError::Moving.into());
            }
            Some(moving) if moving.step == MoveStep::Halted => {
                return Err(VolumeError::Halted.into());
            }
            Some(_) => return Err(VolumeError::OtherCopy.into()),
            None => {}
        }
        if size < known.size {
            return Err(VolumeError::Shrink { have: known.size }.into());
        }
        let volume = match self.store.extend_volume(org, id, size).await {
            Err(StoreError::Changed(_)) => {
                return Err(VolumeError::Extending { to: known.size }.into());
            }
            done => done?,
        };
        self.tell_size(id, volume.size);
        self.finish(&volume).await
    }

    /// Makes a snapshot, because somebody asked for it or because it is due.
    async fn keep_now(
        &self,
        org: &OrgId,
        id: &VolumeId,
        scheduled: bool,
    ) -> Result<Snapshot, FarmError> {
        let volume = self.store.volume(org, id).await?;
        let link = self.link(&volume.host).ok_or(VolumeError::HostAway)?;
        if !*link.reachable.borrow() {
            return Err(VolumeError::HostAway.into());
        }
        let snapshot = {
            // So that two requests at once do not both see room for one more.
            let _held = self.volume_locks.hold(id).await;
            let volume = self.store.volume(org, id).await?;
            let have = self.store.snapshots(org, id).await?.len();
            check_one_more_snapshot(u32::try_from(have).unwrap_or(u32::MAX))?;
            let new = NewSnapshot {
                id: SnapshotId::from_entropy(entropy()?),
                volume: id.clone(),
                reserve: taken_now(&link, &volume).await?,
                scheduled,
                at: now(),
                expires_at: volume.policy.expires(now()),
            };
            match self.store.create_snapshot(org, &new).await {
                Err(StoreError::Changed(_)) => {
                    return Err(VolumeError::State(volume.state).into());
                }
                done => done?,
            }
        };
        match self.settle_snapshot(&link, &snapshot).await {
            Ok(Some(made)) => Ok(made),
            Ok(None) => Err(StoreError::NotFound(What::Snapshot).into()),
            Err(error) if is_for_later(&error) => {
                tracing::warn!(%org, volume = %id, why = ?chain(&error), "snapshot is made later");
                Ok(snapshot)
            }
            Err(error) => Err(error),
        }
    }
}

/// What a volume takes on its host's disk now: so much will a snapshot of it take.
async fn taken_now(link: &HostLink, volume: &Volume) -> Result<ByteSize, FarmError> {
    let report = link.client.show_volume(volume.fenced()).await?;
    report
        .map(|report| ByteSize(report.used_bytes))
        .ok_or(FarmError::Volume(VolumeError::Missing))
}
