//! Encrypted volumes: who has which key, and for how long.

use super::*;

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

/// What a volume is was decided when it was made.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_encrypted_stays_so_when_its_host_encrypts_no_more() {
    let mut bed = Bed::start_encrypting().await;
    let key = bed.org(HOUR).await;
    let view = bed.farm.ensure_builder(&key).await.expect("a builder");
    let running = async |bed: &Bed| {
        eventually("it runs", || async {
            let state = bed.farm.builder(&key).expect("there").state;
            (state.name() == "running").then_some(())
        })
        .await;
    };
    running(&bed).await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    let data = make(&bed, &key.org, 2).await;
    let has_key = async |bed: &Bed, id: &VolumeId| {
        let key = bed.keys().get(id).await;
        key.expect("asked").is_some()
    };
    let before = [bed.keys().get(&view.volume).await.expect("asked")];

    bed.kill_daemon().await;
    {
        let mut world = bed.world.lock();
        world.encrypts = false;
        world.leases.clear();
    }
    bed.start_daemon();
    bed.restart_farm().await;

    // It opens, on the same volume, and its lease is renewed.
    bed.farm.ensure_builder(&key).await.expect("a builder");
    running(&bed).await;
    let now = bed.farm.builder(&key).expect("there");
    assert_eq!((&now.volume, &now.notice), (&view.volume, &None));
    assert_eq!([bed.keys().get(&view.volume).await.expect("asked")], before);
    let lends = bed.world.lock().lends;
    eventually("the lease is renewed", || async {
        (bed.world.lock().lends > lends + 1).then_some(())
    })
    .await;
    bed.farm.stop_builder(&key).await.expect("stopped");

    // A fork of one is one; a new volume is none.
    let source = VolumeSource::Volume {
        volume: data.id.clone(),
    };
    let fork = bed.farm.create_volume(&key.org, from(source)).await;
    let fork = fork.expect("made");
    let plain = make(&bed, &key.org, 1).await;
    assert_eq!((fork.encrypted, plain.encrypted), (Some(true), Some(false)));
    assert!(!has_key(&bed, &plain.id).await);
    let larger = ByteSize::gib(3);
    let extended = bed.farm.extend_volume(&key.org, &data.id, larger).await;
    extended.expect("extended");

    // Keys go with their volumes.
    for id in [&data.id, &fork.id, &plain.id] {
        bed.farm
            .destroy_volume(&key.org, id, true)
            .await
            .expect("gone");
        assert!(!has_key(&bed, id).await, "the key of {id} is left");
    }
    bed.farm.reset_cache(&key).await.expect("emptied");
    assert!(!has_key(&bed, &view.volume).await);
    bed.farm.ensure_builder(&key).await.expect("a builder");
    running(&bed).await;
    assert!(
        !has_key(&bed, &view.volume).await,
        "it is made in clear now"
    );
    let leases = bed.world.lock().leases.clone();
    assert!(leases.is_empty(), "still lent: {leases:?}");
    bed.end().await;
}

/// A key that is gone opens nothing: a cache is expendable, and other volumes say what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_key_is_never_made_anew_for_what_there_is() {
    let bed = Bed::start_encrypting().await;
    let key = bed.org(HOUR).await;
    let view = bed.farm.ensure_builder(&key).await.expect("a builder");
    let running = || async {
        let now = bed.farm.builder(&key).expect("there");
        (now.state.name() == "running").then_some(now)
    };
    eventually("it runs", running).await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    let data = make(&bed, &key.org, 2).await;
    for id in [&view.volume, &data.id] {
        bed.keys().destroy(id).await.expect("lost");
    }
    let larger = ByteSize::gib(3);
    let extended = bed.farm.extend_volume(&key.org, &data.id, larger).await;
    let notice = extended.expect("recorded").notice.unwrap_or_default();
    assert!(notice.contains("key of the volume is lost"), "{notice}");
    bed.farm.ensure_builder(&key).await.expect("a builder");
    let now = eventually("it runs on another volume", running).await;
    assert_ne!(now.volume, view.volume);
    for id in [&view.volume, &data.id] {
        assert!(bed.keys().get(id).await.expect("asked").is_none(), "{id}");
    }
    bed.end().await;
}

/// A host that hangs costs only its own machines their leases.
#[tokio::test(flavor = "multi_thread")]
async fn leases_are_renewed_while_another_host_hangs() {
    let bed = Bed::start_two(true).await;
    // Placement takes turns by what is promised.
    for _ in 0..2 {
        let key = bed.org(HOUR).await;
        bed.farm.ensure_builder(&key).await.expect("a builder");
        eventually("it runs", || async {
            let state = bed.farm.builder(&key).expect("there").state;
            (state.name() == "running").then_some(())
        })
        .await;
    }
    let other = moves::other(&bed);
    assert!(
        bed.world.starts() == 1 && other.starts() == 1,
        "one on each"
    );
    other.lock().hold_leases = true;
    // More than one at the pace of a host's time-out.
    for _ in 0..10 {
        let lends = bed.world.lock().lends;
        eventually("the lease is renewed", || async {
            (bed.world.lock().lends > lends).then_some(())
        })
        .await;
    }
    bed.end().await;
}
