//! The keeper of one host's volumes: finishes or undoes what was cut off, makes snapshots when they are due, deletes those
//! whose time is over, and extends what is about to be full.
//!
//! It takes no input: each look reads the record anew, so that the way after a crash is the way that is always gone.
//!
//! Must not know: when anything is due ([`slipway_core::volume`] does).

use super::notice::told;
use crate::chain::chain;
use crate::clock::now;
use crate::farm::host::HostLink;
use crate::farm::{FarmError, Shared};
use crate::limits::{UPKEEP_AT_ONCE_MAX, VOLUME_UPKEEP_RETRY, VOLUMES_LOOK_EVERY};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use slipway_core::host_api::VolumeReport;
use slipway_core::id::VolumeId;
use slipway_core::time::Timestamp;
use slipway_core::volume::{Use, auto_extended, snapshot_due, snapshot_todo, todo};
use slipway_store::{Snapshot, StoreError, Volume, VolumeState};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Volumes whose upkeep failed, and when it is tried again.
#[derive(Debug, Default)]
struct Holds(Mutex<HashMap<VolumeId, Timestamp>>);

/// What was reported as the whole of each volume when it last grew by itself. A control plane that was started anew does not know
/// it, and may extend a volume once more than is seen.
#[derive(Debug, Default)]
struct Growths(Mutex<HashMap<VolumeId, u64>>);

impl Growths {
    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self, volume: &VolumeId) -> Option<u64> {
        self.lock().get(volume).copied()
    }

    fn add(&self, volume: &VolumeId, total: u64) {
        self.lock().insert(volume.clone(), total);
    }

    /// Forgets volumes that are not among these.
    fn keep_only(&self, volumes: &[&Volume]) {
        self.lock()
            .retain(|id, _| volumes.iter().any(|volume| volume.id == *id));
    }
}

impl Holds {
    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, Timestamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_over(&self) {
        self.lock().retain(|_, until| *until > now());
    }

    fn has(&self, volume: &VolumeId) -> bool {
        self.lock().contains_key(volume)
    }

    fn add(&self, volume: &VolumeId) {
        let until = now().after(VOLUME_UPKEEP_RETRY);
        self.lock().insert(volume.clone(), until);
    }
}

/// Keeps the volumes of a host until the control plane ends.
pub(in crate::farm) async fn keep(shared: Arc<Shared>, link: Arc<HostLink>) {
    let (holds, growths) = (Holds::default(), Growths::default());
    let mut reachable = link.reachable.subscribe();
    loop {
        let looked = async {
            // The sender lives as long as the link.
            let _ = reachable.wait_for(|there| *there).await;
            if let Err(error) = look(&shared, &link, &holds, &growths).await {
                tracing::warn!(why = ?chain(&error), "volumes not looked at; later again");
            }
        };
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            () = looked => {}
        }
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            () = link.volumes.notified() => {}
            () = tokio::time::sleep(VOLUMES_LOOK_EVERY) => {}
            _ = reachable.wait_for(|there| !*there) => {}
        }
    }
}

async fn look(
    shared: &Arc<Shared>,
    link: &Arc<HostLink>,
    holds: &Holds,
    growths: &Growths,
) -> Result<(), StoreError> {
    let Some(host) = shared.id_of(link) else {
        return Ok(());
    };
    let snapshots = shared.store.snapshots_on(&host).await?;
    let volumes = shared.store.volumes_on(&host).await?;
    let kept: Vec<&Volume> = volumes
        .iter()
        .filter(|volume| volume.state == VolumeState::Ready && volume.destroy_at.is_none())
        .collect();
    holds.forget_over();
    tokio::join!(
        settle_snapshots(shared, link, &snapshots),
        settle_volumes(shared, link, &volumes),
        keep_scheduled(shared, holds, &kept, &snapshots),
        extend_full(shared, link, holds, growths, &kept),
    );
    Ok(())
}

async fn settle_snapshots(shared: &Shared, link: &Arc<HostLink>, snapshots: &[Snapshot]) {
    let mut work = Work::new();
    for snapshot in snapshots {
        if snapshot_todo(now(), snapshot.stage(), snapshot.expires_at).is_none() {
            continue;
        }
        work.push(Box::pin(async move {
            if let Err(error) = shared.settle_snapshot(link, snapshot).await {
                tracing::warn!(snapshot = %snapshot.id, why = ?chain(&error), "snapshot not settled");
            }
        }));
    }
    at_once(work).await;
}

async fn settle_volumes(shared: &Arc<Shared>, link: &Arc<HostLink>, volumes: &[Volume]) {
    let mut work = Work::new();
    for volume in volumes {
        let held = shared.is_held(volume);
        if todo(now(), &volume.now(held)).is_none() {
            continue;
        }
        work.push(Box::pin(async move {
            let (org, id) = (&volume.org, &volume.id);
            if let Err(error) = shared.settle_volume(link, org, id).await {
                tracing::warn!(volume = %id, why = ?chain(&error), "volume not settled");
            }
        }));
    }
    at_once(work).await;
}

async fn keep_scheduled(
    shared: &Shared,
    holds: &Holds,
    volumes: &[&Volume],
    snapshots: &[Snapshot],
) {
    let mut work = Work::new();
    for &volume in volumes {
        let policy = &volume.policy;
        let last = last_scheduled(volume, snapshots);
        if holds.has(&volume.id) || !snapshot_due(now(), policy, last) {
            continue;
        }
        work.push(Box::pin(async move {
            let made = shared.keep_now(&volume.org, &volume.id, true).await;
            took_care(shared, holds, volume, "scheduled snapshot", made.map(drop)).await;
        }));
    }
    at_once(work).await;
}

async fn extend_full(
    shared: &Arc<Shared>,
    link: &HostLink,
    holds: &Holds,
    growths: &Growths,
    volumes: &[&Volume],
) {
    growths.keep_only(volumes);
    if volumes
        .iter()
        .all(|volume| volume.policy.auto_extend.is_none())
    {
        return;
    }
    let Ok(reports) = link.client.volumes().await else {
        return;
    };
    let reports = &reports;
    let mut work = Work::new();
    for &volume in volumes {
        if volume.policy.auto_extend.is_none() || holds.has(&volume.id) {
            continue;
        }
        work.push(Box::pin(async move {
            let reported = reported_use(shared, volume, reports).await;
            let Some(reported) = reported else {
                return;
            };
            let seen = growths.seen(&volume.id);
            let Some(size) = auto_extended(&volume.policy, volume.size, reported, seen) else {
                return;
            };
            tracing::info!(org = %volume.org, volume = %volume.id, %size, "volume grows by itself");
            let grown = shared.extend(&volume.org, &volume.id, size).await;
            if grown.is_ok() {
                growths.add(&volume.id, reported.total);
            }
            took_care(shared, holds, volume, "extension", grown.map(drop)).await;
        }));
    }
    at_once(work).await;
}

/// What is to be done about some volumes.
type Work<'a> = Vec<BoxFuture<'a, ()>>;

/// Has a few of these done at once: one that hangs holds up no other.
async fn at_once(work: Work<'_>) {
    let work = stream::iter(work).buffer_unordered(UPKEEP_AT_ONCE_MAX);
    work.collect::<()>().await;
}

/// When the last scheduled snapshot of a volume was made; if there is none, the volume itself.
fn last_scheduled(volume: &Volume, snapshots: &[Snapshot]) -> Timestamp {
    snapshots
        .iter()
        .filter(|snapshot| snapshot.scheduled && snapshot.volume == volume.id)
        .map(|snapshot| snapshot.created_at)
        .max()
        .unwrap_or(volume.created_at)
}

/// How full a volume is: what the guest that has it says, else its host.
async fn reported_use(shared: &Shared, volume: &Volume, reports: &[VolumeReport]) -> Option<Use> {
    if let Some(builder) = shared.builder_of(&volume.id)
        && let Some(disk) = shared.guest_disk(&builder).await
    {
        return Some(Use {
            used: disk.used_bytes,
            total: disk.total_bytes,
        });
    }
    let report = reports.iter().find(|report| report.volume == volume.id)?;
    Some(Use {
        used: report.used_bytes,
        total: report.size_bytes,
    })
}

/// Tells a volume's owner when something that is done by itself was not done, and leaves it alone for a while.
async fn took_care(
    shared: &Shared,
    holds: &Holds,
    volume: &Volume,
    what: &str,
    done: Result<(), FarmError>,
) {
    let (org, id) = (&volume.org, &volume.id);
    match done {
        // What it was told of something else stays.
        Ok(())
            if volume
                .notice
                .as_ref()
                .is_some_and(|told| told.starts_with(what)) =>
        {
            shared.tell(org, id, None).await;
        }
        Ok(()) => {}
        Err(error) => {
            tracing::warn!(%org, volume = %id, what, why = ?chain(&error), "upkeep failed");
            holds.add(id);
            let notice = format!("{what}: {}", told(&error));
            shared.tell(org, id, Some(&notice)).await;
        }
    }
}
