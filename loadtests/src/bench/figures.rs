//! Figures of repeated runs: smallest, median, largest, and the ratio of two medians.

use std::fmt;
use std::time::Duration;

/// Times of one thing, sorted.
#[derive(Debug, Clone)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    /// Sorts what was measured.
    pub(super) fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The value below which `percent` of all lie; zero if there is none.
    pub(super) fn percentile(&self, percent: usize) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0
            .get((self.0.len() * percent / 100).min(last))
            .copied()
            .unwrap_or_default()
    }

    /// The middle.
    pub(super) fn median(&self) -> Duration {
        self.percentile(50)
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        write!(
            f,
            "min {:.2} median {:.2} max {:.2} ms (n={})",
            ms(self.percentile(0)),
            ms(self.median()),
            ms(self.percentile(100)),
            self.0.len()
        )
    }
}

/// Whether a figure is what it must be.
#[derive(Debug)]
pub(super) struct Verdict {
    /// What was measured.
    pub(super) what: &'static str,
    /// What came out, for people.
    pub(super) got: String,
    /// What it must be, for people.
    pub(super) must: &'static str,
    /// It is.
    pub(super) holds: bool,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.holds { "holds" } else { "MISSED" };
        write!(
            f,
            "{:<52} {:<28} must be {:<16} {mark}",
            self.what, self.got, self.must
        )
    }
}
