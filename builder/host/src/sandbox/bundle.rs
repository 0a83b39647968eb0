//! The OCI bundle's `config.json`, from a machine's spec and its slot. Pure: same input, same document.
//! Format: OCI runtime specification 1.0.2.
//!
//! Must not know: how the root file system or the network is made.

use super::policy;
use crate::limits::{LOCKED_BYTES_SOFT, MACHINE_IDS, OPEN_FILES_SOFT};
use serde_json::{Value, json};
use slipway_core::host_api::MachineSpec;
use std::path::Path;

/// Descriptors from 3 on: docker listener, guest listener, end record.
pub(super) const PASSED_FDS: u32 = 3;
/// The program that is PID 1.
pub(super) const GUEST: &str = "/sbin/slipway-guest";
/// All there are but time, which nothing here needs.
const NAMESPACES: [&str; 7] = ["user", "pid", "mount", "network", "ipc", "uts", "cgroup"];
const CPU_PERIOD_US: u64 = 100_000;
/// Exactly one byte: the kernel hands no core dump to a program of the host then; with none it would (core(5)).
const CORE_BYTES: u64 = 1;
/// Room for sockets, pid files and locks in `/run`.
const RUN_BYTES: u64 = 64 << 20;

/// What a bundle is made from.
#[derive(Debug)]
pub(super) struct Bundle<'a> {
    /// The machine.
    pub(super) spec: &'a MachineSpec,
    /// Directory that the root file system is mounted at.
    pub(super) root: &'a Path,
    /// First host id of its range.
    pub(super) id_base: u32,
    /// Its cgroup, from the top of each hierarchy.
    pub(super) cgroup: &'a str,
    /// Whether swap can be limited here.
    pub(super) swap_limit: bool,
    /// Whether the kernel has IPv6 at all.
    pub(super) ipv6: bool,
    /// Most descriptors a process may have.
    pub(super) nofile: u64,
    /// Most bytes that it may lock in memory.
    pub(super) memlock: u64,
}

/// The document.
pub(super) fn config(bundle: &Bundle<'_>) -> Result<Value, policy::InvalidSeccompFile> {
    let spec = bundle.spec;
    let ids = json!([{ "containerID": 0, "hostID": bundle.id_base, "size": MACHINE_IDS }]);
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": spec.machine.as_str().replace('_', "-"),
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": [GUEST],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "container=slipway"],
            "cwd": "/",
            "capabilities": policy::capabilities(),
            "rlimits": [
                { "type": "RLIMIT_NOFILE", "soft": bundle.nofile.min(OPEN_FILES_SOFT), "hard": bundle.nofile },
                { "type": "RLIMIT_MEMLOCK", "soft": bundle.memlock.min(LOCKED_BYTES_SOFT), "hard": bundle.memlock },
                { "type": "RLIMIT_CORE", "soft": CORE_BYTES, "hard": CORE_BYTES },
            ],
            // Builds use sudo and the like; what a set-user-id program can become is bounded by the user namespace.
            "noNewPrivileges": false,
            // A daemon that is spared when memory runs out does not pass that on.
            "oomScoreAdj": 0,
        },
        "root": { "path": bundle.root, "readonly": false },
        "mounts": mounts(),
        "linux": {
            "uidMappings": ids,
            "gidMappings": ids,
            "namespaces": NAMESPACES.map(|kind| json!({ "type": kind })),
            "cgroupsPath": bundle.cgroup,
            "resources": resources(spec, bundle.swap_limit),
            "seccomp": policy::seccomp()?,
            "maskedPaths": policy::masked_paths(),
            "readonlyPaths": policy::read_only_paths(),
            "sysctl": sysctls(bundle.ipv6),
        },
    }))
}

/// No IPv6 inside; the host forwards none either.
fn sysctls(ipv6: bool) -> Value {
    if ipv6 {
        json!({
            "net.ipv6.conf.all.disable_ipv6": "1",
            "net.ipv6.conf.default.disable_ipv6": "1",
        })
    } else {
        json!({})
    }
}

fn mounts() -> Value {
    let mount = |kind: &str, at: &str, options: &[&str]| json!({ "type": kind, "source": kind, "destination": at, "options": options });
    let run_size = format!("size={RUN_BYTES}");
    json!([
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "tmpfs",
            "/dev",
            &["nosuid", "strictatime", "mode=755", "size=65536k"]
        ),
        mount(
            "devpts",
            "/dev/pts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5"
            ]
        ),
        mount(
            "tmpfs",
            "/dev/shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
        ),
        mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        mount("sysfs", "/sys", &["nosuid", "noexec", "nodev"]),
        // Writable: dockerd makes cgroups for its containers below the machine's own, which is all it sees.
        mount(
            "cgroup",
            "/sys/fs/cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "rw"]
        ),
        mount("tmpfs", "/run", &["nosuid", "nodev", "mode=755", &run_size]),
    ])
}

fn resources(spec: &MachineSpec, swap_limit: bool) -> Value {
    let mut memory = json!({ "limit": spec.memory_bytes });
    if swap_limit {
        // Memory and swap together (config-linux.md, "swap"): equal to the limit means no swap.
        memory["swap"] = json!(spec.memory_bytes);
    }
    json!({
        "devices": [{ "allow": false, "access": "rwm" }],
        "memory": memory,
        "cpu": { "period": CPU_PERIOD_US, "quota": u64::from(spec.cpu_millis) * CPU_PERIOD_US / 1000 },
        "pids": { "limit": spec.pids_max },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_core::generation::Generation;
    use slipway_core::id::{MachineId, VolumeId};

    #[test]
    fn is_the_document_on_file() {
        let spec = MachineSpec {
            machine: MachineId::from_entropy([1; 10]),
            generation: Generation(7),
            volume: VolumeId::from_entropy([2; 10]),
            cpu_millis: 1500,
            memory_bytes: 2 << 30,
            pids_max: 4096,
            isolation: slipway_core::isolation::Isolation::Auto,
        };
        let mut config = config(&Bundle {
            spec: &spec,
            root: Path::new("/run/slipway/machines/m/root"),
            id_base: 1 << 30,
            cgroup: "/slipway/m",
            swap_limit: true,
            ipv6: true,
            nofile: 65536,
            memlock: u64::MAX,
        })
        .unwrap();
        // The list of system calls has its own file and test.
        config["linux"]["seccomp"]["syscalls"] = json!("(list)");
        config["linux"]["seccomp"]["architectures"] = json!("(list)");
        let text = serde_json::to_string_pretty(&config).unwrap() + "\n";
        crate::snapshot::check("sandbox/bundle.snapshot.json", &text);
    }
}
