//! Registries that an operator calls insecure, as dockerd means it (daemon.json, `insecure-registries`): TLS without a known authority, or
//! none at all. Which it is is found by asking, once for each registry and process.
//!
//! Knows nothing of what is asked of a registry later.

use crate::limits::{ANSWER_TIMEOUT, SCHEMES_KNOWN};
use crate::target::host_name;
use http::StatusCode;
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{LazyLock, Mutex, PoisonError};

/// How an insecure registry speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// Without TLS.
    Clear,
    /// With a certificate that nobody vouches for.
    Unverified,
}

/// What was found of registries by their host and port.
static KNOWN: LazyLock<Mutex<HashMap<String, Scheme>>> = LazyLock::new(Mutex::default);

/// Whether the operator's list names this registry: by host and port, by host, or, of one that has these addresses, by network.
pub(super) fn is_named(list: &[String], host: &str, addresses: &[IpAddr]) -> bool {
    list.iter().any(|named| {
        let named = named.trim_end_matches('/');
        let named = named
            .strip_prefix("http://")
            .or_else(|| named.strip_prefix("https://"))
            .unwrap_or(named);
        match named.parse::<IpNet>() {
            Ok(network) => addresses.iter().any(|address| network.contains(address)),
            Err(_) => {
                named.eq_ignore_ascii_case(host) || named.eq_ignore_ascii_case(host_name(host))
            }
        }
    })
}

/// The addresses of a registry; none if its name is not known.
pub(super) async fn addresses(host: &str) -> Vec<IpAddr> {
    let name = host_name(host);
    if let Ok(address) = name.parse() {
        return vec![address];
    }
    let found = tokio::net::lookup_host((name, 0)).await;
    found.map_or_else(
        |_| Vec::new(),
        |all| all.map(|address| address.ip()).collect(),
    )
}

/// Asks in clear first, which shows nothing but that somebody asks. A server with TLS says 400 to that, or breaks off.
pub(super) async fn scheme(host: &str, clear: &reqwest::Client) -> Scheme {
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(scheme) = known().get(host) {
        return *scheme;
    }
    let asked = clear
        .get(format!("http://{host}/v2/"))
        .timeout(ANSWER_TIMEOUT)
        .send()
        .await;
    let scheme = match asked {
        Ok(answer) if answer.status() != StatusCode::BAD_REQUEST => Scheme::Clear,
        Err(error) if error.is_connect() => return Scheme::Clear,
        Ok(_) | Err(_) => Scheme::Unverified,
    };
    let mut known = known();
    if known.len() >= SCHEMES_KNOWN {
        known.clear();
    }
    known.insert(host.to_string(), scheme);
    scheme
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_named_as_dockerd_takes_them() {
        let list = |text: &str| text.split(' ').map(str::to_string).collect::<Vec<_>>();
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        for (named, host, addresses, expected) in [
            ("reg.test:5000", "reg.test:5000", vec![], true),
            ("REG.test", "reg.test:5000", vec![], true),
            ("reg.test:5001", "reg.test:5000", vec![], false),
            ("http://reg.test:5000", "reg.test:5000", vec![], true),
            ("https://reg.test/", "reg.test", vec![], true),
            (
                "10.0.0.0/8",
                "reg.test:5000",
                vec![address("10.1.2.3")],
                true,
            ),
            (
                "10.0.0.0/8",
                "reg.test:5000",
                vec![address("11.1.2.3")],
                false,
            ),
            ("fd00::/8", "[fd00::1]:5000", vec![address("fd00::1")], true),
            ("other.test 10.1.2.3", "10.1.2.3:5000", vec![], true),
            ("reg.test", "reg.test.evil.test", vec![], false),
        ] {
            assert_eq!(
                is_named(&list(named), host, &addresses),
                expected,
                "{named} {host}"
            );
        }
    }
}
