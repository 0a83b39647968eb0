//! Volumes of an org's own on a test host: what is asked for is done, finished after a crash, or undone.

mod common;

use common::{Bed, Disk, eventually};
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

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_from_beginning_to_end() {
    let bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    let mut volume = make(&bed, &org, 25).await;
    assert_eq!(disk(&bed, &volume.id).expect("there").size, 25 * GIB);
    assert_eq!(promised(&bed).await, 25);

    let larger = ByteSize::gib(30);
    for _ in 0..2 {
        let extended = bed.farm.extend_volume(&org, &volume.id, larger).await;
        volume = extended.expect("extended");
        assert_eq!((volume.size, volume.made), (larger, larger));
    }
    assert_eq!(disk(&bed, &volume.id).expect("there").size, 30 * GIB);
    let shrunk = bed
        .farm
        .extend_volume(&org, &volume.id, ByteSize::gib(29))
        .await;
    let error = shrunk.expect_err("smaller");
    assert_eq!((error.fault(), error.hint().is_some()), (Fault::User, true));

    bed.world
        .lock()
        .volumes
        .get_mut(&volume.id)
        .expect("there")
        .used = 4 * GIB;
    let snapshot = bed.farm.create_snapshot(&org, &volume.id).await;
    let snapshot = snapshot.expect("made");
    assert_eq!(
        (snapshot.state, snapshot.stored, snapshot.scheduled),
        (SnapshotState::Ready, ByteSize::gib(4), false)
    );
    assert_eq!(promised(&bed).await, 34);

    let restore = VolumeSource::Snapshot {
        snapshot: snapshot.id.clone(),
    };
    check_sources(&bed, &org, &volume, &restore).await;

    check_grace(&bed, &org, &volume.id).await;
    bed.farm
        .destroy_volume(&org, &volume.id, true)
        .await
        .expect("gone");
    assert!(bed.farm.restore_volume(&org, &volume.id).await.is_err());
    assert_eq!(promised(&bed).await, 4, "the snapshot stays");

    // What it held can be had from the snapshot, until that goes too.
    let back = bed.farm.create_volume(&org, from(restore)).await;
    let back = back.expect("restored");
    bed.farm
        .delete_snapshot(&org, &snapshot.id)
        .await
        .expect("gone");
    bed.farm
        .destroy_volume(&org, &back.id, true)
        .await
        .expect("gone");
    assert_eq!(promised(&bed).await, 0);
    assert_eq!(on_host(&bed), (vec![], vec![]));
    bed.end().await;
}

/// What a volume may be made from, and how not.
async fn check_sources(bed: &Bed, org: &OrgId, volume: &Volume, restore: &VolumeSource) {
    let fork = VolumeSource::Volume {
        volume: volume.id.clone(),
    };
    for source in [fork.clone(), restore.clone()] {
        let made = bed.farm.create_volume(org, from(source.clone())).await;
        let made = made.expect("made");
        assert_eq!(
            (made.size, made.source.as_ref()),
            (volume.size, Some(&source))
        );
        assert_eq!(disk(bed, &made.id).expect("there").source, Some(source));
        let gone = bed.farm.destroy_volume(org, &made.id, true).await;
        assert_eq!(gone.expect("destroyed").state, VolumeState::Condemned);
        assert_eq!(disk(bed, &made.id), None);
    }
    for (wrong, code) in [
        (
            AskedVolume {
                size: Some(ByteSize::gib(29)),
                ..from(fork.clone())
            },
            "INVALID",
        ),
        (
            AskedVolume {
                region: Some("mars".into()),
                ..from(restore.clone())
            },
            "INVALID",
        ),
        (
            AskedVolume {
                encrypted: Some(true),
                ..from(restore.clone())
            },
            "INVALID",
        ),
    ] {
        match bed.farm.create_volume(org, wrong).await {
            Err(FarmError::Volume(error)) => assert_eq!(error.code().as_str(), code, "{error}"),
            other => panic!("{other:?}"),
        }
    }
}

/// A volume that is to be destroyed a day from now, and is restored before.
async fn check_grace(bed: &Bed, org: &OrgId, id: &VolumeId) {
    let going = bed.farm.destroy_volume(org, id, false).await;
    let going = going.expect("scheduled").destroy_at.expect("a time");
    let again = bed.farm.destroy_volume(org, id, false).await;
    assert_eq!(again.expect("no later").destroy_at, Some(going));
    assert!(matches!(
        bed.farm.extend_volume(org, id, ByteSize::gib(40)).await,
        Err(FarmError::Volume(VolumeError::ToBeDestroyed))
    ));
    let kept = bed.farm.restore_volume(org, id).await;
    assert_eq!(kept.expect("restored").destroy_at, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_refuses_for_good_is_undone() {
    let bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    let volume = make(&bed, &org, 10).await;
    let refuse = |code| bed.world.lock().refuse_volumes.push_back(code);
    for code in [HostErrorCode::NoSpace, HostErrorCode::Unsupported] {
        refuse(code);
        let refused = bed.farm.create_volume(&org, asked(5)).await;
        refused.expect_err("refused");
        refuse(code);
        let refused = bed
            .farm
            .extend_volume(&org, &volume.id, ByteSize::gib(20))
            .await;
        refused.expect_err("refused");
        refuse(code);
        bed.farm
            .create_snapshot(&org, &volume.id)
            .await
            .expect_err("refused");
        let volumes = bed.store.volumes(&org).await.expect("listed");
        assert_eq!(volumes, std::slice::from_ref(&volume));
        let snapshots = bed.store.snapshots(&org, &volume.id).await;
        assert_eq!(snapshots.expect("listed"), []);
        assert_eq!(promised(&bed).await, 10);
    }
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_does_not_do_now_is_done_later() {
    let mut bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    let volume = make(&bed, &org, 10).await;
    // Neither the pooled connection nor the second try gets an answer, though the deed is done.
    let lose = |bed: &Bed| bed.world.lock().lose_answers = 2;

    lose(&bed);
    let planned = bed
        .farm
        .create_volume(&org, asked(5))
        .await
        .expect("recorded");
    assert_eq!(planned.state, VolumeState::Planned);
    assert!(planned.notice.is_some(), "its owner is told");
    assert!(disk(&bed, &planned.id).is_some(), "the deed was done");
    // It grows before anybody knows that it is there.
    lose(&bed);
    let larger = bed
        .farm
        .extend_volume(&org, &planned.id, ByteSize::gib(6))
        .await;
    assert_eq!(larger.expect("recorded").state, VolumeState::Planned);
    lose(&bed);
    let growing = bed
        .farm
        .extend_volume(&org, &volume.id, ByteSize::gib(12))
        .await;
    let growing = growing.expect("recorded");
    assert_eq!(
        (growing.size, growing.made),
        (ByteSize::gib(12), ByteSize::gib(10))
    );
    lose(&bed);
    let snapshot = bed
        .farm
        .create_snapshot(&org, &volume.id)
        .await
        .expect("recorded");
    assert_eq!(snapshot.state, SnapshotState::Planned);

    bed.restart_farm().await;
    let made = settled(&bed, &org, &planned.id, "it is made").await;
    assert_eq!((made.size, made.notice), (ByteSize::gib(6), None));
    settled(&bed, &org, &volume.id, "it has grown").await;
    eventually("the snapshot is made", || async {
        let kept = bed.store.snapshot(&org, &snapshot.id).await.expect("there");
        (kept.state == SnapshotState::Ready).then_some(())
    })
    .await;

    lose(&bed);
    bed.farm
        .delete_snapshot(&org, &snapshot.id)
        .await
        .expect("recorded");
    lose(&bed);
    bed.farm
        .destroy_volume(&org, &volume.id, true)
        .await
        .expect("recorded");
    bed.kill_daemon().await;
    bed.start_daemon();
    eventually("both are forgotten", || async {
        let left = promised(&bed).await;
        (left == 6).then_some(())
    })
    .await;
    assert_eq!(disk(&bed, &volume.id), None);
    bed.end().await;
}

/// What a volume may go through, as far as it is let.
async fn live(farm: &Farm, org: &OrgId) -> Result<(), FarmError> {
    let volume = farm.create_volume(org, asked(2)).await?;
    let id = &volume.id;
    farm.extend_volume(org, id, ByteSize::gib(3)).await?;
    let kept = farm.create_snapshot(org, id).await?;
    let source = VolumeSource::Snapshot {
        snapshot: kept.id.clone(),
    };
    let back = farm.create_volume(org, from(source)).await?;
    farm.destroy_volume(org, id, true).await?;
    farm.delete_snapshot(org, &kept.id).await?;
    farm.destroy_volume(org, &back.id, true).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_cut_off_anywhere_leaves_nothing_between() {
    let mut bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    // Cut before, in and after each verb on the host, with its answer or without.
    for cut in 0..=9 {
        for lost in [0, 2] {
            let (farm, owner) = (bed.farm.clone(), org.clone());
            let before = {
                let mut world = bed.world.lock();
                world.lose_answers = 0;
                world.disk_verbs
            };
            let life = tokio::spawn(async move { live(&farm, &owner).await });
            while bed.world.lock().disk_verbs < before + cut && !life.is_finished() {
                if bed.world.lock().disk_verbs + 1 == before + cut {
                    bed.world.lock().lose_answers = lost;
                }
                tokio::task::yield_now().await;
            }
            life.abort();
            let _cut = life.await;
            bed.restart_farm().await;
        }
    }
    bed.world.lock().lose_answers = 0;
    bed.restart_farm().await;
    eventually("everything is settled", || async {
        let volumes = bed.store.volumes(&org).await.expect("listed");
        let done = |v: &Volume| v.state == VolumeState::Ready && v.made == v.size;
        volumes.iter().all(done).then_some(())
    })
    .await;
    let snapshots = eventually("all snapshots are made", || async {
        let host = bed.store.hosts().await.expect("hosts").remove(0).host;
        let all = bed.store.snapshots_on(&host.id).await.expect("listed");
        all.iter()
            .all(|s| s.state == SnapshotState::Ready)
            .then_some(all)
    })
    .await;
    let volumes = bed.store.volumes(&org).await.expect("listed");
    let mut volumes: Vec<_> = volumes.into_iter().map(|v| (v.id, v.size.0)).collect();
    volumes.sort();
    let mut snapshots: Vec<_> = snapshots.into_iter().map(|s| s.id).collect();
    snapshots.sort();
    assert_eq!(on_host(&bed), (volumes, snapshots), "host and record agree");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_never_exceed_the_pool() {
    let bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (farm, org) = (bed.farm.clone(), org.clone());
        tasks.spawn(async move { farm.create_volume(&org, asked(10)).await });
    }
    let done = tasks.join_all().await;
    assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 20);
    assert_eq!(promised(&bed).await, 200);
    assert_eq!(bed.world.lock().volumes.len(), 20);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builders_cache_is_kept_and_grows_while_it_runs_and_is_not_destroyed() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let view = bed.farm.ensure_builder(&key).await.expect("a builder");
    eventually("it runs", || async {
        let state = bed.farm.builder(&key).expect("there").state;
        (state.name() == "running").then_some(())
    })
    .await;
    let larger = ByteSize::gib(3);
    let extended = bed.farm.extend_volume(&key.org, &view.volume, larger).await;
    assert_eq!(extended.expect("extended").made, larger);
    assert_eq!(bed.farm.builder(&key).expect("there").size.volume, larger);
    bed.farm
        .create_snapshot(&key.org, &view.volume)
        .await
        .expect("kept");
    for at_once in [false, true] {
        assert!(matches!(
            bed.farm
                .destroy_volume(&key.org, &view.volume, at_once)
                .await,
            Err(FarmError::Volume(VolumeError::Attached))
        ));
    }
    // It starts again on the size it has, also when its volume must be made anew.
    bed.farm.reset_cache(&key).await.expect("reset");
    bed.farm.ensure_builder(&key).await.expect("a builder");
    settled(&bed, &key.org, &view.volume, "the cache is made anew").await;
    assert_eq!(disk(&bed, &view.volume).expect("there").size, larger.0);
    eventually("it starts again", || async {
        (bed.world.starts() == 2).then_some(())
    })
    .await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_kept_every_day_and_snapshots_go_when_their_time_is_over() {
    let mut bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    let host = bed.store.hosts().await.expect("hosts").remove(0).host.id;
    bed.stop_farm().await;
    // A volume of long ago, whose last snapshot is over.
    let new = NewVolume {
        id: VolumeId::from_entropy([7; 10]),
        host,
        name: "old".into(),
        size: ByteSize::gib(1),
        source: None,
        policy: VolumePolicy::default(),
        at: Timestamp(1),
    };
    bed.store.create_volume(&org, &new).await.expect("recorded");
    let made = ByteSize::gib(1);
    let recorded = bed
        .store
        .record_volume_made(&org, &new.id, made, None)
        .await;
    recorded.expect("recorded");
    let disk = Disk {
        size: GIB,
        used: 5,
        source: None,
    };
    bed.world.lock().volumes.insert(new.id.clone(), disk);
    let old = NewSnapshot {
        id: SnapshotId::from_entropy([8; 10]),
        volume: new.id.clone(),
        reserve: ByteSize(5),
        scheduled: true,
        at: Timestamp(2),
        expires_at: Timestamp(3),
    };
    bed.store
        .create_snapshot(&org, &old)
        .await
        .expect("recorded");
    for _ in 0..2 {
        bed.restart_farm().await;
        let kept = eventually(
            "one new snapshot is there, and the old one is not",
            || async {
                let all = bed.store.snapshots(&org, &new.id).await.expect("listed");
                match all.as_slice() {
                    [one] if one.state == SnapshotState::Ready && one.id != old.id => {
                        Some(one.clone())
                    }
                    _ => None,
                }
            },
        )
        .await;
        assert!(kept.scheduled);
        assert_eq!(kept.expires_at.since(kept.created_at), HOUR * 24 * 5);
        assert_eq!(bed.world.lock().snapshots.len(), 1);
    }
    // One whose time is over goes.
    let past = Some(Timestamp(4));
    bed.store
        .schedule_destruction(&org, &new.id, past)
        .await
        .expect("recorded");
    bed.restart_farm().await;
    eventually("the volume is gone", || async {
        matches!(
            bed.store.volume(&org, &new.id).await,
            Err(StoreError::NotFound(_))
        )
        .then_some(())
    })
    .await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_grows_by_itself_and_its_owner_hears_when_it_cannot() {
    let bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    let volume = make(&bed, &org, 10).await;
    let fill = |used| {
        let mut world = bed.world.lock();
        world.volumes.get_mut(&volume.id).expect("there").used = used;
    };
    let policy = |limit| VolumePolicy {
        scheduled_snapshots: false,
        auto_extend: Some(AutoExtend {
            threshold_percent: 80,
            increment: ByteSize::gib(2),
            limit: ByteSize::gib(limit),
        }),
        ..VolumePolicy::default()
    };
    fill(8 * GIB);
    let wanted = bed
        .farm
        .set_volume_policy(&org, &volume.id, &policy(15))
        .await;
    wanted.expect("recorded");
    eventually("it has grown", || async {
        let there = bed.store.volume(&org, &volume.id).await.expect("there");
        (there.made == ByteSize::gib(12)).then_some(())
    })
    .await;
    // The rest of the pool is taken, so it cannot.
    make(&bed, &org, 187).await;
    fill(12 * GIB);
    let wanted = bed
        .farm
        .set_volume_policy(&org, &volume.id, &policy(99))
        .await;
    wanted.expect("recorded");
    eventually("its owner is told", || async {
        bed.store
            .volume(&org, &volume.id)
            .await
            .expect("there")
            .notice
    })
    .await;
    let there = bed.store.volume(&org, &volume.id).await.expect("there");
    assert_eq!(there.size, ByteSize::gib(12));
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_lent_for_the_work_and_go_with_the_last_that_needs_them() {
    let bed = Bed::start_encrypting().await;
    let org = bed.org(HOUR).await.org;
    let volume = make(&bed, &org, 2).await;
    assert_eq!(volume.encrypted, Some(true));
    let kept = bed.farm.create_snapshot(&org, &volume.id).await;
    let kept = kept.expect("kept");
    assert!(kept.encrypted);
    let fork = VolumeSource::Volume {
        volume: volume.id.clone(),
    };
    let fork = bed
        .farm
        .create_volume(&org, from(fork))
        .await
        .expect("made");
    let larger = ByteSize::gib(3);
    let extended = bed.farm.extend_volume(&org, &volume.id, larger).await;
    extended.expect("extended");
    let has_key = async |id: &VolumeId| bed.keys().get(id).await.expect("asked").is_some();

    // The volume goes, and what was kept of it can still be opened.
    bed.farm
        .destroy_volume(&org, &volume.id, true)
        .await
        .expect("gone");
    assert!(has_key(&volume.id).await, "the snapshot needs it");
    let restore = VolumeSource::Snapshot {
        snapshot: kept.id.clone(),
    };
    let back = bed.farm.create_volume(&org, from(restore)).await;
    let back = back.expect("made from what a volume held that is gone");
    bed.farm
        .delete_snapshot(&org, &kept.id)
        .await
        .expect("gone");
    assert!(!has_key(&volume.id).await, "nothing needs it");
    for id in [&fork.id, &back.id] {
        assert!(has_key(id).await);
        bed.farm.destroy_volume(&org, id, true).await.expect("gone");
        assert!(!has_key(id).await);
    }
    let leases = bed.world.lock().leases.clone();
    assert!(leases.is_empty(), "still lent: {leases:?}");
    bed.end().await;
}

/// Its key was lent for starts of a machine, which has another volume now.
#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_was_set_aside_can_be_forked_where_volumes_are_encrypted() {
    let bed = Bed::start_encrypting().await;
    let key = bed.org(HOUR).await;
    let view = bed.farm.ensure_builder(&key).await.expect("a builder");
    let running = || async {
        let state = bed.farm.builder(&key).expect("there").state;
        (state.name() == "running").then_some(())
    };
    eventually("it runs", running).await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.world.lock().damaged.insert(view.volume.clone());
    bed.farm.ensure_builder(&key).await.expect("a builder");
    eventually("it runs on another volume", || async {
        let now = bed.farm.builder(&key).expect("there");
        (now.volume != view.volume && now.state.name() == "running").then_some(())
    })
    .await;
    let source = VolumeSource::Volume {
        volume: view.volume.clone(),
    };
    let fork = bed.farm.create_volume(&key.org, from(source)).await;
    assert_eq!(fork.expect("made").state, VolumeState::Ready);
    bed.farm
        .destroy_volume(&key.org, &view.volume, true)
        .await
        .expect("gone");
    bed.end().await;
}
