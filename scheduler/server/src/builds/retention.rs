//! Deletes builds that are older, or more, than their org keeps.
//!
//! Must not know: what a build is, or how the store finds the old ones.

use crate::farm::now;
use crate::limits::{RETENTION_BATCH_MAX, RETENTION_EVERY, RETENTION_FIRST_WAIT, RETENTION_PAUSE};
use slipway_core::time::Timestamp;
use slipway_store::{Store, StoreError};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Deletes now and then until `cancel`. What it does not get done, it does the next time.
pub(super) async fn keep_deleting(store: Arc<dyn Store>, cancel: CancellationToken) {
    let mut wait = RETENTION_FIRST_WAIT;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = cancel.cancelled() => return,
        }
        wait = RETENTION_EVERY;
        let swept = tokio::select! {
            swept = sweep(&*store, now()) => swept,
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
pub(super) async fn sweep(store: &dyn Store, at: Timestamp) -> Result<u64, StoreError> {
    let mut deleted = 0;
    for org in store.all_orgs().await? {
        let age = u64::try_from(org.retention.age.as_millis()).unwrap_or(u64::MAX);
        let before = Timestamp(at.0.saturating_sub(age));
        loop {
            let gone = store
                .delete_old_builds(&org.id, org.retention.count, before, RETENTION_BATCH_MAX)
                .await?;
            deleted += u64::from(gone);
            if gone < RETENTION_BATCH_MAX {
                break;
            }
            tokio::time::sleep(RETENTION_PAUSE).await;
        }
    }
    Ok(deleted)
}
