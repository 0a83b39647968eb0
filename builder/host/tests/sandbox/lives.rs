//! Lives of machines: generations, ends, the daemon's death, and what a restart finds.

use crate::harness::{Guest, Host, WAIT, wait_for};
use slipway_core::generation::Generation;
use slipway_core::host_api::{
    EndpointPort, HostErrorCode, HostReply, HostRequest, MachineRunState,
};
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn ensure_is_idempotent_and_older_generations_are_refused() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let mut spec = host.machine(&mut client, 1);
    let first = host.pid(&spec.machine);
    assert_eq!(
        client.ensure(&spec).unwrap().state,
        MachineRunState::Running
    );
    assert_eq!(host.pid(&spec.machine), first, "the same machine goes on");

    spec.generation = Generation(5);
    assert_eq!(client.ensure(&spec).unwrap().generation, Generation(5));
    assert_ne!(host.pid(&spec.machine), first);
    assert!(
        !Path::new(&format!("/proc/{first}/exe")).exists(),
        "the older one is dead"
    );

    spec.generation = Generation(4);
    assert_eq!(
        client.ensure(&spec).unwrap_err(),
        HostErrorCode::StaleGeneration
    );
    assert_eq!(
        client.stop(&spec.machine, 4, Duration::ZERO).unwrap_err(),
        HostErrorCode::StaleGeneration
    );
    assert_eq!(
        client.remove(&spec.machine, 4).unwrap_err(),
        HostErrorCode::StaleGeneration
    );
    let opened = client
        .open(&spec.machine, 4, EndpointPort::Docker)
        .map(drop);
    assert_eq!(opened.unwrap_err(), HostErrorCode::StaleGeneration);
    assert_eq!(
        client.remove(&spec.machine, 5).unwrap_err(),
        HostErrorCode::Busy,
        "it runs"
    );

    client.stop(&spec.machine, 5, WAIT).unwrap();
    assert!(client.wait_exit(&spec.machine, WAIT), "it ended well");
    spec.generation = Generation(5);
    let again = client.ensure(&spec).unwrap();
    assert_eq!(
        again.state,
        MachineRunState::Exited { clean: true },
        "a generation runs at most once"
    );
    client.remove(&spec.machine, 5).unwrap();
    client.remove(&spec.machine, 5).unwrap();
    assert!(client.machine(&spec.machine).is_none());
    spec.generation = Generation(4);
    assert_eq!(
        client.ensure(&spec).unwrap_err(),
        HostErrorCode::StaleGeneration,
        "forgotten, but not its fence"
    );
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_volume_has_one_machine_at_most() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let first = host.machine(&mut client, 1);
    let mut second = host.spec(2, 1);
    second.volume = first.volume.clone();
    assert_eq!(client.ensure(&second).unwrap_err(), HostErrorCode::Busy);
    assert!(
        client.machine(&second.machine).is_none(),
        "nothing is left of the refused one"
    );
    let destroyed = client
        .ask(HostRequest::DestroyVolume {
            volume: first.volume.clone(),
        })
        .0;
    assert!(matches!(destroyed, HostReply::Error(error) if error.code == HostErrorCode::Busy));
    assert_eq!(client.volumes()[0].attached_to, Some(first.machine.clone()));

    client.stop(&first.machine, 1, Duration::ZERO).unwrap();
    assert!(
        !client.wait_exit(&first.machine, WAIT),
        "killed is not clean"
    );
    assert_eq!(host.leftovers(), Vec::<String>::new());
    client.ensure(&second).unwrap();
    assert_eq!(
        client.volumes()[0].attached_to,
        Some(second.machine.clone())
    );

    let mut nowhere = host.spec(3, 1);
    nowhere.volume = host.spec(9, 1).volume;
    assert_eq!(
        client.ensure(&nowhere).unwrap_err(),
        HostErrorCode::NotFound
    );
}

#[test]
fn what_a_machine_wrote_to_its_volume_is_there_again() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let mut spec = host.machine(&mut client, 1);
    // A neighbour, so that the second time the machine has another slot and with it other ids.
    let written = host.inside(
        &spec.machine,
        "echo kept > /var/lib/docker/f && chown 1000:1000 /var/lib/docker/f && echo lost > /root/f",
    );
    assert!(written.status.success(), "{written:?}");
    client.stop(&spec.machine, 1, WAIT).unwrap();
    client.wait_exit(&spec.machine, WAIT);
    assert_eq!(host.leftovers(), Vec::<String>::new());
    host.machine(&mut client, 2);
    spec.generation = Generation(2);
    client.ensure(&spec).unwrap();
    let read = host.inside(
        &spec.machine,
        "stat -c %u:%g /var/lib/docker/f; cat /var/lib/docker/f; cat /root/f",
    );
    assert_eq!(
        String::from_utf8_lossy(&read.stdout),
        "1000:1000\nkept\n",
        "{read:?}"
    );
}

#[test]
fn a_killed_daemon_adopts_what_runs_and_sees_what_ended_meanwhile() {
    let Some(mut host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let specs: Vec<_> = (1..=3)
        .map(|number| host.machine(&mut client, number))
        .collect();
    let pids: Vec<_> = specs.iter().map(|spec| host.pid(&spec.machine)).collect();
    let kill =
        |pid, signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    host.kill_daemon();
    kill(pids[1], nix::sys::signal::Signal::SIGTERM);
    kill(pids[2], nix::sys::signal::Signal::SIGKILL);
    wait_for("two machines to end", || {
        pids[1..]
            .iter()
            .all(|pid| !Path::new(&format!("/proc/{pid}/exe")).exists())
            .then_some(())
    });
    host.start_daemon();
    let mut client = host.client();
    let state = |client: &mut crate::client::Client, n: usize| {
        client.machine(&specs[n].machine).unwrap().state
    };
    assert_eq!(state(&mut client, 0), MachineRunState::Running);
    assert_eq!(
        state(&mut client, 1),
        MachineRunState::Exited { clean: true }
    );
    assert_eq!(
        state(&mut client, 2),
        MachineRunState::Exited { clean: false }
    );
    assert_eq!(host.pid(&specs[0].machine), pids[0]);
    assert_eq!(
        client.ensure(&specs[0]).unwrap().state,
        MachineRunState::Running
    );

    // An adopted machine's end is seen too, and its place can be had again.
    client.stop(&specs[0].machine, 1, WAIT).unwrap();
    assert!(client.wait_exit(&specs[0].machine, WAIT));
    assert_eq!(host.leftovers(), Vec::<String>::new());
    host.machine(&mut client, 4);
}

#[test]
fn a_stream_outlives_the_daemon() {
    let Some(mut host) = Host::start(Guest::Docker) else {
        return;
    };
    let mut client = host.client();
    let spec = host.machine(&mut client, 1);
    let stream = client.open(&spec.machine, 1, EndpointPort::Docker).unwrap();
    host.kill_daemon();
    let (status, reply) = crate::harness::http(stream, "GET /_ping", b"");
    assert_eq!(status, 200, "{reply}");
    host.start_daemon();
    let stream = host
        .client()
        .open(&spec.machine, 1, EndpointPort::Docker)
        .unwrap();
    assert_eq!(crate::harness::http(stream, "GET /version", b"").0, 200);
}

#[test]
fn a_guest_that_does_not_end_is_killed_after_its_grace() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    std::fs::write(
        host.dir.join("guest"),
        "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n",
    )
    .unwrap();
    let mut client = host.client();
    let spec = host.machine(&mut client, 1);
    let began = Instant::now();
    client
        .stop(&spec.machine, 1, Duration::from_millis(300))
        .unwrap();
    client
        .stop(&spec.machine, 1, Duration::from_secs(500))
        .unwrap();
    assert!(!client.wait_exit(&spec.machine, WAIT));
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(30),
        "{took:?}"
    );
    let opened = client
        .open(&spec.machine, 1, EndpointPort::Docker)
        .map(drop);
    assert_eq!(opened.unwrap_err(), HostErrorCode::NotFound);
}

#[test]
fn a_guest_that_cannot_hear_yet_is_asked_again() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let late =
        "#!/bin/sh\nsleep 1\ntrap 'echo end 0 >&5; exit 0' TERM\nwhile :; do sleep 0.1; done\n";
    std::fs::write(host.dir.join("guest"), late).unwrap();
    let mut client = host.client();
    let spec = host.machine(&mut client, 1);
    let began = Instant::now();
    client.stop(&spec.machine, 1, WAIT).unwrap();
    assert!(client.wait_exit(&spec.machine, WAIT));
    assert!(began.elapsed() < WAIT / 2, "long before its grace was over");
}

#[test]
fn a_watch_waits_for_a_change() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let (mut client, mut other) = (host.client(), host.client());
    let spec = host.machine(&mut client, 1);
    let (revision, _) = client.watch(0, Duration::ZERO);
    let began = Instant::now();
    assert_eq!(
        client.watch(revision, Duration::from_millis(200)).0,
        revision,
        "nothing changed"
    );
    assert!(began.elapsed() >= Duration::from_millis(200));
    let waiting = std::thread::spawn(move || client.watch(revision, WAIT));
    other.stop(&spec.machine, 1, Duration::ZERO).unwrap();
    assert!(waiting.join().unwrap().0 > revision);
    let began = Instant::now();
    other.watch(1 << 40, WAIT);
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "a revision of an earlier daemon answers at once"
    );
}

#[test]
fn a_daemon_killed_at_any_time_of_a_start_is_followed_by_one_that_knows_what_there_is() {
    let Some(mut host) = Host::start(Guest::Idle) else {
        return;
    };
    let spec = host.spec(1, 1);
    host.client().ensure_volume(&spec.volume, 1 << 30);
    for round in 1..=16u64 {
        let mut asking = host.client();
        let mut wanted = spec.clone();
        wanted.generation = Generation(round);
        let asked = std::thread::spawn(move || asking.try_ensure(&wanted));
        // Spread over the whole of a start, which takes some 80 ms.
        std::thread::sleep(Duration::from_millis(round * 6));
        host.kill_daemon();
        let told = asked.join().unwrap();
        host.start_daemon();
        let mut client = host.client();
        let found = client.machine(&spec.machine);
        let runs = found.as_ref().is_some_and(|report| {
            report.state == MachineRunState::Running && report.generation == Generation(round)
        });
        if !runs {
            // Cut off before it was started, with the one before it running, killed already, or forgotten.
            assert!(
                told.is_err(),
                "round {round}: it was told to run, and: {found:?}"
            );
            let older_runs = found.is_some_and(|report| report.state == MachineRunState::Running);
            assert_eq!(
                host.leftovers().is_empty(),
                !older_runs,
                "round {round}: {:?}",
                host.leftovers()
            );
        }
        let mut wanted = spec.clone();
        wanted.generation = Generation(round);
        assert_eq!(
            client.ensure(&wanted).unwrap().generation,
            Generation(round)
        );
        assert_eq!(client.volumes()[0].attached_to, Some(spec.machine.clone()));
    }
}

#[test]
fn many_callers_start_one_machine_and_many_machines_start_at_once() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let spec = host.spec(1, 1);
    client.ensure_volume(&spec.volume, 1 << 30);
    let states: Vec<_> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..20)
            .map(|_| scope.spawn(|| host.client().ensure(&spec).unwrap().state))
            .collect();
        callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .collect()
    });
    assert!(
        states
            .iter()
            .all(|state| *state == MachineRunState::Running)
    );
    assert_eq!(host.log().matches("started machine=").count(), 1);
    let results: Vec<_> = std::thread::scope(|scope| {
        let start = |number| {
            let mut client = host.client();
            let spec = host.spec(number, 1);
            client.ensure_volume(&spec.volume, 1 << 30);
            client.ensure(&spec)
        };
        let callers: Vec<_> = (2..=10)
            .map(|number| scope.spawn(move || start(number)))
            .collect();
        callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .collect()
    });
    // The host has 8 places and one was taken.
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 7);
    assert_eq!(
        results
            .iter()
            .filter(|result| **result == Err(HostErrorCode::NoSpace))
            .count(),
        2
    );
}

#[test]
fn an_image_can_be_unpacked_instead_of_mounted() {
    let change = |settings: &mut serde_json::Value, _| settings["image_mount"] = "unpacked".into();
    let Some(host) = Host::start_with(Guest::Idle, change) else {
        return;
    };
    let mut client = host.client();
    let machine = host.machine(&mut client, 1).machine;
    let output = host.inside(&machine, "stat -c %u:%g /usr/bin/env && touch /usr/bin/env");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "0:0\n",
        "{output:?}"
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let images = host.dir.join("run/images").display().to_string();
    assert!(!mounts.contains(&images), "no squashfs is mounted");
}
