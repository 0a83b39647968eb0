//! The machines' network: one link per machine, no bridge, so that everything between two machines, or between a
//! machine and anything else, passes the host's routing and one firewall table.
//!
//! Owns: the gateway interface, the links, the table. Must not know: machines' records, volumes, or the runtime.

pub(crate) mod address;
pub(crate) mod resolvers;
mod rules;

use crate::program::{ProgramError, run};
use crate::settings::HostSettings;
use crate::sys;
use address::{Allowed, Ipv4Net, Link, Transport};
use slipway_core::vm::BootNetwork;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

const DNS_PORT: u16 = 53;
/// What Ethernet carries, for a host without a default route.
const MTU_DEFAULT: u32 = 1500;

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// `ip`, `nft` or `nsenter`.
    #[error("set up the network of machines")]
    Program(#[source] ProgramError),
    /// A tap.
    #[error("make the tap {name} (hint: is there /dev/net/tun?)")]
    Tap {
        /// Its name.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A sysctl.
    #[error("write {path}")]
    Sysctl {
        /// Which.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The network of one host's machines.
#[derive(Debug)]
pub(crate) struct Network {
    interface: String,
    veth_prefix: String,
    table: String,
    cidr: Ipv4Net,
    slots: u16,
    allow: Vec<Allowed>,
    deny: Vec<Ipv4Net>,
    resolvers: Option<Vec<Ipv4Addr>>,
    mtu: u32,
    /// The rules as they were last applied.
    applied: Mutex<String>,
}

impl Network {
    /// Makes the gateway interface and the table, or brings them in line; links of running machines are left alone.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn set_up(settings: &HostSettings) -> Result<Self, NetworkError> {
        let network = Self {
            interface: settings.interface.clone(),
            veth_prefix: settings.veth_prefix.clone(),
            table: settings.nft_table.clone(),
            cidr: settings.machine_cidr,
            slots: settings.machines_max,
            allow: settings.allow.clone(),
            deny: settings.deny.clone(),
            resolvers: settings.resolvers.clone(),
            mtu: mtu(),
            applied: Mutex::new(String::new()),
        };
        network.make_gateway()?;
        network.refresh()?;
        sysctl("/proc/sys/net/ipv4/ip_forward", "1")?;
        warn_of_other_tables(&network.table);
        Ok(network)
    }

    /// Resolvers of machines as of now.
    pub(crate) fn resolvers(&self) -> Vec<Ipv4Addr> {
        self.resolvers.clone().unwrap_or_else(resolvers::of_host)
    }

    /// A range for networks inside machines that hides nothing they must reach.
    pub(crate) fn docker_pool(&self) -> Ipv4Net {
        let mut reachable = self.resolvers();
        reachable.extend(self.allow.iter().map(|to| to.address));
        address::docker_pool(self.cidr, &reachable)
    }

    /// Bytes that a packet of a machine may have.
    pub(crate) fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Applies the rules if they differ from what was applied last: the host's resolvers may have changed.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn refresh(&self) -> Result<(), NetworkError> {
        let text = self.rules();
        let mut applied = self
            .applied
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if *applied != text {
            run(Command::new("nft").args(["-f", "-"]), &text).map_err(NetworkError::Program)?;
            *applied = text;
        }
        Ok(())
    }

    /// Brings back what something else on the host took away, such as a firewall service that flushes every table.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn keep(&self) -> Result<(), NetworkError> {
        let mut list = Command::new("nft");
        list.args(["--terse", "list", "table", "inet", &self.table]);
        if run(&mut list, "").is_err() {
            tracing::warn!(
                table = self.table,
                "the firewall table is gone; making it anew"
            );
            self.applied
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .clear();
        }
        if !exists(&self.interface) {
            self.make_gateway()?;
        }
        self.refresh()
    }

    fn rules(&self) -> String {
        let dns = self.resolvers().into_iter().flat_map(|address| {
            [Transport::Tcp, Transport::Udp].map(|transport| Allowed {
                address,
                port: DNS_PORT,
                transport,
            })
        });
        let allowed: Vec<Allowed> = self.allow.iter().copied().chain(dns).collect();
        rules::text(&rules::Rules {
            table: &self.table,
            veth_prefix: &self.veth_prefix,
            interface: &self.interface,
            cidr: self.cidr,
            slots: self.slots,
            allowed: &allowed,
            denied: &self.deny,
        })
    }

    fn make_gateway(&self) -> Result<(), NetworkError> {
        let name = &self.interface;
        let mut batch = String::new();
        if !exists(name) {
            // A bridge without ports, which every kernel that runs Docker has; a dummy device is a module some lack.
            batch += &format!("link add {name} type bridge\n");
        }
        batch += &format!(
            "address replace {}/32 dev {name}\nlink set {name} up\n",
            address::gateway(self.cidr)
        );
        ip(&batch)
    }

    fn link(&self, slot: u16) -> Link {
        address::link(self.cidr, &self.veth_prefix, slot)
    }

    /// Links the network namespace of process `pid` to the host, as `slot`.
    ///
    /// # Errors
    /// [`NetworkError`]; what was made until then is left for [`Network::disconnect`].
    pub(crate) fn connect(&self, slot: u16, pid: i32) -> Result<(), NetworkError> {
        let link = self.link(slot);
        let Link {
            name,
            address,
            host_mac,
            machine_mac,
        } = &link;
        let (gateway, mtu) = (address::gateway(self.cidr), self.mtu);
        ip(&format!(
            "link add {name} address {host_mac} mtu {mtu} type veth peer name eth0 address {machine_mac} mtu {mtu} netns {pid}\n"
        ))?;
        self.raise(&link)?;
        let inside = format!(
            "link set lo up\n\
             address add {address}/32 dev eth0\n\
             link set eth0 up\n\
             neighbour replace {gateway} lladdr {host_mac} dev eth0 nud permanent\n\
             route add default via {gateway} dev eth0 onlink\n"
        );
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{pid}/ns/net"))
            .args(["ip", "-batch", "-"]);
        run(&mut command, &inside).map_err(NetworkError::Program)
    }

    /// Makes a tap as the host's side of `slot`, and gives it: it is there for as long as it is open.
    ///
    /// # Errors
    /// [`NetworkError`]; what was made until then goes away with [`Network::disconnect`].
    pub(crate) fn connect_tap(&self, slot: u16) -> Result<OwnedFd, NetworkError> {
        let link = self.link(slot);
        let tap = sys::tap(&link.name).map_err(|source| NetworkError::Tap {
            name: link.name.clone(),
            source,
        })?;
        let Link { name, host_mac, .. } = &link;
        ip(&format!(
            "link set {name} address {host_mac} mtu {}\n",
            self.mtu
        ))?;
        self.raise(&link)?;
        Ok(tap)
    }

    /// What the guest of a machine on a tap must know of its link, and the MAC of its own end.
    pub(crate) fn boot(&self, slot: u16) -> (BootNetwork, String) {
        let link = self.link(slot);
        let network = BootNetwork {
            address: link.address,
            gateway: address::gateway(self.cidr),
            gateway_mac: link.host_mac,
            mtu: self.mtu,
        };
        (network, link.machine_mac)
    }

    /// Whether the link of `slot` is there.
    pub(crate) fn has_link(&self, slot: u16) -> bool {
        exists(&self.link(slot).name)
    }

    /// Breaks off what this computer has open to the machine of `slot`: nobody there will ever say that it is over.
    pub(crate) fn cut_streams(&self, slot: u16) {
        let address = self.link(slot).address.to_string();
        let mut command = Command::new("ss");
        command.args(["--kill", "--no-header", "--tcp", "dst", &address]);
        if let Err(error) = run(&mut command, "") {
            // Keep-alive ends them too, only later.
            tracing::warn!(%error, "streams to an ended machine stay open for a while");
        }
    }

    /// Has the host's side of a link carry what is the machine's, and nothing else.
    fn raise(&self, link: &Link) -> Result<(), NetworkError> {
        let Link {
            name,
            address,
            machine_mac,
            ..
        } = link;
        let gateway = address::gateway(self.cidr);
        ip(&format!(
            "link set {name} addrgenmode none\n\
             link set {name} up\n\
             route replace {address}/32 dev {name} src {gateway}\n\
             neighbour replace {address} lladdr {machine_mac} dev {name} nud permanent\n"
        ))?;
        let no_ipv6 = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
        if Path::new(&no_ipv6).exists() {
            sysctl(&no_ipv6, "1")?;
        }
        Ok(())
    }

    /// Removes the link of `slot`; absent is fine.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn disconnect(&self, slot: u16) -> Result<(), NetworkError> {
        let name = self.link(slot).name;
        // It goes away by itself with the machine's namespace, but only some time after.
        match ip(&format!("link delete {name}\n")) {
            Err(error) if exists(&name) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes links of slots that `used` does not hold: left by a start that was cut off.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn disconnect_unused(&self, used: &[u16]) -> Result<(), NetworkError> {
        let Ok(entries) = fs::read_dir("/sys/class/net") else {
            return Ok(());
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix(self.veth_prefix.as_str()));
            let Some(slot) = number.and_then(|number| number.parse::<u16>().ok()) else {
                continue;
            };
            if slot < self.slots && !used.contains(&slot) {
                self.disconnect(slot)?;
            }
        }
        Ok(())
    }
}

fn exists(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).exists()
}

fn ip(batch: &str) -> Result<(), NetworkError> {
    run(Command::new("ip").args(["-batch", "-"]), batch).map_err(NetworkError::Program)
}

fn sysctl(path: &str, value: &str) -> Result<(), NetworkError> {
    fs::write(path, value).map_err(|source| NetworkError::Sysctl {
        path: path.to_owned(),
        source,
    })
}

/// What the interface of the default route carries, so that machines send no packet that must be cut up.
fn mtu() -> u32 {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let interface = default_interface(&routes);
    interface
        .and_then(|name| fs::read_to_string(format!("/sys/class/net/{name}/mtu")).ok())
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(MTU_DEFAULT)
}

/// From `/proc/net/route` (proc(5)): columns are interface, destination, gateway, flags, ..., mask at the eighth.
fn default_interface(routes: &str) -> Option<&str> {
    routes.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        match columns.as_slice() {
            [name, "00000000", _, _, _, _, _, "00000000", ..] => Some(*name),
            _ => None,
        }
    })
}

/// Warns when a table of somebody else's drops forwarded packets by default.
fn warn_of_other_tables(own: &str) {
    let Ok(listed) = Command::new("nft").args(["list", "chains"]).output() else {
        return;
    };
    let mut table = "";
    for line in String::from_utf8_lossy(&listed.stdout)
        .lines()
        .map(str::trim)
    {
        if let Some(name) = line.strip_prefix("table ") {
            table = if name.split_whitespace().nth(1) == Some(own) {
                ""
            } else {
                "other"
            };
        } else if table == "other" && line.contains("hook forward") && line.contains("policy drop")
        {
            tracing::warn!(
                chain = line,
                "another firewall table drops forwarded packets; machines have no network until it lets their links through"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_default_interface() {
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\nslw1\t0200D10A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\n\
                      eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\n";
        assert_eq!(default_interface(routes), Some("eth0"));
        assert_eq!(default_interface("Iface\n"), None);
    }
}
