//! Connections that router and host keep track of: how many a machine may have, and that the next machine has none of them.

use super::world::{WORLD, World};
use crate::harness::{Host, in_namespace, wait_for};
use slipway_core::id::MachineId;
use slipway_host::limits::MACHINE_FLOWS_MAX;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

/// How many connections a namespace keeps track of.
fn tracked(namespace: &Path) -> u32 {
    in_namespace(namespace, || {
        let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
        count.unwrap().trim().parse().unwrap()
    })
}

fn in_background(host: &Host, machine: &MachineId, script: &str) {
    let output = host.inside(machine, &format!("({script}) >/tmp/said 2>&1 </dev/null &"));
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_machine_has_no_more_connections_than_its_share_and_others_have_theirs() {
    let Some((world, host)) = World::host(|_, _| {}, |_| Vec::new()) else {
        return;
    };
    let mut client = host.client();
    let (greedy, other) = (
        host.machine(&mut client, 1).machine,
        host.machine(&mut client, 2).machine,
    );
    let port = world.greet("world", "0.0.0.0:0");
    let (router, outside) = (host.router(), world.namespace("host"));
    // One datagram from each port to each of many ports, over and over.
    in_background(
        &host,
        &greedy,
        &format!(
            "perl -MSocket -e 'socket($s,PF_INET,SOCK_DGRAM,17); while(1) {{ for $p (1..60000) {{ send($s,\"x\",0,sockaddr_in($p,inet_aton(\"{WORLD}\"))); select(undef,undef,undef,0.002) unless $p % 10 }} }}'"
        ),
    );
    let share = MACHINE_FLOWS_MAX;
    let mut most = 0;
    wait_for("the machine to have its share", || {
        most = most.max(tracked(&router));
        (most >= share - share / 20).then_some(())
    });
    // It goes on trying; some of the other's connections count too.
    for _ in 0..20 {
        assert!(
            super::reaches(&host, &other, WORLD, port),
            "the other machine has room"
        );
        most = most.max(tracked(&router));
    }
    assert!(most <= share + 64, "{most} connections");
    assert!(tracked(&outside) <= share + 64, "on the host");
}

#[test]
fn the_next_machine_of_a_slot_receives_nothing_of_the_last_ones_connections() {
    let Some((world, host)) = World::host(|_, _| {}, |_| Vec::new()) else {
        return;
    };
    let mut client = host.client();
    let bind = |port: u16| {
        let socket = in_namespace(&world.namespace("world"), || {
            UdpSocket::bind((WORLD, port)).unwrap()
        });
        socket.set_read_timeout(Some(crate::harness::WAIT)).unwrap();
        socket
    };
    let (attacker, honest) = (bind(9999), bind(9998));
    let udp = |local: u16, to: u16| {
        format!(
            "IO::Socket::INET->new(Proto=>\"udp\",LocalPort=>{local},PeerAddr=>\"{WORLD}:{to}\")"
        )
    };
    let mut bytes = [0; 64];

    let red = host.machine(&mut client, 1);
    let ends = format!(
        "perl -MIO::Socket::INET -e '$s={}; $s->send(\"begin\"); $s->recv($b,9); print $b'",
        udp(5353, 9999)
    );
    in_background(&host, &red.machine, &ends);
    let (_, back): (usize, SocketAddr) = attacker.recv_from(&mut bytes).unwrap();
    attacker.send_to(b"answer", back).unwrap();
    wait_for("the answer to come through", || {
        let said = host.inside(&red.machine, "cat /tmp/said").stdout;
        (said == b"answer").then_some(())
    });
    client.stop(&red.machine, 1, Duration::ZERO).unwrap();
    client.wait_exit(&red.machine, crate::harness::WAIT);
    wait_for("the connections to be forgotten", || {
        (tracked(&host.router()) == 0).then_some(())
    });

    let blue = host.machine(&mut client, 2);
    assert_eq!(host.slot(&blue.machine), 0, "the slot of the first");
    // It listens where the first did, and asks somebody else. Packets to it keep their order.
    let listens = format!(
        "perl -MIO::Socket::INET -e '$l=IO::Socket::INET->new(Proto=>\"udp\",LocalPort=>5353,Blocking=>0); $s={}; $s->send(\"begin\"); $s->recv($b,9); $l->recv($x,9); print \"$b,$x.\"'",
        udp(6000, 9998)
    );
    in_background(&host, &blue.machine, &listens);
    let (_, to_blue) = honest.recv_from(&mut bytes).unwrap();
    for _ in 0..8 {
        attacker.send_to(b"old", back).unwrap();
    }
    honest.send_to(b"new", to_blue).unwrap();
    let said = wait_for("the new answer to come through", || {
        let said = host.inside(&blue.machine, "cat /tmp/said").stdout;
        said.ends_with(b".").then_some(said)
    });
    assert_eq!(String::from_utf8_lossy(&said), "new,.");
}
