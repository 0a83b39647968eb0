//! What a place has of machines, and how it is cleared.

use crate::harness::{in_namespace, lock_place, place_dir, wait_for};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Clears a place whose test was killed.
pub(crate) fn clear_killed(place: u8) {
    let lock = wait_for("the killed test's place", || lock_place(place));
    clear_dead_run(&place_dir(place), place);
    drop(lock);
}

/// Ends and removes what a test that was killed has left at a place; we have its lock, so nobody uses it. Its daemon dies with it.
pub(crate) fn clear_dead_run(dir: &Path, place: u8) {
    if let Ok(text) = fs::read_to_string(dir.join("settings.json")) {
        println!("clearing what a killed run left in {}", dir.display());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let purged = wait_for("the killed run's daemon to be gone", || {
            let settings = serde_json::from_str(&text).ok()?;
            match runtime.block_on(slipway_host::purge(settings)) {
                Err(
                    slipway_host::HostRunError::AlreadyRunning { .. }
                    | slipway_host::HostRunError::CgroupTaken { .. },
                ) => None,
                purged => Some(purged),
            }
        });
        if let Err(error) = purged {
            println!("not all of it could be purged: {error:?}");
        }
    }
    clear(dir, place);
}

/// Removes what is left once nothing runs any more.
pub(crate) fn clear(dir: &Path, place: u8) {
    remove_namespaces(place);
    let table = format!("slipway-test-{place}");
    let _ = Command::new("nft")
        .args(["delete", "table", "inet", &table])
        .output();
    let _ = Command::new("ip")
        .args(["link", "delete", &format!("slt{place}")])
        .output();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = format!("{}/", dir.display());
    let targets: Vec<_> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    for target in targets
        .into_iter()
        .rev()
        .filter(|target| target.starts_with(&own))
    {
        let _ = nix::mount::umount(target);
    }
    // Those of a run that was killed are nobody's, also when their files are gone.
    for (device, _) in loops(dir) {
        let _ = Command::new("losetup").args(["-d", &device]).output();
    }
    for top in fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten()
    {
        let _ = fs::remove_dir(top.path().join(&table));
    }
    let _ = fs::remove_dir_all(dir);
}

/// Loop devices of the volumes below a directory: each with its file.
fn loops(dir: &Path) -> Vec<(String, String)> {
    let listed = Command::new("losetup")
        .args(["-l", "-n", "--raw", "-O", "NAME,BACK-FILE"])
        .output()
        .unwrap();
    let pool = dir.join("pool").display().to_string();
    String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, file)| file.starts_with(&pool))
        .map(|(device, file)| (device.to_owned(), file.to_owned()))
        .collect()
}

/// Removes the network that a test made for its daemon alone.
pub(crate) fn remove_namespaces(place: u8) {
    for name in ["host", "world", "managed"] {
        let _ = Command::new("ip")
            .args(["netns", "delete", &format!("slt{place}-{name}")])
            .output();
    }
}

/// As [`Host::leftovers`], of any place.
pub(crate) fn leftovers(dir: &Path, place: u8) -> Vec<String> {
    let mut found = Vec::new();
    let run = dir.join("run/machines");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = format!("{}/", run.display());
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&below))
            .map(|line| format!("mount {line}")),
    );
    let pool = mounts
        .lines()
        .filter(|line| line.contains(&format!("{}/pool", dir.display())));
    found.extend(pool.map(|line| format!("volume {line}")));
    let list = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path().display().to_string())
            .collect::<Vec<_>>()
    };
    found.extend(list(&run));
    found.extend(list(&dir.join("run/runc")));
    let router = dir.join("run/router");
    if router.exists() {
        found.extend(in_namespace(&router, || {
            let links = nix::net::if_::if_nameindex().unwrap();
            let names = links
                .iter()
                .map(|link| link.name().to_string_lossy().into_owned());
            let ours = format!("slt{place}-");
            names
                .filter(|name| name.starts_with(&ours))
                .collect::<Vec<_>>()
        }));
    }
    for top in list(Path::new("/sys/fs/cgroup")) {
        let parent = Path::new(&top).join(format!("slipway-test-{place}"));
        found.extend(
            list(&parent)
                .into_iter()
                .filter(|path| path.contains("mch_")),
        );
    }
    found.extend(loops(dir).into_iter().map(|(_, file)| file));
    found
}
