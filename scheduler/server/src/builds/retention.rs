//! Deletes builds that are older, or more, than their org keeps, or whose events take too much.
//!
//! Must not know: what a build is, or how the store finds the old ones.

use crate::clock::now;
use crate::limits::{RETENTION_BATCH_MAX, RETENTION_EVERY, RETENTION_FIRST_WAIT, RETENTION_PAUSE};
use slipway_core::ceilings::Ceilings;
use slipway_core::id::OrgId;
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use slipway_store::{Store, StoreError};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Deletes now and then until `cancel`. What it does not get done, it does the next time.
pub(super) async fn keep_deleting(
    store: Arc<dyn Store>,
    most: Ceilings,
    cancel: CancellationToken,
) {
    let mut wait = RETENTION_FIRST_WAIT;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = cancel.cancelled() => return,
        }
        wait = RETENTION_EVERY;
        let swept = tokio::select! {
            swept = sweep(&*store, &most, now()) => swept,
            () = cancel.cancelled() => return,
        };
        match swept {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "old builds deleted"),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "old builds stay for now"
                );
            }
        }
    }
}

/// Deletes all that is too old or too much at `at`, a few at a time so that builds in progress write in between. Gives how
/// many.
pub(super) async fn sweep(
    store: &dyn Store,
    most: &Ceilings,
    at: Timestamp,
) -> Result<u64, StoreError> {
    let mut deleted = 0;
    for org in store.all_orgs().await? {
        let kept = most.cut_retention(org.retention);
        let age = u64::try_from(kept.age.as_millis()).unwrap_or(u64::MAX);
        let before = Timestamp(at.0.saturating_sub(age));
        loop {
            let gone = store
                .delete_old_builds(&org.id, kept.count, before, RETENTION_BATCH_MAX)
                .await?;
            deleted += u64::from(gone);
            if gone < RETENTION_BATCH_MAX {
                break;
            }
            tokio::time::sleep(RETENTION_PAUSE).await;
        }
        deleted += make_room(store, most, &org.id).await?.0;
    }
    Ok(deleted)
}

/// Deletes the oldest ended builds of an org while the events of its builds take more than they may. Gives how many, and what
/// the rest takes.
pub(super) async fn make_room(
    store: &dyn Store,
    most: &Ceilings,
    org: &OrgId,
) -> Result<(u64, ByteSize), StoreError> {
    let mut deleted = 0;
    loop {
        let bytes = store.build_event_bytes(org).await?;
        if bytes <= most.build_events {
            return Ok((deleted, bytes));
        }
        let gone = store
            .delete_old_builds(org, 0, Timestamp(0), RETENTION_BATCH_MAX)
            .await?;
        deleted += u64::from(gone);
        if gone == 0 {
            return Ok((deleted, bytes));
        }
    }
}
