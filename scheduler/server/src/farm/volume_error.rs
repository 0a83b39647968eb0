//! What can be in the way of a verb on volumes, and whose fault it is.
//!
//! Must not know: the farm.

use crate::host_client::HostClientError;
use crate::problem::Code;
use slipway_core::host_api::{HostError, HostErrorCode, StreamFault};
use slipway_core::units::ByteSize;
use slipway_store::VolumeState;

/// Why it was not done. What it says is for the volume's owner.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A builder has it.
    #[error("the volume is a builder's cache")]
    Attached,
    /// It is not made yet, or is about to go.
    #[error("the volume is {}", .0.as_str())]
    State(VolumeState),
    /// It is to be destroyed.
    #[error("the volume is to be destroyed")]
    ToBeDestroyed,
    /// There is no way back.
    #[error("the volume is being destroyed already")]
    Gone,
    /// It would have to be smaller.
    #[error("the volume has {have}; a volume never gets smaller")]
    Shrink {
        /// What it has.
        have: ByteSize,
    },
    /// It grows to another size just now.
    #[error("the volume is being extended to {to} already")]
    Extending {
        /// Which.
        to: ByteSize,
    },
    /// It would be smaller than what it is made from.
    #[error("what the volume is made from has {need}")]
    SmallerThanSource {
        /// The least there must be.
        need: ByteSize,
    },
    /// What it is made from is elsewhere.
    #[error("what the volume is made from is in region '{region}'")]
    SourceElsewhere {
        /// Where.
        region: String,
    },
    /// What it is made from is encrypted otherwise.
    #[error("what the volume is made from is {}", if *.encrypted { "encrypted" } else { "not encrypted" })]
    SourceEncryption {
        /// Whether it is.
        encrypted: bool,
    },
    /// The snapshot is not made yet, or is being deleted.
    #[error("the snapshot is not ready")]
    SnapshotNotReady,
    /// Another volume is being made from it.
    #[error("another volume is being made from it")]
    Needed,
    /// Its contents are still being sent.
    #[error("the contents of the volume are still being sent")]
    Importing,
    /// It is being moved to another host.
    #[error("the volume is being moved to another host")]
    Moving,
    /// It has moved, or stays, and what that has left is not cleared away yet.
    #[error("the other copy of the volume, which a move has left, is still to be destroyed")]
    OtherCopy,
    /// The host that is recorded does not have it, and somebody has to say which copy is the volume.
    #[error(
        "the move of the volume is halted: the host that should have the volume does not have it, and the other copy is kept"
    )]
    Halted,
    /// There is no copy of it on that host.
    #[error("host '{zone}' has no whole copy of the volume")]
    NoCopy {
        /// Its name.
        zone: String,
    },
    /// It is not.
    #[error("the volume is not being moved")]
    NotMoving,
    /// It is there.
    #[error("the volume is on that host")]
    IsThere,
    /// A cache is where its builder is.
    #[error("the builder of the cache is for region '{region}'")]
    CacheElsewhere {
        /// Which.
        region: String,
    },
    /// There is no other in that region.
    #[error("region '{region}' has no other host than the volume's")]
    NoOtherHost {
        /// Which.
        region: String,
    },
    /// There is none of that name.
    #[error("there is no zone '{zone}' (there are: {known})")]
    NoSuchZone {
        /// The name.
        zone: String,
        /// Those that there are.
        known: String,
    },
    /// That host encrypts volumes and this one is not encrypted, or the other way.
    #[error("that host {}, and a volume is moved as it is", if *.encrypts { "encrypts volumes" } else { "does not encrypt volumes" })]
    MoveEncryption {
        /// Whether the host does.
        encrypts: bool,
    },
    /// Nothing is sent to it: it is made, or is to go.
    #[error("the volume does not wait for contents")]
    NotImporting,
    /// Somebody sends to it already.
    #[error("somebody else sends to the volume")]
    BeingSent,
    /// The org has so many exports and imports under way.
    #[error("your org has {max} exports and imports under way, and may have no more at once")]
    TooManyTransfers {
        /// The bound.
        max: u32,
    },
    /// All orgs together have as many as there may be, or the host has.
    #[error("too many exports and imports are under way, or the volume is in use by another")]
    TransfersFull,
    /// What was sent is not an exported volume, or not whole.
    #[error("what was sent is not taken: {0}")]
    Stream(StreamFault),
    /// It stopped before its end.
    #[error("what was sent broke off")]
    BrokenOff,
    /// Its host does not answer, and nothing was recorded.
    #[error("the host of the volume does not answer")]
    HostAway,
    /// The host's pool has no room.
    #[error("the host's pool has no room for that")]
    NoSpace,
    /// The host, or the volume as it is now, cannot do that.
    #[error("its host cannot do that to the volume as it is now")]
    Unsupported,
    /// It is not there any more.
    #[error("what that needs is not on the host any more")]
    Missing,
    /// The file system is damaged.
    #[error("the volume's file system is damaged")]
    Damaged,
    /// The host finds the request wrong: our bug, or a host of another version.
    #[error("the host does not take the request")]
    NotTaken,
}

impl VolumeError {
    /// A host's refusal that asking again does not change; anything else is given back.
    pub(crate) fn of_host(error: HostClientError) -> Result<Self, HostClientError> {
        let HostClientError::Refused(HostError { code, message, .. }) = &error else {
            return Err(error);
        };
        Ok(match code {
            HostErrorCode::NoSpace => Self::NoSpace,
            HostErrorCode::Unsupported => {
                tracing::warn!(?message, "host cannot do that to a volume");
                Self::Unsupported
            }
            HostErrorCode::NotFound => Self::Missing,
            HostErrorCode::VolumeDamaged | HostErrorCode::VolumeForeign => Self::Damaged,
            HostErrorCode::BadRequest => {
                tracing::error!(?message, "host does not take a request about a volume");
                Self::NotTaken
            }
            HostErrorCode::StaleFence => {
                tracing::error!(
                    ?message,
                    "a host knows more of a volume than the database does"
                );
                return Err(error);
            }
            HostErrorCode::Denied
            | HostErrorCode::StaleGeneration
            | HostErrorCode::Busy
            | HostErrorCode::DiskFull
            | HostErrorCode::KeyNeeded
            | HostErrorCode::InProgress
            | HostErrorCode::Failed => return Err(error),
        })
    }

    /// What it is to programs, which also says whose fault it is.
    pub fn code(&self) -> Code {
        match self {
            Self::Attached
            | Self::State(_)
            | Self::ToBeDestroyed
            | Self::Gone
            | Self::Extending { .. }
            | Self::SnapshotNotReady
            | Self::Needed
            | Self::Importing
            | Self::NotImporting
            | Self::BeingSent
            | Self::Moving
            | Self::OtherCopy
            | Self::Halted
            | Self::NoCopy { .. }
            | Self::NotMoving
            | Self::IsThere
            | Self::Unsupported
            | Self::Missing
            | Self::Damaged => Code::Conflict,
            Self::TooManyTransfers { .. } => Code::Limit,
            Self::Shrink { .. }
            | Self::Stream(_)
            | Self::BrokenOff
            | Self::CacheElsewhere { .. }
            | Self::NoOtherHost { .. }
            | Self::NoSuchZone { .. }
            | Self::MoveEncryption { .. }
            | Self::SmallerThanSource { .. }
            | Self::SourceElsewhere { .. }
            | Self::SourceEncryption { .. } => Code::Invalid,
            Self::NoSpace => Code::NoSpace,
            Self::HostAway | Self::TransfersFull => Code::Unavailable,
            Self::NotTaken => Code::Internal,
        }
    }

    /// What the caller may do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Attached => "`slipway builders reset-cache` empties it",
            Self::State(_) | Self::SnapshotNotReady => {
                "look at `slipway volumes list` and try again when it is made"
            }
            Self::ToBeDestroyed => "`slipway volumes restore ID` keeps it",
            Self::Gone => {
                "make a new one from a snapshot: `slipway volumes create NAME --snapshot-id ID`"
            }
            Self::Shrink { .. } => "ask for a larger size, or for `+SIZE` more",
            Self::Extending { .. } | Self::Needed => "try again in a minute",
            Self::SmallerThanSource { .. } => "ask for that size or a larger one",
            Self::SourceElsewhere { .. } => "leave the region out",
            Self::SourceEncryption { .. } => "leave the encryption to the source",
            Self::Importing => "wait until they are there, or destroy the volume",
            Self::Moving => "wait until it has moved, or `slipway volumes move ID --cancel`",
            Self::OtherCopy => "wait until both hosts answer; it is done by itself then",
            Self::Halted => {
                "look at both hosts' pools; `slipway volumes move ID --keep ZONE` then says which copy is the volume, and destroys the other"
            }
            Self::NoCopy { .. } => {
                "see that the pool of that host is there, or keep the other copy"
            }
            Self::CacheElsewhere { .. } => {
                "choose another host of that region; a builder of another one is made by asking for it"
            }
            Self::NoOtherHost { .. } => "choose another region",
            Self::NotMoving | Self::IsThere => "`slipway volumes show ID` tells where it is",
            Self::NoSuchZone { .. } => "choose one of those, or a region",
            Self::MoveEncryption { .. } => {
                "choose another zone, or export the volume and import it there"
            }
            Self::NotImporting => {
                "look at `slipway volumes list`; `slipway volumes import` makes a new one"
            }
            Self::BeingSent => "wait until that has ended, a minute if its connection is lost",
            Self::TooManyTransfers { .. } => "wait until one of them has ended",
            Self::TransfersFull => "try again in a minute",
            Self::Stream(_) => {
                "send what `slipway volumes export` has written; what has arrived before is kept"
            }
            Self::BrokenOff => "resume it: ask how much has arrived, and send the rest",
            Self::HostAway => "try again in a minute, and tell the operator if it stays so",
            Self::NoSpace => {
                "delete snapshots or volumes that you do not need, or have the operator add space"
            }
            Self::Unsupported => "stop the builder, or have the operator look at docs/volumes.md",
            Self::Missing => "look at `slipway volumes list` and `slipway volumes snapshots list`",
            Self::Damaged => {
                "make a new one from a snapshot: `slipway volumes create NAME --snapshot-id ID`"
            }
            Self::NotTaken => "tell the operator; the server's log says more",
        }
    }
}
