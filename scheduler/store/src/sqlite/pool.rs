//! The pool's accounting: a host's pool is never promised beyond its capacity. The sum is taken and the row is written in
//! one transaction that holds the write lock from its start.
//!
//! A volume is promised its size, a snapshot what it stores. One that moves is promised its size on both hosts.

use super::codec::Reader;
use super::unavailable;
use crate::error::{StoreError, What};
use slipway_core::ceilings::{PoolShare, PoolUse};
use slipway_core::id::{HostId, OrgId};
use slipway_core::units::ByteSize;
use sqlx::{Sqlite, Transaction};

/// What is promised of a host's pool, as an expression; the argument is the host's id.
macro_rules! promised {
    ($host:literal) => {
        concat!(
            "(SELECT coalesce(sum(size), 0) FROM volumes WHERE host_id = ",
            $host,
            ") + (SELECT coalesce(sum(size), 0) FROM volumes WHERE copy_host = ",
            $host,
            ") + (SELECT coalesce(sum(copy_reserve), 0) FROM volumes WHERE copy_source = ",
            $host,
            ") + (SELECT coalesce(sum(stored), 0) FROM snapshots WHERE host_id = ",
            $host,
            ")"
        )
    };
}
pub(super) use promised;

/// Refuses to promise `more` of a host's pool than there is. The row that takes it is written by the same transaction.
pub(super) async fn promise(
    tx: &mut Transaction<'_, Sqlite>,
    host: &HostId,
    more: ByteSize,
) -> Result<(), StoreError> {
    let row = sqlx::query(concat!(
        "SELECT pool_capacity, ",
        promised!("h.id"),
        " AS promised FROM hosts h WHERE h.id = ?"
    ))
    .bind(host.as_str())
    .fetch_optional(&mut **tx)
    .await
    .map_err(unavailable("read a pool"))?
    .ok_or(StoreError::NotFound(What::Host))?;
    let row = Reader(&row);
    let free_bytes = row
        .u64("pool_capacity")?
        .saturating_sub(row.u64("promised")?);
    if more.0 > free_bytes {
        return Err(StoreError::PoolFull {
            free_bytes,
            wanted_bytes: more.0,
        });
    }
    Ok(())
}

/// What an org asks of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// The cache of a builder.
    Cache,
    /// Anything else.
    More,
}

/// Refuses to promise an org more than its share of a host's pool, and of all pools. The row that takes it is written by the
/// same transaction.
pub(super) async fn check_share(
    tx: &mut Transaction<'_, Sqlite>,
    share: Option<&PoolShare>,
    org: &OrgId,
    host: &HostId,
    (asks, more): (Asks, ByteSize),
) -> Result<(), StoreError> {
    let Some(share) = share else {
        return Ok(());
    };
    let row = sqlx::query(concat!(
        "SELECT h.pool_capacity, ",
        promised!("?2"),
        " AS promised, ",
        "(SELECT coalesce(sum(size), 0) FROM volumes WHERE org_id = ?1 AND host_id = ?2) \
         + (SELECT coalesce(sum(size), 0) FROM volumes WHERE org_id = ?1 AND copy_host = ?2) \
         + (SELECT coalesce(sum(stored), 0) FROM snapshots WHERE org_id = ?1 AND host_id = ?2) \
         AS of_pool, \
         (SELECT coalesce(sum(size), 0) FROM volumes WHERE org_id = ?1) \
         + (SELECT coalesce(sum(size), 0) FROM volumes WHERE org_id = ?1 AND copy_host IS NOT NULL) \
         + (SELECT coalesce(sum(stored), 0) FROM snapshots WHERE org_id = ?1) \
         AS of_all \
         FROM hosts h WHERE h.id = ?2",
    ))
    .bind(org.as_str())
    .bind(host.as_str())
    .fetch_optional(&mut **tx)
    .await
    .map_err(unavailable("read what an org has of a pool"))?
    .ok_or(StoreError::NotFound(What::Host))?;
    let row = Reader(&row);
    let used = PoolUse {
        capacity: row.size("pool_capacity")?,
        promised: row.size("promised")?,
        of_pool: row.size("of_pool")?,
        of_all: row.size("of_all")?,
    };
    match asks {
        Asks::Cache => share.check_cache(&used, more)?,
        Asks::More => share.check(&used, more)?,
    }
    Ok(())
}
