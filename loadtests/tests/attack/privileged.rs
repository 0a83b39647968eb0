//! A privileged container of a sandbox, with all that Docker can give it and all namespaces of its machine: it reaches nothing of
//! the host.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::{DockerClient, Testbed};
use std::fmt::Write as _;

/// What must not work, each a script that ends with 0 if it did. `/m` is the machine's root.
const ATTACKS: [&str; 39] = [
    // Devices: every disk of the host by its number, memory, a terminal.
    "tail -n +3 /proc/partitions | while read -r major minor rest; do rm -f /d; mknod /d b $major $minor && head -c1 /d && touch /reached; done; [ -e /reached ]",
    "rm -f /d; mknod /d b 7 0 && head -c1 /d",
    "rm -f /d; mknod /d c 1 1",
    "rm -f /d; mknod /d c 10 232 && : <>/d",
    "rm -f /m/var/lib/docker/d; mknod /m/var/lib/docker/d b 7 0 && head -c1 /m/var/lib/docker/d",
    "mount -t devtmpfs none /mnt && ls /mnt | grep -q loop",
    // Settings of the host's kernel.
    "echo h > /proc/sysrq-trigger",
    "echo '|/tmp/x' > /proc/sys/kernel/core_pattern",
    "echo /tmp/x > /proc/sys/kernel/modprobe",
    "echo 1 > /proc/sys/kernel/panic",
    "echo 1 > /proc/sys/vm/drop_caches",
    "echo 0 > /proc/sys/kernel/randomize_va_space",
    "echo 0 > /proc/sys/fs/protected_symlinks",
    "echo 1 > /sys/kernel/mm/ksm/run",
    "echo never > /sys/kernel/mm/transparent_hugepage/enabled",
    "echo mem > /sys/power/state",
    "for f in /sys/block/*/queue/read_ahead_kb /sys/block/*/uevent /sys/devices/system/cpu/cpu*/online; do echo 1 > $f && exit 0; done; exit 1",
    "find /sys -xdev -name 'uevent_helper' -exec sh -c 'echo /tmp/x > {}' \\; -print | grep -q . && [ \"$(cat /sys/kernel/uevent_helper)\" = /tmp/x ]",
    "find /sys/module -path '*/parameters/*' | while read -r f; do (: > $f) 2>/dev/null && touch /reached; done; [ -e /reached ]",
    // Code in the kernel.
    "perl -e 'exit(syscall(175, \"x\", 1, \"\") == 0 ? 0 : 1)'; [ $? = 0 ] || perl -e '$! = 0; syscall(313, 0, \"\", 0); exit($! == 1 ? 1 : 0)'",
    "perl -e '$! = 0; syscall(321, 5, 0, 0); exit($! == 1 ? 1 : 0)'",
    "perl -e '$! = 0; syscall(425, 8, 0); exit($! == 1 ? 1 : 0)'",
    "perl -e '$! = 0; syscall(298, 0, 0, -1, -1, 0); exit($! == 1 ? 1 : 0)'",
    "perl -e '$! = 0; syscall(447, 0); exit($! == 1 ? 1 : 0)'",
    // The old ways out: by file handle, by the agent of a cgroup, by debugfs and its kin.
    "perl -e '$! = 0; syscall(304, 3, 0, 0); exit($! == 1 ? 1 : 0)'",
    "for kind in memory cpu pids freezer devices; do mkdir -p /cg/$kind; mount -t cgroup -o $kind none /cg/$kind && echo /tmp/x > /cg/$kind/release_agent && exit 0; done; exit 1",
    "for kind in debugfs tracefs securityfs pstore configfs efivarfs; do mount -t $kind none /mnt && exit 0; done; exit 1",
    "mount -t ext4 /dev/loop0 /mnt || mount -t ext4 /dev/vda /mnt",
    // Its own limits, and what it would be among the host's processes.
    "for f in $(find /m/sys/fs/cgroup -maxdepth 2 -name memory.limit_in_bytes -o -maxdepth 2 -name memory.max -o -maxdepth 2 -name pids.max -o -maxdepth 2 -name cpu.cfs_quota_us | grep -v '/docker/'); do case $f in */slipway-guest/*|*/docker*) continue;; esac; echo -1 > $f && exit 0; echo max > $f && exit 0; done; exit 1",
    "ulimit -Hc unlimited",
    "ulimit -Hn 4000000",
    "nice -n -5 true 2>&1 | grep -q . && exit 1; [ \"$(nice -n -5 nice)\" -lt 0 ]",
    "chrt --fifo 1 true",
    "echo -500 > /proc/self/oom_score_adj",
    "date -s 2001-01-01",
    "dmesg",
    // Other processes and networks.
    "[ \"$(basename \"$(readlink /proc/1/exe)\")\" != slipway-guest ]",
    "for kind in user pid net mnt ipc uts cgroup; do for p in /proc/[0-9]*; do readlink $p/ns/$kind; done; done | grep -qxF \"$OF_HOST\"",
    "nsenter --target 1 --user true",
];

/// What must work all the same, so that the container is known to have what it was given.
const WORKS: [&str; 3] = [
    "mkdir -p /t && mount -t tmpfs none /t && umount /t",
    "[ -e /m/sbin/slipway-guest ] && chroot /m true",
    "ip link add probe type dummy && ip link delete probe || unshare --net true",
];

#[test]
fn a_privileged_container_reaches_nothing_of_the_host() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["debian"])?;
    let docker = DockerClient::of_farm(&bed)?;
    let before = settings()?;
    let mut script = String::new();
    for (number, attack) in ATTACKS.iter().enumerate() {
        writeln!(
            script,
            "rm -f /reached; ( {attack} ) >/dev/null 2>&1 && echo REACHED {number}"
        )?;
    }
    for (number, work) in WORKS.iter().enumerate() {
        writeln!(script, "( {work} ) >/dev/null 2>&1 || echo FAILED {number}")?;
    }
    script += "echo all done\n";
    let said = docker.docker_ok(&[
        "run",
        "--rm",
        "--privileged",
        "--pid=host",
        "--net=host",
        "--ipc=host",
        "--cgroupns=host",
        "-v=/:/m:rshared",
        "--ulimit=memlock=-1",
        &format!("--env=OF_HOST={}", namespaces()?),
        "debian:trixie",
        "bash",
        "-c",
        &script,
    ])?;
    for line in said.lines() {
        let number = |kind: &str| {
            line.strip_prefix(kind)
                .and_then(|n| n.trim().parse::<usize>().ok())
        };
        if let Some(attack) = number("REACHED").and_then(|n| ATTACKS.get(n)) {
            anyhow::bail!("it reached the host: {attack}\n{said}");
        }
        if let Some(work) = number("FAILED").and_then(|n| WORKS.get(n)) {
            anyhow::bail!("it has not what it was given: {work}");
        }
    }
    ensure!(said.ends_with("all done\n"), "{said}");
    ensure!(settings()? == before, "{before:?}");
    Ok(())
}

/// The host's namespaces, one a line.
fn namespaces() -> Result<String> {
    let mut lines = Vec::new();
    for kind in ["user", "pid", "net", "mnt", "ipc", "uts", "cgroup"] {
        let own = std::fs::read_link(format!("/proc/self/ns/{kind}"))?;
        lines.push(own.display().to_string());
    }
    Ok(lines.join("\n"))
}

/// Settings of the host that the attacks would have changed.
fn settings() -> Result<Vec<String>> {
    [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/panic",
        "/proc/sys/kernel/randomize_va_space",
        "/proc/sys/fs/protected_symlinks",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ]
    .into_iter()
    .filter(|path| std::path::Path::new(path).exists())
    .map(|path| std::fs::read_to_string(path).context(path))
    .collect()
}
