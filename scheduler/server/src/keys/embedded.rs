//! The default key store: keys sealed under a master key, in the control plane's own store.
//!
//! A sealed key is bound to its volume: moved to another volume's row it does not open. Rotation of the master key: start with
//! the new one, and the old one among the previous; every key is sealed anew, and then the old one can go.
//!
//! Must not know: where the master key comes from, who asks.

use super::master::{MasterKeyError, MasterKeys};
use super::{KeyStore, KeyStoreError, draw};
use async_trait::async_trait;
use slipway_core::id::VolumeId;
use slipway_core::key::VolumeKey;
use slipway_store::{Store, StoreError};
use std::sync::Arc;

/// Keys in the control plane's store.
#[derive(Debug)]
pub struct EmbeddedKeys {
    store: Arc<dyn Store>,
    master: MasterKeys,
}

/// Before the volume's id in the store.
const PREFIX: &str = "volume-key/";

impl EmbeddedKeys {
    /// A key store in `store`.
    pub fn new(store: Arc<dyn Store>, master: MasterKeys) -> Self {
        Self { store, master }
    }

    /// Seals every key anew that an older master key sealed. Gives how many those were. Cut off anywhere, it is asked again.
    ///
    /// # Errors
    /// [`KeyStoreError`]; a key that no master key of ours opens is an error, before the old one is thrown away.
    pub async fn rotate(&self) -> Result<usize, KeyStoreError> {
        let mut renewed = 0;
        for (name, sealed) in self.store.meta_under(PREFIX).await.map_err(unavailable)? {
            let Some(Ok(volume)) = name.strip_prefix(PREFIX).map(str::parse::<VolumeId>) else {
                continue;
            };
            let opened = self.open(&volume, &sealed)?;
            if !opened.1 {
                continue;
            }
            let fresh = self.seal(&volume, &opened.0)?;
            // Somebody else who does the same is fine.
            if self
                .store
                .replace_meta(&name, &sealed, &fresh)
                .await
                .map_err(unavailable)?
            {
                renewed += 1;
            }
        }
        Ok(renewed)
    }

    /// The key, and whether an older master key sealed it.
    fn open(&self, volume: &VolumeId, sealed: &[u8]) -> Result<(VolumeKey, bool), KeyStoreError> {
        let unreadable = |reason| KeyStoreError::Unreadable {
            volume: volume.clone(),
            reason,
        };
        let opened = self
            .master
            .open_sealed(&context(volume), sealed)
            .ok_or_else(|| unreadable("no master key that is given opens it"))?;
        let key = VolumeKey::from_bytes(&opened.clear)
            .map_err(|_| unreadable("it has another length"))?;
        Ok((key, opened.outdated))
    }

    fn seal(&self, volume: &VolumeId, key: &VolumeKey) -> Result<Vec<u8>, KeyStoreError> {
        self.master
            .seal(&context(volume), key.expose())
            .map_err(|error| match error {
                MasterKeyError::Entropy(error) => KeyStoreError::Entropy(error),
                MasterKeyError::File(_) | MasterKeyError::Malformed(_) => {
                    KeyStoreError::Unavailable(error.into())
                }
            })
    }
}

#[async_trait]
impl KeyStore for EmbeddedKeys {
    fn name(&self) -> &'static str {
        "embedded"
    }

    async fn ensure(&self, volume: &VolumeId) -> Result<VolumeKey, KeyStoreError> {
        if let Some(key) = self.get(volume).await? {
            return Ok(key);
        }
        let sealed = self.seal(volume, &draw()?)?;
        // Of several at once the first is kept, and all get that.
        let kept = self
            .store
            .put_meta_if_absent(&name(volume), &sealed)
            .await
            .map_err(unavailable)?;
        self.open(volume, &kept).map(|(key, _)| key)
    }

    async fn get(&self, volume: &VolumeId) -> Result<Option<VolumeKey>, KeyStoreError> {
        let sealed = self.store.meta(&name(volume)).await.map_err(unavailable)?;
        sealed
            .map(|sealed| self.open(volume, &sealed).map(|(key, _)| key))
            .transpose()
    }

    async fn destroy(&self, volume: &VolumeId) -> Result<(), KeyStoreError> {
        self.store
            .forget_meta(&name(volume))
            .await
            .map_err(unavailable)
    }
}

fn name(volume: &VolumeId) -> String {
    format!("{PREFIX}{volume}")
}

fn context(volume: &VolumeId) -> Vec<u8> {
    [b"slipway volume key\0", volume.as_str().as_bytes()].concat()
}

fn unavailable(error: StoreError) -> KeyStoreError {
    KeyStoreError::Unavailable(error.into())
}
