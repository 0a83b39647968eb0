//! When an attempt is repeated, and after how long.
//!
//! Pure but for the random part of a wait.

use crate::limits::{ATTEMPTS, BACKOFF_FIRST, BACKOFF_MAX, RETRY_AFTER_MAX};
use http::{HeaderMap, StatusCode, header};
use std::time::Duration;

/// Whether the same request may do better later.
pub(crate) fn is_transient(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
        || (status.is_server_error()
            && !matches!(
                status,
                StatusCode::NOT_IMPLEMENTED | StatusCode::INSUFFICIENT_STORAGE
            ))
}

/// Attempts at one thing.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    made: u32,
}

impl Attempts {
    /// Counts one failed attempt and says how long to wait; `None` when there is no other.
    pub(crate) fn failed(&mut self, retry_after: Option<Duration>) -> Option<Duration> {
        self.made += 1;
        if self.made >= ATTEMPTS || retry_after.is_some_and(|wait| wait > RETRY_AFTER_MAX) {
            return None;
        }
        let own = BACKOFF_FIRST
            .saturating_mul(1 << (self.made - 1).min(16))
            .min(BACKOFF_MAX);
        let jittered = own.mul_f64(0.5 + 0.5 * random_fraction());
        Some(retry_after.map_or(jittered, |wait| wait + jittered / 4))
    }

    /// Something was gained: the next failure is the first again.
    pub(crate) fn progressed(&mut self) {
        self.made = 0;
    }

    /// Failed so far.
    pub(crate) fn made(&self) -> u32 {
        self.made
    }
}

/// Seconds of `Retry-After` (RFC 9110, section 10.2.3). A date is taken as absent: clocks differ.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

fn random_fraction() -> f64 {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(random) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let mut attempts = Attempts::default();
        let waits: Vec<Duration> = std::iter::from_fn(|| attempts.failed(None)).collect();
        assert_eq!(waits.len(), ATTEMPTS as usize - 1);
        for (n, wait) in waits.iter().enumerate() {
            let full = BACKOFF_FIRST.saturating_mul(1 << n).min(BACKOFF_MAX);
            assert!(*wait <= full && *wait >= full / 2, "{n}: {wait:?}");
        }
        attempts.progressed();
        assert!(attempts.failed(None).is_some());
    }

    #[test]
    fn retry_after_is_obeyed_within_reason() {
        let mut attempts = Attempts::default();
        let wait = attempts
            .failed(Some(Duration::from_secs(3)))
            .expect("waits");
        assert!(wait >= Duration::from_secs(3) && wait < Duration::from_secs(4));
        assert_eq!(
            attempts.failed(Some(RETRY_AFTER_MAX + Duration::from_secs(1))),
            None
        );
    }

    #[test]
    fn only_what_may_pass_is_transient() {
        for status in [429, 408, 500, 502, 503, 504] {
            assert!(
                is_transient(StatusCode::from_u16(status).expect("status")),
                "{status}"
            );
        }
        for status in [400, 401, 403, 404, 405, 413, 416, 501, 507] {
            assert!(
                !is_transient(StatusCode::from_u16(status).expect("status")),
                "{status}"
            );
        }
    }
}
