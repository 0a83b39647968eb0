//! Volumes of an org's own on a test host: what is asked for is done, finished after a crash, or undone.

mod caches;
#[path = "../common/mod.rs"]
mod common;
mod cuts;
mod fences;
mod hosts;
mod keys;
mod life;
mod moves;
mod transfers;
mod upkeep;

use common::{Bed, Disk, Kept, eventually};
use slipway_core::build::Fault;
use slipway_core::host_api::{HostErrorCode, VolumeSource};
use slipway_core::id::{OrgId, SnapshotId, VolumeId};
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use slipway_core::volume::{AutoExtend, VolumePolicy};
use slipway_scheduler::farm::{AskedVolume, Farm, FarmError, VolumeError};
use slipway_scheduler::keys::KeyStore;
use slipway_store::{
    NewSnapshot, NewVolume, SnapshotState, Store, StoreError, SystemStore, Volume, VolumeState,
};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
const GIB: u64 = 1 << 30;

fn asked(size: u64) -> AskedVolume {
    AskedVolume {
        name: "data".into(),
        region: Some("local".into()),
        size: Some(ByteSize::gib(size)),
        source: None,
        import: None,
        policy: VolumePolicy {
            scheduled_snapshots: false,
            ..VolumePolicy::default()
        },
        encrypted: None,
        unique: false,
    }
}

fn from(source: VolumeSource) -> AskedVolume {
    AskedVolume {
        region: None,
        size: None,
        source: Some(source),
        ..asked(1)
    }
}

async fn make(bed: &Bed, org: &OrgId, size: u64) -> Volume {
    let made = bed.farm.create_volume(org, asked(size)).await;
    let made = made.expect("made");
    assert_eq!(made.state, VolumeState::Ready);
    made
}

/// GiB promised of the pool.
async fn promised(bed: &Bed) -> u64 {
    bed.store.hosts().await.expect("hosts")[0].pool_promised.0 / GIB
}

fn disk(bed: &Bed, id: &VolumeId) -> Option<Disk> {
    bed.world.lock().volumes.get(id).cloned()
}

/// Volumes with their sizes, and snapshots, in the order of their ids.
fn on_host(bed: &Bed) -> (Vec<(VolumeId, u64)>, Vec<SnapshotId>) {
    let world = bed.world.lock();
    let volumes = world.volumes.iter().map(|(id, d)| (id.clone(), d.size));
    (volumes.collect(), world.snapshots.keys().cloned().collect())
}

async fn settled(bed: &Bed, org: &OrgId, id: &VolumeId, what: &str) -> Volume {
    eventually(what, || async {
        let volume = bed.store.volume(org, id).await.expect("there");
        let done = volume.state == VolumeState::Ready && volume.made == volume.size;
        done.then_some(volume)
    })
    .await
}
