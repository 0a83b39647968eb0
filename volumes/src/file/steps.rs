//! The steps of the driver's operations, as places where tests let them fail or the process die.
//!
//! Must not know: what the steps do. Outside tests every step simply goes on.

use crate::error::VolumeError;

/// A place just before an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    CreateImage,
    MakeFileSystem,
    SyncImage,
    PublishImage,
    SyncNames,
    WriteMarker,
    MakeDevice,
    MakeMountPoint,
    Mount,
    FinishAttach,
    Unmount,
    AwaitRelease,
    RemoveMarker,
}

/// Lets a step go on, or in tests not.
#[derive(Debug, Default)]
pub(super) struct Steps {
    #[cfg(test)]
    pub(super) fault: std::sync::Mutex<Option<(Step, Fault)>>,
}

/// What happens at a step, once.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails.
    Error,
    /// The process dies on the spot.
    Death,
}

#[cfg(test)]
impl Step {
    pub(super) const CREATE: [Self; 5] = [
        Self::CreateImage,
        Self::MakeFileSystem,
        Self::SyncImage,
        Self::PublishImage,
        Self::SyncNames,
    ];
    pub(super) const ATTACH: [Self; 5] = [
        Self::WriteMarker,
        Self::MakeDevice,
        Self::MakeMountPoint,
        Self::Mount,
        Self::FinishAttach,
    ];
    pub(super) const DETACH: [Self; 3] = [Self::Unmount, Self::AwaitRelease, Self::RemoveMarker];
}

impl Steps {
    #[cfg(not(test))]
    pub(super) fn enter(&self, _step: Step) -> Result<(), VolumeError> {
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn enter(&self, step: Step) -> Result<(), VolumeError> {
        let mut planned = self.fault.lock().unwrap();
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
