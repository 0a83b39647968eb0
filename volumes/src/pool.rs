//! A pool: the verbs of [`VolumeDriver`], whatever its volumes are made of.
//!
//! **Locks.** A verb on a volume holds that volume's lock to its end, and the pool's lock only while promises are summed up
//! and one more is made; always in this order, and two volumes in the order of their ids.
//!
//! **What attached means.** A volume is in use exactly while its device exists, which the kernel keeps through the death
//! of this process and through any other mount of the same file system in any namespace. The marker only adds for whom, and,
//! when there is no device, that the last end was unclean.
//!
//! **Half done things.** What is being made gets its name last, so it is there whole or not at all; what was cut off is
//! cleared away by the next opening. The growth of a file system is finished by the next attachment.
//!
//! Must not know: machines, orgs, where keys come from.

mod arrival;
mod attach;
mod create;
mod departure;
mod extend;
pub(crate) mod layout;
mod leftovers;
#[cfg(test)]
mod machine_tests;
mod snapshot;
pub(crate) mod steps;
#[cfg(test)]
mod tests;

pub(crate) use snapshot::too_slow;

use crate::account::Account;
use crate::backing::{Backing, Inventory, Stored, StoredSnapshot, Unfinished};
use crate::driver::{
    AttachAs, Attachment, Capabilities, Encryption, NewVolume, PoolReport, SharedDisk, VolumeDriver,
};
use crate::error::VolumeError;
use crate::limits::{POOL_LOCK_WAIT_MAX, VOLUME_LOCK_WAIT_MAX};
use crate::lock::{FileLock, Locked};
use crate::marker::Marker;
use crate::{freeze, fs, luks, mounts};
use layout::Layout;
use slipway_core::host_api::{ImportPart, SnapshotReport, VolumeReport};
use slipway_core::id::{MachineId, SnapshotId, VolumeId};
use slipway_core::key::VolumeKey;
use slipway_core::units::ByteSize;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use steps::Steps;

/// A pool of volumes. Several of these, in one process or in several, may work on one pool.
#[derive(Debug)]
pub(crate) struct Pool<B> {
    pub(crate) layout: Layout,
    pub(crate) backing: B,
    /// New volumes are encrypted.
    seals: bool,
    pub(crate) steps: Steps,
    /// What was found at the opening that the operator must see to.
    found: Mutex<Vec<String>>,
}

/// What a mapping of a volume in clear is called.
fn clear_name(id: &VolumeId) -> String {
    format!("slipway-{id}")
}

/// The same while the volume is made.
fn clear_name_in_making(id: &VolumeId) -> String {
    format!("slipway-{id}.making")
}

/// The same of a snapshot that is read.
fn clear_name_of_snapshot(id: &SnapshotId) -> String {
    format!("slipway-{id}")
}

impl<B: Backing> Pool<B> {
    /// Takes a pool over: clears what a crash left half made, lets go on what it left frozen, and adopts what is attached.
    pub(crate) fn open(
        layout: Layout,
        backing: B,
        encryption: Encryption,
    ) -> Result<Self, VolumeError> {
        let pool = Self {
            layout,
            backing,
            seals: encryption == Encryption::Required,
            steps: Steps::default(),
            found: Mutex::default(),
        };
        if !pool.backing.traits().discard {
            tracing::warn!(pool = %pool.layout.root().display(), "the pool cannot take back freed blocks");
        }
        pool.thaw_all()?;
        pool.clear_leftovers()?;
        Ok(pool)
    }

    /// For `what`, such as `the extension of vol_...`, which those who wait in vain read.
    fn lock_pool(&self, what: &str) -> Result<FileLock, VolumeError> {
        lock_pool(&self.layout.pool_lock(), POOL_LOCK_WAIT_MAX, what)
    }

    fn lock_volume(&self, id: &VolumeId) -> Result<FileLock, VolumeError> {
        let path = self.layout.lock(id);
        match FileLock::acquire(&path, VOLUME_LOCK_WAIT_MAX)
            .map_err(VolumeError::io("lock", &path))?
        {
            Locked::Held(lock) => Ok(lock),
            Locked::TimedOut => Err(VolumeError::Busy {
                volume: id.clone(),
                what: "another operation on it is going on".to_owned(),
                waited: VOLUME_LOCK_WAIT_MAX,
            }),
        }
    }

    /// So that a snapshot does not go while it is read.
    fn lock_snapshot(&self, snapshot: &SnapshotId) -> Result<FileLock, VolumeError> {
        let path = self.layout.snapshot_lock(snapshot);
        match FileLock::acquire(&path, VOLUME_LOCK_WAIT_MAX)
            .map_err(VolumeError::io("lock", &path))?
        {
            Locked::Held(lock) => Ok(lock),
            Locked::TimedOut => Err(VolumeError::SnapshotBusy {
                snapshot: snapshot.clone(),
                waited: VOLUME_LOCK_WAIT_MAX,
            }),
        }
    }

    /// Refuses to promise `more`. The pool is locked.
    fn check_room(&self, more: u64) -> Result<(), VolumeError> {
        let (inventory, state) = self.backing.survey()?;
        let promised = self.promised(&inventory);
        if promised.saturating_add(more) > state.capacity {
            return Err(VolumeError::NoSpace {
                want: ByteSize(more),
                promised: ByteSize(promised),
                capacity: ByteSize(state.capacity),
            });
        }
        match state.refuses_growth {
            Some(reason) => Err(VolumeError::PoolFull { reason }),
            None => Ok(()),
        }
    }

    fn promised(&self, inventory: &Inventory) -> u64 {
        let volumes = inventory.volumes.iter().map(|(_, stored)| stored.size);
        let snapshots = inventory
            .snapshots
            .iter()
            .map(|snapshot| self.backing.snapshot_reserve(&snapshot.stored));
        volumes
            .chain(snapshots)
            .fold(inventory.reserved, u64::saturating_add)
    }

    fn report(
        &self,
        id: &VolumeId,
        stored: &Stored,
        active: bool,
    ) -> Result<VolumeReport, VolumeError> {
        let attached_to = match Marker::read(&self.layout.marker(id))? {
            Marker::HeldBy(holder, _) if active => Some(holder),
            Marker::HeldBy(..) | Marker::Absent | Marker::Unreadable => None,
        };
        Ok(VolumeReport {
            volume: id.clone(),
            size_bytes: stored.size,
            used_bytes: stored.used,
            attached_to,
            encrypted: stored.sealed,
        })
    }

    fn report_now(&self, id: &VolumeId) -> Result<Option<VolumeReport>, VolumeError> {
        let Some(stored) = self.backing.find(id)? else {
            return Ok(None);
        };
        let active = self.backing.active(id)?.is_some();
        self.report(id, &stored, active).map(Some)
    }

    fn found_now(&self, id: &VolumeId) -> Result<Stored, VolumeError> {
        self.backing
            .find(id)?
            .ok_or_else(|| VolumeError::NotFound { volume: id.clone() })
    }

    fn find_snapshot(&self, snapshot: &SnapshotId) -> Result<Option<StoredSnapshot>, VolumeError> {
        let inventory = self.backing.inventory()?;
        Ok(inventory
            .snapshots
            .into_iter()
            .find(|found| found.snapshot == *snapshot))
    }

    fn try_lock_volume(&self, id: &VolumeId) -> Result<Option<FileLock>, VolumeError> {
        let path = self.layout.lock(id);
        match FileLock::acquire(&path, Duration::ZERO).map_err(VolumeError::io("lock", &path))? {
            Locked::Held(lock) => Ok(Some(lock)),
            Locked::TimedOut => Ok(None),
        }
    }

    /// A process that died while a volume stood still is gone, and so may be its guard.
    fn thaw_all(&self) -> Result<(), VolumeError> {
        for id in self.backing.all_active()?.volumes {
            let thawed = self.thaw_if_frozen(&id);
            match thawed {
                Ok(true) => tracing::warn!(volume = %id, "a frozen file system was thawed"),
                Ok(false) => {}
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(volume = %id, error, "cannot see whether a file system is frozen");
                }
            }
        }
        Ok(())
    }

    fn thaw_if_frozen(&self, id: &VolumeId) -> Result<bool, VolumeError> {
        if !self.is_held_mounted(id)? {
            return Ok(false);
        }
        let Some(stored) = self.backing.find(id)? else {
            return Ok(false);
        };
        let Some(top) = self.active_top(id, &stored)? else {
            return Ok(false);
        };
        mounts::root_of(&top)
            .and_then(|root| freeze::thaw_if_frozen(&root))
            .map_err(VolumeError::io("thaw", &top))
    }

    /// Whether the volume is attached to a holder that has its file system mounted.
    fn is_held_mounted(&self, id: &VolumeId) -> Result<bool, VolumeError> {
        let marker = Marker::read(&self.layout.marker(id))?;
        Ok(matches!(marker, Marker::HeldBy(_, AttachAs::Mount)))
    }

    /// The device with the contents in clear, of a volume in use.
    fn active_top(&self, id: &VolumeId, stored: &Stored) -> Result<Option<PathBuf>, VolumeError> {
        let device = self.backing.active(id)?;
        if !stored.sealed {
            return Ok(device);
        }
        let clear = luks::clear_path(&clear_name(id));
        Ok((device.is_some() && clear.exists()).then_some(clear))
    }

    fn in_use(&self, id: &VolumeId) -> Result<VolumeError, VolumeError> {
        let holder = match Marker::read(&self.layout.marker(id))? {
            Marker::HeldBy(holder, _) => Some(holder),
            Marker::Absent | Marker::Unreadable => None,
        };
        Ok(VolumeError::InUse {
            volume: id.clone(),
            holder,
        })
    }
}

/// What an encrypted volume cannot do without.
fn needed<'k>(id: &VolumeId, key: Option<&'k VolumeKey>) -> Result<&'k VolumeKey, VolumeError> {
    key.ok_or_else(|| VolumeError::KeyNeeded { volume: id.clone() })
}

impl<B: Backing> VolumeDriver for Pool<B> {
    fn capabilities(&self) -> Capabilities {
        let traits = self.backing.traits();
        Capabilities {
            name: traits.name,
            thin: traits.thin,
            discard: traits.discard,
            encryption: self.seals,
            cloning: traits.cloning,
            grows_mounted: fs::may_grow_mounted(),
        }
    }

    fn ensure(&self, new: &NewVolume<'_>) -> Result<VolumeReport, VolumeError> {
        self.create(new)
    }

    fn extend(
        &self,
        id: &VolumeId,
        size: ByteSize,
        key: Option<&VolumeKey>,
    ) -> Result<VolumeReport, VolumeError> {
        self.make_larger(id, size, key)
    }

    fn destroy(&self, id: &VolumeId) -> Result<(), VolumeError> {
        self.remove(id)
    }

    fn list(&self) -> Result<Vec<VolumeReport>, VolumeError> {
        let active = self.backing.all_active()?.volumes;
        let mut reports = Vec::new();
        for (id, stored) in self.backing.inventory()?.volumes {
            reports.push(self.report(&id, &stored, active.contains(&id))?);
        }
        reports.sort_by(|a, b| a.volume.cmp(&b.volume));
        Ok(reports)
    }

    fn unfinished(&self) -> Result<Vec<VolumeId>, VolumeError> {
        let inventory = self.backing.inventory()?;
        let volumes = inventory.unfinished.iter().filter_map(|it| match it {
            Unfinished::Volume { id, .. } => Some(id.clone()),
            Unfinished::Snapshot(..) => None,
        });
        Ok(volumes.collect())
    }

    fn attach(
        &self,
        id: &VolumeId,
        holder: &MachineId,
        how: AttachAs,
        key: Option<&VolumeKey>,
    ) -> Result<Attachment, VolumeError> {
        self.attach_to(id, holder, how, key)
    }

    fn detach(&self, id: &VolumeId, holder: &MachineId) -> Result<(), VolumeError> {
        self.detach_from(id, holder)
    }

    fn snapshot(
        &self,
        id: &VolumeId,
        snapshot: &SnapshotId,
    ) -> Result<SnapshotReport, VolumeError> {
        self.keep(id, snapshot)
    }

    fn delete_snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        self.remove_snapshot(snapshot)
    }

    fn snapshots(&self) -> Result<Vec<SnapshotReport>, VolumeError> {
        self.all_snapshots()
    }

    fn export(
        &self,
        snapshot: &SnapshotId,
        offset: u64,
        key: Option<&VolumeKey>,
        to: &mut dyn Write,
    ) -> Result<(), VolumeError> {
        self.send(snapshot, offset, key, to)
    }

    fn export_difference(
        &self,
        base: &SnapshotId,
        snapshot: &SnapshotId,
        to: &mut dyn Write,
    ) -> Result<(), VolumeError> {
        self.send_difference(base, snapshot, to)
    }

    fn import_offset(
        &self,
        id: &VolumeId,
        size: ByteSize,
        part: &ImportPart,
    ) -> Result<u64, VolumeError> {
        self.receive_offset(id, size, part)
    }

    fn import(
        &self,
        id: &VolumeId,
        size: ByteSize,
        key: Option<&VolumeKey>,
        part: &ImportPart,
        from: &mut dyn Read,
    ) -> Result<Option<VolumeReport>, VolumeError> {
        self.receive(id, size, key, part, from)
    }

    fn pool(&self) -> Result<PoolReport, VolumeError> {
        let (inventory, state) = self.backing.survey()?;
        let volumes = inventory.volumes.iter().map(|(_, stored)| stored.used);
        let snapshots = inventory.snapshots.iter().map(|s| s.stored.used);
        let used = state
            .used
            .unwrap_or_else(|| volumes.chain(snapshots).fold(0, u64::saturating_add));
        let promised = self.promised(&inventory);
        let mut notices = state.notices;
        let disk = state.file_system.map(|disk| SharedDisk {
            device: disk.device,
            account: Account {
                free: disk.free,
                taken: used,
                promised,
                owed_to_others: disk.owed_to_others,
            },
        });
        notices.extend(disk.as_ref().and_then(|disk| shortage(&disk.account)));
        let found = self
            .found
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        notices.extend(found.iter().cloned());
        let id = self.layout.pool_id();
        if let Err(error) = &id {
            notices.push(format!("the pool's id cannot be kept: {error}"));
        }
        Ok(PoolReport {
            id: id.ok(),
            capacity: ByteSize(state.capacity),
            promised: ByteSize(promised),
            used: ByteSize(used),
            notices,
            disk,
        })
    }
}

/// What to tell of a disk that has less left than was promised of it. Rounded, so that it is not another word each time.
fn shortage(disk: &Account) -> Option<String> {
    const STEP: u64 = 1 << 30;
    let short = disk.short_by();
    (short > 0).then(|| {
        format!(
            "the disk of the pool has {} less left than volumes and kept memory were promised of it (hint: free some of it, or move volumes away; pool_capacity is what may be promised)",
            ByteSize(short.next_multiple_of(STEP))
        )
    })
}

/// Locks a pool's file for `what`.
fn lock_pool(path: &Path, wait: Duration, what: &str) -> Result<FileLock, VolumeError> {
    match FileLock::acquire(path, wait).map_err(VolumeError::io("lock", path))? {
        Locked::Held(lock) => {
            // It only tells those who wait; on a full disk it cannot.
            if let Err(error) = lock.note(what) {
                tracing::debug!(%error, what, "the pool's lock does not say what for");
            }
            Ok(lock)
        }
        Locked::TimedOut => {
            let holder = std::fs::read_to_string(path).unwrap_or_default();
            Err(VolumeError::PoolBusy {
                holder: Some(holder)
                    .filter(|holder| !holder.is_empty())
                    .unwrap_or_else(|| "another operation".to_owned()),
                waited: wait,
            })
        }
    }
}
