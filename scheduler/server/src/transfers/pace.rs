//! Whether a transfer gets on: a client that takes or gives a byte now and then would keep a place of a host from others.
//!
//! Pure. Must not know: streams.

use crate::limits::{TRANSFER_PACE_BYTES_MIN, TRANSFER_PACE_WINDOW};
use std::time::Duration;

/// What a client has done of late. Time that it waited for the host does not count.
#[derive(Debug, Default)]
pub(super) struct Pace {
    took: Duration,
    bytes: u64,
}

/// The client is too slow.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooSlow;

impl Pace {
    /// The client took `took` to take or give so many bytes.
    pub(super) fn moved(&mut self, bytes: usize, took: Duration) -> Result<(), TooSlow> {
        self.took += took;
        self.bytes += bytes as u64;
        if self.took < TRANSFER_PACE_WINDOW {
            return Ok(());
        }
        let enough = self.bytes >= TRANSFER_PACE_BYTES_MIN;
        *self = Self::default();
        if enough { Ok(()) } else { Err(TooSlow) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_byte_now_and_then_is_too_slow() {
        let mut pace = Pace::default();
        let mut seconds = 0;
        while pace.moved(1, SECOND).is_ok() {
            seconds += 1;
        }
        assert_eq!(seconds + 1, TRANSFER_PACE_WINDOW.as_secs());
    }

    #[test]
    fn a_slow_line_is_fast_enough_and_a_pause_is_made_up_for() {
        let mut pace = Pace::default();
        for _ in 0..10 {
            pace.moved(0, TRANSFER_PACE_WINDOW / 2).unwrap();
            for _ in 0..64 {
                pace.moved(32 << 10, SECOND / 2).unwrap();
            }
        }
    }

    #[test]
    fn what_is_fast_is_never_too_slow() {
        let mut pace = Pace::default();
        for _ in 0..1_000_000 {
            pace.moved(128 << 10, Duration::from_millis(1)).unwrap();
        }
    }
}
