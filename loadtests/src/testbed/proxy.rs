//! A TCP proxy in front of the registry that can be slow, or hang up on everybody: what networks do to pushes.

use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes that are passed on at once: small, so that a slow proxy is slow and does not stutter.
const PIECE: usize = 4 << 10;

/// What the proxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Passes everything on as it comes.
    Pass,
    /// Takes this many bytes a second from each client.
    Slow(u32),
    /// Closes each new connection at once.
    HangUp,
}

/// A running proxy; dropping it ends it.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    behind: String,
    manner: Mutex<Manner>,
    taken: AtomicU64,
    over: AtomicBool,
}

impl Proxy {
    /// Listens at `address` (`ip:port`) for what is `behind` it.
    ///
    /// # Errors
    /// The address is taken.
    pub(super) fn start(address: &str, behind: &str) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| address.to_owned())?;
        let shared = Arc::new(Shared {
            behind: behind.to_owned(),
            manner: Mutex::new(Manner::Pass),
            taken: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let accepting = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Self {
            address: address.to_owned(),
            shared,
            accepting: Some(accepting),
        })
    }

    /// `ip:port`, which builders may reach as a registry.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Changes what it does, for connections that are open too (but `HangUp` leaves those).
    pub fn be(&self, manner: Manner) {
        *self
            .shared
            .manner
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = manner;
    }

    /// Bytes that clients have sent through it so far.
    pub fn taken(&self) -> u64 {
        self.shared.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _woken = TcpStream::connect(&self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ended = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.over.load(Ordering::Relaxed) {
            return;
        }
        let Ok(client) = client else { continue };
        if shared.manner() == Manner::HangUp {
            continue;
        }
        // Its clients are told by the end of their connection.
        let Ok(behind) = TcpStream::connect(&shared.behind) else {
            continue;
        };
        let (Ok(client_too), Ok(behind_too)) = (client.try_clone(), behind.try_clone()) else {
            continue;
        };
        let there = Arc::clone(shared);
        // Both end with the connection, at the latest when the farm's processes do.
        std::thread::spawn(move || there.copy_slowly(client, behind));
        std::thread::spawn(move || copy_back(behind_too, client_too));
    }
}

impl Shared {
    fn manner(&self) -> Manner {
        *self.manner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy_slowly(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut piece = [0; PIECE];
        while let Ok(read) = from.read(&mut piece) {
            if read == 0 || to.write_all(&piece[..read]).is_err() {
                break;
            }
            self.taken.fetch_add(read as u64, Ordering::Relaxed);
            if let Manner::Slow(rate) = self.manner() {
                std::thread::sleep(
                    Duration::from_secs(1) * u32::try_from(read).unwrap_or(0) / rate.max(1),
                );
            }
        }
        let _closed = to.shutdown(Shutdown::Write);
        let _closed = from.shutdown(Shutdown::Read);
    }
}

fn copy_back(mut from: TcpStream, mut to: TcpStream) {
    let _broken = std::io::copy(&mut from, &mut to);
    let _closed = to.shutdown(Shutdown::Both);
}
