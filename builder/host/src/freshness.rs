//! How old the builder image and the kernel of virtual machines are, what the host says about it, and an image that was replaced made
//! ready before a machine needs it.
//!
//! Must not know: how an image is made, or what a driver does with it.

use crate::image::{ImageError, Images, made_at};
use crate::limits::{IMAGE_CHECK_EVERY, IMAGE_WARN_EVERY};
use crate::machines::Machines;
use crate::network::Network;
use slipway_core::limits::IMAGE_AGE_MAX;
use slipway_core::time::Timestamp;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// What is watched.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    pub(crate) images: Arc<Images>,
    pub(crate) network: Arc<Network>,
    pub(crate) machines: Arc<Machines>,
    /// Where virtual machines can be had.
    pub(crate) kernel_dir: Option<PathBuf>,
}

/// Says what changes, until `stop`.
pub(crate) async fn watch(watched: &Watched, stop: &CancellationToken) {
    let mut told = Told::default();
    loop {
        let looked = {
            let watched = watched.clone();
            tokio::task::spawn_blocking(move || look(&watched)).await
        };
        if let Ok(looked) = looked {
            told.tell(watched, looked, Instant::now()).await;
        }
        tokio::select! {
            () = tokio::time::sleep(IMAGE_CHECK_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// What was found.
#[derive(Debug)]
struct Looked {
    /// Name of the image that the next machine boots, mounted by now.
    image: Result<String, ImageError>,
    image_age: Option<Duration>,
    kernel_age: Option<Duration>,
}

fn look(watched: &Watched) -> Looked {
    let current = watched.images.current(&watched.network);
    let kernel = watched.kernel_dir.as_deref().and_then(made_at);
    Looked {
        image: current.map(|image| image.names.base),
        image_age: watched.images.made_at().map(age),
        kernel_age: kernel.map(age),
    }
}

fn age(of: Timestamp) -> Duration {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.saturating_sub(Duration::from_millis(of.0))
}

/// What was said already.
#[derive(Debug, Default)]
struct Told {
    image: Option<String>,
    unusable: bool,
    old_at: Option<Instant>,
}

impl Told {
    async fn tell(&mut self, watched: &Watched, looked: Looked, now: Instant) {
        match looked.image {
            Ok(image) => {
                self.unusable = false;
                let before = self.image.replace(image.clone());
                if before.is_some_and(|before| before != image) {
                    tracing::info!(
                        image,
                        "machines boot another builder image from their next start on"
                    );
                    let machines = Arc::clone(&watched.machines);
                    // What nobody boots any more goes now, and not only when the next machine ends.
                    let _pruned =
                        tokio::task::spawn_blocking(move || machines.keep_images_pruned()).await;
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.unusable, true) {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "no machine can start with the builder image as it is (hint: `make image-back` takes the previous one)"
                    );
                }
            }
        }
        let due = self
            .old_at
            .is_none_or(|at| now.duration_since(at) >= IMAGE_WARN_EVERY);
        let old = [
            ("builder image", looked.image_age),
            ("kernel of virtual machines", looked.kernel_age),
        ];
        for (what, age) in old {
            if let Some(days) = age.and_then(too_old)
                && due
            {
                self.old_at = Some(now);
                tracing::warn!(
                    days,
                    "the {what} is old: its packages lack what was mended since (hint: `make image-refresh`)"
                );
            }
        }
    }
}

/// Its age in days if it is more than [`IMAGE_AGE_MAX`].
fn too_old(age: Duration) -> Option<u64> {
    (age > IMAGE_AGE_MAX).then_some(age.as_secs() / (24 * 60 * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_over_the_bound_is_old() {
        let days = |n: u64| Duration::from_secs(n * 24 * 60 * 60);
        assert_eq!(too_old(days(30)), None);
        assert_eq!(too_old(days(31)), Some(31));
        assert_eq!(too_old(Duration::ZERO), None);
    }
}
