//! What the host's own network is like, and which of its interfaces must forward: read, and written as little as possible.
//!
//! Must not know: machines, links, rules.

use super::rules::is_public;
use super::{NetworkError, sysctl};
use crate::address::{Allowed, Ipv4Net, UPLINK_GROUP};
use crate::limits::NEIGHBOURS_MAX;
use crate::rate::BitRate;
use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

/// What Ethernet carries, for a host without a default route.
const MTU_DEFAULT: u32 = 1500;
/// `RTF_REJECT` of route(8): the route leads nowhere.
const REJECT: u32 = 0x200;

/// Every IPv4 address of the host but those of loopback.
pub(super) fn addresses() -> BTreeSet<Ipv4Addr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return BTreeSet::new();
    };
    interfaces
        .filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()))
        .filter(|address| !address.is_loopback())
        .collect()
}

/// What the interface of the default route carries, so that machines send no packet that must be cut up.
pub(super) fn mtu() -> u32 {
    of_default_route("mtu")
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(MTU_DEFAULT)
}

/// What the interface of the default route carries each way, where there is a network card that says so.
pub(super) fn rate() -> Option<BitRate> {
    // What is no card (a tunnel, a bridge, one end of a veth) has a number too, which means nothing.
    of_default_route("device/uevent")?;
    let mbit: u64 = of_default_route("speed")?.trim().parse().ok()?;
    (1..=BitRate::MAX.0 / 1_000_000)
        .contains(&mbit)
        .then(|| BitRate::mbit(mbit))
}

/// What the kernel says of the interface of the default route.
fn of_default_route(file: &str) -> Option<String> {
    let routes = routes();
    let (name, _) = parse(&routes).find(|(_, range)| range.size() > u64::from(u32::MAX))?;
    fs::read_to_string(format!("/sys/class/net/{name}/{file}")).ok()
}

/// Whether the host forwards packets only because machines need it: nobody has switched it on for everybody.
pub(super) fn forwards_for_us_only() -> bool {
    fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|text| text.trim() == "0")
}

/// Has the interfaces forward that machines' packets come through.
///
/// # Errors
/// [`NetworkError::Sysctl`].
pub(super) fn forward(uplink: &str, allowed: &[Allowed]) -> Result<(), NetworkError> {
    let mut interfaces = reaching(&routes(), uplink, allowed);
    interfaces.insert(uplink.to_owned());
    for interface in interfaces {
        set_forwarding(&interface, "1")?;
    }
    Ok(())
}

/// Has the host forward no more, unless it does for others, or another farm is on it.
///
/// # Errors
/// [`NetworkError::Sysctl`].
pub(super) fn forward_no_more(uplink: &str, allowed: &[Allowed]) -> Result<(), NetworkError> {
    if !forwards_for_us_only() || has_uplink() {
        return Ok(());
    }
    for interface in reaching(&routes(), uplink, allowed) {
        set_forwarding(&interface, "0")?;
    }
    Ok(())
}

/// Raises the kernel's bounds for neighbours, which all network namespaces share: machines make entries of their own, and
/// the host's must find room. Where the host is in a namespace itself, they are not its own to raise.
///
/// # Errors
/// [`NetworkError::Sysctl`].
pub(super) fn make_room_for_neighbours() -> Result<(), NetworkError> {
    // Above the first of the two, old entries make room.
    for (bound, least) in [
        ("gc_thresh3", NEIGHBOURS_MAX),
        ("gc_thresh2", NEIGHBOURS_MAX / 2),
    ] {
        let path = format!("/proc/sys/net/ipv4/neigh/default/{bound}");
        let now = fs::read_to_string(&path).ok();
        let now = now.and_then(|text| text.trim().parse::<u32>().ok());
        if now.is_some_and(|now| now < least) {
            sysctl(&path, &least.to_string())?;
        }
    }
    Ok(())
}

fn set_forwarding(interface: &str, value: &str) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
    match fs::read_to_string(&path) {
        Ok(now) if now.trim() == value => Ok(()),
        // It has gone since its route was read.
        Err(_) if !Path::new(&path).exists() => Ok(()),
        _ => sysctl(&path, value),
    }
}

fn has_uplink() -> bool {
    let group = UPLINK_GROUP.to_string();
    let interfaces = fs::read_dir("/sys/class/net").into_iter().flatten();
    interfaces.flatten().any(|interface| {
        fs::read_to_string(interface.path().join("netdev_group"))
            .is_ok_and(|text| text.trim() == group)
    })
}

fn routes() -> String {
    fs::read_to_string("/proc/net/route").unwrap_or_default()
}

/// The interfaces by which machines reach anything, so that answers come in there: those with a route into the world, or to
/// an allowed destination.
fn reaching(routes: &str, uplink: &str, allowed: &[Allowed]) -> BTreeSet<String> {
    parse(routes)
        .filter(|(name, range)| {
            *name != uplink
                && (is_public(*range) || allowed.iter().any(|to| range.contains(to.address)))
        })
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// From `/proc/net/route` (proc(5)): columns are interface, destination, gateway, flags, ..., mask at the eighth. Numbers are
/// hexadecimal, and addresses in them lie as in memory.
fn parse(routes: &str) -> impl Iterator<Item = (&str, Ipv4Net)> {
    routes.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [name, to, _, flags, _, _, _, mask, ..] = columns.as_slice() else {
            return None;
        };
        let number = |text: &str| u32::from_str_radix(text, 16).ok();
        if number(flags)? & REJECT != 0 {
            return None;
        }
        let address = Ipv4Addr::from(number(to)?.to_ne_bytes());
        let prefix = u8::try_from(number(mask)?.count_ones()).ok()?;
        Some((*name, Ipv4Net::new(address, prefix)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a little-endian computer shows them: a management network, a default route, a route to one public address, a
    /// blackhole, and our own.
    const ROUTES: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
        eth1\t0000010A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\n\
        eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\n\
        eth2\t09090909\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\n\
        eth3\t08080808\t00000000\t0205\t0\t0\t0\tFFFFFFFF\t0\n\
        slipway0\t0000D10A\tFFFFD10A\t0003\t0\t0\t0\t0000FFFF\t0\n";

    #[test]
    #[cfg(target_endian = "little")]
    fn only_interfaces_that_machines_reach_something_by_forward() {
        let names = |allowed: &[Allowed]| {
            let found = reaching(ROUTES, "slipway0", allowed);
            found.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["eth0", "eth2"]);
        let allowed = ["10.1.0.53:53/udp".parse().unwrap()];
        assert_eq!(names(&allowed), ["eth0", "eth1", "eth2"]);
        assert!(reaching("Iface\n", "slipway0", &[]).is_empty());
    }

    #[test]
    fn the_default_route_is_found() {
        let range = parse(ROUTES).nth(1).unwrap();
        assert_eq!(range, ("eth0", "0.0.0.0/0".parse().unwrap()));
    }
}
