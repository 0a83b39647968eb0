//! How often each network has presented a wrong credential lately.
//!
//! Nobody can guess 256 bits; this bounds what is told and written of those who try, or who have an old token. It never stands in the way of
//! a good credential. An IPv6 peer is its /64, because that is what one household has. Must not know: what a credential is.

use crate::bounds::{AUTH_FAILURE_EVERY, AUTH_FAILURES_MAX, AUTH_PEERS_MAX};
use crate::places::network;
use crate::rate::Bucket;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<IpAddr, Bucket>>);

impl Failures {
    /// Counts one. Gives whether there were too many.
    pub(super) fn count(&self, peer: IpAddr, now: Instant) -> bool {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = network(peer);
        if peers.len() >= AUTH_PEERS_MAX && !peers.contains_key(&peer) {
            peers.retain(|_, bucket| !bucket.is_full(now));
            let fullest = peers.iter().min_by_key(|(_, bucket)| bucket.full_at());
            if peers.len() >= AUTH_PEERS_MAX
                && let Some(fullest) = fullest.map(|(ip, _)| *ip)
            {
                peers.remove(&fullest);
            }
        }
        let bucket = peers.entry(peer).or_default();
        !bucket.take(now, AUTH_FAILURES_MAX, AUTH_FAILURE_EVERY)
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
            assert!(!failures.count(one, now));
        }
        assert!(failures.count(one, now) && failures.count(neighbour, now));
        assert!(!failures.count(address("2001:db8:0:1::1"), now));
        assert!(!failures.count(one, now + AUTH_FAILURE_EVERY));
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
