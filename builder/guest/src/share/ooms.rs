//! How often memory ran out in the machine as a whole, so that the kernel ended a program.
//!
//! On cgroup v2 the machine's own cgroup counts it. On v1 the count is that of the ended program's cgroup, which for a step of
//! a build goes with the step; but every cgroup below the one whose limit was met is notified, so one of the guest's listens.

use super::field;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// The guest's cgroup that listens on v1. No process is in it.
const LISTENER: &str = "memory/slipway-guest";

/// Watches from when it was made.
#[derive(Debug)]
pub(crate) struct Ooms {
    source: Source,
    notified: AtomicU64,
}

#[derive(Debug)]
enum Source {
    /// A file of counts, and the name of the one.
    File(PathBuf, &'static str),
    Notices(EventFd),
    None,
}

impl Ooms {
    /// Watches the machine whose cgroups are below `root`; `vmstat` is its kernel's file of that name. What cannot be watched is logged.
    pub(crate) fn watch(root: &Path, vmstat: &Path) -> Ooms {
        let local = root.join("memory.events.local");
        let source = if local.exists() {
            Source::File(local, "oom")
        } else if root.join("cgroup.controllers").exists() {
            // A virtual machine: all that its kernel has is the machine's.
            Source::File(vmstat.to_owned(), "oom_kill")
        } else {
            match listen(root) {
                Ok(notices) => Source::Notices(notices),
                Err(error) => {
                    tracing::warn!(%error, "builds will not say when memory ran out");
                    Source::None
                }
            }
        };
        Ooms {
            source,
            notified: AtomicU64::new(0),
        }
    }

    /// How often so far.
    pub(crate) fn count(&self) -> u64 {
        match &self.source {
            Source::File(path, name) => fs::read_to_string(path)
                .ok()
                .and_then(|text| field(&text, name))
                .unwrap_or_default(),
            Source::Notices(notices) => {
                // Nothing to read: nothing happened since.
                let new = notices.read().unwrap_or_default();
                self.notified.fetch_add(new, Ordering::Relaxed) + new
            }
            Source::None => 0,
        }
    }
}

/// `memory.rst`, "OOM Control": a descriptor that the kernel adds one to each time.
fn listen(root: &Path) -> io::Result<EventFd> {
    let dir = root.join(LISTENER);
    match fs::create_dir(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let notices = EventFd::from_flags(flags)?;
    let of_what = File::open(dir.join("memory.oom_control"))?;
    let mut control = OpenOptions::new()
        .write(true)
        .open(dir.join("cgroup.event_control"))?;
    let line = format!("{} {}", notices.as_raw_fd(), of_what.as_raw_fd());
    control.write_all(line.as_bytes())?;
    Ok(notices)
}

/// When the machine's memory was seen to have run out last: the count is of all that ran in it, also before a step and beside a build.
#[derive(Debug)]
pub(crate) struct LastOom {
    ooms: u64,
    last: Option<SystemTime>,
}

impl From<u64> for LastOom {
    fn from(ooms: u64) -> LastOom {
        LastOom { ooms, last: None }
    }
}

impl LastOom {
    /// Takes a count that was read at this time.
    pub(crate) fn see(&mut self, ooms: u64, now: SystemTime) {
        if ooms > self.ooms {
            self.last = Some(now);
        }
        self.ooms = ooms;
    }

    /// Whether it ran out since a step began; `step` is absent where it is not known when the step began.
    pub(crate) fn ran_out_since(&self, step: Option<SystemTime>) -> bool {
        self.last
            .is_some_and(|last| step.is_none_or(|step| last >= step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_the_machine_and_not_of_a_container_with_a_limit_of_its_own() {
        let root = tempfile::tempdir().expect("temp dir");
        let write = |name: &str, text: &str| {
            fs::write(root.path().join(name), text).expect("write");
        };
        let vmstat = root.path().join("vmstat");
        write("vmstat", "oom_kill_disable 9\noom_kill 3\n");
        write("cgroup.controllers", "memory\n");
        let virtual_machine = Ooms::watch(root.path(), &vmstat);
        assert_eq!(virtual_machine.count(), 3);
        write("memory.events", "oom 7\noom_kill 7\n");
        write("memory.events.local", "low 0\noom 1\noom_kill 5\n");
        let sandbox = Ooms::watch(root.path(), &vmstat);
        assert_eq!(sandbox.count(), 1);
        write("memory.events.local", "low 0\noom 2\noom_kill 5\n");
        assert_eq!(sandbox.count(), 2);
    }

    #[test]
    fn a_machine_that_cannot_be_watched_counts_nothing() {
        let root = tempfile::tempdir().expect("temp dir");
        let ooms = Ooms::watch(root.path(), Path::new("/nowhere"));
        assert_eq!((ooms.count(), ooms.count()), (0, 0));
    }

    #[test]
    fn memory_that_ran_out_before_a_step_began_is_not_why_it_failed() {
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let mut memory = LastOom::from(7);
        memory.see(7, at(10));
        assert!(!memory.ran_out_since(Some(at(5))) && !memory.ran_out_since(None));
        memory.see(8, at(20));
        memory.see(8, at(30));
        assert!(memory.ran_out_since(Some(at(15))));
        assert!(
            !memory.ran_out_since(Some(at(25))),
            "an earlier step survived it"
        );
        memory.see(9, at(40));
        assert!(memory.ran_out_since(Some(at(25))));
    }
}
