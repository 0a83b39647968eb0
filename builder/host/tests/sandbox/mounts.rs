//! What other programs of the host keep of a machine's mounts: nothing.

use crate::harness::{Guest, Host, WAIT, wait_for};
use slipway_core::host_api::MachineRunState;
use std::fs;
use std::process::{Child, Command};

/// A program in a mount namespace of its own, made from the host's now.
fn copier(propagation: &str) -> Child {
    let mut program = Command::new("unshare");
    program.args(["--mount", "--propagation", propagation, "sleep", "1000"]);
    let child = program.spawn().unwrap();
    let name = format!("/proc/{}/comm", child.id());
    wait_for("a namespace of its own", || {
        (fs::read_to_string(&name).ok()? == "sleep\n").then_some(())
    });
    child
}

/// While it runs, and while its daemon is away, programs copy all mounts of the host and live on.
#[test]
fn a_machine_wakes_whatever_copies_the_mounts_of_the_host() {
    let Some(mut host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut spec = host.machine(&mut host.client(), 1);
    host.inside(&spec.machine, "echo contents > /var/lib/docker/kept");
    let all = ["private", "slave", "shared"];
    let mut programs: Vec<_> = all.map(copier).into();
    // The log's room is all that the host's namespace has of it.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = host.dir.display().to_string();
    let seen: Vec<_> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| point.starts_with(&below) && point.contains(spec.machine.as_str()))
        .collect();
    assert!(seen.iter().all(|point| point.ends_with("/log")), "{seen:?}");
    host.kill_daemon();
    programs.extend(all.map(copier));
    host.start_daemon();
    for generation in 1..=3 {
        let mut client = host.client();
        programs.push(copier("private"));
        client.stop(&spec.machine, generation, WAIT).unwrap();
        assert!(client.wait_exit(&spec.machine, WAIT), "{}", host.log());
        assert_eq!(client.volumes()[0].attached_to, None, "{}", host.log());
        spec.generation.0 = generation + 1;
        let started = client.ensure(&spec).unwrap();
        assert_eq!(started.state, MachineRunState::Running);
        let kept = host.inside(&spec.machine, "cat /var/lib/docker/kept");
        assert_eq!(String::from_utf8_lossy(&kept.stdout), "contents\n");
    }
    assert!(!host.log().contains("unclean end before"), "{}", host.log());
    for mut program in programs {
        program.kill().unwrap();
        program.wait().unwrap();
    }
}
