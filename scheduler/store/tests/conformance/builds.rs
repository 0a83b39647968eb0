//! Builds and their events.

use crate::common::*;

#[tokio::test]
async fn events_are_recorded_once_and_in_order() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 25).await);
    let machine = builder(&it.store, &acme, &h).await;
    let made = build(&it.store, &acme, &machine).await;
    assert_eq!(
        (made.state, made.last_seq, made.spec.clone()),
        (BuildState::Pending, 0, spec())
    );
    let came = (made.source, made.asked_by.as_deref());
    assert_eq!(came, (BuildSource::Docker, Some("ci")));
    let append = |events: Vec<NumberedEvent>| {
        let (store, org, id) = (it.store.clone(), acme.id.clone(), made.id.clone());
        async move {
            store
                .append_build_events(&org, &id, &events)
                .await
                .expect("recorded")
        }
    };
    assert_eq!(append((1..=3).map(event).collect()).await, 3);
    assert_eq!(append((2..=5).map(event).collect()).await, 5);
    assert_eq!(append(vec![]).await, 5);
    assert_eq!(append(vec![event(4)]).await, 5);
    let read = it
        .store
        .build_events(&acme.id, &made.id, 0, u32::MAX)
        .await
        .expect("read");
    assert_eq!(read, (1..=5).map(event).collect::<Vec<_>>());
    let rest = it
        .store
        .build_events(&acme.id, &made.id, 4, u32::MAX)
        .await
        .expect("read");
    assert_eq!(rest, vec![event(5)]);
    assert_eq!(
        it.store
            .build_events(&acme.id, &made.id, 5, u32::MAX)
            .await
            .expect("read"),
        vec![]
    );
    let now = it.store.build(&acme.id, &made.id).await.expect("there");
    let bytes: usize = read
        .iter()
        .map(|e| serde_json::to_vec(e).expect("json").len())
        .sum();
    assert_eq!((now.last_seq, now.event_bytes), (5, bytes as u64));

    // Pages are bounded.
    append((6..=2000).map(event).collect()).await;
    let page = it
        .store
        .build_events(&acme.id, &made.id, 0, u32::MAX)
        .await
        .expect("read");
    assert_eq!(page.len(), slipway_store::limits::EVENTS_READ_MAX as usize);
    let few = it.store.build_events(&acme.id, &made.id, 0, 7).await;
    assert_eq!(few.expect("read"), (1..=7).map(event).collect::<Vec<_>>());

    // In bytes too: what one reader holds does not grow with what a builder says.
    let long = |seq: u64| NumberedEvent {
        event: BuildEvent::Warning {
            message: "x".repeat(100_000),
        },
        ..event(seq)
    };
    append((2001..=2030).map(long).collect()).await;
    let page = it.store.build_events(&acme.id, &made.id, 2000, u32::MAX);
    let page = page.await.expect("read");
    let bytes = page.len() * 100_000;
    let max = slipway_store::limits::EVENTS_READ_BYTES_MAX;
    assert!(
        bytes <= max + 100_000,
        "{bytes} bytes of events in one page"
    );
    assert!(bytes > max / 2, "{bytes} bytes of events in one page");
}

/// A caller may go away at any moment (its client hung up). The store must go on.
#[tokio::test(flavor = "multi_thread")]
async fn cut_verbs_leave_nothing_locked() {
    let it = fresh().await;
    let (acme, h) = (
        org(&it.store, "acme").await,
        host(&it.store, "h", 1 << 40).await,
    );
    let machine = builder(&it.store, &acme, &h).await;
    let made = build(&it.store, &acme, &machine).await;
    for n in 1..=3000u64 {
        let events = [event(n)];
        let new = new_builder(&h, "local", 10);
        let verbs = async {
            let _ = it
                .store
                .append_build_events(&acme.id, &made.id, &events)
                .await;
            let _ = it.store.ensure_builder(&acme.id, &new).await;
        };
        let hang_up = async {
            for _ in 0..n % 150 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = verbs => {}
            () = hang_up => {}
        }
    }
    let newest = [event(9000)];
    let last = it.store.append_build_events(&acme.id, &made.id, &newest);
    assert_eq!(last.await.expect("the store goes on"), 9000);
    let read = it.store.build(&acme.id, &made.id).await.expect("there");
    assert_eq!(read.last_seq, 9000, "what was recorded is not seen");
}

#[tokio::test]
async fn a_build_ends_once() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 25).await);
    let machine = builder(&it.store, &acme, &h).await;
    let made = build(&it.store, &acme, &machine).await;
    it.store
        .mark_build_running(&acme.id, &made.id)
        .await
        .expect("marked");
    assert_eq!(it.store.unfinished_builds().await.expect("listed").len(), 1);
    let first = it
        .store
        .finish_build(&acme.id, &made.id, &BuildOutcome::Cancelled, Timestamp(20));
    let first = first.await.expect("ended");
    assert_eq!(
        (first.state, first.ended_at),
        (BuildState::Cancelled, Some(Timestamp(20)))
    );
    let outcome = BuildOutcome::Succeeded {
        image_id: "sha256:1".into(),
        digest: None,
        size_bytes: 1,
        build_ms: 2,
        push_ms: 3,
        steps: 5,
        steps_cached: 4,
        platforms: Box::default(),
        statements: Vec::new(),
    };
    let second = it
        .store
        .finish_build(&acme.id, &made.id, &outcome, Timestamp(21))
        .await;
    assert_eq!(second.expect("no error"), first);
    it.store
        .mark_build_running(&acme.id, &made.id)
        .await
        .expect("no error");
    assert_eq!(
        it.store.build(&acme.id, &made.id).await.expect("there"),
        first
    );
    assert_eq!(it.store.unfinished_builds().await.expect("listed"), vec![]);
}

#[tokio::test]
async fn old_builds_go_with_their_events_and_running_ones_stay() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 60).await);
    let other = org(&it.store, "other").await;
    let machine = builder(&it.store, &acme, &h).await;
    let neighbour = builder(&it.store, &other, &h).await;
    let theirs = build(&it.store, &other, &neighbour).await;
    let mut made = Vec::new();
    for _ in 0..6 {
        made.push(build(&it.store, &acme, &machine).await);
    }
    // The first still runs; the others ended at 11, 12, ..., and so did the neighbour's.
    let end = async |org: &Org, build: &Build, at| {
        it.store
            .append_build_events(&org.id, &build.id, &[event(1), event(2)])
            .await
            .expect("recorded");
        it.store
            .finish_build(&org.id, &build.id, &BuildOutcome::Cancelled, Timestamp(at))
            .await
            .expect("ended");
    };
    for (build, at) in made.iter().zip(10..).skip(1) {
        end(&acme, build, at).await;
    }
    end(&other, &theirs, 11).await;
    let delete = async |keep, before, max| {
        it.store
            .delete_old_builds(&acme.id, keep, Timestamp(before), max)
            .await
            .expect("deleted")
    };
    assert_eq!(delete(6, 11, 10).await, 0, "nothing is too old or too much");
    assert_eq!(delete(6, 12, 10).await, 1, "one is too old");
    assert_eq!(delete(2, 0, 1).await, 1, "no more at a time than asked");
    assert_eq!(
        delete(2, 0, 10).await,
        1,
        "all but the newest two, and the running one"
    );
    assert_eq!(delete(2, 0, 10).await, 0);
    let all = BuildFilter {
        limit: 10,
        ..BuildFilter::default()
    };
    let left = it.store.builds(&acme.id, &all).await.expect("listed");
    let left: Vec<_> = left.into_iter().map(|build| build.id).collect();
    assert_eq!(
        left,
        [&made[5].id, &made[4].id, &made[0].id].map(Clone::clone)
    );
    is_missing(
        it.store
            .build_events(&acme.id, &made[1].id, 0, u32::MAX)
            .await,
        What::Build,
    );
    let kept = it
        .store
        .build_events(&other.id, &theirs.id, 0, u32::MAX)
        .await;
    assert_eq!(kept.expect("there").len(), 2);
}

#[tokio::test]
async fn builds_are_listed_newest_first_in_pages() {
    let it = fresh().await;
    let (acme, h) = (org(&it.store, "acme").await, host(&it.store, "h", 25).await);
    let machine = builder(&it.store, &acme, &h).await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(build(&it.store, &acme, &machine).await);
    }
    made.reverse();
    let mut filter = BuildFilter {
        limit: 2,
        ..BuildFilter::default()
    };
    assert_eq!(
        it.store.builds(&acme.id, &filter).await.expect("listed"),
        made[..2]
    );
    filter.before = Some(made[1].id.clone());
    assert_eq!(
        it.store.builds(&acme.id, &filter).await.expect("listed"),
        made[2..4]
    );
    filter.app = Some(AppId::from_entropy(entropy()));
    assert_eq!(
        it.store.builds(&acme.id, &filter).await.expect("listed"),
        vec![]
    );
}
