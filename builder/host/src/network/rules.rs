//! The firewall tables as texts: the router's, which has every wall of machines, and the host's, which lets machines out
//! and nothing in. Pure: same input, same text.
//!
//! Must not know: how they are applied, or what else is on the host.

use super::shares;
use crate::address::{Allowed, Ipv4Net, Transport, UPLINK_GROUP, gateway, link};
use crate::limits::{
    FLOW_CLOSING_KEPT, FLOW_ESTABLISHED_KEPT, FLOW_TIME_WAIT_KEPT, FLOW_UDP_KEPT,
    MACHINE_FLOWS_MAX, MACHINE_NEW_FLOWS_BURST, MACHINE_NEW_FLOWS_PER_S,
};
use slipway_core::vm::CHANNEL_PORT;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::Ipv4Addr;

/// Ranges that are closed to machines unless allowed: everything that is somebody's private network, the host's
/// own, or metadata services (168.63.129.16 is Azure's). Documentation ranges are open, for they lead nowhere else.
const PRIVATE: [&str; 12] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// What the tables are made from.
#[derive(Debug)]
pub(crate) struct Rules<'a> {
    /// Name of each table.
    pub(crate) table: &'a str,
    /// What the router's ends of machines' links are named, before the slot's number.
    pub(crate) veth_prefix: &'a str,
    /// Both ends of the link between router and host.
    pub(crate) uplink: &'a str,
    /// Addresses of machines.
    pub(crate) cidr: Ipv4Net,
    /// How many slots there are. All are written out at once, so that a start of a machine touches no rule.
    pub(crate) slots: u16,
    /// Destinations that are open although closed otherwise.
    pub(crate) allowed: &'a [Allowed],
    /// Further closed ranges.
    pub(crate) denied: &'a [Ipv4Net],
    /// The host's own addresses.
    pub(crate) host: &'a [Ipv4Addr],
    /// TCP ports that are closed everywhere else.
    pub(crate) closed_ports: &'a [u16],
    /// Whether connections go on that the router has not seen begin: of machines that an older daemon had linked to the host.
    pub(crate) picks_up: bool,
    /// Whether the host forwards packets for machines alone.
    pub(crate) forwards_for_us_only: bool,
    /// Whether packets wait in classes of their machines ([`shares`]).
    pub(crate) shared: bool,
}

/// The router's table, for `nft -f`. It replaces the whole table in one transaction, so no packet meets half of it.
pub(crate) fn router(rules: &Rules<'_>) -> String {
    let Rules {
        table,
        veth_prefix: veth,
        uplink,
        slots,
        ..
    } = rules;
    let sources = sources(rules);
    let closed = closed(rules);
    let allowed = allowed(rules.allowed);
    let closed_ports = closed_ports(rules.closed_ports);
    let (classes, sent) = if rules.shared {
        (classes(rules), sent(rules))
    } else {
        (String::new(), String::new())
    };
    let picked_up = if rules.picks_up {
        format!(
            "    # Begun before the router was there; the host lets only in what it knows.\n    iifname \"{uplink}\" oifname \"{veth}*\" tcp flags & (syn | rst) == 0 accept\n"
        )
    } else {
        String::new()
    };
    format!(
        r#"table inet {table}
delete table inet {table}
table inet {table} {{
  # Which address a link may send from.
  set sources {{ type ifname . ipv4_addr; elements = {{ {sources} }}; }}
  set closed {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {closed} }}; }}
  set allowed {{ type ipv4_addr . inet_proto . inet_service; {allowed}}}
{classes}  set starts {{ type ifname; size {slots}; flags dynamic; }}
  set flows {{ type ifname; size {slots}; flags dynamic; }}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname {{ "{uplink}", "lo" }} accept
    meta nfproto != ipv4 drop
    iifname . ip saddr != @sources drop
  }}
  # The router itself offers nothing to anybody.
  chain input {{
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname "{veth}*" reject with icmpx admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname "{veth}*" goto from_machine
    oifname "{veth}*" ct state established,related accept
{picked_up}    # A process of the host's that tries hears at once that it may not.
    reject with icmpx admin-prohibited
  }}
  chain from_machine {{
    ct state invalid drop
    oifname != "{uplink}" reject with icmpx admin-prohibited
{sent}    ct state established,related accept
    # What a machine has too many of waits or fails; the table of connections has room for the others.
    update @starts {{ iifname limit rate over {MACHINE_NEW_FLOWS_PER_S}/second burst {MACHINE_NEW_FLOWS_BURST} packets }} drop
    add @flows {{ iifname ct count over {MACHINE_FLOWS_MAX} }} reject with icmpx admin-prohibited
    ip daddr . meta l4proto . th dport @allowed accept
    ip daddr @closed reject with icmpx admin-prohibited
{closed_ports}    accept
  }}
  # The door of a virtual machine is opened from here, where only the host's root can come; nothing else is.
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "{veth}*" tcp dport != {CHANNEL_PORT} ct state new drop
  }}
}}
"#
    )
}

/// The host's table. Without it machines have no way out; it is no wall that a machine meets first.
pub(crate) fn host(rules: &Rules<'_>) -> String {
    let Rules {
        table,
        uplink,
        cidr,
        ..
    } = rules;
    let allowed = allowed(rules.allowed);
    let established = FLOW_ESTABLISHED_KEPT.as_secs();
    let (closing, time_wait) = (FLOW_CLOSING_KEPT.as_secs(), FLOW_TIME_WAIT_KEPT.as_secs());
    let udp = FLOW_UDP_KEPT.as_secs();
    let (classes, received) = if rules.shared {
        (
            classes(rules),
            format!("    oifname \"{uplink}\" meta priority set ip daddr map @classes\n"),
        )
    } else {
        (String::new(), String::new())
    };
    let others = if rules.forwards_for_us_only {
        format!(
            "    # Forwarding is on for machines alone: this computer is no router for others.\n    iifgroup != {UPLINK_GROUP} oifgroup != {UPLINK_GROUP} drop\n"
        )
    } else {
        String::new()
    };
    format!(
        r#"table inet {table}
delete table inet {table}
table inet {table} {{
  set allowed {{ type ipv4_addr . inet_proto . inet_service; {allowed}}}
{classes}  # Connections of machines are forgotten here as soon as by the router.
  ct timeout machine_tcp {{ protocol tcp; l3proto ip; policy = {{ established : {established}, close_wait : {closing}, fin_wait : {closing}, time_wait : {time_wait} }}; }}
  ct timeout machine_udp {{ protocol udp; l3proto ip; policy = {{ unreplied : 30, replied : {udp} }}; }}
  chain prerouting {{
    type filter hook prerouting priority mangle; policy accept;
    iifname "{uplink}" meta l4proto tcp ct timeout set "machine_tcp"
    iifname "{uplink}" meta l4proto udp ct timeout set "machine_udp"
  }}
  # Machine to host.
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{uplink}" goto input_from_machine
  }}
  chain input_from_machine {{
    ct state established,related accept
    ip daddr . meta l4proto . th dport @allowed accept
    reject with icmpx admin-prohibited
  }}
  # Machine to anything else, and back.
  chain forward {{
    type filter hook forward priority filter; policy accept;
    # No machine has its packets go before another's by calling them urgent.
    iifname "{uplink}" meta priority set none
    iifname "{uplink}" ip saddr {cidr} oifname != "{uplink}" accept
{received}    oifname "{uplink}" ct state established,related accept
    iifname "{uplink}" drop
    oifname "{uplink}" drop
{others}  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {cidr} oifname != "{uplink}" masquerade
  }}
}}
"#
    )
}

fn sources(rules: &Rules<'_>) -> String {
    let mut out = String::new();
    for slot in 0..rules.slots {
        let link = link(rules.cidr, rules.veth_prefix, slot);
        let comma = if slot == 0 { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(out, "{comma}\"{}\" . {}", link.name, link.address);
    }
    out
}

/// Which class a machine's packets are of, by its address.
fn classes(rules: &Rules<'_>) -> String {
    let mut elements = String::new();
    for slot in 0..rules.slots {
        let address = link(rules.cidr, rules.veth_prefix, slot).address;
        let comma = if slot == 0 { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(elements, "{comma}{address} : {}", shares::class_of(slot));
    }
    format!("  map classes {{ type ipv4_addr : classid; elements = {{ {elements} }}; }}\n")
}

/// Marks what a machine sends, but for what goes to the host itself.
fn sent(rules: &Rules<'_>) -> String {
    let mut host = vec![gateway(rules.cidr).to_string()];
    host.extend(rules.host.iter().map(Ipv4Addr::to_string));
    let host = host.join(", ");
    format!("    ip daddr != {{ {host} }} meta priority set ip saddr map @classes\n")
}

fn closed(rules: &Rules<'_>) -> String {
    let mut ranges: Vec<String> = PRIVATE.map(str::to_owned).into();
    ranges.push(rules.cidr.to_string());
    ranges.extend(rules.denied.iter().map(Ipv4Net::to_string));
    ranges.extend(rules.host.iter().map(Ipv4Addr::to_string));
    ranges.join(", ")
}

fn closed_ports(ports: &[u16]) -> String {
    if ports.is_empty() {
        return String::new();
    }
    let ports: BTreeSet<_> = ports.iter().collect();
    let ports: Vec<_> = ports.into_iter().map(u16::to_string).collect();
    let ports = ports.join(", ");
    format!("    tcp dport {{ {ports} }} reject with icmpx admin-prohibited\n")
}

/// Whether machines may reach `range` at all, but for what is allowed.
pub(crate) fn is_public(range: Ipv4Net) -> bool {
    !PRIVATE
        .iter()
        .filter_map(|private| private.parse::<Ipv4Net>().ok())
        .any(|private| private.holds(range))
}

fn allowed(allowed: &[Allowed]) -> String {
    let elements: BTreeSet<_> = allowed.iter().collect();
    if elements.is_empty() {
        return String::new();
    }
    let elements: Vec<String> = elements
        .into_iter()
        .map(|to| {
            let transport = match to.transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
            };
            format!("{} . {transport} . {}", to.address, to.port)
        })
        .collect();
    format!("elements = {{ {} }}; ", elements.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example<'a>(allowed: &'a [Allowed], denied: &'a [Ipv4Net]) -> Rules<'a> {
        Rules {
            table: "slipway",
            veth_prefix: "slw",
            uplink: "slipway0",
            cidr: "10.209.0.0/16".parse().unwrap(),
            slots: 2,
            allowed,
            denied,
            host: &[],
            closed_ports: &[],
            picks_up: false,
            forwards_for_us_only: false,
            shared: false,
        }
    }

    #[test]
    fn they_are_the_texts_on_file() {
        let allowed = [
            "10.209.0.1:5000".parse().unwrap(),
            "10.255.255.53:53/udp".parse().unwrap(),
        ];
        let denied = ["198.51.100.0/24".parse().unwrap()];
        let rules = Rules {
            host: &[Ipv4Addr::new(192, 0, 2, 2)],
            closed_ports: &[25],
            forwards_for_us_only: true,
            shared: true,
            ..example(&allowed, &denied)
        };
        crate::snapshot::check("network/rules.router.snapshot.nft", &router(&rules));
        crate::snapshot::check("network/rules.host.snapshot.nft", &host(&rules));
    }

    #[test]
    fn nothing_allowed_is_an_empty_set_and_no_closed_port_no_rule() {
        let rules = example(&[], &[]);
        for text in [router(&rules), host(&rules)] {
            assert!(text.contains("set allowed { type ipv4_addr . inet_proto . inet_service; }"));
            assert!(!text.contains("tcp dport {"), "{text}");
            assert!(!text.contains("syn"), "{text}");
            assert!(!text.contains("classes"), "{text}");
        }
    }

    #[test]
    fn connections_that_began_elsewhere_go_on_only_when_links_have_moved() {
        let rules = Rules {
            picks_up: true,
            ..example(&[], &[])
        };
        assert!(router(&rules).contains("tcp flags & (syn | rst) == 0 accept"));
    }

    #[test]
    fn a_host_that_routes_for_others_goes_on_doing_so() {
        let others = |forwards_for_us_only| {
            let rules = Rules {
                forwards_for_us_only,
                ..example(&[], &[])
            };
            host(&rules).contains("iifgroup !=")
        };
        assert!(others(true));
        assert!(!others(false));
    }

    #[test]
    fn private_ranges_are_not_public_and_what_holds_them_is() {
        for (range, public) in [
            ("10.1.0.0/16", false),
            ("168.63.129.16/32", false),
            ("169.254.169.254/32", false),
            ("0.0.0.0/0", true),
            ("9.9.9.0/24", true),
        ] {
            assert_eq!(is_public(range.parse().unwrap()), public, "{range}");
        }
    }
}
