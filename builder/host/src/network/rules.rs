//! The firewall table as one text. Pure: same input, same text.
//!
//! Must not know: how it is applied, or what else is on the host.

use super::address::{Allowed, Ipv4Net, Transport, link};
use slipway_core::vm::CHANNEL_PORT;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Ranges that are closed to machines unless allowed: everything that is somebody's private network, the host's
/// own, or metadata services. Documentation ranges are open, for they lead nowhere else.
const PRIVATE: [&str; 11] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// What the table is made from.
#[derive(Debug)]
pub(crate) struct Rules<'a> {
    /// Name of the table.
    pub(crate) table: &'a str,
    /// What host sides of links are named, before the slot's number.
    pub(crate) veth_prefix: &'a str,
    /// Interface of the gateway address.
    pub(crate) interface: &'a str,
    /// Addresses of machines.
    pub(crate) cidr: Ipv4Net,
    /// How many slots there are. All are written out at once, so that a start of a machine touches no rule.
    pub(crate) slots: u16,
    /// Destinations that are open although private.
    pub(crate) allowed: &'a [Allowed],
    /// Further closed ranges.
    pub(crate) denied: &'a [Ipv4Net],
}

/// The text for `nft -f`. It replaces the whole table in one transaction, so no packet meets half of it.
pub(crate) fn text(rules: &Rules<'_>) -> String {
    let Rules {
        table,
        veth_prefix: veth,
        interface,
        cidr,
        ..
    } = rules;
    let sources = sources(rules);
    let private = private(rules);
    let allowed = allowed(rules.allowed);
    format!(
        r#"table inet {table}
delete table inet {table}
table inet {table} {{
  # Which address a link may send from.
  set sources {{ type ifname . ipv4_addr; elements = {{ {sources} }}; }}
  set private {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {private} }}; }}
  set allowed {{ type ipv4_addr . inet_proto . inet_service; {allowed}}}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname != "{veth}*" accept
    meta nfproto != ipv4 drop
    iifname . ip saddr != @sources drop
  }}
  # Machine to host.
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{veth}*" jump input_from_machine
  }}
  chain input_from_machine {{
    ct state established,related accept
    ip daddr . meta l4proto . th dport @allowed accept
    reject with icmpx admin-prohibited
  }}
  # Machine to anything else, and back.
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{veth}*" jump forward_from_machine
    oifname "{veth}*" jump forward_to_machine
  }}
  chain forward_from_machine {{
    ct state invalid drop
    oifname {{ "{veth}*", "{interface}" }} reject with icmpx admin-prohibited
    ct state established,related accept
    ip daddr . meta l4proto . th dport @allowed accept
    ip daddr @private reject with icmpx admin-prohibited
    accept
  }}
  chain forward_to_machine {{
    meta nfproto ipv4 ct state established,related accept
    drop
  }}
  # The door of a virtual machine: open to the host's root alone, not to its other users.
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "{veth}*" tcp dport {CHANNEL_PORT} ct state new meta skuid != 0 reject with tcp reset
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {cidr} oifname != "{veth}*" oifname != "{interface}" masquerade
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

fn private(rules: &Rules<'_>) -> String {
    let mut ranges: Vec<String> = PRIVATE.map(str::to_owned).into();
    ranges.push(rules.cidr.to_string());
    ranges.extend(rules.denied.iter().map(Ipv4Net::to_string));
    ranges.join(", ")
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
            interface: "slipway0",
            cidr: "10.209.0.0/16".parse().unwrap(),
            slots: 2,
            allowed,
            denied,
        }
    }

    #[test]
    fn is_the_text_on_file() {
        let allowed = [
            "10.209.0.1:5000".parse().unwrap(),
            "10.255.255.53:53/udp".parse().unwrap(),
        ];
        let denied = ["198.51.100.0/24".parse().unwrap()];
        crate::snapshot::check(
            "network/rules.snapshot.nft",
            &text(&example(&allowed, &denied)),
        );
    }

    #[test]
    fn nothing_allowed_is_an_empty_set() {
        let text = text(&example(&[], &[]));
        assert!(text.contains("set allowed { type ipv4_addr . inet_proto . inet_service; }"));
    }
}
