//! What stands between a virtual machine and its host: QEMU's own confinement, and the door.

use crate::harness::{Guest, Host, Kind, WAIT, in_namespace, wait_for};
use slipway_core::vm::{CHANNEL_PORT, GREETING_BYTES};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn qemu_has_no_right_and_the_door_opens_for_the_hosts_root_with_the_secret_alone() {
    let Some(host) = Host::start_kind(Kind::Vm, Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let spec = host.machine(&mut client, 1);
    let pid = host.pid(&spec.machine);

    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..]
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let id = host.settings["id_base"].to_string();
    assert_eq!(field("Uid:"), vec![id.as_str(); 4]);
    assert_eq!(field("Gid:"), vec![id.as_str(); 4]);
    assert_eq!(field("Groups:"), [id.as_str()]);
    for capabilities in ["CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(capabilities), ["0000000000000000"]);
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    assert_eq!(field("Seccomp:"), ["2"], "QEMU's own filter");
    for kind in ["net", "ipc", "uts", "mnt"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{kind}");
    }
    sees_only_programs(pid, &host.dir);
    let argv = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!argv.contains(&host.dir.display().to_string()), "{argv}");
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroups.contains(spec.machine.as_str()), "{cgroups}");

    let address = format!("{}:{CHANNEL_PORT}", host.address(0));
    let mut stream = wait_for("the door", || {
        in_namespace(&host.router(), || TcpStream::connect(&address)).ok()
    });
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(&[b'd'; GREETING_BYTES]).unwrap();
    let mut answer = Vec::new();
    // Closed, or reset with what was not read.
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(answer, b"", "a wrong secret gets no answer");

    // Nobody reaches it from the host's own network, and only root comes into the router's.
    assert!(TcpStream::connect(&address).is_err());
    let enter = format!("nsenter --net={} true", host.router().display());
    let may_enter = |user: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--clear-groups", "sh", "-c", &enter]);
        command.output().unwrap().status.success()
    };
    assert!(may_enter("0"));
    assert!(!may_enter("65534"), "another user of the host");

    client
        .stop(&spec.machine, 1, std::time::Duration::ZERO)
        .unwrap();
    client.wait_exit(&spec.machine, WAIT);
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

/// The root directory of process `pid` has programs, itself and some devices, and no file of the host's below `of_the_host` or
/// elsewhere.
fn sees_only_programs(pid: i32, of_the_host: &Path) {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let mut seen: Vec<_> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    seen.sort_unstable();
    let known = [
        "/",
        "/bin",
        "/dev/kvm",
        "/dev/null",
        "/dev/urandom",
        "/etc/ld.so.cache",
        "/lib",
        "/lib64",
        "/nix",
        "/opt",
        "/proc",
        "/sbin",
        "/usr",
    ];
    assert!(seen.contains(&"/usr"), "{mounts}");
    let others: Vec<_> = seen.iter().filter(|at| !known.contains(at)).collect();
    assert!(others.is_empty(), "{others:?} in {mounts}");
    let inside = |path: &str| PathBuf::from(format!("/proc/{pid}/root{path}"));
    assert!(inside("/usr/bin").exists());
    let here = of_the_host.to_string_lossy().into_owned();
    for hidden in [
        "/etc/passwd",
        "/home",
        "/run",
        "/sys",
        "/tmp",
        "/var",
        &here,
    ] {
        assert!(!inside(hidden).exists(), "{hidden}");
    }
    // Root of the host made it, and cannot write there either.
    assert!(fs::write(inside("/new"), "").is_err());
    assert!(fs::write(inside("/usr/new"), "").is_err());
}
