//! How much one org may ask for.
//!
//! Must not know: what is there to give (that is placement), or how it is counted.

use crate::limits::{BUILDER_IDLE_MIN, BUILDS_RUNNING_MAX, BUILDS_WAITING_MAX};
use crate::units::ByteSize;
use std::time::Duration;

/// Builders one org may have, over all regions and architectures. One more is refused.
pub const ORG_BUILDERS_MAX: u32 = 16;
/// Smallest cache volume: less holds no base image and its build.
pub const BUILDER_VOLUME_MIN: ByteSize = ByteSize::gib(1);
/// Largest cache volume of a builder.
pub const BUILDER_VOLUME_MAX: ByteSize = ByteSize::gib(2048);
/// Least memory dockerd and a build step can live with.
pub const BUILDER_MEMORY_MIN: ByteSize = ByteSize::mib(256);
/// Fewest processor thousandths a builder may have.
pub const BUILDER_CPU_MILLIS_MIN: u32 = 100;
/// Longest idle time: a month.
pub const BUILDER_IDLE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Processes and threads one builder may have.
pub const BUILDER_PIDS_MAX: u32 = 16_384;
/// Builds, with their logs, that are kept of an org that says nothing else; the newest ones.
pub const ORG_BUILDS_KEPT_DEFAULT: u32 = 1_000;
/// Fewest builds an org may keep.
pub const ORG_BUILDS_KEPT_MIN: u32 = 1;
/// Most builds an org may keep.
pub const ORG_BUILDS_KEPT_MAX: u32 = 100_000;
/// How long an ended build is kept of an org that says nothing else.
pub const ORG_BUILDS_AGE_DEFAULT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Shortest time an org may keep an ended build: a client that lost its connection can still read how it ended.
pub const ORG_BUILDS_AGE_MIN: Duration = Duration::from_secs(3600);
/// Longest time: ten years.
pub const ORG_BUILDS_AGE_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Volumes of its own one org may have besides its builders' caches, those that wait to be destroyed included. One more is
/// refused.
pub const ORG_VOLUMES_MAX: u32 = 100;
/// Smallest volume that can be asked for.
pub const VOLUME_SIZE_MIN: ByteSize = ByteSize::gib(1);
/// Largest volume that can be asked for.
pub const VOLUME_SIZE_MAX: ByteSize = ByteSize::gib(2048);
/// Snapshots one volume may have. One more is refused; a scheduled one waits until an older one has gone.
pub const VOLUME_SNAPSHOTS_MAX: u32 = 100;
/// Days that a snapshot is kept of a volume that says nothing else.
pub const SNAPSHOT_RETENTION_DAYS_DEFAULT: u32 = 5;
/// Fewest days a snapshot may be kept.
pub const SNAPSHOT_RETENTION_DAYS_MIN: u32 = 1;
/// Most days.
pub const SNAPSHOT_RETENTION_DAYS_MAX: u32 = 60;
/// Least use, in percent, from which a volume may grow by itself.
pub const AUTO_EXTEND_PERCENT_MIN: u32 = 1;
/// Greatest.
pub const AUTO_EXTEND_PERCENT_MAX: u32 = 99;
/// Least by which a volume grows at once by itself.
pub const AUTO_EXTEND_STEP_MIN: ByteSize = ByteSize::mib(256);

/// Processor thousandths of one builder that any org may ask for, unless the operator says otherwise.
pub const ORG_BUILDER_CPU_MILLIS_DEFAULT: u32 = 32_000;
/// Memory of one builder that any org may ask for, unless the operator says otherwise.
pub const ORG_BUILDER_MEMORY_DEFAULT: ByteSize = ByteSize::gib(128);
/// Cache volume of one builder that any org may ask for, unless the operator says otherwise.
pub const ORG_BUILDER_VOLUME_DEFAULT: ByteSize = ByteSize::gib(500);
/// Ended builds that any org may keep, unless the operator says otherwise.
pub const ORG_BUILDS_KEPT_CEILING_DEFAULT: u32 = 10_000;
/// How long any org may keep ended builds, unless the operator says otherwise: a year.
pub const ORG_BUILDS_AGE_CEILING_DEFAULT: Duration = Duration::from_secs(366 * 24 * 3600);
/// Bytes of the events of all of an org's builds, unless the operator says otherwise. The oldest ended builds are deleted
/// beyond it, and when that is not enough a new build is refused.
pub const ORG_BUILD_EVENTS_DEFAULT: ByteSize = ByteSize::gib(1);
/// What one org may be promised of all pools together (volumes, snapshots, copies of moves), unless the operator says otherwise.
pub const ORG_POOL_DEFAULT: ByteSize = ByteSize::gib(4096);
/// What one org may be promised of any one host's pool, in percent, unless the operator says otherwise. A builder's cache of
/// the usual size is promised in any case.
pub const ORG_POOL_PERCENT_DEFAULT: u32 = 75;
/// The last part of a host's pool, in percent, into which an org grows only as far as it leaves others as much as it has itself. So no
/// number of orgs uses a pool up together. Less where the operator lets one org have more than the rest of this.
pub const POOL_RESERVE_PERCENT: u32 = 10;
/// Apps one org may have. One more is refused.
pub const ORG_APPS_MAX: u32 = 1_000;
/// Good tokens one org may have. One more is refused.
pub const ORG_TOKENS_MAX: u32 = 200;
/// Revoked and expired tokens of an org that are kept to be shown. The oldest go when a new token is made.
pub const ORG_TOKENS_ENDED_KEPT: u32 = 200;
/// Registry credentials one org may have. One more is refused.
pub const ORG_CREDENTIALS_MAX: u32 = 100;
/// Builds of one org that have not ended, over all its builders. One more is refused.
pub const ORG_BUILDS_UNDER_WAY_MAX: u32 = 256;
/// Builds of one builder that have not ended: those that it lets run and wait. One more is refused.
pub const BUILDER_BUILDS_UNDER_WAY_MAX: u32 = 72;

const _: () = assert!(ORG_BUILDS_KEPT_DEFAULT <= ORG_BUILDS_KEPT_CEILING_DEFAULT);
const _: () = assert!(ORG_BUILDS_KEPT_CEILING_DEFAULT <= ORG_BUILDS_KEPT_MAX);
const _: () = assert!(ORG_BUILDS_AGE_CEILING_DEFAULT.as_secs() <= ORG_BUILDS_AGE_MAX.as_secs());
const _: () = assert!(ORG_BUILDER_VOLUME_DEFAULT.0 <= BUILDER_VOLUME_MAX.0);
const _: () = assert!(ORG_POOL_PERCENT_DEFAULT <= 100);
const _: () =
    assert!(BUILDER_BUILDS_UNDER_WAY_MAX as usize == BUILDS_RUNNING_MAX + BUILDS_WAITING_MAX);
const _: () = assert!(VOLUME_SIZE_MIN.0 < VOLUME_SIZE_MAX.0);
const _: () = assert!(SNAPSHOT_RETENTION_DAYS_MAX < VOLUME_SNAPSHOTS_MAX);
const _: () = assert!(ORG_BUILDS_KEPT_DEFAULT <= ORG_BUILDS_KEPT_MAX);
const _: () = assert!(ORG_BUILDS_AGE_MIN.as_secs() < ORG_BUILDS_AGE_DEFAULT.as_secs());
const _: () = assert!(BUILDER_VOLUME_MIN.0 < BUILDER_VOLUME_MAX.0);

/// What each builder of an org gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuilderSize {
    /// Processor limit in thousandths.
    pub cpu_millis: u32,
    /// Memory limit.
    pub memory: ByteSize,
    /// Size of the cache volume: a hard cap.
    pub volume: ByteSize,
}

/// How many ended builds of an org are kept, and for how long. One that is over either is deleted with its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildRetention {
    /// The newest so many.
    pub count: u32,
    /// Since their end.
    pub age: Duration,
}

impl Default for BuildRetention {
    fn default() -> Self {
        Self {
            count: ORG_BUILDS_KEPT_DEFAULT,
            age: ORG_BUILDS_AGE_DEFAULT,
        }
    }
}

/// The request is over what an org may have; the caller's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// Too many builders.
    #[error("the org has {have} builders, and may have {ORG_BUILDERS_MAX}")]
    Builders {
        /// How many it has.
        have: u32,
    },
    /// The volume is too small or too large.
    #[error(
        "a builder's volume of {0} is not between {BUILDER_VOLUME_MIN} and {BUILDER_VOLUME_MAX}"
    )]
    Volume(ByteSize),
    /// Too little memory.
    #[error("a builder's memory of {0} is less than {BUILDER_MEMORY_MIN}")]
    Memory(ByteSize),
    /// Too little processor.
    #[error("{0} thousandths of a processor are fewer than {BUILDER_CPU_MILLIS_MIN}")]
    Cpu(u32),
    /// The idle time is out of bounds.
    #[error("an idle time of {0:?} is not between {BUILDER_IDLE_MIN:?} and {BUILDER_IDLE_MAX:?}")]
    Idle(Duration),
    /// Too few or too many builds to keep.
    #[error("{0} builds to keep are not between {ORG_BUILDS_KEPT_MIN} and {ORG_BUILDS_KEPT_MAX}")]
    BuildsKept(u32),
    /// The time to keep builds is out of bounds.
    #[error(
        "a time to keep builds of {0:?} is not between {ORG_BUILDS_AGE_MIN:?} and {ORG_BUILDS_AGE_MAX:?}"
    )]
    BuildsAge(Duration),
    /// Too many volumes.
    #[error("the org has {have} volumes, and may have {ORG_VOLUMES_MAX}")]
    Volumes {
        /// How many it has.
        have: u32,
    },
    /// A volume is too small or too large.
    #[error("a volume of {0} is not between {VOLUME_SIZE_MIN} and {VOLUME_SIZE_MAX}")]
    VolumeSize(ByteSize),
    /// Too many snapshots.
    #[error("the volume has {have} snapshots, and may have {VOLUME_SNAPSHOTS_MAX}")]
    Snapshots {
        /// How many it has.
        have: u32,
    },
    /// The time to keep snapshots is out of bounds.
    #[error(
        "{0} days to keep snapshots are not between {SNAPSHOT_RETENTION_DAYS_MIN} and {SNAPSHOT_RETENTION_DAYS_MAX}"
    )]
    SnapshotRetention(u32),
    /// The use from which a volume grows is out of bounds.
    #[error(
        "a threshold of {0}% is not between {AUTO_EXTEND_PERCENT_MIN}% and {AUTO_EXTEND_PERCENT_MAX}%"
    )]
    AutoExtendThreshold(u32),
    /// A cache volume above what the operator allows.
    #[error(
        "a builder's volume of {asked} is more than the {most} that the operator of this farm allows"
    )]
    VolumeCeiling {
        /// What was asked for.
        asked: ByteSize,
        /// The most.
        most: ByteSize,
    },
    /// Memory above what the operator allows.
    #[error(
        "a builder's memory of {asked} is more than the {most} that the operator of this farm allows"
    )]
    MemoryCeiling {
        /// What was asked for.
        asked: ByteSize,
        /// The most.
        most: ByteSize,
    },
    /// Processor above what the operator allows.
    #[error(
        "{asked} thousandths of a processor are more than the {most} that the operator of this farm allows"
    )]
    CpuCeiling {
        /// What was asked for.
        asked: u32,
        /// The most.
        most: u32,
    },
    /// More builds kept, or longer, than the operator allows.
    #[error("the operator of this farm allows {count} builds to be kept, for {} days", age.as_secs() / 86_400)]
    RetentionCeiling {
        /// How many at most.
        count: u32,
        /// How long at most.
        age: Duration,
    },
    /// More of all pools than the org may have.
    #[error(
        "the org has {have} of volumes and snapshots and may have {most}: {asked} more are too much"
    )]
    PoolBytes {
        /// What was asked for.
        asked: ByteSize,
        /// What it has.
        have: ByteSize,
        /// The most.
        most: ByteSize,
    },
    /// More of one pool than the org may have.
    #[error(
        "the org has {have} of its host's pool and may have {percent}% of it: {asked} more are too much"
    )]
    PoolPercent {
        /// What was asked for.
        asked: ByteSize,
        /// What it has of that pool.
        have: ByteSize,
        /// The most, in percent of the pool.
        percent: u32,
    },
    /// What is left of a host's pool is for orgs that have less of it.
    #[error(
        "what is left of the host's pool is for orgs that have less of it than {have}: {asked} more are too much"
    )]
    PoolReserve {
        /// What was asked for.
        asked: ByteSize,
        /// What it has of that pool.
        have: ByteSize,
    },
    /// Too many apps.
    #[error("the org has {have} apps, and may have {ORG_APPS_MAX}")]
    Apps {
        /// How many it has.
        have: u32,
    },
    /// Too many tokens that are good.
    #[error("the org has {have} tokens that are good, and may have {ORG_TOKENS_MAX}")]
    Tokens {
        /// How many it has.
        have: u32,
    },
    /// Too many registry credentials.
    #[error("the org has {have} registry credentials, and may have {ORG_CREDENTIALS_MAX}")]
    Credentials {
        /// How many it has.
        have: u32,
    },
    /// Too many builds under way.
    #[error("{have} builds of the org have not ended, and {ORG_BUILDS_UNDER_WAY_MAX} may")]
    BuildsUnderWay {
        /// How many there are.
        have: u32,
    },
    /// Too many builds under way on one builder.
    #[error("{have} builds of the builder have not ended, and {BUILDER_BUILDS_UNDER_WAY_MAX} may")]
    BuilderBuilds {
        /// How many there are.
        have: u32,
    },
    /// Too much is kept of builds, and none that has ended is left to delete.
    #[error("the events of the org's builds take {have}, and may take {most}")]
    BuildEvents {
        /// What they take.
        have: ByteSize,
        /// The most.
        most: ByteSize,
    },
    /// The steps in which a volume grows are out of bounds.
    #[error("an increment of {0} is not between {AUTO_EXTEND_STEP_MIN} and {VOLUME_SIZE_MAX}")]
    AutoExtendIncrement(ByteSize),
}

impl QuotaError {
    /// What the caller may do about it, if there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::PoolReserve { .. } => Some(
                "ask for less, destroy volumes and snapshots that are not needed, or have the operator add space",
            ),
            Self::Volumes { .. } | Self::PoolBytes { .. } | Self::PoolPercent { .. } => Some(
                "destroy volumes and snapshots that are not needed: `slipway volumes destroy ID --now`",
            ),
            Self::Snapshots { .. } => {
                Some("delete one that is not needed: `slipway volumes snapshots delete ID`")
            }
            Self::VolumeSize(_)
            | Self::SnapshotRetention(_)
            | Self::AutoExtendThreshold(_)
            | Self::AutoExtendIncrement(_) => Some("choose one within these bounds"),
            Self::VolumeCeiling { .. } | Self::MemoryCeiling { .. } | Self::CpuCeiling { .. } => {
                Some("ask for less, or have the operator raise `limits` in the server's settings")
            }
            Self::RetentionCeiling { .. } => {
                Some("keep less, or have the operator raise `limits` in the server's settings")
            }
            Self::Apps { .. } => Some("use an app that there is: `slipway apps list`"),
            Self::Tokens { .. } => {
                Some("revoke one that is not needed: `slipway tokens revoke ID`")
            }
            Self::Credentials { .. } => {
                Some("remove one that is not needed: `slipway registry logout REGISTRY`")
            }
            Self::BuildsUnderWay { .. } | Self::BuilderBuilds { .. } | Self::BuildEvents { .. } => {
                Some(
                    "wait until some builds have ended, or cancel them: `slipway builds cancel ID`",
                )
            }
            Self::Builders { .. }
            | Self::Volume(_)
            | Self::Memory(_)
            | Self::Cpu(_)
            | Self::Idle(_)
            | Self::BuildsKept(_)
            | Self::BuildsAge(_) => None,
        }
    }
}

/// May an org that has `have` of something of which it may have `most` get one more?
///
/// # Errors
/// What `refusal` makes of `have`.
pub fn check_one_more(
    have: u32,
    most: u32,
    refusal: impl FnOnce(u32) -> QuotaError,
) -> Result<(), QuotaError> {
    if have < most {
        Ok(())
    } else {
        Err(refusal(have))
    }
}

/// May an org that has `have` builders get one more?
///
/// # Errors
/// [`QuotaError::Builders`].
pub fn check_one_more_builder(have: u32) -> Result<(), QuotaError> {
    if have < ORG_BUILDERS_MAX {
        Ok(())
    } else {
        Err(QuotaError::Builders { have })
    }
}

/// May an org that has `have` volumes of its own get one more?
///
/// # Errors
/// [`QuotaError::Volumes`].
pub fn check_one_more_volume(have: u32) -> Result<(), QuotaError> {
    if have < ORG_VOLUMES_MAX {
        Ok(())
    } else {
        Err(QuotaError::Volumes { have })
    }
}

/// Is `size` one that a volume may have?
///
/// # Errors
/// [`QuotaError::VolumeSize`].
pub fn check_volume_size(size: ByteSize) -> Result<(), QuotaError> {
    if (VOLUME_SIZE_MIN..=VOLUME_SIZE_MAX).contains(&size) {
        Ok(())
    } else {
        Err(QuotaError::VolumeSize(size))
    }
}

/// May a volume that has `have` snapshots get one more?
///
/// # Errors
/// [`QuotaError::Snapshots`].
pub fn check_one_more_snapshot(have: u32) -> Result<(), QuotaError> {
    if have < VOLUME_SNAPSHOTS_MAX {
        Ok(())
    } else {
        Err(QuotaError::Snapshots { have })
    }
}

/// Is `size` one that a builder may have?
///
/// # Errors
/// The first dimension that is out of bounds.
pub fn check_builder_size(size: &BuilderSize) -> Result<(), QuotaError> {
    if size.volume < BUILDER_VOLUME_MIN || size.volume > BUILDER_VOLUME_MAX {
        return Err(QuotaError::Volume(size.volume));
    }
    if size.memory < BUILDER_MEMORY_MIN {
        return Err(QuotaError::Memory(size.memory));
    }
    if size.cpu_millis < BUILDER_CPU_MILLIS_MIN {
        return Err(QuotaError::Cpu(size.cpu_millis));
    }
    Ok(())
}

/// May an org have this idle time?
///
/// # Errors
/// [`QuotaError::Idle`].
pub fn check_idle(idle: Duration) -> Result<(), QuotaError> {
    if (BUILDER_IDLE_MIN..=BUILDER_IDLE_MAX).contains(&idle) {
        Ok(())
    } else {
        Err(QuotaError::Idle(idle))
    }
}

/// May an org keep its builds like this?
///
/// # Errors
/// [`QuotaError::BuildsKept`] or [`QuotaError::BuildsAge`].
pub fn check_build_retention(retention: &BuildRetention) -> Result<(), QuotaError> {
    if !(ORG_BUILDS_KEPT_MIN..=ORG_BUILDS_KEPT_MAX).contains(&retention.count) {
        return Err(QuotaError::BuildsKept(retention.count));
    }
    if !(ORG_BUILDS_AGE_MIN..=ORG_BUILDS_AGE_MAX).contains(&retention.age) {
        return Err(QuotaError::BuildsAge(retention.age));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_and_each_dimension_is_checked() {
        assert!(check_one_more_builder(ORG_BUILDERS_MAX - 1).is_ok());
        assert!(check_one_more_builder(ORG_BUILDERS_MAX).is_err());
        assert!(check_one_more_volume(ORG_VOLUMES_MAX - 1).is_ok());
        assert!(check_one_more_volume(ORG_VOLUMES_MAX).is_err());
        assert!(check_one_more_snapshot(VOLUME_SNAPSHOTS_MAX - 1).is_ok());
        assert!(check_one_more_snapshot(VOLUME_SNAPSHOTS_MAX).is_err());
        assert!(check_volume_size(VOLUME_SIZE_MAX).is_ok());
        assert!(check_volume_size(ByteSize(VOLUME_SIZE_MIN.0 - 1)).is_err());
        let good = BuilderSize {
            cpu_millis: BUILDER_CPU_MILLIS_MIN,
            memory: BUILDER_MEMORY_MIN,
            volume: BUILDER_VOLUME_MAX,
        };
        assert_eq!(check_builder_size(&good), Ok(()));
        for bad in [
            BuilderSize {
                volume: ByteSize(BUILDER_VOLUME_MAX.0 + 1),
                ..good
            },
            BuilderSize {
                volume: ByteSize(BUILDER_VOLUME_MIN.0 - 1),
                ..good
            },
            BuilderSize {
                memory: ByteSize(0),
                ..good
            },
            BuilderSize {
                cpu_millis: 99,
                ..good
            },
        ] {
            assert!(check_builder_size(&bad).is_err(), "{bad:?}");
        }
        let kept = BuildRetention::default();
        assert_eq!(check_build_retention(&kept), Ok(()));
        assert!(check_build_retention(&BuildRetention { count: 0, ..kept }).is_err());
        assert!(
            check_build_retention(&BuildRetention {
                count: ORG_BUILDS_KEPT_MAX + 1,
                ..kept
            })
            .is_err()
        );
        for age in [
            ORG_BUILDS_AGE_MIN - Duration::from_millis(1),
            ORG_BUILDS_AGE_MAX + Duration::from_millis(1),
        ] {
            assert!(check_build_retention(&BuildRetention { age, ..kept }).is_err());
        }
        assert!(check_idle(BUILDER_IDLE_MIN).is_ok());
        assert!(check_idle(BUILDER_IDLE_MIN - Duration::from_millis(1)).is_err());
        assert!(check_idle(BUILDER_IDLE_MAX + Duration::from_millis(1)).is_err());
    }
}
