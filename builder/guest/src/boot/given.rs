//! What a guest begins with, whichever way it was handed over.

use super::{Channel, OwnVolume};
use crate::descriptors::Descriptors;

/// What the guest lives on.
#[derive(Debug)]
pub(crate) struct Given {
    /// Listeners and end record.
    pub(crate) descriptors: Descriptors,
    /// What it is the guest of.
    pub(crate) machine: Machine,
}

/// The kind of machine.
#[derive(Debug)]
pub(crate) enum Machine {
    /// The host reaches the listeners directly, and owns the cache volume's mount.
    Sandbox,
    /// A kernel of its own.
    Virtual {
        /// How the host reaches the listeners.
        channel: Channel,
        /// Its cache volume.
        volume: OwnVolume,
        /// Everything takes many times as long.
        emulated: bool,
        /// Its host may keep its memory when it ends for want of use.
        offers_memory: bool,
    },
}

impl Given {
    /// What a sandbox's host has handed over.
    pub(crate) fn of_sandbox(descriptors: Descriptors) -> Self {
        Self {
            descriptors,
            machine: Machine::Sandbox,
        }
    }
}
