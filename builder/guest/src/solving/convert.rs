//! Turns what BuildKit tells of a solve into build events: times relative to the build, text instead of bytes, and
//! progress no more often than anybody can see.
//!
//! Pure: callers pass the time. It must not know who reads the events.

use crate::limits;
use slipway_buildkit::SolveEvent;
use slipway_core::build::{BuildEvent, Step};
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Instant, SystemTime};

/// Converts the events of one build.
#[derive(Debug)]
pub(crate) struct Converter {
    accepted_at: SystemTime,
    /// The first bytes of a character whose others come with the next piece of output.
    cut_characters: HashMap<(String, u8), Vec<u8>>,
    throttle: Throttle<(String, String)>,
    saw_disk_full: bool,
    saw_foreign_program: bool,
    failed_step_started_at: Option<SystemTime>,
}

impl Converter {
    /// For a build that was accepted at this time.
    pub(crate) fn new(accepted_at: SystemTime) -> Converter {
        Converter {
            accepted_at,
            cut_characters: HashMap::new(),
            throttle: Throttle::default(),
            saw_disk_full: false,
            saw_foreign_program: false,
            failed_step_started_at: None,
        }
    }

    /// The build events for one event of the solve; none if it is not worth telling now.
    pub(crate) fn convert(&mut self, event: SolveEvent, now: Instant) -> Vec<BuildEvent> {
        match event {
            SolveEvent::Step {
                digest,
                name,
                started_at,
                completed_at,
                cached,
                error,
            } => {
                let mut events = Vec::new();
                let error_text = error.as_deref().unwrap_or_default();
                self.saw_foreign_program |= error_text.contains("exec format error");
                // Steps beside the one that failed are cancelled for it.
                if error.is_some() && !error_text.ends_with("context canceled") {
                    self.failed_step_started_at = started_at;
                }
                if completed_at.is_some() {
                    events.extend(
                        [1, 2]
                            .into_iter()
                            .flat_map(|stream| self.rest(&digest, stream)),
                    );
                }
                events.push(BuildEvent::Step(Step {
                    digest,
                    name,
                    started_ms: started_at.map(|at| self.since_accepted_ms(at)),
                    completed_ms: completed_at.map(|at| self.since_accepted_ms(at)),
                    cached,
                    error,
                }));
                events
            }
            SolveEvent::Log {
                digest,
                stream,
                bytes,
            } => self.log(digest, stream, bytes),
            SolveEvent::Progress {
                digest,
                id,
                current,
                total,
                done,
            } => {
                if !self.throttle.admit((digest.clone(), id.clone()), done, now) {
                    return Vec::new();
                }
                vec![BuildEvent::Progress {
                    step: digest,
                    id,
                    current,
                    total,
                    done,
                }]
            }
            SolveEvent::Warning { message } => vec![BuildEvent::Warning { message }],
        }
    }

    /// Some output said that the disk is full.
    pub(crate) fn saw_disk_full(&self) -> bool {
        self.saw_disk_full
    }

    /// Some output said that a program is none of this processor's.
    pub(crate) fn saw_foreign_program(&self) -> bool {
        self.saw_foreign_program
    }

    /// When the last step that failed began, by the machine's clock.
    pub(crate) fn failed_step_started_at(&self) -> Option<SystemTime> {
        self.failed_step_started_at
    }

    fn log(&mut self, step: String, stream: u8, bytes: Vec<u8>) -> Vec<BuildEvent> {
        let key = (step, stream);
        let mut whole = self.cut_characters.remove(&key).unwrap_or_default();
        whole.extend(bytes);
        let cut = whole.split_off(whole_characters(&whole));
        let text = String::from_utf8_lossy(&whole);
        if text.contains("No space left on device") {
            self.saw_disk_full = true;
        }
        if text.to_ascii_lowercase().contains("exec format error") {
            self.saw_foreign_program = true;
        }
        let (step, stream) = key;
        let events = pieces(&text, limits::LOG_TEXT_BYTES_MAX)
            .map(|piece| BuildEvent::Log {
                step: step.clone(),
                stream,
                text: piece.to_owned(),
            })
            .collect();
        // Streams of steps that are done have no entry, so the map is as small as the number of steps that run.
        if !cut.is_empty() {
            self.cut_characters.insert((step, stream), cut);
        }
        events
    }

    fn rest(&mut self, step: &str, stream: u8) -> Option<BuildEvent> {
        let cut = self.cut_characters.remove(&(step.to_owned(), stream))?;
        Some(BuildEvent::Log {
            step: step.to_owned(),
            stream,
            text: String::from_utf8_lossy(&cut).into_owned(),
        })
    }

    fn since_accepted_ms(&self, at: SystemTime) -> u64 {
        let since = at.duration_since(self.accepted_at).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Admits news of one item no more often than [`limits::PROGRESS_PERIOD`], and its last news always.
#[derive(Debug)]
pub(crate) struct Throttle<K> {
    told_at: HashMap<K, Instant>,
}

impl<K> Default for Throttle<K> {
    fn default() -> Self {
        Throttle {
            told_at: HashMap::new(),
        }
    }
}

impl<K: Eq + Hash> Throttle<K> {
    /// Whether this news of `item` is told. `last`: there is no more of it.
    pub(crate) fn admit(&mut self, item: K, last: bool, now: Instant) -> bool {
        if last {
            self.told_at.remove(&item);
            return true;
        }
        if let Some(told_at) = self.told_at.get_mut(&item) {
            if now.saturating_duration_since(*told_at) < limits::PROGRESS_PERIOD {
                return false;
            }
            *told_at = now;
            return true;
        }
        if self.told_at.len() >= limits::PROGRESS_ITEMS_MAX {
            return false;
        }
        self.told_at.insert(item, now);
        true
    }
}

/// Length of `bytes` without a character at its end that is begun but not whole.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    for at in (tail..bytes.len()).rev() {
        let needed = match bytes[at] {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            // The middle of a character: its beginning is further to the front.
            0x80..=0xbf => continue,
            0x00..=0x7f | 0xc0..=0xc1 | 0xf5..=0xff => return bytes.len(),
        };
        return if bytes.len() - at < needed {
            at
        } else {
            bytes.len()
        };
    }
    bytes.len()
}

/// `text` in pieces of at most `bytes_max` bytes, cut between characters.
fn pieces(text: &str, bytes_max: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, after) = rest.split_at(rest.floor_char_boundary(bytes_max));
        rest = after;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn converter() -> Converter {
        Converter::new(SystemTime::UNIX_EPOCH + Duration::from_secs(100))
    }

    fn output(bytes: &[u8]) -> SolveEvent {
        SolveEvent::Log {
            digest: "d".to_owned(),
            stream: 2,
            bytes: bytes.to_vec(),
        }
    }

    fn step(completed_at: Option<SystemTime>) -> SolveEvent {
        SolveEvent::Step {
            digest: "d".to_owned(),
            name: "n".to_owned(),
            started_at: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(99_000)),
            completed_at,
            cached: false,
            error: None,
        }
    }

    fn texts(events: Vec<BuildEvent>) -> Vec<String> {
        events
            .into_iter()
            .filter_map(|event| {
                if let BuildEvent::Log { text, .. } = event {
                    Some(text)
                } else {
                    None
                }
            })
            .collect()
    }

    #[test]
    fn characters_cut_between_two_pieces_come_whole() {
        let now = Instant::now();
        for text in ["aé€😀z", "é", "😀"] {
            for at in 0..=text.len() {
                let mut converter = converter();
                let (left, right) = text.as_bytes().split_at(at);
                let mut got = texts(converter.convert(output(left), now));
                got.extend(texts(converter.convert(output(right), now)));
                assert_eq!(got.concat(), text, "cut at {at}");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_and_nothing_is_kept_back_for_ever() {
        let now = Instant::now();
        let mut converter = converter();
        assert_eq!(
            texts(converter.convert(output(b"a\xffb\xf0\x9f"), now)),
            ["a\u{fffd}b"]
        );
        let done = Some(SystemTime::UNIX_EPOCH + Duration::from_millis(101_500));
        let events = converter.convert(step(done), now);
        assert_eq!(texts(events.clone()), ["\u{fffd}"]);
        let Some(BuildEvent::Step(step)) = events.last() else {
            panic!("a step comes last: {events:?}")
        };
        assert_eq!(step.started_ms, Some(0), "before the build was accepted");
        assert_eq!(step.completed_ms, Some(1_500));
    }

    #[test]
    fn the_step_that_failed_is_not_one_that_was_cancelled_for_it() {
        let mut converter = converter();
        for (started_s, error) in [
            (101, None),
            (102, Some("exit code: 1")),
            (
                103,
                Some("process \"x\" did not complete: context canceled"),
            ),
        ] {
            let event = SolveEvent::Step {
                digest: started_s.to_string(),
                name: "n".to_owned(),
                started_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(started_s)),
                completed_at: None,
                cached: false,
                error: error.map(str::to_owned),
            };
            converter.convert(event, Instant::now());
        }
        let started_at = SystemTime::UNIX_EPOCH + Duration::from_secs(102);
        assert_eq!(converter.failed_step_started_at(), Some(started_at));
    }

    #[test]
    fn a_long_piece_becomes_several_events() {
        let text = "é".repeat(limits::LOG_TEXT_BYTES_MAX);
        let got = texts(converter().convert(output(text.as_bytes()), Instant::now()));
        assert!(
            got.len() >= 2
                && got
                    .iter()
                    .all(|piece| piece.len() <= limits::LOG_TEXT_BYTES_MAX)
        );
        assert_eq!(got.concat(), text);
    }

    #[test]
    fn a_full_disk_is_noticed_in_the_output() {
        let mut converter = converter();
        assert!(!converter.saw_disk_full());
        converter.convert(output(b"cp: x: No space left on device\n"), Instant::now());
        assert!(converter.saw_disk_full());
    }

    #[test]
    fn progress_is_told_now_and_then_and_at_its_end() {
        let began = Instant::now();
        let mut throttle = Throttle::default();
        assert!(throttle.admit("a", false, began));
        assert!(!throttle.admit("a", false, began));
        assert!(throttle.admit("b", false, began), "each item for itself");
        assert!(throttle.admit("a", false, began + limits::PROGRESS_PERIOD));
        assert!(
            throttle.admit("a", true, began + limits::PROGRESS_PERIOD),
            "the end is always told"
        );
        for item in 0..2 * limits::PROGRESS_ITEMS_MAX {
            throttle.admit(&*item.to_string().leak(), false, began);
        }
        assert!(throttle.told_at.len() <= limits::PROGRESS_ITEMS_MAX);
    }
}
