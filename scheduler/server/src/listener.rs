//! A TLS listener: takes connections within its bounds, shakes hands, and hands them on.
//!
//! Must not know: what is served, whose a connection is.

use crate::bounds::{
    FIRST_REQUEST_WAIT_MAX, REQUEST_HEAD_BYTES_MAX, REQUEST_HEAD_WAIT_MAX, REQUEST_HEADERS_MAX,
    TLS_READ_BYTES, UNAUTHENTICATED_ANSWER_WAIT_MAX,
};
use crate::ca;
use crate::chain::chain;
use crate::connection::{Connection, Progress};
use crate::http::{Body, closing};
use crate::liveness::Liveness;
use crate::places::{Place, Places};
use crate::rate::LogLimit;
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
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Rest after a failed accept (out of descriptors, mostly), so that the loop does not spin.
const ACCEPT_REST: Duration = Duration::from_millis(50);

static NOT_ACCEPTED: LogLimit = LogLimit::new();

/// Bound, not yet serving.
pub(crate) struct Listener {
    tcp: TcpListener,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    places: Arc<Places>,
}

impl Listener {
    /// Binds.
    ///
    /// # Errors
    /// The system's.
    pub(crate) async fn bind(address: SocketAddr, acceptor: TlsAcceptor) -> io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        Liveness::default().watch(&tcp)?;
        let address = tcp.local_addr()?;
        Ok(Self {
            tcp,
            address,
            acceptor,
            places: Arc::default(),
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
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = self.tcp.accept() => accepted,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(left_out) = NOT_ACCEPTED.admit(Instant::now()) {
                        tracing::warn!(%error, left_out, "connection not accepted");
                    }
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            let Some(place) = self.places.enter(peer.ip(), Instant::now()) else {
                tracing::debug!(%peer, "too many connections of its network without a credential");
                continue;
            };
            let (leave, progress) = (place.leave(), Progress::default());
            let acceptor = self.acceptor.clone();
            let (handle, cancel) = (handle.clone(), cancel.clone());
            let span = tracing::debug_span!("connection", %peer);
            let late = late(progress.clone());
            let served = async move {
                match shake_hands(acceptor, tcp, peer, place, progress).await {
                    Ok((tls, connection)) => handle(tls, connection, cancel).await,
                    Err(error) => tracing::debug!(%error, "no TLS"),
                }
            };
            let task = async move {
                tokio::select! {
                    () = leave.cancelled() => tracing::debug!("without a credential, it makes room for another"),
                    why = late => tracing::debug!(why, "closed"),
                    () = served => {}
                }
            };
            tasks.spawn(task.instrument(span));
        }
    }
}

/// Ends when a connection has taken too long over showing a good credential, with the reason.
async fn late(progress: Progress) -> &'static str {
    let Progress {
        asked,
        authenticated,
    } = progress;
    if timeout(FIRST_REQUEST_WAIT_MAX, asked.cancelled())
        .await
        .is_err()
    {
        return "no request in time";
    }
    if timeout(UNAUTHENTICATED_ANSWER_WAIT_MAX, authenticated.cancelled())
        .await
        .is_err()
    {
        return "no credential in time";
    }
    std::future::pending().await
}

/// A client's connection after the handshake. rustls asks for 4 KiB at a time, a quarter of a full record: the buffer makes that
/// one call to the kernel for each record instead of five.
pub(crate) type Secured = TlsStream<BufReader<TcpStream>>;

async fn shake_hands(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    peer: SocketAddr,
    place: Place,
    progress: Progress,
) -> io::Result<(Secured, Arc<Connection>)> {
    tcp.set_nodelay(true)?;
    let tcp = BufReader::with_capacity(TLS_READ_BYTES, tcp);
    let tls = acceptor.accept(tcp).await?;
    let certificate = tls
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    // The verifier has let it pass, so it is one of ours; one without an identity counts as none.
    let identity = certificate.and_then(|certificate| ca::identity(certificate).ok());
    Ok((
        tls,
        Arc::new(Connection::new(peer.ip(), identity, place, progress)),
    ))
}

/// Serves HTTP/1.1 on a connection until it ends; when cancelled, until the request under way is answered. A connection on which no good
/// credential has come gets one answer, and is closed.
pub(crate) async fn serve_http<I, S, F>(
    io: I,
    connection: Arc<Connection>,
    cancel: CancellationToken,
    service: S,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        connection.asked();
        let (answer, connection) = (service(request), Arc::clone(&connection));
        async move {
            let answer = answer.await;
            Ok::<_, Infallible>(match connection.is_authenticated() {
                true => answer,
                false => closing(answer),
            })
        }
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
        tracing::debug!(why = ?chain(&error), "connection broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    async fn ok(_request: Request<Incoming>) -> Response<Body> {
        Response::new(full("OK"))
    }

    /// A client of an HTTP server that answers OK to everything; it has shown a good credential, or has not.
    fn client(authenticated: bool) -> DuplexStream {
        let connection = Connection::alone();
        if authenticated {
            connection.authenticated(None).unwrap();
        }
        let (client, server) = duplex(1 << 16);
        let cancel = CancellationToken::new();
        tokio::spawn(serve_http(server, Arc::new(connection), cancel, ok));
        client
    }

    /// How long a connection lives on which a byte of a head comes every `pause`, after `first`.
    async fn life(first: &'static [u8], pause: Duration) -> Duration {
        let mut client = client(true);
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
        let mut client = client(true);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let begin = Instant::now();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("\r\n\r\nOK"), "{answer}");
        let idle = begin.elapsed();
        assert!(idle <= REQUEST_HEAD_WAIT_MAX + Duration::from_secs(1));
        assert!(idle >= REQUEST_HEAD_WAIT_MAX - Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_credential_a_connection_has_one_answer() {
        let mut client = client(false);
        let two = b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        client.write_all(two).await.unwrap();
        let begin = Instant::now();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1, "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_has_bounded_time_to_show_a_credential() {
        let begin = Instant::now();
        let progress = Progress::default();
        assert_eq!(late(progress.clone()).await, "no request in time");
        assert_eq!(begin.elapsed(), FIRST_REQUEST_WAIT_MAX);
        progress.asked.cancel();
        assert_eq!(late(progress.clone()).await, "no credential in time");
        progress.authenticated.cancel();
        let day = Duration::from_secs(24 * 3600);
        assert!(timeout(day, late(progress)).await.is_err());
    }
}
