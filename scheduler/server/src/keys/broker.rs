//! Who is lent a key: the host on which the store says that the machine runs, for that start of it, and nobody else.
//!
//! Must not know: where keys are kept, how a lease gets to its host.

use super::{KeyStore, KeyStoreError};
use crate::limits::KEY_LEASE_TTL;
use slipway_core::generation::Generation;
use slipway_core::id::{HostId, MachineId, OrgId, VolumeId};
use slipway_core::key::{KeyLease, VolumeKey};
use slipway_store::{ErrorKind, Store, StoreError, VolumeState};
use std::sync::Arc;
use std::time::Duration;

/// What a lease is wanted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Whose volume it is.
    pub org: OrgId,
    /// Who would get the key.
    pub host: HostId,
    /// Which key.
    pub volume: VolumeId,
    /// The machine that has the volume; absent for work on a volume.
    pub machine: Option<MachineId>,
    /// Which start of the machine; without one the newest that the volume's machine has had.
    pub generation: Generation,
}

/// Why a key was not lent.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The volume was made with a key, and the key store has none for it. Nothing can open it.
    #[error("the key of volume {volume} is lost, and with it what the volume holds")]
    Lost {
        /// Which.
        volume: VolumeId,
    },
    /// The claim is not what the store says. There is nothing to try again.
    #[error("the key of volume {volume} is not lent to this host: {reason}")]
    Refused {
        /// Which.
        volume: VolumeId,
        /// What does not hold.
        reason: &'static str,
    },
    /// The store that says who runs what.
    #[error("ask who has the volume")]
    Store(#[from] StoreError),
    /// The key store.
    #[error(transparent)]
    KeyStore(#[from] KeyStoreError),
}

/// Whether the host has made the volume, so that a key of it is needed and cannot be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Before,
    NotYet,
}

/// Lends keys.
#[derive(Debug)]
pub struct KeyBroker {
    store: Arc<dyn Store>,
    keys: Arc<dyn KeyStore>,
    lease: Duration,
}

impl KeyBroker {
    /// A broker of what `keys` keeps, by what `store` says.
    pub fn new(store: Arc<dyn Store>, keys: Arc<dyn KeyStore>) -> Self {
        Self {
            store,
            keys,
            lease: KEY_LEASE_TTL,
        }
    }

    /// The same with leases of another length.
    #[must_use]
    pub fn lending_for(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }

    /// How long a lease lasts.
    pub(crate) fn lasts(&self) -> Duration {
        self.lease
    }

    /// A lease for this claim, if it is right. A key is made only for a volume that its host has not made yet.
    ///
    /// # Errors
    /// [`LeaseError`]. The key store is asked only when the claim is right.
    pub async fn lease(&self, claim: &Claim) -> Result<KeyLease, LeaseError> {
        let key = match self.check(claim).await? {
            Made::Before => self.keys.get(&claim.volume).await?,
            Made::NotYet => Some(self.make(claim).await?),
        };
        let key = key.ok_or_else(|| LeaseError::Lost {
            volume: claim.volume.clone(),
        })?;
        Ok(KeyLease {
            volume: claim.volume.clone(),
            machine: claim.machine.clone(),
            generation: claim.generation,
            ttl_ms: u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX),
            key,
        })
    }

    /// The key of a volume that is still to be made. Whoever destroys a key has recorded before that the volume is to go, so a key
    /// that was made in the middle of that is seen here and does not stay.
    async fn make(&self, claim: &Claim) -> Result<VolumeKey, LeaseError> {
        let key = self.keys.ensure(&claim.volume).await?;
        let again = self.check(claim).await;
        if let Ok(Made::NotYet) = again {
            return Ok(key);
        }
        let goes = match self.store.volume(&claim.org, &claim.volume).await {
            Ok(volume) => volume.state == VolumeState::Deleting,
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            Err(error) => return Err(error.into()),
        };
        if goes {
            self.keys.destroy(&claim.volume).await?;
            return Err(LeaseError::Refused {
                volume: claim.volume.clone(),
                reason: "the volume is to go",
            });
        }
        // Made meanwhile, with this very key.
        again.map(|_| key)
    }

    /// Holds a claim against the store.
    async fn check(&self, claim: &Claim) -> Result<Made, LeaseError> {
        let refused = |reason| LeaseError::Refused {
            volume: claim.volume.clone(),
            reason,
        };
        let absent = |error: StoreError, reason| {
            if error.kind() == ErrorKind::NotFound {
                refused(reason)
            } else {
                LeaseError::Store(error)
            }
        };
        let volume = match self.store.volume(&claim.org, &claim.volume).await {
            // Snapshots outlive their volume, and need its key to be made into another.
            Err(error) if error.kind() == ErrorKind::NotFound && claim.machine.is_none() => {
                let snapshots = self.store.snapshots(&claim.org, &claim.volume).await?;
                return if snapshots.iter().any(|kept| kept.host == claim.host) {
                    Ok(Made::Before)
                } else {
                    Err(refused("the org has no such volume"))
                };
            }
            found => found.map_err(|error| absent(error, "the org has no such volume"))?,
        };
        if volume.host != claim.host {
            // What was kept of it before it was moved stays where it was.
            let kept = self.store.snapshots(&claim.org, &claim.volume).await?;
            let there = kept.iter().any(|kept| kept.host == claim.host);
            if claim.machine.is_some() || !there {
                return Err(refused("the volume is on another host"));
            }
        }
        let Some(machine) = &claim.machine else {
            let planned = volume.state == VolumeState::Planned && volume.made.0 == 0;
            return Ok(if planned { Made::NotYet } else { Made::Before });
        };
        let machine = self
            .store
            .machine(&claim.org, machine)
            .await
            .map_err(|error| absent(error, "the org has no such machine"))?;
        if machine.host != claim.host {
            return Err(refused("the machine is on another host"));
        }
        if machine.volume != claim.volume {
            return Err(refused("the machine has another volume"));
        }
        if machine.state.live_generation() != Some(claim.generation) {
            return Err(refused("this start of the machine is over"));
        }
        // A machine starts on what was made before.
        Ok(Made::Before)
    }

    /// Destroys the key of a volume: from then on nothing opens it.
    ///
    /// # Errors
    /// [`KeyStoreError`].
    pub async fn destroy(&self, volume: &VolumeId) -> Result<(), KeyStoreError> {
        self.keys.destroy(volume).await
    }
}
