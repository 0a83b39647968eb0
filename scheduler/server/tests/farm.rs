//! The farm against a test host: waking, ending, crashing, and what must hold meanwhile.

mod common;

use common::{Bed, eventually, recorded};
use slipway_core::ceilings::Ceilings;
use slipway_core::fence::Fence;
use slipway_core::generation::Generation;
use slipway_core::host_api::{EndpointPort, HostErrorCode};
use slipway_core::machine::MachineState;
use slipway_core::quota::BuilderSize;
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use slipway_scheduler::farm::{
    ActivityGuard, BuilderKey, Farm, FarmError, FarmEvent, NextEvent, VolumeError,
};
use slipway_scheduler::limits::HOST_STARTS_MAX;
use slipway_scheduler::machine_stream::MachineStream;
use slipway_store::{Intent, OrgChange, VolumeState};
use slipway_store::{Store, SystemStore};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HOUR: Duration = Duration::from_secs(3600);
const SHORT: Duration = slipway_core::limits::BUILDER_IDLE_MIN;

/// Asks the dockerd at the other end which generation it is.
async fn ping(stream: &mut MachineStream) -> std::io::Result<u64> {
    stream.write_all(b"?").await?;
    stream.read_u64().await
}

async fn connect(farm: &Farm, key: &BuilderKey) -> (MachineStream, ActivityGuard) {
    farm.connect(key, EndpointPort::Docker)
        .await
        .expect("a connection")
}

async fn in_state(farm: &Farm, key: &BuilderKey, name: &str) {
    eventually(name, || async {
        let state = farm.builder(key).expect("a builder").state;
        (state.name() == name).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_ensures_start_one_machine() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..1000 {
        let (farm, key) = (bed.farm.clone(), key.clone());
        tasks.spawn(async move {
            if n % 10 == 0 {
                let (mut stream, _guard) = connect(&farm, &key).await;
                ping(&mut stream).await.expect("an answer");
            }
            farm.ensure_builder(&key).await.expect("ensured").machine
        });
    }
    let mut machines = std::collections::BTreeSet::new();
    while let Some(machine) = tasks.join_next().await {
        machines.insert(machine.expect("no panic"));
    }
    assert_eq!(machines.len(), 1);
    in_state(&bed.farm, &key, "running").await;
    assert_eq!(recorded(&bed).await.len(), 1);
    assert_eq!(bed.world.starts(), 1, "EnsureMachine ran more than once");
    bed.end().await;
}

/// As after a move that an older database does not know of.
#[tokio::test(flavor = "multi_thread")]
async fn a_builder_does_not_start_on_a_cache_that_its_host_knows_more_of() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let volume = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "running").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    in_state(&bed.farm, &key, "stopped").await;
    let later = Fence(1 << 20);
    bed.world.lock().fences.insert(volume.clone(), later);
    bed.farm.ensure_builder(&key).await.expect("ensured");
    let said = eventually("a refusal", || async {
        bed.farm.builder(&key).expect("there").last_error
    })
    .await;
    assert!(said.contains("later orders about its cache"), "{said}");
    assert_eq!(bed.world.starts(), 1, "it started on what may be stale");
    assert_eq!(bed.farm.builder(&key).expect("there").volume, volume);
    bed.end().await;
}

/// A start that has no key is tried again, and the cache is not thrown away for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_store_that_is_away_delays_starts_and_ends_nothing() {
    let bed = Bed::start_encrypting().await;
    let key = bed.org(HOUR).await;
    bed.outage.lasts.store(true, Ordering::Relaxed);
    let volume = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    let said = eventually("what is missing", || async {
        bed.farm.builder(&key).expect("there").last_error
    })
    .await;
    assert!(said.contains("the key store does not answer"), "{said}");
    // Longer than three starts may fail before a builder gets another volume.
    eventually("more tries", || async {
        (bed.outage.asked.load(Ordering::Relaxed) >= 5).then_some(())
    })
    .await;
    assert_eq!(bed.world.starts(), 0, "it started without a key");
    bed.outage.lasts.store(false, Ordering::Relaxed);
    in_state(&bed.farm, &key, "running").await;
    assert_eq!(bed.farm.builder(&key).expect("there").volume, volume);

    bed.outage.lasts.store(true, Ordering::Relaxed);
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    ping(&mut stream).await.expect("an answer");
    bed.farm.stop_builder(&key).await.expect("stopped");
    in_state(&bed.farm, &key, "stopped").await;
    bed.end().await;
}

/// What runs goes on, and its lease is renewed soon after the key store answers again.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_store_that_is_away_at_a_renewal_ends_nothing() {
    let bed = Bed::start_encrypting().await;
    let key = bed.org(HOUR).await;
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    in_state(&bed.farm, &key, "running").await;
    let lends = || bed.world.lock().lends;
    let renewed_after = |before: u32| {
        eventually("a renewal", move || async move {
            (lends() > before).then_some(())
        })
    };
    renewed_after(lends()).await;

    bed.outage.lasts.store(true, Ordering::Relaxed);
    eventually("renewals that fail", || async {
        (bed.outage.asked.load(Ordering::Relaxed) >= 5).then_some(())
    })
    .await;
    ping(&mut stream).await.expect("an answer");
    in_state(&bed.farm, &key, "running").await;
    let before = lends();
    bed.outage.lasts.store(false, Ordering::Relaxed);
    renewed_after(before).await;
    assert_eq!(bed.world.starts(), 1, "it started anew");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_wakes_waits_in_the_backlog_and_then_is_cheap() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    bed.world.lock().hold_ready = true;
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    assert_eq!(
        bed.farm.builder(&key).expect("there").state.name(),
        "booting"
    );
    bed.world.guest().expect("a guest").ready.send_replace(true);
    assert_eq!(ping(&mut stream).await.expect("an answer"), 1);
    in_state(&bed.farm, &key, "running").await;

    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..500 {
        let start = Instant::now();
        let (stream, guard) = connect(&bed.farm, &key).await;
        times.push(start.elapsed());
        drop((stream, guard));
    }
    times.sort();
    // A figure to look at, and no bound: test machines are shared.
    println!(
        "connect to a running builder: p50 {:?}, p99 {:?}",
        times[250], times[495]
    );
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_builder_ends_and_comes_back_with_its_volume() {
    let bed = Bed::start().await;
    let key = bed.org(SHORT).await;
    let (mut stream, guard) = connect(&bed.farm, &key).await;
    assert_eq!(ping(&mut stream).await.expect("an answer"), 1);
    in_state(&bed.farm, &key, "running").await;
    drop((stream, guard));
    in_state(&bed.farm, &key, "stopped").await;
    eventually("it is removed", || async {
        bed.world.guest().is_none().then_some(())
    })
    .await;
    let row = eventually("it is recorded", || async {
        let row = recorded(&bed).await.remove(0);
        (row.state == MachineState::Stopped).then_some(row)
    })
    .await;
    assert_eq!((row.intent, row.last_error), (Intent::Stopped, None));
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    assert_eq!(ping(&mut stream).await.expect("an answer"), 2);
    assert_eq!(bed.farm.builder(&key).expect("there").volume, row.volume);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_use_is_reaped() {
    let bed = Bed::start().await;
    let (by_stream, by_guard, by_guest) = (
        bed.org(SHORT).await,
        bed.org(SHORT).await,
        bed.org(SHORT).await,
    );
    let (mut stream, _open) = connect(&bed.farm, &by_stream).await;
    for key in [&by_guard, &by_guest] {
        drop(connect(&bed.farm, key).await);
        in_state(&bed.farm, key, "running").await;
    }
    let _held = bed.farm.activity(&by_guard).expect("a guard");
    let view = bed.farm.builder(&by_guest).expect("there");
    let guest = bed.world.lock().machines[&view.machine].guest.clone();
    guest.containers.store(1, Ordering::SeqCst);

    // Long enough for the reaper to have come by twice; a fourth builder that it does end proves that it works.
    let idle = bed.org(SHORT).await;
    for _ in 0..2 {
        drop(connect(&bed.farm, &idle).await);
        in_state(&bed.farm, &idle, "running").await;
        in_state(&bed.farm, &idle, "stopped").await;
    }
    for key in [&by_stream, &by_guard, &by_guest] {
        assert_eq!(
            bed.farm.builder(key).expect("there").state.name(),
            "running"
        );
    }
    assert_eq!(ping(&mut stream).await.expect("still the same"), 1);
    guest.containers.store(0, Ordering::SeqCst);
    in_state(&bed.farm, &by_guest, "stopped").await;
    bed.end().await;
}

/// Connections that come just when the reaper does. Each must be answered, whichever side is faster.
#[tokio::test(flavor = "multi_thread")]
async fn the_reaper_races_connections() {
    let bed = Bed::start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..48u64 {
        let (farm, key) = (bed.farm.clone(), bed.org(SHORT).await);
        tasks.spawn(async move {
            let mut ended = 0;
            let mut last = 0;
            for round in 0..4u64 {
                let (mut stream, guard) = connect(&farm, &key).await;
                let generation = ping(&mut stream).await.expect("a first answer");
                ended += u32::from(last != 0 && generation != last);
                last = generation;
                in_state(&farm, &key, "running").await;
                drop((stream, guard));
                // From 12 ms before the reaper is due to 12 ms after; then from 24, 48 and 96, as on a busy computer both are
                // late.
                let jitter = ((n * 7 + round * 13) % 24) << round;
                let early = Duration::from_millis(12 << round);
                tokio::time::sleep(SHORT + Duration::from_millis(jitter) - early).await;
                for _ in 0..3 {
                    let (mut stream, _guard) = connect(&farm, &key).await;
                    let generation = ping(&mut stream).await.expect("an answer after the race");
                    ended += u32::from(generation != last);
                    last = generation;
                    tokio::task::yield_now().await;
                    ping(&mut stream).await.expect("an answer while held");
                }
            }
            ended
        });
    }
    let mut ended = 0;
    while let Some(done) = tasks.join_next().await {
        ended += done.expect("no panic");
    }
    println!("192 races, {ended} won by the reaper");
    assert!(ended > 5, "the reaper never won: no race was tested");
    assert!(ended < 187, "the reaper always won: no race was tested");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_is_restarted_while_used_and_a_clean_end_is_not() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let (stream, _guard) = connect(&bed.farm, &key).await;
    in_state(&bed.farm, &key, "running").await;
    drop(stream);
    bed.world.crash_all();
    eventually("it is started anew", || async {
        (bed.world.starts() == 2).then_some(())
    })
    .await;
    in_state(&bed.farm, &key, "running").await;

    let view = bed.farm.builder(&key).expect("there");
    let generation = view.state.live_generation().expect("it lives");
    bed.world.end_machine(&view.machine, generation, true);
    in_state(&bed.farm, &key, "stopped").await;
    assert_eq!(
        bed.farm.builder(&key).expect("there").intent,
        Intent::Stopped
    );
    assert_eq!(bed.world.starts(), 2, "what ended well was started anew");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_will_not_start_gets_an_empty_cache_once() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let first = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "running").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.world.lock().damaged.insert(first.clone());
    // The caller's connection does not fail for it.
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    ping(&mut stream).await.expect("an answer");
    let view = bed.farm.builder(&key).expect("there");
    assert_ne!(view.volume, first);
    assert!(
        view.notice
            .expect("the owner is told")
            .contains(first.as_str())
    );
    let kept = bed.store.volume(&key.org, &first).await.expect("kept");
    assert_eq!(kept.state, VolumeState::Aside);
    // It can be thrown away, and its room comes back.
    bed.farm
        .destroy_volume(&key.org, &first, true)
        .await
        .expect("destroyed");
    let promised = bed.store.hosts().await.expect("hosts")[0].pool_promised;
    assert_eq!(promised.0, 1 << 30);
    assert!(matches!(
        bed.farm.destroy_volume(&key.org, &view.volume, true).await,
        Err(FarmError::Volume(VolumeError::Attached))
    ));
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_size_that_an_org_asks_for_reaches_its_builder_at_the_next_start() {
    let most = Ceilings::default();
    let bed = Bed::start_within(most).await;
    let key = bed.org(HOUR).await;
    bed.farm.ensure_builder(&key).await.expect("ensured");
    in_state(&bed.farm, &key, "running").await;
    let first = bed.farm.builder(&key).expect("there").size;
    let asked = BuilderSize {
        cpu_millis: 3000,
        // More than the installation allows by now: what it may have.
        memory: ByteSize(most.builder.memory.0 * 2),
        ..first
    };
    let change = OrgChange {
        cpu_millis: Some(asked.cpu_millis),
        memory: Some(asked.memory),
        volume: Some(asked.volume),
        ..OrgChange::default()
    };
    let org = bed.store.update_org(&key.org, &change).await.expect("set");
    bed.farm.org_changed(&org);
    let got = BuilderSize {
        memory: most.builder.memory,
        ..asked
    };
    let view = bed.farm.builder(&key).expect("there");
    assert_eq!((view.size, view.next_size), (first, got));
    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.farm.ensure_builder(&key).await.expect("ensured");
    in_state(&bed.farm, &key, "running").await;
    let view = bed.farm.builder(&key).expect("there");
    assert_eq!((view.size, view.next_size), (got, got));
    let spec = bed.world.lock().specs[&view.machine].clone();
    assert_eq!(
        (spec.cpu_millis, spec.memory_bytes),
        (got.cpu_millis, got.memory.0)
    );
    eventually("it is recorded", || async {
        (recorded(&bed).await[0].size == got).then_some(())
    })
    .await;
    bed.end().await;
}

/// Whatever a host cannot do, it says nothing about the cache: a slow disk, a full table, a network that cannot be made.
#[tokio::test(flavor = "multi_thread")]
async fn failed_starts_never_cost_a_cache_and_callers_are_told() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let first = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "running").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.world
        .lock()
        .refuse_starts
        .extend([HostErrorCode::Failed; 100]);
    match bed.farm.connect(&key, EndpointPort::Docker).await {
        Err(FarmError::WontStart(why)) => {
            assert!(why.contains("its host could not start it"), "{why}");
            assert!(!why.contains("test:"), "the host's own words: {why}");
        }
        other => panic!("{other:?}"),
    }
    let view = bed.farm.builder(&key).expect("there");
    assert_eq!((view.volume, view.notice), (first.clone(), None));
    assert_eq!(bed.store.volumes(&key.org).await.expect("listed").len(), 1);
    bed.world.lock().refuse_starts.clear();
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    ping(&mut stream).await.expect("an answer");
    assert_eq!(bed.farm.builder(&key).expect("there").volume, first);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_the_host_still_works_on_is_waited_for() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let first = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "running").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.world
        .lock()
        .refuse_volumes
        .push_back(HostErrorCode::InProgress);
    bed.world
        .lock()
        .refuse_starts
        .extend([HostErrorCode::InProgress; 2]);
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    // The very generation that was begun: nothing was started anew.
    assert_eq!(ping(&mut stream).await.expect("an answer"), 2);
    let view = bed.farm.builder(&key).expect("there");
    assert_eq!((view.volume, view.notice), (first, None));
    assert_eq!(bed.store.volumes(&key.org).await.expect("listed").len(), 1);
    bed.end().await;
}

/// Whoever waits learns at once what for, and what is over soon is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn what_delays_a_start_is_told_while_it_lasts() {
    let mut bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    bed.farm.ensure_builder(&key).await.expect("ensured");
    in_state(&bed.farm, &key, "running").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    in_state(&bed.farm, &key, "stopped").await;
    let waits_for = async |farm: &Farm, words: &str| {
        eventually(words, || async {
            let why = farm.builder(&key).expect("there").waiting_for?;
            why.contains(words).then_some(())
        })
        .await;
    };
    assert_eq!(bed.farm.builder(&key).expect("there").waiting_for, None);
    // More refusals than a caller would stand if they were failures.
    bed.world
        .lock()
        .refuse_starts
        .extend([HostErrorCode::Busy; 6]);
    let (farm, other) = (bed.farm.clone(), key.clone());
    let waiting = tokio::spawn(async move {
        let (mut stream, _guard) = connect(&farm, &other).await;
        ping(&mut stream).await.expect("an answer")
    });
    waits_for(&bed.farm, "still holds its cache").await;
    bed.world
        .lock()
        .refuse_starts
        .extend([HostErrorCode::DiskFull; 4]);
    waits_for(&bed.farm, "a disk of its host is full").await;
    waiting.await.expect("no panic");
    in_state(&bed.farm, &key, "running").await;
    assert_eq!(bed.farm.builder(&key).expect("there").waiting_for, None);

    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.kill_daemon().await;
    let farm = bed.farm.clone();
    let (farm_too, other) = (farm.clone(), key.clone());
    let waiting = tokio::spawn(async move { connect(&farm_too, &other).await });
    waits_for(&farm, "its host does not answer").await;
    let notices = farm.notices();
    assert!(notices[0].contains("does not answer"), "{notices:?}");
    bed.start_daemon();
    drop(waiting.await.expect("no panic"));
    bed.end().await;
}

/// What a builder image lacks is for whoever waits to read, and for as long as nothing has changed.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_reads_why_the_engine_cannot_start() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    bed.world.lock().hold_ready = true;
    bed.farm.ensure_builder(&key).await.expect("ensured");
    // As often as it is started.
    let world = Arc::clone(&bed.world);
    let refusing = tokio::spawn(async move {
        let mut refused = Generation(0);
        loop {
            let last = world.lock().started.last().cloned();
            if let Some((machine, generation)) = last.filter(|(_, last)| *last > refused) {
                refused = generation;
                world.end_refused(&machine, generation, "it has no iptables");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    in_state(&bed.farm, &key, "crashed").await;
    let told = bed.farm.connect(&key, EndpointPort::Docker).await;
    refusing.abort();
    let error = told.map(drop).expect_err("it cannot start").to_string();
    assert!(error.contains("it has no iptables"), "{error}");
    let view = bed.farm.builder(&key).expect("there");
    assert_eq!(view.last_error.as_deref(), Some("it has no iptables"));
    bed.end().await;
}

/// Nobody has to look for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_builder_image_is_a_notice() {
    let mut bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    bed.farm.ensure_builder(&key).await.expect("ensured");
    assert_eq!(bed.farm.notices(), Vec::<String>::new());
    let days = |n: u64| Duration::from_secs(n * 24 * 60 * 60);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    for (age, notice) in [(days(29), false), (days(40), true)] {
        let made_at = Timestamp(u64::try_from((now - age).as_millis()).expect("small"));
        bed.kill_daemon().await;
        bed.world.lock().image_made_at = Some(made_at);
        bed.start_daemon();
        eventually("the age of the image", || async {
            let images = bed.farm.images();
            images
                .iter()
                .any(|(_, ages)| ages.image == Some(made_at))
                .then_some(())
        })
        .await;
        let notices = eventually("the host", || async {
            let notices = bed.farm.notices();
            (!notices
                .iter()
                .any(|words| words.contains("does not answer")))
            .then_some(notices)
        })
        .await;
        let told = notices.iter().any(|words| words.contains("40 days old"));
        assert_eq!(told, notice, "{notices:?}");
    }
    bed.end().await;
}

/// A wake of many on one host: a few start at once, the others know that they wait, and what runs stays reachable.
#[tokio::test(flavor = "multi_thread")]
async fn builders_that_wake_at_once_take_turns() {
    let bed = Bed::start().await;
    let running = bed.org(HOUR).await;
    let (mut stream, _open) = connect(&bed.farm, &running).await;
    ping(&mut stream).await.expect("an answer");
    bed.world.lock().hold_starts = true;
    let mut waiting = tokio::task::JoinSet::new();
    let mut keys = Vec::new();
    for _ in 0..HOST_STARTS_MAX * 3 {
        let (farm, key) = (bed.farm.clone(), bed.org(HOUR).await);
        keys.push(key.clone());
        waiting.spawn(async move {
            let (mut stream, _guard) = connect(&farm, &key).await;
            ping(&mut stream).await.expect("an answer");
        });
    }
    let told = || {
        let views = keys.iter().filter_map(|key| bed.farm.builder(key).ok());
        let why = views.filter_map(|view| view.waiting_for);
        why.filter(|why| why.contains("its turn to start")).count()
    };
    eventually("those who wait know it", || async {
        (told() == HOST_STARTS_MAX * 2).then_some(())
    })
    .await;
    // None of them holds back who has a builder that runs.
    let (mut stream, _second) = connect(&bed.farm, &running).await;
    ping(&mut stream).await.expect("an answer");
    bed.world.lock().hold_starts = false;
    while let Some(done) = waiting.join_next().await {
        done.expect("no panic");
    }
    let most = bed.world.lock().starting_most;
    assert!(most <= HOST_STARTS_MAX, "{most} starts at once");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_the_guest_found_damaged_is_replaced() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    bed.world.lock().hold_ready = true;
    let first = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "booting").await;
    let view = bed.farm.builder(&key).expect("there");
    let generation = view.state.live_generation().expect("it lives");
    bed.world.lock().hold_ready = false;
    bed.world.end_damaged(&view.machine, generation);
    in_state(&bed.farm, &key, "running").await;
    let view = bed.farm.builder(&key).expect("there");
    assert_ne!(view.volume, first);
    assert!(view.notice.expect("told").contains(first.as_str()));
    bed.end().await;
}

/// Nothing is destroyed by itself: the owner is told what may be given up, and by which verb.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_cache_that_there_is_no_room_to_replace_stays() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let first = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "running").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.world.lock().damaged.insert(first.clone());
    let host = bed.store.hosts().await.expect("hosts").remove(0).host;
    bed.store
        .put_host(&slipway_store::Host {
            pool_capacity: ByteSize::gib(1),
            ..host
        })
        .await
        .expect("a full pool");
    match bed.farm.connect(&key, EndpointPort::Docker).await {
        Err(FarmError::WontStart(why)) => {
            assert!(why.contains("slipway builders reset-cache"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    let view = bed.farm.builder(&key).expect("there");
    assert_eq!(view.volume, first);
    assert!(
        view.notice.expect("told").contains("reset-cache"),
        "the notice"
    );
    assert!(bed.world.lock().volumes.contains_key(&first), "destroyed");
    bed.farm.reset_cache(&key).await.expect("reset");
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    ping(&mut stream).await.expect("an answer");
    assert_eq!(bed.farm.builder(&key).expect("there").notice, None);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_cache_at_most_is_kept_aside() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let first = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "running").await;
    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.world.lock().damaged.insert(first.clone());
    drop(connect(&bed.farm, &key).await);
    in_state(&bed.farm, &key, "running").await;
    let second = bed.farm.builder(&key).expect("there").volume;
    bed.farm.stop_builder(&key).await.expect("stopped");
    bed.world.lock().damaged.insert(second.clone());
    match bed.farm.connect(&key, EndpointPort::Docker).await {
        Err(FarmError::WontStart(why)) => assert!(why.contains(first.as_str()), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(bed.store.volumes(&key.org).await.expect("listed").len(), 2);
    // With the older one gone, the next caller gets a new cache at once.
    bed.farm
        .destroy_volume(&key.org, &first, true)
        .await
        .expect("destroyed");
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    ping(&mut stream).await.expect("an answer");
    let view = bed.farm.builder(&key).expect("there");
    assert!(view.notice.expect("told").contains(second.as_str()));
    bed.end().await;
}

/// What the machine printed last is told to who waits for it, and of one that ran before nothing is.
#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_dies_at_boot_gives_its_reason() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let why = async |words: &str| {
        eventually(words, || async {
            let view = bed.farm.builder(&key).expect("there");
            view.last_error.filter(|why| why.contains(words))
        })
        .await
    };
    bed.world.lock().hold_ready = true;
    for words in ["no space in /run", "another reason"] {
        let told = format!("it ended before Docker was up; the last it printed: {words}");
        bed.world.lock().last_words = Some(words.to_owned());
        bed.farm.ensure_builder(&key).await.expect("ensured");
        in_state(&bed.farm, &key, "booting").await;
        bed.world.crash_all();
        assert_eq!(why(words).await, told);
    }
    bed.world.lock().hold_ready = false;
    in_state(&bed.farm, &key, "running").await;
    bed.world.lock().hold_ready = true;
    bed.world.lock().last_words = Some("words of a build".to_owned());
    bed.world.crash_all();
    in_state(&bed.farm, &key, "booting").await;
    let said = bed.farm.builder(&key).expect("there").last_error;
    assert!(!said.is_some_and(|said| said.contains("words of a build")));
    bed.world.lock().hold_ready = false;
    bed.end().await;
}

/// A cache that a virtual machine has written is whole, and so its owner reads no word of damage.
#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_a_virtual_machine_has_written_is_called_so() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let first = bed.farm.ensure_builder(&key).await.expect("ensured").volume;
    in_state(&bed.farm, &key, "running").await;
    for beside in [None, Some(first)] {
        bed.farm.stop_builder(&key).await.expect("stopped");
        let volume = bed.farm.builder(&key).expect("there").volume;
        bed.world.lock().foreign.insert(volume.clone());
        let connected = bed.farm.connect(&key, EndpointPort::Docker).await;
        match (&connected, &beside) {
            (Ok(_), None) => {}
            // One is kept aside already.
            (Err(FarmError::WontStart(_)), Some(_)) => {}
            (other, _) => panic!("{other:?}"),
        }
        let notice = bed.farm.builder(&key).expect("there").notice;
        let notice = notice.expect("the owner is told");
        let kept = beside.unwrap_or(volume);
        for words in [
            "virtual machine",
            "written",
            "--isolation vm",
            kept.as_str(),
        ] {
            assert!(notice.contains(words), "{words:?} is not in {notice:?}");
        }
        assert!(!notice.contains("damaged"), "{notice}");
    }
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_at_boot_callers_wait_until_it_is_up() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    bed.world.lock().hold_ready = true;
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    bed.world.crash_all();
    assert!(ping(&mut stream).await.is_err(), "the machine died");
    in_state(&bed.farm, &key, "crashed").await;
    // The next one is not let into a backlog that may be lost again.
    let (farm, other) = (bed.farm.clone(), key.clone());
    let waiting = tokio::spawn(async move {
        let (mut stream, _guard) = connect(&farm, &other).await;
        assert_eq!(farm.builder(&other).expect("there").state.name(), "running");
        ping(&mut stream).await.expect("an answer")
    });
    in_state(&bed.farm, &key, "booting").await;
    bed.world.guest().expect("a guest").ready.send_replace(true);
    assert_eq!(waiting.await.expect("no panic"), 2);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_daemons_death_cuts_no_stream_and_is_survived() {
    let mut bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    in_state(&bed.farm, &key, "running").await;
    // So that the new daemon's revisions are far below.
    for _ in 0..50 {
        drop(connect(&bed.farm, &bed.org(HOUR).await).await);
    }
    bed.kill_daemon().await;
    assert_eq!(ping(&mut stream).await.expect("the stream lives"), 1);
    let (farm, other) = (bed.farm.clone(), key.clone());
    let waiting = tokio::spawn(async move {
        let (mut stream, _guard) = connect(&farm, &other).await;
        ping(&mut stream).await.expect("an answer")
    });
    bed.start_daemon();
    assert_eq!(
        waiting.await.expect("no panic"),
        1,
        "the machine was not restarted"
    );
    // News of the new daemon arrive at once, although its revisions are low.
    bed.world.crash_all();
    eventually("the crash is seen", || async {
        (bed.world.starts() > 51).then_some(())
    })
    .await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_control_plane_adopts_what_runs() {
    let mut bed = Bed::start().await;
    let (up, down) = (bed.org(HOUR).await, bed.org(HOUR).await);
    let (mut stream, guard) = connect(&bed.farm, &up).await;
    in_state(&bed.farm, &up, "running").await;
    bed.farm.ensure_builder(&down).await.expect("ensured");
    in_state(&bed.farm, &down, "running").await;
    bed.farm.stop_builder(&down).await.expect("stopped");
    bed.restart_farm().await;
    drop(guard);
    assert_eq!(ping(&mut stream).await.expect("the stream lives"), 1);
    in_state(&bed.farm, &up, "running").await;
    let (mut stream, _guard) = connect(&bed.farm, &up).await;
    assert_eq!(ping(&mut stream).await.expect("an answer"), 1);
    assert_eq!(
        bed.farm.builder(&down).expect("there").state,
        MachineState::Stopped
    );
    assert_eq!(bed.world.starts(), 2);

    // What ends while no control plane looks is found out too.
    bed.stop_farm().await;
    bed.world.crash_all();
    bed.restart_farm().await;
    let (mut stream, _guard) = connect(&bed.farm, &up).await;
    assert_eq!(ping(&mut stream).await.expect("an answer"), 2);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_empties_the_cache_and_spares_what_is_in_use() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let (stream, guard) = connect(&bed.farm, &key).await;
    in_state(&bed.farm, &key, "running").await;
    match bed.farm.reset_cache(&key).await {
        Err(FarmError::InUse { in_flight: 1 }) => {}
        other => panic!("{other:?}"),
    }
    drop((stream, guard));
    let view = bed.farm.reset_cache(&key).await.expect("reset");
    assert_eq!(view.state, MachineState::Stopped);
    assert!(
        !bed.world.lock().volumes.contains_key(&view.volume),
        "the volume is still there"
    );
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    assert_eq!(ping(&mut stream).await.expect("an answer"), 2);
    assert!(bed.world.lock().volumes.contains_key(&view.volume));
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_gone_costs_time_and_nothing_else() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    drop(connect(&bed.farm, &key).await);
    in_state(&bed.farm, &key, "running").await;
    let view = bed.farm.stop_builder(&key).await.expect("stopped");
    assert!(bed.world.lock().volumes.remove(&view.volume).is_some());
    let (mut stream, _guard) = connect(&bed.farm, &key).await;
    ping(&mut stream).await.expect("an answer");
    assert_eq!(bed.farm.builder(&key).expect("there").volume, view.volume);
    assert!(bed.world.lock().volumes.contains_key(&view.volume));
    bed.end().await;
}

/// A pool that its operator makes larger has room at once, as far as its host is asked: no daemon has to be started anew for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_grows_while_its_host_runs_has_room_for_more() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let capacity = async || {
        bed.store.hosts().await.expect("listed")[0]
            .host
            .pool_capacity
    };
    let before = eventually("the first word of the host", || async {
        let hosts = bed.store.hosts().await.expect("listed");
        hosts.first().map(|known| known.host.pool_capacity)
    })
    .await;
    let grown = 1 << 40;
    bed.world.lock().pool_grown_by = grown;
    eventually("the new size of the pool", || async {
        // Any change of a machine ends a watch call.
        bed.world.poke();
        (capacity().await == ByteSize(before.0 + grown)).then_some(())
    })
    .await;
    bed.farm.ensure_builder(&key).await.expect("placed");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_their_own_org_only() {
    let bed = Bed::start().await;
    let (ours, theirs) = (bed.org(HOUR).await, bed.org(HOUR).await);
    let mut changes = bed.farm.subscribe(&ours.org);
    drop(connect(&bed.farm, &theirs).await);
    drop(connect(&bed.farm, &ours).await);
    let mut states = Vec::new();
    while !states.contains(&"running") {
        let next = changes.next().await;
        let NextEvent::Event(FarmEvent::Builder(view)) = next else {
            panic!("{next:?}");
        };
        assert_eq!(view.key, ours);
        if states.last() != Some(&view.state.name()) {
            states.push(view.state.name());
        }
    }
    assert_eq!(states, ["stopped", "starting", "booting", "running"]);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_from_faults() {
    let bed = Bed::start().await;
    let key = bed.org(HOUR).await;
    let nowhere = BuilderKey {
        region: "moon".into(),
        ..key.clone()
    };
    let error = bed
        .farm
        .ensure_builder(&nowhere)
        .await
        .expect_err("no such place");
    assert_eq!(error.fault(), slipway_core::build::Fault::User);
    assert!(error.to_string().contains("local/amd64"), "{error}");
    assert!(matches!(
        bed.farm.stop_builder(&key).await,
        Err(FarmError::NoBuilder { .. })
    ));
    bed.end().await;
}
