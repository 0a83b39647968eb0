//! Why a host has not got the key of a volume.

use crate::host_client::HostClientError;
use crate::keys::{KeyStoreError, LeaseError};

/// Why a host has not got a key.
#[derive(Debug, thiserror::Error)]
pub enum LendError {
    /// Nothing to lend from.
    #[error("the host encrypts volumes, and this control plane keeps no keys")]
    NoKeys,
    /// It has not said who it is.
    #[error("the host is not known")]
    UnknownHost,
    /// It may not have it, or the key store does not answer.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A key could not be destroyed.
    #[error(transparent)]
    KeyStore(#[from] KeyStoreError),
    /// The host did not take it.
    #[error("hand the key to the host")]
    Host(#[from] HostClientError),
}
