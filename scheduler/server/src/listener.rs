//! A TLS listener: takes connections within its bounds, shakes hands, and hands them on.
//!
//! Must not know: what is served, whose a connection is.

use crate::bounds::{
    LISTENER_CONNECTIONS_MAX, REQUEST_HEAD_BYTES_MAX, REQUEST_HEAD_WAIT_MAX, REQUEST_HEADERS_MAX,
    TLS_HANDSHAKE_WAIT_MAX, TLS_READ_BYTES,
};
use crate::ca;
use crate::connection::{Connection, OrgConnections};
use crate::farm::chain;
use crate::http::Body;
use crate::strangers::{Stranger, Strangers};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Rest after a failed accept (out of descriptors, mostly), so that the loop does not spin.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Bound, not yet serving.
pub(crate) struct Listener {
    tcp: TcpListener,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    places: Arc<Semaphore>,
    orgs: Arc<OrgConnections>,
    strangers: Arc<Strangers>,
}

impl Listener {
    /// Binds.
    ///
    /// # Errors
    /// The system's.
    pub(crate) async fn bind(address: SocketAddr, acceptor: TlsAcceptor) -> io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        let address = tcp.local_addr()?;
        let places = Arc::new(Semaphore::new(LISTENER_CONNECTIONS_MAX));
        Ok(Self {
            tcp,
            address,
            acceptor,
            places,
            orgs: Arc::default(),
            strangers: Arc::default(),
        })
    }

    /// Where it listens, with the real port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes connections until cancelled, and gives each to `handle`.
    pub(crate) async fn run<H, F>(self, tasks: TaskTracker, cancel: CancellationToken, handle: H)
    where
        H: Fn(Secured, Arc<Connection>, CancellationToken) -> F,
        F: Future<Output = ()> + Send + 'static,
        H: Clone + Send + 'static,
    {
        loop {
            // The place comes before the connection: beyond the bound, clients wait in the kernel.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = self.tcp.accept() => accepted,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            let Some(stranger) = self.strangers.enter(peer.ip(), Instant::now()) else {
                tracing::debug!(%peer, "too many connections of its network without a credential");
                continue;
            };
            let leave = stranger.leave();
            let (acceptor, orgs) = (self.acceptor.clone(), Arc::clone(&self.orgs));
            let (handle, cancel) = (handle.clone(), cancel.clone());
            let span = tracing::debug_span!("connection", %peer);
            let served = async move {
                match shake_hands(acceptor, tcp, peer, orgs, stranger, place).await {
                    Ok((tls, connection)) => handle(tls, connection, cancel).await,
                    Err(error) => tracing::debug!(%error, "no TLS"),
                }
            };
            let task = async move {
                tokio::select! {
                    () = leave.cancelled() => tracing::debug!("without a credential, it makes room for another"),
                    () = served => {}
                }
            };
            tasks.spawn(task.instrument(span));
        }
    }
}

/// A client's connection after the handshake. rustls asks for 4 KiB at a time, a quarter of a full record: the buffer makes that
/// one call to the kernel for each record instead of five.
pub(crate) type Secured = TlsStream<BufReader<TcpStream>>;

async fn shake_hands(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    peer: SocketAddr,
    orgs: Arc<OrgConnections>,
    stranger: Stranger,
    place: OwnedSemaphorePermit,
) -> io::Result<(Secured, Arc<Connection>)> {
    tcp.set_nodelay(true)?;
    let tcp = BufReader::with_capacity(TLS_READ_BYTES, tcp);
    let tls = tokio::time::timeout(TLS_HANDSHAKE_WAIT_MAX, acceptor.accept(tcp)).await??;
    let certificate = tls
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    // The verifier has let it pass, so it is one of ours; one without an identity counts as none.
    let identity = certificate.and_then(|certificate| ca::identity(certificate).ok());
    Ok((
        tls,
        Arc::new(Connection::new(peer.ip(), identity, orgs, stranger, place)),
    ))
}

/// Serves HTTP/1.1 on a connection until it ends; when cancelled, until the request under way is answered.
pub(crate) async fn serve_http<I, S, F>(io: I, cancel: CancellationToken, service: S)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        let answer = service(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_HEAD_WAIT_MAX)
        .max_headers(REQUEST_HEADERS_MAX)
        .max_header_size(REQUEST_HEAD_BYTES_MAX)
        .max_buf_size(REQUEST_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut served = pin!(served);
    let done = tokio::select! {
        done = served.as_mut() => done,
        () = cancel.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = done {
        tracing::debug!(why = chain(&error), "connection broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    async fn ok(_request: Request<Incoming>) -> Response<Body> {
        Response::new(full("OK"))
    }

    /// How long a connection lives on which a byte of a head comes every `pause`, after `first`.
    async fn life(first: &'static [u8], pause: Duration) -> Duration {
        let (mut client, server) = duplex(1 << 16);
        tokio::spawn(serve_http(server, CancellationToken::new(), ok));
        client.write_all(first).await.unwrap();
        let begin = Instant::now();
        while client.write_all(b"x").await.is_ok() {
            tokio::time::sleep(pause).await;
        }
        begin.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_drips_is_given_up() {
        let late = REQUEST_HEAD_WAIT_MAX + Duration::from_secs(6);
        for (first, pause) in [
            (&b"GET / HTTP/1.1\r\nX-Slow: "[..], Duration::from_secs(5)),
            (b"G", Duration::from_millis(500)),
            // The second request of a connection gets no longer than the first.
            (
                b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nX: ",
                Duration::from_secs(5),
            ),
        ] {
            let lived = life(first, pause).await;
            assert!((REQUEST_HEAD_WAIT_MAX..late).contains(&lived), "{lived:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_not_used_again_is_closed() {
        let (mut client, server) = duplex(1 << 16);
        tokio::spawn(serve_http(server, CancellationToken::new(), ok));
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let begin = Instant::now();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("\r\n\r\nOK"), "{answer}");
        assert!(begin.elapsed() <= REQUEST_HEAD_WAIT_MAX + Duration::from_secs(1));
    }
}
