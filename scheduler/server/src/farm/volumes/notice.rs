//! What a volume's notice says of a failure, and which failures the next look at the volume mends.

use crate::farm::error::FarmError;
use crate::farm::lend_error::LendError;
use crate::farm::volume_error::VolumeError;
use crate::host_client::HostClientError;
use crate::keys::LeaseError;
use slipway_core::host_api::HostErrorCode;

/// What of an error a volume's owner may read in its notice.
pub(super) fn told(error: &FarmError) -> String {
    match error {
        FarmError::Volume(error) => error.to_string(),
        FarmError::Quota(error) | FarmError::Store(slipway_store::StoreError::Quota(error)) => {
            error.to_string()
        }
        FarmError::Host(HostClientError::Refused(refusal))
            if refusal.code == HostErrorCode::Busy =>
        {
            "the volume was in use by something else; it is tried again".to_owned()
        }
        FarmError::Host(HostClientError::Refused(refusal))
            if refusal.code == HostErrorCode::StaleFence =>
        {
            "the volume's host has seen later orders about it than this server knows of, so nothing is done to it (hint: tell the operator)".to_owned()
        }
        FarmError::Key(LendError::Lease(LeaseError::Lost { .. })) => {
            "the key of the volume is lost, and nothing opens the volume any more".to_owned()
        }
        FarmError::Key(_) => "the key of the volume cannot be had; it is tried again".to_owned(),
        FarmError::Host(_) | FarmError::HostAway | FarmError::OneHost { .. } => {
            "the host did not do it; it is tried again".to_owned()
        }
        FarmError::Store(slipway_store::StoreError::PoolFull { .. }) => {
            VolumeError::NoSpace.to_string()
        }
        FarmError::Place(_)
        | FarmError::Store(_)
        | FarmError::NoBuilder { .. }
        | FarmError::NotRunning
        | FarmError::WontStart(_)
        | FarmError::TimedOut { .. }
        | FarmError::TakesNone { .. }
        | FarmError::TooManyConnections { .. }
        | FarmError::InUse { .. }
        | FarmError::Guest(_)
        | FarmError::Entropy(_)
        | FarmError::Closed => "it could not be done; it is tried again".to_owned(),
    }
}

/// The intent is recorded and the hosts may come round: whoever looks next finishes it.
pub(super) fn is_for_later(error: &FarmError) -> bool {
    matches!(
        error,
        FarmError::Host(_) | FarmError::Key(_) | FarmError::HostAway
    )
}
