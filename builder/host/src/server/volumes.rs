//! The verbs of the host API on volumes, snapshots and keys.
//!
//! Must not know: frames, or how a volume is made.

use super::{Answer, Service, part};
use crate::limits::{IMPORT_IDLE_MAX, TRANSFER_IDLE_MAX, TRANSFERS_MAX};
use crate::machines::VerbError;
use crate::volume_fences::{Room, Turn};
use slipway_core::fence::VolumeFence;
use slipway_core::host_api::{
    HostError, HostErrorCode, HostReply, HostRequest, ImportPart, Page, StreamFault, VolumeReport,
    VolumeSource,
};
use slipway_core::id::{SnapshotId, VolumeId};
use slipway_core::key::VolumeKey;
use slipway_core::units::ByteSize;
use slipway_volumes::stream;
use slipway_volumes::{NewVolume, VolumeDriver, VolumeError};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;

/// Room for exports and imports.
pub(crate) fn transfers() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(TRANSFERS_MAX))
}

/// Bytes that are read or written at once.
const BUFFER_BYTES: usize = 256 << 10;

impl Service {
    fn key(&self, volume: &VolumeId) -> Option<Arc<VolumeKey>> {
        self.keys.for_work(volume, Instant::now())
    }

    /// The key of what a snapshot was made of.
    fn snapshot_key(&self, snapshot: &SnapshotId) -> Result<Option<Arc<VolumeKey>>, VolumeError> {
        let of = self.volume_of(snapshot)?;
        Ok(of.and_then(|volume| self.key(&volume)))
    }

    /// The volume that a snapshot was made of, if the snapshot is there.
    fn volume_of(&self, snapshot: &SnapshotId) -> Result<Option<VolumeId>, VolumeError> {
        let found = self.volumes.snapshots()?;
        let of = found.into_iter().find(|found| found.snapshot == *snapshot);
        Ok(of.map(|found| found.volume))
    }

    /// The turn of a verb that changes a volume or gives it to a machine, if this is one. Blocks.
    pub(super) fn turn(
        &self,
        request: &HostRequest,
        fence: Option<VolumeFence>,
    ) -> Result<Option<Turn>, VerbError> {
        let volume = match request {
            HostRequest::EnsureVolume { volume, .. }
            | HostRequest::ExtendVolume { volume, .. }
            | HostRequest::DestroyVolume { volume }
            | HostRequest::ShowVolume { volume }
            | HostRequest::CreateSnapshot { volume, .. }
            | HostRequest::ImportVolume { volume, .. } => volume.clone(),
            HostRequest::DeleteSnapshot { snapshot } => {
                let named = || fence.as_ref().map(|fence| fence.volume.clone());
                match self.volume_of(snapshot)?.or_else(named) {
                    Some(volume) => volume,
                    None => return Ok(None),
                }
            }
            HostRequest::ListVolumes
            | HostRequest::ListSnapshots
            | HostRequest::ExportSnapshot { .. }
            | HostRequest::ExportDifference { .. }
            | HostRequest::LendKey
            | HostRequest::RevokeKey { .. }
            | HostRequest::Info
            | HostRequest::StopMachine { .. }
            | HostRequest::RemoveMachine { .. }
            | HostRequest::WatchMachines { .. }
            | HostRequest::OpenEndpoint { .. } => return Ok(None),
            HostRequest::EnsureMachine(spec) => spec.volume.clone(),
        };
        if fence.as_ref().is_some_and(|fence| fence.volume != volume) {
            return Err(VerbError::OthersFence);
        }
        let number = fence.map(|fence| fence.number);
        let takes_none = matches!(
            request,
            HostRequest::ShowVolume { .. }
                | HostRequest::DestroyVolume { .. }
                | HostRequest::DeleteSnapshot { .. }
        );
        let room = if takes_none {
            Room::TakesNone
        } else {
            Room::Takes
        };
        Ok(Some(self.fences.begin(&volume, number, room)?))
    }

    /// Answers a verb on volumes. Blocks.
    pub(super) fn volume_verb(
        self: &Arc<Self>,
        request: HostRequest,
        fence: Option<VolumeFence>,
        page: Option<&Page>,
    ) -> Result<Answer, VerbError> {
        // Until the verb has ended; that of an import goes with the stream.
        let turn = self.turn(&request, fence)?;
        let reply = match request {
            HostRequest::EnsureVolume {
                volume,
                size_bytes,
                source,
            } => self.ensure_volume(&volume, size_bytes, source.as_ref())?,
            HostRequest::ExtendVolume { volume, size_bytes } => {
                self.extend_volume(&volume, size_bytes)?
            }
            HostRequest::DestroyVolume { volume } => {
                self.volumes.destroy(&volume)?;
                self.machines.forget_volume(&volume);
                HostReply::Done
            }
            HostRequest::ShowVolume { volume } => HostReply::Volume(self.show(volume)?),
            HostRequest::CreateSnapshot { volume, snapshot } => {
                HostReply::Snapshot(self.volumes.snapshot(&volume, &snapshot)?)
            }
            HostRequest::DeleteSnapshot { snapshot } => {
                self.volumes.delete_snapshot(&snapshot)?;
                HostReply::Done
            }
            list @ (HostRequest::ListVolumes | HostRequest::ListSnapshots) => {
                self.list(&list, page)?
            }
            HostRequest::ExportSnapshot {
                snapshot,
                offset_bytes,
                sealed,
            } => return self.export(snapshot, offset_bytes, sealed),
            HostRequest::ExportDifference { base, snapshot } => {
                return self.export_difference(base, snapshot);
            }
            HostRequest::ImportVolume {
                volume,
                size_bytes,
                sealed,
                part,
            } => return self.import(volume, size_bytes, sealed, part, turn),
            HostRequest::RevokeKey { volume, generation } => {
                self.keys.revoke(&volume, generation, Instant::now());
                HostReply::Done
            }
            HostRequest::Info
            | HostRequest::LendKey
            | HostRequest::EnsureMachine(_)
            | HostRequest::StopMachine { .. }
            | HostRequest::RemoveMachine { .. }
            | HostRequest::WatchMachines { .. }
            | HostRequest::OpenEndpoint { .. } => return Err(VerbError::CutOff),
        };
        drop(turn);
        Ok(reply.into())
    }

    fn show(&self, volume: VolumeId) -> Result<VolumeReport, VolumeError> {
        let found = self.volumes.list()?;
        let found = found.into_iter().find(|report| report.volume == volume);
        found.ok_or(VolumeError::NotFound { volume })
    }

    fn list(&self, list: &HostRequest, page: Option<&Page>) -> Result<HostReply, VolumeError> {
        Ok(if *list == HostRequest::ListVolumes {
            let volumes = self.volumes.list()?;
            let (volumes, more) = part(page, volumes, |v| v.volume.as_str());
            HostReply::Volumes { volumes, more }
        } else {
            let snapshots = self.volumes.snapshots()?;
            let (snapshots, more) = part(page, snapshots, |s| s.snapshot.as_str());
            HostReply::Snapshots { snapshots, more }
        })
    }

    fn ensure_volume(
        &self,
        volume: &VolumeId,
        size_bytes: u64,
        source: Option<&VolumeSource>,
    ) -> Result<HostReply, VerbError> {
        let source_key = match source {
            Some(VolumeSource::Snapshot { snapshot }) => self.snapshot_key(snapshot)?,
            Some(VolumeSource::Volume { volume }) => self.key(volume),
            None => None,
        };
        Ok(HostReply::Volume(self.volumes.ensure(&NewVolume {
            id: volume,
            size: ByteSize(size_bytes),
            source,
            key: self.key(volume).as_deref(),
            source_key: source_key.as_deref(),
        })?))
    }

    fn extend_volume(&self, volume: &VolumeId, size_bytes: u64) -> Result<HostReply, VerbError> {
        let key = self.key(volume);
        let size = ByteSize(size_bytes);
        let report = self.volumes.extend(volume, size, key.as_deref())?;
        if let Some(machine) = &report.attached_to {
            self.machines.volume_grew(volume, machine);
        }
        Ok(HostReply::Volume(report))
    }

    /// Begins an export; the answer has the end to read from.
    fn export(
        self: &Arc<Self>,
        snapshot: SnapshotId,
        offset_bytes: u64,
        sealed: bool,
    ) -> Result<Answer, VerbError> {
        let found = self.volumes.snapshots()?;
        let Some(found) = found.into_iter().find(|found| found.snapshot == snapshot) else {
            return Err(VolumeError::SnapshotNotFound { snapshot }.into());
        };
        let key = self.key(&found.volume);
        if found.encrypted && !sealed && key.is_none() {
            return Err(VolumeError::KeyNeeded {
                volume: found.volume,
            }
            .into());
        }
        let key = key.filter(|_| !sealed);
        self.send(offset_bytes, move |volumes, to| {
            volumes.export(&snapshot, offset_bytes, key.as_deref(), to)
        })
    }

    /// Begins the export of a difference; the answer has the end to read from.
    fn export_difference(
        self: &Arc<Self>,
        base: SnapshotId,
        snapshot: SnapshotId,
    ) -> Result<Answer, VerbError> {
        let found = self.volumes.snapshots()?;
        for wanted in [&base, &snapshot] {
            if !found.iter().any(|found| found.snapshot == *wanted) {
                let snapshot = wanted.clone();
                return Err(VolumeError::SnapshotNotFound { snapshot }.into());
            }
        }
        self.send(0, move |volumes, to| {
            volumes.export_difference(&base, &snapshot, to)
        })
    }

    /// Has `write` write to the other end of what the answer has.
    fn send(
        self: &Arc<Self>,
        offset_bytes: u64,
        write: impl FnOnce(&dyn VolumeDriver, &mut dyn Write) -> Result<(), VolumeError>
        + Send
        + 'static,
    ) -> Result<Answer, VerbError> {
        let (theirs, ours) = UnixStream::pair().map_err(stream_error)?;
        ours.set_write_timeout(Some(TRANSFER_IDLE_MAX))
            .map_err(stream_error)?;
        self.in_background(move |service| {
            let mut to = BufWriter::with_capacity(BUFFER_BYTES, &ours);
            if let Err(error) = write(&*service.volumes, &mut to) {
                // The reader sees a stream without its end.
                tracing::warn!(error = &error as &dyn std::error::Error, "export broke off");
            }
        })?;
        Ok(answer(theirs, offset_bytes))
    }

    /// Begins an import; the answer has the end to write to, and to read the outcome from.
    fn import(
        self: &Arc<Self>,
        volume: VolumeId,
        size_bytes: u64,
        sealed: bool,
        part: ImportPart,
        turn: Option<Turn>,
    ) -> Result<Answer, VerbError> {
        let size = ByteSize(size_bytes);
        let offset = self.volumes.import_offset(&volume, size, &part)?;
        let key = self.key(&volume);
        let (theirs, ours) = UnixStream::pair().map_err(stream_error)?;
        ours.set_read_timeout(Some(IMPORT_IDLE_MAX))
            .map_err(stream_error)?;
        self.in_background(move |service| {
            let _turn = turn;
            let mut from = BufReader::with_capacity(BUFFER_BYTES, &ours);
            let done = checked(&mut from, sealed).and_then(|mut from| {
                service
                    .volumes
                    .import(&volume, size, key.as_deref(), &part, &mut from)
            });
            let reply = match done {
                Ok(Some(report)) => HostReply::Volume(report),
                Ok(None) => HostReply::Done,
                Err(error) => refusal(&error.into()),
            };
            let told = serde_json::to_vec(&reply)
                .map_err(io::Error::other)
                .and_then(|json| (&ours).write_all(&json))
                .and_then(|()| ours.shutdown(Shutdown::Both));
            if let Err(error) = told {
                tracing::debug!(%volume, %error, "nobody heard how an import ended");
            }
        })?;
        Ok(answer(theirs, offset))
    }

    /// On a thread of its own, for it may take hours. Refused when too many do.
    fn in_background(
        self: &Arc<Self>,
        work: impl FnOnce(&Service) + Send + 'static,
    ) -> Result<(), VerbError> {
        let Ok(place) = Arc::clone(&self.transfers).try_acquire_owned() else {
            return Err(VerbError::TransfersFull);
        };
        let service = Arc::clone(self);
        std::thread::Builder::new()
            .name("transfer".to_owned())
            .spawn(move || {
                work(&service);
                drop(place);
            })
            .map(drop)
            .map_err(stream_error)
    }
}

/// The stream, if it is in clear or may be sealed. Only a move, from another host, may be sealed: whatever else comes in, a tenant
/// wrote, and this host's kernel never mounts it.
fn checked(from: &mut dyn Read, sealed: bool) -> Result<impl Read, VolumeError> {
    let mut head = [0; stream::HEADER_BYTES];
    from.read_exact(&mut head)
        .map_err(|error| VolumeError::stream(StreamFault::BrokenOff, error))?;
    let header = stream::read_header(&mut &head[..]);
    let mut header = header.map_err(|error| VolumeError::stream(error.fault(), error))?;
    if header.sealed && !sealed {
        let why = StreamFault::Sealed;
        return Err(VolumeError::stream(why, why));
    }
    header.foreign |= !sealed;
    Ok(io::Cursor::new(header.to_bytes()).chain(from))
}

fn answer(theirs: UnixStream, offset_bytes: u64) -> Answer {
    Answer {
        reply: HostReply::Stream { offset_bytes },
        descriptor: Some(OwnedFd::from(theirs)),
    }
}

fn refusal(error: &VerbError) -> HostReply {
    let mut refusal = HostError::new(super::code(error), super::chain(error));
    if let VerbError::Volume(VolumeError::Stream(stream)) = error {
        refusal.stream = Some(stream.fault);
    }
    HostReply::Error(refusal)
}

fn stream_error(error: io::Error) -> VerbError {
    VolumeError::stream(StreamFault::Io, error).into()
}

/// What a volume's refusal is to whoever asked.
pub(super) fn code(error: &VolumeError) -> HostErrorCode {
    match error {
        VolumeError::NotFound { .. } | VolumeError::SnapshotNotFound { .. } => {
            HostErrorCode::NotFound
        }
        VolumeError::InUse { .. }
        | VolumeError::Busy { .. }
        | VolumeError::SnapshotBusy { .. }
        | VolumeError::PoolBusy { .. } => HostErrorCode::Busy,
        VolumeError::NoSpace { .. } | VolumeError::PoolFull { .. } => HostErrorCode::NoSpace,
        VolumeError::SizeDiffers { .. }
        | VolumeError::InvalidSize { .. }
        | VolumeError::Shrink { .. }
        | VolumeError::Stream(_) => HostErrorCode::BadRequest,
        VolumeError::Damaged { .. } => HostErrorCode::VolumeDamaged,
        VolumeError::Foreign { .. } => HostErrorCode::VolumeForeign,
        VolumeError::KeyNeeded { .. } => HostErrorCode::KeyNeeded,
        VolumeError::Unsupported(_) => HostErrorCode::Unsupported,
        VolumeError::EncryptionUnavailable { .. }
        | VolumeError::WrongKey { .. }
        | VolumeError::Tool { .. }
        | VolumeError::Io { .. } => HostErrorCode::Failed,
    }
}
