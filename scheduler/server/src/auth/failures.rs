//! How often each peer has presented a wrong credential lately.
//!
//! Nobody can guess 256 bits; this bounds the work that guessing makes. An IPv6 peer is its /64, because that is what one
//! customer has. Must not know: what a credential is.

use crate::bounds::{AUTH_FAILURES_MAX, AUTH_FAILURES_WINDOW, AUTH_PEERS_MAX};
use crate::places::network;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<IpAddr, (Instant, u32)>>);

impl Failures {
    pub(super) fn too_many(&self, peer: IpAddr, now: Instant) -> bool {
        let peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(&network(peer)).is_some_and(|(since, count)| {
            now.duration_since(*since) < AUTH_FAILURES_WINDOW && *count >= AUTH_FAILURES_MAX
        })
    }

    pub(super) fn count(&self, peer: IpAddr, now: Instant) {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= AUTH_PEERS_MAX {
            peers.retain(|_, (since, _)| now.duration_since(*since) < AUTH_FAILURES_WINDOW);
        }
        if peers.len() >= AUTH_PEERS_MAX
            && let Some(oldest) = peers
                .iter()
                .min_by_key(|(_, (since, _))| *since)
                .map(|(ip, _)| *ip)
        {
            peers.remove(&oldest);
        }
        let entry = peers.entry(network(peer)).or_insert_with(|| (now, 0));
        if now.duration_since(entry.0) >= AUTH_FAILURES_WINDOW {
            *entry = (now, 0);
        }
        entry.1 = entry.1.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_per_network_and_are_forgotten() {
        let failures = Failures::default();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let (one, neighbour) = (address("2001:db8::1"), address("2001:db8::2"));
        let now = Instant::now();
        for _ in 0..AUTH_FAILURES_MAX {
            assert!(!failures.too_many(one, now));
            failures.count(one, now);
        }
        assert!(failures.too_many(one, now) && failures.too_many(neighbour, now));
        assert!(!failures.too_many(address("2001:db8:0:1::1"), now));
        let later = now + AUTH_FAILURES_WINDOW;
        assert!(!failures.too_many(one, later));
        failures.count(one, later);
        assert!(!failures.too_many(one, later));
    }

    #[test]
    fn many_peers_take_bounded_room() {
        let failures = Failures::default();
        for n in 0..AUTH_PEERS_MAX + 100 {
            let peer = IpAddr::V4(u32::try_from(n).unwrap().into());
            failures.count(peer, Instant::now());
        }
        assert!(failures.0.lock().unwrap().len() <= AUTH_PEERS_MAX);
    }
}
