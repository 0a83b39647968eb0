//! What machines can reach, tried from inside with all the rights a machine's root has.

mod flows;
mod shares;
mod upgrade;
mod world;

use crate::harness::{Guest, Host, in_namespace, wait_for};
use slipway_core::id::MachineId;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use world::{HOST, HOST_MANAGED, MANAGER, WORLD, World, reaches};

const ALLOWED_PORT: u16 = 20_000;

/// The walls are the router's: neither a flushed firewall nor a daemon that is away opens one.
#[test]
fn machines_reach_the_world_and_nothing_private_with_the_hosts_firewall_flushed_too() {
    let change = |settings: &mut serde_json::Value, place: u8| {
        settings["allow"] = serde_json::json!([
            format!("10.222.{place}.1:{ALLOWED_PORT}"),
            format!("10.223.{place}.7:{ALLOWED_PORT}"),
        ]);
        settings["deny"] = serde_json::json!(["9.9.8.0/24"]);
    };
    let beyond = |place: u8| {
        vec![
            format!("10.223.{place}.1"),
            format!("10.223.{place}.7"),
            format!("172.16.{place}.1"),
            format!("192.168.{place}.1"),
            format!("100.64.{place}.1"),
            "169.254.169.254".to_owned(),
            "168.63.129.16".to_owned(),
            "9.9.8.1".to_owned(),
        ]
    };
    let Some((world, mut host)) = World::host(change, beyond) else {
        return;
    };
    let mut client = host.client();
    let (one, two) = (
        host.machine(&mut client, 1).machine,
        host.machine(&mut client, 2).machine,
    );
    let (gateway, place) = (host.gateway(), host.place);
    let allowed_beyond = format!("10.223.{place}.7");

    // (whose, address, port): each answers, only not to a machine.
    let mut closed = Vec::new();
    let port = world.greet("host", "0.0.0.0:0");
    for address in [HOST, HOST_MANAGED, "127.0.0.1", &gateway] {
        closed.push(("host", address.to_owned(), port));
    }
    let port = world.greet("world", "0.0.0.0:0");
    closed.extend(
        beyond(place)
            .into_iter()
            .map(|address| ("world", address, port)),
    );
    closed.push((
        "world",
        WORLD.to_owned(),
        world.greet("world", "0.0.0.0:25"),
    ));
    let managed = world.greet("managed", "0.0.0.0:0");
    closed.push(("managed", MANAGER.to_owned(), managed));
    for (whose, address, port) in &closed {
        assert!(
            world.greeted(whose, address, *port),
            "the test itself: {address}:{port} answers"
        );
    }
    world.greet("host", &format!("{gateway}:{ALLOWED_PORT}"));
    world.greet("world", &format!("{allowed_beyond}:{ALLOWED_PORT}"));
    // Another machine: it listens, so only the firewall stands between.
    greet_inside(&host, &two, &host.address(1));

    let walls_stand = |host: &Host, when: &str| {
        // At once: refusals by ICMP come slower the more of them there are.
        std::thread::scope(|scope| {
            for (_, address, port) in &closed {
                let one = &one;
                scope.spawn(move || {
                    let reached = reaches(host, one, address, *port);
                    assert!(!reached, "{address}:{port} must be closed, {when}");
                });
            }
        });
        assert!(
            !reaches(host, &one, &host.address(1), 7777),
            "another machine must be closed, {when}"
        );
    };
    let is_open = |host: &Host| {
        reaches(host, &one, WORLD, port)
            && reaches(host, &one, &gateway, ALLOWED_PORT)
            && reaches(host, &one, &allowed_beyond, ALLOWED_PORT)
    };
    assert!(is_open(&host), "what is public or allowed");
    walls_stand(&host, "as always");

    world.run("host", "nft flush ruleset");
    wait_for("the way out to be back", || is_open(&host).then_some(()));

    host.kill_daemon();
    world.run("host", "nft flush ruleset");
    walls_stand(&host, "with no daemon and no firewall on the host");
    host.start_daemon();
    assert!(is_open(&host), "what is public or allowed, again");
    walls_stand(&host, "again");
}

/// Has a machine, which has that address, listen on port 7777 and greet whoever comes.
fn greet_inside(host: &Host, machine: &MachineId, address: &str) {
    let hello = "perl -MIO::Socket::INET -e '$s=IO::Socket::INET->new(Listen=>5,LocalPort=>7777,ReuseAddr=>1) or die; while($c=$s->accept){print $c \"hello\\n\";close $c}'";
    let script = format!("({hello}) >/dev/null 2>&1 </dev/null &");
    assert!(host.inside(machine, &script).status.success());
    wait_for("a machine to listen", || {
        reaches(host, machine, address, 7777).then_some(())
    });
}

#[test]
fn a_host_that_forwards_for_machines_is_no_router_for_others() {
    let Some((world, host)) = World::host(|_, _| {}, |_| Vec::new()) else {
        return;
    };
    let machine = host.machine(&mut host.client(), 1).machine;
    let in_the_world = world.greet("world", "0.0.0.0:0");
    let managed = world.greet("managed", "0.0.0.0:0");
    assert!(
        reaches(&host, &machine, WORLD, in_the_world),
        "packets of machines are forwarded"
    );
    assert!(!world.greeted("world", MANAGER, managed));
    assert!(!world.greeted("managed", WORLD, in_the_world));
    // Nor into machines.
    world.run(
        "world",
        &format!("ip route add {}/32 via {HOST}", host.address(0)),
    );
    greet_inside(&host, &machine, &host.address(0));
    for from in ["world", "host"] {
        assert!(!world.greeted(from, &host.address(0), 7777), "from {from}");
    }

    // An operator who wants a router says so, and has one.
    world.run("host", "echo 1 >/proc/sys/net/ipv4/ip_forward");
    wait_for("the host to route for others", || {
        world.greeted("managed", WORLD, in_the_world).then_some(())
    });
}

#[test]
fn a_machine_is_told_no_address_by_arp() {
    let Some((world, host)) = World::host(|_, _| {}, |_| Vec::new()) else {
        return;
    };
    let machine = host.machine(&mut host.client(), 1).machine;
    let network = format!("/proc/{}/ns/net", host.pid(&machine));
    let neighbours = || {
        let output = Command::new("nsenter")
            .args([
                &format!("--net={network}"),
                "ip",
                "neigh",
                "show",
                "dev",
                "eth0",
            ])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let router = format!("10.222.{}.255", host.place);
    let asked = [HOST, HOST_MANAGED, &router];
    for address in asked {
        let asking = in_namespace(network.as_ref(), || {
            let route = Command::new("ip")
                .args(["route", "add", &format!("{address}/32"), "dev", "eth0"])
                .status();
            assert!(route.unwrap().success());
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"who has it?", (address, 9)).unwrap()
        });
        assert_eq!(asking, 11);
    }
    wait_for("nobody to have answered", || {
        let seen = neighbours();
        assert_eq!(
            seen.matches("lladdr").count(),
            1,
            "but for the gateway: {seen}"
        );
        (seen.matches("FAILED").count() == asked.len()).then_some(())
    });
    drop(world);
}

#[test]
fn a_machine_cannot_send_as_another() {
    let change = |settings: &mut serde_json::Value, place: u8| {
        settings["allow"] = serde_json::json!([format!("10.222.{place}.1:20001/udp")]);
    };
    let Some(host) = Host::start_with(Guest::Idle, change) else {
        return;
    };
    let mut client = host.client();
    let (one, _two) = (
        host.machine(&mut client, 1).machine,
        host.machine(&mut client, 2).machine,
    );
    let socket = UdpSocket::bind((host.gateway().as_str(), 20_001)).unwrap();
    socket.set_read_timeout(Some(crate::harness::WAIT)).unwrap();
    // Root inside may give its link any address; the first datagram has the other machine's, the second its own.
    let send = |from: &str, text: &str| {
        format!(
            "perl -MIO::Socket::INET -e 'IO::Socket::INET->new(Proto=>\"udp\",LocalAddr=>\"{from}\",PeerAddr=>\"{}:20001\")->send(\"{text}\")'",
            host.gateway()
        )
    };
    let pid = host.pid(&one);
    let other = host.address(1);
    // The image has no `ip`; the machine's root could bring one along, so this stands for it.
    let added = Command::new("nsenter")
        .args([
            &format!("--net=/proc/{pid}/ns/net"),
            "ip",
            "address",
            "add",
            &format!("{other}/32"),
            "dev",
            "eth0",
        ])
        .status();
    assert!(added.unwrap().success());
    let forged = host.inside(&one, &send(&other, "forged"));
    assert!(
        forged.status.success(),
        "{}",
        String::from_utf8_lossy(&forged.stderr)
    );
    assert!(
        host.inside(&one, &send(&host.address(0), "honest"))
            .status
            .success()
    );
    let mut bytes = [0; 16];
    let (length, from) = socket.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"honest");
    assert_eq!(
        from,
        SocketAddr::new(host.address(0).parse().unwrap(), from.port())
    );
}

#[test]
fn names_resolve_and_packages_come_through() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let machine = host.machine(&mut client, 1).machine;
    let output = host.inside(&machine, "cat /etc/resolv.conf; getent ahostsv4 deb.debian.org && exec 3<>/dev/tcp/deb.debian.org/80 && printf 'HEAD /debian/ HTTP/1.0\\r\\nHost: deb.debian.org\\r\\n\\r\\n' >&3 && head -1 <&3");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("HTTP/1."),
        "{output:?}"
    );
    // Neighbours of machines and of the host are in one table, with room for both.
    let room = std::fs::read_to_string("/proc/sys/net/ipv4/neigh/default/gc_thresh3").unwrap();
    assert!(room.trim().parse::<u32>().unwrap() >= slipway_host::limits::NEIGHBOURS_MAX);
    let output = host.inside(&machine, "ls /proc/sys/net/ipv6/conf/eth0 >/dev/null && cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n", "{output:?}");
}
