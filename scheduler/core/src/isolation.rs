//! How a machine is walled off from its host and from other orgs' machines.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What machines of one kind are. Callers ask this, never a driver's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineKind {
    /// They have a kernel of their own.
    pub own_kernel: bool,
    /// Their processor is emulated: many times slower.
    #[serde(default)]
    pub emulated: bool,
}

/// What somebody demands of the wall around a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Whatever the host makes of itself.
    #[default]
    Auto,
    /// A container in a user namespace of its own is enough.
    Sandbox,
    /// A virtual machine, and never less.
    Vm,
}

impl Isolation {
    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Sandbox => "sandbox",
            Self::Vm => "vm",
        }
    }

    /// Whether a host that has machines of these kinds has what this demands.
    pub fn is_met_by(self, kinds: &[MachineKind]) -> bool {
        match self {
            Self::Auto | Self::Sandbox => true,
            Self::Vm => kinds.iter().any(|kind| kind.own_kernel),
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not a kind of isolation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no isolation (hint: auto, sandbox or vm)")]
pub struct InvalidIsolation(String);

impl FromStr for Isolation {
    type Err = InvalidIsolation;
    fn from_str(text: &str) -> Result<Self, InvalidIsolation> {
        [Self::Auto, Self::Sandbox, Self::Vm]
            .into_iter()
            .find(|isolation| isolation.as_str() == text)
            .ok_or_else(|| InvalidIsolation(text.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for isolation in [Isolation::Auto, Isolation::Sandbox, Isolation::Vm] {
            assert_eq!(isolation.to_string().parse(), Ok(isolation));
        }
        assert!("VM".parse::<Isolation>().is_err());
    }

    #[test]
    fn only_a_virtual_machine_is_one() {
        let kind = |own_kernel| MachineKind {
            own_kernel,
            emulated: false,
        };
        let (sandbox, vm) = (kind(false), kind(true));
        assert!(!Isolation::Vm.is_met_by(&[sandbox]));
        assert!(!Isolation::Vm.is_met_by(&[]));
        assert!(Isolation::Vm.is_met_by(&[sandbox, vm]));
        assert!(Isolation::Auto.is_met_by(&[sandbox]));
    }
}
