//! What a machine's root, with all its rights, can do to the host and to others: nothing. And what it can use up.

use crate::harness::{Guest, Host};
use std::time::{Duration, Instant};

fn refused(host: &Host, machine: &slipway_core::id::MachineId, script: &str) {
    let output = host.inside(machine, script);
    assert!(
        !output.status.success(),
        "must not work: {script}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn root_inside_has_no_power_outside() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let (one, two) = (
        host.machine(&mut client, 1).machine,
        host.machine(&mut client, 2).machine,
    );
    for script in [
        // Devices, kernel memory, modules, clocks, kernel settings.
        "mknod /tmp/sda b 8 0 && head -c1 /tmp/sda",
        "mknod /tmp/kmem c 1 1",
        "head -c1 /proc/kcore | grep -q .",
        "echo h > /proc/sysrq-trigger",
        "echo 1 > /proc/sys/kernel/panic",
        "echo core > /proc/sys/kernel/core_pattern",
        "echo 0 > /proc/sys/vm/overcommit_memory",
        "date -s 2001-01-01",
        "dmesg",
        "ls /dev/kvm /dev/vda /dev/loop0 /dev/mem /dev/net/tun 2>/dev/null | grep -q .",
        // Its own limits.
        "for f in /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; do [ -e $f ] && echo 9999999999 > $f && exit 0; done; exit 1",
        "for f in /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max; do [ -e $f ] && echo max > $f && exit 0; done; exit 1",
        // The raw file systems beneath it.
        "mount -t ext4 /dev/loop0 /mnt",
        "mount -t debugfs none /mnt",
        "mount -t securityfs none /mnt",
        // System calls that are refused whatever the rights.
        "perl -e 'exit(syscall(321, 5, 0, 0) >= 0 ? 0 : 1)'",
        "perl -e 'exit(syscall(425, 8, 0) >= 0 ? 0 : 1)'",
        "perl -e 'exit(syscall(246, 0, 0, 0, 0) >= 0 ? 0 : 1)'",
        "perl -MSocket -e 'socket(S, 40, SOCK_STREAM, 0) or exit 1'",
        "perl -MSocket -e 'socket(S, 38, SOCK_SEQPACKET, 0) or exit 1'",
    ] {
        refused(&host, &one, script);
    }
    // What it needs works.
    for script in [
        "mkdir /mnt/t && mount -t tmpfs none /mnt/t && umount /mnt/t",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "unshare --mount --pid --fork --mount-proc true",
        "mkdir -p /var/lib/docker/o/l /var/lib/docker/o/u /var/lib/docker/o/w /var/lib/docker/o/m && mount -t overlay -o lowerdir=/var/lib/docker/o/l,upperdir=/var/lib/docker/o/u,workdir=/var/lib/docker/o/w,userxattr none /var/lib/docker/o/m",
        "cp /usr/bin/id /tmp/id && chmod 4755 /tmp/id && perl -e '$( = 9; $) = 9; $< = 9; $> = 9; exec \"/tmp/id\", \"-u\"' | grep -qx 0",
        "cp /usr/bin/id /var/lib/docker/id && chmod 4755 /var/lib/docker/id && chmod 755 /var/lib/docker && perl -e '$( = 9; $) = 9; $< = 9; $> = 9; exec \"/var/lib/docker/id\", \"-u\"' | grep -qx 0",
        "for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do [ -e $d/cgroup.procs ] && mkdir $d/below && rmdir $d/below || [ ! -e $d/cgroup.procs ] || exit 1; done",
    ] {
        let output = host.inside(&one, script);
        assert!(output.status.success(), "must work: {script}: {output:?}");
    }
    // It sees its own processes, its own name, its own console, and no other machine.
    let seen = host.inside(&one, "ls /proc | grep -c '^[0-9]*$'; cat /proc/self/uid_map; ls -d /proc/1/root/tmp; cat /proc/self/mountinfo");
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(!seen.contains(two.as_str()), "{seen}");
    assert!(
        seen.lines().next().unwrap().parse::<u32>().unwrap() < 10,
        "{seen}"
    );
    // Its ids on the host are its own alone.
    let id = |machine| {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", host.pid(machine))).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("Uid:"))
            .unwrap()
            .to_owned();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u32>()
            .unwrap()
    };
    assert_eq!(id(&one).abs_diff(id(&two)), 65536);
    assert!(id(&one) > 65536);
}

#[test]
fn processes_memory_and_space_are_bounded() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let mut spec = host.spec(1, 1);
    (spec.pids_max, spec.memory_bytes) = (64, 256 << 20);
    client.ensure_volume(&spec.volume, 1 << 30);
    client.ensure(&spec).unwrap();
    // As many as it likes, each for as long as the test looks.
    let forked = host.inside(&spec.machine, "for i in $(seq 200); do sleep 20 & done 2>&1 | grep -c 'Resource temporarily unavailable'; ls /proc | grep -c '^[0-9]*$'");
    let text = String::from_utf8_lossy(&[forked.stdout, forked.stderr].concat()).into_owned();
    assert!(
        text.contains("Resource temporarily unavailable")
            || text.starts_with(|c: char| ('1'..='9').contains(&c)),
        "{text}"
    );
    crate::harness::wait_for("processes to end", || {
        host.inside(&spec.machine, "true")
            .status
            .success()
            .then_some(())
    });
    let eaten = host.inside(
        &spec.machine,
        "perl -e '$x = \"a\" x (700 << 20); print length $x'",
    );
    assert!(
        !eaten.status.success(),
        "more memory than its limit: {eaten:?}"
    );
    client.stop(&spec.machine, 1, Duration::ZERO).unwrap();
    client.wait_exit(&spec.machine, crate::harness::WAIT);

    let mut spec = host.spec(2, 1);
    client.ensure_volume(&spec.volume, 1 << 30);
    spec.memory_bytes = 4 << 30;
    client.ensure(&spec).unwrap();
    let filled = host.inside(
        &spec.machine,
        "head -c 2000m /dev/zero > /fill; s=$?; rm /fill; exit $s",
    );
    assert!(
        !filled.status.success(),
        "more outside its volume than the scratch: {filled:?}"
    );
    let filled = host.inside(
        &spec.machine,
        "head -c 2000m /dev/zero > /var/lib/docker/fill; s=$?; rm /var/lib/docker/fill; exit $s",
    );
    assert!(
        !filled.status.success(),
        "more on its volume than its size: {filled:?}"
    );
    let filled = host.inside(&spec.machine, "head -c 5m /dev/zero > /proc/1/fd/1");
    assert!(
        !filled.status.success(),
        "more on its console than its bound: {filled:?}"
    );
    client.stop(&spec.machine, 1, crate::harness::WAIT).unwrap();
    assert!(
        client.wait_exit(&spec.machine, crate::harness::WAIT),
        "a full console does not make a clean end look like a crash"
    );
    assert_eq!(host.leftovers(), Vec::<String>::new());
    let kept = host
        .dir
        .join("state/machines")
        .join(spec.machine.as_str())
        .join("console.log");
    assert!(std::fs::metadata(kept).unwrap().len() <= 64 << 10);
}

/// On cgroup v2 (loadtests/tests/debian13_host.rs has such a kernel). On v1 it is said that there is no cap.
#[test]
fn a_machine_takes_no_more_of_the_disk_than_its_cap() {
    const MIB: u64 = 8;
    let change = |settings: &mut serde_json::Value, _: u8| {
        settings["machine_disk_rate"] = serde_json::json!(format!("{MIB}MiB"));
    };
    let Some(host) = Host::start_with(Guest::Idle, change) else {
        return;
    };
    if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        assert!(host.log().contains("sandboxes have no cap of the disk"));
        return;
    }
    let machine = host.machine(&mut host.client(), 1).machine;
    let cgroup = format!("/sys/fs/cgroup/slipway-test-{}/{machine}", host.place);
    let cap = std::fs::read_to_string(format!("{cgroup}/io.max")).unwrap();
    let bytes = MIB << 20;
    assert!(cap.contains(&format!("rbps={bytes} wbps={bytes}")), "{cap}");
    // Below a cgroup of its own, as a build step is.
    let own = "mkdir -p /sys/fs/cgroup/step && echo $$ >/sys/fs/cgroup/step/cgroup.procs";
    for copy in [
        "dd if=/dev/zero of=/var/lib/docker/x bs=1M count=24 oflag=direct",
        "dd if=/var/lib/docker/x of=/dev/null bs=1M count=24 iflag=direct",
    ] {
        let began = Instant::now();
        let output = host.inside(&machine, &format!("{own} && {copy}"));
        let took = began.elapsed();
        assert!(output.status.success(), "{output:?}");
        // A throttle lets a little pass before it counts.
        assert!(took > Duration::from_secs(24 / MIB / 2), "{copy}: {took:?}");
    }
    let raised = host.inside(&machine, "echo '7:0 rbps=max' >/sys/fs/cgroup/io.max");
    assert!(!raised.status.success(), "{raised:?}");
}
