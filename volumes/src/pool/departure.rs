//! Export of snapshots as streams, whole or what differs from another.
//!
//! Must not know: the format of a stream, who carries it.

use super::extend::device_size;
use super::steps::Step;
use super::{Pool, clear_name_of_snapshot};
use crate::backing::{Backing, StoredSnapshot};
use crate::difference::{self, Side};
use crate::error::VolumeError;
use crate::luks;
use crate::stream::{self, Below, Header};
use crate::undo::Undo;
use slipway_core::host_api::StreamFault;
use slipway_core::id::SnapshotId;
use slipway_core::key::VolumeKey;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

impl<B: Backing> Pool<B> {
    pub(super) fn send(
        &self,
        snapshot: &SnapshotId,
        offset: u64,
        key: Option<&VolumeKey>,
        to: &mut dyn Write,
    ) -> Result<(), VolumeError> {
        let _snapshot = self.lock_snapshot(snapshot)?;
        let found = self.found_snapshot(snapshot)?;
        let name = clear_name_of_snapshot(snapshot);
        let mut undo = Undo::new();
        undo.push("close the snapshot", || {
            self.backing
                .close_snapshot(&found)
                .map_err(io::Error::other)
        });
        let device = self.backing.open_snapshot(&found)?;
        let (path, sealed) = match key {
            Some(key) if found.stored.sealed => {
                undo.push("close the snapshot in clear", || {
                    luks::close(&name).map(drop).map_err(io::Error::other)
                });
                let clear = luks::open(&found.volume, &device.path, &name, key, false)?;
                (clear, false)
            }
            Some(_) | None => (device.path.clone(), found.stored.sealed),
        };
        let (file, size) = opened(&path)?;
        let header = Header {
            sealed,
            difference: false,
            foreign: self.layout.foreign_snapshot(snapshot).is_set()?,
            size,
            start: offset.min(size),
        };
        let raw = File::open(&device.path).map_err(VolumeError::io("open", &device.path))?;
        let below = (path != device.path).then_some(Below {
            file: &raw,
            shift: luks::HEADER_BYTES,
        });
        self.steps.enter(Step::Send)?;
        let written = stream::write(&file, below, header, to);
        drop((file, raw));
        // The undoing is what has to be done in any case.
        drop(undo);
        written.map_err(|error| VolumeError::stream(StreamFault::Io, error))
    }

    pub(super) fn send_difference(
        &self,
        base: &SnapshotId,
        snapshot: &SnapshotId,
        to: &mut dyn Write,
    ) -> Result<(), VolumeError> {
        if base == snapshot {
            return Err(VolumeError::Unsupported(
                "a snapshot does not differ from itself".to_owned(),
            ));
        }
        let _base = self.lock_snapshot(base)?;
        let _snapshot = self.lock_snapshot(snapshot)?;
        let (was, now) = (self.found_snapshot(base)?, self.found_snapshot(snapshot)?);
        if was.volume != now.volume || was.stored.sealed != now.stored.sealed {
            return Err(VolumeError::Unsupported(format!(
                "snapshots {base} and {snapshot} are not of one volume"
            )));
        }
        let mut undo = Undo::new();
        for found in [&was, &now] {
            undo.push("close a snapshot", || {
                self.backing.close_snapshot(found).map_err(io::Error::other)
            });
        }
        let old = self.backing.open_snapshot(&was)?;
        let new = self.backing.open_snapshot(&now)?;
        self.steps.enter(Step::Send)?;
        let written = {
            let ((old, old_size), (new, new_size)) = (opened(&old.path)?, opened(&new.path)?);
            let side = |file, size| Side { file, size };
            difference::write(
                side(&old, old_size),
                side(&new, new_size),
                now.stored.sealed,
                self.layout.foreign_snapshot(snapshot).is_set()?,
                to,
            )
        };
        // The undoing is what has to be done in any case.
        drop(undo);
        written.map_err(|error| VolumeError::stream(StreamFault::Io, error))
    }

    fn found_snapshot(&self, snapshot: &SnapshotId) -> Result<StoredSnapshot, VolumeError> {
        self.find_snapshot(snapshot)?
            .ok_or_else(|| VolumeError::SnapshotNotFound {
                snapshot: snapshot.clone(),
            })
    }
}

fn opened(path: &Path) -> Result<(File, u64), VolumeError> {
    let file = File::open(path).map_err(VolumeError::io("open", path))?;
    let size = device_size(path).map_err(VolumeError::io("read the size of", path))?;
    Ok((file, size))
}
