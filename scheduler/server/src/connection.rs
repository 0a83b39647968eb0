//! One client connection: where it comes from, its certificate, and what it counts against.
//!
//! Must not know: HTTP, what is asked on it.

use crate::bounds::ORG_CONNECTIONS_MAX;
use crate::ca::CertificateIdentity;
use crate::problem::{Code, Problem};
use crate::strangers::Stranger;
use slipway_core::id::OrgId;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

/// Connections of each org on one listener.
#[derive(Debug, Default)]
pub(crate) struct OrgConnections(Mutex<HashMap<OrgId, usize>>);

/// A connection, as long as anything of it lives: the hijacked streams made of it hold it too.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: IpAddr,
    certificate: Option<CertificateIdentity>,
    orgs: Arc<OrgConnections>,
    counted: Mutex<Option<OrgSlot>>,
    stranger: Mutex<Option<Stranger>>,
    cut: CancellationToken,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct OrgSlot {
    org: OrgId,
    orgs: Arc<OrgConnections>,
}

impl Drop for OrgSlot {
    fn drop(&mut self) {
        let mut counts = self.orgs.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.org) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.org);
            }
        }
    }
}

impl Connection {
    pub(crate) fn new(
        peer: IpAddr,
        certificate: Option<CertificateIdentity>,
        orgs: Arc<OrgConnections>,
        stranger: Stranger,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            peer,
            certificate,
            orgs,
            counted: Mutex::default(),
            stranger: Mutex::new(Some(stranger)),
            cut: CancellationToken::new(),
            _place: place,
        }
    }

    pub(crate) fn peer(&self) -> IpAddr {
        self.peer
    }

    pub(crate) fn certificate(&self) -> Option<&CertificateIdentity> {
        self.certificate.as_ref()
    }

    /// Cancelled when the connection is to be closed without waiting for what is under way on it.
    pub(crate) fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// A good credential came on it: it no longer counts among those that have shown none.
    pub(crate) fn authenticated(&self) {
        let mut stranger = self.stranger.lock().unwrap_or_else(PoisonError::into_inner);
        *stranger = None;
    }

    /// Counts the connection for the org it was last used for.
    ///
    /// # Errors
    /// [`Code::Limit`].
    pub(crate) fn count_for(&self, org: &OrgId) -> Result<(), Problem> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.as_ref().is_some_and(|slot| slot.org == *org) {
            return Ok(());
        }
        // The old slot goes first, and takes the lock of the counts for it.
        *counted = None;
        let mut counts = self.orgs.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(org.clone()).or_default();
        if *count >= ORG_CONNECTIONS_MAX {
            return Err(
                Problem::new(Code::Limit, "your org has too many connections open")
                    .hint("wait until some of them have ended"),
            );
        }
        *count += 1;
        *counted = Some(OrgSlot {
            org: org.clone(),
            orgs: Arc::clone(&self.orgs),
        });
        Ok(())
    }
}

/// What one customer has: an IPv4 address, or an IPv6 /64.
pub(crate) fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strangers::Strangers;
    use tokio::sync::Semaphore;
    use tokio::time::Instant;

    #[test]
    fn an_org_is_bounded_and_others_are_not_touched_by_it() {
        let places = Arc::new(Semaphore::new(ORG_CONNECTIONS_MAX + 2));
        let orgs = Arc::<OrgConnections>::default();
        let strangers = Arc::<Strangers>::default();
        let connection = || {
            let place = Arc::clone(&places).try_acquire_owned().unwrap();
            let peer = [127, 0, 0, 1].into();
            let stranger = strangers.enter(peer, Instant::now()).unwrap();
            let connection = Connection::new(peer, None, Arc::clone(&orgs), stranger, place);
            connection.authenticated();
            connection
        };
        let (mine, theirs) = (OrgId::from_entropy([1; 10]), OrgId::from_entropy([2; 10]));
        let mut held: Vec<_> = (0..ORG_CONNECTIONS_MAX).map(|_| connection()).collect();
        for one in &held {
            assert_eq!(one.count_for(&mine), Ok(()));
            assert_eq!(
                one.count_for(&mine),
                Ok(()),
                "a second request counts no more"
            );
        }
        let more = connection();
        assert_eq!(more.count_for(&mine).unwrap_err().code, Code::Limit);
        assert_eq!(more.count_for(&theirs), Ok(()));
        held.pop();
        assert_eq!(connection().count_for(&mine), Ok(()));
        drop((held, more));
        assert!(orgs.0.lock().unwrap().is_empty());
    }
}
