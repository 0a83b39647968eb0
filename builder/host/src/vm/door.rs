//! What is written down of a machine's door, and what the guest is told at its boot.
//!
//! Must not know: how the door is opened, or QEMU.

use super::channel::{self, Door};
use crate::files::{Outlives, write_whole};
use crate::network::Router;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use slipway_core::vm::{Boot, BootNetwork, SECRET_BYTES};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What a daemon that comes later must know of a running machine.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DoorFile {
    /// The machine's place.
    pub(super) slot: u16,
    address: Ipv4Addr,
    secret: [u8; SECRET_BYTES],
}

impl std::fmt::Debug for DoorFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DoorFile")
            .field("slot", &self.slot)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl DoorFile {
    /// With a secret of its own.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub(super) fn new(slot: u16, network: &BootNetwork) -> io::Result<Self> {
        Ok(Self {
            slot,
            address: network.address,
            secret: channel::new_secret()?,
        })
    }

    /// As it was written.
    ///
    /// # Errors
    /// It is not there, or not one.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        write_whole(path, &serde_json::to_vec(self)?, Outlives::Crash)
    }

    /// The door it is of, opened from the router.
    pub(super) fn door(&self, router: &Router) -> Door {
        Door {
            address: self.address,
            router: router.clone(),
            secret: self.secret,
        }
    }

    /// The secret as the guest is told.
    pub(super) fn secret_hex(&self) -> String {
        self.secret
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// A file without a name that everybody who has it may open anew, for reading.
///
/// # Errors
/// What the system said.
pub(super) fn boot_file(boot: &Boot) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("slipway-boot", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(boot)?)?;
    file.set_permissions(PermissionsExt::from_mode(0o444))?;
    Ok(file.into())
}
