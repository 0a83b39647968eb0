//! One at a time per volume: what is done about it, and about its snapshots.

use slipway_core::id::VolumeId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// The locks that somebody holds or waits for.
#[derive(Debug, Default)]
pub(in crate::farm) struct Locks(Mutex<HashMap<VolumeId, Weak<AsyncMutex<()>>>>);

impl Locks {
    /// Waits until nobody else does anything about this volume.
    pub(in crate::farm) async fn hold(&self, volume: &VolumeId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(volume).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(AsyncMutex::new(()));
                    locks.insert(volume.clone(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_stays() {
        let (locks, volume) = (Locks::default(), VolumeId::from_entropy([1; 10]));
        let held = locks.hold(&volume).await;
        let other = locks.hold(&VolumeId::from_entropy([2; 10])).await;
        let waiting = locks.hold(&volume);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop((held, other));
        drop(waiting.await);
        drop(locks.hold(&volume).await);
        assert_eq!(locks.0.lock().unwrap().len(), 1, "only the last one");
    }
}
