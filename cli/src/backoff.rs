//! How long to wait between tries, and when to stop trying.

use crate::limits::{RECONNECT_DELAY_MAX, RECONNECT_DELAY_MIN, RECONNECT_FOR_MAX};
use std::time::{Duration, Instant};

/// Tries at a broken connection: waits double, and the whole is bounded. A success starts anew.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    since: Option<Instant>,
    next: Option<Duration>,
}

impl Backoff {
    /// How long to wait before the next try; `None` when it has been tried long enough.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) >= RECONNECT_FOR_MAX {
            return None;
        }
        let delay = self.next.unwrap_or(RECONNECT_DELAY_MIN);
        self.next = Some((delay * 2).min(RECONNECT_DELAY_MAX));
        Some(delay)
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_a_bound_and_gives_up() {
        let start = Instant::now();
        let mut backoff = Backoff::default();
        let (mut now, mut waits) = (start, Vec::new());
        while let Some(delay) = backoff.next(now) {
            waits.push(delay.as_millis());
            now += delay;
        }
        assert_eq!(waits[..7], [250, 500, 1000, 2000, 4000, 8000, 8000]);
        let tried = now.duration_since(start);
        assert!(tried >= RECONNECT_FOR_MAX && tried < RECONNECT_FOR_MAX + RECONNECT_DELAY_MAX);
        backoff.reset();
        assert_eq!(backoff.next(now), Some(RECONNECT_DELAY_MIN));
    }
}
