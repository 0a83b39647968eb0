//! A process that may have been started by an earlier daemon: written down so that it can be found again, and never
//! mistaken for another that got its number.
//!
//! Must not know: what the process is.

use crate::sys;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// As many numbers for processes as the kernel can have (`PID_MAX_LIMIT` of a 64-bit kernel).
const PID_MAX: u32 = 4 << 20;

/// Sees to it that the machines' limits of processes bound each of them alone: with the kernel's own default of numbers, two machines
/// could take all that the host has.
///
/// # Errors
/// What the system said.
pub(crate) fn number_as_many_as_there_can_be() -> io::Result<()> {
    const PATH: &str = "/proc/sys/kernel/pid_max";
    let now = fs::read_to_string(PATH)?;
    if now.trim().parse().is_ok_and(|now: u32| now >= PID_MAX) {
        return Ok(());
    }
    fs::write(PATH, PID_MAX.to_string())
}

/// A process, by what stays true of it alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessId {
    /// Its number.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5), field 22).
    start_ticks: u64,
    /// Which boot that was.
    boot: String,
}

/// A process that lived when it was opened; signals go to it or to nobody.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pid: i32,
    pidfd: Arc<OwnedFd>,
}

impl ProcessId {
    /// Of the process that has the number `pid` now.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start_ticks: start_ticks(pid)?,
            boot: boot_id()?,
        })
    }

    /// The process, if it still lives.
    ///
    /// # Errors
    /// Only when the system cannot tell.
    pub(crate) fn open(&self) -> io::Result<Option<Process>> {
        let pidfd = match sys::pidfd_open(self.pid) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(None),
            pidfd => pidfd?,
        };
        // Compared after opening: from here on the number cannot become another's unnoticed.
        let same = start_ticks(self.pid).is_ok_and(|ticks| ticks == self.start_ticks)
            && boot_id()? == self.boot;
        let process = Process {
            pid: self.pid,
            pidfd: Arc::new(pidfd),
        };
        Ok((same && !process.has_ended()?).then_some(process))
    }
}

impl Process {
    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        self.wait(Duration::ZERO)
    }

    /// Waits for its end at most `wait`; whether it has ended. Blocks.
    pub(crate) fn wait(&self, wait: Duration) -> io::Result<bool> {
        crate::program::wait_readable(&self.pidfd, Instant::now() + wait)
    }

    /// Sends a signal; a process that has ended is fine.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) -> io::Result<()> {
        match sys::pidfd_send_signal(&self.pidfd, signal as i32) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// Whether it has a handler for `signal`: the first process of a PID namespace never gets one without.
    pub(crate) fn heeds(&self, signal: nix::sys::signal::Signal) -> io::Result<bool> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        // A blocked one does not count: a shell blocks all of them for the moment of a fork, and PID 1 loses what then
        // comes through without a handler.
        let heeded = mask(&status, "SigCgt:");
        Ok(heeded & (1 << (signal as i32 - 1)) != 0)
    }

    /// A descriptor that is readable once it has ended.
    pub(crate) fn pidfd(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }
}

/// Which program a process runs, told apart from others by its file; nothing once it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Program(Option<(u64, u64)>);

impl Program {
    /// Of the process that has the number `pid` now.
    ///
    /// # Errors
    /// Only when the system cannot tell.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        match fs::metadata(format!("/proc/{pid}/exe")) {
            Ok(file) => Ok(Self(Some((file.dev(), file.ino())))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self(None)),
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(Self(None)),
            Err(error) => Err(error),
        }
    }

    /// Waits until the process runs another program than this, or none, at most `wait`. Blocks.
    ///
    /// # Errors
    /// It still runs this one (`TimedOut`), or the system cannot tell.
    pub(crate) fn wait_for_another(self, pid: i32, wait: Duration) -> io::Result<()> {
        let deadline = Instant::now() + wait;
        while Self::of(pid)? == self {
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // There is nothing to wait on; what is waited for takes some hundred microseconds.
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }
}

/// A signal mask of `/proc/<pid>/status` (proc_pid_status(5)); empty if it is not there.
pub(crate) fn mask(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// Which boot of the host this is.
///
/// # Errors
/// Only when the system cannot tell.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_ticks(&stat).ok_or_else(|| io::Error::other("no start time in /proc/pid/stat"))
}

/// Field 22; the second field is a name in parentheses that may hold anything, so count from its end.
pub(crate) fn parse_start_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 1";
        assert_eq!(parse_start_ticks(stat), Some(98765));
    }

    #[test]
    fn reads_signal_masks() {
        let status = "Name:\tx\nSigBlk:\t0000000000000001\nSigCgt:\t0000000000004000\n";
        assert_eq!(
            (
                mask(status, "SigBlk:"),
                mask(status, "SigCgt:"),
                mask(status, "SigIgn:")
            ),
            (1, 0x4000, 0)
        );
    }

    #[test]
    fn sees_a_process_become_another_program() {
        let mut command = Command::new("sh");
        command.args(["-c", "read go; exec sleep 1000"]);
        let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let shell = Program::of(pid).unwrap();
        let late = shell
            .wait_for_another(pid, Duration::from_millis(5))
            .unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        drop(child.stdin.take());
        shell
            .wait_for_another(pid, Duration::from_secs(180))
            .unwrap();
        let sleep = Program::of(pid).unwrap();
        child.kill().unwrap();
        sleep
            .wait_for_another(pid, Duration::from_secs(180))
            .unwrap();
        child.wait().unwrap();
        assert_eq!(Program::of(pid).unwrap(), Program(None));
    }

    #[test]
    fn finds_a_living_process_and_no_other() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        let other = ProcessId {
            start_ticks: id.start_ticks + 1,
            ..id.clone()
        };
        assert!(other.open().unwrap().is_none());
        let other = ProcessId {
            boot: "another".into(),
            ..id.clone()
        };
        assert!(other.open().unwrap().is_none());
        let process = id.open().unwrap().unwrap();
        process.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
        assert!(process.wait(Duration::from_secs(180)).unwrap());
        assert!(id.open().unwrap().is_none(), "a zombie has ended");
        child.wait().unwrap();
        assert!(id.open().unwrap().is_none());
        process.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}
