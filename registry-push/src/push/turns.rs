//! Pushes that need the same layer at the same registry take turns, so that it is read, compressed and sent once.
//!
//! In one process by a mutex that carries what the holder found; between processes by lock files beside the index, which the kernel
//! opens when their holder dies. Knows nothing of layers or registries: a key is a text.

use crate::digest::Digest;
use crate::index::Known;
use crate::limits::{TURN_LOOK, TURN_WAIT_MAX};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use tokio::sync::{Mutex as Holder, OwnedMutexGuard};
use tokio::time::{Instant, sleep, timeout_at};

/// A blob and the repository that has it.
pub(super) type Found = Option<(Known, String)>;

static WAITING: LazyLock<Mutex<HashMap<String, Weak<Holder<Found>>>>> =
    LazyLock::new(Mutex::default);

/// The right to upload one layer. Ends when dropped.
pub(super) struct Turn {
    /// What the holder before has found, in this process; what this one has found, for the next.
    pub(super) found: OwnedMutexGuard<Found>,
    /// Somebody else held it first: the index may know more than it did.
    pub(super) has_waited: bool,
    /// Removed from its folder before it is opened for others.
    _file: Option<LockFile>,
}

/// The turns that one layer needs, in the order in which all take them.
pub(super) struct Turns {
    /// For the directory it lies in.
    pub(super) place: Option<Turn>,
    /// For its diffID.
    pub(super) layer: Option<Turn>,
}

impl Turns {
    /// Somebody else held one of them first.
    pub(super) fn have_waited(&self) -> bool {
        let mut turns = self.layer.iter().chain(&self.place);
        turns.any(|turn| turn.has_waited)
    }

    /// What the holder before has found.
    pub(super) fn before(&self) -> Found {
        let mut turns = self.layer.iter().chain(&self.place);
        turns.find_map(|turn| turn.found.clone())
    }

    /// Leaves it to the next.
    pub(super) fn found(&mut self, known: &Known, repository: &str) {
        for turn in self.layer.iter_mut().chain(&mut self.place) {
            *turn.found = Some((known.clone(), repository.to_string()));
        }
    }
}

struct LockFile {
    path: PathBuf,
    _lock: File,
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Who waits on this file sees that it is no longer the one at the path, and looks again.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The turn, if nobody has it in this process.
pub(super) fn turn_now(key: &str) -> Option<Turn> {
    let found = turns_of(key).try_lock_owned().ok()?;
    Some(Turn {
        found,
        has_waited: false,
        _file: None,
    })
}

fn turns_of(key: &str) -> Arc<Holder<Found>> {
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.retain(|_, turns| turns.strong_count() > 0);
    let known = waiting.get(key).and_then(Weak::upgrade);
    known.unwrap_or_else(|| {
        let turns = Arc::default();
        waiting.insert(key.to_string(), Arc::downgrade(&turns));
        turns
    })
}

/// Waits for the turn. `folder` is where processes meet; without it only this one's pushes take turns. `None` when the wait was too long
/// or the folder cannot be used: then the layer is uploaded all the same.
pub(super) async fn turn(key: &str, folder: Option<&Path>) -> Option<Turn> {
    let deadline = Instant::now() + TURN_WAIT_MAX;
    let turns = turns_of(key);
    let (found, mut has_waited) = match turns.clone().try_lock_owned() {
        Ok(found) => (found, false),
        Err(_) => (timeout_at(deadline, turns.lock_owned()).await.ok()?, true),
    };
    let mut file = None;
    if let Some(folder) = folder {
        let path = folder.join(Digest::of(key.as_bytes()).hex());
        loop {
            match lock(folder, &path) {
                Ok(Some(lock)) => {
                    file = Some(LockFile { path, _lock: lock });
                    break;
                }
                Ok(None) if Instant::now() < deadline => {
                    has_waited = true;
                    sleep(TURN_LOOK).await;
                }
                Ok(None) => return None,
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot lock; another process may send the same layer");
                    break;
                }
            }
        }
    }
    Some(Turn {
        found,
        has_waited,
        _file: file,
    })
}

/// The lock, if nobody has it.
fn lock(folder: &Path, path: &Path) -> std::io::Result<Option<File>> {
    std::fs::create_dir_all(folder)?;
    let mut options = OpenOptions::new();
    let file = options
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    // The holder before may have removed it between the two calls; then it locks nobody out.
    let held = file.metadata()?;
    let is_same = std::fs::metadata(path)
        .is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino()));
    Ok(is_same.then_some(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    fn known() -> Known {
        Known {
            digest: Digest::of(b"blob"),
            size: 4,
        }
    }

    #[tokio::test]
    async fn one_after_the_other_and_the_next_hears_what_was_found() {
        let inside = Arc::new(AtomicU32::new(0));
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let inside = inside.clone();
                tokio::spawn(async move {
                    let mut turn = turn("one-after-the-other", None).await.expect("turn");
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    tokio::task::yield_now().await;
                    let was_found = turn.found.is_some();
                    assert!(!was_found || turn.has_waited);
                    *turn.found = Some((known(), "repository".to_string()));
                    inside.fetch_sub(1, Ordering::SeqCst);
                    was_found
                })
            })
            .collect();
        let mut first = 0;
        for task in tasks {
            first += u32::from(!task.await.expect("task"));
        }
        assert_eq!(first, 1);
        // Nobody is left who remembers.
        assert!(
            turn("one-after-the-other", None)
                .await
                .expect("turn")
                .found
                .is_none()
        );
    }

    #[tokio::test]
    async fn processes_meet_at_the_file_and_leave_none_behind() {
        let base = tempfile::tempdir().expect("tempdir");
        let folder = base.path().join("turns");
        let key = "processes-meet";
        let path = folder.join(Digest::of(key.as_bytes()).hex());
        // As another process holds it.
        std::fs::create_dir(&folder).expect("mkdir");
        let other = lock(&folder, &path).expect("locks").expect("free");
        assert!(lock(&folder, &path).expect("looks").is_none());
        let waiting = tokio::spawn({
            let folder = folder.clone();
            async move { turn(key, Some(&folder)).await.expect("turn") }
        });
        let waited = tokio::time::timeout(Duration::from_millis(200), async {
            while !waiting.is_finished() {
                sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(waited.await.is_err(), "the lock is held");
        drop(LockFile {
            path: path.clone(),
            _lock: other,
        });
        let turn = waiting.await.expect("task");
        assert!(turn.has_waited && turn.found.is_none());
        drop(turn);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_used_stops_no_push() {
        let base = tempfile::tempdir().expect("tempdir");
        let file = base.path().join("file");
        std::fs::write(&file, "").expect("write");
        let turn = turn("no-folder", Some(&file)).await.expect("turn");
        assert!(!turn.has_waited && turn._file.is_none());
    }
}
