//! Import of volumes from streams: whole ones, or first all that a snapshot has and at the end what differs from it since.
//!
//! What arrives stays in making until it is whole, so nothing can use half of it, and a transfer that breaks off goes on.
//!
//! Must not know: the format of a stream, who carries it.

use super::create::sync;
use super::steps::Step;
use super::{Pool, clear_name_in_making, needed};
use crate::backing::{Backing, Making, Stored};
use crate::error::VolumeError;
use crate::limits::IMPORT_SYNC_BYTES;
use crate::luks;
use crate::marker::{remove_if_there, sync_parent};
use crate::stream::{self, Header, ReadError, Target};
use crate::undo::Undo;
use serde::{Deserialize, Serialize};
use slipway_core::host_api::{ImportPart, StreamFault, VolumeReport};
use slipway_core::id::{SnapshotId, VolumeId};
use slipway_core::key::VolumeKey;
use slipway_core::units::ByteSize;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// How far an import has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    /// Bytes that are durable.
    offset: u64,
    /// The snapshot whose contents it is to have first.
    #[serde(default)]
    base: Option<SnapshotId>,
    /// It has all of that.
    #[serde(default)]
    complete: bool,
    /// The snapshot that it is being made to from there on; it may be half the one and half the other.
    #[serde(default)]
    towards: Option<SnapshotId>,
}

impl Progress {
    /// Whether what is there can be gone on with. If not, it is begun anew.
    fn serves(&self, part: &ImportPart) -> bool {
        match part {
            ImportPart::Whole => self.base.is_none(),
            ImportPart::Base { snapshot } => {
                self.base.as_ref() == Some(snapshot) && self.towards.is_none()
            }
            ImportPart::Difference { base, snapshot } => {
                self.complete
                    && self.base.as_ref() == Some(base)
                    && self.towards.as_ref().is_none_or(|is| is == snapshot)
            }
        }
    }
}

impl<B: Backing> Pool<B> {
    /// How far an import has come, beside what it has.
    pub(super) fn progress_path(&self, id: &VolumeId) -> PathBuf {
        self.layout.volumes_dir().join(format!("{id}.import"))
    }

    /// What of an import can be gone on with; nothing is its beginning.
    fn progress(&self, id: &VolumeId, part: &ImportPart) -> Result<Option<Progress>, VolumeError> {
        if !self.backing.is_begun(id, Making::Import)? {
            return Ok(None);
        }
        // What cannot be read is begun anew.
        let text = std::fs::read(self.progress_path(id)).unwrap_or_default();
        let progress: Option<Progress> = serde_json::from_slice(&text).ok();
        Ok(progress.filter(|progress| progress.serves(part)))
    }

    fn write_progress(&self, id: &VolumeId, progress: &Progress) -> io::Result<()> {
        let path = self.progress_path(id);
        let fresh = path.with_extension("import.tmp");
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(progress)?)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)
    }

    pub(super) fn receive_offset(
        &self,
        id: &VolumeId,
        size: ByteSize,
        part: &ImportPart,
    ) -> Result<u64, VolumeError> {
        self.rounded(size)?;
        Ok(match (self.progress(id, part)?, part) {
            (Some(progress), ImportPart::Whole | ImportPart::Base { .. }) => progress.offset,
            (Some(_), ImportPart::Difference { .. }) | (None, _) => 0,
        })
    }

    pub(super) fn receive(
        &self,
        id: &VolumeId,
        size: ByteSize,
        key: Option<&VolumeKey>,
        part: &ImportPart,
        from: &mut dyn Read,
    ) -> Result<Option<VolumeReport>, VolumeError> {
        let size = self.rounded(size)?;
        let _volume = self.lock_volume(id)?;
        if let Some(report) = self.report_now(id)? {
            return self.same_size(report, size).map(Some);
        }
        let header = stream::read_header(from).map_err(not_taken)?;
        let progress = self.progress(id, part)?;
        check_header(&header, size, part, progress.as_ref())?;
        let stored = Stored {
            size,
            used: 0,
            sealed: header.sealed || self.seals,
        };
        // What is in clear is encrypted on its way in.
        let seal = (stored.sealed && !header.sealed)
            .then(|| needed(id, key))
            .transpose()?;
        let mut progress = match progress {
            Some(progress) => progress,
            None => self.begin_import(id, &stored, seal, part)?,
        };
        if header.foreign {
            self.layout.foreign(id).set()?;
        }
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
        self.steps.enter(Step::Receive)?;
        if let ImportPart::Difference { snapshot, .. } = part {
            progress.towards = Some(snapshot.clone());
            self.note(id, &progress)?;
        }
        self.take(id, header, from, (&path, seal.is_none()), &mut progress)?;
        drop(undo);
        sync(&device.path)?;
        if let ImportPart::Base { .. } = part {
            progress.complete = true;
            self.note(id, &progress)?;
            return Ok(None);
        }
        self.finish_import(id, size).map(Some)
    }

    fn finish_import(&self, id: &VolumeId, size: u64) -> Result<VolumeReport, VolumeError> {
        self.steps.enter(Step::Publish)?;
        self.backing.publish(id, Making::Import)?;
        self.steps.enter(Step::Settle)?;
        self.backing.settle()?;
        remove_if_there(&self.progress_path(id))?;
        tracing::info!(volume = %id, size, "volume imported");
        let report = self
            .report_now(id)?
            .ok_or_else(|| VolumeError::NotFound { volume: id.clone() })?;
        // An import that was taken up again may have begun with another size.
        self.same_size(report, size)
    }

    fn note(&self, id: &VolumeId, progress: &Progress) -> Result<(), VolumeError> {
        self.write_progress(id, progress)
            .map_err(VolumeError::io("write", &self.progress_path(id)))
    }

    fn begin_import(
        &self,
        id: &VolumeId,
        stored: &Stored,
        seal: Option<&VolumeKey>,
        part: &ImportPart,
    ) -> Result<Progress, VolumeError> {
        // It must not be taken for that of what is begun now.
        let stale = self.progress_path(id);
        remove_if_there(&stale)?;
        self.layout.foreign(id).remove()?;
        sync_parent(&stale)?;
        self.backing.abandon(id, &[Making::Import])?;
        self.steps.enter(Step::Reserve)?;
        {
            let _pool = self.lock_pool(&format!("the import of {id}"))?;
            self.check_room(stored.size)?;
            self.backing.begin(id, stored, Making::Import, None)?;
        }
        if let Some(key) = seal {
            self.steps.enter(Step::Encrypt)?;
            let device = self.backing.making(id, Making::Import)?;
            luks::format(&device.path, key)?;
        }
        let base = match part {
            ImportPart::Base { snapshot } => Some(snapshot.clone()),
            ImportPart::Whole | ImportPart::Difference { .. } => None,
        };
        let progress = Progress {
            base,
            ..Progress::default()
        };
        // From here on the encrypted device is taken as it is.
        self.note(id, &progress)?;
        Ok(progress)
    }

    fn take(
        &self,
        id: &VolumeId,
        header: Header,
        from: &mut dyn Read,
        (path, zeroed): (&Path, bool),
        progress: &mut Progress,
    ) -> Result<(), VolumeError> {
        let file = OpenOptions::new()
            .write(true)
            .open(path)
            .map_err(VolumeError::io("open", path))?;
        let mut target = Target {
            file: &file,
            zeroed: zeroed || header.difference,
            sync_every: IMPORT_SYNC_BYTES,
            durable: &mut |at| {
                file.sync_all()?;
                // A difference is taken from its beginning each time.
                if !header.difference {
                    progress.offset = at;
                    self.write_progress(id, progress)?;
                }
                Ok(())
            },
        };
        let taken = stream::read_records(header, from, &mut target);
        taken.map_err(|error| match error {
            ReadError::Write(source) => VolumeError::io("write", path)(source),
            ReadError::Malformed(_) | ReadError::BrokenOff(_) => not_taken(error),
        })
    }
}

fn not_taken(error: ReadError) -> VolumeError {
    VolumeError::stream(error.fault(), error)
}

/// Whether a stream is one that can be taken now.
fn check_header(
    header: &Header,
    size: u64,
    part: &ImportPart,
    progress: Option<&Progress>,
) -> Result<(), VolumeError> {
    let wants_difference = matches!(part, ImportPart::Difference { .. });
    if header.difference != wants_difference {
        return Err(VolumeError::stream(
            StreamFault::OtherPart,
            "a difference was sent for the whole, or the whole for a difference",
        ));
    }
    let room = if header.sealed {
        size + luks::HEADER_BYTES
    } else {
        size
    };
    if header.size > room {
        return Err(VolumeError::stream(
            StreamFault::TooLarge,
            format!("its contents have {}, and the volume {size}", header.size),
        ));
    }
    if wants_difference && progress.is_none() {
        return Err(VolumeError::stream(
            StreamFault::OtherPart,
            "what the difference is from is not there",
        ));
    }
    let there = progress.map_or(0, |progress| progress.offset);
    if header.start > there {
        return Err(VolumeError::stream(
            StreamFault::BeginsBeyond,
            format!("it begins at {}, beyond what is there", header.start),
        ));
    }
    Ok(())
}
