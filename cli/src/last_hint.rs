//! The hint of a failure for which no command had one.

use slipway_terminal::exit::{Failure, FailureKind};

/// Where to look if nobody knew what to do. Who pressed Ctrl-C needs no hint.
pub(crate) fn with_last_hint(failure: Failure) -> Failure {
    match failure.kind() {
        FailureKind::User => failure.hint("`slipway help COMMAND` shows what it takes"),
        FailureKind::System => {
            failure.hint("try again; `slipway status` shows whether the server answers")
        }
        FailureKind::Interrupted => failure,
    }
}
