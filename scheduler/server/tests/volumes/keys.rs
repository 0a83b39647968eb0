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
