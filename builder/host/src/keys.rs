//! The keys that are lent to this host: in memory, each for one volume, one machine, one generation and a time.
//!
//! The daemon cannot ask for keys; it has what the control plane gave it. A lease that is over is forgotten and its key
//! wiped. What was opened with it stays open until its machine ends, so that a control plane that is away ends no build.
//!
//! Must not know: where keys are kept, or what opens with them.

use crate::limits::{KEY_FENCE_KEPT, KEY_LEASE_MAX, KEYS_MAX};
use slipway_core::generation::{Generation, StaleGeneration};
use slipway_core::id::{MachineId, VolumeId};
use slipway_core::key::{KeyLease, VolumeKey};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Why a lease was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    /// One of a newer generation was lent.
    #[error(transparent)]
    Stale(#[from] StaleGeneration),
    /// Too many volumes.
    #[error("leases of {KEYS_MAX} volumes are held already")]
    TooMany,
}

/// All leases of this host.
#[derive(Debug, Default)]
pub(crate) struct Keys(Mutex<HashMap<VolumeId, Entry>>);

#[derive(Debug)]
struct Entry {
    /// Highest that was lent or revoked; older ones are refused.
    generation: Generation,
    /// Until when they are: by then no lease that was made before is good any more.
    fenced_until: Instant,
    lent: Option<Lent>,
}

#[derive(Debug)]
struct Lent {
    machine: Option<MachineId>,
    until: Instant,
    key: Arc<VolumeKey>,
}

impl Keys {
    fn entries(&self) -> MutexGuard<'_, HashMap<VolumeId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a lease, or renews one.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub(crate) fn lend(&self, lease: KeyLease, now: Instant) -> Result<(), LeaseError> {
        let mut entries = self.entries();
        if entries.len() >= KEYS_MAX && !entries.contains_key(&lease.volume) {
            return Err(LeaseError::TooMany);
        }
        let entry = entries.entry(lease.volume).or_insert(Entry {
            generation: lease.generation,
            fenced_until: now,
            lent: None,
        });
        entry.generation.check(lease.generation)?;
        entry.fenced_until = now + KEY_FENCE_KEPT;
        entry.generation = lease.generation;
        entry.lent = Some(Lent {
            machine: lease.machine,
            until: now + Duration::from_millis(lease.ttl_ms).min(KEY_LEASE_MAX),
            key: Arc::new(lease.key),
        });
        Ok(())
    }

    /// Forgets the key of a volume, unless it was lent for a newer generation.
    pub(crate) fn revoke(&self, volume: &VolumeId, generation: Generation, now: Instant) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(volume) else {
            return;
        };
        if entry.generation <= generation {
            entry.generation = generation;
            entry.fenced_until = now + KEY_FENCE_KEPT;
            entry.lent = None;
        }
    }

    /// The key of a volume for this start of this machine, and for no other.
    pub(crate) fn for_machine(
        &self,
        volume: &VolumeId,
        machine: &MachineId,
        generation: Generation,
        now: Instant,
    ) -> Option<Arc<VolumeKey>> {
        let entries = self.entries();
        let entry = entries.get(volume)?;
        let lent = entry.lent.as_ref()?;
        let right = entry.generation == generation && lent.machine.as_ref() == Some(machine);
        (right && lent.until > now).then(|| Arc::clone(&lent.key))
    }

    /// The key of a volume for work on the volume itself, whichever machine it may be lent for.
    pub(crate) fn for_work(&self, volume: &VolumeId, now: Instant) -> Option<Arc<VolumeKey>> {
        let entries = self.entries();
        let lent = entries.get(volume)?.lent.as_ref()?;
        (lent.until > now).then(|| Arc::clone(&lent.key))
    }

    /// Wipes what is over.
    pub(crate) fn forget_expired(&self, now: Instant) {
        self.entries().retain(|_, entry| {
            if entry.lent.as_ref().is_some_and(|lent| lent.until <= now) {
                entry.lent = None;
            }
            entry.lent.is_some() || now < entry.fenced_until
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_core::key::VOLUME_KEY_BYTES;

    fn volume(n: u8) -> VolumeId {
        VolumeId::from_entropy([n; 10])
    }

    fn machine(n: u8) -> MachineId {
        MachineId::from_entropy([n; 10])
    }

    fn lease(generation: u64, holder: Option<u8>) -> KeyLease {
        KeyLease {
            volume: volume(1),
            machine: holder.map(machine),
            generation: Generation(generation),
            ttl_ms: 10_000,
            key: VolumeKey::from_entropy(&[7; VOLUME_KEY_BYTES]),
        }
    }

    #[test]
    fn a_key_is_for_one_start_of_one_machine_and_a_time() {
        let (keys, now) = (Keys::default(), Instant::now());
        keys.lend(lease(3, Some(1)), now).unwrap();
        let has = |keys: &Keys, holder, generation, at| {
            keys.for_machine(&volume(1), &machine(holder), Generation(generation), at)
                .is_some()
        };
        assert!(has(&keys, 1, 3, now));
        for (holder, generation) in [(2, 3), (1, 2), (1, 4)] {
            assert!(
                !has(&keys, holder, generation, now),
                "{holder} {generation}"
            );
        }
        assert!(
            keys.for_machine(&volume(2), &machine(1), Generation(3), now)
                .is_none()
        );
        let over = now + Duration::from_secs(10);
        assert!(!has(&keys, 1, 3, over));
        assert!(keys.for_work(&volume(1), over).is_none());
        // Renewed in time, it goes on.
        keys.lend(lease(3, Some(1)), now + Duration::from_secs(9))
            .unwrap();
        assert!(has(&keys, 1, 3, over));
        keys.forget_expired(over + Duration::from_secs(10));
        assert!(!has(&keys, 1, 3, now));
    }

    #[test]
    fn volumes_of_the_past_take_no_room_from_others() {
        let (keys, now) = (Keys::default(), Instant::now());
        keys.lend(lease(3, Some(1)), now).unwrap();
        let over = now + Duration::from_secs(10);
        keys.forget_expired(over);
        assert!(
            matches!(
                keys.lend(lease(2, Some(1)), over),
                Err(LeaseError::Stale(_))
            ),
            "its fence stays"
        );
        keys.forget_expired(now + KEY_FENCE_KEPT);
        assert!(keys.entries().is_empty());
    }

    #[test]
    fn what_was_revoked_does_not_come_back_by_an_older_lease() {
        let (keys, now) = (Keys::default(), Instant::now());
        keys.lend(lease(3, Some(1)), now).unwrap();
        keys.revoke(&volume(1), Generation(2), now);
        assert!(keys.for_work(&volume(1), now).is_some(), "older than lent");
        keys.revoke(&volume(1), Generation(4), now);
        assert!(keys.for_work(&volume(1), now).is_none());
        assert!(matches!(
            keys.lend(lease(3, Some(1)), now),
            Err(LeaseError::Stale(_))
        ));
        keys.lend(lease(4, None), now).unwrap();
        assert!(keys.for_work(&volume(1), now).is_some());
        assert!(
            keys.for_machine(&volume(1), &machine(1), Generation(4), now)
                .is_none(),
            "lent for no machine"
        );
    }
}
