//! What is done to the cache volume of a builder: made, replaced, emptied.
//!
//! Must not know: when a volume is suspect (the planner does).

use super::Shared;
use super::builder::{Builder, now};
use super::drive::{Held, held, start_failed};
use super::error::FarmError;
use super::keys::{LendFor, lend};
use super::volumes::bring;
use slipway_core::id::VolumeId;
use slipway_core::machine::MachineState;
use slipway_core::planner::{Observed, Step};
use slipway_store::{StoreError, VolumeState};

/// Has the host make the volume if it has none.
pub(super) async fn ensure_volume(
    shared: &Shared,
    builder: &Builder,
    step: &Step,
) -> Result<(), Held> {
    let _held = shared.volume_locks.hold(&step.volume).await;
    let org = &builder.key.org;
    let volume = match shared.store.volume(org, &step.volume).await {
        Ok(volume) => volume,
        Err(error) => return Err(held(builder, &error)),
    };
    if let Err(error) = lend(shared, builder, step.generation, LendFor::Volume).await {
        return Err(held(builder, &error));
    }
    let (report, size) = match bring(&builder.host(), &volume).await {
        Ok(made) => made,
        Err(error) => return Err(start_failed(builder, step.generation, &error)),
    };
    let encrypted = Some(report.encrypted);
    if let Err(error) = shared
        .store
        .record_volume_made(org, &step.volume, size, encrypted)
        .await
    {
        return Err(held(builder, &error));
    }
    if size < volume.size {
        builder.host().volumes.notify_one();
    }
    builder.lock().volume_ready = true;
    Ok(())
}

/// Gives the machine an empty volume: a new one, or the same one emptied if the pool has no room for two.
pub(super) async fn replace_volume(
    shared: &Shared,
    builder: &Builder,
    old: &VolumeId,
) -> Result<(), Held> {
    let (org, machine, last_error) = {
        let inner = builder.lock();
        (
            &builder.key.org,
            inner.machine.id.clone(),
            inner.last_error(),
        )
    };
    let new = match super::entropy() {
        Ok(entropy) => VolumeId::from_entropy(entropy),
        Err(error) => return Err(held(builder, &error)),
    };
    let kept = shared
        .store
        .replace_volume(org, &machine, old, VolumeState::Aside, &new, now())
        .await;
    let (volume, notice) = match kept {
        Ok(volume) => (
            volume.id,
            format!(
                "the cache was replaced by an empty one, because the builder did not start \
                     ({last_error}); the old one is kept as {old}"
            ),
        ),
        Err(StoreError::PoolFull { .. }) => {
            if let Err(error) = empty_volume(shared, builder, old).await {
                return Err(held(builder, &error));
            }
            (
                old.clone(),
                format!(
                    "the cache was emptied, because the builder did not start \
                         ({last_error}), and there is no room to keep the old one"
                ),
            )
        }
        Err(error) => return Err(held(builder, &error)),
    };
    tracing::warn!(%org, %machine, %old, new = %volume, "cache replaced by an empty one");
    builder.change(|inner| {
        inner.machine.volume = volume;
        inner.machine.volume_replaced = true;
        inner.machine.failed_starts = 0;
        inner.machine.notice = Some(notice);
        inner.volume_ready = false;
        inner.volume_damaged = false;
        if let MachineState::Crashed { retry_at, .. } = &mut inner.machine.state {
            *retry_at = now();
        }
    });
    Ok(())
}

/// Destroys what is in a volume; the next start makes it anew.
async fn empty_volume(
    shared: &Shared,
    builder: &Builder,
    volume: &VolumeId,
) -> Result<(), FarmError> {
    let _held = shared.volume_locks.hold(volume).await;
    let org = &builder.key.org;
    shared
        .store
        .set_volume_state(org, volume, VolumeState::Planned)
        .await?;
    builder.lock().volume_ready = false;
    shared.destroy_key(&builder.host(), org, volume).await?;
    builder.host().client.destroy_volume(volume.clone()).await?;
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
        }
    });
    // Whoever asked has gone: it is done all the same.
    let _ = waiter.send(done);
    true
}
