//! A machine's cgroup directories, on cgroup v1, v2, and both at once ("hybrid").
//!
//! Must not know: the limits in them (the runtime writes those) or what runs there.

use crate::limits::KILL_WAIT_MAX;
use std::fs;
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

/// Lets `id` (user and group) make cgroups below `cgroup` and move its processes between them, and nothing else.
pub(super) fn delegate(cgroup: &str, id: u32) -> io::Result<()> {
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
pub(super) fn remove(cgroup: &str) -> io::Result<()> {
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
pub(super) fn can_limit_swap() -> bool {
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
pub(super) fn kill_and_remove(cgroup: &str) -> io::Result<()> {
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
