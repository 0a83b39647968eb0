//! Snapshots: what a volume held at one moment, kept apart from it.
//!
//! Must not know: how blocks are kept.

use super::Pool;
use super::steps::Step;
use crate::backing::{Backing, MayGoOn, Stored, StoredSnapshot};
use crate::error::VolumeError;
use crate::freeze;
use crate::limits::FREEZE_DURATION_MAX;
use crate::marker::remove_if_there;
use crate::mounts;
use crate::undo::Undo;
use slipway_core::host_api::{Cloning, SnapshotReport};
use slipway_core::id::{SnapshotId, VolumeId};
use std::io;

impl<B: Backing> Pool<B> {
    pub(super) fn keep(
        &self,
        id: &VolumeId,
        snapshot: &SnapshotId,
    ) -> Result<SnapshotReport, VolumeError> {
        let _volume = self.lock_volume(id)?;
        if let Some(there) = self.find_snapshot(snapshot)? {
            return if there.volume == *id {
                Ok(self.snapshot_report(there))
            } else {
                Err(VolumeError::Unsupported(format!(
                    "snapshot {snapshot} is one of volume {}",
                    there.volume
                )))
            };
        }
        let stored = self.found_now(id)?;
        let foreign = self.layout.foreign_snapshot(snapshot);
        let mut undo = Undo::new();
        undo.push("remove the snapshot", || {
            self.backing
                .abandon_snapshot(snapshot)
                .and_then(|()| foreign.remove())
                .map_err(io::Error::other)
        });
        foreign.put(self.layout.foreign(id).is_set()?)?;
        self.steps.enter(Step::ReserveSnapshot)?;
        let pool = self.lock_pool(&format!("the making of {snapshot}"))?;
        self.check_room(self.backing.snapshot_reserve(&stored))?;
        self.backing.begin_snapshot(id, &stored, snapshot)?;
        let pool = (self.backing.traits().cloning == Cloning::Thin).then_some(pool);
        self.steps.enter(Step::FillSnapshot)?;
        self.standing_still(id, &stored, |may_go_on| {
            self.backing.fill_snapshot(id, &stored, snapshot, may_go_on)
        })?;
        self.steps.enter(Step::PublishSnapshot)?;
        self.backing.publish_snapshot(id, &stored, snapshot)?;
        drop(pool);
        undo.push("remove the published snapshot", || {
            self.backing
                .remove_snapshot(snapshot)
                .map_err(io::Error::other)
        });
        self.steps.enter(Step::SettleSnapshot)?;
        self.backing.settle()?;
        undo.disarm();
        tracing::info!(volume = %id, %snapshot, "snapshot made");
        self.find_snapshot(snapshot)?
            .map(|found| self.snapshot_report(found))
            .ok_or_else(|| VolumeError::SnapshotNotFound {
                snapshot: snapshot.clone(),
            })
    }

    /// Does `work` while nothing of the volume changes: no file of it if its holder has it mounted, and else, where blocks are
    /// cloned in an instant, as after a power cut.
    pub(super) fn standing_still(
        &self,
        id: &VolumeId,
        stored: &Stored,
        work: impl FnOnce(MayGoOn<'_>) -> Result<(), VolumeError>,
    ) -> Result<(), VolumeError> {
        let Some(top) = self.active_top(id, stored)? else {
            return work(&|| true);
        };
        let traits = self.backing.traits();
        if !self.is_held_mounted(id)? {
            if traits.cloning == Cloning::FullCopy {
                return Err(VolumeError::Unsupported(format!(
                    "volume {id} is in use by a machine with a kernel of its own, and this pool can only copy it, which takes longer than \
                     the machine can stand still (hint: stop the machine, or use a pool on XFS, btrfs or LVM)"
                )));
            }
            return work(&|| true);
        }
        if traits.stills_by_itself && !stored.sealed {
            return work(&|| true);
        }
        let frozen = mounts::root_of(&top)
            .and_then(freeze::freeze)
            .map_err(VolumeError::io("freeze", &top))?;
        let entered = self.steps.enter(Step::Clone);
        let done = entered.and_then(|()| work(&|| frozen.may_go_on()));
        let stood_still = frozen.thaw().map_err(VolumeError::io("thaw", &top))?;
        done?;
        if stood_still {
            Ok(())
        } else {
            Err(too_slow(id))
        }
    }

    pub(super) fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        let _snapshot = self.lock_snapshot(snapshot)?;
        self.backing.remove_snapshot(snapshot)?;
        self.backing.settle()?;
        self.layout.foreign_snapshot(snapshot).remove()?;
        remove_if_there(&self.layout.snapshot_lock(snapshot))?;
        tracing::info!(%snapshot, "snapshot deleted");
        Ok(())
    }

    pub(super) fn all_snapshots(&self) -> Result<Vec<SnapshotReport>, VolumeError> {
        let mut snapshots = self.backing.inventory()?.snapshots;
        snapshots.sort_by(|a, b| a.snapshot.cmp(&b.snapshot));
        Ok(snapshots
            .into_iter()
            .map(|snapshot| self.snapshot_report(snapshot))
            .collect())
    }

    fn snapshot_report(&self, found: StoredSnapshot) -> SnapshotReport {
        SnapshotReport {
            snapshot: found.snapshot,
            volume: found.volume,
            size_bytes: found.stored.size,
            stored_bytes: self.backing.snapshot_reserve(&found.stored),
            created_at_ms: found.made_at_ms,
            encrypted: found.stored.sealed,
        }
    }
}

/// What a backing says that was told to give up.
pub(crate) fn too_slow(id: &VolumeId) -> VolumeError {
    VolumeError::Unsupported(format!(
        "copying volume {id} takes longer than the {} s that its machine may stand still (hint: stop the machine, or use a pool on \
         XFS, btrfs or LVM)",
        FREEZE_DURATION_MAX.as_secs()
    ))
}
