//! Creation, from nothing or from what another volume or a snapshot holds, and removal.
//!
//! Must not know: attachment, beyond that a volume in use is not removed.

use super::steps::Step;
use super::{Pool, clear_name_in_making, needed};
use crate::backing::{Backing, Claim, Making, Origin, Stored};
use crate::driver::NewVolume;
use crate::error::VolumeError;
use crate::limits::{VOLUME_SIZE_MAX, VOLUME_SIZE_MIN};
use crate::lock::FileLock;
use crate::marker::{remove_if_there, sync_parent};
use crate::undo::Undo;
use crate::{fs, luks, mounts};
use slipway_core::host_api::{Cloning, VolumeReport, VolumeSource};
use slipway_core::id::VolumeId;
use slipway_core::units::ByteSize;
use std::io;

impl<B: Backing> Pool<B> {
    /// The size a volume gets that is asked for with `size`.
    pub(super) fn rounded(&self, size: ByteSize) -> Result<u64, VolumeError> {
        if size < VOLUME_SIZE_MIN || size > VOLUME_SIZE_MAX {
            let (min, max) = (VOLUME_SIZE_MIN, VOLUME_SIZE_MAX);
            return Err(VolumeError::InvalidSize { size, min, max });
        }
        Ok(self.backing.round_up(size.0))
    }

    /// Makes the volume if it is not there. What the pool promises is decided and reserved under one lock, and the volume
    /// gets its name last: it is there whole or not at all.
    pub(super) fn create(&self, new: &NewVolume<'_>) -> Result<VolumeReport, VolumeError> {
        let size = self.rounded(new.size)?;
        let _locks = self.lock_with_source(new)?;
        if let Some(report) = self.report_now(new.id)? {
            return self.same_size(report, size);
        }
        let source = new.source.map(|source| self.resolve(source)).transpose()?;
        if let Some((_, from)) = &source
            && from.size > size
        {
            let (min, max) = (ByteSize(from.size), VOLUME_SIZE_MAX);
            return Err(VolumeError::InvalidSize {
                size: new.size,
                min,
                max,
            });
        }
        let sealed = source.as_ref().map_or(self.seals, |(_, from)| from.sealed);
        if self.seals && !sealed {
            return Err(VolumeError::Unsupported(
                "this pool requires encryption and the source is not encrypted (hint: export it, and import it as a new volume)"
                    .to_owned(),
            ));
        }
        let stored = Stored {
            size,
            used: 0,
            sealed,
        };
        let foreign = match new.source {
            None => false,
            Some(VolumeSource::Volume { volume }) => self.layout.foreign(volume).is_set()?,
            Some(VolumeSource::Snapshot { snapshot }) => {
                self.layout.foreign_snapshot(snapshot).is_set()?
            }
        };
        self.layout.foreign(new.id).put(foreign)?;
        self.make(new, &stored, source.as_ref())?;
        tracing::info!(volume = %new.id, size, sealed, source = ?new.source, "volume made");
        self.report_now(new.id)?
            .ok_or_else(|| VolumeError::NotFound {
                volume: new.id.clone(),
            })
    }

    /// The locks of the new volume and of what it comes from, in the one order that everybody keeps to.
    fn lock_with_source(&self, new: &NewVolume<'_>) -> Result<Vec<FileLock>, VolumeError> {
        match new.source {
            None => Ok(vec![self.lock_volume(new.id)?]),
            Some(VolumeSource::Snapshot { snapshot }) => Ok(vec![
                self.lock_volume(new.id)?,
                self.lock_snapshot(snapshot)?,
            ]),
            Some(VolumeSource::Volume { volume }) => {
                if volume == new.id {
                    return Err(VolumeError::Unsupported(
                        "a volume cannot be made from itself".to_owned(),
                    ));
                }
                let mut ids = [new.id, volume];
                ids.sort();
                ids.into_iter().map(|id| self.lock_volume(id)).collect()
            }
        }
    }

    /// The answer for a volume that is there.
    pub(super) fn same_size(
        &self,
        report: VolumeReport,
        want: u64,
    ) -> Result<VolumeReport, VolumeError> {
        if report.size_bytes == want {
            return Ok(report);
        }
        // An image that was cut short from outside has another size as well.
        if report.size_bytes < want && !report.encrypted {
            let path = self.backing.describe(&report.volume);
            if let Ok(Some(says)) = fs::size(&path)
                && says > report.size_bytes
            {
                return Err(VolumeError::Damaged {
                    detail: format!("{} of {says} bytes are left of it", report.size_bytes),
                    volume: report.volume,
                });
            }
        }
        Err(VolumeError::SizeDiffers {
            volume: report.volume,
            have: ByteSize(report.size_bytes),
            want: ByteSize(want),
        })
    }

    fn resolve(&self, source: &VolumeSource) -> Result<(Origin, Stored), VolumeError> {
        match source {
            VolumeSource::Volume { volume } => {
                Ok((Origin::Volume(volume.clone()), self.found_now(volume)?))
            }
            VolumeSource::Snapshot { snapshot } => {
                let found =
                    self.find_snapshot(snapshot)?
                        .ok_or_else(|| VolumeError::SnapshotNotFound {
                            snapshot: snapshot.clone(),
                        })?;
                Ok((Origin::Snapshot(snapshot.clone()), found.stored))
            }
        }
    }

    fn make(
        &self,
        new: &NewVolume<'_>,
        stored: &Stored,
        source: Option<&(Origin, Stored)>,
    ) -> Result<(), VolumeError> {
        if stored.sealed {
            needed(new.id, new.key)?;
            if source.is_some() {
                needed(new.id, new.source_key)?;
            }
        }
        let mut undo = Undo::new();
        undo.push("remove what was begun", || {
            self.backing
                .abandon(new.id, &[Making::Short])
                .map_err(io::Error::other)
        });
        self.steps.enter(Step::Reserve)?;
        let pool = self.lock_pool(&format!("the making of {}", new.id))?;
        self.check_room(stored.size)?;
        let origin = source.map(|(origin, _)| origin);
        self.backing.begin(new.id, stored, Making::Short, origin)?;
        match source {
            None => {
                drop(pool);
                self.furnish(new, stored)?;
            }
            Some((origin, from)) => {
                // A thin volume is promised by being there; the others have reserved their room under a name.
                let pool = (self.backing.traits().cloning == Cloning::Thin).then_some(pool);
                self.steps.enter(Step::Fill)?;
                let fill = |may_go_on: &dyn Fn() -> bool| {
                    self.backing.fill(new.id, stored, origin, may_go_on)
                };
                match origin {
                    Origin::Volume(volume) => self.standing_still(volume, from, fill)?,
                    Origin::Snapshot(_) => fill(&|| true)?,
                }
                drop(pool);
                self.give_own_key(new, stored)?;
            }
        }
        self.steps.enter(Step::Publish)?;
        self.backing.publish(new.id, Making::Short)?;
        undo.push("remove the published volume", || {
            match self.backing.claim(new.id).map_err(io::Error::other)? {
                Claim::Free(held, _) => self.backing.remove(new.id, held).map_err(io::Error::other),
                Claim::Absent | Claim::InUse(_) => Ok(()),
            }
        });
        self.steps.enter(Step::Settle)?;
        self.backing.settle()?;
        undo.disarm();
        Ok(())
    }

    /// Encryption and an empty file system for what was begun.
    fn furnish(&self, new: &NewVolume<'_>, stored: &Stored) -> Result<(), VolumeError> {
        let device = self.backing.making(new.id, Making::Short)?;
        if !stored.sealed {
            self.steps.enter(Step::MakeFileSystem)?;
            fs::make(&device.path, ByteSize(stored.size), true)?;
            return sync(&device.path);
        }
        let key = needed(new.id, new.key)?;
        self.steps.enter(Step::Encrypt)?;
        luks::format(&device.path, key)?;
        let name = clear_name_in_making(new.id);
        let mut undo = Undo::new();
        undo.push("close the new volume", || {
            luks::close(&name).map(drop).map_err(io::Error::other)
        });
        let clear = luks::open(new.id, &device.path, &name, key, true)?;
        self.steps.enter(Step::MakeFileSystem)?;
        fs::make(&clear, ByteSize(stored.size), false)?;
        sync(&clear)?;
        // The undoing is what has to be done in any case.
        drop(undo);
        sync(&device.path)
    }

    /// What was cloned from an encrypted volume is opened by its own key from now on.
    fn give_own_key(&self, new: &NewVolume<'_>, stored: &Stored) -> Result<(), VolumeError> {
        if !stored.sealed {
            return Ok(());
        }
        let (old, own) = (needed(new.id, new.source_key)?, needed(new.id, new.key)?);
        let device = self.backing.making(new.id, Making::Short)?;
        self.steps.enter(Step::Encrypt)?;
        luks::change_key(new.id, &device.path, old, own)?;
        sync(&device.path)
    }

    /// Removes the volume: first what makes an encrypted one readable, then the blocks, which are what makes it exist.
    pub(super) fn remove(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let _volume = self.lock_volume(id)?;
        match self.backing.claim(id)? {
            Claim::InUse(_) => return Err(self.in_use(id)?),
            Claim::Free(held, stored) => {
                if stored.sealed {
                    let device = self.backing.activate(id, &held, false)?;
                    let entered = self.steps.enter(Step::EraseKeys);
                    let erased = entered.and_then(|()| luks::erase(&device.path));
                    drop(device);
                    self.backing.deactivate(id)?;
                    erased?;
                }
                self.steps.enter(Step::Remove)?;
                self.backing.remove(id, held)?;
                tracing::info!(volume = %id, "volume destroyed");
            }
            Claim::Absent => {}
        }
        luks::close(&clear_name_in_making(id))?;
        self.backing.abandon(id, &[Making::Short, Making::Import])?;
        remove_if_there(&self.progress_path(id))?;
        self.steps.enter(Step::RemoveNames)?;
        let marker = self.layout.marker(id);
        remove_if_there(&marker)?;
        self.layout.foreign(id).remove()?;
        let old = self.layout.old_mount_point(id);
        mounts::remove_mount_point(&old).map_err(VolumeError::io("remove", &old))?;
        // The lock's own file last: whoever waits for it sees that it is gone and makes a new one.
        remove_if_there(&self.layout.lock(id))?;
        sync_parent(&marker)
    }
}

/// Makes what was written to a device or an image durable.
pub(super) fn sync(path: &std::path::Path) -> Result<(), VolumeError> {
    std::fs::File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(VolumeError::io("sync", path))
}
