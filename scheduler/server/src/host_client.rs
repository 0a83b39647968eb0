//! A client of the host API ([`slipway_core::host_api`]).
//!
//! Owns: framing, a small pool of connections, receiving the descriptor of an endpoint, time bounds. Must not know: when or
//! why anything is asked.

use crate::limits::{ENDPOINT_BUSY_PAUSE, ENDPOINT_PLACE_WAIT_MAX};
use crate::machine_stream::MachineStream;
use lanes::{Lane, Lanes};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use slipway_core::generation::Generation;
use slipway_core::host_api::{
    EndpointPort, HOST_API_VERSION, HostError, HostErrorCode, HostInfo, HostReply, HostRequest,
    HostRequestFrame, ImportPart, MachineReport, MachineSpec, SnapshotReport, VolumeReport,
    VolumeSource,
};
use slipway_core::id::{MachineId, SnapshotId, VolumeId};
use slipway_core::key::KeyLease;
use slipway_core::limits::{HOST_API_FRAME_BYTES_MAX, HOST_API_WATCH_WAIT_MAX};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

mod lanes;

/// Idle connections kept for one host; one more is closed instead of kept.
pub const HOST_CONNECTIONS_IDLE_MAX: usize = 8;
/// Longest a quick verb (list, stop, endpoint) may take.
const QUICK_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest a verb that makes something may take (mkfs, fsck, machine start).
const MAKING_WAIT_MAX: Duration = Duration::from_secs(180);

/// More than any request takes.
const FRAME_BYTES: usize = 4 << 10;

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
}

impl HostClientError {
    /// The host's own code, if it was the host that refused.
    pub fn code(&self) -> Option<HostErrorCode> {
        match self {
            Self::Refused(error) => Some(error.code),
            Self::Unreachable { .. } | Self::TimedOut(_) | Self::Protocol(_) => None,
        }
    }
}

/// A client of one host; clones share its connections.
#[derive(Debug, Clone)]
pub struct HostClient {
    socket: Arc<Path>,
    idle: Arc<Mutex<Vec<UnixStream>>>,
    lanes: Arc<Lanes>,
}

impl HostClient {
    /// A client of the daemon at `socket`; nothing is opened yet.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.into(),
            idle: Arc::default(),
            lanes: Arc::default(),
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

    /// Makes a volume if it is not there.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn ensure_volume(
        &self,
        volume: VolumeId,
        size_bytes: u64,
    ) -> Result<VolumeReport, HostClientError> {
        let request = HostRequest::EnsureVolume {
            volume,
            size_bytes,
            source: None,
        };
        let HostReply::Volume(report) = self.call(request, Lane::Making).await?.0 else {
            return Err(HostClientError::Protocol("no volume"));
        };
        Ok(report)
    }

    /// Removes a volume for good.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn destroy_volume(&self, volume: VolumeId) -> Result<(), HostClientError> {
        self.call(HostRequest::DestroyVolume { volume }, Lane::Making)
            .await
            .map(drop)
    }

    /// All volumes.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn volumes(&self) -> Result<Vec<VolumeReport>, HostClientError> {
        let HostReply::Volumes { volumes } =
            self.call(HostRequest::ListVolumes, Lane::Quick).await?.0
        else {
            return Err(HostClientError::Protocol("no volumes"));
        };
        Ok(volumes)
    }

    /// Makes a volume from what a snapshot or another volume holds, if it is not there.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn ensure_volume_from(
        &self,
        volume: VolumeId,
        size_bytes: u64,
        source: VolumeSource,
    ) -> Result<VolumeReport, HostClientError> {
        let request = HostRequest::EnsureVolume {
            volume,
            size_bytes,
            source: Some(source),
        };
        let HostReply::Volume(report) = self.call(request, Lane::Making).await?.0 else {
            return Err(HostClientError::Protocol("no volume"));
        };
        Ok(report)
    }

    /// Makes a volume larger.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn extend_volume(
        &self,
        volume: VolumeId,
        size_bytes: u64,
    ) -> Result<VolumeReport, HostClientError> {
        let request = HostRequest::ExtendVolume { volume, size_bytes };
        let HostReply::Volume(report) = self.call(request, Lane::Making).await?.0 else {
            return Err(HostClientError::Protocol("no volume"));
        };
        Ok(report)
    }

    /// Keeps what a volume holds now.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn create_snapshot(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<SnapshotReport, HostClientError> {
        let request = HostRequest::CreateSnapshot { volume, snapshot };
        let HostReply::Snapshot(report) = self.call(request, Lane::Making).await?.0 else {
            return Err(HostClientError::Protocol("no snapshot"));
        };
        Ok(report)
    }

    /// Removes a snapshot for good.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn delete_snapshot(&self, snapshot: SnapshotId) -> Result<(), HostClientError> {
        self.call(HostRequest::DeleteSnapshot { snapshot }, Lane::Making)
            .await
            .map(drop)
    }

    /// All snapshots.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn snapshots(&self) -> Result<Vec<SnapshotReport>, HostClientError> {
        let request = HostRequest::ListSnapshots;
        let HostReply::Snapshots { snapshots } = self.call(request, Lane::Quick).await?.0 else {
            return Err(HostClientError::Protocol("no snapshots"));
        };
        Ok(snapshots)
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

    /// A stream to write an exported volume to, from the offset on that comes with it. Its other direction then has one
    /// [`HostReply`] as JSON. `sealed`: it may be one of what is on an encrypted disk.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn import_volume(
        &self,
        volume: VolumeId,
        size_bytes: u64,
        sealed: bool,
    ) -> Result<(u64, UnixStream), HostClientError> {
        self.import_part(volume, size_bytes, sealed, ImportPart::Whole)
            .await
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

    /// As [`Self::import_volume`], for a part of a volume that arrives in two.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn import_part(
        &self,
        volume: VolumeId,
        size_bytes: u64,
        sealed: bool,
        part: ImportPart,
    ) -> Result<(u64, UnixStream), HostClientError> {
        let request = HostRequest::ImportVolume {
            volume,
            size_bytes,
            sealed,
            part,
        };
        let (HostReply::Stream { offset_bytes }, Some(fd)) =
            self.call(request, Lane::Quick).await?
        else {
            return Err(HostClientError::Protocol("no stream"));
        };
        self.stream(fd).map(|stream| (offset_bytes, stream))
    }

    /// Lends a key to the host, or renews its lease.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn lend_key(&self, lease: KeyLease) -> Result<(), HostClientError> {
        let body = frame(HostRequest::LendKey, Some(lease))?;
        self.call_with(&body, Lane::Quick).await.map(drop)
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

    /// Starts a machine if this generation of it does not run yet.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn ensure_machine(
        &self,
        spec: MachineSpec,
    ) -> Result<MachineReport, HostClientError> {
        let request = HostRequest::EnsureMachine(spec);
        let HostReply::Machine(report) = self.call(request, Lane::Making).await?.0 else {
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

    /// All machines, now.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn machines(&self) -> Result<MachineList, HostClientError> {
        let request = HostRequest::WatchMachines {
            after: 0,
            wait_ms: 0,
        };
        machine_list(self.call(request, Lane::Quick).await?.0)
    }

    /// Begins to watch the machines, on a connection of its own. When the daemon ends, so does the watch: revisions of
    /// two lives of a daemon cannot be compared.
    ///
    /// # Errors
    /// [`HostClientError`].
    pub async fn watch(&self) -> Result<HostWatch, HostClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| self.unreachable(source))?;
        Ok(HostWatch {
            client: self.clone(),
            stream,
        })
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
        self.call_with(&frame(request, None)?, lane).await
    }

    async fn call_with(
        &self,
        body: &[u8],
        lane: Lane,
    ) -> Result<(HostReply, Option<OwnedFd>), HostClientError> {
        let wait = match lane {
            Lane::Quick | Lane::Endpoint => QUICK_WAIT_MAX,
            Lane::Making => MAKING_WAIT_MAX,
        };
        let _place = timeout(wait, self.lanes.enter(lane))
            .await
            .map_err(|_| HostClientError::TimedOut(wait))?;
        let answer = timeout(wait, self.exchange(body))
            .await
            .map_err(|_| HostClientError::TimedOut(wait))?;
        match answer? {
            (HostReply::Error(error), _) => Err(HostClientError::Refused(error)),
            answer => Ok(answer),
        }
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

/// All machines of a host at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineList {
    /// Grows with each change, within one life of the daemon.
    pub revision: u64,
    /// In id order.
    pub machines: Vec<MachineReport>,
}

fn machine_list(reply: HostReply) -> Result<MachineList, HostClientError> {
    match reply {
        HostReply::Machines { revision, machines } => Ok(MachineList { revision, machines }),
        HostReply::Error(error) => Err(HostClientError::Refused(error)),
        HostReply::Done
        | HostReply::Info(_)
        | HostReply::Volume(_)
        | HostReply::Volumes { .. }
        | HostReply::Snapshot(_)
        | HostReply::Snapshots { .. }
        | HostReply::Stream { .. }
        | HostReply::Machine(_)
        | HostReply::Endpoint => Err(HostClientError::Protocol("no machines")),
    }
}

/// A watch on the machines of one host.
#[derive(Debug)]
pub struct HostWatch {
    client: HostClient,
    stream: UnixStream,
}

impl HostWatch {
    /// All machines, as soon as their revision is above `after` or `wait` is over. Not cancel-safe: drop the watch then.
    ///
    /// # Errors
    /// [`HostClientError`]; the watch is of no use afterwards.
    pub async fn next(
        &mut self,
        after: u64,
        wait: Duration,
    ) -> Result<MachineList, HostClientError> {
        let wait = wait.min(HOST_API_WATCH_WAIT_MAX);
        let wait_ms = millis(wait);
        let body = frame(HostRequest::WatchMachines { after, wait_ms }, None)?;
        let bound = wait + QUICK_WAIT_MAX;
        let (reply, _) = timeout(bound, exchange_on(&mut self.stream, &body))
            .await
            .map_err(|_| HostClientError::TimedOut(bound))?
            .map_err(|source| self.client.unreachable(source))?;
        machine_list(
            serde_json::from_slice(&reply)
                .map_err(|_| HostClientError::Protocol("reply is not one"))?,
        )
    }
}

/// It may have a key in it, so that it is wiped when it is sent.
fn frame(
    request: HostRequest,
    lease: Option<KeyLease>,
) -> Result<Zeroizing<Vec<u8>>, HostClientError> {
    // Room enough from the start: a buffer that grows leaves copies behind.
    let mut body = Zeroizing::new(Vec::with_capacity(FRAME_BYTES));
    let version = HOST_API_VERSION;
    let frame = HostRequestFrame {
        version,
        request,
        lease,
    };
    serde_json::to_writer(&mut *body, &frame)
        .map(|()| body)
        .map_err(|_| HostClientError::Protocol("request cannot be written"))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

async fn exchange_on(
    stream: &mut UnixStream,
    body: &[u8],
) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut frame = Zeroizing::new(Vec::with_capacity(4 + body.len()));
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(body);
    stream.write_all(&frame).await?;

    let mut head = [0u8; 4];
    let (got, fd) = receive_head(stream, &mut head).await?;
    stream.read_exact(&mut head[got..]).await?;
    let length = u32::from_be_bytes(head) as usize;
    if length > HOST_API_FRAME_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "reply frame is too large",
        ));
    }
    let mut reply = vec![0; length];
    stream.read_exact(&mut reply).await?;
    Ok((reply, fd))
}

/// Reads the beginning of a reply's length, with the descriptor that may come along on its first byte.
async fn receive_head(
    stream: &UnixStream,
    head: &mut [u8; 4],
) -> io::Result<(usize, Option<OwnedFd>)> {
    loop {
        stream.readable().await?;
        let tried = stream.try_io(Interest::READABLE, || {
            let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
            let mut parts = [IoSliceMut::new(head)];
            let message = recvmsg::<()>(
                stream.as_raw_fd(),
                &mut parts,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            )?;
            let mut received = None;
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(fds) = control {
                    // All are owned, so that none leaks; more than one is not in the protocol.
                    received = fds.into_iter().map(own).next_back();
                }
            }
            Ok((message.bytes, received))
        });
        match tried {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

#[expect(
    unsafe_code,
    reason = "a descriptor received by SCM_RIGHTS arrives as a bare number"
)]
fn own(fd: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
