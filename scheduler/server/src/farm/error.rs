//! How a verb of the farm can fail, and whose fault it is.

use super::lend_error::LendError;
use super::volume_error::VolumeError;
use crate::entropy::NoEntropy;
use crate::guest_client::GuestError;
use crate::host_client::HostClientError;
use slipway_core::build::Fault;
use slipway_core::placement::PlacementError;
use slipway_core::quota::QuotaError;
use slipway_store::{ErrorKind, StoreError};
use std::time::Duration;

/// Why the farm did not do it.
#[derive(Debug, thiserror::Error)]
pub enum FarmError {
    /// There is no place for a new builder.
    #[error(transparent)]
    Place(#[from] PlacementError),
    /// The org asks for more than it may have.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// The store did not do it.
    #[error("keep the builder's record")]
    Store(#[from] StoreError),
    /// There is no such builder.
    #[error("there is no builder for {region}/{arch}")]
    NoBuilder {
        /// Region asked for.
        region: String,
        /// Architecture asked for.
        arch: String,
    },
    /// It is not running, and the caller did not want it woken.
    #[error("the builder is not running")]
    NotRunning,
    /// It does not start; why, for its owner.
    #[error("the builder does not start: {0}")]
    WontStart(String),
    /// It did not come up in time.
    #[error("the builder was not {wanted} after {waited:?}: {why}")]
    TimedOut {
        /// What the caller waited for: `up` or `stopped`.
        wanted: &'static str,
        /// How long the caller waited.
        waited: Duration,
        /// What it was waiting for then, or what it did; for its owner.
        why: String,
    },
    /// It is up, and takes no connections.
    #[error("the builder took no connection within {waited:?}")]
    TakesNone {
        /// How long the caller waited.
        waited: Duration,
    },
    /// The host that it is on does not answer.
    #[error("the builder's host does not answer")]
    HostAway,
    /// A host of another name has the same pool.
    #[error(
        "host '{name}' is not used: it has the pool of host '{other}', so they are one (hint: leave one of them out of the settings; after \
         a change of its name, start `slipwayd serve` anew)"
    )]
    OneHost {
        /// Its name.
        name: String,
        /// The name that it is known by.
        other: String,
    },
    /// Too many connections at once.
    #[error("the builder has {max} connections, and takes no more")]
    TooManyConnections {
        /// The bound.
        max: u32,
    },
    /// Somebody uses it.
    #[error("the builder is in use ({in_flight} connections)")]
    InUse {
        /// How many.
        in_flight: u32,
    },
    /// A verb on a volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Its host did not do it.
    #[error("have the host do it")]
    Host(#[from] HostClientError),
    /// The key of its volume.
    #[error("see to the key of the volume")]
    Key(#[from] LendError),
    /// Its guest did not do it.
    #[error("have the builder do it")]
    Guest(#[from] GuestError),
    /// The system has no randomness to give.
    #[error("draw a new id")]
    Entropy(#[from] NoEntropy),
    /// The control plane is ending.
    #[error("the control plane is shutting down")]
    Closed,
}

impl FarmError {
    /// Whose fault it is: it chooses between a 4xx and a 5xx, and exit code 1 and 2.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Place(PlacementError::NoSuchPlace { .. })
            | Self::Place(
                PlacementError::NoIsolation { .. }
                | PlacementError::NoSuchRegion { .. }
                | PlacementError::NoEncryption { .. }
                | PlacementError::NoSuchMemory { .. }
                | PlacementError::NotUnique { .. },
            )
            | Self::Quota(_)
            | Self::NoBuilder { .. }
            | Self::NotRunning
            | Self::TooManyConnections { .. }
            | Self::InUse { .. } => Fault::User,
            Self::Volume(error) => error.code().fault(),
            Self::Store(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::Limit => Fault::User,
                ErrorKind::NoSpace | ErrorKind::Unavailable | ErrorKind::Internal => Fault::System,
            },
            Self::Place(
                PlacementError::NoneReachable { .. }
                | PlacementError::NoMemory { .. }
                | PlacementError::NoSpace { .. },
            )
            | Self::WontStart(_)
            | Self::TimedOut { .. }
            | Self::TakesNone { .. }
            | Self::HostAway
            | Self::OneHost { .. }
            | Self::Host(_)
            | Self::Key(_)
            | Self::Guest(_)
            | Self::Entropy(_)
            | Self::Closed => Fault::System,
        }
    }

    /// What the caller may do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Volume(error) => Some(error.hint()),
            Self::Place(PlacementError::NoSuchRegion { .. }) => Some(
                "choose one of the regions that there are; with none, no host has answered yet",
            ),
            Self::Place(PlacementError::NoEncryption { .. }) => {
                Some("leave the encryption to the host, or choose another region")
            }
            Self::Place(PlacementError::NotUnique { .. }) => {
                Some("leave --require-unique-zone out, or choose another region")
            }
            Self::Place(PlacementError::NoSuchPlace { .. }) => {
                Some("choose one of the places that there are; with none, no host has answered yet")
            }
            Self::Place(PlacementError::NoSpace { .. }) => Some(
                "ask for less, destroy volumes and snapshots that you do not need, or have the operator add space",
            ),
            Self::Place(PlacementError::NoIsolation { .. }) => Some(
                "ask the operator for a host with virtual machines, or `slipway orgs update --isolation auto`",
            ),
            Self::TooManyConnections { .. } => Some("wait until some of them have ended"),
            Self::InUse { .. } => Some("wait until its builds have ended"),
            Self::WontStart(_) => Some(
                "tell the operator; if the cache may be given up, `slipway builders reset-cache` empties it",
            ),
            Self::TakesNone { .. } => Some(
                "what runs in it keeps it from answering; end that, or stop the builder: `slipway builders stop`",
            ),
            Self::Place(PlacementError::NoneReachable { .. })
            | Self::Host(_)
            | Self::Key(_)
            | Self::HostAway
            | Self::OneHost { .. }
            | Self::TimedOut { .. }
            | Self::Closed => Some("try again in a minute, and tell the operator if it stays so"),
            Self::Quota(error) | Self::Store(StoreError::Quota(error)) => error.hint(),
            Self::Place(PlacementError::NoSuchMemory { .. }) => {
                Some("ask for less: `slipway orgs update --memory SIZE`")
            }
            Self::Place(PlacementError::NoMemory { .. }) => {
                Some("try again when other builders have ended, or have the operator add a host")
            }
            Self::Store(_)
            | Self::NoBuilder { .. }
            | Self::NotRunning
            | Self::Guest(_)
            | Self::Entropy(_) => None,
        }
    }
}
