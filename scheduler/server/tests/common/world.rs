//! What the test host has: volumes, machines, and what was done wrong to them.

use super::disks::{Disk, Kept};
use super::guest::TestGuest;
use slipway_core::fence::{Fence, VolumeFence, admit};
use slipway_core::generation::Generation;
use slipway_core::host_api::{
    Cloning, Cursor, EndpointPort, Epoch, HostError, HostErrorCode, HostInfo, HostReply,
    HostRequest, HostRequestFrame, MachineReport, MachineRunState, MachineSpec, Page,
};
use slipway_core::id::{MachineId, SnapshotId, VolumeId};
use slipway_core::key::KeyLease;
use slipway_core::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;

pub struct Machine {
    pub generation: Generation,
    pub volume: VolumeId,
    pub state: MachineRunState,
    refused: Option<String>,
    pub guest: Arc<TestGuest>,
}

#[derive(Default)]
pub struct Inner {
    pub machines: BTreeMap<MachineId, Machine>,
    pub volumes: BTreeMap<VolumeId, Disk>,
    pub snapshots: BTreeMap<SnapshotId, Kept>,
    /// What volumes and snapshots hold, by their ids, where it matters.
    pub contents: BTreeMap<String, Vec<u8>>,
    /// What has all of a base, and waits for the difference.
    pub bases: BTreeMap<VolumeId, SnapshotId>,
    /// Exports stop in the middle while this is set.
    pub hold_exports: Arc<AtomicBool>,
    /// What has arrived of volumes that are not whole.
    pub imports: BTreeMap<VolumeId, Vec<u8>>,
    pub damaged: BTreeSet<VolumeId>,
    /// Volumes that a virtual machine has written.
    pub foreign: BTreeSet<VolumeId>,
    /// What the next starts answer.
    pub refuse_starts: VecDeque<HostErrorCode>,
    /// Verbs on this volume are not answered.
    pub hangs: Option<VolumeId>,
    /// Leases are not answered.
    pub hold_leases: bool,
    /// New volumes are encrypted, and need a lease of their key.
    pub encrypts: bool,
    /// The volumes whose keys are lent to this host.
    pub leases: BTreeSet<VolumeId>,
    /// The key of each volume that was lent last.
    pub keys: BTreeMap<VolumeId, Vec<u8>>,
    /// How often a key was lent.
    pub lends: u32,
    /// Newest generation that the key of each volume was lent for.
    lent: BTreeMap<VolumeId, Generation>,
    /// What the next verbs on volumes answer.
    pub refuse_volumes: VecDeque<HostErrorCode>,
    /// The answers of so many verbs on volumes are lost after the deed.
    pub lose_answers: usize,
    /// Verbs on volumes so far, refused and lost ones included.
    pub disk_verbs: usize,
    /// Machines are ready only when told so.
    pub hold_ready: bool,
    /// Starts are not answered while this is set.
    pub hold_starts: bool,
    /// Starts under way, and the most there were at once.
    pub starting: usize,
    pub starting_most: usize,
    /// How long a start takes.
    pub start_pause: Duration,
    /// A disk of the host is full.
    pub disk_full: bool,
    /// What a machine that crashes has printed.
    pub last_words: Option<String>,
    /// Starts that were asked for.
    pub starts_asked: usize,
    /// Newest generation seen of each machine.
    seen: BTreeMap<MachineId, Generation>,
    /// Highest fencing number seen of each volume.
    pub fences: BTreeMap<VolumeId, Fence>,
    /// Which pool it is.
    pub pool: String,
    /// When its builder image was made.
    pub image_made_at: Option<Timestamp>,
    /// Bytes that the pool has grown by.
    pub pool_grown_by: u64,
    /// What each machine was started as, last.
    pub specs: BTreeMap<MachineId, MachineSpec>,
    /// Every generation that was started.
    pub started: Vec<(MachineId, Generation)>,
    pub(super) violations: Vec<String>,
}

pub struct World {
    inner: Mutex<Inner>,
    revision: watch::Sender<u64>,
    epoch: AtomicU64,
}

impl Default for World {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let inner = Inner {
            pool: format!("pool-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
            ..Inner::default()
        };
        Self {
            inner: Mutex::new(inner),
            revision: watch::Sender::new(1),
            epoch: AtomicU64::new(1),
        }
    }
}

pub(super) fn refuse(code: HostErrorCode) -> HostError {
    HostError::new(code, format!("test: {code:?}"))
}

impl World {
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test thread has panicked")
    }

    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    pub fn violate(&self, what: String) {
        self.lock().violations.push(what);
    }

    pub fn starts(&self) -> usize {
        self.lock().started.len()
    }

    /// The guest of the one machine that there is.
    pub fn guest(&self) -> Option<Arc<TestGuest>> {
        let inner = self.lock();
        assert!(inner.machines.len() < 2, "more than one machine");
        inner.machines.values().next().map(|m| Arc::clone(&m.guest))
    }

    /// The guests of all machines.
    pub fn guests(&self) -> Vec<Arc<TestGuest>> {
        let inner = self.lock();
        let guests = inner.machines.values().map(|m| Arc::clone(&m.guest));
        guests.collect()
    }

    /// Takes a key, unless one was lent for a newer generation.
    pub(super) fn lend(&self, lease: KeyLease) -> HostReply {
        let mut inner = self.lock();
        let newest = inner.lent.entry(lease.volume.clone()).or_default();
        if lease.generation < *newest {
            return HostReply::Error(refuse(HostErrorCode::StaleGeneration));
        }
        *newest = lease.generation;
        let key = lease.key.expose().to_vec();
        inner.keys.insert(lease.volume.clone(), key);
        inner.leases.insert(lease.volume);
        inner.lends += 1;
        HostReply::Done
    }

    /// Holds the fencing number of a request against the highest that was seen.
    pub(super) fn admit(&self, frame: &HostRequestFrame) -> Result<(), HostError> {
        let of_a_volume = matches!(
            frame.request,
            HostRequest::EnsureVolume { .. }
                | HostRequest::ExtendVolume { .. }
                | HostRequest::DestroyVolume { .. }
                | HostRequest::ShowVolume { .. }
                | HostRequest::CreateSnapshot { .. }
                | HostRequest::DeleteSnapshot { .. }
                | HostRequest::ImportVolume { .. }
                | HostRequest::EnsureMachine(_)
        );
        let Some(VolumeFence { volume, number }) = &frame.fence else {
            if of_a_volume {
                self.violate(format!("no fencing number with {:?}", frame.request));
            }
            return Ok(());
        };
        let mut inner = self.lock();
        let seen = inner.fences.get(volume).copied();
        match admit(seen, Some(*number)) {
            Ok(raised) => {
                if let Some(raised) = raised {
                    inner.fences.insert(volume.clone(), raised);
                }
                Ok(())
            }
            Err(stale) => Err(HostError::new(HostErrorCode::StaleFence, stale.to_string())),
        }
    }

    pub(super) fn new_life(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        self.revision.send_replace(1);
    }

    /// Its list of machines has a new revision.
    pub fn poke(&self) {
        self.changed();
    }

    pub(super) fn changed(&self) {
        self.revision.send_modify(|n| *n += 1);
    }

    /// Whether the making of a volume, or a lease, is not to be answered.
    pub(super) fn hangs(&self, frame: &HostRequestFrame) -> bool {
        let inner = self.lock();
        if let HostRequest::EnsureVolume { volume, .. } = &frame.request {
            return inner.hangs.as_ref() == Some(volume);
        }
        inner.hold_leases && frame.lease.is_some()
    }

    /// A start is asked for; gives how long it takes.
    pub(super) fn start_pause(&self) -> Duration {
        let mut inner = self.lock();
        inner.starts_asked += 1;
        inner.start_pause
    }

    /// The machine of this generation ends, from inside or by force.
    pub fn end_machine(&self, id: &MachineId, generation: Generation, clean: bool) {
        self.end_as(id, generation, clean, false);
    }

    /// The guest of this generation says that its engine cannot start, and ends.
    pub fn end_refused(&self, id: &MachineId, generation: Generation, why: &str) {
        if let Some(machine) = self.lock().machines.get_mut(id) {
            machine.refused = Some(why.to_owned());
        }
        self.end_as(id, generation, false, false);
    }

    /// The guest of this generation finds what is on its volume damaged, and ends.
    pub fn end_damaged(&self, id: &MachineId, generation: Generation) {
        self.end_as(id, generation, false, true);
    }

    fn end_as(&self, id: &MachineId, generation: Generation, clean: bool, damaged: bool) {
        {
            let mut inner = self.lock();
            let Some(machine) = inner.machines.get_mut(id) else {
                return;
            };
            if machine.generation != generation || machine.state != MachineRunState::Running {
                return;
            }
            machine.state = MachineRunState::Exited { clean, damaged };
            machine.guest.die();
        }
        self.changed();
    }

    /// Every machine that runs crashes.
    pub fn crash_all(&self) {
        let all: Vec<_> = self
            .lock()
            .machines
            .iter()
            .map(|(id, m)| (id.clone(), m.generation))
            .collect();
        for (id, generation) in all {
            self.end_machine(&id, generation, false);
        }
    }

    pub(super) async fn watch(
        &self,
        seen: Cursor,
        wait: Duration,
        page: Option<&Page>,
    ) -> HostReply {
        let mut revision = self.revision.subscribe();
        let epoch = Epoch(self.epoch.load(Ordering::Relaxed));
        let other = seen.epoch.is_some_and(|seen| seen != epoch);
        let differs = revision.wait_for(|now| other || *now != seen.revision);
        let _ = tokio::time::timeout(wait, differs).await;
        let inner = self.lock();
        let machines: Vec<MachineReport> = inner
            .machines
            .iter()
            .map(|(id, m)| MachineReport {
                machine: id.clone(),
                generation: m.generation,
                volume: m.volume.clone(),
                state: m.state,
                refused: m.refused.clone(),
                last_words: match m.state {
                    MachineRunState::Exited { clean: false, .. } => inner.last_words.clone(),
                    MachineRunState::Exited { .. } | MachineRunState::Running => None,
                },
            })
            .collect();
        // Read under the lock: the list is at least as new as the revision.
        let revision = *self.revision.borrow();
        let (machines, more) = match page {
            Some(page) => page.cut(machines, |report| report.machine.as_str()),
            None => (machines, false),
        };
        HostReply::Machines {
            epoch: Some(epoch),
            revision,
            machines,
            more,
        }
    }

    pub(super) fn open(
        &self,
        id: &MachineId,
        generation: Generation,
        port: EndpointPort,
    ) -> Result<std::os::unix::net::UnixStream, HostError> {
        let inner = self.lock();
        let machine = inner
            .machines
            .get(id)
            .ok_or_else(|| refuse(HostErrorCode::NotFound))?;
        if machine.generation != generation {
            return Err(refuse(HostErrorCode::StaleGeneration));
        }
        if machine.state != MachineRunState::Running {
            return Err(refuse(HostErrorCode::NotFound));
        }
        Ok(machine.guest.open(port))
    }

    pub(super) async fn ensure_machine(self: &Arc<Self>, spec: &MachineSpec) -> HostReply {
        {
            let mut inner = self.lock();
            inner.starting += 1;
            inner.starting_most = inner.starting_most.max(inner.starting);
        }
        while self.lock().hold_starts {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let reply = self.start_machine(spec);
        self.lock().starting -= 1;
        self.changed();
        reply.map_or_else(HostReply::Error, HostReply::Machine)
    }

    fn start_machine(self: &Arc<Self>, spec: &MachineSpec) -> Result<MachineReport, HostError> {
        let mut inner = self.lock();
        inner.fence(&spec.machine, spec.generation)?;
        if let Some(code) = inner.refuse_starts.pop_front() {
            return Err(refuse(code));
        }
        let disk = inner.volumes.get(&spec.volume);
        let encrypted = disk.ok_or(refuse(HostErrorCode::NotFound))?.encrypted;
        if encrypted && !inner.leases.contains(&spec.volume) {
            return Err(refuse(HostErrorCode::KeyNeeded));
        }
        if inner.foreign.contains(&spec.volume) {
            return Err(refuse(HostErrorCode::VolumeForeign));
        }
        if inner.damaged.contains(&spec.volume) {
            return Err(refuse(HostErrorCode::VolumeDamaged));
        }
        if let Some(held) = inner.machines.iter().find(|(_, m)| m.volume == spec.volume) {
            let what = format!(
                "{} generation {} for a held volume",
                held.0, spec.generation
            );
            inner.violations.push(what);
            return Err(refuse(HostErrorCode::Busy));
        }
        inner.started.push((spec.machine.clone(), spec.generation));
        inner.specs.insert(spec.machine.clone(), spec.clone());
        let guest = TestGuest::new(
            Arc::clone(self),
            spec.machine.clone(),
            spec.generation,
            !inner.hold_ready,
        );
        let machine = Machine {
            generation: spec.generation,
            volume: spec.volume.clone(),
            state: MachineRunState::Running,
            refused: None,
            guest,
        };
        inner.machines.insert(spec.machine.clone(), machine);
        Ok(MachineReport {
            machine: spec.machine.clone(),
            generation: spec.generation,
            volume: spec.volume.clone(),
            state: MachineRunState::Running,
            refused: None,
            last_words: None,
        })
    }

    pub(super) fn answer(self: &Arc<Self>, request: HostRequest) -> HostReply {
        match request {
            HostRequest::Info => HostReply::Info(self.lock().info()),
            HostRequest::StopMachine {
                machine,
                generation,
                ..
            } => self.stop(&machine, generation),
            HostRequest::RemoveMachine {
                machine,
                generation,
            } => self.remove(&machine, generation),
            HostRequest::EnsureMachine(_)
            | HostRequest::WatchMachines { .. }
            | HostRequest::OpenEndpoint { .. } => panic!("answered elsewhere"),
            HostRequest::EnsureVolume { .. }
            | HostRequest::ExtendVolume { .. }
            | HostRequest::DestroyVolume { .. }
            | HostRequest::ListVolumes
            | HostRequest::ShowVolume { .. }
            | HostRequest::CreateSnapshot { .. }
            | HostRequest::DeleteSnapshot { .. }
            | HostRequest::ListSnapshots => panic!("answered elsewhere"),
            HostRequest::ExportSnapshot { .. }
            | HostRequest::ExportDifference { .. }
            | HostRequest::ImportVolume { .. }
            | HostRequest::LendKey => panic!("not asked of this host"),
            HostRequest::RevokeKey { volume, .. } => {
                self.lock().leases.remove(&volume);
                HostReply::Done
            }
        }
    }

    fn stop(self: &Arc<Self>, id: &MachineId, generation: Generation) -> HostReply {
        let report = {
            let mut inner = self.lock();
            if let Err(error) = inner.fence(id, generation) {
                return HostReply::Error(error);
            }
            match inner.machines.get(id) {
                None => return HostReply::Error(refuse(HostErrorCode::NotFound)),
                Some(m) => MachineReport {
                    machine: id.clone(),
                    generation: m.generation,
                    volume: m.volume.clone(),
                    state: m.state,
                    refused: m.refused.clone(),
                    last_words: None,
                },
            }
        };
        let (world, id, runs) = (Arc::clone(self), id.clone(), report.generation);
        tokio::spawn(async move { world.end_machine(&id, runs, true) });
        HostReply::Machine(report)
    }

    fn remove(&self, id: &MachineId, generation: Generation) -> HostReply {
        {
            let mut inner = self.lock();
            if let Err(error) = inner.fence(id, generation) {
                return HostReply::Error(error);
            }
            match inner.machines.get(id) {
                None => return HostReply::Done,
                Some(m) if m.state == MachineRunState::Running => {
                    inner.violations.push(format!("{id} removed while it runs"));
                    return HostReply::Error(refuse(HostErrorCode::Busy));
                }
                Some(_) => {}
            }
            inner.machines.remove(id);
        }
        self.changed();
        HostReply::Done
    }
}

impl Inner {
    fn info(&self) -> HostInfo {
        HostInfo {
            version: "test".into(),
            arch: "amd64".into(),
            drivers: vec!["test".into()],
            kinds: vec![],
            vm_accelerator: None,
            cpu_millis: 4000,
            memory_bytes: 64 << 30,
            pool_capacity_bytes: (200 << 30) + self.pool_grown_by,
            pool_promised_bytes: 0,
            pool_used_bytes: 0,
            encrypts: self.encrypts,
            cloning: Cloning::FullCopy,
            pool_notices: vec![],
            disk_full: self.disk_full,
            pool: Some(self.pool.clone()),
            image: "test".into(),
            image_made_at: self.image_made_at,
            kernel_made_at: None,
        }
    }

    fn fence(&mut self, id: &MachineId, generation: Generation) -> Result<(), HostError> {
        let seen = self.seen.entry(id.clone()).or_default();
        if generation < *seen {
            return Err(refuse(HostErrorCode::StaleGeneration));
        }
        *seen = generation;
        Ok(())
    }
}
