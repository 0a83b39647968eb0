//! Why a volume operation was not done.
//!
//! Must not know: how errors are shown or sent.

use slipway_core::host_api::StreamFault;
use slipway_core::id::{MachineId, SnapshotId, VolumeId};
use slipway_core::units::ByteSize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is wrong with a stream.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct StreamError {
    /// For whoever sends it.
    pub fault: StreamFault,
    /// For the operator.
    detail: String,
}

impl VolumeError {
    /// What is wrong with a stream, and the same for the operator.
    pub fn stream(fault: StreamFault, detail: impl ToString) -> Self {
        let detail = detail.to_string();
        Self::Stream(StreamError { fault, detail })
    }
}

/// Why a volume operation was not done.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No such volume.
    #[error("volume {volume} does not exist")]
    NotFound {
        /// Which.
        volume: VolumeId,
    },
    /// Another holder has it, or, for `destroy`, any holder does.
    #[error("volume {volume} is attached to {}", match holder { Some(h) => h.as_str(), None => "an unknown holder" })]
    InUse {
        /// Which.
        volume: VolumeId,
        /// Who has it; absent when its device is in use but nobody wrote down for whom.
        holder: Option<MachineId>,
    },
    /// It was made with another size.
    #[error("volume {volume} has {have}, not the {want} asked for (hint: extend it)")]
    SizeDiffers {
        /// Which.
        volume: VolumeId,
        /// Its size.
        have: ByteSize,
        /// What was asked.
        want: ByteSize,
    },
    /// The pool cannot promise that much.
    #[error(
        "the pool cannot promise {want} more: {promised} of {capacity} are promised (hint: destroy volumes, or give the pool more room)"
    )]
    NoSpace {
        /// What was asked.
        want: ByteSize,
        /// Promised already.
        promised: ByteSize,
        /// May be promised in all.
        capacity: ByteSize,
    },
    /// Out of the sizes a volume may have.
    #[error("a volume of {size} is not possible: between {min} and {max}")]
    InvalidSize {
        /// What was asked.
        size: ByteSize,
        /// [`crate::limits::VOLUME_SIZE_MIN`].
        min: ByteSize,
        /// [`crate::limits::VOLUME_SIZE_MAX`].
        max: ByteSize,
    },
    /// A volume does not become smaller.
    #[error("volume {volume} has {have} and cannot be made smaller, to {want}")]
    Shrink {
        /// Which.
        volume: VolumeId,
        /// Its size.
        have: ByteSize,
        /// What was asked.
        want: ByteSize,
    },
    /// The pool takes nothing more, although it has promised less than it may.
    #[error("the pool takes nothing more: {reason}")]
    PoolFull {
        /// Why, and what helps.
        reason: String,
    },
    /// No such snapshot.
    #[error("snapshot {snapshot} does not exist")]
    SnapshotNotFound {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Something else uses the snapshot and did not let go in time.
    #[error("snapshot {snapshot} is being read (waited {} s)", waited.as_secs())]
    SnapshotBusy {
        /// Which.
        snapshot: SnapshotId,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The volume is encrypted, and no key was given.
    #[error("volume {volume} is encrypted, and this host has no lease of its key")]
    KeyNeeded {
        /// Which.
        volume: VolumeId,
    },
    /// Another key opens it.
    #[error("the key given for volume {volume} does not open it")]
    WrongKey {
        /// Which.
        volume: VolumeId,
    },
    /// It cannot be done here, or not now.
    #[error("{0}")]
    Unsupported(String),
    /// An exported stream is not one, not whole, or could not be read or written.
    #[error("the stream: {0}")]
    Stream(StreamError),
    /// Its file system cannot be repaired, or not mounted after it was.
    #[error("the file system of volume {volume} is damaged: {detail}")]
    Damaged {
        /// Which.
        volume: VolumeId,
        /// The checker's last words.
        detail: String,
    },
    /// Others than this host's kernel have written its blocks, so it is not mounted.
    #[error(
        "volume {volume} was written by a virtual machine or came from outside, so it is never mounted by a host (hint: a virtual machine can use it)"
    )]
    Foreign {
        /// Which.
        volume: VolumeId,
    },
    /// Something else uses it and did not let go in time.
    #[error("volume {volume} is busy: {what} (waited {} s)", waited.as_secs())]
    Busy {
        /// Which.
        volume: VolumeId,
        /// What keeps it.
        what: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Another operation holds the pool for too long.
    #[error("the pool is busy: {holder} (waited {} s)", waited.as_secs())]
    PoolBusy {
        /// The operation that had the pool at the end of the wait.
        holder: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The pool must encrypt and cannot.
    #[error(
        "this pool requires encryption, but {reason} (hint: encryption = \"off\" for this pool stores volumes in clear)"
    )]
    EncryptionUnavailable {
        /// Why not.
        reason: &'static str,
    },
    /// A program this driver needs failed.
    #[error("{program}: {detail}")]
    Tool {
        /// Which, such as `mkfs.ext4`.
        program: &'static str,
        /// Its last words, or why it could not be run.
        detail: String,
    },
    /// A system call failed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried, such as `mount`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Whether the system says that a disk, or what a user may have of it, is full.
pub(crate) fn is_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}

impl VolumeError {
    /// For `map_err`: names the failed action and its object.
    pub(crate) fn io<E: Into<std::io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source: source.into(),
        }
    }
}
