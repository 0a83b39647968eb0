//! What machines may take of the disk that volumes lie on: a cap for each, if the settings say one, and equal shares where the
//! kernel shares that disk out.
//!
//! Owns: what is written for a cap, and how it is found out whether the disk is shared. Must not know: machines, volumes.

use std::fs;
use std::path::{Path, PathBuf};

/// How many disks below one another are looked at (a volume on a mapping on a mirror on a partition).
const LAYERS_MAX: usize = 8;

/// What one machine may read, and write, of its volume at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DiskCap {
    /// Bytes in a second.
    pub(crate) bytes_per_s: Option<u64>,
    /// Operations in a second.
    pub(crate) operations_per_s: Option<u32>,
}

impl DiskCap {
    /// Whether there is one at all.
    pub(crate) fn is_set(self) -> bool {
        self != Self::default()
    }

    /// Each bound, by the name that `suffix` makes of a direction: reads, then writes.
    fn each(self, bytes: [&str; 2], operations: [&str; 2], between: char) -> String {
        let mut words = Vec::new();
        if let Some(most) = self.bytes_per_s {
            words.extend(bytes.map(|name| format!("{name}={most}")));
        }
        if let Some(most) = self.operations_per_s {
            words.extend(operations.map(|name| format!("{name}={most}")));
        }
        words.join(&between.to_string())
    }

    /// As the value of a cgroup's `io.max` (cgroup-v2.rst), for the device of that number (`st_dev`).
    pub(crate) fn io_max(self, device: u64) -> String {
        let words = self.each(["rbps", "wbps"], ["riops", "wiops"], ' ');
        format!("{} {words}", number(device))
    }

    /// As the properties of a `throttle-group` of QEMU.
    pub(crate) fn throttle_group(self) -> String {
        self.each(
            ["x-bps-read", "x-bps-write"],
            ["x-iops-read", "x-iops-write"],
            ',',
        )
    }
}

/// A device as the kernel writes its number.
fn number(device: u64) -> String {
    use nix::sys::stat::{major, minor};
    format!("{}:{}", major(device), minor(device))
}

/// Whether the kernel shares a disk out by machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Each machine that wants more than there is has an equal share.
    Equal,
    /// Whoever asks most gets most of these disks.
    Unequal(Vec<String>),
    /// It is not known what disks there are, as below a file system that joins several.
    Unknown,
}

/// How the disks are shared that lie below what has the number `device` (`st_dev`).
pub(crate) fn sharing(device: u64) -> Sharing {
    let mut disks = Vec::new();
    find_disks(
        &Path::new("/sys/dev/block").join(number(device)),
        LAYERS_MAX,
        &mut disks,
    );
    let costs = fs::read_to_string("/sys/fs/cgroup/io.cost.qos").unwrap_or_default();
    judge(&disks, &costs)
}

/// A disk that lies on no other.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Disk {
    name: String,
    number: String,
    schedulers: String,
}

fn judge(disks: &[Disk], costs: &str) -> Sharing {
    if disks.is_empty() {
        return Sharing::Unknown;
    }
    let shares = |disk: &Disk| {
        let by_cost = costs.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(&disk.number) && words.any(|word| word == "enable=1")
        });
        by_cost || disk.schedulers.contains("[bfq]")
    };
    let unequal: Vec<_> = disks.iter().filter(|disk| !shares(disk)).collect();
    if unequal.is_empty() {
        return Sharing::Equal;
    }
    Sharing::Unequal(unequal.into_iter().map(|disk| disk.name.clone()).collect())
}

/// Goes from a device's directory in sysfs down to what lies on no other: from a partition to its disk, from a mapping or a
/// mirror to what it is made of.
fn find_disks(device: &Path, layers: usize, found: &mut Vec<Disk>) {
    let Ok(dir) = fs::canonicalize(device) else {
        return;
    };
    let dir = match dir.parent() {
        Some(disk) if dir.join("partition").exists() => disk.to_owned(),
        Some(_) | None => dir,
    };
    let below: Vec<PathBuf> = fs::read_dir(dir.join("slaves"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    if below.is_empty() || layers == 0 {
        let read = |file: &str| {
            let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
            text.trim().to_owned()
        };
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        found.push(Disk {
            name: name.into_owned(),
            number: read("dev"),
            schedulers: read("queue/scheduler"),
        });
        return;
    }
    for device in below {
        find_disks(&device, layers - 1, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_is_written_as_the_kernel_and_qemu_read_it() {
        let device = nix::sys::stat::makedev(7, 300);
        let cap = DiskCap {
            bytes_per_s: Some(8 << 20),
            operations_per_s: Some(500),
        };
        assert_eq!(
            cap.io_max(device),
            "7:300 rbps=8388608 wbps=8388608 riops=500 wiops=500"
        );
        let cap = DiskCap {
            bytes_per_s: Some(1),
            operations_per_s: None,
        };
        assert!(cap.is_set());
        assert_eq!(cap.throttle_group(), "x-bps-read=1,x-bps-write=1");
        assert!(!DiskCap::default().is_set());
    }

    #[test]
    fn a_disk_is_shared_by_its_scheduler_or_by_cost() {
        let disk = |name: &str, number: &str, schedulers: &str| Disk {
            name: name.to_owned(),
            number: number.to_owned(),
            schedulers: schedulers.to_owned(),
        };
        let (fair, plain) = (
            disk("sda", "8:0", "none mq-deadline [bfq]"),
            disk("nvme0n1", "259:1", "[none] mq-deadline bfq"),
        );
        let all = [fair.clone(), plain.clone()];
        assert_eq!(judge(&all[..1], ""), Sharing::Equal);
        assert_eq!(judge(&all, ""), Sharing::Unequal(vec!["nvme0n1".into()]));
        let costs = |on: u8| format!("8:16 enable=1\n259:1 enable={on} ctrl=auto rpct=0.00");
        assert_eq!(judge(&all, &costs(1)), Sharing::Equal);
        assert_eq!(judge(&all, &costs(0)), judge(&all, ""));
        assert_eq!(judge(&[], ""), Sharing::Unknown);
    }

    #[test]
    fn disks_are_found_below_partitions_and_mappings() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for (path, text) in [
            ("sda/dev", "8:0\n"),
            ("sda/queue/scheduler", "[bfq]\n"),
            ("sda/sda1/partition", "1\n"),
            ("sdb/dev", "8:16\n"),
            ("dm-0/dev", "253:0\n"),
        ] {
            fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            fs::write(at(path), text).unwrap();
        }
        fs::create_dir(at("dm-0/slaves")).unwrap();
        for (name, to) in [("sda1", "sda/sda1"), ("sdb", "sdb")] {
            std::os::unix::fs::symlink(at(to), at("dm-0/slaves").join(name)).unwrap();
        }
        let mut found = Vec::new();
        find_disks(&at("dm-0"), LAYERS_MAX, &mut found);
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<_> = found.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["sda", "sdb"]);
        assert_eq!(
            (found[0].number.as_str(), found[0].schedulers.as_str()),
            ("8:0", "[bfq]")
        );
        find_disks(&at("nothing"), LAYERS_MAX, &mut found);
        assert_eq!(found.len(), 2);
    }
}
