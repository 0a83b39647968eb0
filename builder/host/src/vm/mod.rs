//! The `vm` driver: a machine is a virtual machine with a kernel of its own, in a QEMU process that has no right on the host
//! but to the descriptors it is given.
//!
//! Must not know: generations, records, volumes beyond the device they are.
//!
//! | place | what | survives a reboot |
//! |---|---|---|
//! | `<state>/machines/<id>/` | `monitor.sock` (QEMU's), `door.json` (address and secret), `console.log` of the last run | yes |
//! | `<state>/memory/<id>/` | kept memory | no use |
//! | `<run>/machines/<id>/log` | console, end record and QEMU's words, in a small tmpfs | no |
//! | `<state>/images/layer-*.squashfs` | the guest's layer as a disk | yes |

mod channel;
mod command;
mod door;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod keep;
mod kernel;
mod launch;
mod memory;
mod migrate;
mod origin;
mod probe;
mod qmp;
mod rest;
mod start;

pub(crate) use command::Accelerator;
pub(crate) use memory::still_owed;
pub(crate) use probe::Found;

use crate::cgroup::{self, CgroupLimits};
use crate::disk::DiskCap;
use crate::driver::{Asked, DriverCapabilities, DriverError, MachineDriver, Start};
use crate::files::{make_dir, remove_all};
use crate::limits::{
    ASK_TO_END_WAIT_MAX, ENDPOINT_CONNECT_WAIT_MAX, QEMU_OVERHEAD_BYTES, QEMU_THREADS_MAX,
};
use crate::machine_log::MachineLog;
use crate::mounts;
use crate::network::Network;
use crate::process::{Process, ProcessId};
use crate::settings::{HostSettings, IsolationSetting};
use door::DoorFile;
use kernel::Kernel;
use memory::Memories;
use nix::sys::signal::Signal;
use qmp::Monitor;
use slipway_core::end_record::Ending;
use slipway_core::host_api::{EndpointPort, MachineSpec};
use slipway_core::id::{MachineId, VolumeId};
use slipway_core::units::ByteSize;
use slipway_core::vm::{VOLUME_SERIAL, Wanted};
use slipway_volumes::{AttachAs, VolumeDriver};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Finds out what works here; boots a kernel for it, unless the settings want no virtual machines.
pub(crate) fn find(settings: &HostSettings) -> Found {
    match settings.isolation {
        IsolationSetting::Sandbox => Found::Nothing {
            why: "the settings want sandboxes only".to_owned(),
        },
        IsolationSetting::Auto | IsolationSetting::Vm => {
            let kernel = Kernel::new(settings.kernel_dir.clone());
            probe::probe(&settings.qemu, &kernel, settings.id_base)
        }
    }
}

/// Steps of a start, in order. A test fails, and kills the daemon, after each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartStep {
    /// Directories and the log's room are made.
    Places,
    /// The door is written down and QEMU's monitor listens.
    Door,
    /// The tap is there.
    Tap,
    /// QEMU was started.
    Launch,
    /// It runs the machine, or waits for its memory.
    Greeting,
    /// The machine goes on from kept memory, where there is some.
    Memory,
}

/// The driver.
#[derive(Debug)]
pub(crate) struct VirtualMachines {
    qemu: PathBuf,
    kernel: Kernel,
    found: Found,
    machines_state: PathBuf,
    machines_run: PathBuf,
    cgroup_parent: String,
    id_base: u32,
    scratch: ByteSize,
    disk_cap: DiskCap,
    network: Arc<Network>,
    /// What they were promised of a disk is not there for memory.
    volumes: Arc<dyn VolumeDriver>,
    /// How long nobody uses a machine until it is paused; never if absent.
    pause_after: Option<Duration>,
    rests: rest::Rests,
    memories: Memories,
    /// Those that this process started, so that they are reaped.
    children: Mutex<HashMap<MachineId, Child>>,
    #[cfg(test)]
    after_step: fn(StartStep) -> Result<(), DriverError>,
}

/// Where memory is kept.
pub(crate) fn memory_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("memory")
}

impl VirtualMachines {
    /// Makes the directories that all machines share. Machines that an earlier daemon made are cleared away whatever was
    /// found; new ones run on it.
    ///
    /// # Errors
    /// [`DriverError::System`].
    pub(crate) fn new(
        settings: &HostSettings,
        network: Arc<Network>,
        volumes: Arc<dyn VolumeDriver>,
        found: Found,
    ) -> Result<Self, DriverError> {
        let kept = memory_dir(&settings.state_dir);
        let memories = Memories::open(kept.clone(), settings.kept_memory)
            .map_err(DriverError::at("look through", &kept))?;
        let vm = Self {
            qemu: settings.qemu.clone(),
            kernel: Kernel::new(settings.kernel_dir.clone()),
            found,
            machines_state: settings.state_dir.join("machines"),
            machines_run: settings.run_dir.join("machines"),
            cgroup_parent: settings.cgroup_parent.clone(),
            id_base: settings.id_base,
            scratch: settings.scratch,
            disk_cap: settings.disk_cap(),
            network,
            volumes,
            pause_after: settings.pause_after_s.map(Duration::from_secs),
            rests: rest::Rests::default(),
            memories,
            children: Mutex::default(),
            #[cfg(test)]
            after_step: |_| Ok(()),
        };
        for (dir, mode) in [(&vm.machines_state, 0o700), (&vm.machines_run, 0o711)] {
            make_dir(dir, mode).map_err(DriverError::at("make", dir))?;
        }
        Ok(vm)
    }

    /// What machines run on here.
    pub(crate) fn found(&self) -> &Found {
        &self.found
    }

    fn state(&self, machine: &MachineId) -> PathBuf {
        self.machines_state.join(machine.as_str())
    }

    fn home(&self, machine: &MachineId) -> PathBuf {
        self.machines_run.join(machine.as_str())
    }

    fn log(&self, machine: &MachineId) -> MachineLog {
        MachineLog::new(self.home(machine).join("log"))
    }

    fn monitor(&self, machine: &MachineId) -> PathBuf {
        self.state(machine).join("monitor.sock")
    }

    fn cgroup(&self, machine: &MachineId) -> String {
        format!("/{}/{machine}", self.cgroup_parent)
    }

    fn children(&self) -> MutexGuard<'_, HashMap<MachineId, Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&self, step: StartStep, since: &mut Instant) -> Result<(), DriverError> {
        tracing::debug!(?step, elapsed_us = since.elapsed().as_micros(), "start");
        *since = Instant::now();
        #[cfg(test)]
        (self.after_step)(step)?;
        Ok(())
    }

    fn door_file(&self, machine: &MachineId) -> io::Result<DoorFile> {
        DoorFile::read(&self.state(machine).join("door.json"))
    }

    /// Kills what runs of a machine and forgets it. Absent is fine.
    fn end(&self, machine: &MachineId) -> Result<(), DriverError> {
        let cgroup = self.cgroup(machine);
        cgroup::kill_and_remove(&cgroup)
            .map_err(DriverError::at("remove the cgroup", Path::new(&cgroup)))?;
        if let Some(mut child) = self.children().remove(machine) {
            // The cgroups are gone, and so is it; here it is only reaped.
            let _ = child.kill();
            let _ = child.wait();
        }
        Ok(())
    }

    fn remove_files(&self, machine: &MachineId) -> Result<(), DriverError> {
        let (state, home) = (self.state(machine), self.home(machine));
        mounts::unmount_below(&home)?;
        for path in [
            home,
            state.join("monitor.sock"),
            state.join("door.json"),
            state.join("door.next"),
        ] {
            remove_all(&path).map_err(DriverError::at("remove", &path))?;
        }
        let cleared = self.memories.clear(machine);
        cleared.map_err(DriverError::at("remove memory in", &state))
    }
}

/// The machine's, and what QEMU needs for itself.
fn limits(spec: &MachineSpec) -> CgroupLimits {
    CgroupLimits {
        memory_bytes: spec.memory_bytes + QEMU_OVERHEAD_BYTES,
        cpu_millis: spec.cpu_millis,
        pids: QEMU_THREADS_MAX,
    }
}

impl MachineDriver for VirtualMachines {
    fn capabilities(&self) -> DriverCapabilities {
        DriverCapabilities {
            name: "vm",
            volume: AttachAs::Device,
        }
    }

    fn start(&self, start: &Start<'_>) -> Result<ProcessId, DriverError> {
        let machine = &start.spec.machine;
        let Some(accelerator) = self.found.accelerator() else {
            return Err(DriverError::Unavailable);
        };
        // It is taken out whatever becomes of it, so that nothing goes on from it twice.
        if let Some(kept) = self.memories.take(machine) {
            match self.start_from(start, accelerator, Some(&kept)) {
                Ok(process) => return Ok(process),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%machine, error, "its kept memory is thrown away, it boots");
                }
            }
        }
        self.start_from(start, accelerator, None)
    }

    fn wanted_slot(&self, machine: &MachineId) -> Option<u16> {
        self.memories.slot(machine)
    }

    fn forget_volume(&self, volume: &VolumeId) {
        self.memories.forget_volume(volume);
    }

    fn volume_grew(&self, machine: &MachineId, device: &Path) -> io::Result<()> {
        let bytes = File::open(device)?.seek(SeekFrom::End(0))?;
        Monitor::connect(&self.monitor(machine))?.resize(VOLUME_SERIAL, bytes)?;
        tracing::info!(%machine, bytes, "its disk has grown");
        Ok(())
    }

    fn limit(&self, spec: &MachineSpec) -> io::Result<()> {
        cgroup::limit(&self.cgroup(&spec.machine), &limits(spec))
    }

    fn ask_to_end(&self, machine: &MachineId, process: &Process) -> io::Result<Asked> {
        if process.has_ended()? {
            return Ok(Asked::Yes);
        }
        self.wake(machine)?;
        let door = self.door_file(machine)?.door(self.network.router());
        let deadline = Instant::now() + ASK_TO_END_WAIT_MAX;
        let lives = || process.has_ended().is_ok_and(|ended| !ended);
        match door.open(Wanted::End, deadline, lives) {
            Ok(_) => Ok(Asked::Yes),
            // It went on its own way, or hears nothing yet.
            Err(_) if process.has_ended()? => Ok(Asked::Yes),
            Err(_) => Ok(Asked::NotYet),
        }
    }

    fn kill(&self, _machine: &MachineId, process: &Process) -> io::Result<()> {
        process.signal(Signal::SIGKILL)
    }

    fn rest(&self, machine: &MachineId, process: &Process) -> io::Result<()> {
        self.rest_if_quiet(machine, process)
    }

    fn ending(&self, machine: &MachineId) -> Ending {
        if self.memories.is_kept(machine) {
            return Ending::Clean;
        }
        self.log(machine).ending()
    }

    fn refused(&self, machine: &MachineId) -> Option<String> {
        self.log(machine).refused()
    }

    fn last_words(&self, machine: &MachineId) -> Option<String> {
        self.log(machine).last_words()
    }

    fn clear(&self, machine: &MachineId, slot: u16) -> Result<(), DriverError> {
        let console = self.state(machine).join("console.log");
        if let Err(error) = self.log(machine).keep_console(&console) {
            tracing::warn!(%machine, %error, "the console is lost");
        }
        self.end(machine)?;
        self.rests.forget(machine);
        self.network.disconnect(slot)?;
        self.network.cut_streams(slot);
        self.remove_files(machine)
    }

    fn connect(&self, machine: &MachineId, port: EndpointPort) -> Result<OwnedFd, DriverError> {
        let failed = |source| DriverError::Endpoint {
            machine: machine.clone(),
            port,
            source,
        };
        self.wake(machine).map_err(failed)?;
        let door = self.door_file(machine).map_err(failed)?;
        let deadline = Instant::now() + ENDPOINT_CONNECT_WAIT_MAX;
        // The tap is there for as long as QEMU is.
        let lives = || self.network.has_link(door.slot);
        door.door(self.network.router())
            .open(Wanted::Endpoint(port), deadline, lives)
            .map_err(failed)
    }
}

/// What cannot be taken back now is taken back by the next clearing; here it can only be told.
fn logged(result: Result<(), DriverError>) {
    if let Err(error) = result {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot take back");
    }
}
