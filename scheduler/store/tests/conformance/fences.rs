//! Fencing numbers of volumes: each decision about a volume's copies raises its number, in the transaction that records it.

use crate::common::*;

async fn fence(s: &SqliteStore, org: &OrgId, id: &VolumeId) -> Fence {
    s.volume(org, id).await.expect("there").fence
}

#[tokio::test]
async fn each_decision_about_a_volume_raises_its_number_and_nothing_else_does() {
    let it = fresh().await;
    let s = &it.store;
    let acme = org(s, "acme").await;
    let (a, b) = (host(s, "a", 60).await, host(s, "b", 60).await);
    let org = &acme.id;
    let id = &ready_volume(s, &acme, &a, 10).await;
    let mut at = Fence::FIRST;
    assert_eq!(fence(s, org, id).await, at, "it is made");
    s.extend_volume(org, id, ByteSize(12)).await.expect("grows");
    s.record_volume_made(org, id, ByteSize(12), None)
        .await
        .expect("grown");
    s.set_volume_notice(org, id, Some("x")).await.expect("told");
    assert_eq!(fence(s, org, id).await, at, "it grows");

    let to_b = NewMove {
        to: b.id.clone(),
        snapshot: SnapshotId::from_entropy(entropy()),
        reserve: ByteSize(1),
    };
    let mut raised = |decision: Decision, volume: Volume| {
        at = at.after(decision);
        assert_eq!(volume.fence, at, "{decision:?}");
    };
    let begun = s.begin_move(org, id, &to_b).await.expect("begun");
    raised(Decision::BeginMove, begun.clone());
    // Asked for once more it is the same decision.
    let again = s.begin_move(org, id, &to_b).await.expect("the same");
    assert_eq!(again.fence, begun.fence);
    let given_up = s.give_up_move(org, id).await.expect("given up");
    raised(Decision::DecideMove, given_up);
    s.forget_move(org, id).await.expect("cleared");
    let begun = s.begin_move(org, id, &to_b).await.expect("begun");
    raised(Decision::BeginMove, begun);
    let moved = s.finish_move(org, id).await.expect("moved");
    raised(Decision::DecideMove, moved.clone());
    s.halt_move(org, id).await.expect("halted");
    assert_eq!(fence(s, org, id).await, moved.fence, "nothing is decided");
    let chosen = s.choose_copy(org, id, &a.id).await.expect("chosen");
    raised(Decision::DecideMove, chosen);
    s.forget_move(org, id).await.expect("cleared");

    let emptied = s.set_volume_state(org, id, VolumeState::Planned).await;
    let emptied = emptied.expect("emptied");
    raised(Decision::Empty, emptied.clone());
    // What destroys the old contents is above all before, and below what is made afterwards.
    let destroys = emptied.fenced_before();
    assert_eq!(&destroys.volume, id);
    assert!(destroys.number < emptied.fence);
    s.record_volume_made(org, id, ByteSize(12), None)
        .await
        .expect("made anew");
    s.schedule_destruction(org, id, Some(Timestamp(1)))
        .await
        .expect("goes");
    s.start_volume_deletion(org, id, Timestamp(2))
        .await
        .expect("deletion started");
    raised(
        Decision::Delete,
        s.volume(org, id).await.expect("deletion started"),
    );
}

#[tokio::test]
async fn a_snapshot_keeps_the_number_that_its_volume_had_at_last() {
    let it = fresh().await;
    let s = &it.store;
    let (acme, h) = (org(s, "acme").await, host(s, "h", 99).await);
    let org = &acme.id;
    let id = &ready_volume(s, &acme, &h, 10).await;
    let [first, second] = [new_snapshot(id, 1), new_snapshot(id, 1)];
    for new in [&first, &second] {
        s.create_snapshot(org, new).await.expect("planned");
    }
    for _ in 0..2 {
        s.start_snapshot_deletion(org, &first.id)
            .await
            .expect("deletion started");
    }
    let at = Fence::FIRST.after(Decision::DeleteSnapshot);
    assert_eq!(fence(s, org, id).await, at, "once");
    s.set_volume_state(org, id, VolumeState::Deleting)
        .await
        .expect("deletion started");
    let last = fence(s, org, id).await;
    assert!(last > at);
    s.forget_volume(org, id).await.expect("forgotten");
    for snapshot in [&first, &second] {
        let kept = s.snapshot(org, &snapshot.id).await.expect("there");
        assert_eq!((&kept.fenced().volume, kept.fence), (id, last));
    }
    s.start_snapshot_deletion(org, &second.id)
        .await
        .expect("deletion started");
    let kept = s.snapshot(org, &second.id).await.expect("there");
    assert!(kept.fence > last);
}

#[tokio::test]
async fn a_backup_is_ahead_of_every_number_that_a_host_can_have_seen() {
    let it = fresh().await;
    let s = &it.store;
    let (acme, h) = (org(s, "acme").await, host(s, "h", 99).await);
    let id = &ready_volume(s, &acme, &h, 10).await;
    let snapshot = new_snapshot(id, 1);
    s.create_snapshot(&acme.id, &snapshot)
        .await
        .expect("planned");
    let copy = it.dir.path().join("copy.db");
    SqliteStore::back_up(&it.dir.path().join("slipway.db"), &copy)
        .await
        .expect("a copy");
    // What happens after the backup was made.
    for _ in 0..100 {
        s.set_volume_state(&acme.id, id, VolumeState::Planned)
            .await
            .expect("emptied");
    }
    let seen = fence(s, &acme.id, id).await;
    let restored = SqliteStore::open(&copy).await.expect("opens");
    assert!(fence(&restored, &acme.id, id).await > seen);
    let snapshot = restored.snapshot(&acme.id, &snapshot.id).await;
    assert!(snapshot.expect("there").fence > Fence::FIRST);
}
