//! Volumes: what is promised, and what becomes of it.

use crate::common::*;

#[tokio::test]
async fn a_replaced_volume_is_kept_and_counted_until_it_is_forgotten() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 25).await);
    let made = builder(&it.store, &acme, &h).await;
    let (first, second) = (made.volume.clone(), VolumeId::from_entropy(entropy()));
    let replace = |old: VolumeId, new: VolumeId| {
        let (store, org, machine) = (it.store.clone(), acme.id.clone(), made.id.clone());
        async move {
            let at = Timestamp(12);
            store
                .replace_volume(&org, &machine, &old, VolumeState::Aside, &new, at)
                .await
        }
    };
    let new = replace(first.clone(), second.clone())
        .await
        .expect("replaced");
    assert_eq!(
        (&new.id, new.state, new.size),
        (&second, VolumeState::Planned, ByteSize(10))
    );
    assert_eq!(
        it.store
            .machine(&acme.id, &made.id)
            .await
            .expect("there")
            .volume,
        second
    );
    let there = it.store.volumes_on(&h.id).await.expect("listed");
    let aside: Vec<_> = there
        .iter()
        .filter(|volume| volume.state == VolumeState::Aside)
        .map(|volume| &volume.id)
        .collect();
    assert_eq!(aside, [&first]);
    assert_eq!(
        it.store.hosts().await.expect("hosts")[0].pool_promised,
        ByteSize(20)
    );

    // From an old view: refused. With a full pool: refused, and nothing has changed.
    match replace(first.clone(), VolumeId::from_entropy(entropy())).await {
        Err(StoreError::Changed(What::Machine)) => {}
        other => panic!("{other:?}"),
    }
    match replace(second.clone(), VolumeId::from_entropy(entropy())).await {
        Err(StoreError::PoolFull { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(
        it.store
            .machine(&acme.id, &made.id)
            .await
            .expect("there")
            .volume,
        second
    );

    match it.store.forget_volume(&acme.id, &second).await {
        Err(StoreError::InUse(What::Volume)) => {}
        other => panic!("{other:?}"),
    }
    it.store
        .forget_volume(&acme.id, &first)
        .await
        .expect("forgotten");
    it.store
        .forget_volume(&acme.id, &first)
        .await
        .expect("forgotten twice");
    assert_eq!(
        it.store.hosts().await.expect("hosts")[0].pool_promised,
        ByteSize(10)
    );
}

fn promised(hosts: &[slipway_store::HostUse]) -> u64 {
    hosts[0].pool_promised.0
}

#[tokio::test]
async fn a_volume_and_the_pool_are_one_transaction() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 25).await);
    let new = new_volume(&h, 10);
    let made = it.store.create_volume(&acme.id, &new).await.expect("made");
    let expected = Volume {
        id: new.id.clone(),
        org: acme.id.clone(),
        host: h.id.clone(),
        fence: Fence::FIRST,
        name: "data".into(),
        purpose: VolumePurpose::Data,
        size: ByteSize(10),
        made: ByteSize(0),
        encrypted: None,
        state: VolumeState::Planned,
        source: None,
        import: None,
        moving: None,
        policy: new.policy,
        destroy_at: None,
        notice: None,
        created_at: Timestamp(9),
    };
    assert_eq!(made, expected);
    let read = it.store.volume(&acme.id, &new.id).await.expect("there");
    assert_eq!(read, expected);
    match it.store.create_volume(&acme.id, &new).await {
        Err(StoreError::Exists(What::Volume)) => {}
        other => panic!("{other:?}"),
    }
    // The pool is full: nothing of the second is left behind.
    match it.store.create_volume(&acme.id, &new_volume(&h, 16)).await {
        Err(StoreError::PoolFull {
            free_bytes: 15,
            wanted_bytes: 16,
        }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(promised(&it.store.hosts().await.expect("hosts")), 10);
    assert_eq!(it.store.volumes(&acme.id).await.expect("listed").len(), 1);
}

#[tokio::test]
async fn a_volume_is_made_grows_and_the_growth_can_be_undone() {
    let it = fresh().await;
    let s = &it.store;
    let (acme, h) = (org(s, "acme").await, host(s, "h", 25).await);
    let new = new_volume(&h, 10);
    s.create_volume(&acme.id, &new).await.expect("made");
    let grow = async |size| s.extend_volume(&acme.id, &new.id, ByteSize(size)).await;
    let made = async |size| {
        s.record_volume_made(&acme.id, &new.id, ByteSize(size), Some(true))
            .await
            .expect("recorded");
        s.volume(&acme.id, &new.id).await.expect("there")
    };
    // One that is not made yet is made larger at once.
    assert_eq!(grow(12).await.expect("promised").size, ByteSize(12));
    let there = made(12).await;
    assert_eq!(
        (there.state, there.made, there.encrypted),
        (VolumeState::Ready, ByteSize(12), Some(true))
    );
    assert_eq!(grow(12).await.expect("as it is"), there);
    assert_eq!(grow(20).await.expect("promised").size, ByteSize(20));
    assert_eq!(grow(20).await.expect("once more").made, ByteSize(12));
    for refused in [11, 21] {
        match grow(refused).await {
            Err(StoreError::Changed(What::Volume)) => {}
            other => panic!("{refused}: {other:?}"),
        }
    }
    // Only the growth that was refused is taken back.
    for (undone, size) in [(21, 20), (20, 12)] {
        s.undo_extension(&acme.id, &new.id, ByteSize(undone))
            .await
            .expect("undone");
        let there = s.volume(&acme.id, &new.id).await.expect("there");
        assert_eq!(there.size, ByteSize(size));
    }
    match grow(26).await {
        Err(StoreError::PoolFull {
            free_bytes: 13,
            wanted_bytes: 14,
        }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(promised(&s.hosts().await.expect("hosts")), 12);
    // One that is planned anew is not made, whatever it was.
    s.set_volume_state(&acme.id, &new.id, VolumeState::Planned)
        .await
        .expect("recorded");
    let there = s.volume(&acme.id, &new.id).await.expect("there");
    assert_eq!((there.made, there.size), (ByteSize(0), ByteSize(12)));
}

#[tokio::test]
async fn concurrent_growth_never_exceeds_the_pool() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 60).await);
    let mut volumes = Vec::new();
    for _ in 0..10 {
        let new = new_volume(&h, 3);
        it.store.create_volume(&acme.id, &new).await.expect("made");
        volumes.push(new.id);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for id in volumes {
        let (store, org) = (it.store.clone(), acme.id.clone());
        tasks.spawn(async move { store.extend_volume(&org, &id, ByteSize(10)).await });
    }
    let grown = tasks.join_all().await;
    assert_eq!(grown.iter().filter(|done| done.is_ok()).count(), 4);
    assert_eq!(promised(&it.store.hosts().await.expect("hosts")), 58);
}

#[tokio::test]
async fn a_volume_goes_when_its_time_is_over_and_can_be_restored_before() {
    let it = fresh().await;
    let s = &it.store;
    let (acme, h) = (org(s, "acme").await, host(s, "h", 60).await);
    let id = ready_volume(s, &acme, &h, 10).await;
    let (org, at) = (&acme.id, Timestamp(100));
    let not_yet = |done: Result<(), StoreError>| match done {
        Err(StoreError::Changed(What::Volume)) => {}
        other => panic!("{other:?}"),
    };
    not_yet(s.start_volume_deletion(org, &id, at).await);
    let going = s.schedule_destruction(org, &id, Some(at)).await;
    assert_eq!(going.expect("recorded").destroy_at, Some(at));
    not_yet(s.start_volume_deletion(org, &id, Timestamp(99)).await);
    match s.extend_volume(org, &id, ByteSize(11)).await {
        Err(StoreError::Changed(What::Volume)) => {}
        other => panic!("{other:?}"),
    }
    let kept = s.schedule_destruction(org, &id, None).await;
    assert_eq!(kept.expect("restored").destroy_at, None);
    not_yet(s.start_volume_deletion(org, &id, at).await);

    // A fork that is still to be made from it holds it.
    s.schedule_destruction(org, &id, Some(at))
        .await
        .expect("recorded");
    let fork = NewVolume {
        source: Some(VolumeSource::Volume { volume: id.clone() }),
        ..new_volume(&h, 10)
    };
    s.create_volume(org, &fork).await.expect("planned");
    match s.start_volume_deletion(org, &id, at).await {
        Err(StoreError::InUse(What::Volume)) => {}
        other => panic!("{other:?}"),
    }
    s.record_volume_made(org, &fork.id, ByteSize(10), None)
        .await
        .expect("recorded");
    for _ in 0..2 {
        s.start_volume_deletion(org, &id, at)
            .await
            .expect("deletion started");
    }
    match s.schedule_destruction(org, &id, None).await {
        Err(StoreError::Changed(What::Volume)) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(
        promised(&s.hosts().await.expect("hosts")),
        20,
        "still counted"
    );
    s.forget_volume(org, &id).await.expect("forgotten");
    assert_eq!(promised(&s.hosts().await.expect("hosts")), 10);

    // A builder's cache does not go.
    let machine = builder(s, &acme, &h).await;
    match s.schedule_destruction(org, &machine.volume, Some(at)).await {
        Err(StoreError::InUse(What::Volume)) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_wanted_of_a_volume_is_kept() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 60).await);
    let id = ready_volume(&it.store, &acme, &h, 10).await;
    for auto_extend in [
        Some(AutoExtend {
            threshold_percent: 80,
            increment: ByteSize(2),
            limit: ByteSize(30),
        }),
        None,
    ] {
        let policy = VolumePolicy {
            snapshot_retention_days: 7,
            scheduled_snapshots: auto_extend.is_some(),
            auto_extend,
        };
        let was = it.store.volume(&acme.id, &id).await.expect("there").policy;
        let set = it.store.set_volume_policy(&acme.id, &id, &was, &policy);
        assert_eq!(set.await.expect("changed").policy, policy);
        // Whoever has read what it was before does not undo that.
        let late = it.store.set_volume_policy(&acme.id, &id, &was, &was).await;
        assert_eq!(late.expect_err("late").kind(), ErrorKind::Conflict);
        let read = it.store.volume(&acme.id, &id).await.expect("there");
        assert_eq!(read.policy, policy);
    }
    for notice in [Some("look"), None] {
        it.store
            .set_volume_notice(&acme.id, &id, notice)
            .await
            .expect("recorded");
        let read = it.store.volume(&acme.id, &id).await.expect("there");
        assert_eq!(read.notice.as_deref(), notice);
    }
}

#[tokio::test]
async fn what_is_sent_is_waited_for_until_it_is_there_or_its_time_is_over() {
    let it = fresh().await;
    let s = &it.store;
    let (acme, h) = (org(s, "acme").await, host(s, "h", 60).await);
    let stranger = org(s, "other").await;
    let importing = |until| NewVolume {
        import: Some(Import {
            until: Timestamp(until),
            digest: Some("ab".into()),
        }),
        ..new_volume(&h, 10)
    };
    let changed = |done: Result<Volume, StoreError>| match done {
        Err(StoreError::Changed(What::Volume)) => {}
        other => panic!("{other:?}"),
    };
    let (new, lost) = (importing(100), importing(100));
    for new in [&new, &lost] {
        let made = s.create_volume(&acme.id, new).await.expect("promised");
        let read = s.volume(&acme.id, &new.id).await.expect("there");
        assert_eq!((&made, &made.import), (&read, &new.import));
    }
    assert_eq!(promised(&s.hosts().await.expect("hosts")), 20);
    changed(s.extend_volume(&acme.id, &new.id, ByteSize(11)).await);
    match s
        .start_volume_deletion(&acme.id, &new.id, Timestamp(99))
        .await
    {
        Err(StoreError::Changed(What::Volume)) => {}
        other => panic!("{other:?}"),
    }
    is_missing(
        s.keep_import(&stranger.id, &new.id, Timestamp(500)).await,
        What::Volume,
    );
    let kept = s.keep_import(&acme.id, &new.id, Timestamp(200)).await;
    let import = kept.expect("recorded").import.expect("waits");
    assert_eq!(
        (import.until, import.digest),
        (Timestamp(200), Some("ab".into()))
    );

    // One is there, the other one's time is over.
    s.record_volume_made(&acme.id, &new.id, ByteSize(10), Some(false))
        .await
        .expect("recorded");
    let there = s.volume(&acme.id, &new.id).await.expect("there");
    assert_eq!((there.state, there.import), (VolumeState::Ready, None));
    changed(s.keep_import(&acme.id, &new.id, Timestamp(300)).await);
    s.schedule_destruction(&acme.id, &lost.id, Some(Timestamp(900)))
        .await
        .expect("recorded");
    changed(s.keep_import(&acme.id, &lost.id, Timestamp(300)).await);
    s.start_volume_deletion(&acme.id, &lost.id, Timestamp(100))
        .await
        .expect("its time is over");
    changed(s.keep_import(&acme.id, &lost.id, Timestamp(300)).await);
    s.forget_volume(&acme.id, &lost.id)
        .await
        .expect("forgotten");
    assert_eq!(promised(&s.hosts().await.expect("hosts")), 10);
}
