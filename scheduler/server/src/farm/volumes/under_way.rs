//! Exports and imports that are under way: how many there may be, and who sends to which volume.
//!
//! Must not know: what is transferred, or how.

use crate::farm::volume_error::VolumeError;
use crate::limits::{ORG_TRANSFERS_MAX, TRANSFERS_MAX};
use slipway_core::id::{OrgId, VolumeId};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// All that are under way.
#[derive(Debug)]
pub(in crate::farm) struct Transfers {
    places: Arc<Semaphore>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    orgs: HashMap<OrgId, u32>,
    uploads: HashMap<VolumeId, Ends>,
}

/// How an upload is told to end, and tells that it has.
#[derive(Debug, Clone, Default)]
struct Ends {
    asked: CancellationToken,
    over: CancellationToken,
}

/// The right to one transfer; dropped, another may have it.
#[derive(Debug)]
pub(super) struct Place {
    org: OrgId,
    transfers: Arc<Transfers>,
    _place: OwnedSemaphorePermit,
}

/// The right to send to a volume; dropped, another may have it.
#[derive(Debug)]
pub(super) struct Upload {
    volume: VolumeId,
    transfers: Arc<Transfers>,
    ends: Ends,
}

impl Default for Transfers {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(TRANSFERS_MAX)),
            inner: Mutex::default(),
        }
    }
}

impl Transfers {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more transfer of the org.
    ///
    /// # Errors
    /// [`VolumeError::TooManyTransfers`], [`VolumeError::TransfersFull`].
    pub(super) fn begin(self: &Arc<Self>, org: &OrgId) -> Result<Place, VolumeError> {
        let mut inner = self.lock();
        let count = inner.orgs.get(org).copied().unwrap_or(0);
        if count >= ORG_TRANSFERS_MAX {
            return Err(VolumeError::TooManyTransfers {
                max: ORG_TRANSFERS_MAX,
            });
        }
        let place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| VolumeError::TransfersFull)?;
        inner.orgs.insert(org.clone(), count + 1);
        Ok(Place {
            org: org.clone(),
            transfers: Arc::clone(self),
            _place: place,
        })
    }

    /// The right to send to a volume.
    ///
    /// # Errors
    /// [`VolumeError::BeingSent`] if somebody has it.
    pub(super) fn begin_upload(self: &Arc<Self>, volume: &VolumeId) -> Result<Upload, VolumeError> {
        let mut inner = self.lock();
        let Entry::Vacant(free) = inner.uploads.entry(volume.clone()) else {
            return Err(VolumeError::BeingSent);
        };
        let ends = free.insert(Ends::default()).clone();
        Ok(Upload {
            volume: volume.clone(),
            transfers: Arc::clone(self),
            ends,
        })
    }

    /// Has whoever sends to a volume end, and waits until it has. Nobody begins again if the record forbids it by now.
    pub(super) async fn end_upload(&self, volume: &VolumeId) {
        let ends = self.lock().uploads.get(volume).cloned();
        if let Some(ends) = ends {
            ends.asked.cancel();
            ends.over.cancelled().await;
        }
    }
}

impl Upload {
    /// Somebody wants it to end.
    pub(super) fn asked_to_end(&self) -> &CancellationToken {
        &self.ends.asked
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.transfers.lock();
        if let Entry::Occupied(mut count) = inner.orgs.entry(self.org.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.transfers.lock().uploads.remove(&self.volume);
        self.ends.over.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(n: u8) -> OrgId {
        OrgId::from_entropy([n; 10])
    }

    #[test]
    fn an_org_is_bounded_and_so_are_all_together() {
        let transfers = Arc::<Transfers>::default();
        let begin = |n| transfers.begin(&org(n));
        let mut held = Vec::new();
        for n in 0.. {
            let Ok(first) = begin(n) else { break };
            held.push(first);
            held.extend(begin(n));
            let more = begin(n).unwrap_err();
            let all = held.len() == TRANSFERS_MAX;
            assert!(all || matches!(more, VolumeError::TooManyTransfers { .. }));
        }
        assert_eq!(held.len(), TRANSFERS_MAX);
        assert!(matches!(begin(99), Err(VolumeError::TransfersFull)));
        held.pop();
        let last = begin(99).unwrap();
        drop((held, last));
        assert!(transfers.lock().orgs.is_empty());
    }

    #[tokio::test]
    async fn one_sends_to_a_volume_until_it_is_asked_to_end() {
        let transfers = Arc::<Transfers>::default();
        let volume = VolumeId::from_entropy([1; 10]);
        let upload = transfers.begin_upload(&volume).unwrap();
        assert!(matches!(
            transfers.begin_upload(&volume),
            Err(VolumeError::BeingSent)
        ));
        let ended = tokio::spawn(async move {
            upload.asked_to_end().cancelled().await;
            drop(upload);
        });
        transfers.end_upload(&volume).await;
        ended.await.unwrap();
        transfers.end_upload(&volume).await;
        drop(transfers.begin_upload(&volume).unwrap());
    }
}
