//! What is to be done about a volume: made, extended, destroyed, kept as a snapshot. Pure: same input, same answer.
//!
//! What is wanted is recorded first; these functions hold that against what a host has done, so that whoever comes back
//! after a crash decides the same as whoever was cut off.
//!
//! Must not know: how anything is recorded or carried out.

use crate::quota::{
    AUTO_EXTEND_PERCENT_MAX, AUTO_EXTEND_PERCENT_MIN, AUTO_EXTEND_STEP_MIN, QuotaError,
    SNAPSHOT_RETENTION_DAYS_DEFAULT, SNAPSHOT_RETENTION_DAYS_MAX, SNAPSHOT_RETENTION_DAYS_MIN,
    VOLUME_SIZE_MAX, check_volume_size,
};
use crate::time::Timestamp;
use crate::units::ByteSize;
use std::time::Duration;

/// How often a volume with scheduled snapshots is kept.
pub const SNAPSHOT_EVERY: Duration = Duration::from_secs(24 * 3600);

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What a volume's owner wants of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumePolicy {
    /// New snapshots are kept for so many days.
    pub snapshot_retention_days: u32,
    /// A snapshot is made every [`SNAPSHOT_EVERY`].
    pub scheduled_snapshots: bool,
    /// It grows by itself; absent: it does not.
    pub auto_extend: Option<AutoExtend>,
}

impl Default for VolumePolicy {
    fn default() -> Self {
        Self {
            snapshot_retention_days: SNAPSHOT_RETENTION_DAYS_DEFAULT,
            scheduled_snapshots: true,
            auto_extend: None,
        }
    }
}

/// When and how a volume grows by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoExtend {
    /// From so many percent in use on.
    pub threshold_percent: u32,
    /// By so much at a time.
    pub increment: ByteSize,
    /// Up to this size.
    pub limit: ByteSize,
}

impl VolumePolicy {
    /// Is it one that a volume may have?
    ///
    /// # Errors
    /// [`QuotaError`], for the first value that is out of bounds.
    pub fn check(&self) -> Result<(), QuotaError> {
        let days = SNAPSHOT_RETENTION_DAYS_MIN..=SNAPSHOT_RETENTION_DAYS_MAX;
        if !days.contains(&self.snapshot_retention_days) {
            return Err(QuotaError::SnapshotRetention(self.snapshot_retention_days));
        }
        let Some(auto) = &self.auto_extend else {
            return Ok(());
        };
        let percent = AUTO_EXTEND_PERCENT_MIN..=AUTO_EXTEND_PERCENT_MAX;
        if !percent.contains(&auto.threshold_percent) {
            return Err(QuotaError::AutoExtendThreshold(auto.threshold_percent));
        }
        if auto.increment < AUTO_EXTEND_STEP_MIN || auto.increment > VOLUME_SIZE_MAX {
            return Err(QuotaError::AutoExtendIncrement(auto.increment));
        }
        check_volume_size(auto.limit)
    }

    /// When a snapshot that is made now is not kept any longer.
    pub fn expires(&self, now: Timestamp) -> Timestamp {
        now.after(DAY * self.snapshot_retention_days)
    }
}

/// A volume as it is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeNow {
    /// How far it is.
    pub stage: Stage,
    /// The size it shall have.
    pub size: ByteSize,
    /// The size that its host has said it has.
    pub made: ByteSize,
    /// From then on it is to go.
    pub destroy_at: Option<Timestamp>,
    /// Its contents are sent to it; from then on nobody waits for them any longer. Of no meaning once it is made.
    pub import_until: Option<Timestamp>,
    /// It is being moved to another host.
    pub moving: Option<MoveStep>,
    /// A machine has it, whose driver makes it.
    pub held: bool,
}

/// How far a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Promised, perhaps not made yet.
    Planned,
    /// Made.
    Made,
    /// To be destroyed; there is no way back.
    Deleting,
}

/// How far the move of a volume to another host is. Until the record says that it is on the other one, the copy there is worth
/// nothing; from then on the one that it came from is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveStep {
    /// A copy is being made on the other host. The volume may be in use.
    Sending,
    /// What has changed since is being sent, and nobody may use the volume until that is decided.
    CatchingUp,
    /// The copy that the record does not name is to be destroyed: the old one, or the new one of a move that was given up.
    Clearing,
    /// The host that the record names does not have the volume, so the other copy may be the only one. Nothing is destroyed, and nothing
    /// else done, until somebody says which copy is the volume.
    Halted,
}

/// What the copy is that a move has left, seen from the pools of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherCopy {
    /// It is in another pool than the volume, and may be destroyed.
    Apart,
    /// Both names are of one pool: it is the volume itself.
    TheVolume,
    /// One of the hosts does not say which pool it has. Nothing is destroyed before it does.
    Unknown,
}

/// Which of these it is, from what both hosts say of their pools now. Names of hosts are of no use here: one that was renamed, or has
/// two names, is one host.
pub fn other_copy(volume: Option<&str>, copy: Option<&str>) -> OtherCopy {
    match (volume, copy) {
        (Some(volume), Some(copy)) if volume == copy => OtherCopy::TheVolume,
        (Some(_), Some(_)) => OtherCopy::Apart,
        (None, _) | (_, None) => OtherCopy::Unknown,
    }
}

/// What is to be done next about a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Todo {
    /// Have its host make it.
    Make,
    /// Look whether its host has it whole: who sent it may not have lived to record it.
    Look,
    /// Have its host make it larger.
    Extend,
    /// Have its copy made on the host that it moves to.
    Send,
    /// Have the copy destroyed that a move has left.
    Clear,
    /// Its time is over: record that it is being deleted.
    StartDeletion,
    /// Have its host destroy it, and forget it.
    Destroy,
}

/// What is to be done next; nothing if it is as it shall be.
pub fn todo(now: Timestamp, volume: &VolumeNow) -> Option<Todo> {
    let import = volume
        .import_until
        .filter(|_| volume.stage == Stage::Planned);
    let over = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
    let due = over(volume.destroy_at) || over(import);
    match volume.stage {
        Stage::Deleting => Some(Todo::Destroy),
        // It does not go before there is one of it again.
        Stage::Planned | Stage::Made if let Some(step) = volume.moving => match step {
            MoveStep::Sending | MoveStep::CatchingUp => Some(Todo::Send),
            MoveStep::Clearing => Some(Todo::Clear),
            MoveStep::Halted => None,
        },
        Stage::Planned | Stage::Made if due && !volume.held => Some(Todo::StartDeletion),
        // What is about to go is not made, nor made larger: it would be for nothing.
        Stage::Planned | Stage::Made if volume.destroy_at.is_some() => None,
        Stage::Planned if import.is_some() => Some(Todo::Look),
        Stage::Planned => (!volume.held).then_some(Todo::Make),
        Stage::Made => (volume.made < volume.size).then_some(Todo::Extend),
    }
}

/// What is to be done next about a snapshot; nothing if it is as it shall be.
pub fn snapshot_todo(now: Timestamp, stage: Stage, expires_at: Timestamp) -> Option<Todo> {
    match stage {
        Stage::Deleting => Some(Todo::Destroy),
        Stage::Planned | Stage::Made if expires_at <= now => Some(Todo::StartDeletion),
        Stage::Planned => Some(Todo::Make),
        Stage::Made => None,
    }
}

/// Whether a scheduled snapshot is due. `last` is when the last scheduled one was made, or the volume if there is none.
pub fn snapshot_due(now: Timestamp, policy: &VolumePolicy, last: Timestamp) -> bool {
    policy.scheduled_snapshots && now.since(last) >= SNAPSHOT_EVERY
}

/// Space on a volume, as its guest or its host reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Bytes in use.
    pub used: u64,
    /// Bytes that there are.
    pub total: u64,
}

/// The size that a volume of `size` shall have by itself, if it shall be larger. `seen` is the `total` that was reported when it
/// last grew by itself, if that is known: as long as it is no larger, that growth has not arrived (a virtual machine sees it at
/// its next start), and another one would not help.
pub fn auto_extended(
    policy: &VolumePolicy,
    size: ByteSize,
    reported: Use,
    seen: Option<u64>,
) -> Option<ByteSize> {
    let auto = policy.auto_extend.as_ref()?;
    if seen.is_some_and(|seen| reported.total <= seen) {
        return None;
    }
    let percent = u128::from(reported.used) * 100;
    if reported.total == 0
        || percent < u128::from(auto.threshold_percent) * u128::from(reported.total)
    {
        return None;
    }
    let larger = ByteSize(size.0.saturating_add(auto.increment.0)).min(auto.limit);
    (larger > size).then_some(larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn volume(stage: Stage, made: u64, size: u64) -> VolumeNow {
        VolumeNow {
            stage,
            size: ByteSize(size),
            made: ByteSize(made),
            destroy_at: None,
            import_until: None,
            moving: None,
            held: false,
        }
    }

    #[test]
    fn what_is_wanted_is_done() {
        let now = Timestamp(100);
        let free = |stage, made, size| todo(now, &volume(stage, made, size));
        assert_eq!(free(Stage::Planned, 0, 9), Some(Todo::Make));
        assert_eq!(free(Stage::Made, 9, 9), None);
        assert_eq!(free(Stage::Made, 8, 9), Some(Todo::Extend));
        assert_eq!(free(Stage::Deleting, 9, 9), Some(Todo::Destroy));
        // A builder's driver makes its own volume, whoever extends it.
        let held = |stage, made| {
            let held = VolumeNow {
                held: true,
                ..volume(stage, made, 9)
            };
            todo(now, &held)
        };
        assert_eq!(held(Stage::Planned, 0), None);
        assert_eq!(held(Stage::Made, 8), Some(Todo::Extend));
    }

    #[test]
    fn nothing_goes_before_its_time_and_nothing_is_made_that_is_about_to_go() {
        for (stage, made) in [(Stage::Planned, 0), (Stage::Made, 8), (Stage::Made, 9)] {
            let at = |now, destroy_at, held| {
                let volume = VolumeNow {
                    destroy_at: Some(Timestamp(destroy_at)),
                    held,
                    ..volume(stage, made, 9)
                };
                todo(Timestamp(now), &volume)
            };
            assert_eq!(at(99, 100, false), None, "{stage:?}");
            assert_eq!(at(100, 100, false), Some(Todo::StartDeletion), "{stage:?}");
            assert_eq!(at(100, 100, true), None, "{stage:?} while attached");
        }
    }

    #[test]
    fn what_is_sent_is_waited_for_and_goes_when_nobody_goes_on_with_it() {
        let at = |stage, now, destroy_at: Option<u64>| {
            let volume = VolumeNow {
                import_until: Some(Timestamp(100)),
                destroy_at: destroy_at.map(Timestamp),
                ..volume(stage, 0, 9)
            };
            todo(Timestamp(now), &volume)
        };
        assert_eq!(at(Stage::Planned, 99, None), Some(Todo::Look));
        assert_eq!(at(Stage::Planned, 100, None), Some(Todo::StartDeletion));
        assert_eq!(at(Stage::Planned, 50, Some(60)), None);
        assert_eq!(at(Stage::Planned, 60, Some(60)), Some(Todo::StartDeletion));
        assert_eq!(
            at(Stage::Planned, 100, Some(200)),
            Some(Todo::StartDeletion)
        );
        assert_eq!(
            at(Stage::Made, 100, None),
            Some(Todo::Extend),
            "it is whole"
        );
        assert_eq!(at(Stage::Deleting, 1, None), Some(Todo::Destroy));
    }

    #[test]
    fn a_move_is_finished_and_cleared_before_anything_else() {
        for (step, expected) in [
            (MoveStep::Sending, Some(Todo::Send)),
            (MoveStep::CatchingUp, Some(Todo::Send)),
            (MoveStep::Clearing, Some(Todo::Clear)),
            (MoveStep::Halted, None),
        ] {
            for destroy_at in [None, Some(Timestamp(1))] {
                let moving = VolumeNow {
                    moving: Some(step),
                    destroy_at,
                    ..volume(Stage::Made, 9, 9)
                };
                assert_eq!(todo(Timestamp(5), &moving), expected);
            }
        }
    }

    #[test]
    fn only_a_copy_that_is_seen_to_be_in_another_pool_may_be_destroyed() {
        for (volume, copy, expected) in [
            (Some("x"), Some("y"), OtherCopy::Apart),
            (Some("x"), Some("x"), OtherCopy::TheVolume),
            (None, Some("x"), OtherCopy::Unknown),
            (Some("x"), None, OtherCopy::Unknown),
            (None, None, OtherCopy::Unknown),
        ] {
            assert_eq!(other_copy(volume, copy), expected, "{volume:?} {copy:?}");
        }
    }

    #[test]
    fn a_snapshot_is_kept_until_its_time_is_over() {
        for (stage, now, expected) in [
            (Stage::Planned, 4, Some(Todo::Make)),
            (Stage::Made, 4, None),
            (Stage::Made, 5, Some(Todo::StartDeletion)),
            (Stage::Planned, 5, Some(Todo::StartDeletion)),
            (Stage::Deleting, 4, Some(Todo::Destroy)),
        ] {
            assert_eq!(snapshot_todo(Timestamp(now), stage, Timestamp(5)), expected);
        }
    }

    #[test]
    fn a_snapshot_is_due_a_day_after_the_last_one() {
        let day = 24 * 3600 * 1000;
        let on = VolumePolicy::default();
        let off = VolumePolicy {
            scheduled_snapshots: false,
            ..on
        };
        for (now, last, due) in [
            (day, 0, true),
            (day - 1, 0, false),
            (day * 9, day, true),
            // A clock that was set back makes no snapshots all the time.
            (0, day, false),
        ] {
            assert_eq!(snapshot_due(Timestamp(now), &on, Timestamp(last)), due);
            assert!(!snapshot_due(Timestamp(now), &off, Timestamp(last)));
        }
        assert_eq!(on.expires(Timestamp(7)), Timestamp(7 + 5 * day));
    }

    #[test]
    fn a_volume_grows_from_its_threshold_on_and_up_to_its_limit() {
        let policy = VolumePolicy {
            auto_extend: Some(AutoExtend {
                threshold_percent: 80,
                increment: ByteSize::gib(2),
                limit: ByteSize::gib(15),
            }),
            ..VolumePolicy::default()
        };
        let grown = |size, used, total| {
            let reported = Use { used, total };
            auto_extended(&policy, ByteSize::gib(size), reported, None).map(|new| new.0 / GIB)
        };
        assert_eq!(grown(10, 79, 100), None);
        assert_eq!(grown(10, 80, 100), Some(12));
        assert_eq!(grown(14, 90, 100), Some(15), "no further than its limit");
        assert_eq!(grown(15, 100, 100), None);
        assert_eq!(grown(20, 100, 100), None, "never smaller");
        assert_eq!(grown(10, 0, 0), None, "nothing is known yet");
        assert_eq!(grown(10, u64::MAX, u64::MAX), Some(12));
        let fixed = VolumePolicy::default();
        let full = Use { used: 1, total: 1 };
        assert_eq!(auto_extended(&fixed, ByteSize::gib(1), full, None), None);
    }

    #[test]
    fn a_volume_grows_once_for_each_growth_that_is_seen() {
        let policy = VolumePolicy {
            auto_extend: Some(AutoExtend {
                threshold_percent: 80,
                increment: ByteSize::gib(2),
                limit: ByteSize::gib(500),
            }),
            ..VolumePolicy::default()
        };
        let (mut size, mut seen) = (ByteSize::gib(10), None);
        let mut look = |total: u64| {
            let reported = Use { used: total, total };
            let larger = auto_extended(&policy, size, reported, seen);
            if let Some(larger) = larger {
                (size, seen) = (larger, Some(total));
            }
            larger.map(|larger| larger.0 / GIB)
        };
        assert_eq!(look(10 * GIB), Some(12));
        for _ in 0..100 {
            assert_eq!(look(10 * GIB), None, "its machine does not see it yet");
        }
        assert_eq!(look(12 * GIB), Some(14));
        assert_eq!(look(12 * GIB), None);
    }

    #[test]
    fn policies_are_bounded() {
        let auto = AutoExtend {
            threshold_percent: 80,
            increment: ByteSize::gib(1),
            limit: ByteSize::gib(10),
        };
        let policy = |days, auto_extend| VolumePolicy {
            snapshot_retention_days: days,
            scheduled_snapshots: true,
            auto_extend,
        };
        for good in [policy(1, None), policy(60, Some(auto))] {
            assert_eq!(good.check(), Ok(()));
        }
        let with = |change: fn(&mut AutoExtend)| {
            let mut auto = auto;
            change(&mut auto);
            policy(5, Some(auto))
        };
        for bad in [
            policy(0, None),
            policy(61, None),
            with(|auto| auto.threshold_percent = 0),
            with(|auto| auto.threshold_percent = 100),
            with(|auto| auto.increment = ByteSize(1)),
            with(|auto| auto.limit = ByteSize(1)),
            with(|auto| auto.limit = ByteSize(u64::MAX)),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
