//! The wall clock.
//!
//! Must not know: what the time is for.

use slipway_core::time::Timestamp;
use std::time::SystemTime;

/// What it shows.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
