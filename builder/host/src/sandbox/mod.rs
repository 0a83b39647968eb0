//! The `sandbox` driver: a machine is an OCI container with its own user namespace, made by `runc`, in which dockerd runs.
//!
//! Must not know: generations, records, volumes beyond the directory they are mounted at.
//!
//! | place | what | survives a reboot |
//! |---|---|---|
//! | `<state>/machines/<id>/` | `docker.sock`, `guest.sock`, `bundle/`, `console.log` of the last run | yes |
//! | `<run>/machines/<id>/` | mounts: `root`, `scratch`, `log` (console and end record) | no |
//! | `<run>/runc/` | the runtime's own state | no |

mod bundle;
mod policy;
mod rootfs;
#[cfg(test)]
mod tests;

use crate::cgroup::{self, CgroupLimits};
use crate::disk::DiskCap;
use crate::driver::{Asked, DriverCapabilities, DriverError, MachineDriver, Start};
use crate::endpoint;
use crate::files::{make_dir, remove_all};
use crate::limits::{EXEC_WAIT_MAX, MACHINE_IDS};
use crate::mounts;
use crate::network::Network;
use crate::process::{Process, ProcessId, Program};
use crate::program::{ProgramError, run, run_status};
use crate::rlimits;
use crate::settings::HostSettings;
use crate::sys;
use crate::undo::Undo;
use nix::sys::resource::Resource;
use nix::sys::signal::Signal;
use rootfs::Places;
use slipway_core::end_record::Ending;
use slipway_core::host_api::{EndpointPort, MachineSpec};
use slipway_core::id::MachineId;
use slipway_core::units::ByteSize;
use slipway_volumes::{AttachAs, Attachment};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

/// Steps of a start, in order. A test fails, and kills the daemon, after each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartStep {
    /// Directories are made.
    Places,
    /// The tmpfs mounts are there.
    Scratch,
    /// The root file system is put together.
    Root,
    /// The volume is in it.
    Volume,
    /// Listeners are bound and the bundle is written.
    Bundle,
    /// The container is made, PID 1 not yet run.
    Create,
    /// Its cgroups are handed over.
    Delegate,
    /// It is linked to the network.
    Network,
    /// PID 1 runs.
    Run,
}

/// The driver.
#[derive(Debug)]
pub(crate) struct Sandbox {
    runc: PathBuf,
    runc_root: PathBuf,
    machines_state: PathBuf,
    machines_run: PathBuf,
    cgroup_parent: String,
    id_base: u32,
    scratch: ByteSize,
    swap_limit: bool,
    disk_cap: DiskCap,
    network: Arc<Network>,
    #[cfg(test)]
    after_step: fn(StartStep) -> Result<(), DriverError>,
}

impl Sandbox {
    /// Makes the directories that all machines share.
    ///
    /// # Errors
    /// [`DriverError::System`].
    pub(crate) fn new(settings: &HostSettings, network: Arc<Network>) -> Result<Self, DriverError> {
        let sandbox = Self {
            runc: settings.runc.clone(),
            runc_root: settings.run_dir.join("runc"),
            machines_state: settings.state_dir.join("machines"),
            machines_run: settings.run_dir.join("machines"),
            cgroup_parent: settings.cgroup_parent.clone(),
            id_base: settings.id_base,
            scratch: settings.scratch,
            swap_limit: cgroup::can_limit_swap(&settings.cgroup_parent),
            disk_cap: settings.disk_cap(),
            network,
            #[cfg(test)]
            after_step: |_| Ok(()),
        };
        for (dir, mode) in [
            (&sandbox.runc_root, 0o700),
            (&sandbox.machines_state, 0o700),
            (&sandbox.machines_run, 0o711),
        ] {
            make_dir(dir, mode).map_err(DriverError::at("make", dir))?;
        }
        if sandbox.disk_cap.is_set() && !cgroup::can_cap_disk(&settings.cgroup_parent) {
            tracing::warn!(
                "sandboxes have no cap of the disk: that takes cgroup v2 with its io controller (machine_disk_rate, machine_disk_operations)"
            );
        }
        Ok(sandbox)
    }

    fn places(&self, machine: &MachineId) -> Places {
        Places::new(self.machines_run.join(machine.as_str()))
    }

    fn state(&self, machine: &MachineId) -> PathBuf {
        self.machines_state.join(machine.as_str())
    }

    fn cgroup(&self, machine: &MachineId) -> String {
        format!("/{}/{machine}", self.cgroup_parent)
    }

    fn first_id(&self, slot: u16) -> u32 {
        self.id_base + u32::from(slot) * MACHINE_IDS
    }

    fn socket(&self, machine: &MachineId, port: EndpointPort) -> PathBuf {
        self.state(machine).join(match port {
            EndpointPort::Docker => "docker.sock",
            EndpointPort::Guest => "guest.sock",
        })
    }

    fn runc(&self) -> Command {
        let mut command = Command::new(&self.runc);
        command.arg("--root").arg(&self.runc_root);
        command
    }

    fn done(&self, step: StartStep, since: &mut Instant) -> Result<(), DriverError> {
        tracing::debug!(?step, elapsed_us = since.elapsed().as_micros(), "start");
        *since = Instant::now();
        #[cfg(test)]
        (self.after_step)(step)?;
        Ok(())
    }

    /// Writes the bundle and binds the listeners; gives what PID 1 gets as descriptors 3 and 4.
    fn prepare(&self, start: &Start<'_>, root: &Path) -> Result<[OwnedFd; 2], DriverError> {
        let machine = &start.spec.machine;
        let state = self.state(machine);
        let dir = state.join("bundle");
        make_dir(&state, 0o700).map_err(DriverError::at("make", &state))?;
        make_dir(&dir, 0o700).map_err(DriverError::at("make", &dir))?;
        let config = bundle::config(&bundle::Bundle {
            spec: start.spec,
            root,
            id_base: self.first_id(start.slot),
            cgroup: &self.cgroup(machine),
            swap_limit: self.swap_limit,
            ipv6: Path::new("/proc/sys/net/ipv6").exists(),
            nofile: rlimits::hard(Resource::RLIMIT_NOFILE),
            memlock: rlimits::hard(Resource::RLIMIT_MEMLOCK),
        })
        .map_err(|_| DriverError::Policy)?;
        let file = dir.join("config.json");
        fs::write(&file, config.to_string()).map_err(DriverError::at("write", &file))?;
        let bind = |port| {
            let path = self.socket(machine, port);
            endpoint::listen(&path).map_err(DriverError::at("listen at", &path))
        };
        Ok([bind(EndpointPort::Docker)?, bind(EndpointPort::Guest)?])
    }

    /// `runc create`: all namespaces and limits are there, PID 1 waits. Gives its number.
    fn create(
        &self,
        machine: &MachineId,
        places: &Places,
        listeners: [OwnedFd; 2],
    ) -> Result<i32, DriverError> {
        let state = self.state(machine);
        let (pid_file, log) = (state.join("pid"), state.join("runc.log"));
        for stale in [&pid_file, &log] {
            remove_all(stale).map_err(DriverError::at("remove", stale))?;
        }
        let (console, end_record) = places.log.open()?;
        let mut command = self.runc();
        command
            .arg("--log")
            .arg(&log)
            .arg("create")
            .arg("--bundle")
            .arg(state.join("bundle"));
        command.arg("--pid-file").arg(&pid_file);
        command
            .arg("--preserve-fds")
            .arg(bundle::PASSED_FDS.to_string())
            .arg(machine.as_str());
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let end_record = OwnedFd::from(end_record);
        let [docker, guest] = &listeners;
        sys::pass_fds(&mut command, &[docker, guest, &end_record])
            .map_err(DriverError::at("pass on", &state))?;
        let errors = console
            .try_clone()
            .map_err(DriverError::at("open", &places.log.console()))?;
        command.stdout(console).stderr(errors);
        let failed = |source| DriverError::Runtime {
            action: "create the container",
            source,
        };
        let status = run_status(&mut command).map_err(failed)?;
        if !status.success() {
            let program = self.runc.display().to_string();
            let output = fs::read_to_string(&log)
                .unwrap_or_default()
                .trim()
                .to_owned();
            return Err(failed(ProgramError::Failed {
                program,
                status,
                output,
            }));
        }
        let text = fs::read_to_string(&pid_file).map_err(DriverError::at("read", &pid_file))?;
        text.trim()
            .parse()
            .map_err(|_| DriverError::at("parse", &pid_file)(io::Error::other("not a number")))
    }

    /// `runc start`, until PID 1 is the guest. The runtime answers a moment before its own program has made room for it,
    /// and a signal of that moment would meet the runtime's handlers: ended by them, or lost.
    fn run_guest(&self, machine: &MachineId, pid: i32) -> Result<(), DriverError> {
        let path = PathBuf::from(format!("/proc/{pid}/exe"));
        let runtime = Program::of(pid).map_err(DriverError::at("examine", &path))?;
        run(self.runc().arg("start").arg(machine.as_str()), "").map_err(|source| {
            DriverError::Runtime {
                action: "start the container",
                source,
            }
        })?;
        runtime
            .wait_for_another(pid, EXEC_WAIT_MAX)
            .map_err(DriverError::at("wait for another program at", &path))
    }

    /// `runc delete --force`: kills what runs, forgets it, removes its cgroups. Absent is fine.
    fn delete(&self, machine: &MachineId) -> Result<(), DriverError> {
        let cgroup = self.cgroup(machine);
        let clear = || {
            cgroup::kill_and_remove(&cgroup)
                .map_err(DriverError::at("remove the cgroup", Path::new(&cgroup)))
        };
        // First, for the runtime can neither thaw nor find what a machine's root may have made.
        clear()?;
        if self.runc_root.join(machine.as_str()).exists() {
            let mut command = self.runc();
            command.args(["delete", "--force"]).arg(machine.as_str());
            if let Err(error) = run(&mut command, "") {
                // A state that was cut off while it was written; what it was for is taken away below.
                tracing::warn!(%machine, error = &error as &dyn std::error::Error, "the runtime cannot delete the container");
            }
            let state = self.runc_root.join(machine.as_str());
            remove_all(&state).map_err(DriverError::at("remove", &state))?;
        }
        clear()
    }
}

/// The number of the device that a volume's file system lies on.
fn device_of(volume: &Attachment) -> io::Result<u64> {
    Ok(fs::metadata(volume.path())?.dev())
}

impl MachineDriver for Sandbox {
    fn capabilities(&self) -> DriverCapabilities {
        DriverCapabilities {
            name: "sandbox",
            volume: AttachAs::Mount,
        }
    }

    fn start(&self, start: &Start<'_>) -> Result<ProcessId, DriverError> {
        let (machine, first_id) = (&start.spec.machine, self.first_id(start.slot));
        let places = self.places(machine);
        let began = Instant::now();
        let mut since = began;
        let mut undo = Undo::new();

        undo.push("directories and mounts", || logged(places.remove()));
        places.make(first_id)?;
        self.done(StartStep::Places, &mut since)?;
        undo.push("bundle and listeners", || {
            logged(self.remove_bundle(machine))
        });
        let listeners = self.prepare(start, &places.root)?;
        self.done(StartStep::Bundle, &mut since)?;
        undo.push("container", || logged(self.delete(machine)));
        let pid = mounts::in_own_namespace(|| {
            places.mount_scratch(start.scratch(self.scratch), first_id)?;
            self.done(StartStep::Scratch, &mut since)?;
            let ids = rootfs::ids(first_id)?;
            places.mount_root(start, &ids)?;
            self.done(StartStep::Root, &mut since)?;
            places.mount_volume(start.volume, &ids)?;
            self.done(StartStep::Volume, &mut since)?;
            self.create(machine, &places, listeners)
        })?;
        let process = ProcessId::of(pid).map_err(DriverError::at(
            "examine process",
            Path::new(&pid.to_string()),
        ))?;
        self.done(StartStep::Create, &mut since)?;
        let cgroup = self.cgroup(machine);
        device_of(start.volume)
            .and_then(|device| cgroup::cap_disk(&cgroup, device, self.disk_cap))
            .and_then(|()| cgroup::bound(&cgroup))
            .map_err(DriverError::at("bound the cgroup", Path::new(&cgroup)))?;
        cgroup::delegate(&cgroup, first_id)
            .map_err(DriverError::at("hand over the cgroup", Path::new(&cgroup)))?;
        self.done(StartStep::Delegate, &mut since)?;
        undo.push("network", || {
            logged(
                self.network
                    .disconnect(start.slot)
                    .map_err(DriverError::from),
            )
        });
        self.network.connect(start.slot, pid)?;
        self.done(StartStep::Network, &mut since)?;
        self.run_guest(machine, pid)?;
        self.done(StartStep::Run, &mut since)?;
        undo.disarm();
        tracing::info!(%machine, pid, elapsed_ms = began.elapsed().as_millis(), "started");
        Ok(process)
    }

    fn limit(&self, spec: &MachineSpec) -> io::Result<()> {
        let limits = CgroupLimits {
            memory_bytes: spec.memory_bytes,
            cpu_millis: spec.cpu_millis,
            pids: spec.pids_max,
        };
        cgroup::limit(&self.cgroup(&spec.machine), &limits)
    }

    fn ask_to_end(&self, _machine: &MachineId, process: &Process) -> io::Result<Asked> {
        if process.has_ended()? {
            return Ok(Asked::Yes);
        }
        match process.heeds(Signal::SIGTERM) {
            Ok(true) => process.signal(Signal::SIGTERM).map(|()| Asked::Yes),
            Ok(false) => Ok(Asked::NotYet),
            // It ended between the two looks.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Asked::Yes),
            Err(error) => Err(error),
        }
    }

    fn kill(&self, machine: &MachineId, process: &Process) -> io::Result<()> {
        // With PID 1, the kernel kills everything in its PID namespace, unless it is frozen.
        process.signal(Signal::SIGKILL)?;
        cgroup::kill(&self.cgroup(machine))
    }

    fn ending(&self, machine: &MachineId) -> Ending {
        self.places(machine).log.ending()
    }

    fn refused(&self, machine: &MachineId) -> Option<String> {
        self.places(machine).log.refused()
    }

    fn last_words(&self, machine: &MachineId) -> Option<String> {
        self.places(machine).log.last_words()
    }

    fn clear(&self, machine: &MachineId, slot: u16) -> Result<(), DriverError> {
        let places = self.places(machine);
        let console = self.state(machine).join("console.log");
        if let Err(error) = places.log.keep_console(&console) {
            tracing::warn!(%machine, %error, "the console is lost");
        }
        self.delete(machine)?;
        self.network.disconnect(slot)?;
        places.remove()?;
        self.remove_bundle(machine)
    }

    fn connect(&self, machine: &MachineId, port: EndpointPort) -> Result<OwnedFd, DriverError> {
        let failed = |source| DriverError::Endpoint {
            machine: machine.clone(),
            port,
            source,
        };
        // A full backlog is the caller's to wait for: there is nothing here to wait on.
        endpoint::connect(&self.socket(machine, port)).map_err(failed)
    }
}

impl Sandbox {
    fn remove_bundle(&self, machine: &MachineId) -> Result<(), DriverError> {
        let state = self.state(machine);
        for name in ["bundle", "docker.sock", "guest.sock", "pid", "runc.log"] {
            let path = state.join(name);
            remove_all(&path).map_err(DriverError::at("remove", &path))?;
        }
        Ok(())
    }
}

/// What cannot be taken back now is taken back by the next clearing; here it can only be told.
fn logged(result: Result<(), DriverError>) {
    if let Err(error) = result {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot take back");
    }
}
