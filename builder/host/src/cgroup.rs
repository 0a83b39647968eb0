//! A machine's cgroup directories, on cgroup v1, v2, and both at once ("hybrid").
//!
//! Must not know: what runs there. A sandbox's limits are written by its runtime, a virtual machine's by [`make`], those of
//! an adopted machine by [`limit`].

mod tree;

use crate::disk::DiskCap;
use crate::limits::{CGROUP_DEPTH_MAX, CGROUPS_MAX, KILL_WAIT_MAX};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ROOT: &str = "/sys/fs/cgroup";
/// Files by which processes are moved on v1. The limits stay the host root's: who may make directories below may
/// not raise them.
const DELEGATED_V1: [&str; 2] = ["cgroup.procs", "tasks"];
/// What the kernel itself says may be given away on v2 (cgroup-v2.rst, "Model of Delegation").
const DELEGATED_V2: [&str; 3] = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];

/// The top directory of each hierarchy that is mounted.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    // Symbolic links (cpu -> cpu,cpuacct) name a hierarchy a second time.
    entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

fn directories(cgroup: &str) -> impl Iterator<Item = PathBuf> {
    let below = cgroup.trim_start_matches('/').to_owned();
    hierarchies()
        .into_iter()
        .map(move |top| top.join(&below))
        .filter(|dir| dir.is_dir())
}

/// What the processes of a cgroup may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CgroupLimits {
    /// Bytes, without any swap.
    pub(crate) memory_bytes: u64,
    /// Processor, in thousandths.
    pub(crate) cpu_millis: u32,
    /// Processes and threads.
    pub(crate) pids: u32,
}

const CPU_PERIOD_US: u64 = 100_000;
const WITH_SWAP_V1: &str = "memory.memsw.limit_in_bytes";
/// Files that are there only where the kernel counts swap, or limits processors at all.
const OPTIONAL: [&str; 4] = [
    WITH_SWAP_V1,
    "memory.swap.max",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
];

/// Makes `cgroup` with its limits. A process that writes `0` to each of the files it gives is in it.
pub(crate) fn make(cgroup: &str, limits: &CgroupLimits) -> io::Result<Vec<File>> {
    let below = cgroup.trim_start_matches('/');
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        let dir = root.join(below);
        hand_down(root, Path::new(below), |dir| fs::create_dir_all(dir))?;
        write_all(&dir, &values_v2(limits))?;
        return Ok(vec![open_procs(&dir)?]);
    }
    let mut procs = Vec::new();
    for (controller, values) in values_v1(limits) {
        if !root.join(controller).is_dir() {
            tracing::warn!(
                controller,
                "this host has no such cgroups, so nothing is limited by them"
            );
            continue;
        }
        let dir = root.join(controller).join(below);
        fs::create_dir_all(&dir)?;
        write_all(&dir, &values)?;
        procs.push(open_procs(&dir)?);
    }
    Ok(procs)
}

/// Writes the limits of `cgroup` anew, wherever it is there. What can be written is.
///
/// # Errors
/// The first that could not.
pub(crate) fn limit(cgroup: &str, limits: &CgroupLimits) -> io::Result<()> {
    let below = cgroup.trim_start_matches('/');
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        let handed = hand_down(root, Path::new(below), |_| Ok(()));
        return write_all(&root.join(below), &values_v2(limits)).and(handed);
    }
    let mut result = Ok(());
    for (controller, values) in values_v1(limits) {
        let dir = root.join(controller).join(below);
        if dir.is_dir() {
            result = result.and(write_all(&dir, &values));
        }
    }
    result
}

type Values = Vec<(&'static str, String)>;

fn quota_us(limits: &CgroupLimits) -> u64 {
    u64::from(limits.cpu_millis) * CPU_PERIOD_US / 1000
}

fn values_v2(limits: &CgroupLimits) -> Values {
    vec![
        ("memory.max", limits.memory_bytes.to_string()),
        ("memory.swap.max", "0".to_owned()),
        ("cpu.max", format!("{} {CPU_PERIOD_US}", quota_us(limits))),
        ("pids.max", limits.pids.to_string()),
    ]
}

/// By controller. A hierarchy without a limit of ours (cpuset takes no process before it is set up) stays out of it.
fn values_v1(limits: &CgroupLimits) -> [(&'static str, Values); 3] {
    let memory = limits.memory_bytes.to_string();
    [
        (
            "memory",
            vec![
                ("memory.limit_in_bytes", memory.clone()),
                (WITH_SWAP_V1, memory),
            ],
        ),
        (
            "cpu",
            vec![
                ("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
                ("cpu.cfs_quota_us", quota_us(limits).to_string()),
            ],
        ),
        ("pids", vec![("pids.max", limits.pids.to_string())]),
    ]
}

/// Writes each value; gives the first failure.
fn write_all(dir: &Path, values: &Values) -> io::Result<()> {
    let mut result = Ok(());
    for (file, value) in values {
        let path = dir.join(file);
        if OPTIONAL.contains(file) && !path.exists() {
            continue;
        }
        if *file == "memory.limit_in_bytes" {
            // Memory alone may never exceed memory with swap: raising both begins with the one, lowering with the other.
            let _lower = fs::write(dir.join(WITH_SWAP_V1), value);
        }
        result = result.and(fs::write(&path, value));
    }
    result
}

/// Hands the controllers on, from the top down to `below` (cgroup-v2.rst, "Top-down Constraint"), which `make` makes.
fn hand_down(root: &Path, below: &Path, make: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut dir = root.to_owned();
    for name in below {
        let handed = dir.join("cgroup.subtree_control");
        fs::write(&handed, "+cpu +memory +pids")?;
        // Not every kernel has it. With it machines have equal shares of a disk, where the kernel shares it out.
        let _ = fs::write(&handed, "+io");
        dir.push(name);
        make(&dir)?;
    }
    Ok(())
}

fn open_procs(dir: &Path) -> io::Result<File> {
    File::options().write(true).open(dir.join("cgroup.procs"))
}

/// Bounds the cgroups that a machine makes of its own below `cgroup`. v1 cannot bound them. (Nor can it bound the buffers of sockets:
/// `memory.kmem.tcp.limit_in_bytes` counts for the processes of that very cgroup, and containers are in others.)
pub(crate) fn bound(cgroup: &str) -> io::Result<()> {
    let values = [
        ("cgroup.max.depth", CGROUP_DEPTH_MAX.to_string()),
        ("cgroup.max.descendants", CGROUPS_MAX.to_string()),
    ];
    let mut result = Ok(());
    for dir in directories(cgroup) {
        for (file, value) in &values {
            let path = dir.join(file);
            if path.exists() {
                result = result.and(fs::write(path, value));
            }
        }
    }
    result
}

/// Caps what the processes of `cgroup`, and of all below it, read from and write to the device of that number. Nothing where the
/// kernel cannot: v1 bounds no cgroup by the one above it.
pub(crate) fn cap_disk(cgroup: &str, device: u64, cap: DiskCap) -> io::Result<()> {
    for dir in directories(cgroup) {
        let file = dir.join("io.max");
        if cap.is_set() && file.exists() {
            fs::write(file, cap.io_max(device))?;
        }
    }
    Ok(())
}

/// Whether [`cap_disk`] can below `parent`.
pub(crate) fn can_cap_disk(parent: &str) -> bool {
    let root = Path::new(ROOT);
    let below = Path::new(parent.trim_start_matches('/'));
    root.join("cgroup.controllers").exists()
        && hand_down(root, below, |dir| fs::create_dir_all(dir)).is_ok()
        && root.join(below).join("io.max").exists()
}

/// Lets `id` (user and group) make cgroups below `cgroup` and move its processes between them, and nothing else.
pub(crate) fn delegate(cgroup: &str, id: u32) -> io::Result<()> {
    for dir in directories(cgroup) {
        let is_v2 = dir.join("cgroup.controllers").exists();
        let files: &[&str] = if is_v2 { &DELEGATED_V2 } else { &DELEGATED_V1 };
        chown(&dir, Some(id), Some(id))?;
        for file in files
            .iter()
            .map(|name| dir.join(name))
            .filter(|file| file.exists())
        {
            chown(&file, Some(id), Some(id))?;
        }
    }
    Ok(())
}

/// Removes `cgroup` and all below it from every hierarchy. Absent is fine; one with processes in it is an error.
pub(crate) fn remove(cgroup: &str) -> io::Result<()> {
    directories(cgroup).try_for_each(|dir| tree::remove(&dir))
}

/// Kills everything in `cgroup`, whatever the machine has done to keep it from dying: frozen it, or made more of it all the time.
///
/// # Errors
/// What the system said; the rest is done all the same.
pub(crate) fn kill(cgroup: &str) -> io::Result<()> {
    let mut result = Ok(());
    for dir in directories(cgroup) {
        let all_at_once = dir.join("cgroup.kill");
        if all_at_once.exists() {
            result = result.and(fs::write(all_at_once, "1"));
            continue;
        }
        let pids = dir.join("pids.max");
        if pids.exists() {
            // From here on nothing new is begun, so that what is listed is all there is.
            result = result.and(fs::write(pids, "0"));
        }
    }
    // Each v1 hierarchy lists all processes, in another tree, and any one may be in the way of its own removal.
    for dir in directories(cgroup).filter(|dir| !dir.join("cgroup.kill").exists()) {
        result = result.and(tree::kill(&dir));
    }
    // Last: what was frozen has its signal by now, and does nothing else when it goes on.
    for dir in directories(cgroup).filter(|dir| dir.join("freezer.state").exists()) {
        result = result.and(tree::thaw(&dir));
    }
    result
}

/// Whether swap can be limited below `parent`: not without swap accounting in the kernel.
pub(crate) fn can_limit_swap(parent: &str) -> bool {
    let root = Path::new(ROOT);
    if !root.join("cgroup.controllers").exists() {
        return root.join("memory/memory.memsw.limit_in_bytes").exists();
    }
    // v2 has the file in every cgroup that memory is limited in, which nobody else may have seen to yet.
    let below = Path::new(parent.trim_start_matches('/'));
    if let Err(error) = hand_down(root, below, |dir| fs::create_dir_all(dir)) {
        tracing::warn!(%error, parent, "controllers cannot be handed down to machines");
    }
    root.join(below).join("memory.swap.max").exists()
}

/// Kills what is left in `cgroup` and removes it.
pub(crate) fn kill_and_remove(cgroup: &str) -> io::Result<()> {
    let deadline = Instant::now() + KILL_WAIT_MAX;
    loop {
        match remove(cgroup) {
            Err(error)
                if error.raw_os_error() == Some(nix::libc::EBUSY) && Instant::now() < deadline =>
            {
                kill(cgroup)?;
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// Kills and removes the cgroups right below `parent` whose names `ours` knows; gives what it knows them as.
pub(crate) fn kill_below<T: Ord>(
    parent: &str,
    ours: impl Fn(&str) -> Option<T>,
) -> io::Result<BTreeSet<T>> {
    let mut killed = BTreeSet::new();
    for dir in directories(parent) {
        for entry in fs::read_dir(&dir)? {
            let name = entry?.file_name();
            let Some((name, known)) = name.to_str().and_then(|name| Some((name, ours(name)?)))
            else {
                continue;
            };
            kill_and_remove(&format!("{parent}/{name}"))?;
            killed.insert(known);
        }
    }
    Ok(killed)
}

/// Removes `parent` from every hierarchy where nothing is in it.
pub(crate) fn remove_parent(parent: &str) -> io::Result<()> {
    for dir in directories(parent) {
        match fs::remove_dir(&dir) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {
                tracing::warn!(cgroup = %dir.display(), "stays, for it holds what is not of Slipway");
            }
            removed => removed?,
        }
    }
    Ok(())
}
