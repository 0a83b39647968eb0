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
    /// Build cache unused for this long, down to what is to be kept.
    Cache(Duration),
    /// Images older than this that no container uses, the oldest first.
    Images(Duration),
    /// Build cache whatever its age, down to what is to be kept, the longest unused first.
    AnyCache,
}

impl Step {
    /// Whether the step may be taken. Young cache is what the next step of a build that runs most likely wants, so
    /// without need it is only taken when nothing runs. Images stay while any is being read for a push.
    pub(crate) fn allowed(self, reason: Reason, activity: Activity) -> bool {
        match (self, reason) {
            (Step::Images(_), Reason::Routine | Reason::DiskFull) => activity.pushes == 0,
            (Step::Cache(_), Reason::Routine | Reason::DiskFull)
            | (Step::AnyCache, Reason::DiskFull) => true,
            (Step::AnyCache, Reason::Routine) => activity.is_idle(),
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
pub(crate) fn above_low_water(disk: DiskUse) -> u64 {
    let mark = u128::from(disk.total_bytes) * u128::from(limits::LOW_WATER_PERCENT) / 100;
    disk.used_bytes
        .saturating_sub(u64::try_from(mark).unwrap_or(u64::MAX))
}

/// How much of a build cache of `cache_bytes` may stay, so that the volume comes down to its low-water mark.
pub(crate) fn keep_bytes(cache_bytes: u64, disk: DiskUse) -> u64 {
    cache_bytes.saturating_sub(above_low_water(disk))
}

/// The steps in order: what is older goes first. Images younger than an hour are never taken: somebody may have built
/// one a moment ago and be about to push it.
pub(crate) fn steps() -> impl Iterator<Item = Step> {
    let by_age = [HOUR * 24 * 7, HOUR * 24 * 2, HOUR * 12, HOUR]
        .into_iter()
        .flat_map(|age| [Step::Cache(age), Step::Images(age)]);
    by_age.chain([Step::AnyCache])
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
    fn the_cache_gives_what_is_above_the_low_water_mark() {
        for (total, used, cache, above, keep) in [
            (1000, 500, 400, 0, 400),
            (1000, 600, 400, 0, 400),
            (1000, 900, 400, 300, 100),
            (1000, 900, 200, 300, 0),
        ] {
            assert_eq!(above_low_water(disk(total, used)), above);
            assert_eq!(keep_bytes(cache, disk(total, used)), keep);
        }
    }

    #[test]
    fn steps_go_from_old_to_young_and_young_cache_waits_for_quiet() {
        let steps: Vec<Step> = steps().collect();
        let ages: Vec<Duration> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Cache(age) | Step::Images(age) => Some(*age),
                Step::AnyCache => None,
            })
            .collect();
        assert!(ages.is_sorted_by(|older, younger| older >= younger));
        assert_eq!(
            steps.iter().position(|step| *step == Step::AnyCache),
            Some(ages.len())
        );
        assert_eq!(steps.len(), ages.len() + 1);
        let idle = Activity::default();
        let building = Activity { builds: 1, ..idle };
        let pushing = Activity { pushes: 1, ..idle };
        for step in steps {
            let (images, young) = (matches!(step, Step::Images(_)), step == Step::AnyCache);
            assert!(step.allowed(Reason::DiskFull, building));
            assert!(step.allowed(Reason::Routine, idle));
            assert_eq!(step.allowed(Reason::Routine, building), !young);
            assert_eq!(step.allowed(Reason::Routine, pushing), !young && !images);
            assert_eq!(step.allowed(Reason::DiskFull, pushing), !images);
        }
    }
}
