//! What the filter of system calls lets through, as seen by programs inside, and what dockerd can do behind it.

use crate::conformance::context;
use crate::harness::{Guest, Host, http};
use crate::kept;
use slipway_core::host_api::EndpointPort;
use slipway_core::id::MachineId;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const EPERM: i64 = -1;
const ENOSYS: i64 = -38;
/// `AF_UNIX`, `AF_INET`, `AF_INET6`, `AF_NETLINK`, `AF_PACKET`.
const FAMILIES: [i64; 5] = [1, 2, 10, 16, 17];
/// Options of `AF_PACKET` that would take memory of the kernel that no cgroup counts, or join sockets: both rings and fan-outs.
const RINGS: [i64; 4] = [5, 13, 18, 22];
/// `KEYCTL_JOIN_SESSION_KEYRING`, `KEYCTL_SETPERM`, `KEYCTL_DESCRIBE`.
const KEY_OPERATIONS: [i64; 3] = [1, 5, 6];

/// Compiles the program that makes the calls, for 64 or 32 bits.
fn compile(host: &Host, bits: &str) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sandbox/programs/calls.c");
    let program = host.dir.join(format!("calls{bits}"));
    let compiled = Command::new("cc")
        .arg(format!("-m{bits}"))
        .args(["-O1", "-nostdlib", "-static", "-ffreestanding", "-fno-pie"])
        .args(["-no-pie", "-fno-stack-protector", "-o"])
        .args([&program, &source])
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{compiled:?}");
    std::fs::read(program).unwrap()
}

/// What the calls give inside a machine, by their names.
fn calls(host: &Host, machine: &MachineId, bits: &str) -> BTreeMap<String, i64> {
    let program = compile(host, bits);
    let mut put = Command::new("runc")
        .arg("--root")
        .arg(host.dir.join("run/runc"))
        .args(["exec", machine.as_str(), "bash", "-c"])
        .arg("cat > /tmp/calls && chmod +x /tmp/calls && exec /tmp/calls")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    put.stdin.take().unwrap().write_all(&program).unwrap();
    let said = put.wait_with_output().unwrap();
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(
        said.status.success(),
        "a program of {bits} bits runs: {text}"
    );
    text.lines()
        .map(|line| {
            let (name, number) = line.split_once('=').unwrap();
            (name.to_owned(), number.parse().unwrap())
        })
        .collect()
}

#[test]
fn sockets_of_five_families_three_key_operations_and_no_more_whatever_the_other_bits_say() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let machine = host.machine(&mut host.client(), 1).machine;
    for bits in ["64", "32"] {
        let given = calls(&host, &machine, bits);
        for (name, number) in &given {
            let at = name.trim_start_matches(|c: char| c.is_ascii_lowercase() || c == '_');
            let open = match (name.trim_end_matches(at), at.parse::<i64>()) {
                ("socket" | "pair" | "high", Ok(family)) => FAMILIES.contains(&family),
                ("keyctl", Ok(operation)) => KEY_OPERATIONS.contains(&operation),
                ("packet_option" | "packet_high", Ok(option)) if RINGS.contains(&option) => false,
                ("add_key" | "request_key" | "option_alg", _) => false,
                _ => continue,
            };
            // What is open may still be refused by the kernel, which has other errors for it.
            assert!(open || *number == EPERM, "{bits} bits: {name}={number}");
            assert!(!open || *number != EPERM, "{bits} bits: {name}={number}");
        }
        for name in [
            "packet_option01",
            "option_socket",
            "option_ip",
            "option_tcp",
        ] {
            assert_ne!(given[name], EPERM, "{bits} bits: {name}");
        }
        assert!(given["socket02"] >= 0, "{given:?}");
        assert!(given["keyctl01"] >= 0, "{given:?}");
    }
    let given = calls(&host, &machine, "32");
    assert_eq!(given["socketcall"], ENOSYS, "it hides the family");
    assert_eq!(given["socketcall_option"], ENOSYS, "it hides the option");
    for name in ["uname", "stat64", "fstat64", "getuid32", "clock_gettime64"] {
        assert_eq!(given[name], 0, "{name}");
    }
    assert_ne!(given["mmap2"], EPERM, "it is the kernel that refuses");
}

#[test]
fn no_core_dump_reaches_a_program_of_the_host() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let machine = host.machine(&mut host.client(), 1).machine;
    let limits = host.inside(&machine, "ulimit -Sc; ulimit -Hc; cat /proc/1/limits");
    let limits = String::from_utf8_lossy(&limits.stdout).into_owned();
    let of_init = limits.lines().find(|line| line.starts_with("Max core"));
    let of_init: Vec<_> = of_init.unwrap().split_whitespace().skip(4).collect();
    assert_eq!(of_init, ["1", "1", "bytes"], "{limits}");
    let raised = host.inside(&machine, "ulimit -Hc unlimited");
    assert!(!raised.status.success(), "{raised:?}");
}

#[test]
fn a_privileged_container_has_a_writable_sys_of_its_own_and_the_machine_has_none() {
    let Some(host) = Host::start(Guest::Docker) else {
        return;
    };
    let spec = host.machine(&mut host.client(), 1);
    let stream = host.open_when_up(&spec, EndpointPort::Docker);
    let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\n";
    let (status, reply) = http(stream, "POST /v1.45/build?t=test", &context(dockerfile));
    assert_eq!(status, 200, "{reply}");
    let script = "/bin/busybox grep ' /sys ' /proc/mounts; /bin/busybox echo done";
    let said = kept::inside(&host, &spec, script);
    assert!(
        said.contains("/sys sysfs rw,") && said.contains("done"),
        "{said}"
    );
    let of_the_host = host.inside(&spec.machine, "echo 0 > /sys/kernel/mm/ksm/run");
    assert!(!of_the_host.status.success(), "{of_the_host:?}");
}
