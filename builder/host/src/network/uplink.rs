//! The link between the host and the router. The host's end has the gateway address, so that what machines are allowed to
//! reach on the host listens there; the machines' addresses are routed into it.
//!
//! Must not know: machines' links, rules.

use super::router::Router;
use super::{NetworkError, exists, ip, sysctl};
use crate::address::{self, Ipv4Net, UPLINK_GROUP, UPLINK_MACS};
use std::path::Path;

/// What it is made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Uplink<'a> {
    /// Name of both ends, each in its namespace.
    pub(super) name: &'a str,
    /// Addresses of machines.
    pub(super) cidr: Ipv4Net,
    /// Bytes that a packet may have.
    pub(super) mtu: u32,
}

impl Uplink<'_> {
    /// Whether both ends are there and the host's has its address.
    ///
    /// # Errors
    /// The router cannot be entered.
    pub(super) fn stands(&self, router: &Router) -> Result<bool, NetworkError> {
        Ok(
            self.is_pair(router)?
                && super::host::addresses().contains(&address::gateway(self.cidr)),
        )
    }

    /// Makes it, or brings it in line.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(super) fn join(&self, router: &Router) -> Result<(), NetworkError> {
        let inside = |batch: String| {
            router
                .enter(|| ip(&batch))
                .map_err(NetworkError::kernel("enter the router"))?
        };
        if !self.is_pair(router)? {
            // What an older daemon had in its place, or one end of a link whose other end is gone.
            self.delete()?;
            inside(self.creation(std::process::id()))?;
        }
        inside(self.routers_end())?;
        ip(&self.hosts_end())?;
        let no_ipv6 = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.name);
        if Path::new(&no_ipv6).exists() {
            sysctl(&no_ipv6, "1")?;
        }
        Ok(())
    }

    fn is_pair(&self, router: &Router) -> Result<bool, NetworkError> {
        let inside = router
            .enter(|| exists(self.name))
            .map_err(NetworkError::kernel("enter the router"))?;
        Ok(inside && exists(self.name))
    }

    fn delete(&self) -> Result<(), NetworkError> {
        match ip(&format!("link delete {}\n", self.name)) {
            Err(error) if exists(self.name) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// For `ip` in the router; the peer goes to the process `host`.
    fn creation(&self, host: u32) -> String {
        let Self { name, mtu, .. } = self;
        let [host_mac, router_mac] = UPLINK_MACS;
        format!(
            "link add {name} address {router_mac} mtu {mtu} type veth peer name {name} address {host_mac} mtu {mtu} netns {host}\n"
        )
    }

    fn routers_end(&self) -> String {
        let Self { name, cidr, .. } = self;
        let (gateway, own) = (address::gateway(*cidr), address::router(*cidr));
        let [host_mac, _] = UPLINK_MACS;
        format!(
            "link set lo up\n\
             link set {name} addrgenmode none\n\
             address replace {own}/32 dev {name}\n\
             link set {name} up\n\
             neighbour replace {gateway} lladdr {host_mac} dev {name} nud permanent\n\
             route replace default via {gateway} dev {name} onlink src {own}\n"
        )
    }

    fn hosts_end(&self) -> String {
        let Self { name, cidr, .. } = self;
        let (gateway, router) = (address::gateway(*cidr), address::router(*cidr));
        let [_, router_mac] = UPLINK_MACS;
        format!(
            "link set {name} addrgenmode none\n\
             link set {name} group {UPLINK_GROUP}\n\
             address replace {gateway}/32 dev {name}\n\
             link set {name} up\n\
             neighbour replace {router} lladdr {router_mac} dev {name} nud permanent\n\
             route replace {cidr} via {router} dev {name} onlink src {gateway}\n"
        )
    }
}
