//! How a machine keeps room for the next build.

use crate::build::{Ask, Build};
use crate::harness::{Machine, volume, wait_for};
use crate::works::{HELLO, IMAGE, ask, says_go, shell, waits_for_go};
use serde_json::json;
use tokio::runtime::Runtime;

/// Builds that leave 50 MB of cache each, which nothing uses once the next image has taken over the name.
fn fill(runtime: &Runtime, machine: &Machine<'_>, rounds: u32) {
    for round in 0..rounds {
        let fill = shell(&format!(
            "/bin/busybox dd if=/dev/urandom of=/{round} bs=1M count=50"
        ));
        let outcome = Build::start(runtime, machine, &ask(&fill)).outcome();
        assert_eq!(outcome["outcome"], "succeeded", "{outcome}");
    }
}

fn used_percent(machine: &Machine<'_>) -> u64 {
    let disk = &machine.status()["disk"];
    let number = |name: &str| disk[name].as_u64().expect("a number");
    number("used_bytes") * 100 / number("total_bytes")
}

#[test]
fn garbage_goes_to_the_low_water_mark_when_nothing_runs() {
    let Some(volume) = volume(600 << 20) else {
        return;
    };
    let runtime = Runtime::new().expect("runtime");
    let machine = volume.start();
    fill(&runtime, &machine, 6);
    let low = used_percent(&machine);
    // BuildKit's own policy keeps its cache below the mark; what takes the rest of the room is something else.
    let ballast = format!("/proc/{}/root/var/lib/docker/ballast", machine.pid());
    std::fs::write(ballast, vec![1; 170 << 20]).expect("write the ballast");
    let high = used_percent(&machine);
    assert!(low < 80 && high >= 80, "{low} % and {high} %");
    wait_for("the watch to collect", || used_percent(&machine) <= 60);
    let left = used_percent(&machine);
    assert!(left > 40, "{left} %: no more goes than has to");
    let image = machine.docker("GET", &format!("/images/{IMAGE}/json"), "");
    assert_eq!(image.status, 200, "a young image stays: {}", image.body);
    let asked = machine.guest("POST", "/v1/collect", "");
    assert_eq!(asked.status, 200, "{}", asked.body);
    assert!(asked.json()["total_bytes"].is_u64(), "{}", asked.body);
    machine.end();
}

#[test]
fn a_collection_for_a_full_disk_does_not_harm_a_build_that_runs() {
    let Some(volume) = volume(600 << 20) else {
        return;
    };
    let runtime = Runtime::new().expect("runtime");
    let machine = volume.start();
    fill(&runtime, &machine, 6);
    let build = Build::start(
        &runtime,
        &machine,
        &Ask {
            image: "careful:1",
            ..ask(&waits_for_go())
        },
    );
    build.wait_for(r#""text":"it waits"#);
    build.wait_for("40+0 records out");
    wait_for("the second stage alone to run", || {
        machine.status()["activity"]["steps"] == 1
    });
    let greedy = shell("/bin/busybox dd if=/dev/urandom of=/big bs=1M count=330");
    let other = Build::start(
        &runtime,
        &machine,
        &Ask {
            image: "greedy:1",
            ..ask(&greedy)
        },
    );
    let outcome = other.outcome();
    assert_eq!(outcome["outcome"], "succeeded", "{outcome}");
    let warned = other
        .events(0)
        .iter()
        .any(|event| event["event"] == "warning");
    assert!(warned, "it went through only after a collection");
    let outcome = Build::start(
        &runtime,
        &machine,
        &Ask {
            image: "go:1",
            ..ask(&says_go())
        },
    )
    .outcome();
    assert_eq!(outcome["outcome"], "succeeded", "{outcome}");
    let outcome = build.outcome();
    assert_eq!(outcome["outcome"], "succeeded", "{outcome}");
    machine.end();
}

#[test]
fn a_full_disk_is_collected_once_and_then_told() {
    let Some(volume) = volume(400 << 20) else {
        return;
    };
    let runtime = Runtime::new().expect("runtime");
    let machine = volume.start();
    let too_much = shell("/bin/busybox dd if=/dev/zero of=/big bs=1M count=900");
    let build = Build::start(&runtime, &machine, &ask(&too_much));
    let outcome = build.outcome();
    assert_eq!(
        (&outcome["outcome"], &outcome["fault"]),
        (&json!("failed"), &json!("user")),
        "{outcome}"
    );
    assert!(
        outcome["message"]
            .as_str()
            .is_some_and(|text| text.contains("disk is full")),
        "{outcome}"
    );
    assert!(
        outcome["hint"]
            .as_str()
            .is_some_and(|text| text.contains("slipway volumes extend")),
        "{outcome}"
    );
    // The machine has taken no harm.
    let outcome = Build::start(&runtime, &machine, &ask(HELLO)).outcome();
    assert_eq!(outcome["outcome"], "succeeded", "{outcome}");
    machine.end();
}
