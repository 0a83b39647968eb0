//! The door of a virtual machine: one port that only its host can open ([`slipway_core::vm`]), behind it the two listeners
//! that a sandbox's host reaches directly.
//!
//! It must not know what is spoken on a stream.

use crate::books::Books;
use crate::capture::{Capture, Told};
use crate::limits::{CHANNEL_GREETING_WAIT_MAX, CHANNEL_STREAMS_MAX};
use crate::phase::Phase;
use anyhow::{Context as _, Result, ensure};
use slipway_core::host_api::EndpointPort;
use slipway_core::vm::{Answer, CHANNEL_PORT, GREETING_BYTES, SECRET_BYTES, Wanted};
use std::net::{Ipv4Addr, TcpListener as StdTcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;

/// Time before the next attempt to accept when the last one failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes copied at a time, each way.
const COPY_BYTES: usize = 64 << 10;

/// The port, open but not served yet.
pub(crate) struct Channel {
    listener: StdTcpListener,
    door: Door,
}

/// What each stream needs.
struct Door {
    secret: [u8; SECRET_BYTES],
    docker: PathBuf,
    guest: PathBuf,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl Channel {
    /// Listens on the machine's own address, not on those of the bridges that dockerd makes.
    pub(super) fn listen(
        address: Ipv4Addr,
        secret: &str,
        docker: PathBuf,
        guest: PathBuf,
    ) -> Result<Self> {
        let secret = parse_secret(secret)?;
        let listener =
            StdTcpListener::bind((address, CHANNEL_PORT)).context("listen for the host")?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            door: Door {
                secret,
                docker,
                guest,
            },
        })
    }

    /// Serves for as long as it is polled. Within a runtime, with SIGTERM heard already: that is what a wish to end becomes.
    pub(crate) async fn serve(self, books: Books, capture: Capture) {
        let listener = match TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "the host cannot be heard");
                return;
            }
        };
        let door = Arc::new(self.door);
        let places = Arc::new(Semaphore::new(CHANNEL_STREAMS_MAX));
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (door, places) = (door.clone(), places.clone());
                    let (books, capture) = (books.clone(), capture.clone());
                    tokio::spawn(async move {
                        let served = serve_one(stream, &door, &places, &books, &capture);
                        if let Err(error) = served.await {
                            tracing::debug!(%error, "a stream broke off");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a stream was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve_one(
    mut stream: TcpStream,
    door: &Door,
    places: &Semaphore,
    books: &Books,
    capture: &Capture,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut greeting = [0; GREETING_BYTES];
    tokio::time::timeout(CHANNEL_GREETING_WAIT_MAX, stream.read_exact(&mut greeting)).await??;
    let (secret, wanted) = greeting.split_at(SECRET_BYTES);
    if !bool::from(secret.ct_eq(&door.secret)) {
        tracing::warn!("a stranger knocked");
        return Ok(());
    }
    // An unknown wish comes from a host of another release, which hears that nobody is there.
    let wanted = wanted.first().copied().and_then(Wanted::from_byte);
    let target: &Path = match wanted {
        Some(Wanted::Endpoint(EndpointPort::Docker)) => &door.docker,
        Some(Wanted::Endpoint(EndpointPort::Guest)) => &door.guest,
        Some(Wanted::End) => {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM)?;
            return answer(&mut stream, Answer::Taken).await;
        }
        Some(Wanted::Rest) => {
            let streams = places.available_permits() < CHANNEL_STREAMS_MAX;
            let said = if capture.is_offered() && !streams {
                Answer::Leaving
            } else if streams || books.phase() != Phase::Ready || !books.activity().is_quiet() {
                Answer::Full
            } else {
                Answer::Taken
            };
            return answer(&mut stream, said).await;
        }
        Some(Wanted::Stillness) => {
            let still = places.available_permits() == CHANNEL_STREAMS_MAX && capture.take().await;
            let said = if still { Answer::Taken } else { Answer::Full };
            return answer(&mut stream, said).await;
        }
        Some(Wanted::Woken) => {
            hear_the_time(&mut stream, books).await?;
            capture.tell(Told::End).await;
            return answer(&mut stream, Answer::Taken).await;
        }
        Some(Wanted::Resumed) => {
            hear_the_time(&mut stream, books).await?;
            capture.tell(Told::GoOn).await;
            return answer(&mut stream, Answer::Taken).await;
        }
        None => return answer(&mut stream, Answer::Closed).await,
    };
    let Ok(_place) = places.try_acquire() else {
        return answer(&mut stream, Answer::Full).await;
    };
    let mut inner = match UnixStream::connect(target).await {
        Ok(inner) => inner,
        Err(error) => {
            tracing::debug!(%error, target = %target.display(), "nobody listens");
            return answer(&mut stream, Answer::Closed).await;
        }
    };
    answer(&mut stream, Answer::Taken).await?;
    // Either side may close its half and go on with the other.
    tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut inner, COPY_BYTES, COPY_BYTES)
        .await
        .map(drop)
}

/// What the time is outside, after the machine did not run for a while.
async fn hear_the_time(stream: &mut TcpStream, books: &Books) -> std::io::Result<()> {
    let now_ms = tokio::time::timeout(CHANNEL_GREETING_WAIT_MAX, stream.read_u64()).await??;
    let now = Duration::from_millis(now_ms);
    books.was_paused(behind(now));
    set_clock(now);
    Ok(())
}

/// How far the clock is behind `now`: as long as it stood.
fn behind(now: Duration) -> Duration {
    let clock = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.saturating_sub(clock)
}

/// Sets the clock, which stood while the machine was paused.
fn set_clock(now: Duration) {
    let clock = nix::time::ClockId::CLOCK_REALTIME;
    match nix::time::clock_settime(clock, now.into()) {
        Ok(()) => tracing::info!("woken, and the clock is set"),
        Err(error) => tracing::warn!(%error, "the clock is late"),
    }
}

async fn answer(stream: &mut TcpStream, answer: Answer) -> std::io::Result<()> {
    stream.write_all(&[answer.byte()]).await
}

fn parse_secret(hex: &str) -> Result<[u8; SECRET_BYTES]> {
    ensure!(
        hex.len() == SECRET_BYTES * 2 && hex.is_ascii(),
        "the secret is not one"
    );
    let mut secret = [0; SECRET_BYTES];
    for (byte, at) in secret.iter_mut().zip((0..).step_by(2)) {
        // What parsing says could quote it.
        *byte = u8::from_str_radix(&hex[at..at + 2], 16)
            .map_err(|_| anyhow::anyhow!("the secret is not one"))?;
    }
    Ok(secret)
}
