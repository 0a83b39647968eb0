//! Keeps the cache volume from filling up: by size and age, down to a low-water mark, and never what is in use.
//!
//! It must not know why it is called.

mod plan;

pub(crate) use plan::{Pressure, Reason, pressure};

use crate::books::Books;
use crate::disk;
use crate::docker::{Docker, DockerError, Unused};
use crate::engine::DATA_ROOT;
use plan::{Step, above_low_water, keep_bytes, steps};
use slipway_core::guest_api::DiskUse;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Collects, one collection at a time.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    running: tokio::sync::Mutex<()>,
}

impl Collector {
    /// Goes through the steps until the volume is at its low-water mark; gives the bytes that came free. A step that
    /// fails is logged and left out.
    pub(crate) async fn collect(&self, docker: &Docker, books: &Books, reason: Reason) -> u64 {
        let _one_at_a_time = self.running.lock().await;
        let Some(before) = measured() else { return 0 };
        let mut now = before;
        for step in steps() {
            if above_low_water(now) == 0 {
                break;
            }
            if !step.allowed(reason, books.activity()) {
                continue;
            }
            if let Err(error) = take(docker, step, now).await {
                tracing::warn!(?step, %error, "step of the collection failed");
            }
            let Some(after) = measured() else { break };
            now = after;
        }
        tracing::info!(
            ?reason,
            used_before = before.used_bytes,
            used_after = now.used_bytes,
            total = now.total_bytes,
            "garbage was collected"
        );
        before.used_bytes.saturating_sub(now.used_bytes)
    }
}

fn measured() -> Option<DiskUse> {
    disk::measure(Path::new(DATA_ROOT))
        .inspect_err(|error| tracing::warn!(%error, "the cache volume was not measured"))
        .ok()
}

async fn take(docker: &Docker, step: Step, disk: DiskUse) -> Result<(), DockerError> {
    let unused = match step {
        Step::Images(age) => return take_images(docker, age).await,
        Step::Cache(age) => Unused::OlderThan(age),
        Step::AnyCache => Unused::OfAnyAge,
    };
    let keep = keep_bytes(docker.build_cache_bytes().await?, disk);
    let reclaimed = docker.prune_build_cache(keep, unused).await?;
    tracing::debug!(?step, reclaimed, "build cache was pruned");
    Ok(())
}

/// One by one, so that no more goes than has to; dockerd's own prune would take all of that age.
async fn take_images(docker: &Docker, age: Duration) -> Result<(), DockerError> {
    let mut images = docker.images().await?;
    images.sort_by_key(|image| image.created);
    let Some(newest) = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|now| i64::try_from(now.checked_sub(age)?.as_secs()).ok())
    else {
        return Ok(());
    };
    for image in images.into_iter().filter(|image| image.created < newest) {
        if measured().is_none_or(|disk| above_low_water(disk) == 0) {
            break;
        }
        let names = image.repo_tags.unwrap_or_default();
        let names = if names.is_empty() {
            vec![image.id]
        } else {
            names
        };
        for name in names {
            // Most often because a container is of it, or another image stands on it: then it stays.
            if let Err(error) = docker.remove_image(&name).await {
                tracing::debug!(name, %error, "image stays");
            }
        }
    }
    Ok(())
}
