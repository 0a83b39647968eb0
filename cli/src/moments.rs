//! Points in time and durations as people read them. `--json` has the exact ones.
//!
//! Must not know any command.

use std::time::{Duration, SystemTime};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 365 * DAY;

/// How long ago that was, as `3h ago`. What is no time of the server's stays as it is.
pub(crate) fn ago(at: &str) -> String {
    ago_from(at, SystemTime::now())
}

/// When that is, as `in 3d`, or how long ago it was.
pub(crate) fn until(at: &str) -> String {
    until_from(at, SystemTime::now())
}

/// The same moment to the second, and how long ago it was.
pub(crate) fn exact(at: &str) -> String {
    match humantime::parse_rfc3339(at) {
        Ok(time) => format!(
            "{} ({})",
            humantime::format_rfc3339_seconds(time),
            until(at)
        ),
        Err(_) => at.to_owned(),
    }
}

/// How long something took, or has taken so far if it has not ended.
pub(crate) fn took(began: &str, ended: Option<&str>) -> String {
    took_from(began, ended, SystemTime::now())
}

fn ago_from(at: &str, now: SystemTime) -> String {
    match humantime::parse_rfc3339(at) {
        // The server's clock may be ahead of this one.
        Ok(time) => format!(
            "{} ago",
            short(now.duration_since(time).unwrap_or_default())
        ),
        Err(_) => at.to_owned(),
    }
}

fn until_from(at: &str, now: SystemTime) -> String {
    match humantime::parse_rfc3339(at).map(|time| time.duration_since(now)) {
        Ok(Ok(ahead)) => format!("in {}", short(ahead)),
        Ok(Err(_)) | Err(_) => ago_from(at, now),
    }
}

fn took_from(began: &str, ended: Option<&str>, now: SystemTime) -> String {
    let end = ended.map_or(Ok(now), humantime::parse_rfc3339);
    match (humantime::parse_rfc3339(began), end) {
        (Ok(began), Ok(end)) => precise(end.duration_since(began).unwrap_or_default()),
        (Err(_), _) | (_, Err(_)) => String::new(),
    }
}

/// One unit, rounded down: an age.
fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    let (count, unit) = match seconds {
        0..MINUTE => (seconds, "s"),
        MINUTE..HOUR => (seconds / MINUTE, "m"),
        HOUR..DAY => (seconds / HOUR, "h"),
        DAY..YEAR => (seconds / DAY, "d"),
        YEAR.. => (seconds / YEAR, "y"),
    };
    format!("{count}{unit}")
}

/// As precise as it matters: `0.8s`, `42s`, `3m20s`, `2h05m`.
fn precise(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", time.as_secs_f64()),
        10..MINUTE => format!("{seconds}s"),
        MINUTE..HOUR => format!("{}m{:02}s", seconds / MINUTE, seconds % MINUTE),
        HOUR.. => format!("{}h{:02}m", seconds / HOUR, seconds % HOUR / MINUTE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn ages_have_one_unit() {
        let now = at("2026-11-30T08:43:03.538Z");
        for (then, said) in [
            ("2026-11-30T08:43:03.538Z", "0s ago"),
            ("2026-11-30T08:42:04Z", "59s ago"),
            ("2026-11-30T08:40:03.000Z", "3m ago"),
            ("2026-11-29T08:43:04Z", "23h ago"),
            ("2026-11-18T08:43:03Z", "12d ago"),
            ("2020-01-01T00:00:00Z", "6y ago"),
            // A clock that is ahead.
            ("2026-11-30T08:43:05Z", "0s ago"),
            ("yesterday", "yesterday"),
        ] {
            assert_eq!(ago_from(then, now), said);
        }
        assert_eq!(until_from("2026-12-05T08:43:04Z", now), "in 5d");
        assert_eq!(until_from("2026-11-30T08:40:03Z", now), "3m ago");
        assert_eq!(until_from("soon", now), "soon");
        let shown = exact("2026-11-30T08:43:03.538Z");
        assert!(shown.starts_with("2026-11-30T08:43:03Z ("), "{shown}");
    }

    #[test]
    fn durations_are_as_precise_as_it_matters() {
        let began = "2026-11-30T08:00:00Z";
        for (ended, said) in [
            ("2026-11-30T08:00:00.840Z", "0.8s"),
            ("2026-11-30T08:00:42.9Z", "42s"),
            ("2026-11-30T08:03:20Z", "3m20s"),
            ("2026-11-30T10:05:59Z", "2h05m"),
            ("2026-11-30T07:00:00Z", "0.0s"),
            ("never", ""),
        ] {
            assert_eq!(took_from(began, Some(ended), at(began)), said);
        }
        let now = at("2026-11-30T08:00:17Z");
        assert_eq!(took_from(began, None, now), "17s");
    }
}
