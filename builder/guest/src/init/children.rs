//! Starts children and reaps every process that becomes ours: exit codes of the started ones go to whoever started
//! them, those of orphans are dropped.
//!
//! It must not know what the children are for.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(Signal),
}

/// A child that was started here.
#[derive(Debug)]
pub(crate) struct Child {
    /// Its process id.
    pub(crate) pid: Pid,
    /// What it writes to its standard error, if that was piped.
    pub(crate) stderr: Option<OwnedFd>,
    exit: oneshot::Receiver<Exit>,
    ended: Option<Exit>,
}

impl Child {
    /// Waits for its end. May be called again, and dropped before it is done.
    pub(crate) async fn wait(&mut self) -> Exit {
        if let Some(exit) = self.ended {
            return exit;
        }
        // The sender is only dropped together with the reaper, whose end is the end of the process.
        let exit = (&mut self.exit)
            .await
            .unwrap_or(Exit::Signal(Signal::SIGKILL));
        self.ended = Some(exit);
        exit
    }

    /// Sends it a signal, unless it has been seen to end.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.ended.is_some() {
            return;
        }
        match kill(self.pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => {
                tracing::warn!(pid = self.pid.as_raw(), %signal, %error, "signal was not sent")
            }
        }
    }
}

type Waiting = Arc<Mutex<HashMap<Pid, oneshot::Sender<Exit>>>>;

/// The children of this process.
#[derive(Debug, Clone)]
pub(crate) struct Children {
    waiting: Waiting,
}

impl Children {
    /// Begins to reap. Must be called within a runtime, once, before any child is started.
    pub(crate) fn reap() -> io::Result<Children> {
        let mut signals = signal(SignalKind::child())?;
        let children = Children {
            waiting: Arc::default(),
        };
        let waiting = children.waiting.clone();
        tokio::spawn(async move {
            // Ends with the runtime: the signal stream has no end of its own.
            while signals.recv().await.is_some() {
                reap_all(&waiting);
            }
        });
        Ok(children)
    }

    /// Starts a child. The map stays locked from the fork until the child is written down, so that its end cannot be
    /// reaped as an orphan's.
    pub(crate) fn start(&self, command: &mut Command) -> io::Result<Child> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut started = command.spawn()?;
        let raw = i32::try_from(started.id()).map_err(io::Error::other)?;
        let pid = Pid::from_raw(raw);
        let (ended, exit) = oneshot::channel();
        waiting.insert(pid, ended);
        Ok(Child {
            pid,
            stderr: started.stderr.take().map(OwnedFd::from),
            exit,
            ended: None,
        })
    }
}

fn reap_all(waiting: &Waiting) {
    loop {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal)),
            Ok(
                WaitStatus::StillAlive
                | WaitStatus::Stopped(..)
                | WaitStatus::PtraceEvent(..)
                | WaitStatus::PtraceSyscall(_)
                | WaitStatus::Continued(_),
            )
            | Err(Errno::ECHILD) => return,
            Err(Errno::EINTR) => continue,
            Err(error) => {
                tracing::warn!(%error, "waitpid failed");
                return;
            }
        };
        match waiting.remove(&pid) {
            // Nobody may wait for it any more, which is fine.
            Some(sender) => drop(sender.send(exit)),
            None => tracing::trace!(pid = pid.as_raw(), ?exit, "reaped an orphan"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    // One test only: the reaper takes the children of the whole process.
    #[tokio::test]
    #[expect(
        clippy::zombie_processes,
        reason = "to be reaped by somebody else is what the stranger is for"
    )]
    async fn exit_codes_reach_their_owner_and_strangers_are_reaped() {
        let children = Children::reap().expect("a runtime is there");
        let stranger = Command::new("true").spawn().expect("start true");
        let mut quick = Vec::new();
        for code in 0..20 {
            let child = children.start(Command::new("sh").args(["-c", &format!("exit {code}")]));
            quick.push((code, child.expect("start sh")));
        }
        let mut slow = children
            .start(Command::new("sleep").arg("600"))
            .expect("start sleep");
        for (code, mut child) in quick {
            assert_eq!(child.wait().await, Exit::Code(code));
            assert_eq!(child.wait().await, Exit::Code(code), "asked twice");
        }
        slow.signal(Signal::SIGKILL);
        assert_eq!(slow.wait().await, Exit::Signal(Signal::SIGKILL));
        slow.signal(Signal::SIGKILL);
        let stat = format!("/proc/{}/stat", stranger.id());
        tokio::time::timeout(Duration::from_secs(180), async {
            while std::path::Path::new(&stat).exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the stranger stayed a zombie");
        assert!(
            children
                .start(&mut Command::new("/no/such/program"))
                .is_err()
        );
    }
}
