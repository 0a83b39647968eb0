//! What is cut off or refused: it is finished, or undone.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_refuses_for_good_is_undone() {
    let bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    let volume = make(&bed, &org, 10).await;
    let refuse = |code| bed.world.lock().refuse_volumes.push_back(code);
    for code in [HostErrorCode::NoSpace, HostErrorCode::Unsupported] {
        refuse(code);
        let refused = bed.farm.create_volume(&org, asked(5)).await;
        refused.expect_err("refused");
        refuse(code);
        let refused = bed
            .farm
            .extend_volume(&org, &volume.id, ByteSize::gib(20))
            .await;
        refused.expect_err("refused");
        refuse(code);
        bed.farm
            .create_snapshot(&org, &volume.id)
            .await
            .expect_err("refused");
        let volumes = bed.store.volumes(&org).await.expect("listed");
        let volumes: Vec<_> = volumes
            .into_iter()
            .map(|v| (v.id, v.size, v.made, v.state))
            .collect();
        let unchanged = (volume.id.clone(), volume.size, volume.made, volume.state);
        assert_eq!(volumes, [unchanged]);
        let snapshots = bed.store.snapshots(&org, &volume.id).await;
        assert_eq!(snapshots.expect("listed"), []);
        assert_eq!(promised(&bed).await, 10);
    }
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_does_not_do_now_is_done_later() {
    let mut bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    let volume = make(&bed, &org, 10).await;
    // Neither the pooled connection nor the second try gets an answer, though the deed is done.
    let lose = |bed: &Bed| bed.world.lock().lose_answers = 2;

    // The first look at the host's volumes may come in between, and do it; the next one is a minute away.
    let mut tries = 0;
    let planned = loop {
        lose(&bed);
        let planned = bed.farm.create_volume(&org, asked(5)).await;
        let planned = planned.expect("recorded");
        // It grows before anybody knows that it is there.
        lose(&bed);
        let larger = bed.farm.extend_volume(&org, &planned.id, ByteSize::gib(6));
        let larger = larger.await.expect("recorded");
        let states = [planned.state, larger.state];
        if states == [VolumeState::Planned; 2] {
            break planned;
        }
        assert!(tries < 2, "{states:?}");
        tries += 1;
        bed.world.lock().lose_answers = 0;
        let gone = bed.farm.destroy_volume(&org, &planned.id, true).await;
        gone.expect("gone");
    };
    assert!(planned.notice.is_some(), "its owner is told");
    assert!(disk(&bed, &planned.id).is_some(), "the deed was done");
    lose(&bed);
    let growing = bed
        .farm
        .extend_volume(&org, &volume.id, ByteSize::gib(12))
        .await;
    let growing = growing.expect("recorded");
    assert_eq!(
        (growing.size, growing.made),
        (ByteSize::gib(12), ByteSize::gib(10))
    );
    lose(&bed);
    let snapshot = bed
        .farm
        .create_snapshot(&org, &volume.id)
        .await
        .expect("recorded");
    assert_eq!(snapshot.state, SnapshotState::Planned);

    bed.restart_farm().await;
    let made = settled(&bed, &org, &planned.id, "it is made").await;
    assert_eq!((made.size, made.notice), (ByteSize::gib(6), None));
    settled(&bed, &org, &volume.id, "it has grown").await;
    eventually("the snapshot is made", || async {
        let kept = bed.store.snapshot(&org, &snapshot.id).await.expect("there");
        (kept.state == SnapshotState::Ready).then_some(())
    })
    .await;

    lose(&bed);
    bed.farm
        .delete_snapshot(&org, &snapshot.id)
        .await
        .expect("recorded");
    lose(&bed);
    bed.farm
        .destroy_volume(&org, &volume.id, true)
        .await
        .expect("recorded");
    bed.kill_daemon().await;
    bed.start_daemon();
    eventually("both are forgotten", || async {
        let left = promised(&bed).await;
        (left == 6).then_some(())
    })
    .await;
    assert_eq!(disk(&bed, &volume.id), None);
    bed.end().await;
}

/// What a volume may go through, as far as it is let.
async fn live(farm: &Farm, org: &OrgId) -> Result<(), FarmError> {
    let volume = farm.create_volume(org, asked(2)).await?;
    let id = &volume.id;
    farm.extend_volume(org, id, ByteSize::gib(3)).await?;
    let kept = farm.create_snapshot(org, id).await?;
    let source = VolumeSource::Snapshot {
        snapshot: kept.id.clone(),
    };
    let back = farm.create_volume(org, from(source)).await?;
    farm.destroy_volume(org, id, true).await?;
    farm.delete_snapshot(org, &kept.id).await?;
    farm.destroy_volume(org, &back.id, true).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_cut_off_anywhere_leaves_nothing_between() {
    let mut bed = Bed::start().await;
    let org = bed.org(HOUR).await.org;
    // Cut before, in and after each verb on the host, with its answer or without.
    for cut in 0..=9 {
        for lost in [0, 2] {
            let (farm, owner) = (bed.farm.clone(), org.clone());
            let before = {
                let mut world = bed.world.lock();
                world.lose_answers = 0;
                world.disk_verbs
            };
            let life = tokio::spawn(async move { live(&farm, &owner).await });
            while bed.world.lock().disk_verbs < before + cut && !life.is_finished() {
                if bed.world.lock().disk_verbs + 1 == before + cut {
                    bed.world.lock().lose_answers = lost;
                }
                tokio::task::yield_now().await;
            }
            life.abort();
            let _cut = life.await;
            bed.restart_farm().await;
        }
    }
    bed.world.lock().lose_answers = 0;
    bed.restart_farm().await;
    eventually("everything is settled", || async {
        let volumes = bed.store.volumes(&org).await.expect("listed");
        let done = |v: &Volume| v.state == VolumeState::Ready && v.made == v.size;
        volumes.iter().all(done).then_some(())
    })
    .await;
    let snapshots = eventually("all snapshots are made", || async {
        let host = bed.store.hosts().await.expect("hosts").remove(0).host;
        let all = bed.store.snapshots_on(&host.id).await.expect("listed");
        all.iter()
            .all(|s| s.state == SnapshotState::Ready)
            .then_some(all)
    })
    .await;
    let volumes = bed.store.volumes(&org).await.expect("listed");
    let mut volumes: Vec<_> = volumes.into_iter().map(|v| (v.id, v.size.0)).collect();
    volumes.sort();
    let mut snapshots: Vec<_> = snapshots.into_iter().map(|s| s.id).collect();
    snapshots.sort();
    assert_eq!(on_host(&bed), (volumes, snapshots), "host and record agree");
    bed.end().await;
}
