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

pub(crate) use command::Accelerator;
pub(crate) use probe::Found;

use crate::cgroup::{self, CgroupLimits};
use crate::driver::{Asked, DriverCapabilities, DriverError, MachineDriver, Start};
use crate::endpoint;
use crate::files::{make_dir, remove_all};
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
use command::{Line, Passed};
use door::DoorFile;
use kernel::{Kernel, KernelFiles};
use memory::{Kept, Memories, Note};
use nix::sys::signal::Signal;
use origin::{Origin, VolumeMark};
use qmp::Monitor;
use slipway_core::host_api::{EndpointPort, MachineSpec};
use slipway_core::id::{MachineId, VolumeId};
use slipway_core::units::ByteSize;
use slipway_core::vm::{Boot, Wanted};
use slipway_volumes::AttachAs;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
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
    /// It runs the machine, or waits for its memory.
    Greeting,
    /// The machine goes on from kept memory, where there is some.
    Memory,
}

/// What is opened for a machine.
#[derive(Debug)]
struct Files {
    kernel: KernelFiles,
    base: File,
    layer: File,
    volume: File,
    qemu: File,
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
    memories: Memories,
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
        let kept = settings.state_dir.join("memory");
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
            network,
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

    /// Writes the door down, a new one or that of kept memory; gives the descriptors of the guest's boot file and of QEMU's monitor.
    fn make_door(
        &self,
        start: &Start<'_>,
        accelerator: Accelerator,
        kept: Option<&Kept>,
    ) -> Result<[OwnedFd; 2], DriverError> {
        let machine = &start.spec.machine;
        let (network, _) = self.network.boot(start.slot);
        let path = self.state(machine).join("door.json");
        let failed = || DriverError::at::<io::Error>("write", &path);
        let door = match kept {
            Some(kept) => kept.manifest.door.clone(),
            None => DoorFile::new(start.slot, &network).map_err(failed())?,
        };
        door.write(&path).map_err(failed())?;
        let boot = door::boot_file(&Boot {
            secret: door.secret_hex(),
            hostname: machine.as_str().replace('_', "-"),
            emulated: accelerator == Accelerator::Tcg,
            offers_memory: self.may_keep(start),
            network,
        })
        .map_err(DriverError::at("make", Path::new("boot")))?;
        let monitor = self.monitor(machine);
        let listener =
            endpoint::listen(&monitor).map_err(DriverError::at("listen at", &monitor))?;
        Ok([boot, listener])
    }

    /// In clear on a disk lies no more of a machine than did before.
    fn may_keep(&self, start: &Start<'_>) -> bool {
        self.memories.are_kept() && !origin::is_encrypted(start.volume)
    }

    fn open(&self, start: &Start<'_>) -> Result<Files, DriverError> {
        let volume = File::options().read(true).write(true).open(start.volume);
        Ok(Files {
            kernel: self.kernel.open()?,
            base: kernel::open(&start.image.base_file)?,
            layer: self.kernel.layer_disk(&start.image.layer)?,
            volume: volume.map_err(DriverError::at("open", start.volume))?,
            qemu: origin::open_program(&self.qemu).map_err(DriverError::at("open", &self.qemu))?,
        })
    }

    /// QEMU's arguments, for a machine that boots or one that waits for its memory.
    fn arguments(&self, start: &Start<'_>, accelerator: Accelerator, waits: bool) -> Vec<String> {
        let (boot_network, mac) = self.network.boot(start.slot);
        command::arguments(&Line {
            name: &start.spec.machine.as_str().replace('_', "-"),
            accelerator,
            memory_bytes: start.spec.memory_bytes,
            cpus: start.spec.cpu_millis.div_ceil(1000).max(1),
            mac: &mac,
            mtu: boot_network.mtu,
            scratch_bytes: self.scratch.0,
            waits,
        })
    }

    /// Finds out whether a machine that starts so may go on from kept memory, and writes down what its own memory belongs to.
    fn compare(
        &self,
        start: &Start<'_>,
        accelerator: Accelerator,
        files: &Files,
        kept: Option<&Kept>,
    ) -> Result<(), DriverError> {
        if !self.may_keep(start) && kept.is_none() {
            return Ok(());
        }
        let arguments = self.arguments(start, accelerator, false);
        let KernelFiles {
            kernel,
            initrd,
            modules,
        } = &files.kernel;
        let booted = [
            kernel,
            initrd,
            modules,
            &files.base,
            &files.layer,
            &files.qemu,
        ];
        let origin = Origin::now(&start.spec.volume, &arguments, &booted)
            .map_err(DriverError::at("look at", Path::new("what is booted")))?;
        if let Some(kept) = kept {
            let volume = VolumeMark::of(&files.volume);
            let volume = volume.map_err(DriverError::at("read", start.volume))?;
            if let Some(why) = kept.manifest.origin.differs(&origin) {
                return Err(DriverError::OtherMemory(why));
            }
            if kept.manifest.volume != volume {
                return Err(DriverError::OtherMemory("its volume was used meanwhile"));
            }
        }
        let note = Note {
            origin,
            device: start.volume.to_owned(),
            memory_bytes: start.spec.memory_bytes,
        };
        let written = self.memories.write_note(&start.spec.machine, &note);
        written.map_err(DriverError::at("write", Path::new("origin.json")))
    }

    /// Passes everything in the order of [`Passed`] to QEMU, and starts it.
    fn launch(
        &self,
        start: &Start<'_>,
        (accelerator, arguments): (Accelerator, &[String]),
        files: Files,
        [boot, monitor]: [OwnedFd; 2],
        tap: OwnedFd,
    ) -> Result<ProcessId, DriverError> {
        let machine = &start.spec.machine;
        let log = self.log(machine);
        let (console, end) = log.open()?;
        let fds: [(Passed, OwnedFd); Passed::ALL.len()] = [
            (Passed::Kernel, files.kernel.kernel.into()),
            (Passed::Initrd, files.kernel.initrd.into()),
            (Passed::Boot, boot),
            (Passed::Base, files.base.into()),
            (Passed::Layer, files.layer.into()),
            (Passed::Modules, files.kernel.modules.into()),
            (Passed::Volume, files.volume.into()),
            (Passed::Console, console.into()),
            (Passed::End, end.into()),
            (Passed::Monitor, monitor),
            (Passed::Tap, tap),
        ];
        debug_assert!(fds.iter().map(|(passed, _)| *passed).eq(Passed::ALL));
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
            arguments,
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

    /// Starts a machine that boots, or goes on from kept memory. When it fails, nothing is left.
    fn start_from(
        &self,
        start: &Start<'_>,
        accelerator: Accelerator,
        kept: Option<&Kept>,
    ) -> Result<ProcessId, DriverError> {
        let machine = &start.spec.machine;
        let began = Instant::now();
        let mut since = began;
        let mut undo = Undo::new();
        undo.push("directories", || logged(self.remove_files(machine)));
        self.make_places(machine)?;
        let files = self.open(start)?;
        self.compare(start, accelerator, &files, kept)?;
        self.done(StartStep::Places, &mut since)?;
        let door = self.make_door(start, accelerator, kept)?;
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
        let arguments = self.arguments(start, accelerator, kept.is_some());
        let process = self.launch(start, (accelerator, &arguments), files, door, tap)?;
        self.done(StartStep::Launch, &mut since)?;
        self.greet(machine)?;
        self.done(StartStep::Greeting, &mut since)?;
        if let Some(kept) = kept {
            self.go_on(machine, kept)?;
            self.done(StartStep::Memory, &mut since)?;
        }
        undo.disarm();
        self.started(machine);
        tracing::info!(%machine, pid = process.pid, kept_memory = kept.is_some(), elapsed_ms = began.elapsed().as_millis(), "started");
        Ok(process)
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

    fn limit(&self, spec: &MachineSpec) -> io::Result<()> {
        cgroup::limit(&self.cgroup(&spec.machine), &limits(spec))
    }

    fn ask_to_end(&self, machine: &MachineId, process: &Process) -> io::Result<Asked> {
        if process.has_ended()? {
            return Ok(Asked::Yes);
        }
        self.wake(machine)?;
        let door = self.door_file(machine)?.door();
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
        self.log(machine).has_end_record() || self.memories.is_kept(machine)
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
        door.door()
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
