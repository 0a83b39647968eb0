//! The verbs of the host API on machines.
//!
//! Must not know: sockets and frames.

use super::{Entry, Machines, VerbError, blocking, report};
use crate::driver::{Asked, Start};
use crate::drivers::DriverKind;
use crate::limits::{
    ASK_AGAIN_EVERY, KILL_AGAIN_EVERY, KILL_WAIT_MAX, REMIND_EVERY, STOP_GRACE_MAX,
};
use crate::process::{Process, ProcessId};
use crate::record::{Phase, Record};
use slipway_core::generation::Generation;
use slipway_core::host_api::{Cursor, EndpointPort, MachineReport, MachineSpec};
use slipway_core::id::{MachineId, VolumeId};
use slipway_volumes::AttachAs;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

impl Machines {
    /// Starts the machine unless this generation of it was started already. An older one that runs is killed first.
    ///
    /// # Errors
    /// [`VerbError`].
    pub(crate) async fn ensure(
        self: &Arc<Self>,
        spec: MachineSpec,
    ) -> Result<MachineReport, VerbError> {
        let machine = spec.machine.clone();
        let _one_of_few = self.starts.acquire().await.map_err(|_| VerbError::CutOff)?;
        blocking(self, &machine, move |machines, machine| {
            machines.fence(machine, spec.generation)?;
            machines.settle(machine)?;
            if let Some(record) = machines.record(machine) {
                if record.spec.generation == spec.generation {
                    return machines.report(machine);
                }
                machines.kill_now(machine)?;
            }
            machines.start(&spec)?;
            machines.report(machine)
        })
        .await
    }

    fn start(self: &Arc<Self>, spec: &MachineSpec) -> Result<(), VerbError> {
        self.network.refresh()?;
        let choosing = self.choosing.read().unwrap_or_else(PoisonError::into_inner);
        let image = self.images.current(&self.network)?;
        let driver = self.drivers.offer.choose(spec.isolation)?;
        let slot = self.take_slot(self.drivers.get(driver).wanted_slot(&spec.machine))?;
        let started = self.start_in(spec, driver, slot, &image);
        drop(choosing);
        match started {
            Ok(process) => {
                let live = process.open().map_err(|source| VerbError::Process {
                    machine: spec.machine.clone(),
                    source,
                })?;
                self.with_entry(&spec.machine, |entry| entry.process.clone_from(&live));
                self.put(spec, driver, Phase::Running { slot, process })?;
                match live {
                    Some(live) => self.watch_process(spec.machine.clone(), &live),
                    None => self.settle(&spec.machine),
                }
            }
            Err(error) => {
                tracing::warn!(machine = %spec.machine, error = &error as &dyn std::error::Error, "the start failed");
                // If this fails too, the record stays, and the next verb or start of the daemon tries again.
                self.clear(spec, driver, slot)?;
                self.forget(&spec.machine)?;
                Err(error)
            }
        }
    }

    fn start_in(
        &self,
        spec: &MachineSpec,
        driver: DriverKind,
        slot: u16,
        image: &crate::image::BootImage,
    ) -> Result<ProcessId, VerbError> {
        let starting = Record {
            spec: spec.clone(),
            driver,
            phase: Phase::Starting { slot },
            refused: None,
        };
        self.with_entry(&spec.machine, |entry| {
            entry.record = Some(starting.clone());
            entry.last_words = None;
        });
        self.records.write(&starting)?;
        self.records.write_image(&spec.machine, &image.names)?;
        let began = std::time::Instant::now();
        let driver = self.drivers.get(driver);
        let (volumes, keys) = (&self.pool.volumes, &self.pool.keys);
        let key = keys.for_machine(&spec.volume, &spec.machine, spec.generation, began);
        let how = driver.capabilities().volume;
        let volume = volumes.attach(&spec.volume, &spec.machine, how, key.as_deref())?;
        tracing::debug!(elapsed_us = began.elapsed().as_micros(), "volume attached");
        Ok(driver.start(&Start {
            spec,
            slot,
            volume: &volume,
            image,
        })?)
    }

    /// Kills a machine that runs and clears it away. Blocks.
    fn kill_now(&self, machine: &MachineId) -> Result<(), VerbError> {
        let process = self.with_entry(machine, |entry| entry.process.clone());
        if let Some(process) = process {
            let failed = |source| VerbError::Process {
                machine: machine.clone(),
                source,
            };
            let deadline = std::time::Instant::now() + KILL_WAIT_MAX;
            loop {
                self.driver(machine)
                    .kill(machine, &process)
                    .map_err(failed)?;
                if process.wait(KILL_AGAIN_EVERY).map_err(failed)? {
                    break;
                }
                if std::time::Instant::now() >= deadline {
                    return Err(VerbError::WouldNotEnd {
                        machine: machine.clone(),
                    });
                }
            }
        }
        self.settle(machine)
    }

    /// Asks the machine to end, and sees to it that it is killed after `grace`. Returns at once.
    ///
    /// # Errors
    /// [`VerbError`].
    pub(crate) async fn stop(
        self: &Arc<Self>,
        machine: &MachineId,
        generation: Generation,
        grace: Duration,
    ) -> Result<MachineReport, VerbError> {
        let _gate = self.gate(machine).await;
        self.fence(machine, generation)?;
        let report = self.report(machine)?;
        let process = self.with_entry(machine, |entry| entry.process.clone());
        let Some(process) = process else {
            return Ok(report);
        };
        let failed = |source| VerbError::Process {
            machine: machine.clone(),
            source,
        };
        if grace.is_zero() {
            self.kill(machine, &process).await.map_err(failed)?;
        }
        self.end_by(machine, process, Instant::now() + grace.min(STOP_GRACE_MAX));
        Ok(report)
    }

    /// Asks the guest to end and sets up the kill for when it does not, unless that was set up for earlier.
    fn end_by(self: &Arc<Self>, machine: &MachineId, process: Process, at: Instant) {
        self.with_entry(machine, |entry| {
            if let Some((earlier, kill)) = &entry.kill {
                if *earlier <= at && !kill.is_finished() {
                    return;
                }
                kill.abort();
            }
            let (machines, name) = (Arc::clone(self), machine.clone());
            let kill = tokio::spawn(async move {
                // `finish` aborts this task when the machine has ended.
                if at > Instant::now() {
                    // Ends by the time alone.
                    let _over =
                        tokio::time::timeout_at(at, machines.keep_asking(&name, &process)).await;
                    tracing::info!(machine = %name, "did not end within its grace; killing it");
                }
                loop {
                    if let Err(error) = machines.kill(&name, &process).await {
                        tracing::error!(machine = %name, %error, "cannot kill");
                    }
                    tokio::time::sleep(KILL_AGAIN_EVERY).await;
                }
            });
            entry.kill = Some((at, kill.abort_handle()));
        });
    }

    /// Kills all of a machine, which takes longer the more it has made.
    async fn kill(&self, machine: &MachineId, process: &Process) -> io::Result<()> {
        let (driver, machine, process) = (self.driver(machine), machine.clone(), process.clone());
        let killed = tokio::task::spawn_blocking(move || driver.kill(&machine, &process));
        killed.await.unwrap_or_else(|error| Err(error.into()))
    }

    /// Asks, and goes on asking: whoever hears it late, or lost it, hears it then.
    async fn keep_asking(&self, machine: &MachineId, process: &Process) -> Infallible {
        loop {
            let (driver, name, asked) = (self.driver(machine), machine.clone(), process.clone());
            let asked = tokio::task::spawn_blocking(move || driver.ask_to_end(&name, &asked));
            let again = match asked.await.unwrap_or_else(|error| Err(error.into())) {
                Ok(Asked::Yes) => REMIND_EVERY,
                Ok(Asked::NotYet) => ASK_AGAIN_EVERY,
                Err(error) => {
                    tracing::error!(%machine, %error, "cannot ask to end");
                    REMIND_EVERY
                }
            };
            tokio::time::sleep(again).await;
        }
    }

    /// Forgets a machine that has ended.
    ///
    /// # Errors
    /// [`VerbError`].
    pub(crate) async fn remove(
        self: &Arc<Self>,
        machine: &MachineId,
        generation: Generation,
    ) -> Result<(), VerbError> {
        blocking(self, machine, move |machines, machine| {
            machines.fence(machine, generation)?;
            machines.settle(machine)?;
            match machines.record(machine).map(|record| record.phase) {
                None => Ok(()),
                Some(Phase::Exited { .. }) => machines.forget(machine),
                Some(Phase::Starting { .. } | Phase::Running { .. } | Phase::Ended { .. }) => {
                    Err(VerbError::Running(machine.clone()))
                }
            }
        })
        .await
    }

    /// All machines that run or have ended, in id order, with where in their changes that is; waits until it is elsewhere than `seen`, at
    /// most `wait`.
    pub(crate) async fn watch(&self, seen: Cursor, wait: Duration) -> (Cursor, Vec<MachineReport>) {
        let mut revision = self.revision.subscribe();
        let other_life = seen.epoch.is_some_and(|epoch| epoch != self.epoch);
        // Not "above": a caller without an epoch may have the revision of an earlier daemon.
        let differs = revision.wait_for(|revision| other_life || *revision != seen.revision);
        // Over time is an answer too: unchanged.
        let _ = tokio::time::timeout(wait, differs).await;
        let now = Cursor {
            epoch: Some(self.epoch),
            revision: *self.revision.borrow(),
        };
        let table = self.table();
        (now, table.entries.values().filter_map(report).collect())
    }

    /// A connected stream to a listener of a running machine.
    ///
    /// # Errors
    /// [`VerbError`].
    pub(crate) async fn connect(
        self: &Arc<Self>,
        machine: &MachineId,
        generation: Generation,
        port: EndpointPort,
    ) -> Result<OwnedFd, VerbError> {
        self.with_known(machine, |entry| entry.generation.check(generation))??;
        let runs = self.record(machine).is_some_and(|record| {
            record.spec.generation == generation && matches!(record.phase, Phase::Running { .. })
        });
        if !runs {
            return Err(VerbError::NotRunning(machine.clone()));
        }
        let full = |_| VerbError::Opening(machine.clone());
        let of_machine = self.with_entry(machine, |entry| entry.opening.of(port));
        let of_machine = of_machine.try_acquire_owned().map_err(full)?;
        let of_all = Arc::clone(&self.opening)
            .try_acquire_owned()
            .map_err(full)?;
        let (driver, machine) = (self.driver(machine), machine.clone());
        let connected = tokio::task::spawn_blocking(move || {
            let opened = driver.connect(&machine, port);
            drop((of_machine, of_all));
            opened
        });
        Ok(connected.await.map_err(|_| VerbError::CutOff)??)
    }

    /// Lets each machine that nobody uses rest, as its driver sees fit.
    pub(crate) async fn rest(&self) {
        let running: Vec<_> = {
            let table = self.table();
            let entries = table.entries.iter();
            entries
                .filter_map(|(machine, entry)| {
                    let driver = Arc::clone(self.drivers.get(entry.record.as_ref()?.driver));
                    let gate = Arc::clone(&entry.gate);
                    Some((machine.clone(), driver, entry.process.clone()?, gate))
                })
                .collect()
        };
        for (machine, driver, process, gate) in running {
            // However long it takes, it is about this process: nobody clears the machine away meanwhile and starts it anew.
            let Ok(gate) = gate.try_lock_owned() else {
                continue;
            };
            let rested = tokio::task::spawn_blocking(move || {
                let _gate = gate;
                if let Err(error) = driver.rest(&machine, &process) {
                    tracing::debug!(%machine, %error, "goes on running");
                }
            });
            if let Err(error) = rested.await {
                tracing::error!(%error, "looking whether a machine is in use broke off");
            }
        }
    }

    /// Shows the machine that has a volume, if it runs, that it has become larger. What fails here is made up for by its next start.
    /// Blocks.
    pub(crate) fn volume_grew(&self, volume: &VolumeId, machine: &MachineId) {
        let Ok(gate) = self.with_known(machine, |entry| Arc::clone(&entry.gate)) else {
            return;
        };
        // Nobody starts it or clears it away meanwhile.
        let _gate = gate.blocking_lock_owned();
        if self.with_entry(machine, |entry| entry.process.is_none()) {
            return;
        }
        let driver = self.driver(machine);
        let how = driver.capabilities().volume;
        if how == AttachAs::Mount {
            return;
        }
        // Attached already, so this only tells where its device is.
        let shown = match self.pool.volumes.attach(volume, machine, how, None) {
            Ok(attached) => driver.volume_grew(machine, &attached.path()),
            Err(error) => Err(io::Error::other(error)),
        };
        if let Err(error) = shown {
            tracing::warn!(%machine, %volume, %error, "it sees that its volume has grown at its next start only");
        }
    }

    /// Throws away what drivers kept of machines that had a volume which is destroyed. Blocks.
    pub(crate) fn forget_volume(&self, volume: &VolumeId) {
        for driver in [&self.drivers.sandbox, &self.drivers.vm] {
            driver.forget_volume(volume);
        }
    }

    fn with_known<T>(
        &self,
        machine: &MachineId,
        f: impl FnOnce(&Entry) -> T,
    ) -> Result<T, VerbError> {
        self.table()
            .entries
            .get(machine)
            .map(f)
            .ok_or_else(|| VerbError::NotFound(machine.clone()))
    }

    fn report(&self, machine: &MachineId) -> Result<MachineReport, VerbError> {
        self.with_known(machine, report)?
            .ok_or_else(|| VerbError::NotFound(machine.clone()))
    }
}
