//! What every machine driver must do: one suite, run over each.

use crate::harness::{Guest, Host, Kind, WAIT, http, wait_for};
use slipway_core::generation::Generation;
use slipway_core::host_api::{
    EndpointPort, HostErrorCode, HostReply, HostRequest, MachineRunState, MachineSpec,
};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

macro_rules! over_each_driver {
    ($($case:ident),* $(,)?) => {
        mod sandbox {
            $(#[test] fn $case() { super::$case(crate::harness::Kind::Sandbox); })*
        }
        mod vm {
            $(#[test] fn $case() { super::$case(crate::harness::Kind::Vm); })*
        }
    };
}

over_each_driver!(
    ensure_is_idempotent_and_older_generations_are_refused,
    a_volume_has_one_machine_at_most,
    a_killed_daemon_adopts_what_runs_and_sees_what_ended_meanwhile,
    dockerd_answers_and_builds_a_stream_outlives_the_daemon_and_the_cache_is_there_again,
    one_that_does_not_end_in_time_is_killed,
    many_callers_start_one_machine_and_many_machines_start_at_once,
    a_daemon_killed_at_any_time_of_a_start_is_followed_by_one_that_knows_what_there_is,
);

fn ensure_is_idempotent_and_older_generations_are_refused(kind: Kind) {
    let Some(host) = Host::start_kind(kind, Guest::Idle) else {
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
        crate::client::ended(true),
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

fn a_volume_has_one_machine_at_most(kind: Kind) {
    let Some(host) = Host::start_kind(kind, Guest::Idle) else {
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

fn a_killed_daemon_adopts_what_runs_and_sees_what_ended_meanwhile(kind: Kind) {
    let Some(mut host) = Host::start_kind(kind, Guest::Idle) else {
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
    host.end_by_itself(&specs[1].machine);
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
    assert_eq!(state(&mut client, 1), crate::client::ended(true));
    assert_eq!(state(&mut client, 2), crate::client::ended(false));
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

fn dockerd_answers_and_builds_a_stream_outlives_the_daemon_and_the_cache_is_there_again(
    kind: Kind,
) {
    let Some(mut host) = Host::start_kind(kind, Guest::Docker) else {
        return;
    };
    let mut client = host.client();
    let began = Instant::now();
    let mut spec = host.machine(&mut client, 1);
    println!("ensured in {:?}", began.elapsed());
    let stream = host.open_when_up(&spec, EndpointPort::Docker);
    let (status, reply) = http(stream, "GET /_ping", b"");
    println!("/_ping after {:?}", began.elapsed());
    assert_eq!(status, 200, "{reply}");
    let build = |spec: &MachineSpec, dockerfile: &str| {
        let stream = host.open_when_up(spec, EndpointPort::Docker);
        http(stream, "POST /v1.45/build?t=test", &context(dockerfile))
    };
    let (status, reply) = build(
        &spec,
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo sum $((6*7))\"]\n",
    );
    assert!(
        status == 200 && reply.contains("sum 42") && reply.contains("Successfully tagged"),
        "{reply}"
    );
    let (_, reply) = build(
        &spec,
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"wget\", \"-qO/dev/null\", \"http://deb.debian.org/debian/dists/trixie/InRelease\"]\nRUN [\"/bin/busybox\", \"echo\", \"fetched\"]\n",
    );
    assert!(
        reply.contains("fetched") && reply.contains("Successfully tagged"),
        "{reply}"
    );

    let stream = host.open_when_up(&spec, EndpointPort::Docker);
    host.kill_daemon();
    assert_eq!(http(stream, "GET /_ping", b"").0, 200);
    host.start_daemon();
    let stream = host.open_when_up(&spec, EndpointPort::Docker);
    assert_eq!(http(stream, "GET /version", b"").0, 200);

    let mut client = host.client();
    let began = Instant::now();
    client.stop(&spec.machine, 1, WAIT).unwrap();
    assert!(
        client.wait_exit(&spec.machine, WAIT),
        "a clean end: {}",
        host.log()
    );
    println!("ended in {:?}", began.elapsed());
    assert_eq!(host.leftovers(), Vec::<String>::new());

    spec.generation = Generation(2);
    client.ensure(&spec).unwrap();
    let stream = host.open_when_up(&spec, EndpointPort::Docker);
    let (status, reply) = http(stream, "GET /images/test/json", b"");
    assert_eq!(status, 200, "{reply}");
}

fn one_that_does_not_end_in_time_is_killed(kind: Kind) {
    let Some(host) = Host::start_kind(kind, Guest::Deaf) else {
        return;
    };
    let mut client = host.client();
    let spec = host.machine(&mut client, 1);
    let began = Instant::now();
    client
        .stop(&spec.machine, 1, Duration::from_millis(300))
        .unwrap();
    // Longer than the wait below: a later end does not take the earlier one's place.
    client.stop(&spec.machine, 1, WAIT * 2).unwrap();
    assert!(!client.wait_exit(&spec.machine, WAIT));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300), "{took:?}");
    let opened = client
        .open(&spec.machine, 1, EndpointPort::Docker)
        .map(drop);
    assert_eq!(opened.unwrap_err(), HostErrorCode::NotFound);
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

fn many_callers_start_one_machine_and_many_machines_start_at_once(kind: Kind) {
    // As many virtual machines as places would keep this computer busy for minutes.
    let places = match kind {
        Kind::Sandbox => 8,
        Kind::Vm => 3,
    };
    let change = |settings: &mut serde_json::Value, _| settings["machines_max"] = places.into();
    let Some(host) = Host::start_kind_with(kind, Guest::Idle, change) else {
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
        let callers: Vec<_> = (2..=places + 2)
            .map(|number| scope.spawn(move || start(number)))
            .collect();
        callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .collect()
    });
    // One of the places was taken.
    assert_eq!(
        results.iter().filter(|result| result.is_ok()).count(),
        usize::from(places) - 1
    );
    assert_eq!(
        results
            .iter()
            .filter(|result| **result == Err(HostErrorCode::NoSpace))
            .count(),
        2
    );
}

fn a_daemon_killed_at_any_time_of_a_start_is_followed_by_one_that_knows_what_there_is(kind: Kind) {
    let Some(mut host) = Host::start_kind(kind, Guest::Idle) else {
        return;
    };
    let spec = host.spec(1, 1);
    host.client().ensure_volume(&spec.volume, 1 << 30);
    let (rounds, step_ms) = match kind {
        Kind::Sandbox => (16u64, 6),
        Kind::Vm => (8, 30),
    };
    for round in 1..=rounds {
        let mut asking = host.client();
        let mut wanted = spec.clone();
        wanted.generation = Generation(round);
        let asked = std::thread::spawn(move || asking.try_ensure(&wanted));
        // Spread over the whole of a start, which takes some 80 ms, or 200.
        std::thread::sleep(Duration::from_millis(round * step_ms));
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

/// A tar with a Dockerfile and a static busybox.
pub(crate) fn context(dockerfile: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("Dockerfile"), dockerfile).unwrap();
    std::fs::copy("/bin/busybox", dir.path().join("busybox")).expect("busybox-static is installed");
    let tar = Command::new("tar")
        .args(["-c", "-C"])
        .arg(dir.path())
        .arg(".")
        .output()
        .unwrap();
    assert!(tar.status.success());
    tar.stdout
}
