//! TLS of the three listeners: the server's certificate, which is replaced while running, and clients' certificates.
//!
//! Must not know: HTTP, tokens.

use crate::bounds::{
    SERVER_CERTIFICATE_LIFE, SERVER_CERTIFICATE_LOOK_EVERY, SERVER_CERTIFICATE_RENEW_LEFT,
};
use crate::ca::{CaError, CertificateAuthority};
use crate::clock::now;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use slipway_core::time::Timestamp;
use std::sync::{Arc, PoisonError, RwLock};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate could not be made.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// rustls refuses it.
    #[error("set up TLS")]
    Rustls(#[from] rustls::Error),
    /// The verifier of clients' certificates.
    #[error("set up the verification of client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Whether a listener asks for a client certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientCertificates {
    /// It does not ask.
    Ignored,
    /// It asks; none is fine, a bad one is not.
    Optional,
    /// No handshake without one.
    Required,
}

/// The server's certificate of the moment.
#[derive(Debug)]
pub(crate) struct ServerIdentity {
    authority: Arc<CertificateAuthority>,
    names: Vec<String>,
    current: RwLock<Current>,
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    not_after: Timestamp,
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current.key))
    }
}

impl ServerIdentity {
    /// Issues the first certificate.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(crate) fn new(
        authority: Arc<CertificateAuthority>,
        names: Vec<String>,
    ) -> Result<Self, TlsError> {
        let current = RwLock::new(issue(&authority, &names)?);
        Ok(Self {
            authority,
            names,
            current,
        })
    }

    /// Replaces the certificate if it is near its end. Connections that exist keep the old one. Gives whether it did.
    ///
    /// # Errors
    /// [`TlsError`]; the old one stays.
    pub(crate) fn renew_if_due(&self, at: Timestamp) -> Result<bool, TlsError> {
        let not_after = self
            .current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .not_after;
        if not_after.since(at) > SERVER_CERTIFICATE_RENEW_LEFT {
            return Ok(false);
        }
        let fresh = issue(&self.authority, &self.names)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(true)
    }

    /// Looks at the certificate's age until the server ends.
    pub(crate) async fn keep_fresh(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(SERVER_CERTIFICATE_LOOK_EVERY) => {}
            }
            match self.renew_if_due(now()) {
                Ok(true) => tracing::info!("server certificate renewed"),
                Ok(false) => {}
                Err(error) => {
                    let why = crate::chain::chain(&error);
                    tracing::error!(?why, "server certificate not renewed");
                }
            }
        }
    }

    /// An acceptor that offers `alpn`.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(crate) fn acceptor(
        self: &Arc<Self>,
        clients: ClientCertificates,
        alpn: &[u8],
    ) -> Result<TlsAcceptor, TlsError> {
        let builder = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?;
        let builder = match clients {
            ClientCertificates::Ignored => builder.with_no_client_auth(),
            ClientCertificates::Optional | ClientCertificates::Required => {
                let mut roots = RootCertStore::empty();
                roots.add(self.authority.certificate().clone())?;
                let mut verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
                if clients == ClientCertificates::Optional {
                    verifier = verifier.allow_unauthenticated();
                }
                builder.with_client_cert_verifier(verifier.build()?)
            }
        };
        let mut config =
            builder.with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn issue(authority: &CertificateAuthority, names: &[String]) -> Result<Current, TlsError> {
    let issued = authority.issue_server(names, now(), SERVER_CERTIFICATE_LIFE)?;
    let key = CertifiedKey::from_der(vec![issued.certificate], issued.key, &provider())?;
    Ok(Current {
        key: Arc::new(key),
        not_after: issued.not_after,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_is_renewed_in_time_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(CertificateAuthority::open(dir.path(), now()).unwrap());
        let identity = ServerIdentity::new(authority, vec!["localhost".to_owned()]).unwrap();
        let before = Arc::clone(&identity.current.read().unwrap().key);
        assert!(!identity.renew_if_due(now()).unwrap());
        let late = now().after(SERVER_CERTIFICATE_LIFE - SERVER_CERTIFICATE_RENEW_LEFT);
        assert!(
            identity
                .renew_if_due(late.after(SERVER_CERTIFICATE_LOOK_EVERY))
                .unwrap()
        );
        let after = Arc::clone(&identity.current.read().unwrap().key);
        assert_ne!(before.cert, after.cert);
    }
}
