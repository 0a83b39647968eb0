//! A client of the host API ([`slipway_core::host_api`]).
//!
//! Owns: framing, a small pool of connections, receiving the descriptor of an endpoint, time bounds, the version that is spoken, the
//! pages of lists. Must not know: when or why anything is asked.

use crate::limits::{ENDPOINT_BUSY_PAUSE, ENDPOINT_PLACE_WAIT_MAX};
use crate::machine_stream::MachineStream;
use lanes::{Lane, Lanes};
use slipway_core::fence::VolumeFence;
use slipway_core::generation::Generation;
use slipway_core::host_api::{
    EndpointPort, FENCED_SINCE, HOST_API_VERSIONS, HostError, HostErrorCode, HostInfo, HostReply,
    HostRequest, HostRequestFrame, ImportPart, MachineReport, MachineSpec, NoCommonVersion,
    SnapshotReport, VolumeReport, VolumeSource,
};
use slipway_core::id::{MachineId, SnapshotId, VolumeId};
use slipway_core::key::KeyLease;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;
use wire::exchange_on;
use zeroize::Zeroizing;

mod lanes;
mod lists;
mod wire;

pub use lists::{HostWatch, MachineList};

/// Idle connections kept for one host; one more is closed instead of kept.
pub const HOST_CONNECTIONS_IDLE_MAX: usize = 8;
/// Longest a quick verb (list, stop, endpoint) may take.
const QUICK_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest a verb that makes something may take (mkfs, fsck, machine start).
const MAKING_WAIT_MAX: Duration = Duration::from_secs(180);

/// No version of the host API.
const UNKNOWN: u32 = 0;

/// Why a host could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum HostClientError {
    /// The daemon is not there or went away.
    #[error("reach the host daemon at {socket}")]
    Unreachable {
        /// Where it should be.
        socket: PathBuf,
        /// What the socket said.
        #[source]
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("the host daemon did not answer within {0:?}")]
    TimedOut(Duration),
    /// It refused.
    #[error("the host refused: {:?}", .0.code)]
    Refused(HostError),
    /// It answered something that is not an answer to the question.
    #[error("the host daemon speaks another protocol: {0}")]
    Protocol(&'static str),
    /// It is of a release that this one does not understand.
    #[error(transparent)]
    OtherVersion(#[from] NoCommonVersion),
}

impl HostClientError {
    /// The host's own code, if it was the host that refused.
    pub fn code(&self) -> Option<HostErrorCode> {
        match self {
            Self::Refused(error) => Some(error.code),
            Self::Unreachable { .. }
            | Self::TimedOut(_)
            | Self::Protocol(_)
            | Self::OtherVersion(_) => None,
        }
    }
}

/// A client of one host; clones share its connections.
#[derive(Debug, Clone)]
pub struct HostClient {
    socket: Arc<Path>,
    idle: Arc<Mutex<Vec<UnixStream>>>,
    lanes: Arc<Lanes>,
    /// What both sides speak, or [`UNKNOWN`].
    version: Arc<AtomicU32>,
}

impl HostClient {
    /// A client of the daemon at `socket`; nothing is opened yet.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.into(),
            idle: Arc::default(),
            lanes: Arc::default(),
            version: Arc::new(AtomicU32::new(UNKNOWN)),
        }
    }

    /// What the host is and has.
    ///
    /// # Errors
    /// [`HostClientError`], as with every verb.
    pub async fn info(&self) -> Result<HostInfo, HostClientError> {
        let HostReply::Info(info) = self.call(HostRequest::Info, Lane::Quick).await?.0 else {
            return Err(HostClientError::Protocol("no info"));
        };
        Ok(info)
    }

    /// Makes a volume if it is not there: empty, or with what its source holds.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn ensure_volume(
        &self,
        fence: VolumeFence,
        size_bytes: u64,
        source: Option<VolumeSource>,
    ) -> Result<VolumeReport, HostClientError> {
        let request = HostRequest::EnsureVolume {
            volume: fence.volume.clone(),
            size_bytes,
            source,
        };
        self.one_volume(request, fence).await
    }

    /// Makes a volume larger.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn extend_volume(
        &self,
        fence: VolumeFence,
        size_bytes: u64,
    ) -> Result<VolumeReport, HostClientError> {
        let request = HostRequest::ExtendVolume {
            volume: fence.volume.clone(),
            size_bytes,
        };
        self.one_volume(request, fence).await
    }

    async fn one_volume(
        &self,
        request: HostRequest,
        fence: VolumeFence,
    ) -> Result<VolumeReport, HostClientError> {
        let called = self.call_fenced(request, fence, Lane::Making).await?;
        let HostReply::Volume(report) = called.0 else {
            return Err(HostClientError::Protocol("no volume"));
        };
        Ok(report)
    }

    /// Removes a volume for good.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn destroy_volume(&self, fence: VolumeFence) -> Result<(), HostClientError> {
        let volume = fence.volume.clone();
        let request = HostRequest::DestroyVolume { volume };
        self.call_fenced(request, fence, Lane::Making)
            .await
            .map(drop)
    }

    /// One volume, if it is there and whole. Afterwards the host does nothing to it that carries a lower number.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn show_volume(
        &self,
        fence: VolumeFence,
    ) -> Result<Option<VolumeReport>, HostClientError> {
        let volume = fence.volume.clone();
        if self.version().await? < FENCED_SINCE {
            let there = self.volumes().await?;
            return Ok(there.into_iter().find(|report| report.volume == volume));
        }
        let request = HostRequest::ShowVolume { volume };
        match self.one_volume(request, fence).await {
            Err(error) if error.code() == Some(HostErrorCode::NotFound) => Ok(None),
            shown => shown.map(Some),
        }
    }

    /// Keeps what a volume holds now.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn create_snapshot(
        &self,
        fence: VolumeFence,
        snapshot: SnapshotId,
    ) -> Result<SnapshotReport, HostClientError> {
        let volume = fence.volume.clone();
        let request = HostRequest::CreateSnapshot { volume, snapshot };
        let called = self.call_fenced(request, fence, Lane::Making).await?;
        let HostReply::Snapshot(report) = called.0 else {
            return Err(HostClientError::Protocol("no snapshot"));
        };
        Ok(report)
    }

    /// Removes a snapshot of the volume for good.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn delete_snapshot(
        &self,
        fence: VolumeFence,
        snapshot: SnapshotId,
    ) -> Result<(), HostClientError> {
        let request = HostRequest::DeleteSnapshot { snapshot };
        self.call_fenced(request, fence, Lane::Making)
            .await
            .map(drop)
    }

    /// A stream of a snapshot's contents from `offset_bytes` on.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn export_snapshot(
        &self,
        snapshot: SnapshotId,
        offset_bytes: u64,
        sealed: bool,
    ) -> Result<UnixStream, HostClientError> {
        let request = HostRequest::ExportSnapshot {
            snapshot,
            offset_bytes,
            sealed,
        };
        let (HostReply::Stream { .. }, Some(fd)) = self.call(request, Lane::Quick).await? else {
            return Err(HostClientError::Protocol("no stream"));
        };
        self.stream(fd)
    }

    /// A stream of what `snapshot` has and `base` has not.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn export_difference(
        &self,
        base: SnapshotId,
        snapshot: SnapshotId,
    ) -> Result<UnixStream, HostClientError> {
        let request = HostRequest::ExportDifference { base, snapshot };
        let (HostReply::Stream { .. }, Some(fd)) = self.call(request, Lane::Quick).await? else {
            return Err(HostClientError::Protocol("no stream"));
        };
        self.stream(fd)
    }

    /// A stream to write an exported volume to, or one part of it, from the offset on that comes with it. Its other direction then has
    /// one [`HostReply`] as JSON. `sealed`: it may be one of what is on an encrypted disk.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn import_volume(
        &self,
        fence: VolumeFence,
        size_bytes: u64,
        sealed: bool,
        part: ImportPart,
    ) -> Result<(u64, UnixStream), HostClientError> {
        let request = HostRequest::ImportVolume {
            volume: fence.volume.clone(),
            size_bytes,
            sealed,
            part,
        };
        let called = self.call_fenced(request, fence, Lane::Quick).await?;
        let (HostReply::Stream { offset_bytes }, Some(fd)) = called else {
            return Err(HostClientError::Protocol("no stream"));
        };
        self.stream(fd).map(|stream| (offset_bytes, stream))
    }

    /// Lends a key to the host, or renews its lease.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn lend_key(&self, lease: KeyLease) -> Result<(), HostClientError> {
        let frame = HostRequestFrame {
            lease: Some(lease),
            ..HostRequest::LendKey.into()
        };
        self.call_frame(&frame, Lane::Quick).await.map(drop)
    }

    /// Has the host forget a key that was lent for this generation or an older one.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn revoke_key(
        &self,
        volume: VolumeId,
        generation: Generation,
    ) -> Result<(), HostClientError> {
        let request = HostRequest::RevokeKey { volume, generation };
        self.call(request, Lane::Quick).await.map(drop)
    }

    /// Starts a machine if this generation of it does not run yet. The fence is that of the volume that it gets.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn ensure_machine(
        &self,
        fence: VolumeFence,
        spec: MachineSpec,
    ) -> Result<MachineReport, HostClientError> {
        let request = HostRequest::EnsureMachine(spec);
        let called = self.call_fenced(request, fence, Lane::Making).await?;
        let HostReply::Machine(report) = called.0 else {
            return Err(HostClientError::Protocol("no machine"));
        };
        Ok(report)
    }

    /// Asks a machine to end, and has it killed after `grace`.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn stop_machine(
        &self,
        machine: MachineId,
        generation: Generation,
        grace: Duration,
    ) -> Result<MachineReport, HostClientError> {
        let grace_ms = millis(grace);
        let request = HostRequest::StopMachine {
            machine,
            generation,
            grace_ms,
        };
        let HostReply::Machine(report) = self.call(request, Lane::Quick).await?.0 else {
            return Err(HostClientError::Protocol("no machine"));
        };
        Ok(report)
    }

    /// Forgets a machine that has ended.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn remove_machine(
        &self,
        machine: MachineId,
        generation: Generation,
    ) -> Result<(), HostClientError> {
        let request = HostRequest::RemoveMachine {
            machine,
            generation,
        };
        self.call(request, Lane::Making).await.map(drop)
    }

    /// A connected stream to a port of a machine.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn open_endpoint(
        &self,
        machine: MachineId,
        generation: Generation,
        port: EndpointPort,
    ) -> Result<MachineStream, HostClientError> {
        let place = timeout(
            ENDPOINT_PLACE_WAIT_MAX,
            self.lanes.enter_port(&machine, port),
        );
        let Ok(place) = place.await else {
            let message = format!("machine {machine} takes no connections");
            let busy = HostError::new(HostErrorCode::Busy, message);
            return Err(HostClientError::Refused(busy));
        };
        let request = HostRequest::OpenEndpoint {
            machine,
            generation,
            port,
        };
        let called = self.call(request, Lane::Endpoint).await;
        if let Err(error) = &called
            && error.code() == Some(HostErrorCode::Busy)
        {
            // With its place, so that all who wait for this machine ask no more often together.
            tokio::time::sleep(ENDPOINT_BUSY_PAUSE).await;
        }
        drop(place);
        let (HostReply::Endpoint, Some(fd)) = called? else {
            return Err(HostClientError::Protocol("no endpoint"));
        };
        MachineStream::new(fd).map_err(|source| self.unreachable(source))
    }

    /// A descriptor that came along, as a stream of the runtime.
    fn stream(&self, fd: OwnedFd) -> Result<UnixStream, HostClientError> {
        let stream = std::os::unix::net::UnixStream::from(fd);
        let set_up = || {
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        };
        set_up().map_err(|source| self.unreachable(source))
    }

    async fn call(
        &self,
        request: HostRequest,
        lane: Lane,
    ) -> Result<(HostReply, Option<OwnedFd>), HostClientError> {
        self.call_frame(&request.into(), lane).await
    }

    async fn call_fenced(
        &self,
        request: HostRequest,
        fence: VolumeFence,
        lane: Lane,
    ) -> Result<(HostReply, Option<OwnedFd>), HostClientError> {
        let frame = HostRequestFrame {
            fence: Some(fence),
            ..request.into()
        };
        self.call_frame(&frame, lane).await
    }

    /// Asks in the version that both sides speak.
    async fn call_frame(
        &self,
        frame: &HostRequestFrame,
        lane: Lane,
    ) -> Result<(HostReply, Option<OwnedFd>), HostClientError> {
        let version = self.version().await?;
        match self.call_in(frame, version, lane).await {
            // The daemon may be of another version than it was: before anybody believes the refusal, it is asked.
            Err(HostClientError::Refused(refusal)) if refusal.code == HostErrorCode::BadRequest => {
                let now = self.agree().await?;
                if now == version {
                    return Err(HostClientError::Refused(refusal));
                }
                self.call_in(frame, now, lane).await
            }
            called => called,
        }
    }

    async fn call_in(
        &self,
        frame: &HostRequestFrame,
        version: u32,
        lane: Lane,
    ) -> Result<(HostReply, Option<OwnedFd>), HostClientError> {
        let body = encode(frame, version)?;
        let wait = match lane {
            Lane::Quick | Lane::Endpoint => QUICK_WAIT_MAX,
            Lane::Making => MAKING_WAIT_MAX,
        };
        let _place = timeout(wait, self.lanes.enter(lane))
            .await
            .map_err(|_| HostClientError::TimedOut(wait))?;
        let answer = timeout(wait, self.exchange(&body))
            .await
            .map_err(|_| HostClientError::TimedOut(wait))?;
        match answer? {
            (HostReply::Error(error), _) => Err(HostClientError::Refused(error)),
            answer => Ok(answer),
        }
    }

    /// The version that both sides speak.
    async fn version(&self) -> Result<u32, HostClientError> {
        match self.version.load(Ordering::Relaxed) {
            UNKNOWN => self.agree().await,
            known => Ok(known),
        }
    }

    /// Finds out which version both sides speak, by asking something in the newest.
    async fn agree(&self) -> Result<u32, HostClientError> {
        let newest = HOST_API_VERSIONS.newest;
        let asked = self
            .call_in(&HostRequest::Info.into(), newest, Lane::Quick)
            .await;
        let version = match asked {
            Err(HostClientError::Refused(refusal)) if refusal.code == HostErrorCode::BadRequest => {
                HOST_API_VERSIONS.common(refusal.speaks)?
            }
            // Whatever it says, it has read the version.
            Ok(_) | Err(HostClientError::Refused(_)) => newest,
            Err(error) => return Err(error),
        };
        self.version.store(version, Ordering::Relaxed);
        Ok(version)
    }

    /// One request and its reply. A pooled connection that turns out to be dead is replaced once: every verb is idempotent.
    async fn exchange(&self, body: &[u8]) -> Result<(HostReply, Option<OwnedFd>), HostClientError> {
        let pooled = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        if let Some(mut stream) = pooled
            && let Ok(answer) = exchange_on(&mut stream, body).await
        {
            return self.keep(stream, &answer.0, answer.1);
        }
        let mut stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| self.unreachable(source))?;
        let (reply, fd) = exchange_on(&mut stream, body)
            .await
            .map_err(|source| self.unreachable(source))?;
        self.keep(stream, &reply, fd)
    }

    fn keep(
        &self,
        stream: UnixStream,
        reply: &[u8],
        fd: Option<OwnedFd>,
    ) -> Result<(HostReply, Option<OwnedFd>), HostClientError> {
        let reply = serde_json::from_slice(reply)
            .map_err(|_| HostClientError::Protocol("reply is not one"))?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < HOST_CONNECTIONS_IDLE_MAX {
            idle.push(stream);
        }
        Ok((reply, fd))
    }

    fn unreachable(&self, source: io::Error) -> HostClientError {
        HostClientError::Unreachable {
            socket: self.socket.to_path_buf(),
            source,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The bytes of a frame in this version.
fn encode(frame: &HostRequestFrame, version: u32) -> Result<Zeroizing<Vec<u8>>, HostClientError> {
    wire::encode(frame, version).map_err(|_| HostClientError::Protocol("request cannot be written"))
}
