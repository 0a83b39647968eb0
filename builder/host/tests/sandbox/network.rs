//! What machines can reach, tried from inside with all the rights a machine's root has.

use crate::harness::{Guest, Host};
use slipway_core::id::MachineId;
use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::mpsc;

/// Accepts and greets, for as long as the test runs.
fn greet(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.write_all(b"hello\n");
        }
    });
}

fn listen(address: &str) -> u16 {
    let listener =
        TcpListener::bind(address).unwrap_or_else(|error| panic!("listen at {address}: {error}"));
    let port = listener.local_addr().unwrap().port();
    greet(listener);
    port
}

/// Whether the machine gets the greeting of `address`.
fn reaches(host: &Host, machine: &MachineId, address: &str, port: u16) -> bool {
    let script = format!(
        "timeout 3 bash -c 'read -r line </dev/tcp/{address}/{port} && [ \"$line\" = hello ]'"
    );
    host.inside(machine, &script).status.success()
}

/// A network beyond the host, with listeners at addresses of all kinds. Its links go away with it.
struct Beyond {
    name: String,
    port: u16,
}

impl Beyond {
    fn new(host: &Host, addresses: &[String]) -> Self {
        let name = format!("slt{}-net", host.place);
        let link = format!("slx{}", host.place);
        let run = |command: &str| {
            let status = Command::new("sh").args(["-ec", command]).status().unwrap();
            assert!(status.success(), "{command}");
        };
        let via = format!("198.51.100.{}", host.place);
        run(&format!(
            "ip netns add {name}; ip link add {link} type veth peer name eth0 netns {name}; ip link set {link} up; \
             ip -n {name} link set lo up; ip -n {name} link set eth0 up; \
             ip -n {name} addr add {via}/32 dev eth0; ip addr add 198.51.101.{}/32 dev {link}; \
             ip route add {via}/32 dev {link}; ip -n {name} route add default dev eth0",
            host.place
        ));
        for address in addresses {
            run(&format!(
                "ip -n {name} addr add {address}/32 dev lo; ip route add {address}/32 via {via} dev {link}"
            ));
        }
        let (sender, receiver) = mpsc::channel();
        let namespace = File::open(format!("/run/netns/{name}")).unwrap();
        std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            sender
                .send(TcpListener::bind("0.0.0.0:0").unwrap())
                .unwrap();
        });
        let listener = receiver.recv().unwrap();
        let port = listener.local_addr().unwrap().port();
        greet(listener);
        Self { name, port }
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .status();
        let _ = Command::new("ip")
            .args([
                "link",
                "delete",
                &self.name.replace("-net", "").replace("slt", "slx"),
            ])
            .output();
    }
}

#[test]
fn machines_reach_the_world_and_nothing_private() {
    let allowed_port = 20_000;
    let change = |settings: &mut serde_json::Value, place: u8| {
        settings["allow"] = serde_json::json!([
            format!("10.222.{place}.1:{allowed_port}"),
            format!("10.223.{place}.7:{allowed_port}"),
        ]);
        settings["deny"] = serde_json::json!(["198.51.99.0/24"]);
    };
    let Some(host) = Host::start_with(Guest::Idle, change) else {
        return;
    };
    let mut client = host.client();
    let (one, two) = (
        host.machine(&mut client, 1).machine,
        host.machine(&mut client, 2).machine,
    );
    let gateway = host.gateway();

    listen(&format!("{gateway}:{allowed_port}"));
    let everywhere = listen("0.0.0.0:0");
    assert!(
        reaches(&host, &one, &gateway, allowed_port),
        "what is allowed is open"
    );
    let mut own = own_addresses();
    own.extend([gateway.clone(), "127.0.0.1".to_owned()]);
    for address in own {
        assert!(
            !reaches(&host, &one, &address, everywhere),
            "the host's {address} must be closed"
        );
    }

    let place = host.place;
    let open = format!("198.51.98.{place}");
    let closed = [
        format!("10.223.{place}.1"),
        format!("172.16.{place}.1"),
        format!("192.168.{place}.1"),
        format!("100.64.{place}.1"),
        format!("169.254.{place}.1"),
        format!("198.51.99.{place}"),
    ];
    let beyond = Beyond::new(
        &host,
        &[closed.as_slice(), std::slice::from_ref(&open)].concat(),
    );
    for address in &closed {
        let from_host = std::net::TcpStream::connect((address.as_str(), beyond.port));
        assert!(
            from_host.is_ok(),
            "the test itself: the host reaches {address}"
        );
        assert!(
            !reaches(&host, &one, address, beyond.port),
            "{address} must be closed"
        );
    }
    assert!(
        reaches(&host, &one, &open, beyond.port),
        "a public address is open"
    );

    // Another machine: it listens, and can be reached from the host, so only the firewall stands between.
    let hello = "perl -MIO::Socket::INET -e '$s=IO::Socket::INET->new(Listen=>5,LocalPort=>7777,ReuseAddr=>1) or die; while($c=$s->accept){print $c \"hello\\n\";close $c}'";
    let listening = host.inside(
        &two,
        &format!("({hello}) >/dev/null 2>&1 </dev/null & sleep 0.1"),
    );
    assert!(listening.status.success());
    crate::harness::wait_for("the other machine to listen", || {
        std::net::TcpStream::connect((host.address(1).as_str(), 7777)).ok()
    });
    assert!(
        !reaches(&host, &one, &host.address(1), 7777),
        "another machine must be closed"
    );
    assert!(
        reaches(&host, &two, &host.address(1), 7777),
        "the test itself: it does greet"
    );
}

#[test]
fn a_flushed_firewall_comes_back() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let table = format!("slipway-test-{}", host.place);
    let nft = |verb: &str| {
        Command::new("nft")
            .args([verb, "table", "inet", &table])
            .output()
            .unwrap()
    };
    assert!(nft("delete").status.success());
    crate::harness::wait_for("the table to be back", || {
        nft("list").status.success().then_some(())
    });
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
    let output = host.inside(&machine, "ls /proc/sys/net/ipv6/conf/eth0 >/dev/null && cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n", "{output:?}");
}

/// Addresses of the host's interfaces that tests do not own.
fn own_addresses() -> Vec<String> {
    let listed = Command::new("ip")
        .args(["-4", "-o", "address"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let lines = text.lines().filter(|line| {
        !line.contains(" slt") && !line.contains(" slx") && !line.contains("127.0.0.1")
    });
    lines
        .filter_map(|line| {
            Some(
                line.split_whitespace()
                    .nth(3)?
                    .split('/')
                    .next()?
                    .to_owned(),
            )
        })
        .collect()
}
