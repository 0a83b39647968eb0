//! A machine's cgroup directories, on cgroup v1, v2, and both at once ("hybrid").
//!
//! Must not know: what runs there. A sandbox's limits are written by its runtime, a virtual machine's by [`make`].

use crate::limits::KILL_WAIT_MAX;
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

/// Makes `cgroup` with its limits. A process that writes `0` to each of the files it gives is in it.
pub(crate) fn make(cgroup: &str, limits: &CgroupLimits) -> io::Result<Vec<File>> {
    let below = cgroup.trim_start_matches('/');
    let root = Path::new(ROOT);
    let quota = u64::from(limits.cpu_millis) * CPU_PERIOD_US / 1000;
    let (memory, pids) = (limits.memory_bytes.to_string(), limits.pids.to_string());
    if root.join("cgroup.controllers").exists() {
        let dir = make_v2(root, Path::new(below))?;
        fs::write(dir.join("memory.max"), memory)?;
        fs::write(dir.join("cpu.max"), format!("{quota} {CPU_PERIOD_US}"))?;
        fs::write(dir.join("pids.max"), pids)?;
        let swap = dir.join("memory.swap.max");
        if swap.exists() {
            fs::write(swap, "0")?;
        }
        return Ok(vec![open_procs(&dir)?]);
    }
    let mut procs = Vec::new();
    // A hierarchy without a limit of ours (cpuset takes no process before it is set up) stays out of it.
    for (controller, values) in [
        (
            "memory",
            vec![
                ("memory.limit_in_bytes", memory.clone()),
                ("memory.memsw.limit_in_bytes", memory),
            ],
        ),
        (
            "cpu",
            vec![
                ("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
                ("cpu.cfs_quota_us", quota.to_string()),
            ],
        ),
        ("pids", vec![("pids.max", pids)]),
    ] {
        let dir = root.join(controller).join(below);
        if !root.join(controller).is_dir() {
            tracing::warn!(
                controller,
                "this host has no such cgroups, so nothing is limited by them"
            );
            continue;
        }
        fs::create_dir_all(&dir)?;
        for (file, value) in values {
            // Swap is limited where it is counted.
            if dir.join(file).exists() {
                fs::write(dir.join(file), value)?;
            }
        }
        procs.push(open_procs(&dir)?);
    }
    Ok(procs)
}

/// Hands the controllers on, from the top down to the new directory (cgroup-v2.rst, "Top-down Constraint").
fn make_v2(root: &Path, below: &Path) -> io::Result<PathBuf> {
    let mut dir = root.to_owned();
    for name in below {
        fs::write(dir.join("cgroup.subtree_control"), "+cpu +memory +pids")?;
        dir.push(name);
        fs::create_dir_all(&dir)?;
    }
    Ok(dir)
}

fn open_procs(dir: &Path) -> io::Result<File> {
    File::options().write(true).open(dir.join("cgroup.procs"))
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
    directories(cgroup).try_for_each(|dir| remove_tree(&dir))
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Whether swap can be limited: not without swap accounting in the kernel.
pub(crate) fn can_limit_swap() -> bool {
    let root = Path::new(ROOT);
    if root.join("memory/memory.memsw.limit_in_bytes").exists() {
        return true;
    }
    // v2 has the file in every cgroup but the top one.
    let Ok(entries) = fs::read_dir(root) else {
        return false;
    };
    root.join("cgroup.controllers").exists()
        && entries
            .flatten()
            .any(|entry| entry.path().join("memory.swap.max").exists())
}

/// Kills what is left in `cgroup` and removes it: for a container that the runtime no longer knows.
pub(crate) fn kill_and_remove(cgroup: &str) -> io::Result<()> {
    let deadline = Instant::now() + KILL_WAIT_MAX;
    loop {
        match remove(cgroup) {
            Err(error)
                if error.raw_os_error() == Some(nix::libc::EBUSY) && Instant::now() < deadline =>
            {
                directories(cgroup).for_each(|dir| kill_tree(&dir));
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn kill_tree(dir: &Path) {
    let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.parse().ok()) {
        // Gone by now is what is wanted.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_tree(&entry.path());
        }
    }
}
