//! From the network of older daemons, which had machines' links on the host, to the router.

use super::reaches;
use super::world::{WORLD, World};
use crate::harness::{WAIT, in_namespace, wait_for};
use nix::net::if_::if_nametoindex;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

#[test]
fn links_on_the_host_move_into_the_router_and_their_connections_go_on() {
    let Some((world, mut host)) = World::host(|_, _| {}, |_| Vec::new()) else {
        return;
    };
    let machine = host.machine(&mut host.client(), 1).machine;
    let port = world.greet("world", "0.0.0.0:0");
    let listener = in_namespace(&world.namespace("world"), || {
        TcpListener::bind("0.0.0.0:0").unwrap()
    });
    host.kill_daemon();

    // As they had it: the link, the gateway's address on a bridge, and the table on the host.
    let place = host.place;
    let (interface, link) = (format!("slt{place}"), format!("slt{place}-0"));
    let holder = in_namespace(&world.namespace("host"), || {
        Command::new("sleep").arg("600").spawn().unwrap()
    });
    let moved = Command::new("nsenter")
        .arg(format!("--net={}", host.router().display()))
        .args([
            "ip",
            "link",
            "set",
            &link,
            "netns",
            &holder.id().to_string(),
        ])
        .status();
    assert!(moved.unwrap().success());
    end(holder);
    world.run(
        "host",
        &format!(
            "ip link delete {interface}; ip link add {interface} type bridge
             ip addr add 10.222.{place}.1/32 dev {interface}; ip link set {interface} up
             ip link set {link} up; ip route add {address}/32 dev {link} src 10.222.{place}.1
             ip neigh replace {address} lladdr 02:53:4c:02:00:00 dev {link} nud permanent
             echo 1 >/proc/sys/net/ipv4/ip_forward
             nft flush ruleset
             nft add table inet slipway-test-{place}
             nft 'add chain inet slipway-test-{place} p {{ type nat hook postrouting priority srcnat; }}'
             nft add rule inet slipway-test-{place} p ip saddr 10.222.{place}.0/24 masquerade",
            address = host.address(0),
        ),
    );
    assert!(
        reaches(&host, &machine, WORLD, port),
        "the test itself: as it was"
    );
    let open = format!(
        "(exec 3<>/dev/tcp/{WORLD}/{}; read -r line <&3; echo \"$line\" >/tmp/read; echo thanks >&3; read -r line <&3) >/dev/null 2>&1 </dev/null &",
        listener.local_addr().unwrap().port()
    );
    assert!(host.inside(&machine, &open).status.success());
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();

    host.start_daemon();
    in_namespace(&host.router(), || if_nametoindex(link.as_str())).unwrap();
    assert!(reaches(&host, &machine, WORLD, port));
    stream.write_all(b"still here\n").unwrap();
    let mut thanks = [0; 7];
    stream.read_exact(&mut thanks).unwrap();
    assert_eq!(&thanks, b"thanks\n");
    wait_for("the line to be written", || {
        let read = host.inside(&machine, "cat /tmp/read").stdout;
        (read == b"still here\n").then_some(())
    });
}

fn end(mut child: std::process::Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}
