//! Whether the disks that the daemon writes to have room, and what to tell the operator when they have not.
//!
//! Must not know: what is written there.

use crate::limits::DISK_FREE_MIN;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// A sentence for the operator for each disk of these directories that is full; a disk that cannot be examined is not.
pub(crate) fn full_disks(directories: &[PathBuf]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut told = Vec::new();
    for directory in directories {
        let device = fs::metadata(directory).map(|found| found.dev());
        if !device.is_ok_and(|device| seen.insert(device)) {
            continue;
        }
        let Ok(disk) = nix::sys::statvfs::statvfs(directory) else {
            continue;
        };
        let free = disk.blocks_available() * disk.fragment_size();
        if free < DISK_FREE_MIN {
            told.push(format!(
                "the disk of {} is full ({} KiB are free), and no builder starts until it has room (hint: remove what is not Slipway's, \
                 destroy volumes that nobody needs with `slipway volumes destroy ID --now`, or make the disk larger; builders that wait \
                 then start by themselves)",
                directory.display(),
                free >> 10
            ));
        }
    }
    told
}
