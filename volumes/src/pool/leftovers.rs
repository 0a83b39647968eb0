//! What a crash left of a pool's verbs: cleared away when the pool is opened, each by itself.
//!
//! Must not know: what the verbs do.

use super::{Pool, clear_name_in_making, clear_name_of_snapshot};
use crate::backing::{Backing, Inventory, Making, StoredSnapshot, Unfinished};
use crate::error::VolumeError;
use crate::limits::IMPORT_KEPT_FOR;
use crate::lock::{FileLock, Locked};
use crate::luks;
use crate::marker::{Marker, remove_if_there};
use crate::pool::layout::Layout;
use slipway_core::id::VolumeId;
use std::time::Duration;

impl<B: Backing> Pool<B> {
    /// Removes what a crash left: what was being made, and markers and locks of volumes that are not there. What somebody
    /// is making right now is locked, and left alone; what cannot be removed is said, and keeps nobody from the rest.
    pub(super) fn clear_leftovers(&self) -> Result<(), VolumeError> {
        let there = self.backing.inventory()?;
        for unfinished in &there.unfinished {
            self.or_notice(unfinished.volume(), || self.clear_unfinished(unfinished));
        }
        let volumes: Vec<&VolumeId> = there.volumes.iter().map(|(id, _)| id).collect();
        for name in Layout::file_names(&self.layout.volumes_dir())? {
            let Some((
                stem,
                "attached.tmp" | "attached" | "foreign" | "import" | "import.tmp" | "used" | "lock",
            )) = name.split_once('.')
            else {
                continue;
            };
            let Ok(id) = stem.parse::<VolumeId>() else {
                continue;
            };
            if !volumes.contains(&&id) {
                self.or_notice(&id, || self.clear_name(&id, &name));
            }
        }
        self.adopt_or_close(&there)
    }

    /// Says what went wrong with what a crash left of a volume, to the log and to whoever asks the pool how it does.
    fn or_notice(&self, id: &VolumeId, clear: impl FnOnce() -> Result<(), VolumeError>) {
        if let Err(error) = clear() {
            let cause = &error as &dyn std::error::Error;
            tracing::error!(volume = %id, error = cause, "what a crash left cannot be cleared away");
            let notice = format!(
                "what a crash left of {id} cannot be cleared away: {error} (hint: the host's log; it is tried again when the host daemon starts)"
            );
            let mut found = self
                .found
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            found.push(notice);
        }
    }

    fn clear_unfinished(&self, unfinished: &Unfinished) -> Result<(), VolumeError> {
        let id = unfinished.volume();
        let Some(_volume) = self.try_lock_volume(id)? else {
            return Ok(());
        };
        match unfinished {
            Unfinished::Volume {
                making: Making::Import,
                idle_s,
                ..
            } if Duration::from_secs(*idle_s) < IMPORT_KEPT_FOR => luks_close_making(id),
            Unfinished::Volume { making, .. } => {
                tracing::warn!(volume = %id, "half made volume removed");
                luks_close_making(id)?;
                self.backing.abandon(id, &[*making])
            }
            Unfinished::Snapshot(snapshot, _) => {
                tracing::warn!(volume = %id, %snapshot, "half made snapshot removed");
                self.backing.abandon_snapshot(snapshot)
            }
        }
    }

    /// Removes a file beside a volume that is not there.
    fn clear_name(&self, id: &VolumeId, name: &str) -> Result<(), VolumeError> {
        // One that is being made is locked, and one that was made meanwhile is there.
        let Some(_volume) = self.try_lock_volume(id)? else {
            return Ok(());
        };
        let importing = self.backing.is_begun(id, Making::Import)?;
        if !importing && self.backing.find(id)?.is_none() {
            remove_if_there(&self.layout.marker(id))?;
            remove_if_there(&self.layout.volumes_dir().join(name))?;
            remove_if_there(&self.layout.lock(id))?;
        }
        Ok(())
    }

    /// Adopts what is attached, and detaches devices that a crash left: of a volume that was being destroyed, of a
    /// snapshot that was read.
    fn adopt_or_close(&self, there: &Inventory) -> Result<(), VolumeError> {
        let active = self.backing.all_active()?;
        for (id, _) in &there.volumes {
            if active.volumes.contains(id) {
                self.or_notice(id, || self.adopt_or_close_volume(id));
            }
        }
        for snapshot in &there.snapshots {
            let name = clear_name_of_snapshot(&snapshot.snapshot);
            if luks::clear_path(&name).exists() || active.snapshots.contains(&snapshot.snapshot) {
                self.or_notice(&snapshot.volume, || self.close_unread(snapshot, &name));
            }
        }
        Ok(())
    }

    fn adopt_or_close_volume(&self, id: &VolumeId) -> Result<(), VolumeError> {
        if let Marker::HeldBy(holder, _) = Marker::read(&self.layout.marker(id))? {
            tracing::info!(volume = %id, %holder, "attached volume adopted");
            return Ok(());
        }
        let Some(_volume) = self.try_lock_volume(id)? else {
            return Ok(());
        };
        if Marker::read(&self.layout.marker(id))? == Marker::Absent {
            tracing::warn!(volume = %id, "device of a volume that nobody has let go");
            self.backing.deactivate(id)?;
        }
        Ok(())
    }

    /// Closes a snapshot that is open as `name`, unless somebody reads it.
    fn close_unread(&self, snapshot: &StoredSnapshot, name: &str) -> Result<(), VolumeError> {
        let path = self.layout.snapshot_lock(&snapshot.snapshot);
        let lock = FileLock::acquire(&path, Duration::ZERO);
        if let Locked::Held(_snapshot) = lock.map_err(VolumeError::io("lock", &path))? {
            tracing::warn!(snapshot = %snapshot.snapshot, "device of a snapshot that nobody reads let go");
            luks::close(name)?;
            self.backing.close_snapshot(snapshot)?;
        }
        Ok(())
    }
}

fn luks_close_making(id: &VolumeId) -> Result<(), VolumeError> {
    luks::close(&clear_name_in_making(id)).map(drop)
}
