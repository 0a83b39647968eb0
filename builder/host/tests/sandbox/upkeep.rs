//! What a daemon keeps in order besides its machines: their limits, and the images they boot.

use crate::harness::{Guest, Host, Kind, WAIT, wait_for};
use slipway_core::id::MachineId;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files with the limits of a machine, those of v1 by controller, in an order in which they can be raised.
const LIMITS: [&str; 8] = [
    "cpu/CGROUP/cpu.cfs_quota_us",
    "pids/CGROUP/pids.max",
    "memory/CGROUP/memory.memsw.limit_in_bytes",
    "memory/CGROUP/memory.limit_in_bytes",
    "CGROUP/cpu.max",
    "CGROUP/pids.max",
    "CGROUP/memory.swap.max",
    "CGROUP/memory.max",
];
const LESS_MEMORY: &str = "536870912";

fn limits(host: &Host, machine: &MachineId) -> Vec<PathBuf> {
    let cgroup = format!("slipway-test-{}/{machine}", host.place);
    let files =
        LIMITS.map(|file| Path::new("/sys/fs/cgroup").join(file.replace("CGROUP", &cgroup)));
    let found: Vec<PathBuf> = files.into_iter().filter(|file| file.exists()).collect();
    assert!(found.len() >= 3, "limits: {found:?}");
    found
}

fn read(files: &[PathBuf]) -> Vec<String> {
    files
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect()
}

/// As systemd does on v2, where it may.
fn take_processor_away(host: &Host) {
    let parent = Path::new("/sys/fs/cgroup").join(format!("slipway-test-{}", host.place));
    let control = parent.join("cgroup.subtree_control");
    if control.exists() {
        fs::write(&control, "-cpu").unwrap();
        let now = fs::read_to_string(&control).unwrap();
        assert!(!now.split_whitespace().any(|name| name == "cpu"), "{now}");
    }
}

fn limits_are_written_anew(kind: Kind) {
    let Some(mut host) = Host::start_kind(kind, Guest::Deaf) else {
        return;
    };
    let spec = host.machine(&mut host.client(), 1);
    let files = limits(&host, &spec.machine);
    let set = read(&files);

    host.kill_daemon();
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let none = if name.ends_with("_us") || name.ends_with("_bytes") {
            "-1"
        } else {
            "max"
        };
        fs::write(file, none).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert_ne!(read(&files), set);
    take_processor_away(&host);
    host.start_daemon();
    assert_eq!(read(&files), set, "{}", host.log());

    host.kill_daemon();
    let less = files
        .iter()
        .rev()
        .filter(|file| file.to_str().unwrap().contains("memory"));
    for file in less.filter(|file| !file.ends_with("memory.swap.max")) {
        fs::write(file, LESS_MEMORY).unwrap();
    }
    assert_ne!(read(&files), set);
    host.start_daemon();
    assert_eq!(read(&files), set, "{}", host.log());
}

#[test]
fn an_adopted_sandbox_has_its_limits() {
    limits_are_written_anew(Kind::Sandbox);
}

#[test]
fn an_adopted_virtual_machine_has_its_limits() {
    limits_are_written_anew(Kind::Vm);
}

fn images(host: &Host) -> Vec<String> {
    let entries = fs::read_dir(host.dir.join("state/images")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// As an upgrade does, while the daemon is away.
fn replace_guest(host: &Host, word: &str) {
    let guest = host.dir.join("guest");
    let mut text = fs::read_to_string(&guest).unwrap();
    text.push_str(&format!("# {word}\n"));
    fs::remove_file(&guest).unwrap();
    fs::write(&guest, text).unwrap();
}

#[test]
fn layers_stay_while_a_machine_uses_them_and_no_longer() {
    let Some(mut host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let old = host.machine(&mut client, 1);
    let first = images(&host);
    assert_eq!(first.len(), 1, "{first:?}");

    // What a crash, an upgrade and an earlier image leave.
    host.kill_daemon();
    let kept = host.dir.join("state/images");
    let leftovers = [
        "base-0",
        "base-1.part",
        "layer-0",
        "layer-0.gone",
        "layer-2.squashfs",
    ];
    for name in leftovers {
        fs::create_dir_all(kept.join(name).join("etc")).unwrap();
    }
    replace_guest(&host, "second");
    host.start_daemon();
    let second = images(&host);
    assert_eq!(second.len(), 2, "{second:?}");
    assert!(second.contains(&first[0]), "{second:?}");
    let output = host.inside(
        &old.machine,
        "cat /etc/hosts && test -x /usr/sbin/slipway-guest",
    );
    assert!(output.status.success(), "{output:?}");

    // A daemon that knows nothing of what a machine boots removes nothing.
    let mut client = host.client();
    let young = host.machine(&mut client, 2);
    host.kill_daemon();
    let note = host
        .dir
        .join("state/machines")
        .join(young.machine.as_str())
        .join("image.json");
    let noted = fs::read(&note).unwrap();
    fs::remove_file(&note).unwrap();
    replace_guest(&host, "third");
    host.start_daemon();
    assert_eq!(images(&host).len(), 3, "{:?}", images(&host));
    fs::write(&note, noted).unwrap();

    // As soon as nobody uses them.
    let mut client = host.client();
    for (machine, left) in [(&old.machine, 2), (&young.machine, 1)] {
        client.stop(machine, 1, Duration::ZERO).unwrap();
        client.wait_exit(machine, WAIT);
        wait_for("the layer to go", || {
            (images(&host).len() == left).then_some(())
        });
    }
    let last = images(&host);
    assert!(!second.contains(&last[0]), "the current one went: {last:?}");
    host.machine(&mut client, 3);
}

#[test]
fn a_purge_tries_no_virtual_machine() {
    let change = |settings: &mut serde_json::Value, place: u8| {
        settings["isolation"] = "auto".into();
        settings["qemu"] = format!("/tmp/slipway-host-test-{place}/qemu").into();
    };
    let Some(mut host) = Host::start_with(Guest::Deaf, change) else {
        return;
    };
    let tried = host.dir.join("tried");
    let script = format!("#!/bin/sh\ntouch {}\nexit 1\n", tried.display());
    let qemu = host.dir.join("qemu");
    fs::write(&qemu, script).unwrap();
    fs::set_permissions(&qemu, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    host.kill_daemon();
    // An operator may give both disks of their own: they stay mounted.
    let own_disks = ["state", "pool"].map(|name| host.dir.join(name));
    for disk in &own_disks {
        let bind = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(disk), disk, None::<&str>, bind, None::<&str>).unwrap();
    }
    host.start_daemon();
    assert!(tried.exists(), "a daemon tries");
    host.machine(&mut host.client(), 1);
    host.kill_daemon();
    fs::remove_file(&tried).unwrap();

    let settings = serde_json::from_value(host.settings.clone()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let purged = runtime.block_on(slipway_host::purge(settings)).unwrap();
    assert_eq!((purged.machines, purged.volumes), (1, 1));
    assert!(!tried.exists());
    for disk in &own_disks {
        assert_eq!(fs::read_dir(disk).unwrap().count(), 0, "{disk:?}");
        nix::mount::umount(disk).expect("it was not unmounted before");
        fs::remove_dir(disk).unwrap();
    }
    assert_eq!(host.leftovers(), Vec::<String>::new());
    assert_eq!(cgroup_parents(&host), Vec::<PathBuf>::new());

    // What no record names is found as well.
    host.start_daemon();
    let mut client = host.client();
    let machine = host.machine(&mut client, 1).machine;
    host.machine(&mut client, 2);
    let pid = host.pid(&machine);
    drop(client);
    host.kill_daemon();
    fs::remove_dir_all(host.dir.join("state")).unwrap();
    let settings = serde_json::from_value(host.settings.clone()).unwrap();
    let purged = runtime.block_on(slipway_host::purge(settings)).unwrap();
    assert_eq!((purged.machines, purged.volumes), (2, 2));
    // Of one that has ended and that nobody has asked after yet, there is no program.
    assert!(
        fs::read_link(format!("/proc/{pid}/exe")).is_err(),
        "it runs on"
    );
    assert_eq!(host.leftovers(), Vec::<String>::new());
    assert_eq!(cgroup_parents(&host), Vec::<PathBuf>::new());
    let settings = serde_json::from_value(host.settings.clone()).unwrap();
    let again = runtime.block_on(slipway_host::purge(settings)).unwrap();
    assert_eq!((again.machines, again.volumes), (0, 0));

    // Settings with other paths and the same cgroup do not end the machines of a daemon that runs.
    host.start_daemon();
    let machine = host.machine(&mut host.client(), 1).machine;
    let pid = host.pid(&machine);
    let elsewhere = host.dir.join("elsewhere");
    for there in [false, true] {
        let mut settings = host.settings.clone();
        for path in ["state_dir", "run_dir", "pool_dir"] {
            settings[path] = elsewhere.join(path).to_str().unwrap().into();
        }
        if there {
            fs::create_dir_all(elsewhere.join("state_dir")).unwrap();
            settings["pool_dir"] = host.settings["pool_dir"].clone();
        }
        let settings = serde_json::from_value(settings).unwrap();
        let refused = runtime.block_on(slipway_host::purge(settings)).unwrap_err();
        assert!(
            matches!(refused, slipway_host::HostRunError::CgroupTaken { .. }),
            "{refused:?}"
        );
    }
    assert!(fs::read_link(format!("/proc/{pid}/exe")).is_ok(), "it runs");
    assert_eq!(host.client().volumes().len(), 1);
}

/// The directory that all machines of a host are below, wherever it is there.
fn cgroup_parents(host: &Host) -> Vec<PathBuf> {
    let parent = host.settings["cgroup_parent"].as_str().unwrap();
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap();
    let tops = hierarchies.map(|entry| entry.unwrap().path());
    let found = tops.chain([PathBuf::from("/sys/fs/cgroup")]);
    found
        .map(|top| top.join(parent))
        .filter(|path| path.exists())
        .collect()
}
