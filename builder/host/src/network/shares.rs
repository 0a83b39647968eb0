//! Each machine's share of the host's network, in both directions: a machine that is alone has all of it, several that want
//! more than there is have equal parts, however many connections each of them opens; and no machine exceeds its cap, if
//! there is one.
//!
//! Both ends of the link between router and host queue what they send (HTB, tc-htb(8)): the router's what machines send,
//! the host's what they receive. Each slot has a class of its own, and the firewall tables say which packet is of which.
//! What goes between a machine and the host itself takes no part of the host's network, and is not queued.
//!
//! A queue only works where packets wait. So it must be slower than what comes after it: hence the rate of the host's
//! network has to be known.
//!
//! Owns: what the classes are. Pure. Must not know: how it is applied, or how packets are told apart.

use crate::limits::{
    NETWORK_BURST_BYTES_MAX, NETWORK_BURST_BYTES_MIN, NETWORK_QUEUE_BYTES_MAX,
    NETWORK_QUEUE_BYTES_MIN, NETWORK_QUEUE_MS, NETWORK_RATE_PERCENT,
};
use crate::rate::BitRate;
use std::fmt::Write;

/// The number before the colon of every class of ours. A packet that is marked with it alone is not queued.
pub(super) const MAJOR: u16 = 0x534c;
/// The class above all slots'.
const ALL: u16 = 1;
/// That of slot 0; the others follow.
const FIRST: u16 = 0x10;
/// Bytes that a class may send in its turn: as much as one packet at most, before it is cut up on the wire.
const TURN_BYTES: u64 = 65_536;

/// How packets wait within a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// Each connection in turn, and none for long.
    FairConnections,
    /// In order: for kernels without the former.
    InOrder,
}

/// What machines may have of the host's network, each direction by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    /// All of them together. Absent: there is no bound, so there is nothing to share.
    all: Option<BitRate>,
    /// Each of them at most.
    each: Option<BitRate>,
}

impl Shares {
    /// From what the settings say of the host's network and of a machine's cap, and what the kernel says of the host's network:
    /// nothing where nothing is known.
    pub(super) fn of(
        set: Option<BitRate>,
        found: Option<BitRate>,
        cap: Option<BitRate>,
    ) -> Option<Self> {
        // A little less than the wire carries, or packets would wait beyond it, where nobody shares it out.
        let found = found.map(|BitRate(bits)| BitRate(bits / 100 * NETWORK_RATE_PERCENT));
        let all = set.or(found);
        (all.is_some() || cap.is_some()).then_some(Self { all, each: cap })
    }

    /// What makes them, on `device` without a queue until now, for `tc -batch`.
    pub(super) fn batch(self, device: &str, slots: u16, queue: Queue) -> String {
        let mut out = format!("qdisc add dev {device} root handle {MAJOR:x}: htb default 0\n");
        // Writing to a String cannot fail.
        if let Some(all) = self.all {
            let _ = writeln!(out, "{}", class(device, ALL, None, (all, all)));
        }
        for slot in 0..slots {
            let (rate, most) = self.of_slot(slots);
            let above = self.all.map(|_| ALL);
            let minor = FIRST + slot;
            let _ = writeln!(out, "{}", class(device, minor, above, (rate, most)));
            let waiting = match queue {
                Queue::FairConnections => {
                    "fq_codel limit 1024 flows 64 memory_limit 4194304".into()
                }
                Queue::InOrder => format!("bfifo limit {}", queue_bytes(most)),
            };
            let _ = writeln!(
                out,
                "qdisc add dev {device} parent {MAJOR:x}:{minor:x} {waiting}"
            );
        }
        out
    }

    /// What a slot has for certain, and what it may have while others leave it.
    fn of_slot(self, slots: u16) -> (BitRate, BitRate) {
        let Some(all) = self.all else {
            let each = self.each.unwrap_or(BitRate::MAX);
            return (each, each);
        };
        let most = self.each.unwrap_or(all).min(all);
        let certain = BitRate((all.0 / u64::from(slots.max(1))).max(1000));
        (certain.min(most), most)
    }
}

/// The class of `slot` as `nft` and `tc` write it.
pub(super) fn class_of(slot: u16) -> String {
    format!("{MAJOR:x}:{:x}", FIRST + slot)
}

fn class(device: &str, minor: u16, above: Option<u16>, (rate, most): (BitRate, BitRate)) -> String {
    let parent = above.map_or(String::new(), |above| format!("{above:x}"));
    let (burst, burst_at_most) = (burst_bytes(rate), burst_bytes(most));
    format!(
        "class add dev {device} parent {MAJOR:x}:{parent} classid {MAJOR:x}:{minor:x} htb rate {rate} ceil {most} burst {burst} cburst {burst_at_most} quantum {TURN_BYTES}"
    )
}

/// What may go at once, so that a timer which is a little late costs nothing.
fn burst_bytes(rate: BitRate) -> u64 {
    rate.bytes_in_ms(2)
        .clamp(NETWORK_BURST_BYTES_MIN, NETWORK_BURST_BYTES_MAX)
}

fn queue_bytes(rate: BitRate) -> u64 {
    rate.bytes_in_ms(NETWORK_QUEUE_MS)
        .clamp(NETWORK_QUEUE_BYTES_MIN, NETWORK_QUEUE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GBIT: BitRate = BitRate::mbit(1000);

    #[test]
    fn what_the_settings_say_counts_before_what_the_kernel_says() {
        let all = |set, found| Shares::of(set, found, None).and_then(|shares| shares.all);
        assert_eq!(all(None, None), None);
        assert_eq!(all(None, Some(GBIT)), Some(BitRate::mbit(980)));
        assert_eq!(
            all(Some(BitRate::mbit(50)), Some(GBIT)),
            Some(BitRate::mbit(50))
        );
        assert_eq!(Shares::of(None, None, None), None);
    }

    #[test]
    fn a_slot_has_its_part_for_certain_and_all_up_to_the_cap_while_others_leave_it() {
        let of = |set, cap| Shares::of(set, None, cap).unwrap().of_slot(4);
        assert_eq!(of(Some(GBIT), None), (BitRate::mbit(250), GBIT));
        let cap = BitRate::mbit(400);
        assert_eq!(of(Some(GBIT), Some(cap)), (BitRate::mbit(250), cap));
        let cap = BitRate::mbit(100);
        assert_eq!(of(Some(GBIT), Some(cap)), (cap, cap));
        assert_eq!(of(None, Some(cap)), (cap, cap));
        assert_eq!(of(Some(cap), Some(GBIT)), (BitRate::mbit(25), cap));
    }

    #[test]
    fn every_slot_has_a_class_with_a_queue() {
        let shares = Shares::of(Some(GBIT), None, None).unwrap();
        let expected = "\
            qdisc add dev up root handle 534c: htb default 0\n\
            class add dev up parent 534c: classid 534c:1 htb rate 1gbit ceil 1gbit burst 250000 cburst 250000 quantum 65536\n\
            class add dev up parent 534c:1 classid 534c:10 htb rate 1gbit ceil 1gbit burst 250000 cburst 250000 quantum 65536\n\
            qdisc add dev up parent 534c:10 bfifo limit 6250000\n";
        assert_eq!(shares.batch("up", 1, Queue::InOrder), expected);
        let most = shares.batch("up", crate::limits::MACHINES_MAX, Queue::FairConnections);
        assert!(most.contains("parent 534c:40f fq_codel"), "{most}");
        assert_eq!(class_of(1023), "534c:40f");
        let capped = Shares::of(None, None, Some(GBIT)).unwrap();
        let text = capped.batch("up", 1, Queue::InOrder);
        assert!(text.contains("parent 534c: classid 534c:10 htb rate 1gbit ceil 1gbit"));
    }
}
