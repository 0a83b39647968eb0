//! Connections that have not authenticated, of each network on one listener. There may be so many at once; beyond that the oldest makes
//! room for the next, so that a network's silent connections keep neither others out nor, behind a shared address, its own.
//!
//! Must not know: TLS, HTTP, who is who.

use crate::bounds::{STRANGER_ROOM_AFTER, STRANGERS_PER_NETWORK_MAX};
use crate::connection::network;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The count of one listener.
#[derive(Debug, Default)]
pub(crate) struct Strangers(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// The number of the next one.
    next: u64,
    /// Oldest first.
    networks: HashMap<IpAddr, VecDeque<Entry>>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    since: Instant,
    leave: CancellationToken,
}

/// One connection, until it has authenticated or ended.
#[derive(Debug)]
pub(crate) struct Stranger {
    strangers: Arc<Strangers>,
    network: IpAddr,
    number: u64,
    leave: CancellationToken,
}

impl Strangers {
    /// Counts a connection. None: its network has as many as it may, all of them too young to be taken for silent.
    pub(crate) fn enter(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Option<Stranger> {
        let network = network(peer);
        let mut counts = self.counts();
        let number = counts.next;
        counts.next += 1;
        let entries = counts.networks.entry(network).or_default();
        if entries.len() >= STRANGERS_PER_NETWORK_MAX {
            let oldest = entries.pop_front()?;
            if now.duration_since(oldest.since) < STRANGER_ROOM_AFTER {
                entries.push_front(oldest);
                return None;
            }
            oldest.leave.cancel();
        }
        let leave = CancellationToken::new();
        entries.push_back(Entry {
            number,
            since: now,
            leave: leave.clone(),
        });
        Some(Stranger {
            strangers: Arc::clone(self),
            network,
            number,
            leave,
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stranger {
    /// Cancelled when the connection is to make room for another.
    pub(crate) fn leave(&self) -> CancellationToken {
        self.leave.clone()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut counts = self.strangers.counts();
        if let Some(entries) = counts.networks.get_mut(&self.network) {
            // Numbers ascend.
            if let Ok(at) = entries.binary_search_by_key(&self.number, |entry| entry.number) {
                entries.remove(at);
            }
            if entries.is_empty() {
                counts.networks.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn full(strangers: &Arc<Strangers>, peer: &str, now: Instant) -> Vec<Stranger> {
        (0..STRANGERS_PER_NETWORK_MAX)
            .map(|_| strangers.enter(address(peer), now).unwrap())
            .collect()
    }

    #[test]
    fn the_oldest_makes_room_but_not_at_once() {
        let strangers = Arc::<Strangers>::default();
        let now = Instant::now();
        let mut held = full(&strangers, "192.0.2.1", now);
        let soon = now + STRANGER_ROOM_AFTER - Duration::from_millis(1);
        assert!(strangers.enter(address("192.0.2.1"), soon).is_none());
        let next = strangers.enter(address("192.0.2.1"), now + STRANGER_ROOM_AFTER);
        assert!(next.is_some());
        let left: Vec<bool> = held.iter().map(|one| one.leave().is_cancelled()).collect();
        assert!(left[0] && !left[1..].contains(&true));
        // That it ends later gives no second place.
        held.remove(0);
        assert!(strangers.enter(address("192.0.2.1"), soon).is_none());
        // Who authenticates or ends does.
        held.pop();
        assert!(strangers.enter(address("192.0.2.1"), soon).is_some());
        drop((held, next));
        assert!(strangers.counts().networks.is_empty());
    }

    #[test]
    fn networks_are_bounded_each_by_itself() {
        let strangers = Arc::<Strangers>::default();
        let now = Instant::now();
        let _held = full(&strangers, "2001:db8::1", now);
        assert!(strangers.enter(address("2001:db8::2"), now).is_none());
        for other in ["2001:db8:0:1::1", "192.0.2.1"] {
            assert!(strangers.enter(address(other), now).is_some(), "{other}");
        }
    }
}
