//! A number that no other testbed on this machine has at the same time, and the names made from it.
//!
//! Its lock file says where the farm of its holder lies, so that the next holder can clear away what a killed one left.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

const SLOTS: u8 = 12;
/// Ports of each.
const PORTS: u16 = 10;

/// Held as long as its lock file is open.
#[derive(Debug)]
pub(super) struct Slot {
    number: u8,
    lock: nix::fcntl::Flock<File>,
}

/// A link to a network namespace of a test's own.
pub(super) struct Link {
    /// Of this machine's end.
    pub(super) name: String,
    pub(super) outside: Ipv4Addr,
    pub(super) inside: Ipv4Addr,
}

impl Slot {
    /// Takes a free number, none of whose ports another program has.
    ///
    /// # Errors
    /// All are taken.
    pub(super) fn take() -> Result<Self> {
        std::fs::create_dir_all("/run/lock").context("make /run/lock")?;
        for number in 1..=SLOTS {
            let path = format!("/run/lock/slipway-testbed-{number}");
            let file = File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)
                .with_context(|| path.clone())?;
            let how = nix::fcntl::FlockArg::LockExclusiveNonblock;
            let Ok(lock) = nix::fcntl::Flock::lock(file, how) else {
                continue;
            };
            let slot = Self { number, lock };
            let is_free = |n| TcpListener::bind((Ipv4Addr::LOCALHOST, slot.port(n))).is_ok();
            if (0..PORTS).all(is_free) {
                return Ok(slot);
            }
        }
        bail!("all {SLOTS} testbed slots are taken")
    }

    /// Where the farm of the last holder lies, if it was killed before it could remove it.
    ///
    /// # Errors
    /// The lock file cannot be read.
    pub(super) fn left_behind(&mut self) -> Result<Option<PathBuf>> {
        let mut text = String::new();
        self.lock.rewind()?;
        self.lock.read_to_string(&mut text)?;
        let dir = PathBuf::from(text);
        Ok((!dir.as_os_str().is_empty() && dir.exists()).then_some(dir))
    }

    /// Notes where the farm lies.
    ///
    /// # Errors
    /// The lock file cannot be written.
    pub(super) fn note(&mut self, dir: &Path) -> Result<()> {
        self.lock.rewind()?;
        self.lock.set_len(0)?;
        self.lock.write_all(dir.as_os_str().as_encoded_bytes())?;
        Ok(())
    }

    pub(super) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 209, self.number * 16, 1)
    }

    /// Beside the farm's own network.
    pub(super) fn link(&self) -> Link {
        Link {
            name: format!("slwp{}", self.number),
            outside: Ipv4Addr::new(10, 210, self.number, 1),
            inside: Ipv4Addr::new(10, 210, self.number, 2),
        }
    }

    pub(super) fn cidr(&self) -> String {
        format!("10.209.{}.0/20", u16::from(self.number) * 16)
    }

    pub(super) fn interface(&self) -> String {
        format!("slwt{}", self.number)
    }

    pub(super) fn table(&self) -> String {
        format!("slipway_t{}", self.number)
    }

    /// Above what a farm of an operator has that leaves the settings as they are: `1 << 30`, and 1,024 machines.
    pub(super) fn uid_base(&self) -> u32 {
        1_200_000_000 + u32::from(self.number) * 16_777_216
    }

    pub(super) fn port(&self, n: u16) -> u16 {
        21_000 + u16::from(self.number) * PORTS + n
    }
}
