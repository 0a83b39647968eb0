//! A client that has vanished without a word (a pulled cable, a suspended computer, a firewall that forgot) ends its connection, and with
//! it what it held a builder up for.
//!
//! | what is under way | what finds out |
//! |---|---|
//! | nothing: a quiet stream | TCP keepalive |
//! | bytes that the client has not acknowledged | the kernel's resending, with [`Liveness::resend_every_max`] |
//!
//! `TCP_USER_TIMEOUT` bounds both, but ends a client too that is there and has stopped reading for as long (`docker logs -f` in a pager).
//!
//! Must not know: what is served.

use crate::bounds::{
    CLIENT_RESEND_EVERY_MAX, CLIENT_SILENCE_ASK, CLIENT_SILENCE_ASK_EVERY, CLIENT_SILENCE_ASKS_MAX,
};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// `TCP_RTO_MAX_MS` of the kernel's `linux/tcp.h`.
const TCP_RTO_MAX_MS: libc::c_int = 44;

nix::setsockopt_impl!(
    RtoMax,
    libc::IPPROTO_TCP,
    TCP_RTO_MAX_MS,
    usize,
    sockopt::SetUsize
);

#[derive(Clone, Copy)]
struct RtoMax;

/// When a client counts as vanished.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Liveness {
    /// Silence after which it is asked for the first time, and between two questions. Whole seconds.
    ask_after: Duration,
    ask_every: Duration,
    asks_max: u32,
    /// Longest time between two attempts to send what it has not acknowledged.
    resend_every_max: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            ask_after: CLIENT_SILENCE_ASK,
            ask_every: CLIENT_SILENCE_ASK_EVERY,
            asks_max: CLIENT_SILENCE_ASKS_MAX,
            resend_every_max: CLIENT_RESEND_EVERY_MAX,
        }
    }
}

impl Liveness {
    /// Has the kernel watch every connection that this listening socket accepts: they inherit it.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn watch(&self, listening: &impl AsFd) -> io::Result<()> {
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let resend = usize::try_from(self.resend_every_max.as_millis()).unwrap_or(usize::MAX);
        setsockopt(listening, sockopt::KeepAlive, &true)?;
        setsockopt(listening, sockopt::TcpKeepIdle, &seconds(self.ask_after))?;
        setsockopt(
            listening,
            sockopt::TcpKeepInterval,
            &seconds(self.ask_every),
        )?;
        setsockopt(listening, sockopt::TcpKeepCount, &self.asks_max)?;
        match setsockopt(listening, RtoMax, &resend) {
            Ok(()) => Ok(()),
            Err(Errno::ENOPROTOOPT) => {
                tracing::debug!(
                    "this kernel has a bound of its own for what a client does not acknowledge"
                );
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, eventually};
    use socket2::{SockFilter, SockRef};
    use std::io::ErrorKind;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    /// From now on nothing reaches this end, not even its kernel: the network between has died.
    fn vanish(client: &TcpStream) {
        // The classic filter `return 0`: every packet is dropped whole.
        let drop_all = SockFilter::new(0x06, 0, 0, 0);
        SockRef::from(client).attach_filter(&[drop_all]).unwrap();
    }

    async fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    #[tokio::test]
    async fn a_client_that_has_vanished_ends_its_connection_and_a_quiet_one_does_not() {
        let second = Duration::from_secs(1);
        let liveness = Liveness {
            ask_after: second,
            ask_every: second,
            asks_max: 2,
            resend_every_max: second,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        liveness.watch(&listener).unwrap();
        let (_quiet, mut heard) = pair(&listener).await;
        let (silent, mut unheard) = pair(&listener).await;
        let (owing, mut owed) = pair(&listener).await;
        vanish(&silent);
        vanish(&owing);
        owed.write_all(b"not acknowledged").await.unwrap();
        let bound = Duration::from_secs(60);
        for (what, server) in [("quiet", &mut unheard), ("owing", &mut owed)] {
            let ended = timeout(bound, server.read_u8()).await;
            let ended = ended.unwrap_or_else(|_| panic!("the {what} one was not ended"));
            assert_eq!(ended.unwrap_err().kind(), ErrorKind::TimedOut, "{what}");
        }
        // By then the one that is there was asked more often than it may be silent.
        assert!(timeout(second, heard.read_u8()).await.is_err());
    }

    /// The kernel's own list says of each connection which timer runs, and for how long yet.
    fn keepalive_left(port: u16) -> Option<u64> {
        let list = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let local = format!("0100007F:{port:04X}");
        list.lines().find_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let is_it = columns.get(1) == Some(&local.as_str()) && columns.get(3) == Some(&"01");
            let timer = columns.get(5).filter(|_| is_it)?;
            let left = timer.strip_prefix("02:")?;
            u64::from_str_radix(left, 16).ok()
        })
    }

    #[tokio::test]
    async fn every_listener_has_the_kernel_watch_its_connections() {
        let mut bench = Bench::start().await;
        for listener in ["api", "docker", "buildkit"] {
            let client = bench.tcp(listener).await;
            let port = client.peer_addr().unwrap().port();
            eventually("the keepalive timer runs", || {
                keepalive_left(port).is_some()
            })
            .await;
            // In hundredths of a second.
            let left = keepalive_left(port).unwrap();
            assert!(left <= CLIENT_SILENCE_ASK.as_secs() * 100, "{left}");
            drop(client);
        }
        bench.end().await;
    }
}
