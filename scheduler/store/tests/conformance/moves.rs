//! Volumes that move to another host: promised twice, in one place.

use crate::common::*;

/// What is promised of two hosts.
async fn both(store: &SqliteStore, a: &Host, b: &Host) -> (u64, u64) {
    let hosts = store.hosts().await.expect("hosts");
    let of = |host: &Host| {
        let found = hosts.iter().find(|used| used.host.id == host.id);
        found.expect("there").pool_promised.0
    };
    (of(a), of(b))
}

#[tokio::test]
async fn a_volume_that_moves_is_promised_twice_and_is_in_one_place() {
    let it = fresh().await;
    let s = &it.store;
    let (acme, stranger) = (org(s, "acme").await, org(s, "other").await);
    let (a, b) = (host(s, "a", 60).await, host(s, "b", 25).await);
    let id = ready_volume(s, &acme, &a, 10).await;
    let large = ready_volume(s, &acme, &a, 30).await;
    let to = |to: &Host, n: u8| NewMove {
        to: to.id.clone(),
        snapshot: SnapshotId::from_entropy([n; 10]),
        reserve: ByteSize(4),
    };
    let changed = |done: Result<Volume, StoreError>| match done {
        Err(StoreError::Changed(What::Volume)) => {}
        other => panic!("{other:?}"),
    };
    let new = to(&b, 1);
    is_missing(s.begin_move(&stranger.id, &id, &new).await, What::Volume);
    changed(s.begin_move(&acme.id, &id, &to(&a, 1)).await);
    changed(s.finish_move(&acme.id, &id).await);
    match s.begin_move(&acme.id, &large, &new).await {
        Err(StoreError::PoolFull { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(both(s, &a, &b).await, (40, 0));
    let moving = s.begin_move(&acme.id, &id, &new).await.expect("begun");
    let again = s.begin_move(&acme.id, &id, &to(&b, 2)).await;
    assert_eq!(again.expect("the same"), moving);
    assert_eq!((both(s, &a, &b).await, &moving.host), ((44, 10), &a.id));
    // What would need it to be in one place waits.
    changed(s.extend_volume(&acme.id, &id, ByteSize(11)).await);
    match s
        .schedule_destruction(&acme.id, &id, Some(Timestamp(1)))
        .await
    {
        Err(StoreError::InUse(What::Volume)) => {}
        other => panic!("{other:?}"),
    }
    is_missing(s.finish_move(&stranger.id, &id).await, What::Volume);
    is_missing(s.give_up_move(&stranger.id, &id).await, What::Volume);

    // Given up, and begun anew.
    let stays = s.give_up_move(&acme.id, &id).await.expect("given up");
    assert_eq!((&stays.host, both(s, &a, &b).await), (&a.id, (44, 10)));
    changed(s.finish_move(&acme.id, &id).await);
    changed(s.begin_move(&acme.id, &id, &new).await);
    for _ in 0..2 {
        s.forget_move(&acme.id, &id).await.expect("forgotten");
    }
    assert_eq!(both(s, &a, &b).await, (40, 0));
    s.begin_move(&acme.id, &id, &new).await.expect("begun");
    s.forget_move(&acme.id, &id).await.expect("no effect");
    assert_eq!(both(s, &a, &b).await, (44, 10));
    it_leaves_when_nothing_is_to_be_made_of_it(s, &acme, (&a, &b), &id).await;
}

async fn it_leaves_when_nothing_is_to_be_made_of_it(
    s: &SqliteStore,
    acme: &Org,
    (a, b): (&Host, &Host),
    id: &VolumeId,
) {
    let kept = NewSnapshot {
        id: SnapshotId::from_entropy(entropy()),
        volume: id.clone(),
        reserve: ByteSize(3),
        scheduled: false,
        at: Timestamp(9),
        expires_at: Timestamp(99),
    };
    s.create_snapshot(&acme.id, &kept).await.expect("planned");
    match s.finish_move(&acme.id, id).await {
        Err(StoreError::InUse(What::Volume)) => {}
        other => panic!("{other:?}"),
    }
    s.record_snapshot_made(&acme.id, &kept.id, ByteSize(3), false)
        .await
        .expect("made");
    let moved = s.finish_move(&acme.id, id).await.expect("finished");
    let left = moved.moving.clone().expect("something is left");
    assert_eq!(
        (&moved.host, &left.copy, &left.source, left.step),
        (&b.id, &a.id, &a.id, MoveStep::Clearing)
    );
    assert_eq!(both(s, a, b).await, (47, 10));
    s.schedule_destruction(&acme.id, id, Some(Timestamp(1)))
        .await
        .expect("it may go");
    match s.start_volume_deletion(&acme.id, id, Timestamp(5)).await {
        Err(StoreError::InUse(What::Volume)) => {}
        other => panic!("{other:?}"),
    }
    s.forget_move(&acme.id, id).await.expect("forgotten");
    assert_eq!(
        both(s, a, b).await,
        (33, 10),
        "the snapshot stays where it is"
    );
    let kept = s.snapshot(&acme.id, &kept.id).await.expect("there");
    assert_eq!(kept.host, a.id);
}

#[tokio::test]
async fn what_a_machine_has_moves_with_it_and_only_after_a_second_snapshot() {
    let it = fresh().await;
    let s = &it.store;
    let acme = org(s, "acme").await;
    let (a, b) = (host(s, "a", 60).await, host(s, "b", 60).await);
    let machine = builder(s, &acme, &a).await;
    let id = machine.volume.clone();
    let size = s.volume(&acme.id, &id).await.expect("there").size;
    s.record_volume_made(&acme.id, &id, size, None)
        .await
        .expect("made");
    let before = both(s, &a, &b).await;
    let new = NewMove {
        to: b.id.clone(),
        snapshot: SnapshotId::from_entropy([1; 10]),
        reserve: ByteSize(2),
    };
    s.begin_move(&acme.id, &id, &new).await.expect("begun");
    match s.finish_move(&acme.id, &id).await {
        Err(StoreError::InUse(What::Volume)) => {}
        other => panic!("{other:?}"),
    }
    let second = |n: u8| SnapshotId::from_entropy([n; 10]);
    for n in [2, 3] {
        let named = s
            .catch_up_move(&acme.id, &id, &second(n), ByteSize(3))
            .await;
        let moving = named.expect("named").moving.expect("moving");
        assert_eq!(
            (moving.step, moving.second),
            (MoveStep::CatchingUp, Some(second(2)))
        );
    }
    assert_eq!(both(s, &a, &b).await, (before.0 + 5, size.0));
    s.finish_move(&acme.id, &id).await.expect("finished");
    let moved = s.machine(&acme.id, &machine.id).await.expect("there");
    assert_eq!(
        (&moved.host, moved.generation.0),
        (&b.id, machine.generation.0 + 1)
    );
    match s
        .catch_up_move(&acme.id, &id, &second(4), ByteSize(3))
        .await
    {
        Err(StoreError::Changed(What::Volume)) => {}
        other => panic!("{other:?}"),
    }
    s.forget_move(&acme.id, &id).await.expect("forgotten");
    assert_eq!(both(s, &a, &b).await, (before.0 - size.0, size.0));
}

/// A halted move keeps both copies, and their part of the pools, until one is chosen.
#[tokio::test]
async fn a_halted_move_is_not_cleared_before_a_copy_is_chosen() {
    let it = fresh().await;
    let s = &it.store;
    let acme = org(s, "acme").await;
    let other_org = org(s, "other").await;
    let (a, b, c) = (
        host(s, "a", 60).await,
        host(s, "b", 60).await,
        host(s, "c", 60).await,
    );
    let machine = builder(s, &acme, &a).await;
    let id = machine.volume.clone();
    let size = s.volume(&acme.id, &id).await.expect("there").size;
    s.record_volume_made(&acme.id, &id, size, None)
        .await
        .expect("made");
    let changed = |result: Result<Volume, StoreError>| match result {
        Err(StoreError::Changed(What::Volume)) => {}
        other => panic!("{other:?}"),
    };
    assert!(s.halt_move(&acme.id, &id).await.is_err(), "there is none");
    let new = NewMove {
        to: b.id.clone(),
        snapshot: SnapshotId::from_entropy([1; 10]),
        reserve: ByteSize(2),
    };
    let alone = both(s, &a, &b).await;
    s.begin_move(&acme.id, &id, &new).await.expect("begun");
    changed(s.choose_copy(&acme.id, &id, &b.id).await);
    assert!(s.halt_move(&other_org.id, &id).await.is_err());
    s.halt_move(&acme.id, &id).await.expect("halted");
    let step = async || {
        let volume = s.volume(&acme.id, &id).await.expect("there");
        volume.moving.map(|moving| moving.step)
    };
    assert_eq!(step().await, Some(MoveStep::Halted));
    s.forget_move(&acme.id, &id).await.expect("no effect");
    changed(s.finish_move(&acme.id, &id).await);
    changed(s.give_up_move(&acme.id, &id).await);
    changed(s.begin_move(&acme.id, &id, &new).await);
    assert_eq!(both(s, &a, &b).await, (alone.0 + 2, size.0));

    changed(s.choose_copy(&acme.id, &id, &c.id).await);
    let stays = s.choose_copy(&acme.id, &id, &a.id).await.expect("chosen");
    let left = stays.moving.expect("the other copy");
    assert_eq!(
        (&stays.host, &left.copy, left.step),
        (&a.id, &b.id, MoveStep::Clearing)
    );
    let there = s.machine(&acme.id, &machine.id).await.expect("there");
    assert_eq!((&there.host, there.generation), (&a.id, machine.generation));

    s.halt_move(&acme.id, &id).await.expect("halted once more");
    let goes = s.choose_copy(&acme.id, &id, &b.id).await.expect("chosen");
    let left = goes.moving.expect("the other copy");
    assert_eq!(
        (&goes.host, &left.copy, &left.source, left.step),
        (&b.id, &a.id, &a.id, MoveStep::Clearing)
    );
    let there = s.machine(&acme.id, &machine.id).await.expect("there");
    assert_eq!(
        (&there.host, there.generation.0),
        (&b.id, machine.generation.0 + 1)
    );
    s.forget_move(&acme.id, &id).await.expect("forgotten");
    assert_eq!(both(s, &a, &b).await, (alone.0 - size.0, size.0));
}

#[tokio::test]
async fn a_renamed_host_keeps_what_it_had_and_a_pool_has_one_host() {
    let it = fresh().await;
    let s = &it.store;
    let acme = org(s, "acme").await;
    let pool = |host: &Host, pool: &str| Host {
        pool: Some(pool.into()),
        ..host.clone()
    };
    let (a, b) = (host(s, "a", 60).await, host(s, "b", 60).await);
    s.put_host(&pool(&a, "x")).await.expect("it says so");
    // Not said is not changed.
    let kept = s.put_host(&a).await.expect("put");
    assert_eq!(kept.pool.as_deref(), Some("x"));
    match s.put_host(&pool(&b, "x")).await {
        Err(StoreError::Exists(What::Host)) => {}
        other => panic!("{other:?}"),
    }
    let id = ready_volume(s, &acme, &a, 10).await;
    let machine = builder(s, &acme, &a).await;
    s.rename_host(&a.id, "new").await.expect("renamed");
    let volume = s.volume(&acme.id, &id).await.expect("there");
    assert_eq!(volume.host, a.id);

    // An older version took the new name for another host, and moved a volume between the two.
    let new = NewMove {
        to: b.id.clone(),
        snapshot: SnapshotId::from_entropy([1; 10]),
        reserve: ByteSize(4),
    };
    s.begin_move(&acme.id, &id, &new).await.expect("begun");
    s.finish_move(&acme.id, &id).await.expect("finished");
    s.rename_host(&a.id, "b").await.expect("they are one");
    let hosts = s.hosts().await.expect("hosts");
    assert_eq!(hosts.len(), 1);
    assert_eq!((&hosts[0].host.id, &*hosts[0].host.name), (&b.id, "b"));
    for id in [&id, &machine.volume] {
        let volume = s.volume(&acme.id, id).await.expect("there");
        assert_eq!((volume.host, volume.moving), (b.id.clone(), None));
    }
    let machines = s.all_machines().await.expect("machines");
    assert_eq!(machines[0].host, b.id);
    s.put_host(&pool(&b, "x")).await.expect("now it is its own");
}
