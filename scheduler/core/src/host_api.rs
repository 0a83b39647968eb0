//! The host API: what a control plane may ask of `slipway host`.
//!
//! Transport: a unix stream socket. Each message is a big-endian `u32` length and that many bytes of JSON
//! (at most [`crate::limits::HOST_API_FRAME_BYTES_MAX`]). A connection carries any number of requests, one at a
//! time. The reply to [`HostRequest::OpenEndpoint`] carries one file descriptor (`SCM_RIGHTS` on the first byte
//! of the reply's length): a connected stream to the guest, so that neither side copies bytes for the other, and
//! the stream outlives the host daemon.
//!
//! Every verb is idempotent. Verbs on a machine carry its generation; an older one is refused.

use crate::generation::Generation;
use crate::id::{MachineId, VolumeId};
use serde::{Deserialize, Serialize};

/// The version both sides must speak.
pub const HOST_API_VERSION: u32 = 1;

/// One request frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRequestFrame {
    /// [`HOST_API_VERSION`] of the sender.
    pub version: u32,
    /// What is asked.
    pub request: HostRequest,
}

/// What may be asked of a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verb")]
pub enum HostRequest {
    /// What this host is and has. Replies [`HostReply::Info`].
    Info,
    /// Makes the volume if it is not there. Replies [`HostReply::Volume`].
    EnsureVolume {
        /// Which volume.
        volume: VolumeId,
        /// Its hard cap in bytes.
        size_bytes: u64,
    },
    /// Removes a volume for good; absent is fine; attached is refused. Replies [`HostReply::Done`].
    DestroyVolume {
        /// Which volume.
        volume: VolumeId,
    },
    /// Replies [`HostReply::Volumes`].
    ListVolumes,
    /// Starts the machine if this generation of it is not running yet. Returns when its guest process runs, not
    /// when dockerd is ready. Replies [`HostReply::Machine`].
    EnsureMachine(MachineSpec),
    /// Asks the guest to end (SIGTERM to PID 1), and kills it after the grace. Returns at once; watch for the end.
    /// Replies [`HostReply::Machine`].
    StopMachine {
        /// Which machine.
        machine: MachineId,
        /// Its generation.
        generation: Generation,
        /// Milliseconds until it is killed; 0 kills at once.
        grace_ms: u64,
    },
    /// Forgets a machine that has ended and frees what it held. Running is refused; absent is fine.
    /// Replies [`HostReply::Done`].
    RemoveMachine {
        /// Which machine.
        machine: MachineId,
        /// Its generation.
        generation: Generation,
    },
    /// Waits until the machine list has a revision above `after` or the wait is over (level-triggered).
    /// `after: 0` answers at once. Replies [`HostReply::Machines`].
    WatchMachines {
        /// The revision the caller has.
        after: u64,
        /// At most [`crate::limits::HOST_API_WATCH_WAIT_MAX`].
        wait_ms: u64,
    },
    /// A connected stream to a port of the machine. Replies [`HostReply::Endpoint`] with one descriptor.
    OpenEndpoint {
        /// Which machine.
        machine: MachineId,
        /// Its generation.
        generation: Generation,
        /// Which of its listeners.
        port: EndpointPort,
    },
}

/// The listeners a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointPort {
    /// dockerd's API, served by dockerd itself. Connections made before it is up wait in the backlog.
    Docker,
    /// The guest's own API ([`crate::guest_api`]).
    Guest,
}

/// One reply frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum HostReply {
    /// Nothing more to say.
    Done,
    /// To [`HostRequest::Info`].
    Info(HostInfo),
    /// The volume as it is now.
    Volume(VolumeReport),
    /// All volumes of this host.
    Volumes {
        /// In id order.
        volumes: Vec<VolumeReport>,
    },
    /// The machine as it is now.
    Machine(MachineReport),
    /// All machines of this host.
    Machines {
        /// Grows with each change; starts anew when the host daemon starts (the caller then sees a lower one).
        revision: u64,
        /// In id order.
        machines: Vec<MachineReport>,
    },
    /// The descriptor that came along is the stream.
    Endpoint,
    /// It was not done.
    Error(HostError),
}

/// Why a host did not do it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct HostError {
    /// What kind of refusal.
    pub code: HostErrorCode,
    /// For operators; may name paths of the host.
    pub message: String,
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostErrorCode {
    /// Peer credentials are not on the list.
    Denied,
    /// The frame is not one, or of another version.
    BadRequest,
    /// The generation is older than one seen.
    StaleGeneration,
    /// No such machine or volume, or it is not running.
    NotFound,
    /// The volume is attached, or another machine holds it.
    Busy,
    /// The pool cannot promise that much.
    NoSpace,
    /// The volume's file system cannot be repaired.
    VolumeDamaged,
    /// Anything else that failed on the host.
    Failed,
}

/// What a host is and has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Version of the daemon.
    pub version: String,
    /// `amd64` or `arm64`.
    pub arch: String,
    /// Machine drivers that work here.
    pub drivers: Vec<String>,
    /// Processors it may give out, in thousandths.
    pub cpu_millis: u32,
    /// Memory it may give out.
    pub memory_bytes: u64,
    /// What the pool can hold.
    pub pool_capacity_bytes: u64,
    /// Sum of the sizes promised.
    pub pool_promised_bytes: u64,
    /// Bytes taken on disk.
    pub pool_used_bytes: u64,
    /// Content hash of the builder image that new machines boot.
    pub image: String,
}

/// A volume as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Which.
    pub volume: VolumeId,
    /// Hard cap.
    pub size_bytes: u64,
    /// Bytes taken on disk.
    pub used_bytes: u64,
    /// The machine that has it, if one does.
    pub attached_to: Option<MachineId>,
}

/// A machine to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// Which machine.
    pub machine: MachineId,
    /// Its fencing number.
    pub generation: Generation,
    /// The cache volume, mounted at `/var/lib/docker` inside.
    pub volume: VolumeId,
    /// Processor limit in thousandths.
    pub cpu_millis: u32,
    /// Memory limit.
    pub memory_bytes: u64,
    /// Limit of processes and threads.
    pub pids_max: u32,
}

/// A machine as its host sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineReport {
    /// Which machine.
    pub machine: MachineId,
    /// The generation that runs or ran.
    pub generation: Generation,
    /// The volume it holds.
    pub volume: VolumeId,
    /// What it is doing.
    pub state: MachineRunState,
}

/// What a machine is doing, seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum MachineRunState {
    /// Its PID 1 lives.
    Running,
    /// It has ended.
    Exited {
        /// The guest said that it ended well (the equivalent of exit code 0).
        clean: bool,
    },
}
