//! `/proc/meminfo` of a machine whose memory is limited by a cgroup: the kernel's own has the host's memory, and programs that
//! size themselves by it would be ended for it.
//!
//! It must not know which containers have it.

use super::{CGROUPS, Share, field};
use nix::mount::{MsFlags, mount};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The file that lies on `/proc/meminfo`.
pub(crate) const FILE: &str = "/run/slipway/meminfo";
/// The file that it lies on.
pub(crate) const PLACE: &str = "/proc/meminfo";

/// Memory of the machine that is in use, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Used {
    all: u64,
    /// Of it: contents of files, which the kernel may drop.
    files: u64,
    /// Of it: memory files and shared memory.
    shared: u64,
}

/// Puts the machine's own file on `/proc/meminfo`, if its memory is limited. What cannot be done is logged: all works without it.
pub(crate) fn install() {
    let installed = || -> io::Result<()> {
        let Some(text) = current(Path::new(CGROUPS)) else {
            return Ok(());
        };
        if let Some(dir) = Path::new(FILE).parent() {
            fs::create_dir_all(dir)?;
        }
        File::create(FILE)?.write_all(text.as_bytes())?;
        let none: Option<&str> = None;
        mount(Some(FILE), PLACE, none, MsFlags::MS_BIND, none)?;
        Ok(())
    };
    if let Err(error) = installed() {
        tracing::warn!(%error, "programs see the host's memory");
    }
}

/// Writes the present figures into the file. Its length stays, so that no reader sees half of it.
pub(crate) fn refresh() {
    let Ok(file) = File::options().write(true).open(FILE) else {
        return;
    };
    if let Some(text) = current(Path::new(CGROUPS))
        && let Err(error) = file.write_all_at(text.as_bytes(), 0)
    {
        tracing::debug!(%error, "figures of memory are old");
    }
}

fn current(root: &Path) -> Option<String> {
    let total = Share::read(root).memory_bytes?;
    Some(text(total, used(root)))
}

fn used(root: &Path) -> Used {
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let (all, stat, names) = if root.join("cgroup.controllers").exists() {
        let names = ["file", "shmem"];
        (text("memory.current"), text("memory.stat"), names)
    } else {
        let names = ["total_cache", "total_shmem"];
        let all = text("memory/memory.usage_in_bytes");
        (all, text("memory/memory.stat"), names)
    };
    let [files, shared] = names.map(|name| field(&stat, name).unwrap_or(0));
    Used {
        all: all.trim().parse().unwrap_or(0),
        files,
        shared,
    }
}

/// The lines that programs read, in the kernel's form; what the machine has no figure for is 0.
fn text(total: u64, used: Used) -> String {
    let free = total.saturating_sub(used.all);
    let can_drop = used.files.saturating_sub(used.shared);
    let lines = [
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", total.min(free.saturating_add(can_drop))),
        ("Buffers", 0),
        ("Cached", used.files),
        ("SwapCached", 0),
        ("Active", used.all.saturating_sub(can_drop)),
        ("Inactive", can_drop),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", used.all.saturating_sub(used.files)),
        ("Mapped", 0),
        ("Shmem", used.shared),
        ("Slab", 0),
        ("SReclaimable", 0),
        ("SUnreclaim", 0),
    ];
    lines
        .map(|(name, bytes)| format!("{:<16}{:>8} kB\n", format!("{name}:"), bytes >> 10))
        .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_the_machines_and_the_length_never_changes() {
        let used = Used {
            all: 600 << 20,
            files: 300 << 20,
            shared: 100 << 20,
        };
        let some = text(1 << 30, used);
        assert_eq!(field(&some, "MemTotal"), Some(1 << 20));
        assert_eq!(field(&some, "MemFree"), Some((1024 - 600) << 10));
        assert_eq!(field(&some, "MemAvailable"), Some((1024 - 400) << 10));
        assert!(some.starts_with("MemTotal:        1048576 kB\n"), "{some}");
        assert_eq!(text(1 << 30, Used::default()).len(), some.len());
        let over = Used {
            all: 2 << 30,
            ..used
        };
        assert_eq!(field(&text(1 << 30, over), "MemFree"), Some(0));
    }

    #[test]
    fn what_is_in_use_is_read_from_both_versions() {
        for (files, names) in [
            (
                [
                    ("cgroup.controllers", "memory"),
                    ("memory.current", "9\n"),
                    ("memory.stat", "anon 1\nfile 5\nshmem 2\n"),
                ],
                "v2",
            ),
            (
                [
                    ("memory/x", ""),
                    ("memory/memory.usage_in_bytes", "9\n"),
                    (
                        "memory/memory.stat",
                        "cache 1\ntotal_cache 5\ntotal_shmem 2\n",
                    ),
                ],
                "v1",
            ),
        ] {
            let root = tempfile::tempdir().expect("temp dir");
            fs::create_dir(root.path().join("memory")).expect("mkdir");
            for (path, text) in files {
                fs::write(root.path().join(path), text).expect("write");
            }
            let want = Used {
                all: 9,
                files: 5,
                shared: 2,
            };
            assert_eq!(super::used(root.path()), want, "{names}");
        }
    }
}
