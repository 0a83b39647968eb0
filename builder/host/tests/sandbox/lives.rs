//! Lives of sandboxes, beyond what every driver must do (`conformance`).

use crate::harness::{Guest, Host, WAIT};
use slipway_core::generation::Generation;
use slipway_core::limits::HOST_API_WATCH_WAIT_MAX;
use std::time::{Duration, Instant};

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
fn a_guest_that_cannot_hear_yet_is_asked_again() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let late =
        "#!/bin/sh\nsleep 1\ntrap 'echo end 0 >&5; exit 0' TERM\nwhile :; do sleep 0.1; done\n";
    std::fs::write(host.dir.join("guest"), late).unwrap();
    let mut client = host.client();
    let spec = host.machine(&mut client, 1);
    // Longer than the wait: it ends before its grace is over.
    client.stop(&spec.machine, 1, WAIT * 2).unwrap();
    assert!(client.wait_exit(&spec.machine, WAIT));
}

#[test]
fn what_a_machine_that_dies_at_boot_printed_last_is_told() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let dying = "#!/bin/sh\nfor n in 1 2 3 4 5; do echo \"line $n\"; done\nprintf 'no \\033[31m\"room\"\\n' >&2\nexit 1\n";
    std::fs::write(host.dir.join("guest"), dying).unwrap();
    let mut client = host.client();
    let mut spec = host.spec(1, 1);
    client.ensure_volume(&spec.volume, 4 << 30);
    // It may be over before the answer.
    client.ensure(&spec).unwrap();
    assert!(!client.wait_exit(&spec.machine, WAIT));
    let told = client.machine(&spec.machine).unwrap().last_words;
    assert_eq!(
        told.as_deref(),
        Some("line 3 | line 4 | line 5 | no 'room'")
    );
    // The words of one start are not those of the next.
    std::fs::write(host.dir.join("guest"), include_str!("guest-idle.sh")).unwrap();
    spec.generation = Generation(2);
    client.ensure(&spec).unwrap();
    assert_eq!(client.machine(&spec.machine).unwrap().last_words, None);
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
    // Cut to HOST_API_WATCH_WAIT_MAX; whoever asks with a revision of an earlier daemon does not wait at all.
    let began = Instant::now();
    other.watch(1 << 40, WAIT);
    assert!(began.elapsed() < HOST_API_WATCH_WAIT_MAX);
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
