//! Keeping the memory of a machine that ends for want of use, and going on from it.
//!
//! 1. The file is made: a sign that the machine may stand still.
//! 2. The guest stands still: its volume is written out and frozen. Older memory makes room.
//! 3. QEMU stops the machine and writes it to the file.
//! 4. The manifest is written, with the state the volume is left in. From here on the machine has ended well.
//! 5. QEMU ends.
//!
//! Whatever fails before 4 is undone: the machine runs, thaws, and ends as always. So does a daemon that finds the sign beside a machine
//! that lives. Callers hold the machine's gate.
//!
//! Must not know: when (`rest` does).

use super::channel::Door;
use super::memory::{Kept, Manifest, Note, Room};
use super::origin::VolumeMark;
use super::qmp::Monitor;
use super::{VirtualMachines, migrate};
use crate::driver::DriverError;
use crate::limits::{
    ASK_TO_END_WAIT_MAX, MEMORY_LOAD_WAIT_MAX, MEMORY_SAVE_WAIT_MAX, MONITOR_WAIT_MAX,
    RESUME_TELL_WAIT_MAX, STILLNESS_WAIT_MAX,
};
use crate::process::Process;
use serde_json::json;
use slipway_core::id::MachineId;
use slipway_core::vm::{Answer, Wanted};
use std::fs::File;
use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

impl VirtualMachines {
    /// Keeps the memory of a machine whose guest offers it, and ends it.
    ///
    /// # Errors
    /// It was not kept, and the machine could not be made to go on either.
    pub(super) fn keep_memory(&self, machine: &MachineId, process: &Process) -> io::Result<()> {
        let Some(note) = self.memories.note(machine) else {
            return Ok(());
        };
        let door = self.door_file(machine)?.door(self.network.router());
        let pool = self.volumes.pool().map_err(io::Error::other)?;
        let Some(room) = self.memories.plan(note.memory_bytes, &pool)? else {
            tracing::info!(%machine, "no room for its memory (hint: kept_memory in the host's settings, or the disk)");
            door.open(Wanted::End, Instant::now() + ASK_TO_END_WAIT_MAX, || true)?;
            return Ok(());
        };
        let began = Instant::now();
        match self.try_keep(machine, process, &note, &door, room) {
            Ok(bytes) => {
                tracing::info!(%machine, bytes, elapsed_ms = began.elapsed().as_millis(), "memory kept");
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%machine, %error, "memory not kept, it ends without");
                self.let_go(machine)
            }
        }
    }

    fn try_keep(
        &self,
        machine: &MachineId,
        process: &Process,
        note: &Note,
        door: &Door,
        room: Room,
    ) -> io::Result<u64> {
        let file = self.memories.begin(machine)?;
        match door.ask(Wanted::Stillness, STILLNESS_WAIT_MAX)? {
            Answer::Taken => {}
            Answer::Closed | Answer::Full | Answer::Leaving => {
                return Err(io::Error::other("the guest does not stand still"));
            }
        }
        // Not before: one that only says it would stand still costs nobody his memory.
        self.memories.make(room)?;
        let mut monitor = Monitor::connect(&self.monitor(machine))?;
        migrate::save(&mut monitor, &file, MEMORY_SAVE_WAIT_MAX)?;
        let manifest = Manifest {
            origin: note.origin.clone(),
            volume: VolumeMark::of(&File::open(&note.device)?)?,
            door: self.door_file(machine)?,
        };
        self.memories.commit(machine, &manifest)?;
        // QEMU may be gone before it answers.
        let _ = monitor.execute("quit", &json!({}));
        if !process.wait(MONITOR_WAIT_MAX)? {
            return Err(io::Error::other("QEMU does not end"));
        }
        Ok(std::os::unix::fs::MetadataExt::blocks(&file.metadata()?) * 512)
    }

    /// Has a machine that may stand still go on to its end, without its memory.
    ///
    /// # Errors
    /// It does not run.
    pub(super) fn let_go(&self, machine: &MachineId) -> io::Result<()> {
        let mut monitor = Monitor::connect(&self.monitor(machine))?;
        // Before it runs: what was kept is the past then. The sign stays until it does.
        self.memories.throw_away(machine)?;
        migrate::undo(&mut monitor)?;
        self.door_file(machine)?.door(self.network.router()).tell(
            Wanted::Woken,
            now(),
            RESUME_TELL_WAIT_MAX,
        )?;
        self.memories.discard(machine)
    }

    /// Fills a QEMU that was started for it with kept memory, and has the machine go on.
    ///
    /// # Errors
    /// Anything; the machine is to be killed then.
    pub(super) fn go_on(&self, machine: &MachineId, kept: &Kept) -> Result<(), DriverError> {
        let failed = |why: &'static str| move |source| DriverError::Memory { why, source };
        let mut monitor =
            Monitor::connect(&self.monitor(machine)).map_err(failed("QEMU is not ready for it"))?;
        migrate::load(&mut monitor, &kept.file, MEMORY_LOAD_WAIT_MAX)
            .map_err(failed("QEMU cannot read it"))?;
        monitor
            .execute("cont", &json!({}))
            .map_err(failed("QEMU does not run it"))?;
        kept.manifest
            .door
            .door(self.network.router())
            .tell(Wanted::Resumed, now(), RESUME_TELL_WAIT_MAX)
            .map_err(failed("the guest does not answer"))
    }
}

/// The wall clock, since 1970.
pub(super) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
