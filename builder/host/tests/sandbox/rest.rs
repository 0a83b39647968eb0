//! A virtual machine that nobody uses is paused, and there again for the next who does.

use crate::harness::{Guest, Host, Kind, WAIT, http, wait_for};
use slipway_core::host_api::EndpointPort;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const CLOCK_WRONG_MAX: Duration = Duration::from_secs(2);

/// The time since 1970.
fn clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

#[test]
fn one_that_nobody_uses_is_paused_and_resumed_with_the_right_time() {
    let change = |settings: &mut serde_json::Value, _| settings["pause_after_s"] = 2.into();
    let Some(mut host) = Host::start_kind_with(Kind::Vm, Guest::Docker, change) else {
        return;
    };
    let mut client = host.client();
    let spec = host.machine(&mut client, 1);
    let ping = |host: &Host| {
        http(
            host.open_when_up(&spec, EndpointPort::Docker),
            "GET /_ping",
            b"",
        )
    };
    assert_eq!(ping(&host).0, 200);
    let pauses = |host: &Host| host.log().matches("paused: nobody uses it").count();
    wait_for("a pause", || (pauses(&host) == 1).then_some(()));

    // Its clock stands meanwhile, for longer than it may be wrong afterwards.
    std::thread::sleep(CLOCK_WRONG_MAX + Duration::from_secs(1));
    let earliest = clock().saturating_sub(CLOCK_WRONG_MAX).as_secs();
    let began = Instant::now();
    let (status, reply) = ping(&host);
    let latest = (clock() + CLOCK_WRONG_MAX).as_secs();
    println!("/_ping of a paused machine after {:?}", began.elapsed());
    assert_eq!(status, 200, "{reply}");
    assert!(host.log().contains("resumed"));
    let date = reply
        .lines()
        .find_map(|line| line.strip_prefix("Date: "))
        .unwrap();
    let said = std::process::Command::new("date")
        .args(["-d", date, "+%s"])
        .output()
        .unwrap();
    let said: u64 = String::from_utf8_lossy(&said.stdout)
        .trim()
        .parse()
        .unwrap();
    // However long the answer took.
    assert!(
        (earliest..=latest).contains(&said),
        "it says {said} between {earliest} and {latest}"
    );

    // A daemon that comes later does not know, and finds out.
    wait_for("another pause", || (pauses(&host) == 2).then_some(()));
    host.kill_daemon();
    host.start_daemon();
    assert_eq!(ping(&host).0, 200);

    let mut client = host.client();
    wait_for("a third pause", || (pauses(&host) == 3).then_some(()));
    client.stop(&spec.machine, 1, WAIT).unwrap();
    assert!(
        client.wait_exit(&spec.machine, WAIT),
        "a paused one ends well too"
    );
    assert_eq!(host.leftovers(), Vec::<String>::new());
}
