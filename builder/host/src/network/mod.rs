//! The machines' network: one link per machine to a router of our own ([`router`]), no shared segment, so that everything
//! between two machines, or between a machine and anything else, passes the router's one firewall table.
//!
//! ```text
//! machine eth0 ── slw0 [router: every wall, connection tracking] slipway0 ── slipway0 [host: masquerade] ── world
//! machine eth0 ── slw1 [                                       ]
//! ```
//!
//! Owns: the router, the links, the tables. Must not know: machines' records, volumes, or the runtime.

mod host;
mod netlink;
pub(crate) mod resolvers;
mod router;
mod rules;
mod shares;
mod uplink;

pub(crate) use router::Router;

use crate::address::{self, Allowed, Ipv4Net, Link, Transport};
use crate::limits::{FLOW_CLOSING_KEPT, FLOW_ESTABLISHED_KEPT, FLOW_TIME_WAIT_KEPT, FLOW_UDP_KEPT};
use crate::program::{ProgramError, run};
use crate::rate::BitRate;
use crate::settings::HostSettings;
use crate::sys;
use netlink::FirewallMonitor;
use nix::net::if_::{if_nameindex, if_nametoindex};
use shares::{Queue, Shares};
use slipway_core::vm::BootNetwork;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const DNS_PORT: u16 = 53;

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// `ip` or `nft`.
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
    /// The router's namespace.
    #[error("{action} {}", path.display())]
    Router {
        /// What was tried.
        action: &'static str,
        /// The file that keeps it.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused something of a link or of connections.
    #[error("{action}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl NetworkError {
    fn kernel(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kernel { action, source }
    }
}

/// The network of one host's machines.
#[derive(Debug)]
pub(crate) struct Network {
    router: Router,
    interface: String,
    veth_prefix: String,
    table: String,
    cidr: Ipv4Net,
    slots: u16,
    allow: Vec<Allowed>,
    deny: Vec<Ipv4Net>,
    closed_ports: Vec<u16>,
    resolvers: Option<Vec<Ipv4Addr>>,
    /// What the settings say of the host's network,
    rate: Option<BitRate>,
    /// and what one machine may have of it.
    machine_rate: Option<BitRate>,
    mtu: u32,
    /// Whether links were taken in that were on the host until now.
    picks_up: bool,
    /// None where the kernel does not tell.
    monitor: Option<FirewallMonitor>,
    /// What the tables were last made from.
    applied: Mutex<Option<Seen>>,
}

/// What of the host the tables depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    resolvers: Vec<Ipv4Addr>,
    addresses: BTreeSet<Ipv4Addr>,
    forwards_for_us_only: bool,
    shares: Option<Shares>,
}

impl Network {
    /// Makes the router with its table, joins it to the host and takes links into it that an older daemon made on the host;
    /// or brings all of it in line. Links of running machines go on.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn set_up(settings: &HostSettings) -> Result<Self, NetworkError> {
        let monitor = FirewallMonitor::new()
            .inspect_err(|error| {
                tracing::warn!(%error, "the kernel does not tell of changes of the firewall; it is looked at again and again");
            })
            .ok();
        let mut network = Self {
            router: Router::open(&settings.run_dir.join("router"))?,
            interface: settings.interface.clone(),
            veth_prefix: settings.veth_prefix.clone(),
            table: settings.nft_table.clone(),
            cidr: settings.machine_cidr,
            slots: settings.machines_max,
            allow: settings.reachable(),
            deny: settings.deny.clone(),
            closed_ports: settings.closed_ports.clone(),
            resolvers: settings.resolvers.clone(),
            rate: settings.network_rate,
            machine_rate: settings.machine_network_rate,
            mtu: host::mtu(),
            picks_up: false,
            monitor,
            applied: Mutex::new(None),
        };
        network.picks_up = !network.links()?.is_empty();
        // The router's walls stand before anything leads to it, and the host's old ones until nothing needs them.
        let seen = network.look();
        network.apply_router(&seen)?;
        network.tune_router()?;
        network.uplink().join(&network.router)?;
        network.take_in_links()?;
        network.apply_host(&seen)?;
        network.share(&seen);
        network.warn_of_no_resolver(&seen);
        *network.applied() = Some(seen);
        host::forward(&network.interface, &network.allowed())?;
        host::make_room_for_neighbours()?;
        warn_of_other_tables(&network.table);
        Ok(network)
    }

    /// Takes all of it away that outlives machines and daemons. The machines must have ended.
    ///
    /// # Errors
    /// [`NetworkError::Sysctl`].
    pub(crate) fn remove(&self) -> Result<(), NetworkError> {
        let mut table = Command::new("nft");
        table.args(["delete", "table", "inet", &self.table]);
        // With one end of it the other goes, so that no copy of the namespace's mount keeps a way open.
        let mut link = Command::new("ip");
        link.args(["link", "delete", &self.interface]);
        for mut command in [table, link] {
            if let Err(error) = run(&mut command, "") {
                tracing::info!(%error, "was gone already");
            }
        }
        host::forward_no_more(&self.interface, &self.allowed())
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

    /// Where the doors of virtual machines are opened from.
    pub(crate) fn router(&self) -> &Router {
        &self.router
    }

    /// Applies the tables if what they are made from has changed: the host's resolvers or addresses, or whether it is a
    /// router for others.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn refresh(&self) -> Result<(), NetworkError> {
        let seen = self.look();
        let mut applied = self.applied();
        if applied.as_ref() != Some(&seen) {
            self.apply_router(&seen)?;
            self.apply_host(&seen)?;
            self.share(&seen);
            self.warn_of_no_resolver(&seen);
            *applied = Some(seen);
        }
        Ok(())
    }

    /// Brings back what something else on the host took away: its table, with the way out of machines, or the link to the
    /// router. Runs no program while nothing has changed.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn keep(&self) -> Result<(), NetworkError> {
        let may_be_gone = self
            .monitor
            .as_ref()
            .is_none_or(FirewallMonitor::has_changed);
        if may_be_gone && !self.has_host_table() {
            tracing::warn!(
                table = self.table,
                "the host's firewall table is gone, and with it the machines' way out; making it anew"
            );
            self.applied().take();
        }
        if !self.uplink().stands(&self.router)? {
            tracing::warn!(
                interface = self.interface,
                "the link to the router is gone, and with it the machines' way out; making it anew"
            );
            self.uplink().join(&self.router)?;
            self.applied().take();
        }
        host::forward(&self.interface, &self.allowed())?;
        self.refresh()
    }

    fn applied(&self) -> MutexGuard<'_, Option<Seen>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn warn_of_no_resolver(&self, seen: &Seen) {
        if seen.resolvers.is_empty() {
            tracing::warn!(
                "machines resolve no names: this host's resolvers are loopback or IPv6 addresses, which machines do not reach (hint: resolvers = [\"IPV4\"] in its settings)"
            );
        }
    }

    fn has_host_table(&self) -> bool {
        let mut list = Command::new("nft");
        list.args(["--terse", "list", "table", "inet", &self.table]);
        run(&mut list, "").is_ok()
    }

    fn look(&self) -> Seen {
        let mut addresses = host::addresses();
        // It comes and goes with the link to the router, and its range is closed anyway.
        addresses.remove(&address::gateway(self.cidr));
        Seen {
            resolvers: self.resolvers(),
            addresses,
            forwards_for_us_only: host::forwards_for_us_only(),
            shares: Shares::of(self.rate, host::rate(), self.machine_rate),
        }
    }

    /// What is open although closed otherwise, as the settings say it and resolvers need it.
    fn allowed(&self) -> Vec<Allowed> {
        let dns = self.resolvers().into_iter().flat_map(|address| {
            [Transport::Tcp, Transport::Udp].map(|transport| Allowed {
                address,
                port: DNS_PORT,
                transport,
            })
        });
        self.allow.iter().copied().chain(dns).collect()
    }

    fn text(&self, seen: &Seen, of: fn(&rules::Rules<'_>) -> String) -> String {
        let host: Vec<Ipv4Addr> = seen.addresses.iter().copied().collect();
        of(&rules::Rules {
            table: &self.table,
            veth_prefix: &self.veth_prefix,
            uplink: &self.interface,
            cidr: self.cidr,
            slots: self.slots,
            allowed: &self.allowed(),
            denied: &self.deny,
            host: &host,
            closed_ports: &self.closed_ports,
            picks_up: self.picks_up,
            forwards_for_us_only: seen.forwards_for_us_only,
            shared: seen.shares.is_some(),
        })
    }

    fn apply_router(&self, seen: &Seen) -> Result<(), NetworkError> {
        let text = self.text(seen, rules::router);
        self.inside(|| nft(&text))
    }

    fn apply_host(&self, seen: &Seen) -> Result<(), NetworkError> {
        nft(&self.text(seen, rules::host))
    }

    /// Has machines share the host's network. A host that cannot works without it.
    fn share(&self, seen: &Seen) {
        let shared = match seen.shares {
            None => {
                tracing::warn!(
                    "what the host's network carries is not known: one machine can take all of it (hint: network_rate = \"1Gbit\" in the host's settings)"
                );
                self.queue(None)
            }
            // Not every kernel has the better one.
            Some(shares) => self
                .queue(Some((shares, Queue::FairConnections)))
                .or_else(|_| self.queue(Some((shares, Queue::InOrder)))),
        };
        if let Err(error) = shared {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "machines have no shares of the host's network, and no cap: one can take all of it (hint: is there `tc`, and sch_htb in the kernel?)"
            );
            // Half of them would be worse than none.
            let _ = self.queue(None);
        }
    }

    /// Replaces the queues at both ends of the link between router and host.
    fn queue(&self, with: Option<(Shares, Queue)>) -> Result<(), NetworkError> {
        let device = self.interface.as_str();
        let end = || {
            // Without one there is nothing to delete, which is an error of no meaning.
            let mut delete = Command::new("tc");
            let _ = run(delete.args(["qdisc", "delete", "dev", device, "root"]), "");
            match with {
                Some((shares, queue)) => tc(&shares.batch(device, self.slots, queue)),
                None => Ok(()),
            }
        };
        self.inside(end)?;
        end()
    }

    /// Does `work` in the router.
    fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        self.router
            .enter(work)
            .map_err(NetworkError::kernel("enter the router"))?
    }

    fn uplink(&self) -> uplink::Uplink<'_> {
        uplink::Uplink {
            name: &self.interface,
            cidr: self.cidr,
            mtu: self.mtu,
        }
    }

    /// Has the router forward, answer nobody's question for an address, and forget connections in time.
    fn tune_router(&self) -> Result<(), NetworkError> {
        let seconds = |time: Duration| time.as_secs().to_string();
        let flows = "/proc/sys/net/netfilter/nf_conntrack";
        let mut values = vec![
            ("/proc/sys/net/ipv4/ip_forward".to_owned(), "1".to_owned()),
            // Both ends of a link know each other's MAC; all else an answer would tell is what the router is.
            (
                "/proc/sys/net/ipv4/conf/all/arp_ignore".to_owned(),
                "8".to_owned(),
            ),
        ];
        for (name, kept) in [
            ("tcp_timeout_established", FLOW_ESTABLISHED_KEPT),
            ("tcp_timeout_time_wait", FLOW_TIME_WAIT_KEPT),
            ("tcp_timeout_fin_wait", FLOW_CLOSING_KEPT),
            ("tcp_timeout_close_wait", FLOW_CLOSING_KEPT),
            ("tcp_timeout_unacknowledged", FLOW_CLOSING_KEPT),
            ("udp_timeout_stream", FLOW_UDP_KEPT),
        ] {
            values.push((format!("{flows}_{name}"), seconds(kept)));
        }
        for scope in ["all", "default"] {
            let no_ipv6 = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            if Path::new("/proc/sys/net/ipv6").exists() {
                values.push((no_ipv6, "1".to_owned()));
            }
        }
        self.inside(|| {
            values
                .iter()
                .try_for_each(|(path, value)| sysctl(path, value))
        })
    }

    /// Moves links of machines into the router that an older daemon made on the host; what runs on them goes on.
    fn take_in_links(&self) -> Result<(), NetworkError> {
        for (index, slot) in self.links()? {
            tracing::info!(slot, "a machine's link moves from the host into the router");
            netlink::move_link(index, self.router.namespace()).map_err(NetworkError::kernel(
                "move a machine's link into the router",
            ))?;
            let link = self.link(slot);
            self.inside(|| ip(&self.raise(&link)))?;
        }
        Ok(())
    }

    /// The links of slots that are in this thread's namespace, with their indexes.
    fn links(&self) -> Result<Vec<(u32, u16)>, NetworkError> {
        let all =
            if_nameindex().map_err(|errno| NetworkError::kernel("list links")(errno.into()))?;
        let slot = |name: &std::ffi::CStr| {
            let number = name
                .to_str()
                .ok()?
                .strip_prefix(self.veth_prefix.as_str())?;
            let slot = number.parse::<u16>().ok()?;
            (slot < self.slots && number == slot.to_string()).then_some(slot)
        };
        Ok(all
            .iter()
            .filter_map(|link| Some((link.index(), slot(link.name())?)))
            .collect())
    }

    fn link(&self, slot: u16) -> Link {
        address::link(self.cidr, &self.veth_prefix, slot)
    }

    /// Links the network namespace of process `pid` to the router, as `slot`.
    ///
    /// # Errors
    /// [`NetworkError`]; what was made until then is left for [`Network::disconnect`].
    pub(crate) fn connect(&self, slot: u16, pid: i32) -> Result<(), NetworkError> {
        let link = self.link(slot);
        let Link {
            name,
            address,
            router_mac,
            machine_mac,
        } = &link;
        let (gateway, mtu) = (address::gateway(self.cidr), self.mtu);
        let outside = format!(
            "link add {name} address {router_mac} mtu {mtu} type veth peer name eth0 address {machine_mac} mtu {mtu} netns {pid}\n{}",
            self.raise(&link)
        );
        self.inside(|| ip(&outside))?;
        let inside = format!(
            "link set lo up\n\
             address add {address}/32 dev eth0\n\
             link set eth0 up\n\
             neighbour replace {gateway} lladdr {router_mac} dev eth0 nud permanent\n\
             route add default via {gateway} dev eth0 onlink\n"
        );
        let enter = NetworkError::kernel("enter a machine's network");
        File::open(format!("/proc/{pid}/ns/net"))
            .and_then(|namespace| router::in_network_of(&namespace, || ip(&inside)))
            .map_err(enter)?
    }

    /// Makes a tap as the router's end of `slot`, and gives it: it is there for as long as it is open.
    ///
    /// # Errors
    /// [`NetworkError`]; what was made until then goes away with [`Network::disconnect`].
    pub(crate) fn connect_tap(&self, slot: u16) -> Result<OwnedFd, NetworkError> {
        let link = self.link(slot);
        self.inside(|| {
            let tap = sys::tap(&link.name).map_err(|source| NetworkError::Tap {
                name: link.name.clone(),
                source,
            })?;
            let Link {
                name, router_mac, ..
            } = &link;
            ip(&format!(
                "link set {name} address {router_mac} mtu {}\n{}",
                self.mtu,
                self.raise(&link)
            ))?;
            Ok(tap)
        })
    }

    /// What the guest of a machine on a tap must know of its link, and the MAC of its own end.
    pub(crate) fn boot(&self, slot: u16) -> (BootNetwork, String) {
        let link = self.link(slot);
        let network = BootNetwork {
            address: link.address,
            gateway: address::gateway(self.cidr),
            gateway_mac: link.router_mac,
            mtu: self.mtu,
        };
        (network, link.machine_mac)
    }

    /// Whether the link of `slot` is there.
    pub(crate) fn has_link(&self, slot: u16) -> bool {
        let name = self.link(slot).name;
        self.router.enter(|| exists(&name)).unwrap_or(true)
    }

    /// Breaks off what this computer has open to the machine of `slot`: nobody there will ever say that it is over.
    pub(crate) fn cut_streams(&self, slot: u16) {
        let address = self.link(slot).address.to_string();
        let cut = self.inside(|| {
            let mut command = Command::new("ss");
            command.args(["--kill", "--no-header", "--tcp", "dst", &address]);
            run(&mut command, "").map_err(NetworkError::Program)
        });
        if let Err(error) = cut {
            // Keep-alive ends them too, only later.
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "streams to an ended machine stay open for a while"
            );
        }
    }

    /// Has the router's end of a link carry what is the machine's, and nothing else: as text for `ip`.
    fn raise(&self, link: &Link) -> String {
        let Link {
            name,
            address,
            machine_mac,
            ..
        } = link;
        format!(
            "link set {name} addrgenmode none\n\
             link set {name} up\n\
             route replace {address}/32 dev {name}\n\
             neighbour replace {address} lladdr {machine_mac} dev {name} nud permanent\n"
        )
    }

    /// Removes the link of `slot`, and what router and host remember of connections of its address: nothing that another
    /// machine's begun must reach the next one. Absent is fine.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn disconnect(&self, slot: u16) -> Result<(), NetworkError> {
        let Link { name, address, .. } = self.link(slot);
        let forget = || {
            netlink::forget_connections(address).map_err(NetworkError::kernel(
                "forget an ended machine's connections",
            ))
        };
        self.inside(|| {
            // It goes away by itself with the machine's namespace, but only some time after.
            if exists(&name)
                && let Err(error) = ip(&format!("link delete {name}\n"))
                && exists(&name)
            {
                return Err(error);
            }
            forget()
        })?;
        forget()
    }

    /// Removes links of slots that `used` does not hold: left by a start that was cut off.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn disconnect_unused(&self, used: &[u16]) -> Result<(), NetworkError> {
        let links = self.inside(|| self.links())?;
        links
            .into_iter()
            .filter(|(_, slot)| !used.contains(slot))
            .try_for_each(|(_, slot)| self.disconnect(slot))
    }
}

/// Whether this thread's namespace has an interface of that name.
fn exists(interface: &str) -> bool {
    if_nametoindex(interface).is_ok()
}

fn ip(batch: &str) -> Result<(), NetworkError> {
    run(Command::new("ip").args(["-batch", "-"]), batch).map_err(NetworkError::Program)
}

fn tc(batch: &str) -> Result<(), NetworkError> {
    run(Command::new("tc").args(["-batch", "-"]), batch).map_err(NetworkError::Program)
}

fn nft(text: &str) -> Result<(), NetworkError> {
    run(Command::new("nft").args(["-f", "-"]), text).map_err(NetworkError::Program)
}

fn sysctl(path: &str, value: &str) -> Result<(), NetworkError> {
    fs::write(path, value).map_err(|source| NetworkError::Sysctl {
        path: path.to_owned(),
        source,
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
