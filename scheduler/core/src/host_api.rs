//! The host API: what a control plane may ask of `slipwayd host`.
//!
//! Transport: a unix stream socket. Each message is a big-endian `u32` length and that many bytes of JSON
//! (at most [`crate::limits::HOST_API_FRAME_BYTES_MAX`]). A connection carries any number of requests, one at a
//! time. The reply to [`HostRequest::OpenEndpoint`] carries one file descriptor (`SCM_RIGHTS` on the first byte
//! of the reply's length): a connected stream to the guest, so that neither side copies bytes for the other, and
//! the stream outlives the host daemon.
//!
//! Every verb is idempotent. Verbs on a machine carry its generation; an older one is refused. Verbs that change a volume or its
//! snapshots carry the volume's fencing number ([`crate::fence`]); the host keeps the highest and refuses a lower one.
//!
//! **Versions.** Each side speaks [`HOST_API_VERSIONS`]. A request says its version; a host that does not speak it refuses with
//! [`HostError::speaks`], and the caller takes the highest that both have. Unknown fields are ignored.
//!
//! **Lists** come in pages: [`HostRequestFrame::page`]. Without one a list is whole, as version 2 has it, or too long to be sent.
//!
//! **Keys.** Where [`HostInfo::encrypts`] holds, a volume is made, attached, extended, forked or shown in clear only while
//! the host has a lease of its key ([`HostRequest::LendKey`]). A host cannot ask for one: leases only come from the control
//! plane. They live in the memory of the host daemon and nowhere else; without one the answer is
//! [`HostErrorCode::KeyNeeded`].
//!
//! **Streams.** The replies to [`HostRequest::ExportSnapshot`] and [`HostRequest::ImportVolume`] carry a descriptor as well:
//! one end of a socket pair that the host writes to, or reads from, until the end of the stream
//! (`slipway_volume_stream` has its format).

use crate::fence::VolumeFence;
use crate::generation::Generation;
use crate::id::{MachineId, SnapshotId, VolumeId};
use crate::isolation::Isolation;
pub use crate::isolation::MachineKind;
use crate::key::KeyLease;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

mod page;
mod version;

pub use page::{Cursor, Epoch, Page};
pub use version::{
    FENCED_SINCE, HOST_API_VERSION, HOST_API_VERSIONS, NoCommonVersion, VersionRange,
};

/// What the stream of an import has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "snake_case")]
pub enum ImportPart {
    /// All of the volume.
    #[default]
    Whole,
    /// All that a snapshot has; a difference from it will follow, and only then it is a volume.
    Base {
        /// Of which snapshot.
        snapshot: SnapshotId,
    },
    /// What differs from the base that arrived before. Broken off, it can only be gone on with towards the same snapshot.
    Difference {
        /// The base's snapshot.
        base: SnapshotId,
        /// What it is to be.
        snapshot: SnapshotId,
    },
}

/// One request frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostRequestFrame {
    /// The version that it is of.
    pub version: u32,
    /// What is asked.
    pub request: HostRequest,
    /// With [`HostRequest::LendKey`] what is lent, and with nothing else. It is apart from the request so that reading it
    /// makes no copies of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<KeyLease>,
    /// With a verb on a volume, on a snapshot of it, or that gives it to a machine: the volume's fencing number. Absent from a caller of version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<VolumeFence>,
    /// With a list: which part of it. Absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<Page>,
}

impl From<HostRequest> for HostRequestFrame {
    /// A request of the newest version, with nothing else.
    fn from(request: HostRequest) -> Self {
        Self {
            version: HOST_API_VERSION,
            request,
            lease: None,
            fence: None,
            page: None,
        }
    }
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
        /// Its hard cap in bytes. With a source at least the source's.
        size_bytes: u64,
        /// What it holds at first; absent: an empty file system. Of no meaning for a volume that is there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<VolumeSource>,
    },
    /// Makes a volume larger, attached or not, its file system with it. A size that it has is fine, a smaller one is
    /// [`HostErrorCode::BadRequest`]. A machine that has the volume as a device must grow the file system itself. Replies
    /// [`HostReply::Volume`].
    ExtendVolume {
        /// Which volume.
        volume: VolumeId,
        /// Its new hard cap in bytes.
        size_bytes: u64,
    },
    /// Keeps what the volume holds now, as after a power cut at this moment. One that is there is fine, whatever the volume
    /// holds by now. Replies [`HostReply::Snapshot`].
    CreateSnapshot {
        /// Of which volume.
        volume: VolumeId,
        /// The name it gets.
        snapshot: SnapshotId,
    },
    /// Removes a snapshot for good; absent is fine. Volumes made from it stay. Replies [`HostReply::Done`].
    DeleteSnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Replies [`HostReply::Snapshots`]. Snapshots outlive their volume.
    ListSnapshots,
    /// The contents of a snapshot as a stream that can be taken up again at any `offset_bytes`. Replies
    /// [`HostReply::Stream`] with a descriptor to read from; a stream that ends without its trailer is not whole.
    ExportSnapshot {
        /// Which.
        snapshot: SnapshotId,
        /// Where to begin.
        offset_bytes: u64,
        /// As they are on disk (of use where the key is) rather than in clear. No matter where nothing is encrypted.
        sealed: bool,
    },
    /// What `snapshot` has and `base`, one of the same volume, has not, as a stream; as they are on disk. Replies [`HostReply::Stream`]
    /// with a descriptor to read from.
    ExportDifference {
        /// What the taker has.
        base: SnapshotId,
        /// What it is to have.
        snapshot: SnapshotId,
    },
    /// Makes a volume from an exported stream, if it is not there. Replies [`HostReply::Stream`] with a descriptor to write the
    /// stream to, from the reply's offset on; then close the writing side and read one [`HostReply`] as JSON up to the end:
    /// [`HostReply::Volume`] if it is whole, [`HostReply::Done`] if it has all of its base. One that broke off is kept for a while, and goes on where it stopped.
    ImportVolume {
        /// Which volume it becomes.
        volume: VolumeId,
        /// Its hard cap in bytes.
        size_bytes: u64,
        /// The stream may hold the contents as they are on an encrypted disk. From whoever may not have made that disk, it is
        /// refused: what it begins with would be taken for the heads of an encrypted volume.
        #[serde(default)]
        sealed: bool,
        /// What the stream has.
        #[serde(default)]
        part: ImportPart,
    },
    /// Lends the key of a volume, or renews the lease: the one in [`HostRequestFrame::lease`]. An older generation than one
    /// lent before is refused. Replies [`HostReply::Done`].
    LendKey,
    /// Forgets the key of a volume if it was lent for this or an earlier generation; none is fine. What is attached stays so
    /// until its machine ends. Replies [`HostReply::Done`].
    RevokeKey {
        /// Of which volume.
        volume: VolumeId,
        /// Up to which generation.
        generation: Generation,
    },
    /// Removes a volume for good; absent is fine; attached is refused. Replies [`HostReply::Done`].
    DestroyVolume {
        /// Which volume.
        volume: VolumeId,
    },
    /// Replies [`HostReply::Volumes`].
    ListVolumes,
    /// One volume as it is now; [`HostErrorCode::NotFound`] if it is not there, or not whole. As with a verb that changes it, nothing that
    /// carries a lower fencing number is done to it afterwards. Replies [`HostReply::Volume`].
    ShowVolume {
        /// Which.
        volume: VolumeId,
    },
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
    /// Waits until the machine list has another revision than `after`, or is of another epoch, or the wait is over (level-triggered).
    /// `after: 0` answers at once. Replies [`HostReply::Machines`].
    WatchMachines {
        /// The epoch of the revision that the caller has; absent: any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<Epoch>,
        /// The revision that the caller has.
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

/// What a new volume holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum VolumeSource {
    /// What a snapshot kept (a restore).
    Snapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// What another volume holds now (a fork).
    Volume {
        /// Which.
        volume: VolumeId,
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
        /// There are more after the last of these.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// The snapshot as it is now.
    Snapshot(SnapshotReport),
    /// All snapshots of this host.
    Snapshots {
        /// In id order.
        snapshots: Vec<SnapshotReport>,
        /// There are more after the last of these.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// The descriptor that came along is the stream.
    Stream {
        /// Where the stream begins.
        offset_bytes: u64,
    },
    /// The machine as it is now.
    Machine(MachineReport),
    /// All machines of this host.
    Machines {
        /// The life of the daemon that `revision` is of; absent from a host of version 2.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<Epoch>,
        /// Grows with each change in one epoch. The list is at least as new.
        revision: u64,
        /// In id order.
        machines: Vec<MachineReport>,
        /// There are more after the last of these.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// The descriptor that came along is the stream.
    Endpoint,
    /// It was not done.
    Error(HostError),
}

/// Why a host did not do it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostError {
    /// What kind of refusal.
    pub code: HostErrorCode,
    /// The host's own words.
    pub message: OperatorText,
    /// What is wrong with the stream that was sent, where that is why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamFault>,
    /// What the host speaks, where the request's version is why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaks: Option<VersionRange>,
}

impl HostError {
    /// A refusal that is not about a stream.
    pub fn new(code: HostErrorCode, message: impl Into<OperatorText>) -> Self {
        Self {
            code,
            message: message.into(),
            stream: None,
            speaks: None,
        }
    }

    /// A request of another version than this host speaks.
    pub fn other_version(version: u32) -> Self {
        let speaks = HOST_API_VERSIONS;
        let message = format!(
            "version {version} of the host API is not spoken here, {speaks} is (hint: upgrade the older of the two one release at a time)"
        );
        Self {
            speaks: Some(speaks),
            ..Self::new(HostErrorCode::BadRequest, message)
        }
    }
}

/// Words for the operator alone: they may name paths of a host, addresses, other orgs. So they have no `Display`, and nothing makes them a
/// part of an answer to a tenant by accident. `Debug`, for the log, has them as they are.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperatorText(String);

impl OperatorText {
    /// The words, for a log.
    pub fn for_log(&self) -> &str {
        &self.0
    }
}

impl From<String> for OperatorText {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for OperatorText {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for OperatorText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with a stream of a volume's contents, in words for whoever sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum StreamFault {
    /// It is none, or a checksum is wrong.
    #[error("it is not an exported volume, or damaged")]
    Malformed,
    /// It ended before its trailer.
    #[error("it broke off before its end")]
    BrokenOff,
    /// It is encrypted.
    #[error("it is encrypted as on a disk, which only the host that made it can open")]
    Sealed,
    /// It is a difference where all is waited for, or the other way, or a difference from something that is not there.
    #[error("it is not the part that is waited for")]
    OtherPart,
    /// It leaves something out.
    #[error("it begins beyond what has arrived before")]
    BeginsBeyond,
    /// It holds more than the volume may.
    #[error("its contents are larger than the volume")]
    TooLarge,
    /// Reading or writing it failed.
    #[error("it could not be passed on")]
    Io,
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
    /// The fencing number of the volume is lower than one seen, or missing: who sent it knows less than who did before.
    StaleFence,
    /// No such machine or volume, or it is not running.
    NotFound,
    /// The volume is attached, or another machine holds it.
    Busy,
    /// The pool cannot promise that much.
    NoSpace,
    /// A disk that the host writes to is full.
    DiskFull,
    /// The volume's file system cannot be repaired.
    VolumeDamaged,
    /// A virtual machine has written the volume, or it came from outside: no host mounts it.
    VolumeForeign,
    /// The volume is encrypted, and this host has no lease of its key.
    KeyNeeded,
    /// This host, or this volume as it is now, cannot do that; the message says why.
    Unsupported,
    /// It takes longer than a request may take, and goes on: ask again.
    InProgress,
    /// Anything else that failed on the host, or a kind of refusal that only a newer release has.
    #[serde(other)]
    Failed,
}

/// What a host is and has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Version of the daemon.
    pub version: String,
    /// `amd64` or `arm64`.
    pub arch: String,
    /// Names of the machine drivers that can be had here, the usual one first: for people.
    pub drivers: Vec<String>,
    /// What machines of each of these are, in the same order. Absent from an older version: ask [`Self::kinds`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<MachineKind>,
    /// What virtual machines run on here, `kvm` or `tcg` (emulated: many times slower); absent if they cannot be had.
    #[serde(default)]
    pub vm_accelerator: Option<String>,
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
    /// New volumes are encrypted, and need a key.
    #[serde(default)]
    pub encrypts: bool,
    /// What snapshots and forks cost here.
    #[serde(default)]
    pub cloning: Cloning,
    /// What the operator must see to, in plain words: a pool about to be full, things found that belong to nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pool_notices: Vec<String>,
    /// A disk that it writes to has no room, so that nothing starts there; `pool_notices` say which.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disk_full: bool,
    /// Id of its pool, drawn once and kept with the volumes: two hosts that say the same are one. Absent if it cannot be kept (a full
    /// disk), or from an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Content hash of the builder image that new machines boot.
    pub image: String,
    /// When the packages of that image were last looked up; absent from an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_made_at: Option<Timestamp>,
    /// The same of the kernel of virtual machines; absent also where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_made_at: Option<Timestamp>,
}

impl HostInfo {
    /// What machines can be had here, the usual kind first.
    pub fn kinds(&self) -> Vec<MachineKind> {
        if !self.kinds.is_empty() {
            return self.kinds.clone();
        }
        // A host of version 2 has names alone.
        let emulated = self.vm_accelerator.as_deref() == Some("tcg");
        let kind = |name: &String| MachineKind {
            own_kernel: name == "vm",
            emulated: name == "vm" && emulated,
        };
        self.drivers.iter().map(kind).collect()
    }
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
    /// It is encrypted on disk.
    #[serde(default)]
    pub encrypted: bool,
}

/// A snapshot as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// Which.
    pub snapshot: SnapshotId,
    /// Of which volume; it may be gone.
    pub volume: VolumeId,
    /// The volume's hard cap at that time: a volume made from it has at least this.
    pub size_bytes: u64,
    /// Bytes it may take on disk by itself, when all else has changed. This is what the pool has promised for it.
    pub stored_bytes: u64,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: u64,
    /// It is encrypted on disk, with the key that the volume has.
    pub encrypted: bool,
}

/// What a snapshot or a fork costs when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cloning {
    /// All that is stored is copied: time and room for a second copy. A volume that is mounted is frozen meanwhile.
    #[default]
    FullCopy,
    /// An instant; blocks are shared until one side writes (reflinks of XFS and btrfs).
    Reflink,
    /// An instant; blocks are shared until one side writes (thin volumes of device-mapper).
    Thin,
}

/// A machine to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// How it must be walled off. A host that has no such machines refuses.
    #[serde(default)]
    pub isolation: Isolation,
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
    /// Why its engine could not start, in its guest's words: the builder image lacks something, or is too old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What it printed last ([`crate::last_words`]), if it ended badly. The machine's own words, for its org alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_words: Option<String>,
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
        /// The guest said that what is on its volume is damaged, so that its engine does not start.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        damaged: bool,
    },
}

#[cfg(test)]
mod tests;
