//! Where no process can stay behind.

use crate::api::shapes::Build;
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::Printer;

/// Refuses.
///
/// # Errors
/// The caller's fault, always.
#[allow(clippy::unused_async, reason = "as on Unix")]
pub(in crate::deploy) async fn supervise() -> Outcome<()> {
    Err(
        Failure::user("--detach does not work on this operating system")
            .hint("leave --detach out, or run slipway in WSL"),
    )
}

/// The right to stay behind: nobody has it.
#[derive(Debug)]
pub(in crate::deploy) enum HandOver {}

impl HandOver {
    /// Of this process: none.
    pub(in crate::deploy) fn of_this_process() -> Option<Self> {
        None
    }

    /// Cannot be.
    ///
    /// # Errors
    /// None.
    pub(in crate::deploy) fn done(self, _build: &Build, _printer: Printer) -> Outcome<()> {
        match self {}
    }
}
