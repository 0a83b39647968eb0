//! Builds against a test guest: no event lost, none twice, through the deaths of everybody but the guest.

mod common;

use common::{Bed, TestGuest, eventually};
use futures_util::StreamExt;
use slipway_core::build::{
    BuildEvent, BuildOutcome, BuildSource, BuildSpec, BuiltPlatform, Fault, NumberedEvent,
    Statement,
};
use slipway_core::ceilings::Ceilings;
use slipway_core::guest_api::SeenSolve;
use slipway_core::id::{AppId, BuildId, OrgId};
use slipway_core::limits::{BUILD_EVENTS_BYTES_MAX, BUILD_LOG_CHUNK_BYTES_MAX};
use slipway_core::quota::BuildRetention;
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use slipway_scheduler::builds::{Asker, BuildError, BuildRequest, BuildService};
use slipway_scheduler::farm::{BuilderKey, FarmEvent, NextEvent};
use slipway_scheduler::limits::SEEN_MAX;
use slipway_store::{Build, BuildState, ErrorKind, OrgChange, Store, StoreError};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const SHORT: Duration = slipway_core::limits::BUILDER_IDLE_MIN;

fn request() -> BuildRequest {
    BuildRequest {
        session: "a session".into(),
        spec: BuildSpec {
            image: "app".into(),
            ..BuildSpec::default()
        },
        credential: None,
        tag_credentials: Vec::new(),
        lent: Vec::new(),
        asked_by: None,
        until: CancellationToken::new(),
    }
}

fn said(n: usize) -> BuildEvent {
    BuildEvent::Warning {
        message: n.to_string(),
    }
}

fn done() -> BuildOutcome {
    BuildOutcome::Succeeded {
        image_id: "sha256:1".into(),
        digest: None,
        size_bytes: 1,
        build_ms: 2,
        push_ms: 3,
        steps: 5,
        steps_cached: 4,
        platforms: [BuiltPlatform {
            platform: "linux/arm64".into(),
            emulated: true,
        }]
        .into(),
        statements: vec![Statement {
            platform: Some("linux/arm64".into()),
            predicate_type: "https://slsa.dev/provenance/v0.2".into(),
            digest: "sha256:2".into(),
            size_bytes: 2,
            text: Some("{}".into()),
        }],
    }
}

async fn begin(bed: &Bed, builds: &BuildService, key: &BuilderKey) -> Build {
    let app = bed.farm.ensure_builder(key).await.expect("ensured").app;
    builds
        .start_build(key, &app, request())
        .await
        .expect("started")
}

async fn ended(bed: &Bed, build: &Build) -> Build {
    eventually("the build ends", || async {
        let build = bed.store.build(&build.org, &build.id).await.expect("there");
        build.ended_at.is_some().then_some(build)
    })
    .await
}

async fn all(builds: &BuildService, build: &Build, after: u64) -> Vec<NumberedEvent> {
    let stream = builds
        .events(&build.org, &build.id, after)
        .await
        .expect("a stream");
    stream.map(|event| event.expect("an event")).collect().await
}

fn guest_of(bed: &Bed, build: &Build) -> Arc<TestGuest> {
    let mut guests = bed.world.guests().into_iter();
    let its = guests.find(|guest| guest.builds().contains(&build.id));
    its.expect("its guest")
}

fn numbers(events: &[NumberedEvent]) -> Vec<u64> {
    events.iter().map(|event| event.seq).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_of_an_older_version_is_told_with_the_way_out() {
    let bed = Bed::start().await;
    let builds = BuildService::start(&bed.farm, None)
        .await
        .expect("a service");
    let key = bed.org(SHORT).await;
    let app = begin(&bed, &builds, &key).await.app;
    let guest = bed.world.guest().expect("a guest");
    guest.older.store(true, std::sync::atomic::Ordering::SeqCst);
    let error = builds
        .start_build(&key, &app, request())
        .await
        .expect_err("it does not know the request");
    assert!(matches!(error, BuildError::Older(_)), "{error:?}");
    assert!(error.to_string().contains("an older version"), "{error}");
    let hint = error.hint().expect("a hint");
    assert!(hint.contains("`slipway builders stop`"), "{hint}");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_every_event_once_whenever_they_come() {
    let bed = Bed::start().await;
    let builds = BuildService::start(&bed.farm, None)
        .await
        .expect("a service");
    let key = bed.org(SHORT).await;
    let mut changes = bed.farm.subscribe(&key.org);
    let build = begin(&bed, &builds, &key).await;
    assert_eq!(build.state, BuildState::Running);
    let guest = bed.world.guest().expect("a guest");
    assert_eq!(guest.builds(), vec![build.id.clone()]);

    let mut readers = tokio::task::JoinSet::new();
    for n in 0..2000 {
        guest.tell(&build.id, said(n));
        if n % 100 == 0 {
            let (builds, build) = (builds.clone(), build.clone());
            readers.spawn(async move { all(&builds, &build, n as u64 / 2).await });
            tokio::task::yield_now().await;
        }
    }
    guest.tell(&build.id, BuildEvent::Ended(done()));
    let mut n = 0;
    while let Some(events) = readers.join_next().await {
        let events = events.expect("no panic");
        let first = events[0].seq;
        assert_eq!(numbers(&events), (first..=2001).collect::<Vec<_>>());
        n += 1;
    }
    assert_eq!(n, 20);
    let build = ended(&bed, &build).await;
    assert_eq!(
        (build.state, build.outcome.clone()),
        (BuildState::Succeeded, Some(done().without_texts())),
        "lists read the record: it has no texts"
    );
    let last = all(&builds, &build, 2000).await;
    assert_eq!(last[0].event, BuildEvent::Ended(done()));
    assert_eq!(
        numbers(&all(&builds, &build, 1990).await),
        (1991..=2001).collect::<Vec<_>>()
    );
    let mut seen = Vec::new();
    while seen.last() != Some(&BuildState::Succeeded) {
        if let NextEvent::Event(FarmEvent::Build(build)) = changes.next().await {
            seen.push(build.state);
        }
    }
    assert_eq!(seen, [BuildState::Running, BuildState::Succeeded]);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_survives_the_control_plane_and_the_host_daemon() {
    let mut bed = Bed::start().await;
    let builds = BuildService::start(&bed.farm, None)
        .await
        .expect("a service");
    let key = bed.org(SHORT).await;
    let build = begin(&bed, &builds, &key).await;
    let guest = bed.world.guest().expect("a guest");
    for n in 0..10 {
        guest.tell(&build.id, said(n));
    }
    eventually("some are recorded", || async {
        let build = bed.store.build(&build.org, &build.id).await.expect("there");
        (build.last_seq > 0).then_some(())
    })
    .await;
    bed.kill_daemon().await;
    for n in 10..20 {
        guest.tell(&build.id, said(n));
    }
    bed.stop_farm().await;
    for n in 20..30 {
        guest.tell(&build.id, said(n));
    }
    bed.restart_farm().await;
    let builds = BuildService::start(&bed.farm, None)
        .await
        .expect("a service");
    bed.start_daemon();
    guest.tell(&build.id, BuildEvent::Ended(done()));
    assert_eq!(
        numbers(&all(&builds, &build, 0).await),
        (1..=31).collect::<Vec<_>>()
    );
    assert_eq!(ended(&bed, &build).await.state, BuildState::Succeeded);
    assert_eq!(bed.world.starts(), 1, "the machine was restarted");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_keeps_its_builder_and_its_builder_takes_it_along() {
    let bed = Bed::start().await;
    let builds = BuildService::start(&bed.farm, None)
        .await
        .expect("a service");
    let key = bed.org(SHORT).await;
    let build = begin(&bed, &builds, &key).await;
    assert_eq!(bed.farm.builder(&key).expect("there").in_flight, 1);
    bed.world.crash_all();
    let build = ended(&bed, &build).await;
    match build.outcome {
        Some(BuildOutcome::Failed {
            fault: Fault::System,
            hint: Some(_),
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    let events = all(&builds, &build, 0).await;
    assert!(matches!(
        events.last().map(|e| &e.event),
        Some(BuildEvent::Ended(BuildOutcome::Failed { .. }))
    ));
    eventually("the guard is dropped", || async {
        (bed.farm.builder(&key).expect("there").in_flight == 0).then_some(())
    })
    .await;
    bed.end().await;
}

/// One build that cannot be followed keeps neither the server from starting nor the builds of others from being followed.
#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_cannot_be_followed_has_failed_and_the_server_starts() {
    let mut bed = Bed::start().await;
    let builds = BuildService::start(&bed.farm, None)
        .await
        .expect("a service");
    let key = bed.org(SHORT).await;
    let build = begin(&bed, &builds, &key).await;
    bed.stop_farm().await;
    bed.restart_farm().await;
    let mut all_of_them = Vec::new();
    while let Ok(guard) = bed.farm.activity(&key) {
        all_of_them.push(guard);
    }
    let builds = BuildService::start(&bed.farm, None)
        .await
        .expect("a service");
    let build = ended(&bed, &build).await;
    assert_eq!(build.state, BuildState::Failed);
    let events = all(&builds, &build, 0).await;
    assert!(matches!(
        events.last().map(|e| &e.event),
        Some(BuildEvent::Ended(BuildOutcome::Failed { .. }))
    ));
    drop(all_of_them);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancels_and_refuses_strangers() {
    let bed = Bed::start().await;
    let builds = BuildService::start(&bed.farm, None)
        .await
        .expect("a service");
    let (key, thief) = (bed.org(SHORT).await, bed.org(SHORT).await);
    let build = begin(&bed, &builds, &key).await;
    for wrong in [
        builds.cancel(&thief.org, &build.id).await.err(),
        builds.events(&thief.org, &build.id, 0).await.err(),
    ] {
        match wrong {
            Some(BuildError::Store(error)) => assert_eq!(error.kind(), ErrorKind::NotFound),
            other => panic!("{other:?}"),
        }
    }
    builds.cancel(&key.org, &build.id).await.expect("cancelled");
    assert_eq!(ended(&bed, &build).await.state, BuildState::Cancelled);
    builds
        .cancel(&key.org, &build.id)
        .await
        .expect("cancelled twice");
    let nobody = builds
        .start_build(&key, &AppId::from_entropy([9; 10]), request())
        .await;
    assert_eq!(nobody.expect_err("no such app").fault(), Fault::User);
    let unknown = builds
        .cancel(&key.org, &BuildId::from_entropy([9; 10]))
        .await;
    assert_eq!(unknown.expect_err("no such build").fault(), Fault::User);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_builds_are_deleted_as_their_org_says() {
    let bed = Bed::start().await;
    let builds = BuildService::start(&bed.farm, None)
        .await
        .expect("a service");
    let key = bed.org(SHORT).await;
    let retention = BuildRetention {
        count: 25,
        ..BuildRetention::default()
    };
    let change = OrgChange {
        builds_kept: Some(retention.count),
        ..OrgChange::default()
    };
    let org = bed.store.update_org(&key.org, &change).await.expect("set");
    assert_eq!(org.retention, retention);
    let mut made = Vec::new();
    for _ in 0..50 {
        let build = begin(&bed, &builds, &key).await;
        let guest = bed.world.guest().expect("a guest");
        guest.tell(&build.id, BuildEvent::Ended(done()));
        made.push(ended(&bed, &build).await);
    }
    let last = made[49].ended_at.expect("it has ended");
    // More than one batch.
    assert_eq!(builds.delete_old(last).await.expect("deleted"), 25);
    assert_eq!(builds.delete_old(last).await.expect("deleted"), 0);
    let gone = builds.events(&key.org, &made[24].id, 0).await;
    assert!(matches!(gone.err(), Some(BuildError::Store(_))));
    assert_eq!(all(&builds, &made[25], 0).await.len(), 1);
    let age = u64::try_from(retention.age.as_millis()).expect("a number");
    let at = Timestamp(last.0 + age + 1);
    assert_eq!(builds.delete_old(at).await.expect("deleted"), 25);
    bed.end().await;
}

/// A hostile guest costs what is kept of a build, and no more than twice that to read.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_stop_telling_is_given_up() {
    let bed = Bed::start().await;
    let builds = BuildService::start(&bed.farm, None)
        .await
        .expect("a service");
    let key = bed.org(SHORT).await;
    let build = begin(&bed, &builds, &key).await;
    let guest = bed.world.guest().expect("a guest");
    let line = BuildEvent::Warning {
        message: "x".repeat(BUILD_LOG_CHUNK_BYTES_MAX),
    };
    let kept = BUILD_EVENTS_BYTES_MAX + BUILD_LOG_CHUNK_BYTES_MAX;
    for _ in 0..kept * 2 / BUILD_LOG_CHUNK_BYTES_MAX + 2 {
        guest.tell(&build.id, line.clone());
    }
    let build = ended(&bed, &build).await;
    match build.outcome {
        Some(BuildOutcome::Failed {
            fault: Fault::User, ..
        }) => {}
        other => panic!("{other:?}"),
    }
    let most = u64::try_from(kept).expect("a number") + 1024;
    assert!(build.event_bytes <= most, "{}", build.event_bytes);
    eventually("its guest hears of it", || async {
        guest.is_cancelled(&build.id).then_some(())
    })
    .await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_of_an_orgs_builds_is_bounded_in_bytes() {
    let bed = Bed::start_within(Ceilings {
        build_events: ByteSize(10_000),
        ..Ceilings::default()
    })
    .await;
    let builds = BuildService::start(&bed.farm, None)
        .await
        .expect("a service");
    let key = bed.org(SHORT).await;
    let tell = async || {
        let build = begin(&bed, &builds, &key).await;
        let guest = bed.world.guest().expect("a guest");
        let message = "x".repeat(6_000);
        guest.tell(&build.id, BuildEvent::Warning { message });
        eventually("it is recorded", || async {
            let build = bed.store.build(&key.org, &build.id).await.expect("there");
            (build.last_seq > 0).then_some(())
        })
        .await;
        (build, guest)
    };
    let (first, guest) = tell().await;
    guest.tell(&first.id, BuildEvent::Ended(done()));
    ended(&bed, &first).await;
    let (second, _) = tell().await;
    // The oldest one that has ended makes room; what runs does not.
    let (third, guest) = tell().await;
    assert!(bed.store.build(&key.org, &first.id).await.is_err());
    let app = bed.farm.builder(&key).expect("there").app;
    match builds.start_build(&key, &app, request()).await {
        Err(error @ BuildError::Store(StoreError::Quota(_))) => {
            assert_eq!(error.fault(), Fault::User);
        }
        other => panic!("{other:?}"),
    }
    for build in [second, third] {
        guest.tell(&build.id, BuildEvent::Ended(done()));
        ended(&bed, &build).await;
    }
    begin(&bed, &builds, &key).await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_of_docker_clients_are_recorded_under_the_org_of_their_guest_alone() {
    let bed = Bed::start().await;
    let builds = BuildService::start(&bed.farm, None)
        .await
        .expect("a service");
    let (other, key) = (bed.org(SHORT).await, bed.org(SHORT).await);
    // Of the other org, and on another machine.
    let theirs = begin(&bed, &builds, &other).await;
    let ours = begin(&bed, &builds, &key).await;
    let (guest, their_guest) = (guest_of(&bed, &ours), guest_of(&bed, &theirs));
    let solve = |n: u8, id: Option<&BuildId>| SeenSolve {
        id: id.cloned().unwrap_or(BuildId::from_entropy([n; 10])),
        reference: format!("reference-{n}"),
        spec: BuildSpec::default(),
    };
    let of_ann = |name: &str| Asker {
        source: BuildSource::Buildkit,
        name: name.into(),
        app: None,
    };
    let ann = builds.carry(&key, of_ann("ann"));
    let bob = builds.carry(&key, of_ann("bob"));
    let image = BuildSpec {
        image: "r.example/a:1".into(),
        ..BuildSpec::default()
    };
    bob.named("reference-3", Some(image));
    for _ in 0..10 {
        guest.see(solve(1, Some(&theirs.id)));
    }
    guest.see(solve(2, Some(&ours.id)));
    // What it repeats is told once.
    for _ in 0..2 * SEEN_MAX {
        guest.see(solve(3, None));
    }
    guest.see(solve(4, None));
    let found = |n: u8| {
        let (store, org, id) = (bed.store.clone(), key.org.clone(), solve(n, None).id);
        async move { store.build(&org, &id).await.ok() }
    };
    // In order: what came before it was looked at too.
    eventually("the last is recorded", || found(4)).await;
    let seen = found(3).await.expect("recorded");
    assert_eq!(seen.source, BuildSource::Buildkit);
    assert_eq!(seen.asked_by.as_deref(), Some("bob"));
    assert_eq!(seen.spec.image, "r.example/a:1");
    let unnamed = found(4).await.expect("recorded");
    assert_eq!(unnamed.asked_by, None, "one of two");
    assert_eq!(unnamed.source, BuildSource::Buildkit, "as both are");
    // Who reads the build whose id was named still hears of it.
    let (reading, read) = (builds.clone(), theirs.clone());
    let reader = tokio::spawn(async move { all(&reading, &read, 0).await });
    their_guest.tell(&theirs.id, said(1));
    eventually("it is recorded", || async {
        let build = bed.store.build(&other.org, &theirs.id).await.ok()?;
        (build.last_seq > 0).then_some(())
    })
    .await;
    their_guest.tell(&theirs.id, BuildEvent::Ended(done()));
    let events = reader.await.expect("no panic");
    assert_eq!(
        events.last().map(|it| &it.event),
        Some(&BuildEvent::Ended(done()))
    );
    let get = async |org: &OrgId, build: &Build| bed.store.build(org, &build.id).await;
    assert!(get(&key.org, &theirs).await.is_err());
    for (org, build) in [(&other.org, &theirs), (&key.org, &ours)] {
        let build = get(org, build).await.expect("as it was");
        assert_eq!(build.source, BuildSource::Deploy);
    }
    let refused = builds.cancel(&key.org, &seen.id).await;
    assert!(matches!(refused, Err(BuildError::OfClient)), "{refused:?}");
    drop((ann, bob));
    for build in [&seen, &unnamed, &ours] {
        guest.tell(&build.id, BuildEvent::Ended(done()));
        assert_eq!(ended(&bed, build).await.state, BuildState::Succeeded);
    }
    bed.end().await;
}
