//! What is done by itself: snapshots on a schedule, growth.

use super::*;

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
        import: None,
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
        encrypted: false,
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
        .set_volume_policy::<FarmError>(&org, &volume.id, |_| Ok(policy(15)))
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
        .set_volume_policy::<FarmError>(&org, &volume.id, |_| Ok(policy(99)))
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
async fn a_verb_that_hangs_holds_up_no_other_volume() {
    let mut bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    bed.stop_farm().await;
    let host = bed.store.hosts().await.expect("hosts")[0].host.id.clone();
    let mut planned = Vec::new();
    for n in 1..=2 {
        let new = NewVolume {
            id: VolumeId::from_entropy([n; 10]),
            host: host.clone(),
            name: "data".into(),
            size: ByteSize::gib(1),
            source: None,
            import: None,
            policy: asked(1).policy,
            at: Timestamp(u64::from(n)),
        };
        bed.store.create_volume(&org, &new).await.expect("planned");
        planned.push(new.id);
    }
    bed.world.lock().hangs = Some(planned[0].clone());
    bed.restart_farm().await;
    settled(&bed, &org, &planned[1], "the other one is made").await;
    let waits = bed.store.volume(&org, &planned[0]).await.expect("there");
    assert_eq!(waits.state, VolumeState::Planned);
    bed.end().await;
}

/// A notice says what it says until that is over.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_by_itself_clears_no_notice_of_something_else() {
    let mut bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    bed.stop_farm().await;
    let host = bed.store.hosts().await.expect("hosts")[0].host.id.clone();
    let mut made = Vec::new();
    for (n, notice) in [(1, "move: no room"), (2, "scheduled snapshot: no room")] {
        let new = NewVolume {
            id: VolumeId::from_entropy([n; 10]),
            host: host.clone(),
            name: "data".into(),
            size: ByteSize::gib(1),
            source: None,
            import: None,
            policy: VolumePolicy::default(),
            at: Timestamp(1),
        };
        bed.store.create_volume(&org, &new).await.expect("planned");
        let recorded = bed
            .store
            .record_volume_made(&org, &new.id, new.size, Some(false));
        recorded.await.expect("recorded");
        let told = bed.store.set_volume_notice(&org, &new.id, Some(notice));
        told.await.expect("recorded");
        let disk = Disk {
            size: GIB,
            used: 5,
            source: None,
            encrypted: false,
        };
        bed.world.lock().volumes.insert(new.id.clone(), disk);
        made.push(new.id);
    }
    bed.restart_farm().await;
    eventually("the notice of the snapshot is over", || async {
        let now = bed.store.volume(&org, &made[1]).await.expect("there");
        now.notice.is_none().then_some(())
    })
    .await;
    eventually("both are kept", || async {
        (bed.world.lock().snapshots.len() == 2).then_some(())
    })
    .await;
    bed.stop_farm().await;
    let now = bed.store.volume(&org, &made[0]).await.expect("there");
    assert_eq!(now.notice.as_deref(), Some("move: no room"));
    bed.end().await;
}
