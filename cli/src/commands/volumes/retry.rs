//! When an export or import is tried again after its connection broke.
//!
//! Must not know: which of them it is.

use crate::api::ApiError;
use crate::api::transfers::may_be_the_last_try;
use crate::backoff::Backoff;
use crate::interrupt::Interrupts;
use slipway_terminal::exit::{Failure, FailureKind, Outcome};
use std::time::Instant;

/// Tries so far.
#[derive(Debug, Default)]
pub(super) struct Retry {
    backoff: Backoff,
    /// Why the last connection broke that was one.
    broke: Option<Failure>,
}

impl Retry {
    /// Waits until the next try. `moved`: the last one brought something.
    ///
    /// # Errors
    /// There is to be none: it was the caller's mistake, it has been tried for long enough, or Ctrl-C.
    pub(super) async fn wait(
        &mut self,
        error: ApiError,
        moved: bool,
        interrupts: &mut Interrupts,
    ) -> Outcome<()> {
        let ApiError { code, failure } = error;
        let waits = self.broke.is_some() && may_be_the_last_try(&code);
        if failure.kind() != FailureKind::System && !waits {
            return Err(failure);
        }
        if moved {
            self.backoff.reset();
        }
        let Some(delay) = self.backoff.next(Instant::now()) else {
            return Err(self.broke.take().unwrap_or(failure));
        };
        if !waits {
            self.broke = Some(failure);
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => Ok(()),
            () = interrupts.wait() => Err(Failure::interrupted("interrupted")),
        }
    }
}
