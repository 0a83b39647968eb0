//! Addresses as settings give them, and which address, name and MAC each slot has. Pure.

use serde::Deserialize;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Ipv4Net {
    address: Ipv4Addr,
    prefix: u8,
}

/// A text is not an address range, or not what a machine can be allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// Not a range.
    #[error("'{0}' is not an IPv4 range (example: 10.209.0.0/16, host bits zero)")]
    Net(String),
    /// Not a destination.
    #[error("'{0}' is not a destination (examples: 10.209.0.1:5000, 10.0.0.53:53/udp)")]
    Allowed(String),
    /// Loopback can never be reached from a machine.
    #[error(
        "'{0}' is loopback, which machines never reach; have the service listen on the gateway address"
    )]
    Loopback(String),
}

impl Ipv4Net {
    /// The range of `address` with `prefix` bits; bits after them are cleared. More than 32 counts as 32.
    pub const fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = if prefix > 32 { 32 } else { prefix };
        Self {
            address: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)),
            prefix,
        }
    }

    /// How many addresses it has.
    pub fn size(self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The `n`th address of it.
    pub fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits().wrapping_add(n))
    }

    /// Whether `address` lies in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.address.to_bits()
    }

    /// Whether all of `other` lies in it.
    pub fn holds(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }

    /// Whether any address lies in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

const fn mask(prefix: u8) -> u32 {
    if prefix == 0 {
        0
    } else {
        u32::MAX << (32 - prefix)
    }
}

impl FromStr for Ipv4Net {
    type Err = InvalidAddress;
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let bad = || InvalidAddress::Net(text.chars().take(64).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        let net = Self::new(address, prefix);
        if prefix <= 32 && net.address == address {
            Ok(net)
        } else {
            Err(bad())
        }
    }
}

impl TryFrom<String> for Ipv4Net {
    type Error = InvalidAddress;
    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Transport protocols that a destination can be allowed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A destination that machines may reach although it is the host's or private.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Allowed {
    /// Address.
    pub address: Ipv4Addr,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub transport: Transport,
}

impl FromStr for Allowed {
    type Err = InvalidAddress;
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let short = || text.chars().take(64).collect::<String>();
        let bad = || InvalidAddress::Allowed(short());
        let (endpoint, transport) = match text.split_once('/') {
            None => (text, Transport::Tcp),
            Some((endpoint, "tcp")) => (endpoint, Transport::Tcp),
            Some((endpoint, "udp")) => (endpoint, Transport::Udp),
            Some(_) => return Err(bad()),
        };
        let endpoint: std::net::SocketAddrV4 = endpoint.parse().map_err(|_| bad())?;
        if endpoint.ip().is_loopback() {
            return Err(InvalidAddress::Loopback(short()));
        }
        if endpoint.port() == 0 || endpoint.ip().is_unspecified() {
            return Err(bad());
        }
        Ok(Self {
            address: *endpoint.ip(),
            port: endpoint.port(),
            transport,
        })
    }
}

impl TryFrom<String> for Allowed {
    type Error = InvalidAddress;
    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

/// What a slot's link looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// Name of the router's end.
    pub(crate) name: String,
    /// The machine's address.
    pub(crate) address: Ipv4Addr,
    /// MAC of the router's end. Fixed, so that the machine needs no ARP to find its gateway.
    pub(crate) router_mac: String,
    /// The machine's MAC.
    pub(crate) machine_mac: String,
}

/// The gateway address of a range.
pub(crate) fn gateway(cidr: Ipv4Net) -> Ipv4Addr {
    cidr.nth(1)
}

/// The router's own address in a range: the last one.
pub(crate) fn router(cidr: Ipv4Net) -> Ipv4Addr {
    cidr.nth(u32::try_from(cidr.size() - 1).unwrap_or(u32::MAX))
}

/// MACs of the host's and the router's end of the link between them. They never leave it.
pub(crate) const UPLINK_MACS: [&str; 2] = ["02:53:4c:00:00:01", "02:53:4c:00:00:02"];

/// The group of interfaces (`ip link set group`) that the host's end of that link is in, whichever farm's it is.
pub(crate) const UPLINK_GROUP: u32 = 0x534c;

/// The link of `slot`.
pub(crate) fn link(cidr: Ipv4Net, veth_prefix: &str, slot: u16) -> Link {
    let [high, low] = slot.to_be_bytes();
    Link {
        name: format!("{veth_prefix}{slot}"),
        address: cidr.nth(u32::from(slot) + 2),
        // Locally administered ("02"); they never leave the link between the two ends.
        router_mac: format!("02:53:4c:01:{high:02x}:{low:02x}"),
        machine_mac: format!("02:53:4c:02:{high:02x}:{low:02x}"),
    }
}

/// A range for the networks dockerd makes inside a machine: the first that holds nothing a machine needs to reach.
pub(crate) fn docker_pool(cidr: Ipv4Net, reachable: &[Ipv4Addr]) -> Ipv4Net {
    let candidates = [
        Ipv4Net::new(Ipv4Addr::new(172, 31, 0, 0), 16),
        Ipv4Net::new(Ipv4Addr::new(172, 23, 0, 0), 16),
        Ipv4Net::new(Ipv4Addr::new(192, 168, 0, 0), 16),
        Ipv4Net::new(Ipv4Addr::new(10, 177, 0, 0), 16),
        Ipv4Net::new(Ipv4Addr::new(100, 100, 0, 0), 16),
    ];
    let free = |net: &Ipv4Net| {
        !net.overlaps(cidr) && !reachable.iter().any(|address| net.contains(*address))
    };
    candidates
        .into_iter()
        .find(free)
        .unwrap_or(candidates[candidates.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse_print_and_compare() {
        let net: Ipv4Net = "10.209.0.0/16".parse().unwrap();
        assert_eq!(net.to_string(), "10.209.0.0/16");
        assert_eq!(
            (net.size(), net.nth(258)),
            (65536, Ipv4Addr::new(10, 209, 1, 2))
        );
        assert!(net.contains(Ipv4Addr::new(10, 209, 255, 255)));
        assert!(!net.contains(Ipv4Addr::new(10, 210, 0, 0)));
        assert!(net.overlaps("10.0.0.0/8".parse().unwrap()));
        assert!(
            "0.0.0.0/0"
                .parse::<Ipv4Net>()
                .unwrap()
                .contains(Ipv4Addr::LOCALHOST)
        );
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0.1/8", "x/8", ""] {
            assert!(bad.parse::<Ipv4Net>().is_err(), "{bad}");
        }
    }

    #[test]
    fn destinations_parse() {
        let allowed: Allowed = "10.0.0.53:53/udp".parse().unwrap();
        assert_eq!((allowed.port, allowed.transport), (53, Transport::Udp));
        for bad in [
            "10.0.0.1",
            "10.0.0.1:0",
            "10.0.0.1:53/icmp",
            "[::1]:53",
            "0.0.0.0:80",
        ] {
            assert!(
                matches!(bad.parse::<Allowed>(), Err(InvalidAddress::Allowed(_))),
                "{bad}"
            );
        }
        assert!(matches!(
            "127.0.0.53:53".parse::<Allowed>(),
            Err(InvalidAddress::Loopback(_))
        ));
    }

    #[test]
    fn links_of_slots_differ_and_avoid_the_gateway() {
        let cidr = "10.209.0.0/16".parse().unwrap();
        let (first, last) = (link(cidr, "slw", 0), link(cidr, "slw", 1023));
        assert_eq!(first.address, Ipv4Addr::new(10, 209, 0, 2));
        assert_eq!(last.address, Ipv4Addr::new(10, 209, 4, 1));
        assert_eq!(router(cidr), Ipv4Addr::new(10, 209, 255, 255));
        assert_eq!(last.name, "slw1023");
        assert_eq!(last.router_mac, "02:53:4c:01:03:ff");
        assert_ne!(first.machine_mac, first.router_mac);
    }

    #[test]
    fn the_docker_pool_avoids_what_machines_must_reach() {
        let cidr = "10.209.0.0/16".parse().unwrap();
        assert_eq!(docker_pool(cidr, &[]).to_string(), "172.31.0.0/16");
        let taken = [Ipv4Addr::new(172, 31, 0, 2), Ipv4Addr::new(172, 23, 9, 9)];
        assert_eq!(docker_pool(cidr, &taken).to_string(), "192.168.0.0/16");
    }
}
