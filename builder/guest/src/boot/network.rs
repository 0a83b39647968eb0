//! The link of a virtual machine to its host.

use super::{BUSYBOX, run};
use anyhow::{Context as _, Result};
use slipway_core::vm::BootNetwork;
use std::fs;
use std::process::Command;

/// The only one there is.
const INTERFACE: &str = "eth0";

/// Gives the interface its address and the way out, as the sandbox driver does from outside.
pub(super) fn set_up(network: &BootNetwork) -> Result<()> {
    let BootNetwork {
        address,
        gateway,
        gateway_mac,
        mtu,
    } = network;
    // No IPv6 inside; the host forwards none either.
    for scope in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
        if fs::metadata(&path).is_ok() {
            fs::write(&path, "1").with_context(|| format!("write {path}"))?;
        }
    }
    for arguments in [
        "link set lo up".to_owned(),
        format!("link set {INTERFACE} mtu {mtu} up"),
        format!("address add {address}/32 dev {INTERFACE}"),
        format!("route add {gateway}/32 dev {INTERFACE}"),
        format!("route add default via {gateway} dev {INTERFACE}"),
    ] {
        run(Command::new(BUSYBOX).arg("ip").args(arguments.split(' ')))?;
    }
    run(Command::new(BUSYBOX).args([
        "arp",
        "-i",
        INTERFACE,
        "-s",
        &gateway.to_string(),
        gateway_mac,
    ]))
}
