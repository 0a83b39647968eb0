//! A key store that can be cut off.

use async_trait::async_trait;
use slipway_core::id::VolumeId;
use slipway_core::key::VolumeKey;
use slipway_scheduler::keys::{EmbeddedKeys, KeyStore, KeyStoreError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The cut, and how often the store was asked while it lasted.
#[derive(Debug, Default)]
pub struct Outage {
    pub lasts: AtomicBool,
    pub asked: AtomicU32,
}

#[derive(Debug)]
pub struct Keys {
    pub kept: EmbeddedKeys,
    pub outage: Arc<Outage>,
}

impl Keys {
    fn reach(&self) -> Result<&EmbeddedKeys, KeyStoreError> {
        if self.outage.lasts.load(Ordering::Relaxed) {
            self.outage.asked.fetch_add(1, Ordering::Relaxed);
            return Err(KeyStoreError::Unavailable("it is away".into()));
        }
        Ok(&self.kept)
    }
}

#[async_trait]
impl KeyStore for Keys {
    fn name(&self) -> &'static str {
        self.kept.name()
    }

    async fn ensure(&self, volume: &VolumeId) -> Result<VolumeKey, KeyStoreError> {
        self.reach()?.ensure(volume).await
    }

    async fn get(&self, volume: &VolumeId) -> Result<Option<VolumeKey>, KeyStoreError> {
        self.reach()?.get(volume).await
    }

    async fn destroy(&self, volume: &VolumeId) -> Result<(), KeyStoreError> {
        self.reach()?.destroy(volume).await
    }
}
