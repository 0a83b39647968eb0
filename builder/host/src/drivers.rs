//! The machine drivers of a host, and which one makes a machine. The choice is pure.
//!
//! Must not know: how any of them works.

use crate::driver::MachineDriver;
use crate::settings::IsolationSetting;
use serde::{Deserialize, Serialize};
use slipway_core::host_api::MachineKind;
use slipway_core::isolation::Isolation;
use std::sync::Arc;

/// A kind of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DriverKind {
    /// An OCI container with a user namespace of its own.
    #[default]
    Sandbox,
    /// A virtual machine.
    Vm,
}

/// How far virtual machines work here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VmSupport {
    /// By the processor.
    Fast,
    /// By emulation.
    Emulated,
    /// Not at all.
    None,
}

/// This host makes no such machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this host makes no machines with isolation '{0}' (hint: isolation in its settings)")]
pub(crate) struct NotOffered(Isolation);

/// What a host offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offer {
    setting: IsolationSetting,
    vm: VmSupport,
}

impl Offer {
    /// As set, where virtual machines work so far.
    pub(crate) fn new(setting: IsolationSetting, vm: VmSupport) -> Self {
        Self { setting, vm }
    }

    /// The kinds that can be had here, the one first that is made when nobody demands one.
    pub(crate) fn kinds(self) -> Vec<DriverKind> {
        match (self.setting, self.vm) {
            (IsolationSetting::Sandbox, _) | (IsolationSetting::Auto, VmSupport::None) => {
                vec![DriverKind::Sandbox]
            }
            (IsolationSetting::Vm, VmSupport::Fast | VmSupport::Emulated) => vec![DriverKind::Vm],
            (IsolationSetting::Vm, VmSupport::None) => vec![],
            (IsolationSetting::Auto, VmSupport::Fast) => vec![DriverKind::Vm, DriverKind::Sandbox],
            (IsolationSetting::Auto, VmSupport::Emulated) => {
                vec![DriverKind::Sandbox, DriverKind::Vm]
            }
        }
    }

    /// What machines of each of [`Self::kinds`] are.
    pub(crate) fn told(self) -> Vec<MachineKind> {
        let emulated = self.vm == VmSupport::Emulated;
        let kinds = self.kinds().into_iter().map(|kind| match kind {
            DriverKind::Sandbox => MachineKind {
                own_kernel: false,
                emulated: false,
            },
            DriverKind::Vm => MachineKind {
                own_kernel: true,
                emulated,
            },
        });
        kinds.collect()
    }

    /// The kind for a machine. A virtual machine is also good for who demands a sandbox only if no sandbox is offered;
    /// never the other way round.
    ///
    /// # Errors
    /// [`NotOffered`].
    pub(crate) fn choose(self, wanted: Isolation) -> Result<DriverKind, NotOffered> {
        let kinds = self.kinds();
        let wish = match wanted {
            Isolation::Auto => None,
            Isolation::Sandbox => Some(DriverKind::Sandbox),
            Isolation::Vm => Some(DriverKind::Vm),
        };
        match wish {
            Some(kind) if kinds.contains(&kind) => Ok(kind),
            Some(DriverKind::Vm) => Err(NotOffered(wanted)),
            Some(DriverKind::Sandbox) | None => kinds.first().copied().ok_or(NotOffered(wanted)),
        }
    }
}

/// All drivers; each is there whatever is offered, to take over what an earlier daemon has made.
#[derive(Debug)]
pub(crate) struct Drivers {
    /// Makes sandboxes.
    pub(crate) sandbox: Arc<dyn MachineDriver>,
    /// Makes virtual machines.
    pub(crate) vm: Arc<dyn MachineDriver>,
    /// Which of them new machines get.
    pub(crate) offer: Offer,
}

impl Drivers {
    /// The one of a kind.
    pub(crate) fn get(&self, kind: DriverKind) -> &Arc<dyn MachineDriver> {
        match kind {
            DriverKind::Sandbox => &self.sandbox,
            DriverKind::Vm => &self.vm,
        }
    }

    /// Names of the kinds that can be had here, the usual one first.
    pub(crate) fn names(&self) -> Vec<String> {
        let kinds = self.offer.kinds().into_iter();
        kinds
            .map(|kind| self.get(kind).capabilities().name.to_owned())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_demands_a_virtual_machine_never_gets_less() {
        use IsolationSetting as Setting;
        for setting in [Setting::Auto, Setting::Vm, Setting::Sandbox] {
            for vm in [VmSupport::Fast, VmSupport::Emulated, VmSupport::None] {
                let chosen = Offer::new(setting, vm).choose(Isolation::Vm);
                assert_ne!(chosen, Ok(DriverKind::Sandbox), "{setting:?} {vm:?}");
                let can = setting != Setting::Sandbox && vm != VmSupport::None;
                assert_eq!(chosen.is_ok(), can, "{setting:?} {vm:?}");
            }
        }
    }

    #[test]
    fn without_a_demand_the_best_that_is_fast() {
        let auto = |vm| Offer::new(IsolationSetting::Auto, vm).choose(Isolation::Auto);
        assert_eq!(auto(VmSupport::Fast), Ok(DriverKind::Vm));
        assert_eq!(auto(VmSupport::Emulated), Ok(DriverKind::Sandbox));
        assert_eq!(auto(VmSupport::None), Ok(DriverKind::Sandbox));
        let vm = Offer::new(IsolationSetting::Vm, VmSupport::Emulated);
        assert_eq!(vm.choose(Isolation::Auto), Ok(DriverKind::Vm));
        assert_eq!(
            vm.choose(Isolation::Sandbox),
            Ok(DriverKind::Vm),
            "more is fine"
        );
        let nothing = Offer::new(IsolationSetting::Vm, VmSupport::None);
        assert!(nothing.choose(Isolation::Auto).is_err());
    }
}
