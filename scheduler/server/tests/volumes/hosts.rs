//! A host is its pool, whatever it is called: no name of it makes two copies of one, of which one is destroyed.

use super::*;
use slipway_scheduler::farm::AskedMove;
use slipway_store::SystemStore;

async fn names(bed: &Bed) -> Vec<String> {
    let hosts = bed.store.hosts().await.expect("hosts");
    hosts.into_iter().map(|used| used.host.name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_host_keeps_its_volumes_and_none_of_them_can_be_moved_onto_itself() {
    let mut bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let volume = make(&bed, &key.org, 2).await;
    let cache = bed.farm.ensure_builder(&key).await.expect("made").volume;
    bed.stop_farm().await;
    bed.name = "renamed";
    bed.restart_farm().await;
    assert_eq!(names(&bed).await, ["renamed"]);
    for id in [&volume.id, &cache] {
        let now = bed.store.volume(&key.org, id).await.expect("there");
        assert_eq!(now.host, volume.host);
    }
    let to = AskedMove::Zone("renamed".into());
    let moved = bed.farm.move_volume(&key.org, &volume.id, &to).await;
    let refused = moved.expect_err("it is there");
    assert!(
        matches!(refused, FarmError::Volume(VolumeError::IsThere)),
        "{refused:?}"
    );
    let size = ByteSize::gib(3);
    let larger = bed.farm.extend_volume(&key.org, &volume.id, size).await;
    assert_eq!(larger.expect("it is used as before").made, size);
    assert!(bed.world.lock().volumes.contains_key(&volume.id));
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_two_names_is_used_under_one_and_keeps_the_only_copy() {
    let bed = Bed::start_twice().await;
    let org = bed.org(HOUR).await.org;
    let volume = make(&bed, &org, 2).await;
    assert_eq!(names(&bed).await.len(), 1, "the second name is refused");
    for zone in ["test", "other"] {
        let to = AskedMove::Zone(zone.into());
        let moved = bed.farm.move_volume(&org, &volume.id, &to).await;
        moved.expect_err("there is no other host");
    }
    assert!(bed.world.lock().volumes.contains_key(&volume.id));
    let now = bed.store.volume(&org, &volume.id).await.expect("there");
    assert_eq!((now.host, now.moving), (volume.host, None));
    bed.end().await;
}
