//! What a caller is told when the farm or its builds fail: the way from their errors to problems.
//!
//! Must not know: how a problem is sent.

use crate::builds::BuildError;
use crate::chain::chain;
use crate::farm::FarmError;
use crate::problem::{Code, Problem};
use http::StatusCode;
use slipway_core::placement::PlacementError;

impl From<FarmError> for Problem {
    fn from(error: FarmError) -> Self {
        Self::from(&error)
    }
}

impl From<&FarmError> for Problem {
    fn from(error: &FarmError) -> Self {
        let hint = error.hint();
        let problem = match error {
            FarmError::Store(store) => return store.into(),
            FarmError::Volume(volume) => Self::new(volume.code(), error.to_string()),
            FarmError::Place(
                PlacementError::NoSuchPlace { .. }
                | PlacementError::NoIsolation { .. }
                | PlacementError::NoSuchRegion { .. }
                | PlacementError::NoEncryption { .. }
                | PlacementError::NoSuchMemory { .. }
                | PlacementError::NotUnique { .. },
            ) => Self::new(Code::Invalid, error.to_string()),
            FarmError::Place(PlacementError::NoSpace { .. }) => {
                Self::new(Code::NoSpace, error.to_string())
            }
            FarmError::Quota(_) => Self::new(Code::Invalid, error.to_string()),
            FarmError::NoBuilder { .. } => Self::new(Code::NotFound, error.to_string()),
            FarmError::NotRunning | FarmError::InUse { .. } => {
                Self::new(Code::Conflict, error.to_string())
            }
            FarmError::TooManyConnections { .. } => Self::new(Code::Limit, error.to_string()),
            FarmError::Place(
                PlacementError::NoneReachable { .. } | PlacementError::NoMemory { .. },
            )
            | FarmError::TimedOut { .. }
            | FarmError::TakesNone { .. }
            | FarmError::HostAway
            | FarmError::OneHost { .. }
            | FarmError::Closed => Self::new(Code::Unavailable, error.to_string()),
            FarmError::WontStart(_) => {
                tracing::warn!(why = ?chain(error), "builder does not start");
                Self::new(Code::Unavailable, error.to_string())
            }
            FarmError::Host(_) | FarmError::Guest(_) => {
                tracing::warn!(why = ?chain(error), "builder cannot be reached");
                Self::new(Code::Unavailable, "the builder cannot be reached")
            }
            FarmError::Key(_) => {
                tracing::warn!(why = ?chain(error), "key of a volume");
                Self::new(Code::Unavailable, "the key of the volume cannot be had")
            }
            FarmError::Entropy(_) => return Self::internal(error),
        };
        match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

impl From<BuildError> for Problem {
    fn from(error: BuildError) -> Self {
        Self::from(&error)
    }
}

impl From<&BuildError> for Problem {
    fn from(error: &BuildError) -> Self {
        let hint = error.hint();
        let problem = match error {
            BuildError::Farm(farm) => return farm.into(),
            BuildError::Store(store) => return store.into(),
            BuildError::Refused {
                status, message, ..
            } => {
                let code = match *status {
                    StatusCode::TOO_MANY_REQUESTS => Code::Limit,
                    StatusCode::CONFLICT => Code::Conflict,
                    other if other.is_client_error() => Code::Invalid,
                    _ => Code::Unavailable,
                };
                Self::new(code, message.clone())
            }
            BuildError::Ended => Self::new(Code::Unauthenticated, error.to_string()),
            BuildError::OfClient | BuildError::Older(_) => {
                Self::new(Code::Conflict, error.to_string())
            }
            BuildError::Guest(_) => {
                tracing::warn!(why = ?chain(error), "build not handed over");
                Self::new(Code::Unavailable, "the builder does not answer")
            }
        };
        match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}
