//! How far a transfer is, for people.

use crate::limits::PROGRESS_PERIOD;
use slipway_core::units::ByteSize;
use slipway_terminal::printer::{Format, Printer, stderr_is_terminal};
use std::io::Write;
use std::time::{Duration, Instant};

/// One line on a terminal that is drawn anew. Nothing where nobody looks.
#[derive(Debug)]
pub(super) struct Progress {
    what: &'static str,
    shown: bool,
    begin: Instant,
    drawn: Option<Instant>,
}

impl Progress {
    /// Nothing is drawn yet.
    pub(super) fn new(what: &'static str, printer: Printer) -> Self {
        Self {
            what,
            shown: stderr_is_terminal() && printer.format() == Format::Human,
            begin: Instant::now(),
            drawn: None,
        }
    }

    /// So many bytes of the contents are done, and so many were moved.
    pub(super) fn draw(&mut self, at: u64, size: u64, moved: u64) {
        let recent = |drawn: Instant| drawn.elapsed() < PROGRESS_PERIOD;
        if !self.shown || self.drawn.is_some_and(recent) {
            return;
        }
        self.drawn = Some(Instant::now());
        let line = line(at, size, moved, self.begin.elapsed());
        let _ = write!(std::io::stderr().lock(), "\r{} {line}\x1b[K", self.what);
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

fn line(at: u64, size: u64, moved: u64, after: Duration) -> String {
    let percent = u128::from(at) * 100 / u128::from(size.max(1));
    let a_second = u128::from(moved) * 1000 / after.as_millis().max(1);
    let rate = ByteSize(u64::try_from(a_second).unwrap_or(u64::MAX));
    let (size, moved) = (ByteSize(size), round(moved));
    format!("{percent}% of {size}, {moved} moved, {}/s", round(rate.0))
}

/// In whole units that can be read at a glance.
fn round(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.iter().find(|(_, shift)| bytes >> shift >= 10);
    match unit {
        Some((name, shift)) => format!("{} {name}", bytes >> shift),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_much_and_how_fast() {
        let half = line(1 << 30, 2 << 30, 300 << 20, Duration::from_secs(3));
        assert_eq!(half, "50% of 2 GiB, 300 MiB moved, 100 MiB/s");
        assert!(line(0, 0, 0, Duration::ZERO).starts_with("0% of 0"));
        assert!(line(u64::MAX, u64::MAX, u64::MAX, Duration::from_millis(1)).starts_with("100%"));
    }
}
