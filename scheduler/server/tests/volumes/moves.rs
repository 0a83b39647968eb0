//! Moves from one host to another: the volume is in one place at any time, and in the end nothing is left in the other.

use super::*;
use common::World;
use slipway_core::volume::MoveStep;
use slipway_scheduler::farm::AskedMove;
use slipway_store::NewMove;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) fn other(bed: &Bed) -> Arc<World> {
    Arc::clone(bed.other.as_ref().expect("a second host"))
}

/// A volume on the host `test` that holds something.
pub(super) async fn filled(bed: &Bed, org: &OrgId) -> (Volume, Vec<u8>) {
    let contents: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[1]).collect();
    loop {
        let volume = make(bed, org, 2).await;
        if disk(bed, &volume.id).is_some() {
            let held = (volume.id.to_string(), contents.clone());
            bed.world.lock().contents.extend([held]);
            return (volume, contents);
        }
        // It was placed on the other one.
        let gone = bed.farm.destroy_volume(org, &volume.id, true).await;
        gone.expect("gone");
        let first = AskedVolume {
            name: "filler".into(),
            ..asked(3)
        };
        let filler = bed.farm.create_volume(org, first).await;
        filler.expect("made");
    }
}

/// GiB promised of the pools of `test` and `other`.
async fn both(bed: &Bed) -> (u64, u64) {
    let hosts = bed.store.hosts().await.expect("hosts");
    let of = |name: &str| {
        let found = hosts.iter().find(|used| used.host.name == name);
        found.expect("there").pool_promised.0 / GIB
    };
    (of("test"), of("other"))
}

async fn begin(bed: &Bed, org: &OrgId, id: &VolumeId) -> Result<Volume, FarmError> {
    let to = AskedMove::Zone("other".into());
    bed.farm.move_volume(org, id, &to).await
}

/// Waits until the volume is on the other host and nothing is left on the first one.
async fn arrived(bed: &Bed, volume: &Volume, contents: &[u8]) {
    let moved = eventually("it has moved", || async {
        let now = bed
            .store
            .volume(&volume.org, &volume.id)
            .await
            .expect("there");
        now.moving.is_none().then_some(now)
    })
    .await;
    assert_ne!(moved.host, volume.host);
    assert_eq!((moved.state, moved.made), (VolumeState::Ready, volume.made));
    let other = other(bed);
    let other = other.lock();
    assert!(
        other
            .contents
            .get(volume.id.as_str())
            .is_some_and(|c| c == contents)
    );
    let first = bed.world.lock();
    assert!(
        !first.volumes.contains_key(&volume.id),
        "the old copy is left"
    );
    assert!(other.imports.is_empty() && first.imports.is_empty());
    assert!(first.leases.is_empty() && other.leases.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_moves_and_its_snapshots_stay() {
    for encrypts in [false, true] {
        let bed = Bed::start_two(encrypts).await;
        let org = bed.org(HOUR).await.org;
        let (volume, contents) = filled(&bed, &org).await;
        let before = both(&bed).await;
        let kept = bed.farm.create_snapshot(&org, &volume.id).await;
        let kept = kept.expect("kept");
        let begun = begin(&bed, &org, &volume.id).await.expect("begun");
        assert!(begun.moving.is_some());
        arrived(&bed, &volume, &contents).await;
        let after = both(&bed).await;
        assert_eq!(after, (before.0 - 2, before.1 + 2));
        assert_eq!(bed.world.lock().snapshots.len(), 1, "the owner's own stays");
        assert!(other(&bed).lock().snapshots.is_empty());
        let there = begin(&bed, &org, &volume.id)
            .await
            .expect_err("it is there");
        assert_eq!((there.fault(), there.hint().is_some()), (Fault::User, true));

        // It lives on there, and what was kept before can still be had where it was.
        let larger = bed
            .farm
            .extend_volume(&org, &volume.id, ByteSize::gib(3))
            .await;
        assert_eq!(larger.expect("extended").made, ByteSize::gib(3));
        let source = VolumeSource::Snapshot {
            snapshot: kept.id.clone(),
        };
        let back = bed.farm.create_volume(&org, from(source.clone())).await;
        let back = back.expect("restored");
        assert_eq!(back.host, volume.host);
        bed.farm
            .destroy_volume(&org, &volume.id, true)
            .await
            .expect("gone");
        // Its key goes with the last that needs it, wherever that is.
        let again = bed.farm.create_volume(&org, from(source)).await;
        again.expect("restored once more");
        bed.farm
            .delete_snapshot(&org, &kept.id)
            .await
            .expect("deleted");
        let key = bed.keys().get(&volume.id).await.expect("asked");
        assert!(key.is_none(), "nothing needs it");
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_moves_is_not_changed_and_can_stay() {
    let bed = Bed::start_two(false).await;
    let org = bed.org(HOUR).await.org;
    let (volume, contents) = filled(&bed, &org).await;
    let before = both(&bed).await;
    let held = Arc::clone(&bed.world.lock().hold_exports);
    held.store(true, Ordering::SeqCst);
    begin(&bed, &org, &volume.id).await.expect("begun");
    begin(&bed, &org, &volume.id)
        .await
        .expect("the same once more");
    eventually("some has arrived", || async {
        (!other(&bed).lock().imports.is_empty()).then_some(())
    })
    .await;
    assert_eq!(both(&bed).await, (before.0, before.1 + 2));
    let refused = [
        bed.farm.destroy_volume(&org, &volume.id, true).await,
        bed.farm
            .extend_volume(&org, &volume.id, ByteSize::gib(3))
            .await,
    ];
    for refused in refused {
        let error = refused.expect_err("it is moving");
        assert!(matches!(error, FarmError::Volume(VolumeError::Moving)));
    }
    let stays = bed.farm.cancel_move(&org, &volume.id).await;
    let stays = stays.expect("given up");
    assert_eq!((&stays.host, stays.moving), (&volume.host, None));
    assert_eq!(both(&bed).await, before);
    assert!(other(&bed).lock().imports.is_empty());
    assert!(bed.world.lock().snapshots.is_empty());
    let none = bed.farm.cancel_move(&org, &volume.id).await;
    assert_eq!(none.expect_err("there is none").fault(), Fault::User);
    held.store(false, Ordering::SeqCst);
    begin(&bed, &org, &volume.id).await.expect("begun");
    arrived(&bed, &volume, &contents).await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_be_had_there_stays() {
    let bed = Bed::start_two(false).await;
    let org = bed.org(HOUR).await.org;
    let (volume, contents) = filled(&bed, &org).await;
    let before = both(&bed).await;
    for wrong in [
        AskedMove::Zone("mars".into()),
        AskedMove::Zone("test".into()),
        AskedMove::Region("mars".into()),
    ] {
        let refused = bed.farm.move_volume(&org, &volume.id, &wrong).await;
        assert_eq!(
            refused.expect_err("refused").fault(),
            Fault::User,
            "{wrong:?}"
        );
    }
    let alone = Bed::start().await;
    let (org_of_one, to) = (alone.org(HOUR).await.org, AskedMove::Region("local".into()));
    let only = make(&alone, &org_of_one, 1).await;
    let refused = alone.farm.move_volume(&org_of_one, &only.id, &to).await;
    let said = refused.expect_err("no other host").to_string();
    assert!(said.contains("no other host"), "{said}");
    alone.end().await;
    other(&bed)
        .lock()
        .refuse_volumes
        .push_back(HostErrorCode::NoSpace);
    begin(&bed, &org, &volume.id).await.expect("begun");
    let stays = eventually("it is given up", || async {
        let now = bed.store.volume(&org, &volume.id).await.expect("there");
        now.moving.is_none().then_some(now)
    })
    .await;
    assert_eq!(stays.host, volume.host);
    assert!(
        stays
            .notice
            .is_some_and(|notice| notice.contains("no room"))
    );
    assert_eq!(both(&bed).await, before);
    assert!(bed.world.lock().snapshots.is_empty());
    // To any other host of the region there is.
    let to = AskedMove::Region("local".into());
    let begun = bed.farm.move_volume(&org, &volume.id, &to).await;
    begun.expect("begun");
    arrived(&bed, &volume, &contents).await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_somebody_elses_is_not_moved() {
    let bed = Bed::start_two(false).await;
    let (org, stranger) = (bed.org(HOUR).await.org, bed.org(HOUR).await.org);
    let (volume, _) = filled(&bed, &org).await;
    let refused = begin(&bed, &stranger, &volume.id).await;
    assert_eq!(refused.expect_err("refused").fault(), Fault::User);
    let none = bed.farm.cancel_move(&stranger, &volume.id).await;
    assert_eq!(none.expect_err("refused").fault(), Fault::User);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_cut_off_anywhere_finishes_the_move() {
    let mut bed = Bed::start_two(true).await;
    let org = bed.org(HOUR).await.org;
    let verbs = |bed: &Bed| bed.world.lock().disk_verbs + other(bed).lock().disk_verbs;
    for cut in 0..=6 {
        for lost in [0, 2] {
            let (volume, contents) = filled(&bed, &org).await;
            let before = verbs(&bed);
            begin(&bed, &org, &volume.id).await.expect("begun");
            let mut after = None;
            while verbs(&bed) < before + cut {
                if lost > 0 && verbs(&bed) + 1 == before + cut {
                    bed.world.lock().lose_answers = lost;
                    other(&bed).lock().lose_answers = lost;
                }
                let now = bed.store.volume(&org, &volume.id).await.expect("there");
                after = Some(now);
                if after.as_ref().is_some_and(|now| now.moving.is_none()) {
                    break;
                }
            }
            drop(after);
            bed.restart_farm().await;
            bed.world.lock().lose_answers = 0;
            other(&bed).lock().lose_answers = 0;
            bed.restart_farm().await;
            arrived(&bed, &volume, &contents).await;
            let gone = bed.farm.destroy_volume(&org, &volume.id, true).await;
            gone.expect("gone");
        }
    }
    assert!(bed.world.lock().snapshots.is_empty());
    assert!(
        other(&bed)
            .lock()
            .volumes
            .values()
            .all(|disk| disk.size == 3 * GIB)
    );
    bed.end().await;
}

/// Waits until the move of a volume is halted, and gives the volume.
pub(super) async fn halted(bed: &Bed, volume: &Volume) -> Volume {
    eventually("the move is halted", || async {
        let now = bed.store.volume(&volume.org, &volume.id).await;
        let now = now.expect("there");
        let step = now.moving.as_ref().map(|moving| moving.step);
        // The notice of what halted it is there before.
        let notice = now.notice.clone().unwrap_or_default();
        (step == Some(MoveStep::Halted) && notice.contains("halted")).then_some(now)
    })
    .await
}

/// The record says that the copy is still to be made, and its source is gone: as after the loss of the record of the switch.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_missing_is_no_reason_to_destroy_the_copy() {
    let bed = Bed::start_two(true).await;
    let org = bed.org(HOUR).await.org;
    let (volume, contents) = filled(&bed, &org).await;
    let disk = disk(&bed, &volume.id).expect("there");
    {
        bed.world.lock().volumes.remove(&volume.id);
        let other = other(&bed);
        let mut other = other.lock();
        other.volumes.insert(volume.id.clone(), disk);
        let held = (volume.id.to_string(), contents.clone());
        other.contents.extend([held]);
    }
    let hosts = bed.store.hosts().await.expect("hosts");
    let to = hosts.iter().find(|used| used.host.name == "other");
    let new = NewMove {
        to: to.expect("there").host.id.clone(),
        snapshot: SnapshotId::from_entropy([7; 10]),
        reserve: ByteSize(0),
    };
    bed.store
        .begin_move(&org, &volume.id, &new)
        .await
        .expect("recorded");
    let mut bed = bed;
    bed.restart_farm().await;
    let still = halted(&bed, &volume).await;
    assert_eq!(still.host, volume.host);
    let copy_is_there = |bed: &Bed| other(bed).lock().volumes.contains_key(&volume.id);
    assert!(copy_is_there(&bed));

    // Nothing else is done to it before somebody chooses, and only a copy that is there can be chosen.
    bed.restart_farm().await;
    let to = AskedMove::Zone("other".into());
    let refused = [
        bed.farm.move_volume(&org, &volume.id, &to).await,
        bed.farm.destroy_volume(&org, &volume.id, true).await,
        bed.farm
            .extend_volume(&org, &volume.id, ByteSize::gib(9))
            .await,
    ];
    for refused in refused {
        let error = refused.expect_err("halted");
        assert!(
            matches!(error, FarmError::Volume(VolumeError::Halted)),
            "{error}"
        );
    }
    // Its owner still reads why.
    let now = bed.store.volume(&org, &volume.id).await.expect("there");
    let notice = now.notice.unwrap_or_default();
    assert!(notice.contains("halted"), "{notice:?}");
    for wrong in ["test", "mars"] {
        let refused = bed.farm.keep_copy(&org, &volume.id, wrong, false).await;
        assert_eq!(refused.expect_err("refused").fault(), Fault::User);
    }
    let stranger = bed.org(HOUR).await.org;
    let refused = bed
        .farm
        .keep_copy(&stranger, &volume.id, "other", false)
        .await;
    assert_eq!(refused.expect_err("refused").fault(), Fault::User);
    assert!(copy_is_there(&bed));
    let kept = bed.farm.keep_copy(&org, &volume.id, "other", false).await;
    assert_eq!(kept.expect("chosen").moving, None);
    arrived(&bed, &volume, &contents).await;
    bed.end().await;
}

/// The record says that the copy is the volume, and it is not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_missing_is_no_reason_to_destroy_its_source() {
    let mut bed = Bed::start_two(false).await;
    let org = bed.org(HOUR).await.org;
    let (volume, contents) = filled(&bed, &org).await;
    let hosts = bed.store.hosts().await.expect("hosts");
    let to = hosts.iter().find(|used| used.host.name == "other");
    let new = NewMove {
        to: to.expect("there").host.id.clone(),
        snapshot: SnapshotId::from_entropy([7; 10]),
        reserve: ByteSize(0),
    };
    bed.stop_farm().await;
    let begun = bed.store.begin_move(&org, &volume.id, &new).await;
    begun.expect("recorded");
    let finished = bed.store.finish_move(&org, &volume.id).await;
    finished.expect("recorded");
    bed.restart_farm().await;
    halted(&bed, &volume).await;
    assert!(
        disk(&bed, &volume.id).is_some(),
        "the only copy is destroyed"
    );

    // The old host keeps it, and the move can be begun anew.
    let kept = bed.farm.keep_copy(&org, &volume.id, "test", false).await;
    let kept = kept.expect("chosen");
    assert_eq!((&kept.host, kept.moving), (&volume.host, None));
    begin(&bed, &org, &volume.id).await.expect("begun");
    arrived(&bed, &volume, &contents).await;
    bed.end().await;
}

/// A host that is gone in the middle leaves nothing that cannot be cleared.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_on_a_host_that_never_comes_back_can_be_forgotten() {
    let mut bed = Bed::start_two(false).await;
    let org = bed.org(HOUR).await.org;
    let (volume, contents) = filled(&bed, &org).await;
    let before = both(&bed).await;
    let held = Arc::clone(&bed.world.lock().hold_exports);
    held.store(true, Ordering::SeqCst);
    begin(&bed, &org, &volume.id).await.expect("begun");
    eventually("some has arrived", || async {
        (!other(&bed).lock().imports.is_empty()).then_some(())
    })
    .await;
    bed.kill_other_daemon().await;
    let given_up = bed.farm.cancel_move(&org, &volume.id).await;
    let left = given_up.expect("given up").moving.expect("a copy is left");
    assert_eq!(left.step, MoveStep::Clearing);
    let kept = bed.farm.keep_copy(&org, &volume.id, "test", true).await;
    assert_eq!(kept.expect("forgotten").moving, None);
    assert_eq!(both(&bed).await, before);
    held.store(false, Ordering::SeqCst);
    let destroyed = bed.farm.destroy_volume(&org, &volume.id, true).await;
    destroyed.expect("gone");
    assert_eq!(both(&bed).await, (before.0 - 2, before.1));
    drop(contents);
    bed.end().await;
}
