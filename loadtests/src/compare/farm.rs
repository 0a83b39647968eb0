//! A farm with one warm builder, for scenarios that speak to its dockerd both straight and through the gateway.

use super::{Run, version_of};
use crate::testbed::{Connection, Testbed};
use anyhow::{Context, Result};
use std::process::Command;

/// Ended and removed when dropped.
#[derive(Debug)]
pub(super) struct Farm {
    pub(super) bed: Testbed,
    token: String,
}

impl Farm {
    /// Starts it, and waits for the builder's dockerd.
    pub(super) fn start(run: &mut Run) -> Result<Farm> {
        let bed = Testbed::start()?;
        bed.registry.seed(&["debian"])?;
        bed.slipway_ok(&["builders", "ensure", "--org", "acme"])?;
        let token = bed.org_token("acme")?;
        let farm = Farm { bed, token };
        run.version("Slipway", Some(env!("CARGO_PKG_VERSION").to_owned()));
        let (_, told) = farm.direct()?.get_text("/version")?;
        let told: serde_json::Value = serde_json::from_str(&told)?;
        run.version("Docker", told["Version"].as_str().map(str::to_owned));
        Ok(farm)
    }

    /// Straight to the builder's dockerd.
    pub(super) fn direct(&self) -> Result<Connection> {
        Connection::direct(&self.bed.machine_socket()?)
    }

    /// Through the gateway.
    pub(super) fn gateway(&self) -> Result<Connection> {
        let address = self.bed.address("docker").context("gateway")?;
        Connection::tls(&address, &self.bed.ca(), Some(&self.token))
    }
}

/// What `program argument` says of its version.
pub(super) fn program_version(program: &str, argument: &str) -> Option<String> {
    let mut command = Command::new(program);
    command.arg(argument);
    version_of(command)
}
