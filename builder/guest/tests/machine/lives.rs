//! How a machine starts and ends.

use crate::harness::{children_of, signal, volume, volume_with, wait_for};
use nix::sys::signal::Signal;
use std::process::Command;
use std::time::Instant;

const VOLUME_BYTES: u64 = 2 << 30;

#[test]
fn it_starts_answers_ends_cleanly_and_starts_again() {
    let Some(volume) = volume(VOLUME_BYTES) else {
        return;
    };
    for round in ["first", "second"] {
        let machine = volume.boot();
        // Asked before anything listens: the request waits in the backlog of the host's socket.
        let ping = machine.docker("GET", "/_ping", "");
        assert_eq!((ping.status, ping.body.as_str()), (200, "OK"));
        let status = machine
            .guest("GET", "/v1/status?wait_ready_ms=10000", "")
            .json();
        assert_eq!(status["ready"], true, "{status}");
        assert_eq!(status["activity"]["builds"], 0);
        assert!(
            status["disk"]["total_bytes"].as_u64() > Some(1 << 30),
            "{status}"
        );
        assert_eq!(machine.record(), "", "no record before the end");
        wait_for("the version of BuildKit", || {
            let engine = machine.status()["engine"].clone();
            engine["version"].is_string()
                && engine["buildkit"]
                    .as_str()
                    .is_some_and(|version| version.starts_with('v'))
        });
        let ended = Instant::now();
        machine.end();
        eprintln!(
            "{round} start: ready after {} ms, ended in {} ms",
            status["ready_after_ms"],
            ended.elapsed().as_millis()
        );
    }
}

#[test]
fn sigterm_ends_it_cleanly_even_while_it_starts() {
    let Some(volume) = volume(VOLUME_BYTES) else {
        return;
    };
    let machine = volume.boot();
    wait_for("the guest", || machine.console().contains("started"));
    signal(machine.pid(), Signal::SIGTERM);
    assert_eq!(machine.wait().code(), Some(0), "{}", machine.console());
    assert_eq!(machine.record(), "end 0\n");
    let machine = volume.start();
    signal(machine.pid(), Signal::SIGTERM);
    assert_eq!(machine.wait().code(), Some(0), "{}", machine.console());
    assert_eq!(machine.record(), "end 0\n");
}

#[test]
fn the_crash_of_a_daemon_is_a_crash_of_the_machine_and_leaves_no_record() {
    for store in ["classic", "containerd"] {
        let Some(volume) = volume_with(store, VOLUME_BYTES) else {
            return;
        };
        for daemon in ["dockerd", "containerd"] {
            let machine = volume.start();
            assert_eq!(machine.status()["engine"]["image_store"], store);
            signal(machine.daemon(daemon), Signal::SIGKILL);
            assert_eq!(machine.wait().code(), Some(1), "{}", machine.console());
            assert_eq!(machine.record(), "");
        }
        // What a crash leaves on the volume does not keep the next machine from starting.
        volume.start().end();
    }
}

/// Whoever runs the machine may then think of another volume; of a start that fails for anything else it may not.
#[test]
fn damaged_data_is_told_in_the_end_record() {
    for store in ["classic", "containerd"] {
        let Some(volume) = volume_with(store, VOLUME_BYTES) else {
            return;
        };
        let machine = volume.start();
        machine.end();
        volume.spoil();
        let machine = volume.boot();
        assert_eq!(machine.wait().code(), Some(1), "{}", machine.console());
        assert_eq!(machine.record(), "end damaged\n", "{}", machine.console());
    }
}

/// Whoever waits for the builder reads it, so it names what is to be changed.
#[test]
fn an_image_that_cannot_work_is_refused_in_words() {
    let Some(volume) = volume(VOLUME_BYTES) else {
        return;
    };
    for (change, words) in [
        ("rm usr/sbin/iptables", "it has no iptables"),
        (
            "rm -f usr/bin/containerd usr/sbin/runc usr/bin/runc",
            "it has no containerd, no runc",
        ),
        (
            "rm -r etc/ssl/certs",
            "it has no certificates of authorities",
        ),
        (
            r#"echo '{"no-such-setting": true}' > etc/docker/daemon.json"#,
            "match any configuration option: no-such-setting",
        ),
    ] {
        let machine = volume.boot_changed(change);
        assert_eq!(machine.wait().code(), Some(1), "{}", machine.console());
        let record = machine.record();
        assert!(
            record.starts_with("end refused ") && record.contains(words),
            "{record}\n{}",
            machine.console()
        );
    }
    // Nothing of it has harmed the volume.
    volume.start().end();
}

#[test]
fn orphans_are_reaped() {
    let Some(volume) = volume(VOLUME_BYTES) else {
        return;
    };
    let machine = volume.start();
    let daemons = children_of(machine.pid());
    let orphans = "for i in $(seq 50); do (sleep 0.05 &); done";
    let made = machine
        .inside("sh")
        .args(["-c", orphans])
        .status()
        .expect("run a shell");
    assert!(made.success());
    wait_for("all orphans to be reaped", || {
        children_of(machine.pid()).len() == daemons.len()
    });
    machine.end();
}

#[test]
fn what_is_not_in_the_table_is_refused() {
    let Some(volume) = volume(VOLUME_BYTES) else {
        return;
    };
    let machine = volume.start();
    for (method, path, body, status) in [
        ("GET", "/", "", 404),
        ("POST", "/v1/status", "", 404),
        ("GET", "/v1/status?wait_ready_ms=soon", "", 400),
        ("POST", "/v1/builds", "{", 400),
        (
            "POST",
            "/v1/builds",
            r#"{"id":"org_0000000000000000"}"#,
            400,
        ),
        ("GET", "/v1/builds/bld_0000000000000000/events", "", 404),
        ("GET", "/v1/builds/x/events", "", 400),
        ("DELETE", "/v1/builds/bld_0000000000000000", "", 404),
        ("POST", "/v1/push", "[]", 400),
        ("POST", "/v1/builds", &"x".repeat((1 << 20) + 1), 413),
    ] {
        let answer = machine.guest(method, path, body);
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        assert!(answer.json()["message"].is_string(), "{}", answer.body);
    }
    machine.end();
}

#[test]
fn a_bad_start_is_told_and_leaves_no_record() {
    // Without its descriptors it cannot begin.
    let guest = Command::new(env!("CARGO_BIN_EXE_slipway-guest"))
        .output()
        .expect("start");
    assert_eq!(guest.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&guest.stderr).contains("descriptor 3"),
        "{guest:?}"
    );
}
