//! A number that no other testbed on this machine has at the same time, and the names made from it.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::net::Ipv4Addr;

const SLOTS: u8 = 12;

/// Held as long as its lock file is open.
#[derive(Debug)]
pub(super) struct Slot {
    number: u8,
    _lock: nix::fcntl::Flock<File>,
}

impl Slot {
    /// Takes a free number.
    ///
    /// # Errors
    /// All are taken.
    pub(super) fn take() -> Result<Self> {
        std::fs::create_dir_all("/run/lock").context("make /run/lock")?;
        for number in 1..=SLOTS {
            let path = format!("/run/lock/slipway-testbed-{number}");
            let file = File::create(&path).with_context(|| path.clone())?;
            let how = nix::fcntl::FlockArg::LockExclusiveNonblock;
            if let Ok(lock) = nix::fcntl::Flock::lock(file, how) {
                return Ok(Self {
                    number,
                    _lock: lock,
                });
            }
        }
        bail!("all {SLOTS} testbed slots are taken")
    }

    pub(super) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 209, self.number * 16, 1)
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

    pub(super) fn uid_base(&self) -> u32 {
        1_000_000_000 + u32::from(self.number) * 16_777_216
    }

    pub(super) fn port(&self, n: u16) -> u16 {
        21_000 + u16::from(self.number) * 10 + n
    }
}
