//! One client connection: where it comes from, its certificate, and what it counts against.
//!
//! Must not know: HTTP, what is asked on it.

use crate::ca::CertificateIdentity;
use crate::places::{Holder, Place};
use crate::problem::Problem;
use slipway_core::id::OrgId;
use std::net::IpAddr;
use tokio_util::sync::CancellationToken;

/// A connection, as long as anything of it lives: the hijacked streams made of it hold it too.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: IpAddr,
    certificate: Option<CertificateIdentity>,
    place: Place,
    progress: Progress,
    cut: CancellationToken,
}

/// How far a connection has come; each is cancelled when it has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// The first request has begun: its head is there.
    pub(crate) asked: CancellationToken,
    /// A good credential has come.
    pub(crate) authenticated: CancellationToken,
}

impl Connection {
    pub(crate) fn new(
        peer: IpAddr,
        certificate: Option<CertificateIdentity>,
        place: Place,
        progress: Progress,
    ) -> Self {
        Self {
            peer,
            certificate,
            place,
            progress,
            cut: CancellationToken::new(),
        }
    }

    /// The only one of its listener, from loopback.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn alone() -> Self {
        let peer = std::net::Ipv4Addr::LOCALHOST.into();
        let places = std::sync::Arc::<crate::places::Places>::default();
        let place = places.enter(peer, tokio::time::Instant::now());
        let place = place.unwrap_or_else(|| unreachable!("it is empty"));
        Self::new(peer, None, place, Progress::default())
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

    /// A request has begun.
    pub(crate) fn asked(&self) {
        self.progress.asked.cancel();
    }

    /// Has a good credential come on it?
    pub(crate) fn is_authenticated(&self) -> bool {
        self.place.is_held()
    }

    /// A good credential came on it: from now on it counts for the credential's org, or for the administrator if it is of none. Call it
    /// before anything else may refuse the request.
    ///
    /// # Errors
    /// As [`Place::hold_for`].
    pub(crate) fn authenticated(&self, org: Option<&OrgId>) -> Result<(), Problem> {
        let holder = org.map_or(Holder::Administrator, |org| Holder::Org(org.clone()));
        self.place.hold_for(&holder)?;
        self.progress.authenticated.cancel();
        Ok(())
    }
}
