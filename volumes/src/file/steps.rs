//! The steps of the driver's operations, as places where tests let them fail.
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

/// Lets a step go on, or in tests fail.
#[derive(Debug, Default)]
pub(super) struct Steps {
    #[cfg(test)]
    pub(super) fail_at: std::sync::Mutex<Option<Step>>,
}

impl Steps {
    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "as in tests, where it can fail"
    )]
    pub(super) fn enter(&self, _step: Step) -> Result<(), VolumeError> {
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn enter(&self, step: Step) -> Result<(), VolumeError> {
        let mut fail_at = self.fail_at.lock().unwrap();
        if *fail_at != Some(step) {
            return Ok(());
        }
        *fail_at = None;
        Err(VolumeError::Io {
            action: "injected failure",
            path: format!("{step:?}").into(),
            source: std::io::Error::other("injected"),
        })
    }
}
