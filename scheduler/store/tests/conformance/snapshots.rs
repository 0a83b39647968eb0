//! Snapshots of volumes: what they take of the pool, and how long they stay.

use crate::common::*;

async fn promised(it: &Fresh) -> u64 {
    it.store.hosts().await.expect("hosts")[0].pool_promised.0
}

#[tokio::test]
async fn a_snapshot_counts_for_the_pool_and_outlives_its_volume() {
    let it = fresh().await;
    let s = &it.store;
    let (acme, h) = (org(s, "acme").await, host(s, "h", 25).await);
    let org = &acme.id;
    let volume = ready_volume(s, &acme, &h, 10).await;
    let new = new_snapshot(&volume, 4);
    let planned = s.create_snapshot(org, &new).await.expect("planned");
    let expected = Snapshot {
        id: new.id.clone(),
        org: org.clone(),
        host: h.id.clone(),
        volume: volume.clone(),
        fence: Fence::FIRST,
        volume_name: "data".into(),
        size: ByteSize(10),
        stored: ByteSize(4),
        state: SnapshotState::Planned,
        scheduled: false,
        encrypted: false,
        created_at: Timestamp(20),
        expires_at: Timestamp(50),
    };
    assert_eq!(planned, expected);
    assert_eq!(promised(&it).await, 14);
    match s.create_snapshot(org, &new_snapshot(&volume, 12)).await {
        Err(StoreError::PoolFull {
            free_bytes: 11,
            wanted_bytes: 12,
        }) => {}
        other => panic!("{other:?}"),
    }
    // It takes more than was thought: that must fit as well.
    match s
        .record_snapshot_made(org, &new.id, ByteSize(16), false)
        .await
    {
        Err(StoreError::PoolFull {
            free_bytes: 11,
            wanted_bytes: 12,
        }) => {}
        other => panic!("{other:?}"),
    }
    for (stored, recorded) in [(6, 6), (7, 6)] {
        let made = s.record_snapshot_made(org, &new.id, ByteSize(stored), true);
        let made = made.await.expect("recorded");
        assert_eq!(
            (made.state, made.stored, made.encrypted),
            (SnapshotState::Ready, ByteSize(recorded), true)
        );
        assert_eq!(s.snapshot(org, &new.id).await.expect("there"), made);
    }
    assert_eq!(promised(&it).await, 16);

    s.forget_volume(org, &volume).await.expect("forgotten");
    let left = s.snapshots(org, &volume).await.expect("listed");
    assert_eq!(left.len(), 1);
    assert_eq!(s.snapshots_on(&h.id).await.expect("listed"), left);
    s.start_snapshot_deletion(org, &new.id)
        .await
        .expect("deletion started");
    assert_eq!(promised(&it).await, 6, "counted until it is deleted");
    for _ in 0..2 {
        s.forget_snapshot(org, &new.id).await.expect("forgotten");
    }
    assert_eq!(promised(&it).await, 0);
    is_missing(s.snapshot(org, &new.id).await, What::Snapshot);
}

#[tokio::test]
async fn only_what_is_made_is_kept_and_only_what_is_kept_is_restored() {
    let it = fresh().await;
    let s = &it.store;
    let (acme, h) = (org(s, "acme").await, host(s, "h", 100).await);
    let far = host(s, "far", 100).await;
    let org = &acme.id;
    let new = new_volume(&h, 10);
    s.create_volume(org, &new).await.expect("planned");
    match s.create_snapshot(org, &new_snapshot(&new.id, 1)).await {
        Err(StoreError::Changed(What::Volume)) => {}
        other => panic!("{other:?}"),
    }
    let volume = ready_volume(s, &acme, &h, 10).await;
    let snapshot = new_snapshot(&volume, 1).id;
    let planned = NewSnapshot {
        id: snapshot.clone(),
        ..new_snapshot(&volume, 1)
    };
    s.create_snapshot(org, &planned).await.expect("planned");
    let source = VolumeSource::Snapshot {
        snapshot: snapshot.clone(),
    };
    let restore = |host: &Host, size| NewVolume {
        source: Some(source.clone()),
        ..new_volume(host, size)
    };
    is_missing(s.create_volume(org, &restore(&h, 10)).await, What::Snapshot);
    s.record_snapshot_made(org, &snapshot, ByteSize(1), false)
        .await
        .expect("made");
    for (host, size) in [(&far, 10), (&h, 9)] {
        is_missing(
            s.create_volume(org, &restore(host, size)).await,
            What::Snapshot,
        );
    }
    let fork = NewVolume {
        source: Some(VolumeSource::Volume {
            volume: new.id.clone(),
        }),
        ..new_volume(&h, 10)
    };
    is_missing(s.create_volume(org, &fork).await, What::Volume);

    // One that a volume is still to be made from stays.
    let restored = restore(&h, 12);
    let made = s.create_volume(org, &restored).await.expect("planned");
    assert_eq!(made.source.as_ref(), Some(&source));
    match s.start_snapshot_deletion(org, &snapshot).await {
        Err(StoreError::InUse(What::Snapshot)) => {}
        other => panic!("{other:?}"),
    }
    s.record_volume_made(org, &restored.id, ByteSize(12), None)
        .await
        .expect("made");
    s.start_snapshot_deletion(org, &snapshot)
        .await
        .expect("deletion started");
    is_missing(s.create_volume(org, &restore(&h, 10)).await, What::Snapshot);
}
