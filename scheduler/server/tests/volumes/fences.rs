//! Fencing numbers: what was decided earlier is not done to what was chosen later, and a database that was set back destroys nothing.

use super::moves::{filled, halted};
use super::*;
use slipway_core::fence::Fence;
use slipway_scheduler::host_client::HostClient;
use slipway_store::NewMove;

#[tokio::test(flavor = "multi_thread")]
async fn a_destruction_that_comes_late_is_not_done_to_the_copy_that_was_kept() {
    for forget_other in [false, true] {
        let mut bed = Bed::start_two(false).await;
        let org = bed.org(HOUR).await.org;
        let (volume, _) = filled(&bed, &org).await;
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
        // From here on the copy on the first host is to be destroyed, and whoever read this record may be about to ask for it.
        let moved = bed.store.finish_move(&org, &volume.id).await;
        let late = moved.expect("recorded").fenced();
        bed.restart_farm().await;
        halted(&bed, &volume).await;
        if forget_other {
            bed.kill_other_daemon().await;
            let away = || async {
                let told = bed.farm.notices();
                told.iter()
                    .any(|told| told.contains("does not answer"))
                    .then_some(())
            };
            eventually("the other host is away", away).await;
        }
        let kept = bed
            .farm
            .keep_copy(&org, &volume.id, "test", forget_other)
            .await;
        let kept = kept.expect("chosen");
        assert_eq!((&kept.host, &kept.moving), (&volume.host, &None));

        let client = HostClient::new(&bed.dir.path().join("host.sock"));
        let refused = client.destroy_volume(late).await.expect_err("too late");
        assert_eq!(refused.code(), Some(HostErrorCode::StaleFence));
        assert!(
            disk(&bed, &volume.id).is_some(),
            "the only copy is destroyed"
        );
        // What follows from the record as it is now is done.
        let gone = bed.farm.destroy_volume(&org, &volume.id, true).await;
        gone.expect("gone");
        assert!(disk(&bed, &volume.id).is_none());
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_on_an_older_database_destroys_neither_a_volume_nor_its_key_and_says_so() {
    let bed = Bed::start_encrypting().await;
    let key = bed.org(HOUR).await;
    let volume = make(&bed, &key.org, 2).await;
    let cache = bed.farm.ensure_builder(&key).await.expect("made").volume;
    settled(&bed, &key.org, &cache, "the cache is made").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    // Their host has seen orders of a time that is not in this database.
    for id in [&volume.id, &cache] {
        bed.world.lock().fences.insert(id.clone(), Fence(99));
    }
    let has_key = async |id: &VolumeId| bed.keys().get(id).await.expect("asked").is_some();
    let still = bed.farm.destroy_volume(&key.org, &volume.id, true).await;
    let notice = still.expect("recorded").notice.unwrap_or_default();
    assert!(notice.contains("later orders"), "{notice}");
    bed.farm.reset_cache(&key).await.expect_err("refused");
    for id in [&volume.id, &cache] {
        assert!(disk(&bed, id).is_some() && has_key(id).await, "{id}");
    }
    let record = bed.store.volume(&key.org, &volume.id).await;
    assert_eq!(record.expect("kept").state, VolumeState::Deleting);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_anew_outlives_the_destruction_of_what_was_there_before() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let cache = bed.farm.ensure_builder(&key).await.expect("made").volume;
    settled(&bed, &key.org, &cache, "the cache is made").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.farm.reset_cache(&key).await.expect("emptied");
    let emptied = bed.store.volume(&key.org, &cache).await.expect("there");
    let late = emptied.fenced_before();
    bed.farm.ensure_builder(&key).await.expect("wanted");
    settled(&bed, &key.org, &cache, "the cache is made anew").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    let client = HostClient::new(&bed.dir.path().join("host.sock"));
    let refused = client.destroy_volume(late).await.expect_err("too late");
    assert_eq!(refused.code(), Some(HostErrorCode::StaleFence));
    assert!(disk(&bed, &cache).is_some());
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_outlives_its_volume_and_is_deleted_with_the_number_that_the_volume_had() {
    let bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    let volume = make(&bed, &org, 2).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let made = bed.farm.create_snapshot(&org, &volume.id).await;
        kept.push(made.expect("made"));
    }
    // Its deletion raises the number, and the volume is used as before.
    bed.farm
        .delete_snapshot(&org, &kept[0].id)
        .await
        .expect("deleted");
    let larger = bed
        .farm
        .extend_volume(&org, &volume.id, ByteSize::gib(3))
        .await;
    assert_eq!(larger.expect("grows").made, ByteSize::gib(3));
    let gone = bed.farm.destroy_volume(&org, &volume.id, true).await;
    gone.expect("gone");
    bed.farm
        .delete_snapshot(&org, &kept[1].id)
        .await
        .expect("deleted");
    assert!(bed.world.lock().snapshots.is_empty());
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_more_than_a_page_of_anything_is_listed_whole() {
    let bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    let volume = make(&bed, &org, 2).await;
    let id = |n: u16| {
        let mut bytes = [255; 10];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        bytes
    };
    {
        let mut world = bed.world.lock();
        let disk = world.volumes[&volume.id].clone();
        let kept = Kept {
            volume: volume.id.clone(),
            size: 1,
            used: 1,
            encrypted: false,
        };
        for n in 0..1700 {
            let (volume, snapshot) = (VolumeId::from_entropy(id(n)), id(n));
            world.volumes.insert(volume, disk.clone());
            let snapshot = SnapshotId::from_entropy(snapshot);
            world.snapshots.insert(snapshot, kept.clone());
        }
    }
    let client = HostClient::new(&bed.dir.path().join("host.sock"));
    assert_eq!(client.volumes().await.expect("listed").len(), 1701);
    assert_eq!(client.snapshots().await.expect("listed").len(), 1700);
    let used = bed.farm.volume_use(&org).await;
    assert_eq!(used.len(), 1, "its own among all");
    bed.world.lock().volumes.retain(|id, _| *id == volume.id);
    bed.world.lock().snapshots.clear();
    bed.end().await;
}
