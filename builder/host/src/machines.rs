//! The machines of a host: one table, one verb at a time per machine, and what each verb does whatever the kind of machine.
//!
//! Owns: generations, slots, records, which volume is attached for whom, adoption. Must not know: sockets and frames, or how
//! a driver starts anything.
//!
//! A generation runs at most once: asking again for one that has ended reports its end and starts nothing, so that a
//! request that was delayed or repeated never brings a machine back.

use crate::driver::{DriverError, MachineDriver, Start};
use crate::image::{ImageError, Images};
use crate::limits::{KILL_WAIT_MAX, STARTS_AT_ONCE_MAX, STOP_GRACE_MAX};
use crate::network::{Network, NetworkError};
use crate::process::{Process, ProcessId};
use crate::record::{Phase, Record, RecordError, Records};
use crate::sys;
use slipway_core::generation::{Generation, StaleGeneration};
use slipway_core::host_api::{EndpointPort, MachineReport, MachineRunState, MachineSpec};
use slipway_core::id::MachineId;
use slipway_volumes::{VolumeDriver, VolumeError};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Why a verb was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerbError {
    /// A newer generation was seen.
    #[error(transparent)]
    Stale(#[from] StaleGeneration),
    /// No such machine, or it does not run.
    #[error("machine {0} is not running here")]
    NotRunning(MachineId),
    /// No such machine.
    #[error("machine {0} is not here")]
    NotFound(MachineId),
    /// It runs.
    #[error("machine {0} is running (hint: stop it first)")]
    Running(MachineId),
    /// All slots are taken.
    #[error("all {0} places for machines are taken")]
    Full(u16),
    /// It was killed and is still there.
    #[error("machine {machine} was killed but has not ended within {} s", KILL_WAIT_MAX.as_secs())]
    WouldNotEnd {
        /// Which.
        machine: MachineId,
    },
    /// The driver.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// Its volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Its record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// What it boots.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its process cannot be examined.
    #[error("examine the process of machine {machine}")]
    Process {
        /// Which.
        machine: MachineId,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The work ended without an answer.
    #[error("the work on this request was cut off")]
    CutOff,
}

/// The machines of a host.
#[derive(Debug)]
pub(crate) struct Machines {
    driver: Arc<dyn MachineDriver>,
    volumes: Arc<dyn VolumeDriver>,
    network: Arc<Network>,
    images: Arc<Images>,
    records: Records,
    slots: u16,
    table: Mutex<Table>,
    revision: watch::Sender<u64>,
    starts: Semaphore,
}

#[derive(Debug, Default)]
struct Table {
    entries: BTreeMap<MachineId, Entry>,
    used_slots: BTreeSet<u16>,
}

#[derive(Debug, Default)]
struct Entry {
    /// Highest seen.
    generation: Generation,
    record: Option<Record>,
    process: Option<Process>,
    /// Held by the verb that works on the machine.
    gate: Arc<tokio::sync::Mutex<()>>,
    /// The kill that a stop has set up.
    kill: Option<(Instant, AbortHandle)>,
}

type Gate = OwnedMutexGuard<()>;

impl Machines {
    /// Reads what an earlier daemon left: adopts what runs and clears away the rest. Blocks; needs a runtime for the
    /// watchers.
    ///
    /// # Errors
    /// [`VerbError`] when something can be neither adopted nor cleared away.
    pub(crate) fn recover(
        driver: Arc<dyn MachineDriver>,
        volumes: Arc<dyn VolumeDriver>,
        network: Arc<Network>,
        images: Arc<Images>,
        records: Records,
        slots: u16,
    ) -> Result<Arc<Self>, VerbError> {
        let machines = Arc::new(Self {
            driver,
            volumes,
            network,
            images,
            records,
            slots,
            table: Mutex::default(),
            revision: watch::Sender::new(1),
            starts: Semaphore::new(STARTS_AT_ONCE_MAX),
        });
        for (machine, generation) in machines.records.fences()? {
            machines
                .table()
                .entries
                .entry(machine)
                .or_default()
                .generation = generation;
        }
        for record in machines.records.all()? {
            machines.recover_one(record)?;
        }
        let used: Vec<u16> = machines.table().used_slots.iter().copied().collect();
        machines.network.disconnect_unused(&used)?;
        machines.detach_unheld()?;
        Ok(machines)
    }

    fn recover_one(self: &Arc<Self>, record: Record) -> Result<(), VerbError> {
        let machine = record.spec.machine.clone();
        {
            let mut table = self.table();
            table.used_slots.extend(record.phase.slot());
            let entry = table.entries.entry(machine.clone()).or_default();
            entry.generation = entry.generation.max(record.spec.generation);
            entry.record = Some(record.clone());
        }
        match record.phase {
            Phase::Starting { slot } => {
                tracing::info!(%machine, "a start was cut off; clearing it away");
                self.clear(&record.spec, slot)?;
                self.forget(&machine)
            }
            Phase::Running { slot, process } => {
                match process.open().map_err(|source| VerbError::Process {
                    machine: machine.clone(),
                    source,
                })? {
                    Some(process) => {
                        tracing::info!(%machine, generation = %record.spec.generation, "adopted");
                        self.with_entry(&machine, |entry| entry.process = Some(process.clone()));
                        self.watch_process(machine, &process)
                    }
                    None => self.finish(&record.spec, slot, self.driver.ended_cleanly(&machine)),
                }
            }
            Phase::Ended { slot, clean } => self.finish(&record.spec, slot, clean),
            Phase::Exited { .. } => Ok(()),
        }
    }

    /// Detaches volumes that no running machine holds.
    fn detach_unheld(&self) -> Result<(), VerbError> {
        for report in self.volumes.list()? {
            let Some(holder) = report.attached_to else {
                continue;
            };
            let held = self
                .table()
                .entries
                .get(&holder)
                .and_then(|e| e.record.as_ref())
                .is_some_and(|record| {
                    record.spec.volume == report.volume && record.phase.slot().is_some()
                });
            if !held {
                self.volumes.detach(&report.volume, &holder)?;
            }
        }
        Ok(())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_entry<T>(&self, machine: &MachineId, f: impl FnOnce(&mut Entry) -> T) -> T {
        f(self.table().entries.entry(machine.clone()).or_default())
    }

    async fn gate(&self, machine: &MachineId) -> Gate {
        let gate = self.with_entry(machine, |entry| Arc::clone(&entry.gate));
        gate.lock_owned().await
    }

    fn changed(&self) {
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Refuses an older generation, and remembers a newer one.
    fn fence(&self, machine: &MachineId, generation: Generation) -> Result<(), VerbError> {
        let have = self.with_entry(machine, |entry| entry.generation);
        have.check(generation)?;
        if generation > have {
            self.records.raise_fence(machine, generation)?;
            self.with_entry(machine, |entry| entry.generation = generation);
        }
        Ok(())
    }

    fn record(&self, machine: &MachineId) -> Option<Record> {
        self.table().entries.get(machine)?.record.clone()
    }

    /// Writes the record down, then takes it into the table.
    fn put(&self, spec: &MachineSpec, phase: Phase) -> Result<(), VerbError> {
        let record = Record {
            spec: spec.clone(),
            phase,
        };
        self.records.write(&record)?;
        self.with_entry(&spec.machine, |entry| entry.record = Some(record));
        self.changed();
        Ok(())
    }

    fn take_slot(&self) -> Result<u16, VerbError> {
        let mut table = self.table();
        let free = (0..self.slots)
            .find(|slot| !table.used_slots.contains(slot))
            .ok_or(VerbError::Full(self.slots))?;
        table.used_slots.insert(free);
        Ok(free)
    }

    /// Takes everything of a machine away, gives its volume back, and frees its slot. Blocks.
    fn clear(&self, spec: &MachineSpec, slot: u16) -> Result<(), VerbError> {
        self.driver.clear(&spec.machine, slot)?;
        self.volumes.detach(&spec.volume, &spec.machine)?;
        self.table().used_slots.remove(&slot);
        Ok(())
    }

    fn forget(&self, machine: &MachineId) -> Result<(), VerbError> {
        self.records.forget(machine)?;
        self.with_entry(machine, |entry| entry.record = None);
        self.changed();
        Ok(())
    }

    /// Takes note that a machine has ended and clears it away. Blocks.
    fn finish(&self, spec: &MachineSpec, slot: u16, clean: bool) -> Result<(), VerbError> {
        self.with_entry(&spec.machine, |entry| {
            entry.process = None;
            if let Some((_, kill)) = entry.kill.take() {
                kill.abort();
            }
        });
        // First the fact, for clearing removes what it is known from. Callers are told only when nothing is left, so that
        // whoever hears of the end can have the volume.
        let ended = Record {
            spec: spec.clone(),
            phase: Phase::Ended { slot, clean },
        };
        self.records.write(&ended)?;
        if let Err(error) = self.clear(spec, slot) {
            self.with_entry(&spec.machine, |entry| entry.record = Some(ended));
            self.changed();
            return Err(error);
        }
        self.put(spec, Phase::Exited { clean })?;
        tracing::info!(machine = %spec.machine, generation = %spec.generation, clean, "ended");
        Ok(())
    }

    /// Brings the table in line with a machine that has ended, if it has. Blocks.
    fn settle(&self, machine: &MachineId) -> Result<(), VerbError> {
        let Some(record) = self.record(machine) else {
            return Ok(());
        };
        match record.phase {
            Phase::Running { slot, .. } => {
                let process = self.with_entry(machine, |entry| entry.process.clone());
                let ended = process.is_none_or(|process| process.has_ended().unwrap_or(true));
                if ended {
                    return self.finish(&record.spec, slot, self.driver.ended_cleanly(machine));
                }
                Ok(())
            }
            Phase::Ended { slot, clean } => self.finish(&record.spec, slot, clean),
            // A start that failed and could not be taken back either.
            Phase::Starting { slot } => {
                self.clear(&record.spec, slot)?;
                self.forget(machine)
            }
            Phase::Exited { .. } => Ok(()),
        }
    }

    fn watch_process(
        self: &Arc<Self>,
        machine: MachineId,
        process: &Process,
    ) -> Result<(), VerbError> {
        let failed = |source| VerbError::Process {
            machine: machine.clone(),
            source,
        };
        let ended = sys::watch_readable(process.pidfd().map_err(failed)?).map_err(failed)?;
        let machines = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = ended.readable().await {
                tracing::error!(%machine, %error, "cannot watch a machine any more");
            }
            let settled = blocking(&machines, &machine, |machines, machine| {
                machines.settle(machine)
            })
            .await;
            if let Err(error) = settled {
                // Whatever is asked of the machine next tries again, and so does the next start of the daemon.
                tracing::error!(%machine, error = &error as &dyn std::error::Error, "cannot clear an ended machine away");
            }
        });
        Ok(())
    }
}

/// Runs `work` on a blocking thread, to its end even if nobody waits for it any more, and alone on this machine.
async fn blocking<T: Send + 'static>(
    machines: &Arc<Machines>,
    machine: &MachineId,
    work: impl FnOnce(&Arc<Machines>, &MachineId) -> Result<T, VerbError> + Send + 'static,
) -> Result<T, VerbError> {
    let gate = machines.gate(machine).await;
    let (machines, machine) = (Arc::clone(machines), machine.clone());
    let done = tokio::task::spawn_blocking(move || {
        let _gate = gate;
        work(&machines, &machine)
    });
    done.await.map_err(|_| VerbError::CutOff)?
}

// === the verbs ===

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
        let image = self.images.current(&self.network)?;
        let slot = self.take_slot()?;
        match self.start_in(spec, slot, &image) {
            Ok(process) => {
                let live = process.open().map_err(|source| VerbError::Process {
                    machine: spec.machine.clone(),
                    source,
                })?;
                self.with_entry(&spec.machine, |entry| entry.process.clone_from(&live));
                self.put(spec, Phase::Running { slot, process })?;
                match live {
                    Some(live) => self.watch_process(spec.machine.clone(), &live),
                    None => self.settle(&spec.machine),
                }
            }
            Err(error) => {
                tracing::warn!(machine = %spec.machine, error = &error as &dyn std::error::Error, "the start failed");
                // If this fails too, the record stays, and the next verb or start of the daemon tries again.
                self.clear(spec, slot)?;
                self.forget(&spec.machine)?;
                Err(error)
            }
        }
    }

    fn start_in(
        &self,
        spec: &MachineSpec,
        slot: u16,
        image: &crate::image::BootImage,
    ) -> Result<ProcessId, VerbError> {
        let starting = Record {
            spec: spec.clone(),
            phase: Phase::Starting { slot },
        };
        self.records.write(&starting)?;
        self.with_entry(&spec.machine, |entry| entry.record = Some(starting));
        let began = std::time::Instant::now();
        let volume = self.volumes.attach(&spec.volume, &spec.machine)?;
        tracing::debug!(elapsed_us = began.elapsed().as_micros(), "volume attached");
        Ok(self.driver.start(&Start {
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
            self.driver.kill(machine, &process).map_err(failed)?;
            if !process.wait(KILL_WAIT_MAX).map_err(failed)? {
                return Err(VerbError::WouldNotEnd {
                    machine: machine.clone(),
                });
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
            self.driver.kill(machine, &process).map_err(failed)?;
            return Ok(report);
        }
        self.driver.ask_to_end(machine, &process).map_err(failed)?;
        self.kill_at(machine, process, Instant::now() + grace.min(STOP_GRACE_MAX));
        Ok(report)
    }

    /// Sets up the kill, unless an earlier one is set up.
    fn kill_at(self: &Arc<Self>, machine: &MachineId, process: Process, at: Instant) {
        self.with_entry(machine, |entry| {
            if let Some((earlier, kill)) = &entry.kill {
                if *earlier <= at && !kill.is_finished() {
                    return;
                }
                kill.abort();
            }
            let (machines, name) = (Arc::clone(self), machine.clone());
            let kill = tokio::spawn(async move {
                tokio::time::sleep_until(at).await;
                tracing::info!(machine = %name, "did not end within its grace; killing it");
                if let Err(error) = machines.driver.kill(&name, &process) {
                    tracing::error!(machine = %name, %error, "cannot kill");
                }
            });
            entry.kill = Some((at, kill.abort_handle()));
        });
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

    /// All machines that run or have ended, with the revision of the list; waits until it is another than `after`, at
    /// most `wait`.
    pub(crate) async fn watch(&self, after: u64, wait: Duration) -> (u64, Vec<MachineReport>) {
        let mut revision = self.revision.subscribe();
        // Not "above": a caller that has a higher one talks to a daemon that was started anew.
        let differs = revision.wait_for(|revision| *revision != after);
        // Over time is an answer too: unchanged.
        let _ = tokio::time::timeout(wait, differs).await;
        let revision = *self.revision.borrow();
        let table = self.table();
        (
            revision,
            table
                .entries
                .values()
                .filter_map(|entry| report(entry.record.as_ref()?))
                .collect(),
        )
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
        let (driver, machine) = (Arc::clone(&self.driver), machine.clone());
        let connected = tokio::task::spawn_blocking(move || driver.connect(&machine, port));
        Ok(connected.await.map_err(|_| VerbError::CutOff)??)
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
        let record = self.record(machine);
        record
            .as_ref()
            .and_then(report)
            .ok_or_else(|| VerbError::NotFound(machine.clone()))
    }
}

/// A machine as it is told to callers; nothing while it starts.
fn report(record: &Record) -> Option<MachineReport> {
    let state = match record.phase {
        Phase::Starting { .. } => return None,
        Phase::Running { .. } => MachineRunState::Running,
        Phase::Ended { clean, .. } | Phase::Exited { clean } => MachineRunState::Exited { clean },
    };
    Some(MachineReport {
        machine: record.spec.machine.clone(),
        generation: record.spec.generation,
        volume: record.spec.volume.clone(),
        state,
    })
}
