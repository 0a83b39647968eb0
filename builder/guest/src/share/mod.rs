//! What of the computer this machine may use, as its own cgroup says. A virtual machine's cgroup says nothing: its kernel has
//! no more than that.
//!
//! It must not know who reads it.

pub(crate) mod meminfo;
pub(crate) mod ooms;

use std::fs;
use std::path::Path;

/// Where cgroups are mounted.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";
/// v1 has no word for "no limit": it gives the largest number of pages there can be.
const UNLIMITED_V1: u64 = 1 << 60;

/// Processor time in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cpu {
    /// Microseconds of processor time.
    pub(crate) quota_us: i64,
    /// In this many microseconds.
    pub(crate) period_us: u64,
}

/// Limits of the whole machine; none where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// Memory in bytes.
    pub(crate) memory_bytes: Option<u64>,
    /// Processor time.
    pub(crate) cpu: Option<Cpu>,
}

impl Share {
    /// Reads the limits from the cgroups below `root`, of either version.
    pub(crate) fn read(root: &Path) -> Share {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok();
        if root.join("cgroup.controllers").exists() {
            return Share {
                memory_bytes: text("memory.max").and_then(|text| text.trim().parse().ok()),
                cpu: text("cpu.max").and_then(|text| cpu_v2(&text)),
            };
        }
        let number = |path| text(path).and_then(|text| text.trim().parse::<i64>().ok());
        let memory = number("memory/memory.limit_in_bytes").and_then(|n| u64::try_from(n).ok());
        let quota = number("cpu/cpu.cfs_quota_us").filter(|quota| *quota > 0);
        let period = number("cpu/cpu.cfs_period_us").and_then(|n| u64::try_from(n).ok());
        Share {
            memory_bytes: memory.filter(|bytes| *bytes < UNLIMITED_V1),
            cpu: quota.zip(period).map(|(quota_us, period_us)| Cpu {
                quota_us,
                period_us,
            }),
        }
    }
}

/// Memory of the machine in bytes; none if it cannot be told.
pub(crate) fn memory_bytes() -> Option<u64> {
    let limit = Share::read(Path::new(CGROUPS)).memory_bytes;
    limit.or_else(|| {
        let kernel = fs::read_to_string(meminfo::PLACE).ok()?;
        Some(field(&kernel, "MemTotal")? << 10)
    })
}

fn cpu_v2(text: &str) -> Option<Cpu> {
    let (quota, period) = text.trim().split_once(' ')?;
    Some(Cpu {
        quota_us: quota.parse().ok()?,
        period_us: period.parse().ok()?,
    })
}

/// The number after `key` in a file of lines with a key and a number each.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, number) = line.split_once([' ', ':'])?;
        let number = number.trim().trim_end_matches(" kB");
        (name == key).then(|| number.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temp dir");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            fs::write(path, text).expect("write");
        }
        root
    }

    #[test]
    fn limits_are_read_from_both_versions_and_their_absence_too() {
        let limited = Share {
            memory_bytes: Some(1 << 30),
            cpu: Some(Cpu {
                quota_us: 150_000,
                period_us: 100_000,
            }),
        };
        for (files, share) in [
            (
                vec![
                    ("cgroup.controllers", "cpu memory"),
                    ("memory.max", "1073741824\n"),
                    ("cpu.max", "150000 100000\n"),
                ],
                limited,
            ),
            (
                vec![
                    ("cgroup.controllers", "cpu memory"),
                    ("memory.max", "max\n"),
                    ("cpu.max", "max 100000\n"),
                ],
                Share::default(),
            ),
            (
                vec![
                    ("memory/memory.limit_in_bytes", "1073741824\n"),
                    ("cpu/cpu.cfs_quota_us", "150000\n"),
                    ("cpu/cpu.cfs_period_us", "100000\n"),
                ],
                limited,
            ),
            (
                vec![
                    ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
                    ("cpu/cpu.cfs_quota_us", "-1\n"),
                    ("cpu/cpu.cfs_period_us", "100000\n"),
                ],
                Share::default(),
            ),
            // The top cgroup of a virtual machine.
            (vec![("cgroup.controllers", "cpu memory")], Share::default()),
        ] {
            assert_eq!(Share::read(tree(&files).path()), share, "{files:?}");
        }
    }
}
