//! The pool's accounting: a host's pool is never promised beyond its capacity. The sum is taken and the row is written in
//! one transaction that holds the write lock from its start.
//!
//! A volume is promised its size, a snapshot what it stores. One that moves is promised its size on both hosts.

use super::codec::Reader;
use super::unavailable;
use crate::error::{StoreError, What};
use slipway_core::id::HostId;
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
