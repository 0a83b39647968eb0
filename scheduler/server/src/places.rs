//! The places of one listener, and who has them.
//!
//! A connection is accepted first, and then gets a place or makes room. Until it has shown a good credential its place is one of a share
//! that all such connections have together; so they never take a place that an authenticated one could have. When that share is full the
//! newest connection still gets in, and an old one of the network with the most goes. A connection with a credential counts for the
//! credential's owner, and an owner may have as many places as are left for all others: so one that takes all it can leaves room, and so
//! do any number of them.
//!
//! Must not know: TLS, HTTP, what a credential is.

use crate::bounds::{
    AUTHENTICATED_MAX, ORG_CONNECTIONS_MAX, UNAUTHENTICATED_MAX, UNAUTHENTICATED_PER_NETWORK_MAX,
    UNAUTHENTICATED_PER_SITE_MAX, UNAUTHENTICATED_ROOM_AFTER,
};
use crate::problem::{Code, Problem};
use slipway_core::id::OrgId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Whose authenticated connections are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// An org, by any of its credentials.
    Org(OrgId),
    /// The installation's administrator.
    Administrator,
}

/// The places of one listener.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// The number of the next connection.
    next: u64,
    /// By number, so that the oldest is the first.
    unauthenticated: BTreeMap<u64, Entry>,
    networks: Groups,
    sites: Groups,
    holders: HashMap<Holder, usize>,
    /// The sum of `holders`.
    held: usize,
}

/// Numbers of unauthenticated connections by where they come from.
type Groups = HashMap<IpAddr, BTreeSet<u64>>;

#[derive(Debug)]
struct Entry {
    network: IpAddr,
    site: IpAddr,
    since: Instant,
    leave: CancellationToken,
}

/// The place of one connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    state: Mutex<State>,
    leave: CancellationToken,
}

#[derive(Debug)]
enum State {
    Unauthenticated(u64),
    Held(Holder),
}

impl Places {
    /// Gives a new connection a place among the unauthenticated ones. None: its own network has as many as it may, all of them too
    /// young to be taken for silent.
    pub(crate) fn enter(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Option<Place> {
        let mut counts = self.counts();
        let leave = CancellationToken::new();
        let entry = Entry {
            network: network(peer),
            site: site(peer),
            since: now,
            leave: leave.clone(),
        };
        counts.make_room(&entry, now)?;
        let number = counts.next;
        counts.next += 1;
        counts.insert(number, entry);
        Some(Place {
            places: Arc::clone(self),
            state: Mutex::new(State::Unauthenticated(number)),
            leave,
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    /// Closes others until one more of this network is within all bounds.
    fn make_room(&mut self, entry: &Entry, now: Instant) -> Option<()> {
        let network = self.networks.get(&entry.network);
        if let Some(full) = network.filter(|own| own.len() >= UNAUTHENTICATED_PER_NETWORK_MAX) {
            let oldest = self.silent(full, now)?;
            self.evict(oldest);
        }
        let site = self.sites.get(&entry.site);
        if let Some(full) = site.filter(|own| own.len() >= UNAUTHENTICATED_PER_SITE_MAX) {
            let oldest = self.silent(full, now)?;
            self.evict(oldest);
        }
        if self.unauthenticated.len() >= UNAUTHENTICATED_MAX {
            let sites = self.sites.values();
            let largest = sites.max_by_key(|site| (site.len(), Reverse(site.first().copied())));
            let silent = largest.and_then(|site| self.silent(site, now));
            let oldest = silent.or_else(|| self.unauthenticated.keys().next().copied())?;
            self.evict(oldest);
        }
        Some(())
    }

    /// The oldest of these, if it had the time to say something.
    fn silent(&self, of: &BTreeSet<u64>, now: Instant) -> Option<u64> {
        let number = of.first()?;
        let since = self.unauthenticated.get(number)?.since;
        (now.duration_since(since) >= UNAUTHENTICATED_ROOM_AFTER).then_some(*number)
    }

    fn evict(&mut self, number: u64) {
        if let Some(entry) = self.remove(number) {
            entry.leave.cancel();
        }
    }

    fn insert(&mut self, number: u64, entry: Entry) {
        self.networks
            .entry(entry.network)
            .or_default()
            .insert(number);
        self.sites.entry(entry.site).or_default().insert(number);
        self.unauthenticated.insert(number, entry);
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.unauthenticated.remove(&number)?;
        for (groups, address) in [
            (&mut self.networks, entry.network),
            (&mut self.sites, entry.site),
        ] {
            if let Some(group) = groups.get_mut(&address) {
                group.remove(&number);
                if group.is_empty() {
                    groups.remove(&address);
                }
            }
        }
        Some(entry)
    }

    fn release(&mut self, state: &State) {
        match state {
            State::Unauthenticated(number) => {
                self.remove(*number);
            }
            State::Held(holder) => {
                self.held = self.held.saturating_sub(1);
                if let Some(count) = self.holders.get_mut(holder) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        self.holders.remove(holder);
                    }
                }
            }
        }
    }
}

impl Place {
    /// Cancelled when the connection has to make room for another; never once it is held for somebody.
    pub(crate) fn leave(&self) -> CancellationToken {
        self.leave.clone()
    }

    /// Has a good credential come on the connection?
    pub(crate) fn is_held(&self) -> bool {
        matches!(*self.state(), State::Held(_))
    }

    /// Counts the connection for the owner of the credential that came on it last.
    ///
    /// # Errors
    /// [`Code::Limit`] if the owner has as many as it may, [`Code::Unavailable`] if there is none at all left. The connection then counts
    /// as before, and is to be closed.
    pub(crate) fn hold_for(&self, holder: &Holder) -> Result<(), Problem> {
        let mut state = self.state();
        if matches!(&*state, State::Held(known) if known == holder) {
            return Ok(());
        }
        let mut counts = self.places.counts();
        let free = AUTHENTICATED_MAX.saturating_sub(counts.held);
        let has = counts.holders.get(holder).copied().unwrap_or(0);
        if free == 0 {
            return Err(
                Problem::new(Code::Unavailable, "the server has no connection left")
                    .hint("try again in a minute"),
            );
        }
        if has >= ORG_CONNECTIONS_MAX.min(free) {
            return Err(
                Problem::new(Code::Limit, "your org has too many connections open")
                    .hint("wait until some of them have ended"),
            );
        }
        *counts.holders.entry(holder.clone()).or_default() += 1;
        counts.held += 1;
        counts.release(&state);
        *state = State::Held(holder.clone());
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let state = self.state();
        self.places.counts().release(&state);
    }
}

/// What one household or host has: an IPv4 address, or an IPv6 /64.
pub(crate) fn network(peer: IpAddr) -> IpAddr {
    prefix(peer, 64)
}

/// What one customer of a provider may have: an IPv4 address, or an IPv6 /48.
fn site(peer: IpAddr) -> IpAddr {
    prefix(peer, 48)
}

fn prefix(peer: IpAddr, bits: u32) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !(u128::MAX >> bits)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn org(n: usize) -> Holder {
        let mut id = [0; 10];
        id[..8].copy_from_slice(&n.to_be_bytes());
        Holder::Org(OrgId::from_entropy(id))
    }

    /// So many connections from addresses of which the `n`th is `peer(n)`.
    fn enter(
        places: &Arc<Places>,
        count: usize,
        now: Instant,
        peer: impl Fn(usize) -> String,
    ) -> Vec<Place> {
        let enter = |n| places.enter(address(&peer(n)), now);
        (0..count).map(|n| enter(n).unwrap()).collect()
    }

    fn left(places: &[Place]) -> usize {
        let gone = |place: &&Place| place.leave().is_cancelled();
        places.iter().filter(gone).count()
    }

    #[test]
    fn the_oldest_of_a_network_makes_room_but_not_at_once() {
        let places = Arc::<Places>::default();
        let now = Instant::now();
        let full = UNAUTHENTICATED_PER_NETWORK_MAX;
        let mut held = enter(&places, full, now, |_| "192.0.2.1".to_owned());
        let soon = now + UNAUTHENTICATED_ROOM_AFTER - Duration::from_millis(1);
        assert!(places.enter(address("192.0.2.1"), soon).is_none());
        let next = places.enter(address("192.0.2.1"), now + UNAUTHENTICATED_ROOM_AFTER);
        assert!(next.is_some());
        assert!(held[0].leave().is_cancelled() && left(&held) == 1);
        // That it ends later gives no second place.
        held.remove(0);
        assert!(places.enter(address("192.0.2.1"), soon).is_none());
        // A connection that authenticates or ends does.
        held.pop();
        held.push(places.enter(address("192.0.2.1"), soon).unwrap());
        held[5].hold_for(&org(1)).unwrap();
        held.push(places.enter(address("192.0.2.1"), soon).unwrap());
        drop((held, next));
        let counts = places.counts();
        assert!(counts.networks.is_empty() && counts.sites.is_empty());
        assert!(counts.unauthenticated.is_empty() && counts.holders.is_empty());
        assert_eq!(counts.held, 0);
    }

    #[test]
    fn the_networks_of_one_site_have_a_bound_together() {
        let places = Arc::<Places>::default();
        let now = Instant::now();
        let full = UNAUTHENTICATED_PER_SITE_MAX;
        let _held = enter(&places, full, now, |n| format!("2001:db8:0:{n:x}::1"));
        assert!(places.enter(address("2001:db8:0:ffff::1"), now).is_none());
        for other in ["2001:db8:1::1", "192.0.2.1"] {
            assert!(places.enter(address(other), now).is_some(), "{other}");
        }
    }

    #[test]
    fn however_many_are_silent_the_next_one_gets_in_and_lives() {
        let places = Arc::<Places>::default();
        let now = Instant::now();
        // A few networks with as much as they may have, then any number of networks with one each.
        let _few = enter(&places, UNAUTHENTICATED_MAX, now, |n| {
            format!("192.0.2.{}", n / UNAUTHENTICATED_PER_NETWORK_MAX)
        });
        let peer = address("198.51.100.1");
        let mine = places.enter(peer, now).unwrap();
        let later = now + UNAUTHENTICATED_ROOM_AFTER;
        let many = enter(&places, UNAUTHENTICATED_MAX / 2, later, |n| {
            format!("10.0.{}.{}", n >> 8, n & 255)
        });
        assert!(!mine.leave().is_cancelled());
        assert_eq!(left(&many), 0);
        assert_eq!(places.counts().unauthenticated.len(), UNAUTHENTICATED_MAX);
    }

    #[test]
    fn the_unauthenticated_take_no_place_of_the_authenticated() {
        let places = Arc::<Places>::default();
        let now = Instant::now();
        let held: Vec<Place> = (0..AUTHENTICATED_MAX)
            .map(|n| {
                let place = places.enter(address("192.0.2.1"), now).unwrap();
                place.hold_for(&org(n)).unwrap();
                place
            })
            .collect();
        let _silent = enter(&places, UNAUTHENTICATED_MAX, now, |n| {
            format!("10.0.{}.{}", n >> 8, n & 255)
        });
        let one = places.enter(address("198.51.100.1"), now).unwrap();
        let full = one.hold_for(&org(AUTHENTICATED_MAX)).unwrap_err();
        assert_eq!(full.code, Code::Unavailable);
        assert!(!one.is_held() && left(&held) == 0);
        drop(held);
        assert_eq!(one.hold_for(&org(0)), Ok(()));
    }

    #[test]
    fn an_org_has_a_bound_and_counts_each_connection_once() {
        let places = Arc::<Places>::default();
        let connection = || {
            let now = Instant::now();
            places.enter(address("192.0.2.1"), now).unwrap()
        };
        let mut held: Vec<Place> = (0..ORG_CONNECTIONS_MAX).map(|_| connection()).collect();
        for one in &held {
            assert_eq!(one.hold_for(&org(1)), Ok(()));
            assert_eq!(one.hold_for(&org(1)), Ok(()), "a second request");
        }
        let more = connection();
        assert_eq!(more.hold_for(&org(1)).unwrap_err().code, Code::Limit);
        assert_eq!(more.hold_for(&org(2)), Ok(()));
        // One that is refused still counts for the owner it had.
        assert_eq!(more.hold_for(&org(1)).unwrap_err().code, Code::Limit);
        assert_eq!(places.counts().holders[&org(2)], 1);
        held.pop();
        assert_eq!(more.hold_for(&org(1)), Ok(()));
        assert!(!places.counts().holders.contains_key(&org(2)));
    }

    #[test]
    fn orgs_that_take_all_they_can_leave_room_for_the_next() {
        for greedy in [4, 16, 64] {
            let places = Arc::<Places>::default();
            let now = Instant::now();
            let mut held = Vec::new();
            let mut taking: Vec<usize> = (0..greedy).collect();
            while !taking.is_empty() {
                taking.retain(|n| {
                    let place = places.enter(address("192.0.2.1"), now).unwrap();
                    let taken = place.hold_for(&org(*n)).is_ok();
                    held.extend(taken.then_some(place));
                    taken
                });
            }
            let next: Vec<Place> = enter(&places, 40, now, |_| "198.51.100.1".to_owned());
            for place in next {
                assert_eq!(place.hold_for(&org(greedy)), Ok(()), "{greedy}");
                held.push(place);
            }
        }
    }
}
