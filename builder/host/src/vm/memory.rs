//! The memory of machines that ended for want of use, kept in files so that their next start goes on from it.
//!
//! Apart from the machines' records: a machine is forgotten between its end and its next start.
//!
//! | file in `<state>/memory/<id>/` | what |
//! |---|---|
//! | `origin.json` | what the memory of the machine that runs belongs to; absent if it is not to be kept |
//! | `memory.next` | memory that is being kept, or a sign that it was: the machine may stand still |
//! | `memory` | kept memory |
//! | `memory.json` | written last: the memory is whole, and what it belongs to. The machine has ended well |
//!
//! Memory is taken out before anything goes on from it, so that nothing ever does twice.
//!
//! Must not know: QEMU, or how memory gets into a file.

use super::door::DoorFile;
use super::origin::{Origin, VolumeMark};
use crate::files::{Outlives, make_dir, remove_all, write_whole};
use crate::limits::KEPT_MEMORY_FREE_MIN;
use crate::process::boot_id;
use serde::{Deserialize, Serialize};
use slipway_core::id::{MachineId, VolumeId};
use slipway_core::units::ByteSize;
use slipway_volumes::{Account, PoolReport};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What is written down of a running machine whose memory may be kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    /// What its memory belongs to.
    pub(super) origin: Origin,
    /// Its volume's device.
    pub(super) device: PathBuf,
    /// Its memory, in bytes.
    pub(super) memory_bytes: u64,
}

/// What is written down of kept memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// What it belongs to.
    pub(super) origin: Origin,
    /// The volume as it was left.
    pub(super) volume: VolumeMark,
    /// The guest's end of the door is in the memory.
    pub(super) door: DoorFile,
}

/// Memory that was taken out: whatever becomes of it, it is not there any more.
#[derive(Debug)]
pub(super) struct Kept {
    /// What is known of it.
    pub(super) manifest: Manifest,
    /// The memory itself, for reading.
    pub(super) file: File,
}

/// All of a host.
#[derive(Debug)]
pub(super) struct Memories {
    dir: PathBuf,
    /// What they may take in all; nothing is kept if absent.
    limit: Option<ByteSize>,
}

impl Memories {
    /// Below `dir`. Throws away what is of no use any more.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub(super) fn open(dir: PathBuf, limit: Option<ByteSize>) -> io::Result<Self> {
        make_dir(&dir, 0o700)?;
        let memories = Self { dir, limit };
        let boot = boot_id()?;
        memories.evict(|manifest| manifest.origin.boot != boot, Self::discard);
        if limit.is_none() {
            memories.evict(|_| true, Self::throw_away);
        }
        Ok(memories)
    }

    /// Whether any is kept here.
    pub(super) fn are_kept(&self) -> bool {
        self.limit.is_some()
    }

    fn path(&self, machine: &MachineId, name: &str) -> PathBuf {
        self.dir.join(machine.as_str()).join(name)
    }

    /// Writes down what the memory of a machine that starts belongs to.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write_note(&self, machine: &MachineId, note: &Note) -> io::Result<()> {
        make_dir(&self.dir.join(machine.as_str()), 0o700)?;
        let path = self.path(machine, "origin.json");
        write_whole(&path, &serde_json::to_vec(note)?, Outlives::Crash)
    }

    /// What was written down so.
    pub(super) fn note(&self, machine: &MachineId) -> Option<Note> {
        let text = fs::read(self.path(machine, "origin.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The place of the machine whose memory is kept.
    pub(super) fn slot(&self, machine: &MachineId) -> Option<u16> {
        Some(self.manifest(machine)?.door.slot)
    }

    /// Whether memory of a machine is kept whole.
    pub(super) fn is_kept(&self, machine: &MachineId) -> bool {
        self.path(machine, "memory.json").exists()
    }

    fn manifest(&self, machine: &MachineId) -> Option<Manifest> {
        let text = fs::read(self.path(machine, "memory.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Whether keeping the memory of a machine that lives was begun.
    pub(super) fn was_begun(&self, machine: &MachineId) -> bool {
        ["memory.next", "memory", "memory.json"]
            .iter()
            .any(|name| self.path(machine, name).exists())
    }

    /// A new empty file for memory, of mode 0600; a sign that the machine may stand still.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn begin(&self, machine: &MachineId) -> io::Result<File> {
        let path = self.path(machine, "memory.next");
        remove_all(&path)?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    }

    /// Says that what was begun is whole.
    ///
    /// # Errors
    /// It cannot be written; then it does not count.
    pub(super) fn commit(&self, machine: &MachineId, manifest: &Manifest) -> io::Result<()> {
        let memory = self.path(machine, "memory");
        fs::rename(self.path(machine, "memory.next"), memory)?;
        let path = self.path(machine, "memory.json");
        write_whole(&path, &serde_json::to_vec(manifest)?, Outlives::Crash)
    }

    /// Takes memory out. When this returns nothing is left, and nothing else can go on from it.
    pub(super) fn take(&self, machine: &MachineId) -> Option<Kept> {
        let manifest = self.manifest(machine);
        let file = File::open(self.path(machine, "memory"));
        if let Err(error) = self.discard(machine) {
            tracing::error!(%machine, %error, "kept memory cannot be removed, and so is not used");
            return None;
        }
        self.limit?;
        Some(Kept {
            manifest: manifest?,
            file: file.ok()?,
        })
    }

    /// Throws away all memory of a machine, whole or not.
    ///
    /// # Errors
    /// Something could not be removed.
    pub(super) fn discard(&self, machine: &MachineId) -> io::Result<()> {
        // In this order: without the manifest the rest means nothing, and the sign goes last.
        for name in ["memory.json", "memory", "memory.next"] {
            remove_all(&self.path(machine, name))?;
        }
        self.remove_if_empty(machine)
    }

    /// Throws away what is left of a machine that has been cleared away, but for memory that was kept whole.
    ///
    /// # Errors
    /// Something could not be removed.
    pub(super) fn clear(&self, machine: &MachineId) -> io::Result<()> {
        if !self.is_kept(machine) {
            remove_all(&self.path(machine, "memory"))?;
        }
        remove_all(&self.path(machine, "memory.next"))?;
        remove_all(&self.path(machine, "origin.json"))?;
        self.remove_if_empty(machine)
    }

    fn remove_if_empty(&self, machine: &MachineId) -> io::Result<()> {
        match fs::remove_dir(self.dir.join(machine.as_str())) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Ok(())
            }
            done => done,
        }
    }

    /// Throws away memory that belongs to a volume which is destroyed, so that no machine on it lives.
    pub(super) fn forget_volume(&self, volume: &VolumeId) {
        self.evict(|it| it.origin.volume == *volume, Self::discard);
    }

    /// What must go for so much more memory, beside what volumes were promised of the same disk. Nothing if there can be no room.
    ///
    /// # Errors
    /// The disk cannot be looked at.
    pub(super) fn plan(&self, bytes: u64, pool: &PoolReport) -> io::Result<Option<Room>> {
        let Some(limit) = self.limit else {
            return Ok(None);
        };
        let disk = nix::sys::statvfs::statvfs(&self.dir)?;
        let device = fs::metadata(&self.dir)?.dev();
        let shared = pool.disk.filter(|pool| pool.device == device);
        let account = Account {
            free: disk.blocks_available().saturating_mul(disk.fragment_size()),
            // What it was opened with is what this memory is kept by.
            owed_to_others: 0,
            ..shared.map(|pool| pool.account).unwrap_or_default()
        };
        let spare = account.spare().saturating_sub(KEPT_MEMORY_FREE_MIN);
        Ok(room(self.all(), bytes, limit.0, spare))
    }

    /// Throws away what was planned to go.
    ///
    /// # Errors
    /// Something could not be removed.
    pub(super) fn make(&self, room: Room) -> io::Result<()> {
        for machine in room.goes {
            tracing::info!(%machine, "its kept memory makes room for another's");
            self.throw_away(&machine)?;
        }
        Ok(())
    }

    fn evict(
        &self,
        which: impl Fn(&Manifest) -> bool,
        how: impl Fn(&Self, &MachineId) -> io::Result<()>,
    ) {
        for Found { machine, .. } in self.all() {
            if self.manifest(&machine).is_some_and(|it| which(&it))
                && let Err(error) = how(self, &machine)
            {
                tracing::error!(%machine, %error, "kept memory cannot be removed");
            }
        }
    }

    /// Throws away the memory of a machine that may still live and stand still: it is found by the sign that is left.
    ///
    /// # Errors
    /// Something could not be removed.
    pub(super) fn throw_away(&self, machine: &MachineId) -> io::Result<()> {
        drop(self.begin(machine)?);
        remove_all(&self.path(machine, "memory.json"))?;
        remove_all(&self.path(machine, "memory"))
    }

    fn all(&self) -> Vec<Found> {
        found_in(&self.dir)
    }
}

/// What memory below `dir` may still take, of so much in all.
pub(crate) fn still_owed(dir: &Path, limit: ByteSize) -> ByteSize {
    let taken: u64 = found_in(dir).iter().map(|memory| memory.bytes).sum();
    ByteSize(limit.0.saturating_sub(taken))
}

/// What goes for the memory of another machine.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Room {
    goes: Vec<MachineId>,
}

/// Room for `bytes` more, within `limit` for all memory and with `spare` bytes of the disk that nobody else was promised, at the
/// cost of what has been kept for longest.
fn room(mut kept: Vec<Found>, bytes: u64, limit: u64, mut spare: u64) -> Option<Room> {
    kept.sort_by_key(|memory| std::cmp::Reverse(memory.since));
    let mut all: u64 = kept.iter().map(|memory| memory.bytes).sum();
    let mut goes = Vec::new();
    while all.saturating_add(bytes) > limit || bytes > spare {
        let oldest = kept.pop()?;
        all -= oldest.bytes;
        spare = spare.saturating_add(oldest.bytes);
        goes.push(oldest.machine);
    }
    Some(Room { goes })
}

fn found_in(dir: &Path) -> Vec<Found> {
    let dirs = fs::read_dir(dir).into_iter().flatten().flatten();
    dirs.filter_map(|dir| Found::in_dir(&dir.path())).collect()
}

/// Memory in a machine's directory.
#[derive(Debug)]
struct Found {
    machine: MachineId,
    since: SystemTime,
    bytes: u64,
}

impl Found {
    fn in_dir(dir: &Path) -> Option<Self> {
        let memory = fs::metadata(dir.join("memory")).ok()?;
        Some(Self {
            machine: dir.file_name()?.to_str()?.parse().ok()?,
            since: memory.modified().ok()?,
            bytes: memory.blocks() * 512,
        })
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
