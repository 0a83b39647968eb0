//! What a daemon that starts does with what an earlier one left, however that ended: what runs is adopted, the rest is
//! cleared away.
//!
//! Must not know: how anything is started.

use super::{Machines, Pool, VerbError};
use crate::drivers::Drivers;
use crate::image::Images;
use crate::limits::{OPENING_MAX, STARTS_AT_ONCE_MAX};
use crate::network::Network;
use crate::record::{Phase, Record, Records};
use slipway_core::host_api::Epoch;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, RwLock};
use tokio::sync::{Semaphore, watch};

impl Machines {
    /// Reads what an earlier daemon left: adopts what runs and clears away the rest. Blocks; needs a runtime for the
    /// watchers.
    ///
    /// # Errors
    /// [`VerbError`] when the records or the pool cannot be read.
    pub(crate) fn recover(
        drivers: Drivers,
        pool: Pool,
        network: Arc<Network>,
        images: Arc<Images>,
        records: Records,
        slots: u16,
    ) -> Result<Arc<Self>, VerbError> {
        let mut epoch = [0; 8];
        getrandom::fill(&mut epoch).map_err(|_| VerbError::CutOff)?;
        let epoch = Epoch(u64::from_ne_bytes(epoch));
        let machines = Arc::new(Self {
            drivers,
            pool,
            network,
            images,
            records,
            slots,
            table: Mutex::default(),
            epoch,
            revision: watch::Sender::new(1),
            starts: Semaphore::new(STARTS_AT_ONCE_MAX),
            opening: Arc::new(Semaphore::new(OPENING_MAX)),
            choosing: RwLock::default(),
            prunes: AtomicBool::new(false),
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
            // One that cannot be cleared away keeps its slot and its volume, and must not keep the others from going on. The
            // next verb on it tries again.
            let machine = record.spec.machine.clone();
            if let Err(error) = machines.recover_one(record) {
                tracing::error!(%machine, error = &error as &dyn std::error::Error, "cannot clear away what is left of it");
            }
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
                self.clear(&record.spec, record.driver, slot)?;
                self.forget(&machine)
            }
            Phase::Running { slot, process } => {
                match process.open().map_err(|source| VerbError::Process {
                    machine: machine.clone(),
                    source,
                })? {
                    Some(process) => {
                        tracing::info!(%machine, generation = %record.spec.generation, "adopted");
                        if let Err(error) = self.drivers.get(record.driver).limit(&record.spec) {
                            tracing::error!(%machine, %error, "its limits cannot be written anew");
                        }
                        self.with_entry(&machine, |entry| entry.process = Some(process.clone()));
                        self.watch_process(machine, &process)
                    }
                    None => {
                        let ending = self.drivers.get(record.driver).ending(&machine);
                        self.finish(&record.spec, record.driver, slot, ending)
                    }
                }
            }
            Phase::Ended {
                slot,
                clean,
                damaged,
            } => {
                let ending = super::recorded(clean, damaged);
                self.finish(&record.spec, record.driver, slot, ending)
            }
            Phase::Exited { .. } => Ok(()),
        }
    }

    /// Detaches volumes that no running machine holds.
    fn detach_unheld(&self) -> Result<(), VerbError> {
        for report in self.pool.volumes.list()? {
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
            if !held && let Err(error) = self.pool.volumes.detach(&report.volume, &holder) {
                tracing::error!(volume = %report.volume, error = &error as &dyn std::error::Error, "cannot detach");
            }
        }
        Ok(())
    }
}
