//! What is done to the cache volume of a builder: made, replaced when it is damaged, emptied when its owner asks for that.
//!
//! Must not know: when a volume is replaced (the planner does).

use super::Shared;
use super::builder::Builder;
use super::deferred::{StepDeferred, deferred, is_in_progress, not_lent, start_failed, turn};
use super::error::FarmError;
use super::keys::{LendFor, lend};
use super::lend_error::LendError;
use super::volumes::bring;
use crate::clock::now;
use crate::keys::LeaseError;
use crate::limits::REPLACE_RETRY;
use slipway_core::id::{OrgId, VolumeId};
use slipway_core::machine::MachineState;
use slipway_core::planner::{Observed, Step};
use slipway_core::time::Timestamp;
use slipway_store::{StoreError, VolumeState};

/// Has the host make the volume if it has none.
pub(super) async fn ensure_volume(
    shared: &Shared,
    builder: &Builder,
    step: &Step,
) -> Result<(), StepDeferred> {
    let host = builder.host();
    let _turn = turn(builder, &host).await?;
    let _held = shared.volume_locks.hold(&step.volume).await;
    let org = &builder.key.org;
    let volume = match shared.store.volume(org, &step.volume).await {
        Ok(volume) => volume,
        Err(error) => return Err(deferred(builder, &error)),
    };
    if let Err(error) = lend(shared, builder, step.generation, LendFor::Volume).await {
        return Err(match &error {
            LendError::Lease(LeaseError::Lost { .. }) => not_lent(builder, step.generation, &error),
            LendError::NoKeys
            | LendError::UnknownHost
            | LendError::Lease(_)
            | LendError::KeyStore(_)
            | LendError::Host(_) => deferred(builder, &error),
        });
    }
    let (report, size) = match bring(&host, &volume).await {
        Ok(made) => made,
        Err(error) if is_in_progress(&error) => return Err(deferred(builder, &error)),
        Err(error) => return Err(start_failed(builder, step.generation, &error)),
    };
    let encrypted = Some(report.encrypted);
    if let Err(error) = shared
        .store
        .record_volume_made(org, &step.volume, size, encrypted)
        .await
    {
        return Err(deferred(builder, &error));
    }
    if size < volume.size {
        builder.host().volumes.notify_one();
    }
    builder.lock().volume_ready = true;
    Ok(())
}

/// Why a cache cannot be used, in words for its owner.
#[derive(Debug, Clone, Copy)]
enum Why {
    Damaged,
    Foreign,
}

impl Why {
    fn what(self) -> &'static str {
        match self {
            Self::Damaged => "the cache is damaged",
            Self::Foreign => "a virtual machine has written the cache, which a sandbox cannot use",
        }
    }

    fn because(self) -> &'static str {
        match self {
            Self::Damaged => "it was damaged",
            Self::Foreign => "a virtual machine had written it, which a sandbox cannot use",
        }
    }

    /// What else helps.
    fn or_else(self) -> &'static str {
        match self {
            Self::Damaged => "",
            Self::Foreign => {
                " (hint: `slipway orgs update --isolation vm` has builders be virtual machines)"
            }
        }
    }
}

/// Gives the machine a new, empty volume in place of its damaged one, which is kept aside. Where there is no room for both,
/// or one is kept aside already, nothing is destroyed: the owner is told, and room is looked for again later.
pub(super) async fn replace_volume(
    shared: &Shared,
    builder: &Builder,
    old: &VolumeId,
) -> Result<(), StepDeferred> {
    let org = &builder.key.org;
    let (machine, why) = {
        let inner = builder.lock();
        let why = if inner.volume_foreign {
            Why::Foreign
        } else {
            Why::Damaged
        };
        (inner.machine.id.clone(), why)
    };
    let new = match crate::entropy::entropy().map_err(FarmError::from) {
        Ok(entropy) => VolumeId::from_entropy(entropy),
        Err(error) => return Err(deferred(builder, &error)),
    };
    let aside = match set_aside(shared, org, old).await {
        Ok(aside) => aside,
        Err(error) => return Err(deferred(builder, &error)),
    };
    if let Some(aside) = aside {
        let notice = format!(
            "{}, and an earlier one is kept as {aside}: destroy that \
             (`slipway volumes destroy {aside} --now`), or empty the cache (`slipway builders reset-cache`){}",
            why.what(),
            why.or_else()
        );
        return Err(keep_damaged(builder, notice));
    }
    let kept = shared
        .store
        .replace_volume(org, &machine, old, VolumeState::Aside, &new, now())
        .await;
    let volume = match kept {
        Ok(volume) => volume.id,
        Err(StoreError::PoolFull { .. }) => {
            let notice = format!(
                "{}, and there is no room for another one beside it: empty it (`slipway builders reset-cache`){}",
                why.what(),
                why.or_else()
            );
            return Err(keep_damaged(builder, notice));
        }
        Err(error) => return Err(deferred(builder, &error)),
    };
    tracing::warn!(%org, %machine, %old, new = %volume, "cache replaced by an empty one");
    shared.builders.gets_volume(&builder.key, &volume);
    builder.change(|inner| {
        inner.machine.volume = volume;
        inner.machine.volume_replaced = true;
        inner.machine.failed_starts = 0;
        inner.machine.notice = Some(format!(
            "the cache was replaced by an empty one, because {}; the old one is kept as {old}{}",
            why.because(),
            why.or_else()
        ));
        inner.volume_ready = false;
        inner.volume_damaged = false;
        inner.volume_foreign = false;
        if let MachineState::Crashed { retry_at, .. } = &mut inner.machine.state {
            *retry_at = now();
        }
    });
    Ok(())
}

/// The cache that is kept aside already for the builder that has `volume`, if one is. An org has one builder on a host.
async fn set_aside(
    shared: &Shared,
    org: &OrgId,
    volume: &VolumeId,
) -> Result<Option<VolumeId>, StoreError> {
    let volumes = shared.store.volumes(org).await?;
    let here = volumes.iter().find(|v| v.id == *volume).map(|v| &v.host);
    let aside = volumes
        .iter()
        .find(|v| v.state == VolumeState::Aside && Some(&v.host) == here);
    Ok(aside.map(|v| v.id.clone()))
}

/// The damaged cache stays for now, and its owner is told.
fn keep_damaged(builder: &Builder, notice: String) -> StepDeferred {
    tracing::warn!(org = %builder.key.org, notice, "a damaged cache stays in its place");
    builder.change(|inner| {
        inner.replace_not_before = now().after(REPLACE_RETRY);
        inner.machine.notice = Some(notice);
    });
    StepDeferred
}

/// Destroys what is in a volume; the next start makes it anew.
async fn empty_volume(
    shared: &Shared,
    builder: &Builder,
    volume: &VolumeId,
) -> Result<(), FarmError> {
    let _held = shared.volume_locks.hold(volume).await;
    let org = &builder.key.org;
    let emptied = shared
        .store
        .set_volume_state(org, volume, VolumeState::Planned)
        .await?;
    builder.lock().volume_ready = false;
    let host = builder.host();
    // Its host may know better than the record: then the key stays as well.
    host.client.show_volume(emptied.fenced_before()).await?;
    shared.destroy_key(&host, org, volume).await?;
    host.client.destroy_volume(emptied.fenced_before()).await?;
    Ok(())
}

/// Empties the cache if somebody waits for that and nothing of the machine lives. Gives whether it did.
pub(super) async fn reset(shared: &Shared, builder: &Builder) -> bool {
    let waiting = {
        let mut inner = builder.lock();
        let ended = inner.machine.state.live_generation().is_none();
        let gone = inner.observed == Observed::Absent;
        if ended && gone && inner.moving.is_none() {
            inner
                .reset
                .take()
                .map(|w| (w, inner.machine.volume.clone()))
        } else {
            None
        }
    };
    let Some((waiter, volume)) = waiting else {
        return false;
    };
    let done = empty_volume(shared, builder, &volume).await;
    let emptied = done.is_ok();
    builder.change(|inner| {
        if emptied {
            inner.machine.failed_starts = 0;
            inner.machine.volume_replaced = false;
            inner.machine.last_error = None;
            inner.machine.notice = None;
            inner.volume_damaged = false;
            inner.replace_not_before = Timestamp(0);
        }
    });
    // Whoever asked has gone: it is done all the same.
    let _ = waiter.send(done);
    true
}
