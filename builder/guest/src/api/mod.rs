//! The guest API over HTTP/1.1 on the host's socket: reads requests, calls the guest, writes answers.
//!
//! It must not know how anything is done.

mod answer;
mod push_lines;
mod routes;

use crate::guest::Guest;
use crate::limits;
use anyhow::{Context as _, Result};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Time before the next attempt to accept when the last one failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A server on `socket`, to be spawned. It accepts for as long as it is polled and runs connections on `tasks`. After
/// `stop` each connection ends with the answer it is at.
pub(crate) fn serve(
    socket: StdUnixListener,
    guest: Arc<Guest>,
    stop: CancellationToken,
    tasks: TaskTracker,
) -> Result<impl Future<Output = ()> + Send + 'static> {
    socket
        .set_nonblocking(true)
        .context("make the socket non-blocking")?;
    let listener = UnixListener::from_std(socket).context("listen on the guest socket")?;
    Ok(accept(listener, guest, stop, tasks))
}

async fn accept(
    listener: UnixListener,
    guest: Arc<Guest>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed, so this only waits.
        let place = places.clone().acquire_owned().await.ok();
        let accepted = listener.accept().await;
        match accepted {
            Ok((stream, _)) => {
                let (guest, stop) = (guest.clone(), stop.clone());
                tasks.spawn(async move {
                    connection(stream, guest, stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, guest: Arc<Guest>, stop: CancellationToken) {
    let service = service_fn(move |request| routes::answer(guest.clone(), request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::REQUEST_READ_WAIT_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}
