//! Keys are made for volumes that are still to be made, and for no others: a new key in the place of a lost one would hide that
//! what the volume holds cannot be read any more.

use super::*;
use slipway_store::VolumeState;

/// Embedded keys; just before one is made, its volume is destroyed.
#[derive(Debug)]
struct Racing {
    keys: EmbeddedKeys,
    store: Arc<dyn Store>,
    org: OrgId,
}

#[async_trait::async_trait]
impl KeyStore for Racing {
    fn name(&self) -> &'static str {
        "racing"
    }

    async fn ensure(
        &self,
        volume: &VolumeId,
    ) -> Result<slipway_core::key::VolumeKey, KeyStoreError> {
        let deleting = self
            .store
            .set_volume_state(&self.org, volume, VolumeState::Deleting);
        deleting.await.unwrap();
        self.keys.destroy(volume).await?;
        self.keys.ensure(volume).await
    }

    async fn get(
        &self,
        volume: &VolumeId,
    ) -> Result<Option<slipway_core::key::VolumeKey>, KeyStoreError> {
        self.keys.get(volume).await
    }

    async fn destroy(&self, volume: &VolumeId) -> Result<(), KeyStoreError> {
        self.keys.destroy(volume).await
    }
}

/// A volume that is planned, and the claim of its host for work on it.
async fn planned(mine: &Placed) -> Claim {
    let new = NewVolume {
        id: volume(9),
        host: mine.host.clone(),
        name: "data".into(),
        size: ByteSize::gib(1),
        source: None,
        import: None,
        policy: slipway_core::volume::VolumePolicy::default(),
        at: Timestamp(1),
    };
    mine.store.create_volume(&mine.org, &new).await.unwrap();
    Claim {
        volume: new.id,
        machine: None,
        generation: Generation(0),
        ..mine.claim(0)
    }
}

#[tokio::test]
async fn a_key_is_made_before_its_volume_is_and_never_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let mine = placed(&store, 1).await;
    let keys = EmbeddedKeys::new(Arc::clone(&store), MasterKeys::of([1; 32], &[]));
    let keys: Arc<dyn KeyStore> = Arc::new(keys);
    let broker = KeyBroker::new(Arc::clone(&store), Arc::clone(&keys));
    let claim = planned(&mine).await;
    let first = broker.lease(&claim).await.unwrap().key;
    let size = ByteSize::gib(1);
    let made = store.record_volume_made(&mine.org, &claim.volume, size, Some(true));
    made.await.unwrap();
    assert_eq!(broker.lease(&claim).await.unwrap().key, first);

    // As after the restore of a database that is older than the volume.
    keys.destroy(&claim.volume).await.unwrap();
    let lost = broker.lease(&claim).await;
    assert!(matches!(lost, Err(LeaseError::Lost { .. })), "{lost:?}");
    assert_eq!(keys.get(&claim.volume).await.unwrap(), None);

    // The same for a machine that starts.
    let running = MachineState::Running {
        generation: Generation(3),
    };
    mine.record(3, running).await;
    let lost = broker.lease(&mine.claim(3)).await;
    assert!(matches!(lost, Err(LeaseError::Lost { .. })), "{lost:?}");
    assert_eq!(keys.get(&mine.volume).await.unwrap(), None);
}

#[tokio::test]
async fn a_key_that_is_made_while_its_volume_is_destroyed_does_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let mine = placed(&store, 1).await;
    let keys = EmbeddedKeys::new(Arc::clone(&store), MasterKeys::of([1; 32], &[]));
    let racing = Arc::new(Racing {
        keys,
        store: Arc::clone(&store),
        org: mine.org.clone(),
    });
    let broker = KeyBroker::new(store, Arc::clone(&racing) as Arc<dyn KeyStore>);
    let claim = planned(&mine).await;
    let refused = broker.lease(&claim).await;
    assert!(
        matches!(refused, Err(LeaseError::Refused { .. })),
        "{refused:?}"
    );
    assert_eq!(racing.get(&claim.volume).await.unwrap(), None);
}
