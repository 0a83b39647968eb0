//! So many at once and then one every so often: of anything, and of log lines that others can cause at will.
//!
//! Must not know: what is counted.

use crate::bounds::{LOG_LINE_EVERY, LOG_LINES_MAX};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A bucket of tokens that fills by one every so often.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bucket {
    /// From when on it is full, if nothing is taken.
    full_at: Option<Instant>,
}

impl Bucket {
    pub(crate) const fn full() -> Self {
        Self { full_at: None }
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, now: Instant, size: u32, every: Duration) -> bool {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now)) + every;
        let takes = full_at.duration_since(now) <= every * size;
        if takes {
            self.full_at = Some(full_at);
        }
        takes
    }

    /// Nothing was taken lately, so nothing is lost if it is forgotten.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|full_at| full_at <= now)
    }

    /// From when on it is full.
    pub(crate) fn full_at(&self) -> Option<Instant> {
        self.full_at
    }
}

/// Bounds a kind of log line: those beyond it are counted, and the next one that is written tells how many there were.
#[derive(Debug)]
pub(crate) struct LogLimit(Mutex<Lines>);

#[derive(Debug)]
struct Lines {
    bucket: Bucket,
    left_out: u64,
}

impl LogLimit {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Lines {
            bucket: Bucket::full(),
            left_out: 0,
        }))
    }

    /// Whether a line may be written; if so, how many were left out since the last one.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.bucket.take(now, LOG_LINES_MAX, LOG_LINE_EVERY) {
            return Some(std::mem::take(&mut lines.left_out));
        }
        lines.left_out += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_what_it_holds_and_then_one_every_so_often() {
        let (mut bucket, now) = (Bucket::full(), Instant::now());
        let every = Duration::from_secs(2);
        let taken =
            |bucket: &mut Bucket, at| (0..100).filter(|_| bucket.take(at, 30, every)).count();
        assert!(bucket.is_full(now));
        assert_eq!(taken(&mut bucket, now), 30);
        assert_eq!(taken(&mut bucket, now + every / 2), 0);
        assert_eq!(taken(&mut bucket, now + every), 1);
        assert_eq!(taken(&mut bucket, now + every * 11), 10);
        assert!(!bucket.is_full(now + every * 40));
        assert!(bucket.is_full(now + every * 41));
        assert_eq!(taken(&mut bucket, now + every * 1000), 30);
    }

    #[test]
    fn lines_beyond_the_bound_are_counted() {
        let (limit, now) = (LogLimit::new(), Instant::now());
        let written = (0..1000).filter_map(|_| limit.admit(now)).count();
        assert_eq!(written, LOG_LINES_MAX as usize);
        let left_out = 1000 - u64::from(LOG_LINES_MAX);
        assert_eq!(limit.admit(now + LOG_LINE_EVERY), Some(left_out));
        assert_eq!(limit.admit(now + LOG_LINE_EVERY * 2), Some(0));
    }
}
