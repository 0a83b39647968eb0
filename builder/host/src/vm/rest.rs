//! Machines that rest: paused when nobody has used them for a while, resumed by the next who does.
//!
//! The memory of a paused machine stays where it is; its processors are idle. What says whether it is in use is the guest,
//! which knows builds without a client too.

use super::VirtualMachines;
use super::keep::now;
use super::qmp::Monitor;
use crate::limits::{CHANNEL_ATTEMPT_MAX, REST_ASK_WAIT_MAX};
use crate::process::Process;
use serde_json::json;
use slipway_core::id::MachineId;
use slipway_core::vm::{Answer, Wanted};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How a machine is, as far as this process knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Rest {
    /// Started by an earlier daemon: QEMU knows.
    #[default]
    Unknown,
    /// It runs; nobody has used it since, if that was seen.
    Awake {
        /// When it was first seen unused.
        quiet_since: Option<Instant>,
    },
    /// It does not run.
    Paused,
}

type Gate = Arc<Mutex<Rest>>;

/// The machines of this host. Who works on one holds its gate.
#[derive(Debug, Default)]
pub(super) struct Rests(Mutex<HashMap<MachineId, Gate>>);

impl Rests {
    fn gate(&self, machine: &MachineId) -> Gate {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(machine.clone()).or_default())
    }

    /// Forgets a machine that has ended.
    pub(super) fn forget(&self, machine: &MachineId) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(machine);
    }
}

/// What is seen of a machine that runs: how it is now, and whether it is to be paused.
fn look(rest: Rest, in_use: bool, now: Instant, after: Duration) -> (Rest, bool) {
    let since = match rest {
        Rest::Awake {
            quiet_since: Some(since),
        } => since,
        Rest::Unknown | Rest::Paused | Rest::Awake { quiet_since: None } => now,
    };
    let quiet_since = (!in_use).then_some(since);
    let due = !in_use && now.duration_since(since) >= after;
    (Rest::Awake { quiet_since }, due)
}

impl VirtualMachines {
    /// Pauses a machine that nobody has used for the time the settings say; keeps the memory of one that ends for want of use.
    pub(super) fn rest_if_quiet(&self, machine: &MachineId, process: &Process) -> io::Result<()> {
        let gate = self.rests.gate(machine);
        let mut rest = gate.lock().unwrap_or_else(PoisonError::into_inner);
        if process.has_ended()? {
            return Ok(());
        }
        if *rest == Rest::Unknown {
            *rest = self.find_out(machine)?;
        }
        if *rest == Rest::Paused || (self.pause_after.is_none() && !self.memories.are_kept()) {
            return Ok(());
        }
        let door = self.door_file(machine)?.door(self.network.router());
        let answer = door.ask(Wanted::Rest, REST_ASK_WAIT_MAX);
        if matches!(answer, Ok(Answer::Leaving)) {
            return self.keep_memory(machine, process);
        }
        let Some(after) = self.pause_after else {
            return Ok(());
        };
        let in_use = !matches!(answer, Ok(Answer::Taken));
        let (seen, due) = look(*rest, in_use, Instant::now(), after);
        *rest = seen;
        if due {
            Monitor::connect(&self.monitor(machine))?.execute("stop", &json!({}))?;
            *rest = Rest::Paused;
            tracing::info!(%machine, "paused: nobody uses it");
        }
        Ok(())
    }

    /// Has a machine run, and counts as its use.
    pub(super) fn wake(&self, machine: &MachineId) -> io::Result<()> {
        let gate = self.rests.gate(machine);
        let mut rest = gate.lock().unwrap_or_else(PoisonError::into_inner);
        if *rest == Rest::Unknown {
            *rest = self.find_out(machine)?;
        }
        if *rest == Rest::Paused {
            let began = Instant::now();
            Monitor::connect(&self.monitor(machine))?.execute("cont", &json!({}))?;
            let door = self.door_file(machine)?.door(self.network.router());
            // A clock that is late is no reason to leave it unused.
            if let Err(error) = door.tell(Wanted::Woken, now(), CHANNEL_ATTEMPT_MAX) {
                tracing::warn!(%machine, %error, "the guest was not told the time");
            }
            tracing::info!(%machine, elapsed_ms = began.elapsed().as_millis(), "resumed");
        }
        *rest = Rest::Awake { quiet_since: None };
        Ok(())
    }

    /// Notes that a machine was started just now.
    pub(super) fn started(&self, machine: &MachineId) {
        let gate = self.rests.gate(machine);
        *gate.lock().unwrap_or_else(PoisonError::into_inner) = Rest::Awake { quiet_since: None };
    }

    /// How a machine is that an earlier daemon left. One whose memory was being kept goes on to its end.
    fn find_out(&self, machine: &MachineId) -> io::Result<Rest> {
        if self.memories.was_begun(machine) {
            tracing::info!(%machine, "keeping its memory was cut off, it ends without");
            self.let_go(machine)?;
            return Ok(Rest::Awake { quiet_since: None });
        }
        let mut monitor = Monitor::connect(&self.monitor(machine))?;
        let status = monitor.execute("query-status", &json!({}))?;
        Ok(if status["status"] == "paused" {
            Rest::Paused
        } else {
            Rest::Awake { quiet_since: None }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_paused_when_it_was_quiet_for_so_long_without_a_break() {
        let start = Instant::now();
        let after = Duration::from_secs(10);
        let mut rest = Rest::Awake { quiet_since: None };
        let mut at = |second: u64, in_use: bool| {
            let (seen, due) = look(rest, in_use, start + Duration::from_secs(second), after);
            rest = seen;
            due
        };
        assert!(!at(0, false));
        assert!(!at(9, false));
        assert!(!at(9, true), "somebody came");
        assert!(!at(12, false));
        assert!(!at(21, false));
        assert!(at(22, false));
    }
}
