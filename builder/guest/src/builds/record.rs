//! What is kept of one build: its events as JSON lines, numbered, within a bound. Of what no longer fits, the newest output of each
//! step that runs is held back: it is recorded if the step fails.
//!
//! Pure: callers pass the time. It must not know how a build is run, nor who reads.

use super::tails::Tails;
use crate::limits::{EVENTS_RESERVE_BYTES, TAILS_RESERVE_BYTES};
use bytes::Bytes;
use slipway_core::build::{BuildEvent, BuildOutcome, NumberedEvent};
use slipway_core::limits::BUILD_EVENTS_BYTES_MAX;

/// Bytes of all events but the output that is held back.
const ROOM: usize = BUILD_EVENTS_BYTES_MAX - TAILS_RESERVE_BYTES;

/// The record of one build.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Line `n` is event `n + 1`: numbers have no gaps.
    lines: Vec<Bytes>,
    bytes: usize,
    truncated: bool,
    tails: Tails,
    /// Bytes of output that was held back and told later; a part of `bytes`.
    tails_told: usize,
    started: bool,
    outcome: Option<BuildOutcome>,
}

impl Record {
    /// Adds an event. After the last one nothing is added any more. Output that does not fit is left out, but for the last of a step
    /// that fails; the first time, a [`BuildEvent::LogTruncated`] takes its place.
    pub(crate) fn append(&mut self, event: BuildEvent, at_ms: u64) {
        if self.outcome.is_some() {
            return;
        }
        if let BuildEvent::Step(step) = &event
            && step.completed_ms.is_some()
        {
            let tail = self.tails.take(&step.digest);
            // What was only given up because another step failed says nothing of the failure.
            let failed = |error: &String| !error.ends_with("context canceled");
            if step.error.as_ref().is_some_and(failed) {
                for (event, at_ms) in tail {
                    self.tell_tail(event, at_ms);
                }
            }
        }
        let room = match &event {
            // These two are always kept: there is one of each.
            BuildEvent::Ended(outcome) => {
                self.outcome = Some(outcome.clone());
                usize::MAX
            }
            BuildEvent::Started => {
                self.started = true;
                usize::MAX
            }
            BuildEvent::Log { .. } | BuildEvent::Progress { .. } => {
                if self.truncated {
                    self.tails.keep(event, at_ms);
                    return;
                }
                ROOM - EVENTS_RESERVE_BYTES
            }
            BuildEvent::Queued { .. }
            | BuildEvent::Step(_)
            | BuildEvent::Warning { .. }
            | BuildEvent::Push(_)
            | BuildEvent::LogTruncated => ROOM,
        };
        let Some(line) = self.line(&event, at_ms) else {
            return;
        };
        if (self.bytes - self.tails_told).saturating_add(line.len()) <= room {
            self.keep(line);
        } else if !self.truncated {
            self.truncated = true;
            if let Some(cut) = self.line(&BuildEvent::LogTruncated, at_ms) {
                self.keep(cut);
            }
            self.tails.keep(event, at_ms);
        }
    }

    /// Adds output that was held back, within the room for it.
    fn tell_tail(&mut self, event: BuildEvent, at_ms: u64) {
        let Some(line) = self.line(&event, at_ms) else {
            return;
        };
        if self.tails_told + line.len() <= TAILS_RESERVE_BYTES {
            self.tails_told += line.len();
            self.keep(line);
        }
    }

    /// Lines after event `seq`, in order, of about `bytes_max` together; at least one if there is any. And the number
    /// of the last of them.
    pub(crate) fn after(&self, seq: u64, bytes_max: usize) -> (Vec<Bytes>, u64) {
        let first = usize::try_from(seq)
            .unwrap_or(usize::MAX)
            .min(self.lines.len());
        let mut bytes = 0;
        let mut taken = Vec::new();
        for line in &self.lines[first..] {
            if bytes >= bytes_max {
                break;
            }
            bytes += line.len();
            taken.push(line.clone());
        }
        let last = first + taken.len();
        (taken, u64::try_from(last).unwrap_or(u64::MAX))
    }

    /// Number of the newest event; 0 before the first.
    pub(crate) fn last_seq(&self) -> u64 {
        u64::try_from(self.lines.len()).unwrap_or(u64::MAX)
    }

    /// How it ended, if it has.
    pub(crate) fn outcome(&self) -> Option<&BuildOutcome> {
        self.outcome.as_ref()
    }

    /// It has neither begun nor ended.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.started && self.outcome.is_none()
    }

    /// Bytes of its events.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn line(&self, event: &BuildEvent, at_ms: u64) -> Option<Bytes> {
        let seq = self.last_seq() + 1;
        let event = event.clone();
        match serde_json::to_vec(&NumberedEvent { seq, at_ms, event }) {
            Ok(mut line) => {
                line.push(b'\n');
                Some(line.into())
            }
            Err(error) => {
                tracing::error!(%error, "an event could not be written as JSON");
                None
            }
        }
    }

    fn keep(&mut self, line: Bytes) {
        self.bytes += line.len();
        self.lines.push(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(text: &str) -> BuildEvent {
        BuildEvent::Log {
            step: "s".to_owned(),
            stream: 1,
            text: text.to_owned(),
        }
    }

    fn read(record: &Record, seq: u64) -> Vec<NumberedEvent> {
        let (lines, _) = record.after(seq, usize::MAX);
        let parse = |line: &Bytes| serde_json::from_slice(line).expect("an event");
        lines.iter().map(parse).collect()
    }

    #[test]
    fn numbers_have_no_gaps_and_reading_goes_on_after_any_of_them() {
        let mut record = Record::default();
        assert!(record.is_waiting());
        record.append(BuildEvent::Started, 1);
        assert!(!record.is_waiting());
        record.append(log("a"), 2);
        record.append(BuildEvent::Ended(BuildOutcome::Cancelled), 3);
        record.append(log("too late"), 4);
        let all = read(&record, 0);
        assert_eq!(
            all.iter().map(|event| event.seq).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        assert_eq!(read(&record, 1), all[1..]);
        assert_eq!(read(&record, 3), []);
        assert_eq!(read(&record, u64::MAX), []);
        let (piece, last) = record.after(0, 1);
        assert_eq!((piece.len(), last), (1, 1), "always moves on");
        assert_eq!(record.outcome(), Some(&BuildOutcome::Cancelled));
        assert_eq!(record.last_seq(), 3);
    }

    fn step(digest: &str, error: Option<&str>) -> BuildEvent {
        BuildEvent::Step(slipway_core::build::Step {
            digest: digest.to_owned(),
            name: "RUN x".to_owned(),
            started_ms: Some(0),
            completed_ms: Some(1),
            cached: false,
            error: error.map(str::to_owned),
        })
    }

    #[test]
    fn the_last_output_of_the_step_that_fails_is_told_however_much_was_said() {
        let mut record = Record::default();
        // Control characters, of which each becomes six bytes.
        let text = "\u{1}".repeat(30_000);
        let of = |digest: &str, text: &str| BuildEvent::Log {
            step: digest.to_owned(),
            stream: 2,
            text: text.to_owned(),
        };
        for at_ms in 0..200 {
            for digest in ["good", "given up", "bad"] {
                record.append(of(digest, &text), at_ms);
            }
        }
        for digest in ["good", "given up", "bad"] {
            record.append(of(digest, &format!("last words of {digest}")), 200);
        }
        record.append(step("good", None), 201);
        record.append(step("given up", Some("x: context canceled")), 201);
        record.append(step("bad", Some("exit code: 9")), 202);
        record.append(of("bad", "after its end"), 203);
        record.append(BuildEvent::Ended(BuildOutcome::Cancelled), 204);
        assert!(
            record.bytes() <= BUILD_EVENTS_BYTES_MAX,
            "{}",
            record.bytes()
        );
        let events = read(&record, 0);
        let said = |wanted: &str| {
            let of = events.iter().filter(|event| {
                matches!(&event.event, BuildEvent::Log { text, .. } if text.contains(wanted))
            });
            of.count()
        };
        assert_eq!(said("last words of bad"), 1);
        assert_eq!(
            said("last words of good") + said("last words of given up"),
            0
        );
        let place = |wanted: &BuildEvent| events.iter().position(|event| event.event == *wanted);
        assert!(
            place(&of("bad", "last words of bad")) < place(&step("bad", Some("exit code: 9"))),
            "its output comes before its end"
        );
        let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(numbers, (1..=record.last_seq()).collect::<Vec<_>>());
    }

    #[test]
    fn a_flood_of_output_is_cut_once_and_the_end_is_still_told() {
        let mut record = Record::default();
        let text = "x".repeat(60_000);
        for at_ms in 0..200 {
            record.append(log(&text), at_ms);
        }
        record.append(
            BuildEvent::Warning {
                message: "w".to_owned(),
            },
            201,
        );
        record.append(BuildEvent::Ended(BuildOutcome::Cancelled), 202);
        assert!(record.bytes() <= BUILD_EVENTS_BYTES_MAX);
        let events = read(&record, 0);
        let cuts = events
            .iter()
            .filter(|event| event.event == BuildEvent::LogTruncated);
        assert_eq!(cuts.count(), 1);
        let tail: Vec<_> = events
            .iter()
            .rev()
            .take(3)
            .map(|event| event.event.clone())
            .collect();
        assert_eq!(
            tail,
            [
                BuildEvent::Ended(BuildOutcome::Cancelled),
                BuildEvent::Warning {
                    message: "w".to_owned()
                },
                BuildEvent::LogTruncated,
            ]
        );
    }
}
