//! The fencing number of a volume: what keeps a verb that comes too late from being done.
//!
//! **Where it comes from.** The record of each volume has one, and every decision about what becomes of the volume's copies raises it, in
//! the transaction that records the decision ([`Decision`]). A verb carries the number of the record that it follows from. So what was
//! decided later has a higher number, whichever control plane decided it and however long the verb is on its way.
//!
//! **What a host does with it.** It keeps the highest number that it has seen for each volume, on the disk, and refuses lower ones
//! ([`admit`]). A host that shall take nothing older any more is asked for the volume with the new number
//! ([`crate::host_api::HostRequest::ShowVolume`]).
//!
//! A database that was set back (an older copy of it was put in place) has lower numbers than hosts have seen, and is refused by them. A
//! copy that `slipwayd serve backup` makes has numbers that are ahead.
//!
//! Must not know: how numbers are kept.

use crate::id::VolumeId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A fencing number of one volume. The first one is 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Fence(pub u64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Fence {
    /// That of a new record.
    pub const FIRST: Self = Self(1);

    /// The number after a decision.
    #[must_use]
    pub fn after(self, decision: Decision) -> Self {
        Self(self.0.saturating_add(decision.raises_by()))
    }

    /// The number to destroy what was there with, when [`Decision::Empty`] has given this one: lower than that of whatever is made in its
    /// place, and higher than all before.
    #[must_use]
    pub fn of_what_was_there(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// What a verb carries: whose number it is, and which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFence {
    /// Of which volume.
    pub volume: VolumeId,
    /// The number of the record that the verb follows from.
    pub number: Fence,
}

/// A decision about a volume that raises its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A copy is to be made on another host.
    BeginMove,
    /// The copy on the other host is the volume now, or it is given up, or somebody has said which of the two is: the one that is not is
    /// destroyed.
    DecideMove,
    /// What is in it is destroyed, and it is made anew under its name.
    Empty,
    /// It is destroyed, and never made again.
    Delete,
    /// A snapshot of it is deleted, and never made again.
    DeleteSnapshot,
}

impl Decision {
    /// By how much.
    pub fn raises_by(self) -> u64 {
        match self {
            // One for what is destroyed, and one for what is made afterwards.
            Self::Empty => 2,
            Self::BeginMove | Self::DecideMove | Self::Delete | Self::DeleteSnapshot => 1,
        }
    }
}

/// A verb came with a lower number than one that was seen, or with none after one that had one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the order carries {}, and number {have} was seen: its sender knows less of the volume than an earlier one (hint: it came late, or the control plane runs on an older copy of its database; `slipwayd serve backup` makes copies that hosts take)",
    match got { Some(got) => format!("fencing number {got}"), None => "no fencing number".to_owned() }
)]
pub struct StaleFence {
    /// The highest number seen so far.
    pub have: Fence,
    /// What the verb carried.
    pub got: Option<Fence>,
}

/// Whether a verb with the number `got` may be done where `seen` is the highest number so far. Gives what is to be kept before it is done,
/// if that is new.
///
/// # Errors
/// [`StaleFence`] with both numbers.
pub fn admit(seen: Option<Fence>, got: Option<Fence>) -> Result<Option<Fence>, StaleFence> {
    match (seen, got) {
        // Callers of version 2 have none. Once one with numbers was there, such a one is behind.
        (None, None) => Ok(None),
        (None, Some(got)) => Ok(Some(got)),
        (Some(have), Some(got)) if got >= have => Ok((got > have).then_some(got)),
        (Some(have), got) => Err(StaleFence { have, got }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_takes_no_number_below_the_highest_that_it_has_seen() {
        let stale = |have, got: Option<u64>| {
            Err(StaleFence {
                have: Fence(have),
                got: got.map(Fence),
            })
        };
        for (seen, got, taken) in [
            // seen, got, what is kept
            (None, None, Ok(None)),
            (None, Some(1), Ok(Some(Fence(1)))),
            (Some(4), Some(4), Ok(None)),
            (Some(4), Some(5), Ok(Some(Fence(5)))),
            (Some(4), Some(u64::MAX), Ok(Some(Fence(u64::MAX)))),
            (Some(4), Some(3), stale(4, Some(3))),
            (Some(4), None, stale(4, None)),
        ] {
            let admitted = admit(seen.map(Fence), got.map(Fence));
            assert_eq!(admitted, taken, "{seen:?} {got:?}");
        }
    }

    /// One host, and verbs that arrive in any order: what was decided before something that has arrived is not done after it.
    #[test]
    fn what_was_decided_earlier_is_never_done_after_what_was_decided_later() {
        let decisions = [
            Decision::BeginMove,
            Decision::DecideMove,
            Decision::Empty,
            Decision::DeleteSnapshot,
            Decision::Delete,
        ];
        let mut fence = Fence::FIRST;
        let mut verbs = vec![fence];
        for decision in decisions {
            let next = fence.after(decision);
            if decision == Decision::Empty {
                let destroys = next.of_what_was_there();
                assert!(destroys > fence && destroys < next);
                verbs.push(destroys);
            }
            assert!(next > fence, "{decision:?}");
            fence = next;
            verbs.push(fence);
        }
        for (at, now) in verbs.iter().enumerate() {
            for (late_at, late) in verbs.iter().enumerate() {
                let late_verb = admit(Some(*now), Some(*late));
                assert_eq!(late_verb.is_err(), late_at < at, "{late} after {now}");
            }
        }
    }

    #[test]
    fn a_refusal_says_both_numbers_and_what_helps() {
        let (have, got) = (Fence(7), Some(Fence(5)));
        let told = StaleFence { have, got }.to_string();
        for part in ["fencing number 5", "number 7 was seen", "hint:"] {
            assert!(told.contains(part), "{told}");
        }
        let told = StaleFence { have, got: None }.to_string();
        assert!(told.contains("no fencing number"), "{told}");
    }
}
