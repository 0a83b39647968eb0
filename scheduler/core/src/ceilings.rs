//! The most that an installation lets any org have, whatever the org itself asks for. The operator sets it; the org's own
//! limits, which its administrators set, stay below.
//!
//! Must not know: what is there to give, or how it is counted.

use crate::quota::{
    BuildRetention, BuilderSize, ORG_BUILD_EVENTS_DEFAULT, ORG_BUILDER_CPU_MILLIS_DEFAULT,
    ORG_BUILDER_MEMORY_DEFAULT, ORG_BUILDER_VOLUME_DEFAULT, ORG_BUILDS_AGE_CEILING_DEFAULT,
    ORG_BUILDS_KEPT_CEILING_DEFAULT, ORG_POOL_DEFAULT, ORG_POOL_PERCENT_DEFAULT,
    POOL_RESERVE_PERCENT, QuotaError, check_build_retention, check_builder_size,
};
use crate::units::ByteSize;

/// The most that any org may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceilings {
    /// Of one builder.
    pub builder: BuilderSize,
    /// How many ended builds are kept at most, and for how long.
    pub retention: BuildRetention,
    /// Events of all of an org's builds together; the oldest builds are deleted beyond it.
    pub build_events: ByteSize,
    /// Of pools.
    pub pool: PoolShare,
}

/// How much of the pools one org may be promised: volumes, snapshots and copies of moves together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolShare {
    /// Of all pools together.
    pub bytes: ByteSize,
    /// Of any one host's pool, in percent.
    pub percent: u32,
    /// A builder's cache of up to this size is promised whatever else the org has, if the pool has room.
    pub cache: ByteSize,
}

impl Default for PoolShare {
    fn default() -> Self {
        Self {
            bytes: ORG_POOL_DEFAULT,
            percent: ORG_POOL_PERCENT_DEFAULT,
            cache: ByteSize::gib(50),
        }
    }
}

impl Default for Ceilings {
    fn default() -> Self {
        Self {
            builder: BuilderSize {
                cpu_millis: ORG_BUILDER_CPU_MILLIS_DEFAULT,
                memory: ORG_BUILDER_MEMORY_DEFAULT,
                volume: ORG_BUILDER_VOLUME_DEFAULT,
            },
            retention: BuildRetention {
                count: ORG_BUILDS_KEPT_CEILING_DEFAULT,
                age: ORG_BUILDS_AGE_CEILING_DEFAULT,
            },
            build_events: ORG_BUILD_EVENTS_DEFAULT,
            pool: PoolShare::default(),
        }
    }
}

impl Ceilings {
    /// Is `size` one that a builder may have here?
    ///
    /// # Errors
    /// The first dimension that is out of bounds.
    pub fn check_builder_size(&self, size: &BuilderSize) -> Result<(), QuotaError> {
        check_builder_size(size)?;
        let most = &self.builder;
        if size.volume > most.volume {
            return Err(QuotaError::VolumeCeiling {
                asked: size.volume,
                most: most.volume,
            });
        }
        if size.memory > most.memory {
            return Err(QuotaError::MemoryCeiling {
                asked: size.memory,
                most: most.memory,
            });
        }
        if size.cpu_millis > most.cpu_millis {
            return Err(QuotaError::CpuCeiling {
                asked: size.cpu_millis,
                most: most.cpu_millis,
            });
        }
        Ok(())
    }

    /// May an org keep its builds like this here?
    ///
    /// # Errors
    /// [`QuotaError::BuildsKept`], [`QuotaError::BuildsAge`] or [`QuotaError::RetentionCeiling`].
    pub fn check_build_retention(&self, kept: &BuildRetention) -> Result<(), QuotaError> {
        check_build_retention(kept)?;
        if kept.count > self.retention.count || kept.age > self.retention.age {
            return Err(QuotaError::RetentionCeiling {
                count: self.retention.count,
                age: self.retention.age,
            });
        }
        Ok(())
    }

    /// What a builder gets of the processor and memory it was asked for: no more than the ceilings, which may have been
    /// lowered since. Its volume has the size that it was made with.
    #[must_use]
    pub fn cut_size(&self, asked: BuilderSize) -> BuilderSize {
        BuilderSize {
            cpu_millis: asked.cpu_millis.min(self.builder.cpu_millis),
            memory: asked.memory.min(self.builder.memory),
            volume: asked.volume,
        }
    }

    /// What an org keeps of its builds, no more than the ceilings.
    #[must_use]
    pub fn cut_retention(&self, asked: BuildRetention) -> BuildRetention {
        BuildRetention {
            count: asked.count.min(self.retention.count),
            age: asked.age.min(self.retention.age),
        }
    }
}

/// What there is of a pool, and what one org has of it and of all pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolUse {
    /// What the pool may promise.
    pub capacity: ByteSize,
    /// What is promised of it to all orgs.
    pub promised: ByteSize,
    /// What the org is promised of it.
    pub of_pool: ByteSize,
    /// What the org is promised of all pools.
    pub of_all: ByteSize,
}

impl PoolShare {
    /// May an org be promised `more` of a pool?
    ///
    /// # Errors
    /// [`QuotaError::PoolBytes`], [`QuotaError::PoolPercent`] or [`QuotaError::PoolReserve`].
    pub fn check(&self, used: &PoolUse, more: ByteSize) -> Result<(), QuotaError> {
        let of_all = used.of_all.0.saturating_add(more.0);
        if of_all > self.bytes.0 {
            return Err(QuotaError::PoolBytes {
                asked: more,
                have: used.of_all,
                most: self.bytes,
            });
        }
        let of_pool = u128::from(used.of_pool.0.saturating_add(more.0));
        if of_pool * 100 > u128::from(used.capacity.0) * u128::from(self.percent) {
            return Err(QuotaError::PoolPercent {
                asked: more,
                have: used.of_pool,
                percent: self.percent,
            });
        }
        let promised = used.promised.0.saturating_add(more.0);
        let left = u128::from(used.capacity.0.saturating_sub(promised));
        let percent = POOL_RESERVE_PERCENT.min(100_u32.saturating_sub(self.percent));
        let reserve = u128::from(used.capacity.0) * u128::from(percent);
        if left * 100 < reserve && left < of_pool {
            return Err(QuotaError::PoolReserve {
                asked: more,
                have: used.of_pool,
            });
        }
        Ok(())
    }

    /// May an org be promised a cache of this size for a builder?
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_cache(&self, used: &PoolUse, size: ByteSize) -> Result<(), QuotaError> {
        if size <= self.cache {
            return Ok(());
        }
        self.check(used, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const GOOD: BuilderSize = BuilderSize {
        cpu_millis: 2000,
        memory: ByteSize::gib(4),
        volume: ByteSize::gib(50),
    };

    #[test]
    fn no_org_gets_a_builder_above_the_ceilings() {
        let ceilings = Ceilings::default();
        assert_eq!(ceilings.check_builder_size(&GOOD), Ok(()));
        assert_eq!(ceilings.check_builder_size(&ceilings.builder), Ok(()));
        for bad in [
            BuilderSize {
                memory: ByteSize(1 << 50),
                ..GOOD
            },
            BuilderSize {
                cpu_millis: 4_000_000_000,
                ..GOOD
            },
            BuilderSize {
                volume: ByteSize(ceilings.builder.volume.0 + 1),
                ..GOOD
            },
            BuilderSize {
                memory: ByteSize(1),
                ..GOOD
            },
        ] {
            assert!(ceilings.check_builder_size(&bad).is_err(), "{bad:?}");
        }
        let cut = ceilings.cut_size(BuilderSize {
            cpu_millis: 4_000_000_000,
            memory: ByteSize(1 << 50),
            ..GOOD
        });
        assert_eq!(ceilings.check_builder_size(&cut), Ok(()));
    }

    #[test]
    fn no_org_keeps_more_builds_than_the_ceilings() {
        let ceilings = Ceilings::default();
        let most = ceilings.retention;
        assert_eq!(ceilings.check_build_retention(&most), Ok(()));
        for bad in [
            BuildRetention {
                count: most.count + 1,
                ..most
            },
            BuildRetention {
                age: most.age + Duration::from_millis(1),
                ..most
            },
            BuildRetention { count: 0, ..most },
        ] {
            assert!(ceilings.check_build_retention(&bad).is_err(), "{bad:?}");
        }
        let cut = ceilings.cut_retention(BuildRetention {
            count: u32::MAX,
            age: Duration::MAX,
        });
        assert_eq!(cut, most);
    }

    #[test]
    fn no_org_is_promised_more_than_its_share_of_a_pool() {
        let share = PoolShare {
            bytes: ByteSize::gib(100),
            percent: 50,
            cache: ByteSize::gib(10),
        };
        let used = |of_pool, of_all| PoolUse {
            capacity: ByteSize::gib(80),
            promised: ByteSize::gib(of_pool),
            of_pool: ByteSize::gib(of_pool),
            of_all: ByteSize::gib(of_all),
        };
        let gib = ByteSize::gib;
        assert_eq!(share.check(&used(30, 30), gib(10)), Ok(()));
        assert!(share.check(&used(31, 31), gib(10)).is_err(), "the pool");
        assert!(share.check(&used(0, 91), gib(10)).is_err(), "in all");
        assert!(share.check(&used(0, 0), ByteSize(u64::MAX)).is_err());
        // A builder of the usual size is had in any case; a larger one counts.
        assert_eq!(share.check_cache(&used(40, 100), gib(10)), Ok(()));
        assert!(share.check_cache(&used(40, 40), gib(11)).is_err());
    }

    /// However many orgs act together, each takes as much as it is given: something is left.
    #[test]
    fn no_number_of_orgs_uses_a_pool_up_together() {
        let capacity = 1_000_000;
        let share = PoolShare {
            bytes: ByteSize(u64::MAX),
            percent: 75,
            cache: ByteSize(0),
        };
        let most = |percent: u32, promised: u64| {
            let share = PoolShare { percent, ..share };
            let used = PoolUse {
                capacity: ByteSize(capacity),
                promised: ByteSize(promised),
                of_pool: ByteSize(0),
                of_all: ByteSize(0),
            };
            let fits = |more: &u64| share.check(&used, ByteSize(*more)).is_ok();
            (0..=capacity - promised).rev().find(fits).unwrap_or(0)
        };
        let (mut promised, mut takes) = (0, Vec::new());
        for _ in 0..5 {
            let takes_now = most(75, promised);
            promised += takes_now;
            takes.push(takes_now);
        }
        assert_eq!(takes, [750_000, 150_000, 50_000, 25_000, 12_500]);
        // Where the operator gives all to one, that is had.
        assert_eq!(most(100, 0), capacity);
        assert_eq!(most(95, 0), 950_000);
    }
}
