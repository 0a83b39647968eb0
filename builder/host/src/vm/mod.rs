//! The `vm` driver: a machine is a virtual machine with a kernel of its own, in a QEMU process that has no right on the host
//! but to the descriptors it is given.
//!
//! Must not know: generations, records, volumes beyond the device they are.
//!
//! | place | what | survives a reboot |
//! |---|---|---|
//! | `<state>/machines/<id>/` | `monitor.sock` (QEMU's), `door.json` (address and secret), `console.log` of the last run | yes |
//! | `<run>/machines/<id>/log` | console, end record and QEMU's words, in a small tmpfs | no |
//! | `<state>/images/layer-*.squashfs` | the guest's layer as a disk | yes |

mod channel;
mod command;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod kernel;
mod launch;
mod probe;
mod qmp;
mod rest;

pub(crate) use command::Accelerator;
pub(crate) use probe::Found;

use crate::cgroup::{self, CgroupLimits};
use crate::driver::{Asked, DriverCapabilities, DriverError, MachineDriver, Start};
use crate::endpoint;
use crate::files::{Outlives, make_dir, remove_all, write_whole};
use crate::limits::{
    ASK_TO_END_WAIT_MAX, ENDPOINT_CONNECT_WAIT_MAX, MACHINE_IDS, QEMU_OVERHEAD_BYTES,
    QEMU_THREADS_MAX,
};
use crate::machine_log::MachineLog;
use crate::mounts;
use crate::network::Network;
use crate::process::{Process, ProcessId};
use crate::settings::{HostSettings, IsolationSetting};
use crate::sys::Confinement;
use crate::undo::Undo;
use channel::Door;
use command::{Line, Passed};
use kernel::Kernel;
use nix::sys::signal::Signal;
use qmp::Monitor;
use serde::{Deserialize, Serialize};
use slipway_core::host_api::{EndpointPort, MachineSpec};
use slipway_core::id::MachineId;
use slipway_core::units::ByteSize;
use slipway_core::vm::{Boot, Wanted};
use slipway_volumes::AttachAs;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
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
    /// It runs the machine.
    Greeting,
}

/// What a daemon that comes later must know of a running machine.
#[derive(Serialize, Deserialize)]
struct DoorFile {
    slot: u16,
    address: Ipv4Addr,
    secret: [u8; slipway_core::vm::SECRET_BYTES],
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
    network: Arc<Network>,
    /// How long nobody uses a machine until it is paused; never if absent.
    pause_after: Option<Duration>,
    rests: rest::Rests,
    /// Those that this process started, so that they are reaped.
    children: Mutex<HashMap<MachineId, Child>>,
    #[cfg(test)]
    after_step: fn(StartStep) -> Result<(), DriverError>,
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
        found: Found,
    ) -> Result<Self, DriverError> {
        let vm = Self {
            qemu: settings.qemu.clone(),
            kernel: Kernel::new(settings.kernel_dir.clone()),
            found,
            machines_state: settings.state_dir.join("machines"),
            machines_run: settings.run_dir.join("machines"),
            cgroup_parent: settings.cgroup_parent.clone(),
            id_base: settings.id_base,
            scratch: settings.scratch,
            network,
            pause_after: settings.pause_after_s.map(Duration::from_secs),
            rests: rest::Rests::default(),
            children: Mutex::default(),
            #[cfg(test)]
            after_step: |_| Ok(()),
        };
        for (dir, mode) in [(&vm.machines_state, 0o700), (&vm.machines_run, 0o711)] {
            make_dir(dir, mode).map_err(DriverError::at("make", dir))?;
        }
        mounts::keep_private(&vm.machines_run)?;
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

    fn make_places(&self, machine: &MachineId) -> Result<(), DriverError> {
        let log = self.log(machine);
        for dir in [&self.state(machine), &self.home(machine), log.dir()] {
            make_dir(dir, 0o700).map_err(DriverError::at("make", dir))?;
        }
        log.mount()
    }

    /// Writes the door down; gives the descriptors of the guest's boot file and of QEMU's monitor.
    fn make_door(
        &self,
        start: &Start<'_>,
        accelerator: Accelerator,
    ) -> Result<[OwnedFd; 2], DriverError> {
        let machine = &start.spec.machine;
        let secret =
            channel::new_secret().map_err(DriverError::at("read", Path::new("/dev/urandom")))?;
        let (network, _) = self.network.boot(start.slot);
        let door = DoorFile {
            slot: start.slot,
            address: network.address,
            secret,
        };
        let boot = Boot {
            secret: secret.iter().map(|byte| format!("{byte:02x}")).collect(),
            hostname: machine.as_str().replace('_', "-"),
            emulated: accelerator == Accelerator::Tcg,
            network,
        };
        let path = self.state(machine).join("door.json");
        let failed = || DriverError::at::<io::Error>("write", &path);
        let bytes = serde_json::to_vec(&door).map_err(|error| failed()(error.into()))?;
        write_whole(&path, &bytes, Outlives::Crash).map_err(failed())?;
        let boot = serde_json::to_vec(&boot).map_err(|error| failed()(error.into()))?;
        let boot = memory_file(&boot).map_err(DriverError::at("make", Path::new("boot")))?;
        let monitor = self.monitor(machine);
        let listener =
            endpoint::listen(&monitor).map_err(DriverError::at("listen at", &monitor))?;
        Ok([boot, listener])
    }

    /// Opens everything in the order of [`Passed`] and starts QEMU with it.
    fn launch(
        &self,
        start: &Start<'_>,
        accelerator: Accelerator,
        [boot, monitor]: [OwnedFd; 2],
        tap: OwnedFd,
    ) -> Result<ProcessId, DriverError> {
        let machine = &start.spec.machine;
        let log = self.log(machine);
        let files = self.kernel.open()?;
        let layer = self.kernel.layer_disk(&start.image.layer)?;
        let base = kernel::open(&start.image.base_file)?;
        let volume = File::options().read(true).write(true).open(start.volume);
        let volume = volume.map_err(DriverError::at("open", start.volume))?;
        let (console, end) = log.open()?;
        let fds: [(Passed, OwnedFd); Passed::ALL.len()] = [
            (Passed::Kernel, files.kernel.into()),
            (Passed::Initrd, files.initrd.into()),
            (Passed::Boot, boot),
            (Passed::Base, base.into()),
            (Passed::Layer, layer.into()),
            (Passed::Modules, files.modules.into()),
            (Passed::Volume, volume.into()),
            (Passed::Console, console.into()),
            (Passed::End, end.into()),
            (Passed::Monitor, monitor),
            (Passed::Tap, tap),
        ];
        debug_assert!(fds.iter().map(|(passed, _)| *passed).eq(Passed::ALL));
        let (boot_network, mac) = self.network.boot(start.slot);
        let arguments = command::arguments(&Line {
            name: &machine.as_str().replace('_', "-"),
            accelerator,
            memory_bytes: start.spec.memory_bytes,
            cpus: start.spec.cpu_millis.div_ceil(1000).max(1),
            mac: &mac,
            mtu: boot_network.mtu,
            scratch_bytes: self.scratch.0,
        });
        let cgroup = self.cgroup(machine);
        let cgroups = cgroup::make(&cgroup, &limits(start.spec))
            .map_err(DriverError::at("make the cgroup", Path::new(&cgroup)))?;
        let confinement = Confinement {
            id: self.id_base + u32::from(start.slot) * MACHINE_IDS,
            group: match accelerator {
                Accelerator::Kvm => launch::kvm_group(),
                Accelerator::Tcg => None,
            },
            cgroups,
        };
        let words = log.dir().join("qemu.log");
        let file = File::create(&words).map_err(DriverError::at("make", &words))?;
        let child = launch::start(
            &self.qemu,
            &arguments,
            &fds.iter().map(|(_, fd)| fd).collect::<Vec<_>>(),
            confinement,
            Stdio::from(file),
        )
        .map_err(DriverError::at("start", &self.qemu))?;
        let process = launch::identify(&child);
        self.children().insert(machine.clone(), child);
        process
    }

    /// Waits until QEMU's monitor greets: by then everything on its command line has worked.
    fn greet(&self, machine: &MachineId) -> Result<(), DriverError> {
        Monitor::connect(&self.monitor(machine))
            .map(drop)
            .map_err(|source| {
                let words = self.log(machine).dir().join("qemu.log");
                let words = fs::read_to_string(&words).unwrap_or_default();
                DriverError::Qemu {
                    words: words.trim().chars().take(2000).collect(),
                    source,
                }
            })
    }

    fn door(&self, machine: &MachineId) -> io::Result<(u16, Door)> {
        let text = fs::read(self.state(machine).join("door.json"))?;
        let DoorFile {
            slot,
            address,
            secret,
        } = serde_json::from_slice(&text)?;
        Ok((slot, Door { address, secret }))
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
        Ok(())
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
        let began = Instant::now();
        let mut since = began;
        let mut undo = Undo::new();
        undo.push("directories", || logged(self.remove_files(machine)));
        self.make_places(machine)?;
        self.done(StartStep::Places, &mut since)?;
        let door = self.make_door(start, accelerator)?;
        self.done(StartStep::Door, &mut since)?;
        undo.push("tap", || {
            logged(
                self.network
                    .disconnect(start.slot)
                    .map_err(DriverError::from),
            );
        });
        let tap = self.network.connect_tap(start.slot)?;
        self.done(StartStep::Tap, &mut since)?;
        undo.push("QEMU", || logged(self.end(machine)));
        let process = self.launch(start, accelerator, door, tap)?;
        self.done(StartStep::Launch, &mut since)?;
        self.greet(machine)?;
        self.done(StartStep::Greeting, &mut since)?;
        undo.disarm();
        self.started(machine);
        tracing::info!(%machine, pid = process.pid, elapsed_ms = began.elapsed().as_millis(), "started");
        Ok(process)
    }

    fn limit(&self, spec: &MachineSpec) -> io::Result<()> {
        cgroup::limit(&self.cgroup(&spec.machine), &limits(spec))
    }

    fn ask_to_end(&self, machine: &MachineId, process: &Process) -> io::Result<Asked> {
        if process.has_ended()? {
            return Ok(Asked::Yes);
        }
        self.wake(machine)?;
        let (_, door) = self.door(machine)?;
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

    fn ended_cleanly(&self, machine: &MachineId) -> bool {
        self.log(machine).has_end_record()
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
        let (slot, door) = self.door(machine).map_err(failed)?;
        let deadline = Instant::now() + ENDPOINT_CONNECT_WAIT_MAX;
        // The tap is there for as long as QEMU is.
        door.open(Wanted::Endpoint(port), deadline, || {
            self.network.has_link(slot)
        })
        .map_err(failed)
    }
}

/// A file without a name that everybody who has it may open anew, for reading.
fn memory_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    use std::io::Write;
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let mut file = File::from(nix::sys::memfd::memfd_create("slipway-boot", flags)?);
    file.write_all(bytes)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o444))?;
    Ok(file.into())
}

/// What cannot be taken back now is taken back by the next clearing; here it can only be told.
fn logged(result: Result<(), DriverError>) {
    if let Err(error) = result {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot take back");
    }
}
