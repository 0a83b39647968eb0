//! Which resolvers machines use: the host's own, as far as a machine can reach them. Pure but for one function that
//! reads two files.

use std::net::Ipv4Addr;

/// Where systemd-resolved keeps the real resolvers when `/etc/resolv.conf` names only its own loopback stub.
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";
const SYSTEM: &str = "/etc/resolv.conf";
/// More than the three that libc reads would never be asked.
const RESOLVERS_MAX: usize = 3;

/// The host's resolvers that a machine can reach; empty if it has none such.
pub(crate) fn of_host() -> Vec<Ipv4Addr> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let found = parse(&read(SYSTEM));
    if found.is_empty() {
        parse(&read(UPSTREAM))
    } else {
        found
    }
}

/// The `resolv.conf` of a machine.
pub(crate) fn resolv_conf(resolvers: &[Ipv4Addr]) -> String {
    resolvers
        .iter()
        .map(|resolver| format!("nameserver {resolver}\n"))
        .collect()
}

/// IPv4 resolvers that are not loopback (a machine's loopback is its own).
fn parse(text: &str) -> Vec<Ipv4Addr> {
    text.lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("nameserver")?
                .trim()
                .parse::<Ipv4Addr>()
                .ok()
        })
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
        .take(RESOLVERS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_a_machine_can_reach() {
        let text = "# c\nnameserver 127.0.0.53\nnameserver  10.0.0.1 \nnameserver fe80::1\nsearch x\nnameserver 9.9.9.9\noptions edns0";
        let found = parse(text);
        assert_eq!(
            found,
            [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(9, 9, 9, 9)]
        );
        assert_eq!(
            resolv_conf(&found),
            "nameserver 10.0.0.1\nnameserver 9.9.9.9\n"
        );
        assert_eq!(parse("nameserver 127.0.0.53\n"), Vec::<Ipv4Addr>::new());
    }
}
