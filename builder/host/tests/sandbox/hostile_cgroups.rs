//! A machine's root does what it likes with its cgroups, and can still be killed and cleared away.

use crate::harness::{Guest, Host, WAIT};
use slipway_core::id::MachineId;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// All of the machine in a cgroup of its own making, which it freezes.
const FREEZE: &str = "F=/sys/fs/cgroup/freezer; [ -d $F ] || F=/sys/fs/cgroup
mkdir $F/ice && echo 1 > $F/ice/cgroup.procs || exit 1
[ -e $F/ice/freezer.state ] || { echo 1 > $F/ice/cgroup.freeze; exit; }
echo FROZEN > $F/ice/freezer.state
while ! grep -q FROZEN $F/ice/freezer.state; do :; done";

/// Cgroups whose path is longer than the kernel takes, where it does not bound their depth, and many beside each other.
const NEST: &str = r#"perl -e '
for my $top ("/sys/fs/cgroup", glob "/sys/fs/cgroup/*") {
    next unless -e "$top/cgroup.procs";
    chdir $top or die;
    for (1 .. 200) { mkdir "beside$_" or die $! }
    my $depth = 0;
    while ($depth < 300) { mkdir "d" x 100 or last; chdir "d" x 100 or die; $depth++ }
    die "only $depth deep" if $depth < 30;
    print "$depth\n";
}'"#;

fn inside(host: &Host, machine: &MachineId, script: &str) -> String {
    let output = host.inside(machine, script);
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_machine_is_killed_and_cleared_away_whatever_it_did_with_its_cgroups() {
    let Some(mut host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let frozen = host.machine(&mut client, 1).machine;
    let nested = host.machine(&mut client, 2).machine;
    inside(&host, &frozen, FREEZE);
    inside(&host, &nested, NEST);
    client.stop(&frozen, 1, Duration::ZERO).unwrap();
    client.stop(&nested, 1, WAIT).unwrap();
    assert!(!client.wait_exit(&frozen, WAIT), "killed is not clean");
    assert!(client.wait_exit(&nested, WAIT));
    assert_eq!(host.leftovers(), Vec::<String>::new());

    // One that froze both, while no daemon is there; and all of it is gone by a purge.
    let both = host.machine(&mut client, 3).machine;
    inside(&host, &both, NEST);
    inside(&host, &both, FREEZE);
    host.kill_daemon();
    let settings = serde_json::from_value(host.settings.clone()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let purged = runtime.block_on(slipway_host::purge(settings)).unwrap();
    // Those that have ended are remembered until they are removed.
    assert_eq!(purged.machines, 3);
}

/// The machine's own directory in each hierarchy.
fn cgroups(host: &Host, machine: &MachineId) -> Vec<PathBuf> {
    let below = format!(
        "{}/{machine}",
        host.settings["cgroup_parent"].as_str().unwrap()
    );
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).unwrap().flatten();
    let tops = hierarchies
        .map(|entry| entry.path())
        .chain([root.to_owned()]);
    tops.map(|top| top.join(&below))
        .filter(|dir| dir.is_dir())
        .collect()
}

#[test]
fn the_cgroups_that_a_machine_makes_are_bounded() {
    let Some(host) = Host::start(Guest::Idle) else {
        return;
    };
    let mut client = host.client();
    let machine = host.machine(&mut client, 1).machine;
    let dirs = cgroups(&host, &machine);
    assert!(!dirs.is_empty());
    let mut found = 0;
    for (file, value) in [
        (
            "cgroup.max.depth",
            u64::from(slipway_host::limits::CGROUP_DEPTH_MAX),
        ),
        (
            "cgroup.max.descendants",
            u64::from(slipway_host::limits::CGROUPS_MAX),
        ),
    ] {
        for path in dirs
            .iter()
            .map(|dir| dir.join(file))
            .filter(|path| path.exists())
        {
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text.trim().parse(), Ok(value), "{}", path.display());
            found += 1;
        }
    }
    assert!(found > 0, "this kernel has none of these bounds");
}
