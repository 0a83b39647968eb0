//! Counts what runs in the machine: containers of dockerd, steps of BuildKit.
//!
//! It must not know who wants to know.

use crate::books::Books;
use crate::docker::Docker;
use crate::engine::STEPS_DIR;
use crate::phase::Phase;
use std::io;
use std::path::Path;

/// Counts the containers and steps that run, into the books. When dockerd does not tell, the books stay as they were.
pub(crate) async fn count(books: &Books, docker: &Docker) {
    if books.phase() != Phase::Ready {
        return;
    }
    let containers = match docker.containers_running().await {
        Ok(containers) => containers,
        Err(error) => {
            tracing::warn!(%error, "containers were not counted");
            return;
        }
    };
    match steps_running(Path::new(STEPS_DIR)) {
        Ok(steps) => books.running(containers, steps),
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
