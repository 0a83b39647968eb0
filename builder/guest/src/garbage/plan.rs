//! When garbage is collected, in which steps, and how much is kept.
//!
//! Pure. It must not know how a step is taken.

use crate::limits;
use slipway_core::guest_api::{Activity, DiskUse};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// How full the volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pressure {
    /// Nothing needs to be collected.
    Low,
    /// It is above its high-water mark.
    High,
}

/// Why it is collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The volume is above its high-water mark, or somebody asked.
    Routine,
    /// A build found the volume full.
    DiskFull,
}

/// One step of a collection. Each takes only what is not in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Images older than this that no container uses, the oldest first.
    Images(Duration),
    /// Build cache unused for this long, down to what is to be kept.
    Cache(Duration),
    /// Images without a name, whatever their age: a newer build has taken the name over.
    NamelessImages,
    /// Build cache whatever its age, down to what is to be kept, the longest unused first.
    AnyCache,
}

impl Step {
    /// Whether the step may be taken. What is young is what the next step of a build that runs most likely wants, so
    /// without need it is only taken when nothing runs. Images stay while any is being read for a push.
    pub(crate) fn allowed(self, reason: Reason, activity: Activity) -> bool {
        match (self, reason) {
            (Step::Images(_), Reason::Routine | Reason::DiskFull)
            | (Step::NamelessImages, Reason::DiskFull) => activity.pushes == 0,
            (Step::Cache(_), Reason::Routine | Reason::DiskFull)
            | (Step::AnyCache, Reason::DiskFull) => true,
            (Step::NamelessImages | Step::AnyCache, Reason::Routine) => activity.is_quiet(),
        }
    }
}

/// Whether the volume is above its high-water mark.
pub(crate) fn pressure(disk: DiskUse) -> Pressure {
    let free = disk.total_bytes.saturating_sub(disk.used_bytes);
    let percent_of = |bytes: u64| u128::from(bytes) * 100;
    let total = u128::from(disk.total_bytes);
    let over = percent_of(disk.used_bytes) >= total * u128::from(limits::HIGH_WATER_PERCENT);
    let tight = percent_of(free) < total * u128::from(limits::FREE_PERCENT_MIN);
    if disk.total_bytes > 0 && (over || tight) {
        Pressure::High
    } else {
        Pressure::Low
    }
}

/// Bytes in use above the low-water mark.
pub(crate) fn above_low_water(disk: DiskUse, reason: Reason) -> u64 {
    let percent = match reason {
        Reason::Routine => limits::LOW_WATER_PERCENT,
        Reason::DiskFull => limits::LOW_WATER_FULL_PERCENT,
    };
    let mark = u128::from(disk.total_bytes) * u128::from(percent) / 100;
    disk.used_bytes
        .saturating_sub(u64::try_from(mark).unwrap_or(u64::MAX))
}

/// The steps in order: what is older goes first, and at each age images before the cache that shares layers with them.
/// Images with a name that are younger than an hour are never taken: somebody may be about to push one.
pub(crate) fn steps() -> impl Iterator<Item = Step> {
    let by_age = [HOUR * 24 * 7, HOUR * 24 * 2, HOUR * 12, HOUR]
        .into_iter()
        .flat_map(|age| [Step::Images(age), Step::Cache(age)]);
    by_age.chain([Step::NamelessImages, Step::AnyCache])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(total_bytes: u64, used_bytes: u64) -> DiskUse {
        DiskUse {
            total_bytes,
            used_bytes,
        }
    }

    #[test]
    fn pressure_begins_at_the_high_water_mark() {
        for (total, used, want) in [
            (0, 0, Pressure::Low),
            (1000, 799, Pressure::Low),
            (1000, 800, Pressure::High),
            (1000, 1000, Pressure::High),
            (u64::MAX, u64::MAX / 2, Pressure::Low),
            (u64::MAX, u64::MAX, Pressure::High),
        ] {
            assert_eq!(pressure(disk(total, used)), want, "{used} of {total}");
        }
    }

    #[test]
    fn a_collection_goes_down_to_its_low_water_mark() {
        for (used, routine, full) in [(300, 0, 0), (600, 0, 300), (900, 300, 600)] {
            assert_eq!(above_low_water(disk(1000, used), Reason::Routine), routine);
            assert_eq!(above_low_water(disk(1000, used), Reason::DiskFull), full);
        }
        assert_eq!(
            above_low_water(disk(u64::MAX, u64::MAX), Reason::Routine),
            u64::MAX - u64::MAX / 5 * 3
        );
    }

    #[test]
    fn steps_go_from_old_to_young_and_what_is_young_waits_for_quiet() {
        let steps: Vec<Step> = steps().collect();
        let (by_age, young) = steps.split_at(steps.len() - 2);
        assert_eq!(young, [Step::NamelessImages, Step::AnyCache]);
        let age = |step: &Step| match step {
            Step::Cache(age) | Step::Images(age) => Some(*age),
            Step::NamelessImages | Step::AnyCache => None,
        };
        assert!(by_age.is_sorted_by(|older, younger| age(older) >= age(younger)));
        assert!(by_age.iter().all(|step| age(step) >= Some(HOUR)));
        let idle = Activity::default();
        let building = Activity { builds: 1, ..idle };
        let pushing = Activity { pushes: 1, ..idle };
        for step in &steps {
            let (images, young) = (
                matches!(step, Step::Images(_) | Step::NamelessImages),
                young.contains(step),
            );
            assert!(step.allowed(Reason::DiskFull, building));
            assert!(step.allowed(Reason::Routine, idle));
            assert_eq!(step.allowed(Reason::Routine, building), !young);
            assert_eq!(step.allowed(Reason::Routine, pushing), !young && !images);
            assert_eq!(step.allowed(Reason::DiskFull, pushing), !images);
        }
    }
}
