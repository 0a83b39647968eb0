//! Looks at the machine once in a while: counts what runs, and collects garbage when the disk fills up while nothing
//! does.
//!
//! It must not know how garbage is chosen.

use crate::engine::STEPS_DIR;
use crate::garbage::{Pressure, Reason, pressure};
use crate::guest::Guest;
use crate::limits;
use crate::phase::Phase;
use crate::share::meminfo;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Watches until `stop`.
pub(crate) async fn watch(guest: Arc<Guest>, stop: CancellationToken) {
    // Dropping the future is safe at each of its waits: dockerd finishes or forgets what it was asked.
    stop.run_until_cancelled(look_again_and_again(&guest)).await;
}

async fn look_again_and_again(guest: &Guest) {
    guest
        .books
        .wait_phase(Duration::MAX, |phase| phase != Phase::Starting)
        .await;
    let mut collected_at: Option<Instant> = None;
    let mut buildkit_asks = 0;
    loop {
        look(guest).await;
        meminfo::refresh();
        guest.builds.forget_old();
        let due = collected_at.is_none_or(|at| at.elapsed() >= limits::COLLECT_PERIOD);
        let high = guest
            .disk()
            .is_some_and(|disk| pressure(disk) == Pressure::High);
        if due && high && guest.books.activity().is_quiet() {
            guest.collect(Reason::Routine).await;
            collected_at = Some(Instant::now());
        }
        tokio::time::sleep(limits::WATCH_PERIOD).await;
        // Not at once: whoever has woken the machine wants all of it.
        if buildkit_asks < limits::BUILDKIT_ASKS_MAX && !guest.knows_buildkit() {
            buildkit_asks += 1;
            guest.ask_buildkit().await;
        }
    }
}

/// Counts the containers and steps that run, into the books. When dockerd does not tell, the books stay as they were.
pub(crate) async fn look(guest: &Guest) {
    if guest.books.phase() != Phase::Ready {
        return;
    }
    let containers = match guest.docker.containers_running().await {
        Ok(containers) => containers,
        Err(error) => {
            tracing::warn!(%error, "containers were not counted");
            return;
        }
    };
    match steps_running(Path::new(STEPS_DIR)) {
        Ok(steps) => guest.books.running(containers, steps),
        Err(error) => tracing::warn!(%error, "steps were not counted"),
    }
}

/// BuildKit's steps are no containers of dockerd's, and no answer of its API names them. But each has a directory with
/// its runtime bundle for as long as it runs.
fn steps_running(dir: &Path) -> io::Result<u32> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut steps = 0;
    for entry in entries {
        if entry?.path().join("config.json").exists() {
            steps += 1;
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_directory_with_a_bundle() {
        let dir = tempfile::tempdir().expect("temp dir");
        assert_eq!(
            steps_running(&dir.path().join("absent")).expect("absent is none"),
            0
        );
        std::fs::write(dir.path().join("resolv.conf"), "").expect("write");
        std::fs::create_dir(dir.path().join("begun")).expect("mkdir");
        assert_eq!(steps_running(dir.path()).expect("readable"), 0);
        std::fs::write(dir.path().join("begun/config.json"), "{}").expect("write");
        assert_eq!(steps_running(dir.path()).expect("readable"), 1);
    }
}
