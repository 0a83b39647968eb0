//! Lends the keys of encrypted volumes to the hosts of the farm, for as long as a start of a machine lives.
//!
//! Must not know: who may have a key ([`KeyBroker`] does), where keys are kept.

use super::Shared;
use super::builder::Builder;
use super::lend_error::LendError;
use crate::chain::chain;
use crate::keys::{Claim, LeaseError};
use crate::limits::RENEWALS_AT_ONCE_MAX;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use slipway_core::generation::Generation;
use slipway_core::host_api::{HostErrorCode, VolumeSource};
use slipway_core::id::{HostId, OrgId, VolumeId};
use slipway_store::{ErrorKind, StoreError, VolumePurpose};
use std::sync::{Arc, PoisonError};

/// What a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LendFor {
    /// This start of the builder's machine.
    Start,
    /// Work on its volume.
    Volume,
}

/// Sees to it that the builder's host has the key of the builder's volume, where it needs one.
pub(super) async fn lend(
    shared: &Shared,
    builder: &Builder,
    generation: Generation,
    purpose: LendFor,
) -> Result<(), LendError> {
    let (machine, volume) = {
        let inner = builder.lock();
        (inner.machine.id.clone(), inner.machine.volume.clone())
    };
    if !needs_key(shared, &builder.host(), &builder.key.org, &volume).await? {
        return Ok(());
    }
    let claim = Claim {
        org: builder.key.org.clone(),
        host: shared
            .id_of(&builder.host())
            .ok_or(LendError::UnknownHost)?,
        volume,
        machine: (purpose == LendFor::Start).then_some(machine),
        generation,
    };
    let keys = shared.keys.as_ref().ok_or(LendError::NoKeys)?;
    let lease = keys.lease(&claim).await?;
    Ok(builder.host().client.lend_key(lease).await?)
}

/// Whether a host needs a key for a volume, which may be gone and have left snapshots: by what is recorded of it. A host's setting says
/// how it makes new volumes, and nothing of those that there are.
async fn needs_key(
    shared: &Shared,
    link: &super::HostLink,
    org: &OrgId,
    id: &VolumeId,
) -> Result<bool, LendError> {
    let store = &shared.store;
    let volume = match store.volume(org, id).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let kept = store.snapshots(org, id).await.map_err(LeaseError::Store)?;
            return Ok(kept.iter().any(|snapshot| snapshot.encrypted));
        }
        found => found.map_err(LeaseError::Store)?,
    };
    if let Some(encrypted) = volume.encrypted {
        return Ok(encrypted);
    }
    // The host may have made it without having lived to say so, and be set otherwise now.
    if let Some(made) = link.client.show_volume(volume.fenced()).await? {
        return Ok(made.encrypted);
    }
    // It will be made as its source is, or as new ones are.
    let source = match &volume.source {
        None => None,
        Some(VolumeSource::Volume { volume }) => {
            let source = store.volume(org, volume).await;
            absent(source)?.and_then(|source| source.encrypted)
        }
        Some(VolumeSource::Snapshot { snapshot }) => {
            let source = store.snapshot(org, snapshot).await;
            absent(source)?.map(|source| source.encrypted)
        }
    };
    Ok(source.unwrap_or_else(|| link.encrypts()))
}

/// A record that may be gone.
fn absent<T>(found: Result<T, StoreError>) -> Result<Option<T>, LeaseError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A key that was lent for work on a volume.
#[derive(Debug)]
pub(super) struct LentForWork {
    volume: VolumeId,
    generation: Generation,
    /// A machine that lives has it as well, and goes on with it.
    shared: bool,
}

/// Sees to it that a host has the key of a volume of the org, for work on it, where it needs one.
pub(super) async fn lend_for_work(
    shared: &Shared,
    link: &Arc<super::HostLink>,
    org: &OrgId,
    volume: &VolumeId,
) -> Result<Option<LentForWork>, LendError> {
    if !needs_key(shared, link, org, volume).await? {
        return Ok(None);
    }
    let (generation, machine) = match shared.builder_of(volume) {
        None => (unattached(shared, org, volume).await?, None),
        Some(builder) => {
            let inner = builder.lock();
            match inner.machine.state.live_generation() {
                Some(live) => (live, Some(inner.machine.id.clone())),
                None => (inner.machine.generation, None),
            }
        }
    };
    let lent = LentForWork {
        volume: volume.clone(),
        generation,
        shared: machine.is_some(),
    };
    let claim = Claim {
        org: org.clone(),
        host: shared.id_of(link).ok_or(LendError::UnknownHost)?,
        volume: volume.clone(),
        machine,
        generation,
    };
    let keys = shared.keys.as_ref().ok_or(LendError::NoKeys)?;
    link.client.lend_key(keys.lease(&claim).await?).await?;
    Ok(Some(lent))
}

/// The generation for work on a volume that no builder has. A volume of the org's own never had a machine. One that had (it
/// is set aside, or gone and left snapshots) never gets one again, and which generation it had last is not known any more:
/// so it is above them all.
async fn unattached(
    shared: &Shared,
    org: &OrgId,
    volume: &VolumeId,
) -> Result<Generation, LendError> {
    match shared.store.volume(org, volume).await {
        Ok(known) if known.purpose == VolumePurpose::Data => Ok(Generation::default()),
        Ok(_) => Ok(Generation(u64::MAX)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Generation(u64::MAX)),
        Err(error) => Err(LeaseError::Store(error).into()),
    }
}

/// The work is done: the host forgets the key, unless a machine has it too.
pub(super) async fn give_back(link: &super::HostLink, lent: LentForWork) {
    if lent.shared {
        return;
    }
    let (volume, generation) = (lent.volume, lent.generation);
    if let Err(error) = link.client.revoke_key(volume.clone(), generation).await {
        tracing::warn!(%volume, why = ?chain(&error), "key not revoked; its lease ends by itself");
    }
}

/// This start of the machine is over, and with it the right to its key. A host that does not hear of it forgets the key when
/// the lease is over.
pub(super) async fn revoke(
    shared: &Shared,
    builder: &Builder,
    volume: &VolumeId,
    generation: Generation,
) {
    let known = shared.store.volume(&builder.key.org, volume).await;
    if known.is_ok_and(|volume| volume.encrypted == Some(false)) {
        return;
    }
    let host = builder.host();
    let client = &host.client;
    if let Err(error) = client.revoke_key(volume.clone(), generation).await {
        tracing::warn!(%volume, why = ?chain(&error), "key not revoked; its lease ends by itself");
    }
}

/// Renews the leases of all machines of a host that live, until the control plane ends. What could not be renewed is tried again well
/// before it is over. Each host has a loop of its own, so that one that hangs holds up no other.
pub(super) async fn keep_lent(shared: Arc<Shared>, link: Arc<super::HostLink>) {
    let Some(lasts) = shared.keys.as_ref().map(|keys| keys.lasts()) else {
        return;
    };
    let mut pause = lasts / 3;
    loop {
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let renewed = tokio::select! {
            () = shared.cancel.cancelled() => return,
            renewed = renew_all(&shared, &link) => renewed,
        };
        pause = if renewed { lasts / 3 } else { lasts / 20 };
    }
}

/// Whether every lease of a host was renewed.
async fn renew_all(shared: &Shared, link: &Arc<super::HostLink>) -> bool {
    let builders = shared.builders.on_host(link);
    let mut renewals: Vec<BoxFuture<'_, bool>> = Vec::new();
    for builder in &builders {
        renewals.push(Box::pin(renew(shared, builder)));
    }
    let renewals = stream::iter(renewals).buffer_unordered(RENEWALS_AT_ONCE_MAX);
    let renewed: Vec<bool> = renewals.collect().await;
    renewed.into_iter().all(|renewed| renewed)
}

async fn renew(shared: &Shared, builder: &Builder) -> bool {
    let live = builder.lock().machine.state.live_generation();
    let Some(generation) = live else { return true };
    if let Err(error) = lend(shared, builder, generation, LendFor::Start).await {
        // What is open stays so.
        tracing::warn!(org = %builder.key.org, why = ?chain(&error), "lease of a key not renewed");
        return false;
    }
    true
}

impl Shared {
    /// Who is at the other end of a link, as that said itself.
    pub(super) fn id_of(&self, link: &Arc<super::HostLink>) -> Option<HostId> {
        let hosts = self.hosts.read().unwrap_or_else(PoisonError::into_inner);
        let mut hosts = hosts.iter();
        hosts
            .find(|(_, known)| Arc::ptr_eq(known, link))
            .map(|(id, _)| id.clone())
    }

    /// Destroys the key of a volume that is to go, before its blocks do, unless snapshots of it still need it: on this host, or
    /// where the volume was before it was moved.
    pub(super) async fn destroy_key(
        &self,
        link: &super::HostLink,
        org: &OrgId,
        volume: &VolumeId,
    ) -> Result<(), LendError> {
        let Some(keys) = &self.keys else {
            return Ok(());
        };
        let recorded = self.store.snapshots(org, volume).await;
        let recorded = recorded.map_err(LeaseError::Store)?;
        // Where nothing is known there may be one, and destroying none is fine.
        let encrypted = match absent(self.store.volume(org, volume).await)? {
            Some(known) => known.encrypted,
            None => Some(recorded.iter().any(|snapshot| snapshot.encrypted)),
        };
        if encrypted == Some(false) {
            return Ok(());
        }
        let is_here = |host: &HostId| self.link(host).is_some_and(|l| std::ptr::eq(&*l, link));
        if recorded.iter().any(|snapshot| !is_here(&snapshot.host)) {
            return Ok(());
        }
        let snapshots = link.client.snapshots().await?;
        if snapshots.iter().all(|snapshot| snapshot.volume != *volume) {
            keys.destroy(volume).await?;
        }
        Ok(())
    }
}

/// The code of a refusal that is the host's own, or that says the same.
pub(super) fn code(error: &LendError) -> Option<HostErrorCode> {
    match error {
        LendError::Host(error) => error.code(),
        // Nothing opens it any more.
        LendError::Lease(LeaseError::Lost { .. }) => Some(HostErrorCode::VolumeDamaged),
        LendError::NoKeys
        | LendError::UnknownHost
        | LendError::Lease(_)
        | LendError::KeyStore(_) => None,
    }
}
