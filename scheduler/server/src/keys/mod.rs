//! The keys of encrypted volumes: where they are kept, and to whom they are lent.
//!
//! ```text
//! farm ─▶ KeyBroker ─▶ store: who runs what?   (a host that does not run the machine gets nothing)
//!             └──────▶ KeyStore: embedded | vault
//! ```
//! Must not know: what a key opens, or how it gets to a host.

mod broker;
mod embedded;
mod master;
#[cfg(test)]
mod tests;
mod vault;

pub use broker::{Claim, KeyBroker, LeaseError};
pub use embedded::EmbeddedKeys;
pub use master::{MASTER_KEYS_FILE, MasterKeyError, MasterKeys};
pub use vault::{VaultKeys, VaultSettings};

use async_trait::async_trait;
use slipway_core::id::VolumeId;
use slipway_core::key::VolumeKey;

/// What a key store said, or what happened on the way to it; for the operator.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a key store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// It does not answer, or not now: asking again may help.
    #[error("the key store does not answer")]
    Unavailable(#[source] Cause),
    /// It refused us.
    #[error("the key store refused (hint: look at its policy and at our credentials)")]
    Denied(#[source] Cause),
    /// What it keeps for this volume is no key, or was sealed by another master key.
    #[error("the key of volume {volume} cannot be read: {reason}")]
    Unreadable {
        /// Whose.
        volume: VolumeId,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The system has no randomness.
    #[error("draw a key: {0}")]
    Entropy(getrandom::Error),
}

/// A place where keys are kept. What it gives is in clear; whoever asks has seen to it that this is right.
#[async_trait]
pub trait KeyStore: Send + Sync + std::fmt::Debug {
    /// For logs.
    fn name(&self) -> &'static str;

    /// The key of a volume, made if there is none. All callers at once get the same.
    ///
    /// # Errors
    /// [`KeyStoreError`].
    async fn ensure(&self, volume: &VolumeId) -> Result<VolumeKey, KeyStoreError>;

    /// The key of a volume, if there is one.
    ///
    /// # Errors
    /// [`KeyStoreError`].
    async fn get(&self, volume: &VolumeId) -> Result<Option<VolumeKey>, KeyStoreError>;

    /// Destroys the key of a volume for good, in all its versions; none is fine.
    ///
    /// # Errors
    /// [`KeyStoreError`]; it may be there still.
    async fn destroy(&self, volume: &VolumeId) -> Result<(), KeyStoreError>;
}

/// A new key.
pub(crate) fn draw() -> Result<VolumeKey, KeyStoreError> {
    let mut bytes = zeroize::Zeroizing::new([0; slipway_core::key::VOLUME_KEY_BYTES]);
    getrandom::fill(&mut *bytes).map_err(KeyStoreError::Entropy)?;
    Ok(VolumeKey::from_entropy(&bytes))
}
