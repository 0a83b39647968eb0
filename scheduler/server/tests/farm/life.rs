//! Starts and ends of builders: one machine for however many callers, no end while it is in use, and what crashes of machines,
//! host daemons and control planes leave as it was.

use super::*;
use slipway_core::ceilings::Ceilings;
use slipway_core::quota::BuilderSize;
use slipway_scheduler::limits::HOST_STARTS_MAX;
use slipway_store::{Intent, OrgChange};
use std::time::Instant;

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
