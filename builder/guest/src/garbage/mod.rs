//! Keeps the cache volume from filling up: by size and age, down to a low-water mark, and never what is in use.
//!
//! It must not know why it is called.

mod plan;

pub(crate) use plan::{Pressure, Reason, pressure};

use crate::books::Books;
use crate::builds::Builds;
use crate::disk;
use crate::docker::{Docker, DockerError, ImageRow, Unused};
use crate::engine::DATA_ROOT;
use plan::{Step, above_low_water, steps};
use slipway_core::guest_api::DiskUse;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// What collections look at and act on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World<'a> {
    /// dockerd.
    pub(crate) docker: &'a Docker,
    /// What is in flight.
    pub(crate) books: &'a Books,
    /// The builds, whose images stay until they are pushed.
    pub(crate) builds: &'a Builds,
}

/// Collects, one collection at a time.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    running: tokio::sync::Mutex<()>,
}

impl Collector {
    /// Goes through the steps until the volume is at its low-water mark; gives the bytes that came free. A step that
    /// fails is logged and left out.
    pub(crate) async fn collect(&self, world: World<'_>, reason: Reason) -> u64 {
        let _one_at_a_time = self.running.lock().await;
        let Some(before) = measured() else { return 0 };
        let mut now = before;
        for step in steps() {
            if above_low_water(now, reason) == 0 {
                break;
            }
            if !step.allowed(reason, world.books.activity()) {
                continue;
            }
            if let Err(error) = take(world, step, now, reason).await {
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

async fn take(
    world: World<'_>,
    step: Step,
    disk: DiskUse,
    reason: Reason,
) -> Result<(), DockerError> {
    let unused = match step {
        Step::Images(age) => {
            let before = seconds_since_1970()
                .saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
            return take_images(world, reason, |image| image.created < before).await;
        }
        Step::NamelessImages => {
            return take_images(world, reason, |image| image.names().next().is_none()).await;
        }
        Step::Cache(age) => Unused::OlderThan(age),
        Step::AnyCache => Unused::OfAnyAge,
    };
    let keep = world
        .docker
        .build_cache_bytes()
        .await?
        .saturating_sub(above_low_water(disk, reason));
    let reclaimed = world.docker.prune_build_cache(keep, unused).await?;
    tracing::debug!(?step, keep, reclaimed, "build cache was pruned");
    Ok(())
}

/// One by one, so that no more goes than has to; dockerd's own prune would take all of that age.
async fn take_images(
    world: World<'_>,
    reason: Reason,
    wanted: impl Fn(&ImageRow) -> bool,
) -> Result<(), DockerError> {
    let mut images = world.docker.images().await?;
    images.sort_by_key(|image| image.created);
    for image in images.into_iter().filter(wanted) {
        if measured().is_none_or(|disk| above_low_water(disk, reason) == 0) {
            break;
        }
        // Looked at each time: a build may have made the image a moment ago and be about to push it.
        if world.builds.holds_image(&image.id) {
            continue;
        }
        let mut names: Vec<&str> = image.names().collect();
        if names.is_empty() {
            names.push(&image.id);
        }
        for name in names {
            // Most often because a container is of it, or another image stands on it: then it stays.
            if let Err(error) = world.docker.remove_image(name).await {
                tracing::debug!(name, %error, "image stays");
            }
        }
    }
    Ok(())
}

fn seconds_since_1970() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
