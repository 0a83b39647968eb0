//! What machines have of the host's network when they want more than there is, when they are alone, and with a cap.

use super::world::{WORLD, World};
use crate::harness::{Host, in_namespace, wait_for};
use slipway_core::id::MachineId;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// So little that every computer could do many times as much.
const MBIT: u64 = 40;
/// What is counted until two machines are compared.
const ENOUGH: u64 = 6 << 20;

#[derive(Clone, Copy, Debug)]
enum Way {
    Sends,
    Receives,
}

/// A server of the world's, and how many bytes of one machine's have gone through it.
struct Counter {
    port: u16,
    bytes: Arc<AtomicU64>,
}

impl Counter {
    fn new(world: &World, way: Way) -> Self {
        let listener = in_namespace(&world.namespace("world"), || TcpListener::bind("0.0.0.0:0"));
        let listener = listener.unwrap();
        let port = listener.local_addr().unwrap().port();
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&bytes);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counted = Arc::clone(&counted);
                std::thread::spawn(move || serve(stream, way, &counted));
            }
        });
        Self { port, bytes }
    }

    fn now(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

fn serve(mut stream: TcpStream, way: Way, counted: &AtomicU64) {
    // What the kernel has taken from the world's end counts as moved, so that it must not be much.
    socket2::SockRef::from(&stream)
        .set_send_buffer_size(64 << 10)
        .unwrap();
    let mut buffer = [0; 16 << 10];
    loop {
        let moved = match way {
            Way::Sends => stream.read(&mut buffer),
            Way::Receives => stream.write(&buffer),
        };
        match moved {
            Ok(0) | Err(_) => return,
            Ok(bytes) => counted.fetch_add(bytes as u64, Ordering::Relaxed),
        };
    }
}

/// Has a machine send or receive all it can by so many connections, until [`stop`].
fn begin(host: &Host, machine: &MachineId, way: Way, counter: &Counter, connections: u8) {
    let one = match way {
        Way::Sends => format!("cat </dev/zero >/dev/tcp/{WORLD}/{}", counter.port),
        Way::Receives => format!("cat </dev/tcp/{WORLD}/{} >/dev/null", counter.port),
    };
    let script =
        format!("for i in $(seq {connections}); do {one} & done >/dev/null 2>&1 </dev/null");
    let output = host.inside(machine, &format!("({script}) >/dev/null 2>&1 </dev/null &"));
    assert!(output.status.success(), "{output:?}");
    let before = counter.now();
    wait_for("the machine's packets", || {
        (counter.now() > before + (1 << 20)).then_some(())
    });
}

fn stop(host: &Host, machine: &MachineId) {
    let killed = host.inside(
        machine,
        "for p in /proc/[0-9]*; do [ \"$(cat $p/comm)\" = cat ] && kill -9 ${p#/proc/}; done; true",
    );
    assert!(killed.status.success(), "{killed:?}");
}

/// What each has moved until both together have moved [`ENOUGH`], and how long that took.
fn compare(one: &Counter, other: &Counter) -> (u64, u64, Duration) {
    let (from, since) = ((one.now(), other.now()), Instant::now());
    wait_for("both to have moved enough", || {
        let (one, other) = (one.now() - from.0, other.now() - from.1);
        (one + other >= ENOUGH).then(|| (one, other, since.elapsed()))
    })
}

#[test]
fn machines_share_the_hosts_network_equally_and_one_that_is_alone_has_all_of_it() {
    let change = |settings: &mut serde_json::Value, _: u8| {
        settings["network_rate"] = serde_json::json!(format!("{MBIT}Mbit"));
    };
    let Some((world, mut host)) = World::host(change, |_| Vec::new()) else {
        return;
    };
    let mut client = host.client();
    let (greedy, modest) = (
        host.machine(&mut client, 1).machine,
        host.machine(&mut client, 2).machine,
    );
    let idle = Counter::new(&world, Way::Sends);
    for way in [Way::Sends, Way::Receives] {
        let [of_greedy, of_modest] = [(); 2].map(|()| Counter::new(&world, way));
        begin(&host, &modest, way, &of_modest, 1);
        let (_, _, alone) = compare(&of_modest, &idle);
        begin(&host, &greedy, way, &of_greedy, 12);
        // What was on its way before there were two is none of this.
        compare(&of_greedy, &of_modest);
        let (greedys, modests, _) = compare(&of_greedy, &of_modest);
        println!("{way:?}: alone {ENOUGH} in {alone:?}; with another {modests} to its {greedys}");
        assert!(
            modests * 3 >= greedys,
            "{way:?}: one connection had {modests} beside {greedys} of twelve"
        );
        let share = Duration::from_secs_f64(ENOUGH as f64 * 8.0 / (MBIT as f64 * 1e6 / 2.0));
        assert!(
            alone < share,
            "{way:?}: no more than a share, alone: {alone:?}"
        );
        for machine in [&modest, &greedy] {
            stop(&host, machine);
        }
    }
    // Shares do not end with the daemon, and its next start brings them back.
    world.run(
        "host",
        &format!("tc qdisc delete dev slt{} root", host.place),
    );
    host.kill_daemon();
    host.start_daemon();
    let [of_greedy, of_modest] = [(); 2].map(|()| Counter::new(&world, Way::Receives));
    begin(&host, &modest, Way::Receives, &of_modest, 1);
    begin(&host, &greedy, Way::Receives, &of_greedy, 12);
    compare(&of_greedy, &of_modest);
    let (greedys, modests, _) = compare(&of_greedy, &of_modest);
    assert!(modests * 3 >= greedys, "{modests} beside {greedys}");
}

#[test]
fn no_machine_exceeds_its_cap_and_what_it_exchanges_with_the_host_does_not_count() {
    let change = |settings: &mut serde_json::Value, place: u8| {
        settings["machine_network_rate"] = serde_json::json!(format!("{MBIT}Mbit"));
        settings["allow"] = serde_json::json!([format!("10.222.{place}.1:20003")]);
    };
    let Some((world, host)) = World::host(change, |_| Vec::new()) else {
        return;
    };
    let machine = host.machine(&mut host.client(), 1).machine;
    // Nothing of this waits in a class of the machine's.
    let gateway = host.gateway();
    let before = queued(&world, &host);
    world.greet("host", &format!("{gateway}:20003"));
    for _ in 0..20 {
        assert!(super::reaches(&host, &machine, &gateway, 20_003));
    }
    assert_eq!(queued(&world, &host), before);
    let idle = Counter::new(&world, Way::Sends);
    let least = Duration::from_secs_f64(ENOUGH as f64 * 8.0 / (MBIT as f64 * 1e6));
    for way in [Way::Sends, Way::Receives] {
        let counter = Counter::new(&world, way);
        begin(&host, &machine, way, &counter, 4);
        let (_, _, took) = compare(&counter, &idle);
        println!("{way:?}: {ENOUGH} in {took:?}");
        assert!(took > least / 2, "{way:?}: {ENOUGH} in {took:?}");
        stop(&host, &machine);
    }
}

/// Bytes that have gone through classes of slots, at the host's end.
fn queued(world: &World, host: &Host) -> Vec<String> {
    let output = std::process::Command::new("nsenter")
        .arg(format!("--net={}", world.namespace("host").display()))
        .args([
            "tc",
            "-s",
            "class",
            "show",
            "dev",
            &format!("slt{}", host.place),
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let sent = text.lines().filter(|line| line.trim().starts_with("Sent"));
    sent.map(str::to_owned).collect()
}
