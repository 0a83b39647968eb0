//! Whether virtual machines work here, and on what: found by booting one, because a KVM device that is there may still
//! not boot a kernel.
//!
//! Must not know: machines.

use super::command::{Accelerator, probe_arguments};
use super::kernel::Kernel;
use super::launch;
use crate::sys::Confinement;
use std::path::Path;

/// What the initrd says when it is asked only that.
const FIRST_WORD: &str = "slipway: it boots";

/// What virtual machines run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// KVM boots a kernel.
    Kvm,
    /// It does not, for this reason; QEMU emulates a processor.
    Emulated {
        /// Why.
        why: String,
    },
    /// There can be none, for this reason.
    Nothing {
        /// Why.
        why: String,
    },
}

impl Found {
    /// What a machine runs on; nothing if there can be none.
    pub(crate) fn accelerator(&self) -> Option<Accelerator> {
        match self {
            Self::Kvm => Some(Accelerator::Kvm),
            Self::Emulated { .. } => Some(Accelerator::Tcg),
            Self::Nothing { .. } => None,
        }
    }
}

/// Looks, as user `id`. Takes a second at most where KVM works or fails at once.
pub(super) fn probe(qemu: &Path, kernel: &Kernel, id: u32) -> Found {
    if let Err(why) = has_program(qemu) {
        return Found::Nothing { why };
    }
    if let Err(error) = kernel.open() {
        return Found::Nothing {
            why: format!("{error} (hint: `make setup` makes the kernel)"),
        };
    }
    if !Path::new(launch::KVM).exists() {
        return Found::Emulated {
            why: format!("there is no {}", launch::KVM),
        };
    }
    match boots(qemu, kernel, Accelerator::Kvm, id) {
        Ok(()) => Found::Kvm,
        Err(why) => Found::Emulated { why },
    }
}

fn boots(qemu: &Path, kernel: &Kernel, accelerator: Accelerator, id: u32) -> Result<(), String> {
    let files = kernel.open().map_err(|error| error.to_string())?;
    let confinement = Confinement {
        id,
        group: launch::kvm_group(),
        cgroups: Vec::new(),
        root: launch::root().map_err(|error| error.to_string())?,
    };
    launch::prints(
        qemu,
        &probe_arguments(accelerator),
        [files.kernel, files.initrd],
        confinement,
        FIRST_WORD,
    )
}

fn has_program(qemu: &Path) -> Result<(), String> {
    let mut command = std::process::Command::new(qemu);
    crate::program::run(command.arg("--version"), "").map_err(|error| error.to_string())
}
