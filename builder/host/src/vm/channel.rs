//! The host's end of the door to a virtual machine ([`slipway_core::vm`]). A stream it gives is the kernel's own: it
//! outlives this process, and nobody here copies its bytes.
//!
//! Must not know: how the machine was started.

use crate::limits::{CHANNEL_ATTEMPT_MAX, CHANNEL_ATTEMPT_MIN, CHANNEL_KEEPALIVE};
use crate::network::Router;
use slipway_core::vm::{Answer, CHANNEL_PORT, SECRET_BYTES, Wanted};
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Between two attempts while nobody listens.
const PAUSE: Duration = Duration::from_millis(10);
/// Probes without an answer until a stream is given up.
const KEEPALIVE_PROBES: u32 = 4;

/// A machine's door.
#[derive(Clone)]
pub(super) struct Door {
    /// The machine's address.
    pub(super) address: Ipv4Addr,
    /// Where it is opened from, which no other user of the host can.
    pub(super) router: Router,
    /// Its secret.
    pub(super) secret: [u8; SECRET_BYTES],
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Door {
    /// A stream that the guest has taken; it does not block. Tries until `deadline`, for as long as the machine `lives`:
    /// before its kernel and its guest are up nobody answers.
    ///
    /// # Errors
    /// `ConnectionRefused` when nobody listens there any more or the machine is gone, `WouldBlock` when it does not answer
    /// in time.
    pub(super) fn open(
        &self,
        wanted: Wanted,
        deadline: Instant,
        lives: impl Fn() -> bool,
    ) -> io::Result<OwnedFd> {
        let mut attempt = CHANNEL_ATTEMPT_MIN;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::from_raw_os_error(nix::libc::EAGAIN));
            }
            match self.try_open(wanted, attempt.min(left), left) {
                Ok(Knock::Taken(stream)) => return Ok(stream),
                Ok(Knock::Closed) => return Err(refused()),
                Ok(Knock::Full) => std::thread::sleep(PAUSE),
                Err(_) if !lives() => return Err(refused()),
                Err(error) => {
                    tracing::trace!(%error, "not yet");
                    // A machine that is slow to answer gets longer, one that refuses is asked again soon.
                    attempt = CHANNEL_ATTEMPT_MAX.min(attempt * 2);
                    std::thread::sleep(PAUSE.min(left));
                }
            }
        }
    }

    /// What the guest answers to a wish that gives no stream. Asks once.
    ///
    /// # Errors
    /// It does not answer within `wait`.
    pub(super) fn ask(&self, wanted: Wanted, wait: Duration) -> io::Result<Answer> {
        self.say(wanted, &[], wait)
    }

    /// Tells the guest that it did not run for a while ([`Wanted::Woken`], [`Wanted::Resumed`]), and what time it is. Tries until
    /// it has answered.
    ///
    /// # Errors
    /// It does not take it within `wait`.
    pub(super) fn tell(&self, wanted: Wanted, now: Duration, wait: Duration) -> io::Result<()> {
        let deadline = Instant::now() + wait;
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.say(wanted, &now_ms.to_be_bytes(), left.min(CHANNEL_ATTEMPT_MAX)) {
                Ok(Answer::Taken) => return Ok(()),
                Ok(Answer::Closed | Answer::Full | Answer::Leaving) => return Err(refused()),
                Err(error) if left <= CHANNEL_ATTEMPT_MAX => return Err(error),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    fn knock(&self, wait: Duration) -> io::Result<TcpStream> {
        let address = SocketAddr::from((self.address, CHANNEL_PORT));
        let socket = self.router.tcp_socket()?;
        socket.connect_timeout(&address.into(), wait)?;
        Ok(socket.into())
    }

    fn say(&self, wanted: Wanted, more: &[u8], wait: Duration) -> io::Result<Answer> {
        let wait = wait.max(PAUSE);
        let mut stream = self.knock(wait)?;
        stream.set_read_timeout(Some(wait))?;
        let mut greeting = self.secret.to_vec();
        greeting.push(wanted.byte());
        greeting.extend_from_slice(more);
        stream.write_all(&greeting)?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        Answer::from_byte(byte[0]).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn try_open(&self, wanted: Wanted, connect: Duration, answer: Duration) -> io::Result<Knock> {
        let mut stream = self.knock(connect)?;
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(CHANNEL_KEEPALIVE)
            .with_interval(CHANNEL_KEEPALIVE)
            .with_retries(KEEPALIVE_PROBES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        stream.set_read_timeout(Some(answer))?;
        let mut greeting = Vec::with_capacity(SECRET_BYTES + 1);
        greeting.extend_from_slice(&self.secret);
        greeting.push(wanted.byte());
        stream.write_all(&greeting)?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        match Answer::from_byte(byte[0]) {
            Some(Answer::Taken) => {
                stream.set_read_timeout(None)?;
                stream.set_nonblocking(true)?;
                Ok(Knock::Taken(stream.into()))
            }
            Some(Answer::Closed) => Ok(Knock::Closed),
            Some(Answer::Full) => Ok(Knock::Full),
            Some(Answer::Leaving) | None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

enum Knock {
    Taken(OwnedFd),
    Closed,
    Full,
}

fn refused() -> io::Error {
    io::Error::from_raw_os_error(nix::libc::ECONNREFUSED)
}

/// A new secret.
///
/// # Errors
/// The system has no randomness to give.
pub(super) fn new_secret() -> io::Result<[u8; SECRET_BYTES]> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret).map_err(io::Error::other)?;
    Ok(secret)
}
