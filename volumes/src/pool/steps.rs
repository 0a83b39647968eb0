//! The steps of a pool's verbs, as places where tests let them fail or the process die.
//!
//! Must not know: what the steps do. Outside tests every step simply goes on.

use crate::error::VolumeError;

/// A place just before an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Reserve,
    Fill,
    Encrypt,
    MakeFileSystem,
    Publish,
    Settle,
    WriteMarker,
    MakeDevice,
    OpenClear,
    Mount,
    FinishAttach,
    Unmount,
    FreeDevice,
    AwaitRelease,
    RemoveMarker,
    ReserveSnapshot,
    FillSnapshot,
    PublishSnapshot,
    SettleSnapshot,
    /// A mounted file system stands still.
    Clone,
    Send,
    Receive,
    Grow,
    GrowClear,
    GrowFileSystem,
    EraseKeys,
    Remove,
    RemoveNames,
}

/// Lets a step go on, or in tests not.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    #[cfg(test)]
    fault: std::sync::Mutex<Option<(Step, Fault)>>,
}

/// What happens at a step, once.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails.
    Error,
    /// The process dies on the spot.
    Death,
}

#[cfg(test)]
impl Step {
    pub(crate) const CREATE: [Self; 4] = [
        Self::Reserve,
        Self::MakeFileSystem,
        Self::Publish,
        Self::Settle,
    ];
    pub(crate) const CLONE: [Self; 4] = [Self::Reserve, Self::Fill, Self::Publish, Self::Settle];
    pub(crate) const ATTACH: [Self; 4] = [
        Self::WriteMarker,
        Self::MakeDevice,
        Self::Mount,
        Self::FinishAttach,
    ];
    pub(crate) const DETACH: [Self; 4] = [
        Self::Unmount,
        Self::FreeDevice,
        Self::AwaitRelease,
        Self::RemoveMarker,
    ];
    pub(crate) const SNAPSHOT: [Self; 4] = [
        Self::ReserveSnapshot,
        Self::FillSnapshot,
        Self::PublishSnapshot,
        Self::SettleSnapshot,
    ];
    pub(crate) const IMPORT: [Self; 4] =
        [Self::Reserve, Self::Receive, Self::Publish, Self::Settle];
    pub(crate) const EXTEND: [Self; 2] = [Self::Grow, Self::GrowFileSystem];
    pub(crate) const DESTROY: [Self; 2] = [Self::Remove, Self::RemoveNames];
}

impl Steps {
    #[cfg(not(test))]
    pub(crate) fn enter(&self, _step: Step) -> Result<(), VolumeError> {
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn fail_at(&self, step: Step, fault: Fault) {
        *self
            .fault
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some((step, fault));
    }

    #[cfg(test)]
    pub(crate) fn enter(&self, step: Step) -> Result<(), VolumeError> {
        let mut planned = self
            .fault
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match *planned {
            Some((at, Fault::Error)) if at == step => {
                *planned = None;
                Err(VolumeError::Io {
                    action: "injected failure",
                    path: format!("{step:?}").into(),
                    source: std::io::Error::other("injected"),
                })
            }
            Some((at, Fault::Death)) if at == step => std::process::abort(),
            Some(_) | None => Ok(()),
        }
    }
}
