//! What a machine's processes may do: capabilities, system calls, masked paths. Data with a reason each; pure.
//!
//! All capabilities are those of the machine's own user namespace: they have no power over anything the host owns.

use serde::Deserialize;
use serde_json::{Value, json};

/// Capabilities and why the machine has each.
pub(super) const CAPABILITIES: [(&str, &str); 22] = [
    (
        "CAP_AUDIT_WRITE",
        "in Docker's default set, which dockerd must have to pass it on",
    ),
    (
        "CAP_CHOWN",
        "image layers are unpacked with their owners; in Docker's default set",
    ),
    (
        "CAP_DAC_OVERRIDE",
        "root in a build writes everywhere; in Docker's default set",
    ),
    (
        "CAP_DAC_READ_SEARCH",
        "dockerd and the push read layers whatever their modes",
    ),
    (
        "CAP_FOWNER",
        "image layers are unpacked with their modes; in Docker's default set",
    ),
    (
        "CAP_FSETID",
        "set-id bits of image layers survive; in Docker's default set",
    ),
    (
        "CAP_IPC_LOCK",
        "containers ask for it (Vault, Elasticsearch); the kernel lets it lock System V memory of the machine, and no more",
    ),
    (
        "CAP_IPC_OWNER",
        "containers ask for it; System V objects are the machine's own",
    ),
    ("CAP_KILL", "in Docker's default set"),
    (
        "CAP_MKNOD",
        "overlay whiteouts (real devices stay impossible); in Docker's default set",
    ),
    (
        "CAP_NET_ADMIN",
        "dockerd makes its bridge, links and NAT in the machine's own network",
    ),
    ("CAP_NET_BIND_SERVICE", "in Docker's default set"),
    ("CAP_NET_RAW", "in Docker's default set"),
    (
        "CAP_SETFCAP",
        "image layers carry file capabilities; in Docker's default set",
    ),
    (
        "CAP_SETGID",
        "containers change user; in Docker's default set",
    ),
    (
        "CAP_SETPCAP",
        "runc drops what a container must not have; in Docker's default set",
    ),
    (
        "CAP_SETUID",
        "containers change user; in Docker's default set",
    ),
    ("CAP_SYS_ADMIN", "mounts and namespaces of containers"),
    (
        "CAP_SYS_NICE",
        "containers ask for it (MySQL); it reaches other users' processes of the machine, and raises no priority",
    ),
    (
        "CAP_SYS_RESOURCE",
        "containers ask for it; it raises no limit that the host set, as the kernel wants it of the host's root for that",
    ),
    (
        "CAP_SYS_CHROOT",
        "dockerd unpacks layers in a chroot; in Docker's default set",
    ),
    (
        "CAP_SYS_PTRACE",
        "runc exec opens the namespaces of a container that runs as another user",
    ),
];

/// Hidden although the user namespace closes them already: less for a build to trip over. It is no wall, for the machine's root
/// can unmount what hides them.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];
/// Not `/proc/sys`: dockerd sets `net.ipv4.*` of its own network namespace, and everything else there belongs to
/// the host's root, which the machine's root is not.
/// `/sys` is read-only as a mount alone: where the file system itself is, the kernel lets no container inside have a writable
/// one of its own, as privileged ones do. What belongs to the host's root in it is closed to the machine's either way.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sysrq-trigger",
    "/sys",
];

/// Families of sockets that stay open, and why. Every other one has code in the kernel that a build has no use for, and that
/// `socket(2)` even loads.
const FAMILIES: [(u32, &str); 5] = [
    (1, "AF_UNIX: programs of one machine"),
    (2, "AF_INET: the network"),
    (10, "AF_INET6: programs that look whether there is IPv6"),
    (
        16,
        "AF_NETLINK: dockerd and runc set up the machine's own links and rules",
    ),
    (
        17,
        "AF_PACKET: ping, DHCP clients and packet captures in the machine's own network",
    ),
];
/// `AF_PACKET` options (`linux/if_packet.h`) that stay open: those that take no memory of the kernel. Not `PACKET_RX_RING`,
/// `PACKET_TX_RING`: a ring is gigabytes for the asking, which no cgroup counts. Not `PACKET_FANOUT` and its kin.
const PACKET_OPTIONS: [u32; 16] = [1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 14, 15, 17, 19, 20, 23];
/// `SOL_PACKET`.
const PACKET_LEVEL: u32 = 263;
/// The other levels of `setsockopt(2)` for sockets of [`FAMILIES`], and what each is for.
const LEVELS: [(u32, &str); 11] = [
    (0, "SOL_IP, with iptables and arptables"),
    (1, "SOL_SOCKET"),
    (6, "SOL_TCP"),
    (17, "SOL_UDP"),
    (41, "SOL_IPV6, with ip6tables"),
    (58, "SOL_ICMPV6"),
    (132, "SOL_SCTP"),
    (136, "SOL_UDPLITE"),
    (255, "SOL_RAW"),
    (270, "SOL_NETLINK"),
    (284, "SOL_MPTCP"),
];
/// Operations of `keyctl(2)` that stay open. None adds a key or keeps a keyring alive that no process has, so that there are no
/// more of them than processes: the kernel counts keys for each user id, of which a machine has 65,536.
const KEY_OPERATIONS: [(u32, &str); 3] = [
    (
        1,
        "KEYCTL_JOIN_SESSION_KEYRING: runc gives each container a session keyring of its own,",
    ),
    (5, "KEYCTL_SETPERM: and lets its owner search it,"),
    (6, "KEYCTL_DESCRIBE: after it has looked who may"),
];
/// The kernel takes these arguments as numbers of 32 bits, whatever the others hold.
const LOW_BITS: u64 = 0xffff_ffff;
/// `personality(2)` values in use: queries, Linux, no address randomisation, 32 bit, and their sums.
const PERSONALITIES: [u64; 6] = [0, 0x8, 0x0004_0000, 0x2_0000, 0x2_0008, 0xffff_ffff];

#[derive(Debug, Deserialize)]
struct SeccompFile {
    groups: Vec<Group>,
    refused: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    why: String,
    names: Vec<String>,
}

/// The system calls file does not parse, which a test excludes.
#[derive(Debug, thiserror::Error)]
#[error("read the built-in list of system calls")]
pub(super) struct InvalidSeccompFile(#[from] serde_json::Error);

fn file() -> Result<SeccompFile, InvalidSeccompFile> {
    Ok(serde_json::from_str(include_str!("seccomp.json"))?)
}

/// `linux.seccomp` of the OCI runtime specification: everything that is not listed fails with EPERM.
pub(super) fn seccomp() -> Result<Value, InvalidSeccompFile> {
    let file = file()?;
    tracing::trace!(groups = file.groups.len(), refused = file.refused.len(), first = ?file.refused.first().map(|g| &g.why));
    let names: Vec<String> = file
        .groups
        .into_iter()
        .flat_map(|group| group.names)
        .collect();
    let mut rules = vec![
        json!({ "names": names, "action": "SCMP_ACT_ALLOW" }),
        // 32 bit programs' way to all socket calls by one number. What it is to open lies in memory, where a filter cannot look;
        // and libseccomp opens it by itself with the calls that it stands for. Programs that know the kernel's newer numbers go on
        // with those.
        json!({ "names": ["socketcall"], "action": "SCMP_ACT_ERRNO", "errnoRet": nix::libc::ENOSYS }),
    ];
    // The masked comparison has the mask first (config-linux.md, "seccomp").
    let masked = |index: u32, value: u32| json!({ "index": index, "value": LOW_BITS, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" });
    // Each is a rule of its own, because runc joins conditions on the same argument by "or".
    let families = FAMILIES.map(|(family, _)| (["socket", "socketpair"].as_slice(), family));
    let operations = KEY_OPERATIONS.map(|(operation, _)| (["keyctl"].as_slice(), operation));
    for (names, value) in families.into_iter().chain(operations) {
        rules.push(json!({
            "names": names, "action": "SCMP_ACT_ALLOW",
            "args": [masked(0, value)],
        }));
    }
    for (level, _) in LEVELS {
        rules.push(json!({
            "names": ["setsockopt"], "action": "SCMP_ACT_ALLOW", "args": [masked(1, level)],
        }));
    }
    for option in PACKET_OPTIONS {
        rules.push(json!({
            "names": ["setsockopt"], "action": "SCMP_ACT_ALLOW",
            "args": [masked(1, PACKET_LEVEL), masked(2, option)],
        }));
    }
    for value in PERSONALITIES {
        rules.push(json!({
            "names": ["personality"], "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }],
        }));
    }
    Ok(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": nix::libc::EPERM,
        "architectures": architectures(),
        "syscalls": rules,
    }))
}

/// The computer's own architecture and its 32 bit siblings, which images may hold programs for.
fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    }
}

/// `process.capabilities`: the machine's root has them all; nobody inherits any by accident (no ambient set).
pub(super) fn capabilities() -> Value {
    let names = CAPABILITIES.map(|(name, _)| name);
    json!({ "bounding": names, "effective": names, "permitted": names })
}

/// `linux.maskedPaths`.
pub(super) fn masked_paths() -> Value {
    json!(MASKED)
}

/// `linux.readonlyPaths`.
pub(super) fn read_only_paths() -> Value {
    json!(READ_ONLY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_system_call_is_both_allowed_and_refused_or_listed_twice() {
        let file = file().unwrap();
        let mut seen = BTreeSet::new();
        for group in file.groups.iter().chain(&file.refused) {
            assert!(!group.why.is_empty());
            for name in &group.names {
                assert!(seen.insert(name.clone()), "{name} is listed twice");
            }
        }
        for by_argument in [
            "socket",
            "socketpair",
            "socketcall",
            "setsockopt",
            "keyctl",
            "personality",
        ] {
            assert!(!seen.contains(by_argument), "{by_argument}");
        }
    }

    #[test]
    fn every_capability_has_its_reason_and_none_is_the_hosts() {
        for (name, why) in CAPABILITIES {
            assert!(!why.is_empty(), "{name}");
        }
        for never in [
            "CAP_SYS_MODULE",
            "CAP_SYS_RAWIO",
            "CAP_SYS_BOOT",
            "CAP_SYS_TIME",
            "CAP_BPF",
            "CAP_PERFMON",
            "CAP_SYSLOG",
            "CAP_AUDIT_CONTROL",
            "CAP_MAC_ADMIN",
        ] {
            assert!(
                !CAPABILITIES.iter().any(|(name, _)| *name == never),
                "{never}"
            );
        }
    }
}
