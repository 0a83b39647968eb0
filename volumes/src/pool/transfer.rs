//! Export of snapshots and import of volumes, as streams.
//!
//! Must not know: the format of a stream, who carries it.

use super::create::sync;
use super::extend::device_size;
use super::steps::Step;
use super::{Pool, clear_name_in_making, clear_name_of_snapshot, needed};
use crate::backing::{Backing, Making, Stored};
use crate::error::VolumeError;
use crate::limits::IMPORT_SYNC_BYTES;
use crate::luks;
use crate::stream::{self, Below, Header, ReadError, Target};
use crate::undo::Undo;
use slipway_core::host_api::VolumeReport;
use slipway_core::id::{SnapshotId, VolumeId};
use slipway_core::key::VolumeKey;
use slipway_core::units::ByteSize;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

impl<B: Backing> Pool<B> {
    pub(super) fn send(
        &self,
        snapshot: &SnapshotId,
        offset: u64,
        key: Option<&VolumeKey>,
        to: &mut dyn Write,
    ) -> Result<(), VolumeError> {
        let _snapshot = self.lock_snapshot(snapshot)?;
        let found = self
            .find_snapshot(snapshot)?
            .ok_or_else(|| VolumeError::SnapshotNotFound {
                snapshot: snapshot.clone(),
            })?;
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
        let file = File::open(&path).map_err(VolumeError::io("open", &path))?;
        let size = device_size(&path).map_err(VolumeError::io("read the size of", &path))?;
        let header = Header {
            sealed,
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
        written.map_err(|error| VolumeError::Stream(error.to_string()))
    }

    /// How far an import has come, beside what it has.
    pub(super) fn progress_path(&self, id: &VolumeId) -> PathBuf {
        self.layout.volumes_dir().join(format!("{id}.import"))
    }

    fn progress(&self, id: &VolumeId) -> Result<u64, VolumeError> {
        if !self.backing.is_begun(id, Making::Import)? {
            return Ok(0);
        }
        // What cannot be read is begun anew.
        let text = std::fs::read_to_string(self.progress_path(id)).unwrap_or_default();
        Ok(text.trim().parse().unwrap_or(0))
    }

    pub(super) fn receive_offset(&self, id: &VolumeId, size: ByteSize) -> Result<u64, VolumeError> {
        self.rounded(size)?;
        self.progress(id)
    }

    pub(super) fn receive(
        &self,
        id: &VolumeId,
        size: ByteSize,
        key: Option<&VolumeKey>,
        from: &mut dyn Read,
    ) -> Result<VolumeReport, VolumeError> {
        let size = self.rounded(size)?;
        let _volume = self.lock_volume(id)?;
        if let Some(report) = self.report_now(id)? {
            return self.same_size(report, size);
        }
        let header = stream::read_header(from).map_err(|e| VolumeError::Stream(e.to_string()))?;
        let stored = Stored {
            size,
            used: 0,
            sealed: header.sealed || self.seals,
        };
        let room = if header.sealed {
            size + luks::HEADER_BYTES
        } else {
            size
        };
        if header.size > room {
            return Err(VolumeError::InvalidSize {
                size: ByteSize(size),
                min: ByteSize(header.size),
                max: crate::limits::VOLUME_SIZE_MAX,
            });
        }
        if header.start > self.progress(id)? {
            return Err(VolumeError::Stream(format!(
                "it begins at {}, beyond what is there",
                header.start
            )));
        }
        // What is in clear is encrypted on its way in.
        let seal = (stored.sealed && !header.sealed)
            .then(|| needed(id, key))
            .transpose()?;
        self.begin_import(id, &stored, seal)?;
        let device = self.backing.making(id, Making::Import)?;
        let name = clear_name_in_making(id);
        let mut undo = Undo::new();
        let path = match seal {
            Some(key) => {
                undo.push("close the new volume", || {
                    luks::close(&name).map(drop).map_err(io::Error::other)
                });
                luks::open(id, &device.path, &name, key, true)?
            }
            None => device.path.clone(),
        };
        self.take(id, header, from, (&path, seal.is_none()))?;
        drop(undo);
        sync(&device.path)?;
        self.steps.enter(Step::Publish)?;
        self.backing.publish(id, Making::Import)?;
        self.steps.enter(Step::Settle)?;
        self.backing.settle()?;
        crate::marker::remove_if_there(&self.progress_path(id))?;
        tracing::info!(volume = %id, size, "volume imported");
        let report = self
            .report_now(id)?
            .ok_or_else(|| VolumeError::NotFound { volume: id.clone() })?;
        // An import that was taken up again may have begun with another size.
        self.same_size(report, size)
    }

    fn begin_import(
        &self,
        id: &VolumeId,
        stored: &Stored,
        seal: Option<&VolumeKey>,
    ) -> Result<(), VolumeError> {
        if self.progress(id)? > 0 {
            return Ok(());
        }
        self.backing.abandon(id, &[Making::Import])?;
        self.steps.enter(Step::Reserve)?;
        {
            let _pool = self.lock_pool()?;
            self.check_room(stored.size)?;
            self.backing.begin(id, stored, Making::Import, None)?;
        }
        if let Some(key) = seal {
            self.steps.enter(Step::Encrypt)?;
            let device = self.backing.making(id, Making::Import)?;
            luks::format(&device.path, key)?;
        }
        Ok(())
    }

    fn take(
        &self,
        id: &VolumeId,
        header: Header,
        from: &mut dyn Read,
        (path, zeroed): (&Path, bool),
    ) -> Result<(), VolumeError> {
        let file = OpenOptions::new()
            .write(true)
            .open(path)
            .map_err(VolumeError::io("open", path))?;
        let progress = self.progress_path(id);
        let mut target = Target {
            file: &file,
            zeroed,
            sync_every: IMPORT_SYNC_BYTES,
            durable: &mut |at| {
                file.sync_all()?;
                let fresh = progress.with_extension("import.tmp");
                std::fs::write(&fresh, format!("{at}\n"))?;
                std::fs::rename(&fresh, &progress)
            },
        };
        let taken = stream::read_records(header, from, &mut target);
        taken.map_err(|error| match error {
            ReadError::Write(source) => VolumeError::io("write", path)(source),
            ReadError::Malformed(_) | ReadError::BrokenOff(_) => {
                VolumeError::Stream(error.to_string())
            }
        })
    }
}
