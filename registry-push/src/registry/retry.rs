//! When an attempt is repeated, and after how long.
//!
//! Pure but for the random part of a wait.

use crate::error::{PushError, Said};
use crate::limits::{
    ATTEMPTS, BACKOFF_FIRST, BACKOFF_MAX, RATE_BACKOFF_FACTOR, RATE_BACKOFF_MAX, RETRY_AFTER_MAX,
};
use http::{HeaderMap, StatusCode, header};
use std::time::{Duration, SystemTime};

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

/// Whether the registry limits the rate: 429, or the 403 that GitHub's registry gives for its secondary limits. A plain 403 stays a
/// missing right.
pub(crate) fn is_rate_limit(status: StatusCode, headers: &HeaderMap, said: &Said) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS
        || (status == StatusCode::FORBIDDEN
            && (headers.contains_key(header::RETRY_AFTER)
                || [
                    "rate limit",
                    "ratelimit",
                    "too many requests",
                    "toomanyrequests",
                ]
                .iter()
                .any(|words| said.mentions(words))))
}

/// A failure to connect that no retry mends: a name that does not exist, a certificate that is not trusted.
pub(super) fn is_hopeless(error: &PushError) -> bool {
    is_caused_by::<rustls::Error>(error)
}

/// Whether an error, or one below it, is an `E`.
pub(super) fn is_caused_by<E: std::error::Error + 'static>(
    error: &(dyn std::error::Error + 'static),
) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(this) = cause {
        if this.downcast_ref::<E>().is_some() {
            return true;
        }
        // An io::Error leaves the error that it wraps out of its `source`.
        let wrapped = this
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        cause = match wrapped {
            Some(inner) => Some(inner),
            None => this.source(),
        };
    }
    false
}

/// Attempts at one thing.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    made: u32,
}

impl Attempts {
    /// Counts one failed attempt and says how long to wait; `None` when there is no other.
    pub(crate) fn failed(&mut self, retry_after: Option<Duration>) -> Option<Duration> {
        self.next(retry_after, 2, BACKOFF_MAX)
    }

    /// The same for a registry that limits the rate: such limits are counted by the minute, so the waits grow faster and further.
    pub(crate) fn limited(&mut self, retry_after: Option<Duration>) -> Option<Duration> {
        self.next(retry_after, RATE_BACKOFF_FACTOR, RATE_BACKOFF_MAX)
    }

    fn next(
        &mut self,
        retry_after: Option<Duration>,
        factor: u32,
        most: Duration,
    ) -> Option<Duration> {
        self.made += 1;
        if self.made >= ATTEMPTS || retry_after.is_some_and(|wait| wait > RETRY_AFTER_MAX) {
            return None;
        }
        let own = BACKOFF_FIRST
            .saturating_mul(factor.saturating_pow(self.made - 1))
            .min(most);
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

/// The wait that `Retry-After` asks for, in seconds or as a date (RFC 9110, section 10.2.3). A date is measured against the answer's own
/// `Date`, because clocks differ; without that it is taken as absent.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| -> Option<SystemTime> { httpdate::parse_http_date(text).ok() };
    let answered = date(headers.get(header::DATE)?.to_str().ok()?)?;
    Some(date(text)?.duration_since(answered).unwrap_or_default())
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
    fn a_rate_limit_is_waited_for_by_the_minute() {
        let mut attempts = Attempts::default();
        let waits: Duration = std::iter::from_fn(|| attempts.limited(None)).sum();
        // Half of each wait is random.
        assert!(waits > Duration::from_secs(20), "{waits:?}");
        assert!(waits < Duration::from_secs(60), "{waits:?}");
    }

    #[test]
    fn retry_after_comes_in_seconds_or_as_a_date() {
        const DATE: &str = "Mon, 30 Nov 2026 10:00:00 GMT";
        for (after, date, expected) in [
            ("3", None, Some(3)),
            (" 0 ", None, Some(0)),
            ("Mon, 30 Nov 2026 10:00:07 GMT", Some(DATE), Some(7)),
            ("Mon, 30 Nov 2026 09:59:00 GMT", Some(DATE), Some(0)),
            ("Mon, 30 Nov 2026 10:00:07 GMT", None, None),
            ("soon", Some(DATE), None),
            ("-1", Some(DATE), None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, after.parse().expect("header"));
            if let Some(date) = date {
                headers.insert(header::DATE, date.parse().expect("header"));
            }
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&headers), expected, "{after}");
        }
    }

    #[test]
    fn a_403_is_a_rate_limit_only_when_it_says_so() {
        let words = |text: &str| Said::from_body(text.as_bytes());
        let mut asks_to_wait = HeaderMap::new();
        asks_to_wait.insert(header::RETRY_AFTER, http::HeaderValue::from_static("2"));
        let none = HeaderMap::new();
        for (status, headers, said, expected) in [
            (429, &none, "", true),
            (
                403,
                &none,
                "You have exceeded a secondary rate limit.",
                true,
            ),
            (403, &asks_to_wait, "", true),
            (
                403,
                &none,
                "denied: permission_denied: write_package",
                false,
            ),
            (401, &asks_to_wait, "rate limit", false),
        ] {
            let status = StatusCode::from_u16(status).expect("status");
            assert_eq!(
                is_rate_limit(status, headers, &words(said)),
                expected,
                "{status} {said}"
            );
        }
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
