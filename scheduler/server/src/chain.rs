//! Errors in one line, for the log alone.
//!
//! Must not know: who logs.

use crate::host_client::HostClientError;
use slipway_core::host_api::OperatorText;

/// An error and all that caused it, a host's own words too, in one line for the log.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> OperatorText {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        if let Some(HostClientError::Refused(refusal)) = error.downcast_ref() {
            text.push_str(": ");
            text.push_str(refusal.message.for_log());
        }
        next = error.source();
    }
    text.into()
}
