//! What may be done with a volume, and what not.

use super::*;

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
        assert_eq!(gone.expect("destroyed").state, VolumeState::Deleting);
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
