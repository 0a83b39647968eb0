//! Connections: TCP, and TLS with the authority that `slipway login` stored.

use super::ServerAddress;
use crate::limits::{CONNECT_WAIT_MAX, KEEPALIVE_EVERY, KEEPALIVES_LOST_MAX};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use slipway_terminal::exit::{Failure, Outcome};
use socket2::{SockRef, TcpKeepalive};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Any stream that bytes go over both ways.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes connections to the server's listeners. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Transport {
    /// Absent if nobody is trusted: then only clear text on this computer works.
    connector: Option<TlsConnector>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transport")
    }
}

impl Transport {
    /// Trusts `ca_pem`, or the system's authorities if there is none.
    ///
    /// # Errors
    /// The caller's fault: `ca_pem` has no usable certificate.
    pub(crate) fn new(ca_pem: Option<&str>) -> Outcome<Self> {
        let certificates: Vec<CertificateDer<'_>> = match ca_pem {
            Some(pem) => CertificateDer::pem_slice_iter(pem.as_bytes())
                .flatten()
                .collect(),
            // SSL_CERT_FILE and SSL_CERT_DIR go first.
            None => rustls_native_certs::load_native_certs().certs,
        };
        let mut roots = RootCertStore::empty();
        let (added, _ignored) = roots.add_parsable_certificates(certificates);
        if added == 0 && ca_pem.is_some() {
            return Err(
                Failure::user("there is no usable certificate in the authority's file")
                    .hint("give the server's own with `slipway login --server https://HOST:PORT --ca FILE`"),
            );
        }
        if added == 0 {
            return Ok(Self { connector: None });
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::system_caused("set up tls", &error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            connector: Some(TlsConnector::from(Arc::new(config))),
        })
    }

    /// A connected stream, ready for HTTP/1.1.
    ///
    /// # Errors
    /// The network's fault, or the caller's if the certificate does not fit.
    pub(crate) async fn connect(
        &self,
        address: &ServerAddress,
    ) -> Outcome<TokioIo<Box<dyn Stream>>> {
        match tokio::time::timeout(CONNECT_WAIT_MAX, self.dial(address)).await {
            Ok(connected) => connected.map(TokioIo::new),
            Err(_elapsed) => Err(Failure::system(format!(
                "cannot reach {address}: no answer within {} s",
                CONNECT_WAIT_MAX.as_secs()
            ))
            .hint("is the server up, and does a firewall let you through?")),
        }
    }

    async fn dial(&self, address: &ServerAddress) -> Outcome<Box<dyn Stream>> {
        let tcp = TcpStream::connect((address.host(), address.port()))
            .await
            .map_err(|error| {
                Failure::system_caused(format_args!("cannot reach {address}"), &error)
                    .hint("is the server up, and is the address right? `slipway status` shows it")
            })?;
        // Small frames of both directions must not wait for each other.
        let _ = tcp.set_nodelay(true);
        watch_for_its_end(&tcp);
        if !address.is_tls() {
            return Ok(Box::new(tcp));
        }
        let name = ServerName::try_from(address.host().to_owned())
            .map_err(|_| Failure::user(format!("'{}' is not a host name", address.host())))?;
        let connector = self.connector.as_ref().ok_or_else(|| {
            Failure::user("this system has no list of certificate authorities")
                .hint("give the server's own with --ca FILE, or install ca-certificates")
        })?;
        let tls = connector
            .connect(name, tcp)
            .await
            .map_err(|error| explain_tls(address, &error))?;
        Ok(Box::new(tls))
    }
}

/// Has the kernel see to it that a peer that is gone without a word is noticed, also while nothing is to be sent. Without it (it
/// cannot be refused on any kernel that we know) our own bounds remain.
fn watch_for_its_end(tcp: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_EVERY)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVES_LOST_MAX);
    if let Err(error) = SockRef::from(tcp).set_tcp_keepalive(&keepalive) {
        tracing::debug!(%error, "no keepalive");
    }
}

fn explain_tls(address: &ServerAddress, error: &std::io::Error) -> Failure {
    let cause = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(reason)) => Failure::user(format!(
            "the certificate of {address} is not trusted: {reason}"
        ))
        .hint("log in again with the server's own authority: `slipway login --server https://HOST:PORT --ca FILE`"),
        Some(_) | None => {
            Failure::system_caused(format_args!("cannot speak tls with {address}"), error)
        }
    }
}
