//! The fencing numbers of volumes: the highest that this host has seen of each, kept with the pool, and verbs on one volume one after
//! another, so that none with a lower number is done after one with a higher.
//!
//! Must not know: what any verb does.

use crate::files::{Outlives, is_full, make_dir, remove_all, write_whole};
use crate::limits::{FENCE_KEPT, VOLUME_TURN_WAIT_MAX};
use slipway_core::fence::{Fence, StaleFence, admit};
use slipway_core::id::VolumeId;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Why a verb on a volume is not begun.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FenceError {
    /// It knows less than an earlier one.
    #[error("volume {volume}")]
    Stale {
        /// Which.
        volume: VolumeId,
        /// Both numbers.
        #[source]
        stale: StaleFence,
    },
    /// Another verb on it is not done yet.
    #[error(
        "another verb on volume {volume} is under way (waited {} s)",
        VOLUME_TURN_WAIT_MAX.as_secs()
    )]
    Busy {
        /// Which.
        volume: VolumeId,
    },
    /// What is kept of its number is none: any order may be late.
    #[error(
        "the fencing number of volume {volume} cannot be read, so nothing is done to it (hint: the disk is damaged, or somebody wrote {}: write the number into it that the control plane has for the volume; or, if no earlier order can be on its way any more, move it away; then restart the host daemon)",
        path.display()
    )]
    Unreadable {
        /// Which.
        volume: VolumeId,
        /// Where it is kept.
        path: PathBuf,
    },
    /// A number could not be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FenceError {
    let path = path.to_owned();
    move |source| FenceError::File {
        action,
        path,
        source,
    }
}

/// Whether a verb takes room on the pool's disk. Those that take none are the way out of a full one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// It may take some.
    Takes,
    /// It takes none, or gives some back.
    TakesNone,
}

/// The numbers of all volumes of a pool.
#[derive(Debug)]
pub(crate) struct VolumeFences {
    dir: PathBuf,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    seen: HashMap<VolumeId, Fence>,
    /// A verb on each of these is under way.
    busy: HashSet<VolumeId>,
    /// The numbers of these were seen and are lost.
    unreadable: HashSet<VolumeId>,
}

impl VolumeFences {
    /// Reads what is kept below the pool's directory. The number of a volume that is not `there` is forgotten [`FENCE_KEPT`] after it was
    /// raised last.
    ///
    /// # Errors
    /// [`FenceError::File`].
    pub(crate) fn open(
        pool_dir: &Path,
        there: impl Fn(&VolumeId) -> bool,
    ) -> Result<Self, FenceError> {
        let dir = pool_dir.join("fences");
        make_dir(&dir, 0o700).map_err(at("make", &dir))?;
        let (mut seen, mut unreadable) = (HashMap::new(), HashSet::new());
        for entry in fs::read_dir(&dir).map_err(at("list", &dir))? {
            let path = entry.map_err(at("list", &dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            // What is no volume's is not ours.
            let Some(Ok(volume)) = name.map(str::parse::<VolumeId>) else {
                continue;
            };
            let raised = fs::metadata(&path).and_then(|found| found.modified());
            let age = raised.map_err(at("examine", &path))?.elapsed();
            if age.is_ok_and(|age| age > FENCE_KEPT) && !there(&volume) {
                remove_all(&path).map_err(at("remove", &path))?;
                continue;
            }
            let number = fs::read_to_string(&path)
                .and_then(|text| text.trim().parse::<u64>().map_err(io::Error::other));
            match number {
                Ok(number) => drop(seen.insert(volume, Fence(number))),
                // What is written here is synced, so the disk is bad. It must not keep other volumes from being used.
                Err(error) => {
                    tracing::error!(%volume, path = %path.display(), %error, "its fencing number is unreadable: nothing is done to it");
                    unreadable.insert(volume);
                }
            }
        }
        let state = State {
            seen,
            busy: HashSet::new(),
            unreadable,
        };
        Ok(Self {
            dir,
            state: Mutex::new(state),
            freed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a verb on a volume that carries the number `got`, when no other is under way. What it gives is held until the verb has ended.
    /// A number above all that were seen is on the disk by then. Only if the disk is full, the verb takes no room and the volume never had
    /// a number, it is written when the verb has ended. Blocks.
    ///
    /// # Errors
    /// [`FenceError`].
    pub(crate) fn begin(
        self: &Arc<Self>,
        volume: &VolumeId,
        got: Option<Fence>,
        room: Room,
    ) -> Result<Turn, FenceError> {
        let waits = |state: &mut State| state.busy.contains(volume);
        let (mut state, waited) = self
            .freed
            .wait_timeout_while(self.lock(), VOLUME_TURN_WAIT_MAX, waits)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            let volume = volume.clone();
            return Err(FenceError::Busy { volume });
        }
        if state.unreadable.contains(volume) {
            return Err(FenceError::Unreadable {
                volume: volume.clone(),
                path: self.dir.join(volume.as_str()),
            });
        }
        let seen = state.seen.get(volume).copied();
        let raised = admit(seen, got).map_err(|stale| FenceError::Stale {
            volume: volume.clone(),
            stale,
        })?;
        state.busy.insert(volume.clone());
        drop(state);
        let mut turn = Turn {
            fences: Arc::clone(self),
            volume: volume.clone(),
            unwritten: None,
        };
        if let Some(number) = raised {
            match self.write(volume, number) {
                Err(error) if room == Room::TakesNone && is_full(&error) => {
                    let overwritten = self.overwrite(volume, number);
                    turn.unwritten = overwritten.is_err().then_some(number);
                }
                written => written?,
            }
            self.lock().seen.insert(volume.clone(), number);
        }
        Ok(turn)
    }

    fn write(&self, volume: &VolumeId, number: Fence) -> Result<(), FenceError> {
        let path = self.dir.join(volume.as_str());
        let text = format!("{number}\n");
        write_whole(&path, text.as_bytes(), Outlives::PowerCut).map_err(at("write", &path))
    }

    /// Writes a number over a lower one, which takes no new room. A power cut may leave the first digits of it alone, if it has more: that
    /// is above the lower one, and the verb is not begun then.
    fn overwrite(&self, volume: &VolumeId, number: Fence) -> io::Result<()> {
        let path = self.dir.join(volume.as_str());
        let file = fs::File::options().write(true).open(path)?;
        file.write_all_at(format!("{number}\n").as_bytes(), 0)?;
        file.sync_data()
    }
}

/// A verb on a volume is under way for as long as this is held.
#[derive(Debug)]
#[must_use = "the verb is under way only while this is held"]
pub(crate) struct Turn {
    fences: Arc<VolumeFences>,
    volume: VolumeId,
    /// The verb's number, if the disk had no room for it.
    unwritten: Option<Fence>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(number) = self.unwritten
            && let Err(error) = self.fences.write(&self.volume, number)
        {
            tracing::warn!(
                volume = %self.volume,
                error = &error as &dyn std::error::Error,
                "its fencing number is not written: it holds until the daemon ends"
            );
        }
        self.fences.lock().busy.remove(&self.volume);
        self.fences.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::SystemTime;

    fn volume(n: u8) -> VolumeId {
        VolumeId::from_entropy([n; 10])
    }

    fn open(dir: &Path) -> Arc<VolumeFences> {
        Arc::new(VolumeFences::open(dir, |_| false).unwrap())
    }

    #[test]
    fn numbers_are_kept_over_restarts_and_only_for_their_volume() {
        let dir = tempfile::tempdir().unwrap();
        let fences = open(dir.path());
        drop(fences.begin(&volume(1), None, Room::Takes).unwrap());
        drop(
            fences
                .begin(&volume(1), Some(Fence(5)), Room::Takes)
                .unwrap(),
        );
        for fences in [fences, open(dir.path())] {
            for got in [None, Some(Fence(4))] {
                let refused = fences.begin(&volume(1), got, Room::Takes).unwrap_err();
                assert!(matches!(refused, FenceError::Stale { .. }), "{refused}");
            }
            drop(
                fences
                    .begin(&volume(1), Some(Fence(5)), Room::Takes)
                    .unwrap(),
            );
            drop(fences.begin(&volume(2), None, Room::Takes).unwrap());
        }
    }

    #[test]
    fn a_verb_that_waits_is_held_against_what_came_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let fences = open(dir.path());
        let first = fences
            .begin(&volume(1), Some(Fence(1)), Room::Takes)
            .unwrap();
        let (told, ends) = mpsc::channel();
        let waiting: Vec<_> = [2, 1]
            .map(|number| {
                let (fences, told) = (Arc::clone(&fences), told.clone());
                std::thread::spawn(move || {
                    let turn = fences.begin(&volume(1), Some(Fence(number)), Room::Takes);
                    told.send((number, turn.is_ok())).unwrap();
                })
            })
            .into();
        // Of another volume nobody waits.
        drop(
            fences
                .begin(&volume(2), Some(Fence(1)), Room::Takes)
                .unwrap(),
        );
        assert!(ends.try_recv().is_err(), "they wait");
        drop(first);
        for thread in waiting {
            thread.join().unwrap();
        }
        let ends = [ends.recv().unwrap(), ends.recv().unwrap()];
        // Which of the two came first is chance.
        assert!(
            ends == [(2, true), (1, false)] || ends == [(1, true), (2, true)],
            "{ends:?}"
        );
        assert!(
            fences
                .begin(&volume(1), Some(Fence(1)), Room::Takes)
                .is_err()
        );
    }

    #[test]
    fn the_number_of_a_volume_that_is_gone_is_forgotten_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let fences = open(dir.path());
        for n in [1, 2] {
            drop(
                fences
                    .begin(&volume(n), Some(Fence(3)), Room::Takes)
                    .unwrap(),
            );
            let path = dir.path().join("fences").join(volume(n).as_str());
            let file = fs::File::options().write(true).open(path).unwrap();
            let then = SystemTime::now() - FENCE_KEPT - FENCE_KEPT / 10;
            file.set_modified(then).unwrap();
        }
        let fences = VolumeFences::open(dir.path(), |id| *id == volume(1)).unwrap();
        let fences = Arc::new(fences);
        assert!(
            fences
                .begin(&volume(1), Some(Fence(2)), Room::Takes)
                .is_err()
        );
        drop(
            fences
                .begin(&volume(2), Some(Fence(2)), Room::Takes)
                .unwrap(),
        );
    }

    #[test]
    fn a_number_that_cannot_be_read_stops_orders_about_its_volume_alone() {
        let dir = tempfile::tempdir().unwrap();
        let begin = |fences: &Arc<VolumeFences>, n, got| {
            fences.begin(&volume(n), Some(Fence(got)), Room::Takes)
        };
        let path = dir.path().join("fences").join(volume(1).as_str());
        drop(begin(&open(dir.path()), 2, 5).unwrap());
        let bad: [&[u8]; 5] = [b"\xff\xfe\0", b"", b"\n", b"-1\n", b"5 or so\n"];
        for bytes in bad {
            fs::write(&path, bytes).unwrap();
            let fences = open(dir.path());
            for got in [1, u64::MAX] {
                let refused = begin(&fences, 1, got).unwrap_err();
                assert!(
                    matches!(refused, FenceError::Unreadable { .. }),
                    "{refused}"
                );
                let hint = refused.to_string();
                assert!(hint.contains(&*path.to_string_lossy()), "{hint}");
            }
            assert!(begin(&fences, 2, 4).is_err(), "others are as before");
            drop(begin(&fences, 2, 5).unwrap());
            assert_eq!(fs::read(&path).unwrap(), bytes, "it stays to be looked at");
        }
        fs::write(&path, "5").unwrap();
        let fences = open(dir.path());
        assert!(begin(&fences, 1, 4).is_err());
        drop(begin(&fences, 1, 5).unwrap());
    }

    #[test]
    fn a_number_that_cannot_be_kept_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let fences = open(dir.path());
        fs::remove_dir(dir.path().join("fences")).unwrap();
        let refused = fences
            .begin(&volume(1), Some(Fence(3)), Room::Takes)
            .unwrap_err();
        assert!(matches!(refused, FenceError::File { .. }), "{refused}");
        fs::create_dir(dir.path().join("fences")).unwrap();
        drop(
            fences
                .begin(&volume(1), Some(Fence(2)), Room::Takes)
                .unwrap(),
        );
    }

    /// A tmpfs counts pages as any file system counts blocks.
    #[test]
    fn a_full_disk_refuses_what_takes_room_and_not_what_frees_it() {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let in_full_disk = || {
            let dir = tempfile::tempdir().unwrap();
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let (none, tmpfs) = (MsFlags::empty(), Some("tmpfs"));
            mount(tmpfs, dir.path(), tmpfs, none, Some("size=64k")).unwrap();
            let fences = open(dir.path());
            drop(fences.begin(&volume(1), Some(Fence(1)), Room::Takes));
            let fill = dir.path().join("fill");
            fs::write(&fill, vec![1; 1 << 20]).unwrap_err();
            for n in [1, 2] {
                let number = Some(Fence(5));
                let refused = fences.begin(&volume(n), number, Room::Takes).unwrap_err();
                assert!(is_full(&refused), "{refused}");
                let destroys = fences.begin(&volume(n), number, Room::TakesNone).unwrap();
                // It counts whether it could be written or not.
                let late = admit(fences.lock().seen.get(&volume(n)).copied(), Some(Fence(4)));
                assert!(late.is_err());
                let kept = open(dir.path()).lock().seen.get(&volume(n)).copied();
                assert_eq!(kept, number.filter(|_| n == 1), "the first had one before");
                if n == 2 {
                    fs::remove_file(&fill).unwrap();
                }
                drop(destroys);
                let kept = open(dir.path()).lock().seen.get(&volume(n)).copied();
                assert_eq!(kept, number);
            }
            umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
        };
        std::thread::scope(|scope| scope.spawn(in_full_disk).join().unwrap());
    }
}
