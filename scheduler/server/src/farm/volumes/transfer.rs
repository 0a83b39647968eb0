//! Exports and imports: between the descriptor that a host gives and whoever reads or sends.
//!
//! The bytes are those of `slipway_volume_stream`, and pass through unread: the host that writes them proves them, and
//! the host that reads them checks them. An import that breaks off is kept by its host; what is recorded says that it is
//! waited for, and until when.
//!
//! Must not know: HTTP, who may do what.

use super::notice::is_for_later;
use super::under_way::{Place, Upload};
use crate::chain::chain;
use crate::clock::now;
use crate::farm::host::HostLink;
use crate::farm::keys::{give_back, lend_for_work};
use crate::farm::volume_error::VolumeError;
use crate::farm::{Farm, FarmError, Shared};
use crate::host_client::HostClientError;
use crate::limits::{
    IMPORT_END_WAIT_MAX, IMPORT_HOST_WAIT_MAX, IMPORT_KEPT_FOR, IMPORT_NOTED_EVERY,
};
use bytes::Bytes;
use slipway_core::host_api::{HostError, HostErrorCode, HostReply, ImportPart, VolumeReport};
use slipway_core::id::{OrgId, SnapshotId, VolumeId};
use slipway_core::limits::HOST_API_FRAME_BYTES_MAX;
use slipway_store::{SnapshotState, StoreError, Volume, VolumeState};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::time::{Instant, timeout};

/// An export that is read. Dropped, it ends.
#[derive(Debug)]
pub struct Download {
    stream: UnixStream,
    _place: Place,
}

impl Download {
    /// The next bytes, none at the end. Whether the stream is whole it says itself.
    ///
    /// # Errors
    /// The host went away.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer).await
    }
}

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportedSoFar {
    /// It goes on from this byte of the contents.
    At(u64),
    /// It is whole, and the volume made.
    Whole,
}

/// What is sent stopped before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyEnded;

/// Bytes of an import, in order. Its end is the end of what was sent, or the word that it stopped before.
pub type ImportBody = mpsc::Receiver<Result<Bytes, BodyEnded>>;

impl Farm {
    /// The contents of a snapshot from `offset` on, in clear, as a stream.
    ///
    /// # Errors
    /// [`VolumeError::SnapshotNotReady`], [`VolumeError::TooManyTransfers`], [`VolumeError::HostAway`], the key's or the
    /// store's.
    pub async fn export_snapshot(
        &self,
        org: &OrgId,
        id: &SnapshotId,
        offset: u64,
    ) -> Result<Download, FarmError> {
        let shared = &self.0;
        let place = shared.transfers.begin(org)?;
        let snapshot = shared.store.snapshot(org, id).await?;
        if snapshot.state != SnapshotState::Ready {
            return Err(VolumeError::SnapshotNotReady.into());
        }
        let link = shared.link(&snapshot.host).ok_or(VolumeError::HostAway)?;
        let _held = shared.volume_locks.hold(&snapshot.volume).await;
        // What is open stays so without the lease.
        let lent = match snapshot.encrypted {
            true => lend_for_work(shared, &link, org, &snapshot.volume).await?,
            false => None,
        };
        let opened = link.client.export_snapshot(id.clone(), offset, false).await;
        if let Some(lease) = lent {
            give_back(&link, lease).await;
        }
        let stream = opened.map_err(refused)?;
        tracing::info!(%org, snapshot = %id, offset, "snapshot is exported");
        Ok(Download {
            stream,
            _place: place,
        })
    }

    /// How far the import of a volume is.
    ///
    /// # Errors
    /// [`VolumeError::NotImporting`], [`VolumeError::BeingSent`], [`VolumeError::HostAway`], or the store's.
    pub async fn imported_so_far(
        &self,
        org: &OrgId,
        id: &VolumeId,
    ) -> Result<ImportedSoFar, FarmError> {
        let shared = &self.0;
        let known = shared.store.volume(org, id).await?;
        if known.state == VolumeState::Ready {
            return Ok(ImportedSoFar::Whole);
        }
        let _place = shared.transfers.begin(org)?;
        let upload = shared.transfers.begin_upload(id)?;
        let (volume, link) = shared.waits_for_import(org, id).await?;
        let (offset, stream) = shared.open_import(&link, &volume, &upload).await?;
        ended(stream).await;
        // Whoever sent it may not have lived to hear that it was whole.
        let settled = shared.settle_volume(&link, org, id).await?;
        Ok(match settled {
            Some(volume) if volume.import.is_none() => ImportedSoFar::Whole,
            Some(_) | None => ImportedSoFar::At(offset),
        })
    }

    /// Sends a stream to a volume that waits for one. It goes on if the caller goes away.
    ///
    /// # Errors
    /// [`VolumeError::NotImporting`], [`VolumeError::BeingSent`], [`VolumeError::TooManyTransfers`];
    /// [`VolumeError::Stream`] if the stream is not one, or not whole, [`VolumeError::BrokenOff`] if it stopped before its end:
    /// what has arrived is kept.
    pub async fn import_volume(
        &self,
        org: &OrgId,
        id: &VolumeId,
        body: ImportBody,
    ) -> Result<Volume, FarmError> {
        let (shared, org, id) = (Arc::clone(&self.0), org.clone(), id.clone());
        let sent = async move { shared.receive(&org, &id, body).await };
        self.0
            .tasks
            .spawn(sent)
            .await
            .map_err(|_| FarmError::Closed)?
    }
}

impl Shared {
    async fn receive(
        self: &Arc<Self>,
        org: &OrgId,
        id: &VolumeId,
        body: ImportBody,
    ) -> Result<Volume, FarmError> {
        let _place = self.transfers.begin(org)?;
        let upload = self.transfers.begin_upload(id)?;
        let (volume, link) = self.waits_for_import(org, id).await?;
        let taken = async {
            let (_, stream) = self.open_import(&link, &volume, &upload).await?;
            let report = self.pass_on(&volume, &upload, stream, body).await?;
            self.record_imported(&volume, &report).await
        };
        let taken = taken.await;
        drop(upload);
        match taken {
            Ok(()) => Ok(self.store.volume(org, id).await?),
            Err(error) => {
                self.after_refusal(&link, &volume, &error).await;
                Err(error)
            }
        }
    }

    /// The volume, if it waits for its contents, which it does from now on for [`IMPORT_KEPT_FOR`] again.
    async fn waits_for_import(
        &self,
        org: &OrgId,
        id: &VolumeId,
    ) -> Result<(Volume, Arc<HostLink>), FarmError> {
        let volume = match self.note_import(org, id).await {
            Err(StoreError::Changed(_)) => return Err(VolumeError::NotImporting.into()),
            noted => noted?,
        };
        let link = self.link(&volume.host).ok_or(VolumeError::HostAway)?;
        Ok((volume, link))
    }

    async fn note_import(&self, org: &OrgId, id: &VolumeId) -> Result<Volume, StoreError> {
        let until = now().after(IMPORT_KEPT_FOR);
        self.store.keep_import(org, id, until).await
    }

    async fn open_import(
        &self,
        link: &Arc<HostLink>,
        volume: &Volume,
        upload: &Upload,
    ) -> Result<(u64, UnixStream), FarmError> {
        let (org, id) = (&volume.org, &volume.id);
        let _held = self.hold_unless_ended(id, upload).await?;
        let lent = lend_for_work(self, link, org, id).await?;
        let size = volume.size.0;
        let opened = link
            .client
            .import_volume(volume.fenced(), size, false, ImportPart::Whole)
            .await;
        if let Some(lease) = lent {
            give_back(link, lease).await;
        }
        opened.map_err(refused)
    }

    /// The lock of a volume. Who has it may be waiting for this very upload to end.
    pub(super) async fn hold_unless_ended(
        &self,
        id: &VolumeId,
        upload: &Upload,
    ) -> Result<OwnedMutexGuard<()>, VolumeError> {
        tokio::select! {
            held = self.volume_locks.hold(id) => Ok(held),
            () = upload.asked_to_end().cancelled() => Err(VolumeError::NotImporting),
        }
    }

    /// Passes on what is sent, and gives what the host says of it.
    async fn pass_on(
        &self,
        volume: &Volume,
        upload: &Upload,
        mut stream: UnixStream,
        mut body: ImportBody,
    ) -> Result<VolumeReport, FarmError> {
        let mut noted = Instant::now();
        loop {
            let piece = tokio::select! {
                piece = body.recv() => piece,
                () = upload.asked_to_end().cancelled() => Some(Err(BodyEnded)),
                () = self.cancel.cancelled() => Some(Err(BodyEnded)),
            };
            match piece {
                None => break,
                Some(Err(BodyEnded)) => {
                    ended(stream).await;
                    return Err(VolumeError::BrokenOff.into());
                }
                Some(Ok(bytes)) => {
                    let written = timeout(IMPORT_HOST_WAIT_MAX, stream.write_all(&bytes));
                    // It has ended before: it says why.
                    if !matches!(written.await, Ok(Ok(()))) {
                        break;
                    }
                }
            }
            if noted.elapsed() >= IMPORT_NOTED_EVERY {
                noted = Instant::now();
                if let Err(error) = self.note_import(&volume.org, &volume.id).await {
                    tracing::warn!(volume = %volume.id, why = ?chain(&error), "import that goes on not noted");
                }
            }
        }
        tokio::select! {
            report = outcome(stream) => report?.ok_or(VolumeError::NotTaken.into()),
            // It may be whole all the same: then it is found by its name, and destroyed.
            () = upload.asked_to_end().cancelled() => Err(VolumeError::NotImporting.into()),
        }
    }

    /// The host has the volume whole.
    pub(super) async fn record_imported(
        &self,
        volume: &Volume,
        report: &VolumeReport,
    ) -> Result<(), FarmError> {
        let (org, id) = (&volume.org, &volume.id);
        let encrypted = Some(report.encrypted);
        self.store
            .record_volume_made(org, id, volume.size, encrypted)
            .await?;
        tracing::info!(%org, volume = %id, size = %volume.size, "volume imported");
        Ok(())
    }

    /// A host that will never take it: nothing is left of it. Everything else can be gone on with.
    async fn after_refusal(
        self: &Arc<Self>,
        link: &Arc<HostLink>,
        volume: &Volume,
        error: &FarmError,
    ) {
        let for_good = matches!(
            error,
            FarmError::Volume(VolumeError::NoSpace | VolumeError::Unsupported)
        );
        if !for_good {
            return;
        }
        let (org, id) = (&volume.org, &volume.id);
        let deleting = self
            .store
            .set_volume_state(org, id, VolumeState::Deleting)
            .await;
        let cleared = match deleting {
            Ok(_) => self.settle_volume(link, org, id).await.map(drop),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = cleared {
            let later = is_for_later(&error);
            tracing::warn!(%org, volume = %id, later, why = ?chain(&error), "refused import not cleared away");
        }
    }
}

/// Ends an import without its end, and waits until the host has let go of it.
pub(super) async fn ended(mut stream: UnixStream) {
    let gone = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    if !matches!(timeout(IMPORT_END_WAIT_MAX, gone).await, Ok(Ok(_))) {
        tracing::warn!("a host does not end an import that broke off");
    }
}

/// What the host says of a stream that has ended.
///
/// Nothing: it has taken all of a base, of which the difference is to follow.
pub(super) async fn outcome(mut stream: UnixStream) -> Result<Option<VolumeReport>, FarmError> {
    let mut reply = Vec::new();
    let read = async {
        // It may have ended before, and then it has said why.
        let _ = stream.shutdown().await;
        let bound = u64::try_from(HOST_API_FRAME_BYTES_MAX).unwrap_or(u64::MAX);
        (&mut stream).take(bound).read_to_end(&mut reply).await
    };
    // Where it has not read all that was sent, the end of its word is a reset.
    let read = timeout(IMPORT_HOST_WAIT_MAX, read).await;
    if read.is_err() || reply.is_empty() {
        return Err(VolumeError::HostAway.into());
    }
    match serde_json::from_slice(&reply) {
        Ok(HostReply::Volume(report)) => Ok(Some(report)),
        Ok(HostReply::Done) => Ok(None),
        Ok(HostReply::Error(HostError {
            stream: Some(fault),
            message,
            ..
        })) => {
            tracing::info!(?message, "stream of a volume not taken");
            Err(VolumeError::Stream(fault).into())
        }
        Ok(HostReply::Error(error)) => Err(refused(HostClientError::Refused(error))),
        Ok(_) | Err(_) => Err(HostClientError::Protocol("the end of an import is not one").into()),
    }
}

/// What a host's refusal is to whoever transfers.
pub(super) fn refused(error: HostClientError) -> FarmError {
    match VolumeError::of_host(error) {
        Ok(refusal) => refusal.into(),
        Err(error) if error.code() == Some(HostErrorCode::Busy) => {
            VolumeError::TransfersFull.into()
        }
        Err(error) => error.into(),
    }
}
