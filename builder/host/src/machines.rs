//! The machines of a host: one table, one verb at a time per machine, and what each verb does whatever the kind of machine.
//!
//! Owns: generations, slots, records, which volume is attached for whom, adoption. Must not know: sockets and frames, or how
//! a driver starts anything.
//!
//! A generation runs at most once: asking again for one that has ended reports its end and starts nothing, so that a
//! request that was delayed or repeated never brings a machine back.

use crate::driver::{DriverError, MachineDriver};
use crate::drivers::{DriverKind, Drivers, NotOffered};
use crate::image::{ImageError, ImageNames, Images};
use crate::keys::{Keys, LeaseError};
use crate::limits::{KILL_WAIT_MAX, OPENING_PER_PORT_MAX, TRANSFERS_MAX};
use crate::network::{Network, NetworkError};
use crate::process::Process;
use crate::record::{Phase, Record, RecordError, Records};
use crate::sys;
use crate::volume_fences::FenceError;
use slipway_core::end_record::Ending;
use slipway_core::generation::{Generation, StaleGeneration};
use slipway_core::host_api::{EndpointPort, Epoch, MachineReport, MachineRunState, MachineSpec};
use slipway_core::id::MachineId;
use slipway_volumes::{VolumeDriver, VolumeError};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::{OwnedMutexGuard, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Why a verb was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerbError {
    /// A newer generation was seen.
    #[error(transparent)]
    Stale(#[from] StaleGeneration),
    /// The fencing number of a volume was not taken.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// It carries the number of another volume than its own.
    #[error("the fencing number is of another volume than the request")]
    OthersFence,
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
    /// Too many of its endpoints are being opened.
    #[error(
        "machine {0} takes no connection now, and others wait for it already (hint: ask again later)"
    )]
    Opening(MachineId),
    /// No driver for it.
    #[error(transparent)]
    NotOffered(#[from] NotOffered),
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
    /// A key's lease.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// Nothing came with it.
    #[error("there is no lease with the request")]
    NoLease,
    /// Too much at once.
    #[error("{TRANSFERS_MAX} exports and imports are going on already (hint: ask again later)")]
    TransfersFull,
    /// The work ended without an answer.
    #[error("the work on this request was cut off")]
    CutOff,
}

mod recover;
mod verbs;

/// The machines of a host.
#[derive(Debug)]
pub(crate) struct Machines {
    drivers: Drivers,
    pool: Pool,
    network: Arc<Network>,
    images: Arc<Images>,
    records: Records,
    slots: u16,
    table: Mutex<Table>,
    epoch: Epoch,
    revision: watch::Sender<u64>,
    starts: Semaphore,
    /// Room for endpoints being opened, of all machines.
    opening: Arc<Semaphore>,
    /// Shared by starts, from the choice of an image until it is written down.
    choosing: RwLock<()>,
    /// Everything is adopted and more will be started, so unused images are removed.
    prunes: AtomicBool,
}

/// Where volumes come from, and the keys that are lent for them.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) volumes: Arc<dyn VolumeDriver>,
    pub(crate) keys: Arc<Keys>,
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
    opening: Opening,
    /// What it printed last, if it ended badly.
    last_words: Option<String>,
    /// The kill that a stop has set up.
    kill: Option<(Instant, AbortHandle)>,
}

/// Room for endpoints being opened, for each port of a machine.
#[derive(Debug)]
struct Opening {
    docker: Arc<Semaphore>,
    guest: Arc<Semaphore>,
}

impl Default for Opening {
    fn default() -> Self {
        let room = || Arc::new(Semaphore::new(OPENING_PER_PORT_MAX));
        Self {
            docker: room(),
            guest: room(),
        }
    }
}

impl Opening {
    fn of(&self, port: EndpointPort) -> Arc<Semaphore> {
        Arc::clone(match port {
            EndpointPort::Docker => &self.docker,
            EndpointPort::Guest => &self.guest,
        })
    }
}

type Gate = OwnedMutexGuard<()>;

impl Machines {
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
    fn put(&self, spec: &MachineSpec, driver: DriverKind, phase: Phase) -> Result<(), VerbError> {
        let record = Record {
            spec: spec.clone(),
            driver,
            phase,
            refused: None,
        };
        self.records.write(&record)?;
        self.with_entry(&spec.machine, |entry| entry.record = Some(record));
        self.changed();
        Ok(())
    }

    /// What makes and clears the machine as it is recorded.
    fn driver(&self, machine: &MachineId) -> Arc<dyn MachineDriver> {
        let kind = self.record(machine).map(|record| record.driver);
        Arc::clone(self.drivers.get(kind.unwrap_or_default()))
    }

    /// The wanted one if it is free, else the first that is.
    fn take_slot(&self, wanted: Option<u16>) -> Result<u16, VerbError> {
        let mut table = self.table();
        let free = wanted
            .into_iter()
            .chain(0..self.slots)
            .find(|slot| *slot < self.slots && !table.used_slots.contains(slot))
            .ok_or(VerbError::Full(self.slots))?;
        table.used_slots.insert(free);
        Ok(free)
    }

    /// Takes everything of a machine away and gives its volume back. Its slot is another's only once no record has it. Blocks.
    fn clear(&self, spec: &MachineSpec, driver: DriverKind, slot: u16) -> Result<(), VerbError> {
        self.drivers.get(driver).clear(&spec.machine, slot)?;
        Ok(self.pool.volumes.detach(&spec.volume, &spec.machine)?)
    }

    fn forget(&self, machine: &MachineId) -> Result<(), VerbError> {
        self.records.forget(machine)?;
        let record = self.with_entry(machine, |entry| entry.record.take());
        if let Some(slot) = record.and_then(|record| record.phase.slot()) {
            self.table().used_slots.remove(&slot);
        }
        self.changed();
        Ok(())
    }

    /// Takes note that a machine has ended and clears it away. Blocks.
    fn finish(
        &self,
        spec: &MachineSpec,
        driver: DriverKind,
        slot: u16,
        ending: Ending,
    ) -> Result<(), VerbError> {
        let (clean, damaged) = (ending == Ending::Clean, ending == Ending::Damaged);
        let last_words = match ending {
            Ending::Crashed => self.drivers.get(driver).last_words(&spec.machine),
            Ending::Clean | Ending::Damaged => None,
        };
        self.with_entry(&spec.machine, |entry| {
            entry.process = None;
            entry.last_words = entry.last_words.take().or(last_words);
            if let Some((_, kill)) = entry.kill.take() {
                kill.abort();
            }
        });
        // What was recorded before: a part of the log may be cleared away already.
        let refused = self
            .record(&spec.machine)
            .and_then(|record| record.refused)
            .or_else(|| self.drivers.get(driver).refused(&spec.machine));
        if let Some(why) = &refused {
            tracing::error!(machine = %spec.machine, why, "its engine could not start");
        }
        // First the fact, for clearing removes what it is known from. Callers are told only when nothing is left, so that
        // whoever hears of the end can have the volume.
        let ended = Record {
            spec: spec.clone(),
            driver,
            phase: Phase::Ended {
                slot,
                clean,
                damaged,
            },
            refused,
        };
        if let Err(error) = self.records.write(&ended) {
            // Whoever cannot write must still be able to clear away, which is what makes room.
            tracing::error!(machine = %spec.machine, error = &error as &dyn std::error::Error, "its end is not written down");
        }
        let exited = Record {
            phase: Phase::Exited { clean, damaged },
            ..ended.clone()
        };
        let cleared = self.clear(spec, driver, slot).and_then(|()| {
            let written = self.records.write(&exited);
            // No record, rather than one with a slot that is another's.
            Ok(written.or_else(|_| self.records.forget(&spec.machine))?)
        });
        let now = if cleared.is_ok() { exited } else { ended };
        self.with_entry(&spec.machine, |entry| entry.record = Some(now));
        if cleared.is_ok() {
            self.table().used_slots.remove(&slot);
        }
        self.changed();
        cleared?;
        tracing::info!(machine = %spec.machine, generation = %spec.generation, ?ending, "ended");
        self.prune_images();
        Ok(())
    }

    /// Removes images that no machine uses and none will boot, now and whenever a machine has ended. To be called once all
    /// are adopted: before, nobody knows what is in use. Blocks.
    pub(crate) fn keep_images_pruned(&self) {
        self.prunes.store(true, Ordering::Relaxed);
        self.prune_images();
    }

    /// Whatever is in the way, a later end or start of the daemon comes here again.
    fn prune_images(&self) {
        if !self.prunes.load(Ordering::Relaxed) {
            return;
        }
        let Ok(_no_start) = self.choosing.try_write() else {
            return;
        };
        let Some(used) = self.images_in_use() else {
            return;
        };
        match self.images.prune(&self.network, used) {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => tracing::info!(?gone, "removed images that no machine uses"),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot remove images"
                );
            }
        }
    }

    /// What the machines boot that are not cleared away; nothing if that is not known of one.
    fn images_in_use(&self) -> Option<Vec<ImageNames>> {
        let table = self.table();
        let records = table
            .entries
            .values()
            .filter_map(|entry| entry.record.as_ref());
        records
            .filter(|record| record.phase.slot().is_some())
            .map(|record| self.records.image(&record.spec.machine))
            .collect()
    }

    /// Brings the table in line with a machine that has ended, if it has. Blocks.
    fn settle(&self, machine: &MachineId) -> Result<(), VerbError> {
        let Some(record) = self.record(machine) else {
            return Ok(());
        };
        match record.phase {
            Phase::Running { slot, .. } => {
                let process = self.with_entry(machine, |entry| entry.process.clone());
                // What cannot be found out is no end: a machine that runs must not be cleared away.
                let ended = match process {
                    Some(process) => process.has_ended().map_err(|source| VerbError::Process {
                        machine: machine.clone(),
                        source,
                    })?,
                    None => true,
                };
                if ended {
                    let ending = self.drivers.get(record.driver).ending(machine);
                    return self.finish(&record.spec, record.driver, slot, ending);
                }
                Ok(())
            }
            Phase::Ended {
                slot,
                clean,
                damaged,
            } => {
                let ending = recorded(clean, damaged);
                self.finish(&record.spec, record.driver, slot, ending)
            }
            // A start that failed and could not be taken back either.
            Phase::Starting { slot } => {
                self.clear(&record.spec, record.driver, slot)?;
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

/// What a record says of an end.
fn recorded(clean: bool, damaged: bool) -> Ending {
    match (clean, damaged) {
        (true, _) => Ending::Clean,
        (false, true) => Ending::Damaged,
        (false, false) => Ending::Crashed,
    }
}

/// A machine as it is told to callers; nothing while it starts.
fn report(entry: &Entry) -> Option<MachineReport> {
    let record = entry.record.as_ref()?;
    let state = match record.phase {
        Phase::Starting { .. } => return None,
        Phase::Running { .. } => MachineRunState::Running,
        Phase::Ended { clean, damaged, .. } | Phase::Exited { clean, damaged } => {
            MachineRunState::Exited { clean, damaged }
        }
    };
    Some(MachineReport {
        machine: record.spec.machine.clone(),
        generation: record.spec.generation,
        volume: record.spec.volume.clone(),
        state,
        refused: record.refused.clone(),
        last_words: entry.last_words.clone(),
    })
}
