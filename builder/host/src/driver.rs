//! What every machine driver can do. Blocking; callers on the runtime use its blocking threads.
//!
//! A driver knows how one kind of machine is started and cleared away. Generations, volumes, records and adoption are
//! the same for all kinds and are not its affair.

use crate::image::{BootImage, ImageError};
use crate::network::NetworkError;
use crate::process::{Process, ProcessId};
use crate::program::ProgramError;
use slipway_core::end_record::Ending;
use slipway_core::host_api::{EndpointPort, MachineSpec};
use slipway_core::id::{MachineId, VolumeId};
use slipway_core::units::ByteSize;
use slipway_volumes::{AttachAs, Attachment};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What a driver offers. Callers branch on these, never on the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DriverCapabilities {
    /// As it is listed in the host's information.
    pub(crate) name: &'static str,
    /// How its machines want their volumes.
    pub(crate) volume: AttachAs,
}

/// Whether a guest was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It has most likely heard of it.
    Yes,
    /// It is so young that it cannot hear yet: ask again.
    NotYet,
}

/// A machine to start.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    /// Which, and how large.
    pub(crate) spec: &'a MachineSpec,
    /// Its place: it chooses ids, address and link, and nobody else has it.
    pub(crate) slot: u16,
    /// Its volume, as [`DriverCapabilities::volume`] wants it.
    pub(crate) volume: &'a Attachment,
    /// What it boots.
    pub(crate) image: &'a BootImage,
}

impl Start<'_> {
    /// What the machine may write outside its volume where the settings give it `most`. It counts as its memory: with more than half
    /// of that, a full one would end the machine's processes instead of being full.
    pub(crate) fn scratch(&self, most: ByteSize) -> ByteSize {
        most.min(ByteSize(self.spec.memory_bytes / 2))
    }
}

/// A kind of machine.
pub(crate) trait MachineDriver: Send + Sync + std::fmt::Debug {
    /// What this driver offers.
    fn capabilities(&self) -> DriverCapabilities;

    /// The place in which a machine would start fastest, if one does. It starts in any other as well.
    fn wanted_slot(&self, _machine: &MachineId) -> Option<u16> {
        None
    }

    /// Starts a machine that is cleared away. When it fails, nothing is left.
    ///
    /// # Errors
    /// [`DriverError`].
    fn start(&self, start: &Start<'_>) -> Result<ProcessId, DriverError>;

    /// Writes the limits of a running machine anew: whoever manages the host's cgroups may have changed them meanwhile
    /// (systemd takes controllers away from trees that no unit of its own wants them for).
    ///
    /// # Errors
    /// A limit could not be written; the others are.
    fn limit(&self, spec: &MachineSpec) -> io::Result<()>;

    /// Asks the guest to end by itself. Asking again changes nothing. May take a second.
    ///
    /// # Errors
    /// Only when the system refuses.
    fn ask_to_end(&self, machine: &MachineId, process: &Process) -> io::Result<Asked>;

    /// Ends the machine now, with all in it.
    ///
    /// # Errors
    /// Only when the system refuses.
    fn kill(&self, machine: &MachineId, process: &Process) -> io::Result<()>;

    /// How the guest said that it ended. Ask before [`MachineDriver::clear`].
    fn ending(&self, machine: &MachineId) -> Ending;

    /// Why the guest said that its engine could not start, if it did. Ask before [`MachineDriver::clear`].
    fn refused(&self, machine: &MachineId) -> Option<String>;

    /// What a machine that has ended printed last. Ask before [`MachineDriver::clear`].
    fn last_words(&self, machine: &MachineId) -> Option<String>;

    /// Takes away everything a start may have left, complete or cut off anywhere, and kills what runs. Idempotent.
    ///
    /// # Errors
    /// [`DriverError`]; may be asked again.
    fn clear(&self, machine: &MachineId, slot: u16) -> Result<(), DriverError>;

    /// Takes a machine that nobody has used for a while off the processor until the next [`MachineDriver::connect`], where
    /// the driver can and the settings want it, and keeps the memory of one that ends for want of use. To be called every second or so,
    /// and once whatever the settings want: it also goes on with what an earlier daemon left half done.
    ///
    /// # Errors
    /// It could not be found out or done; it goes on running.
    fn rest(&self, _machine: &MachineId, _process: &Process) -> io::Result<()> {
        Ok(())
    }

    /// Shows a running machine that its volume, which it has as `device`, has become larger. One that mounts its volume sees that by
    /// itself.
    ///
    /// # Errors
    /// It does not hear of it; it does at its next start.
    fn volume_grew(&self, _machine: &MachineId, _device: &Path) -> io::Result<()> {
        Ok(())
    }

    /// Throws away what was kept of machines that had this volume, which is destroyed.
    fn forget_volume(&self, _volume: &VolumeId) {}

    /// A connected stream to a listener of a running machine.
    ///
    /// # Errors
    /// [`DriverError::Endpoint`].
    fn connect(&self, machine: &MachineId, port: EndpointPort) -> Result<OwnedFd, DriverError>;
}

/// Why a driver did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    /// A file, directory, mount or cgroup.
    #[error("{action} {}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The runtime failed.
    #[error("{action}")]
    Runtime {
        /// What was tried.
        action: &'static str,
        /// How it failed.
        #[source]
        source: ProgramError,
    },
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// QEMU does not run what it was started for.
    #[error("QEMU did not start the machine: {words}")]
    Qemu {
        /// What it said.
        words: String,
        /// How its monitor failed.
        #[source]
        source: io::Error,
    },
    /// A machine does not go on from its kept memory.
    #[error("go on from kept memory: {why}")]
    Memory {
        /// In words.
        why: &'static str,
        /// What the system or QEMU said.
        #[source]
        source: io::Error,
    },
    /// Kept memory is another machine's by now.
    #[error("kept memory is of no use: {0}")]
    OtherMemory(&'static str),
    /// This kind of machine cannot be had on this host.
    #[error("this host has no virtual machines; its log says why")]
    Unavailable,
    /// Nothing to boot.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A machine's listener cannot be reached.
    #[error("connect to the {port:?} endpoint of {machine}")]
    Endpoint {
        /// Which machine.
        machine: MachineId,
        /// Which listener.
        port: EndpointPort,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The built-in policy does not parse.
    #[error("the built-in policy is broken")]
    Policy,
    /// A test wanted a failure here.
    #[cfg(test)]
    #[error("failed on purpose")]
    OnPurpose,
}

impl DriverError {
    /// For `map_err`: names the failed action and its object.
    pub(crate) fn at<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::System {
            action,
            path,
            source: source.into(),
        }
    }
}
