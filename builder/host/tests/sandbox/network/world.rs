//! A network for a daemon to be alone in: the host's namespace, a world beyond it, and a management network at its other
//! interface. Nothing of it touches this computer's own.

use crate::harness::{Guest, Host, in_namespace, namespace};
use slipway_core::id::MachineId;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

/// Addresses of the host, the world and the management network's only computer.
pub(crate) const HOST: &str = "9.9.9.1";
pub(crate) const WORLD: &str = "9.9.9.2";
pub(crate) const HOST_MANAGED: &str = "10.55.0.1";
pub(crate) const MANAGER: &str = "10.55.0.2";

/// Goes away with its namespaces.
pub(crate) struct World {
    place: u8,
}

impl World {
    /// A daemon in a world of its own, where `further` addresses are the world's too.
    pub(crate) fn host(
        change: impl FnOnce(&mut serde_json::Value, u8),
        further: impl FnOnce(u8) -> Vec<String>,
    ) -> Option<(Self, Host)> {
        let mut world = None;
        let host = Host::start_with(Guest::Idle, |settings, place| {
            world = Some(Self::new(place, &further(place)));
            change(settings, place);
        })?;
        Some((world?, host))
    }

    fn new(place: u8, further: &[String]) -> Self {
        let world = Self { place };
        let names = ["host", "world", "managed"].map(|name| format!("slt{place}-{name}"));
        for name in &names {
            let added = Command::new("ip").args(["netns", "add", name]).status();
            assert!(added.unwrap().success(), "{name}");
        }
        let [_, beyond, managed] = &names;
        world.run(
            "host",
            &format!(
                "ip link set lo up
                 ip link add up0 type veth peer name eth0 netns {beyond}
                 ip link add mg0 type veth peer name eth0 netns {managed}
                 ip addr add {HOST}/24 dev up0; ip addr add {HOST_MANAGED}/24 dev mg0
                 ip link set up0 up; ip link set mg0 up; ip route add default via {WORLD}
                 echo 0 >/proc/sys/net/ipv4/ip_forward"
            ),
        );
        world.run(
            "world",
            &format!(
                "ip link set lo up; ip addr add {WORLD}/24 dev eth0; ip link set eth0 up
                 ip route add 10.55.0.0/24 via {HOST}"
            ),
        );
        for address in further {
            world.run("world", &format!("ip addr add {address}/32 dev lo"));
        }
        world.run(
            "managed",
            &format!(
                "ip link set lo up; ip addr add {MANAGER}/24 dev eth0; ip link set eth0 up
                 ip route add default via {HOST_MANAGED}"
            ),
        );
        world
    }

    /// Runs a script in one of the namespaces.
    pub(crate) fn run(&self, name: &str, script: &str) {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.namespace(name).display()))
            .args(["bash", "-ec", script])
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {words}");
    }

    pub(crate) fn namespace(&self, name: &str) -> PathBuf {
        namespace(self.place, name)
    }

    /// Listens there and greets whoever comes, for as long as the test runs; gives the port.
    pub(crate) fn greet(&self, name: &str, address: &str) -> u16 {
        let listener = in_namespace(&self.namespace(name), || {
            TcpListener::bind(address)
                .unwrap_or_else(|error| panic!("listen at {address}: {error}"))
        });
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let _ = stream.write_all(b"hello\n");
            }
        });
        port
    }

    /// Whether somebody in that namespace gets the greeting of `address`.
    pub(crate) fn greeted(&self, name: &str, address: &str, port: u16) -> bool {
        let script = script_of_greeting(address, port);
        Command::new("nsenter")
            .arg(format!("--net={}", self.namespace(name).display()))
            .args(["bash", "-c", &script])
            .status()
            .unwrap()
            .success()
    }
}

/// Whether the machine gets the greeting of `address`.
pub(crate) fn reaches(host: &Host, machine: &MachineId, address: &str, port: u16) -> bool {
    host.inside(machine, &script_of_greeting(address, port))
        .status
        .success()
}

fn script_of_greeting(address: &str, port: u16) -> String {
    format!("timeout 3 bash -c 'read -r line </dev/tcp/{address}/{port} && [ \"$line\" = hello ]'")
}

impl Drop for World {
    fn drop(&mut self) {
        crate::leftovers::remove_namespaces(self.place);
    }
}
