//! How a machine is started: what is opened for it, its door, its tap, QEMU; and what the memory it goes on from must belong to.
//!
//! Must not know: when kept memory is taken out.

use super::command::{self, Accelerator, Line, Passed};
use super::door::{self, DoorFile};
use super::kernel::{self, KernelFiles};
use super::memory::{Kept, Note};
use super::origin::{self, Origin, VolumeMark};
use super::qmp::Monitor;
use super::{StartStep, VirtualMachines, launch, limits, logged};
use crate::cgroup;
use crate::driver::{DriverError, Start};
use crate::endpoint;
use crate::files::make_dir;
use crate::limits::MACHINE_IDS;
use crate::process::ProcessId;
use crate::sys::Confinement;
use crate::undo::Undo;
use slipway_core::id::MachineId;
use slipway_core::vm::Boot;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

/// What is opened for a machine.
#[derive(Debug)]
struct Files {
    kernel: KernelFiles,
    base: File,
    layer: File,
    volume: File,
    qemu: File,
}

impl VirtualMachines {
    /// Starts a machine that boots, or goes on from kept memory. When it fails, nothing is left.
    pub(super) fn start_from(
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
        self.memories.are_kept() && !origin::is_encrypted(&start.volume.path())
    }

    fn open(&self, start: &Start<'_>) -> Result<Files, DriverError> {
        let device = start.volume.path();
        let volume = File::options().read(true).write(true).open(&device);
        Ok(Files {
            kernel: self.kernel.open()?,
            base: kernel::open(&start.image.base_file)?,
            layer: self.kernel.layer_disk(&start.image.layer)?,
            volume: volume.map_err(DriverError::at("open", &device))?,
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
            scratch_bytes: start.scratch(self.scratch).0,
            wipes: self.may_keep(start),
            disk_cap: self.disk_cap,
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
            let volume = volume.map_err(DriverError::at("read", &start.volume.path()))?;
            if let Some(why) = kept.manifest.origin.differs(&origin) {
                return Err(DriverError::OtherMemory(why));
            }
            if kept.manifest.volume != volume {
                return Err(DriverError::OtherMemory("its volume was used meanwhile"));
            }
        }
        let note = Note {
            origin,
            device: start.volume.path(),
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
            root: launch::root().map_err(DriverError::at(
                "look at",
                Path::new("the system's programs"),
            ))?,
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
}
