//! What dockerd's classic builder tells its client, turned into the events of a build. It numbers its steps, and names no other.
//!
//! Pure: callers pass the time. Whatever bytes come, what is kept is bounded. Must not know: who reads the events.

use crate::text::bounded;
use serde::Deserialize;
use slipway_core::build::{BuildEvent, BuildOutcome, Fault, NumberedEvent, Step, StepsSeen};
use slipway_core::limits::{BUILD_EVENTS_BYTES_MAX, BUILD_LOG_CHUNK_BYTES_MAX};
use std::mem::take;

/// Longest line that is read; of a longer one nothing is kept.
const LINE_BYTES_MAX: usize = BUILD_LOG_CHUNK_BYTES_MAX;
/// Longest text of a step's name, of an error, or of an image's id.
const TEXT_BYTES_MAX: usize = 4 << 10;
/// Room for steps and the end, which output may not take.
const RESERVE_BYTES: usize = 1 << 20;

/// One build's.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    line: Vec<u8>,
    is_too_long: bool,
    step: Option<Step>,
    steps: StepsSeen,
    image_id: Option<String>,
    error: Option<String>,
    /// The builder has answered that it failed by itself.
    is_broken: bool,
    last_seq: u64,
    bytes: usize,
    is_cut: bool,
    events: Vec<NumberedEvent>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Message {
    stream: Option<String>,
    error: Option<String>,
    /// How dockerd tells a refusal.
    message: Option<String>,
    aux: Option<Aux>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Aux {
    #[serde(rename = "ID")]
    id: Option<String>,
}

impl Transcript {
    /// `is_broken`: what is told is why the builder failed by itself.
    pub(super) fn started(is_broken: bool) -> Self {
        let mut new = Self {
            is_broken,
            ..Self::default()
        };
        new.tell(BuildEvent::Started, 0);
        new
    }

    /// Takes the next bytes of the answer, however they were cut.
    pub(super) fn read(&mut self, mut bytes: &[u8], at_ms: u64) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.hold(&bytes[..end]);
            let line = take(&mut self.line);
            if !take(&mut self.is_too_long) {
                self.line(&line, at_ms);
            }
            bytes = &bytes[end + 1..];
        }
        self.hold(bytes);
    }

    /// The events since this was asked last, and the number of the last.
    pub(super) fn events(&mut self) -> Vec<NumberedEvent> {
        take(&mut self.events)
    }

    /// The client has the whole answer, or is gone before its end.
    pub(super) fn end(&mut self, is_whole: bool, at_ms: u64) -> BuildOutcome {
        // A refusal is one line without an end.
        let line = take(&mut self.line);
        self.line(&line, at_ms);
        let error = self.error.take();
        self.end_step(error.clone(), at_ms);
        let (steps, steps_cached) = self.steps.count();
        let outcome = match (error, self.image_id.take()) {
            (Some(message), _) => BuildOutcome::Failed {
                fault: match self.is_broken {
                    true => Fault::System,
                    false => fault_of(&message),
                },
                message,
                hint: None,
                excerpt: None,
            },
            (None, Some(image_id)) => BuildOutcome::Succeeded {
                image_id,
                digest: None,
                size_bytes: 0,
                build_ms: at_ms,
                push_ms: 0,
                steps,
                steps_cached,
                platforms: Box::default(),
                statements: Vec::new(),
            },
            (None, None) if is_whole => BuildOutcome::Failed {
                fault: Fault::System,
                message: "the builder did not say how the build ended".to_owned(),
                hint: None,
                excerpt: None,
            },
            (None, None) => BuildOutcome::Cancelled,
        };
        self.tell(BuildEvent::Ended(outcome.clone()), at_ms);
        outcome
    }

    fn hold(&mut self, bytes: &[u8]) {
        if self.line.len() + bytes.len() > LINE_BYTES_MAX {
            self.is_too_long = true;
            self.line = Vec::new();
        } else if !self.is_too_long {
            self.line.extend_from_slice(bytes);
        }
    }

    fn line(&mut self, line: &[u8], at_ms: u64) {
        let Ok(message) = serde_json::from_slice::<Message>(line) else {
            return;
        };
        if let Some(error) = message.error.or(message.message) {
            let error = error.split_whitespace().collect::<Vec<_>>().join(" ");
            self.error
                .get_or_insert_with(|| bounded(error, TEXT_BYTES_MAX));
        }
        if let Some(id) = message.aux.and_then(|aux| aux.id) {
            self.image_id = Some(bounded(id, TEXT_BYTES_MAX));
        }
        if let Some(text) = message.stream {
            self.output(text, at_ms);
        }
    }

    fn output(&mut self, text: String, at_ms: u64) {
        if let Some(name) = step_name(&text) {
            self.end_step(None, at_ms);
            let step = Step {
                digest: format!("step {}", self.last_seq + 1),
                name: bounded(name, TEXT_BYTES_MAX),
                started_ms: Some(at_ms),
                completed_ms: None,
                cached: false,
                error: None,
            };
            self.step = Some(step.clone());
            return self.tell(BuildEvent::Step(step), at_ms);
        }
        let Some(step) = &mut self.step else {
            return;
        };
        if text == " ---> Using cache\n" {
            step.cached = true;
        }
        let is_its_own = text.starts_with(" ---> ") || text.starts_with("Removing intermediate");
        if text.trim().is_empty() && text.len() < 2 || is_its_own {
            return;
        }
        let event = BuildEvent::Log {
            step: step.digest.clone(),
            stream: 1,
            text,
        };
        self.tell(event, at_ms);
    }

    fn end_step(&mut self, error: Option<String>, at_ms: u64) {
        if let Some(mut step) = self.step.take() {
            step.completed_ms = Some(at_ms);
            step.error = error;
            self.tell(BuildEvent::Step(step), at_ms);
        }
    }

    fn tell(&mut self, event: BuildEvent, at_ms: u64) {
        let (is_output, is_end) = match &event {
            BuildEvent::Log { .. } => (true, false),
            BuildEvent::Ended(_) => (false, true),
            BuildEvent::Step(step) => {
                self.steps.see(step);
                (false, false)
            }
            BuildEvent::Queued { .. }
            | BuildEvent::Started
            | BuildEvent::Progress { .. }
            | BuildEvent::Warning { .. }
            | BuildEvent::Push(_)
            | BuildEvent::LogTruncated => (false, false),
        };
        let numbered = NumberedEvent {
            seq: self.last_seq + 1,
            at_ms,
            event,
        };
        let size = serde_json::to_vec(&numbered).map_or(0, |json| json.len());
        let reserve = if is_output { RESERVE_BYTES } else { 0 };
        if is_end || self.bytes + size + reserve <= BUILD_EVENTS_BYTES_MAX {
            self.bytes += size;
            self.last_seq += 1;
            self.events.push(numbered);
        } else if !self.is_cut {
            self.is_cut = true;
            self.tell(BuildEvent::LogTruncated, at_ms);
        }
    }
}

/// What dockerd says when it is not the build that is at fault. It tells no code that would say so.
const NOT_THE_BUILDS: [&str; 4] = [
    "no space left on device",
    "input/output error",
    "cannot allocate memory",
    "read-only file system",
];

fn fault_of(message: &str) -> Fault {
    // A step's command, which may say anything, is told by its exit status.
    let is_of_step = message.contains("returned a non-zero code");
    let lower = message.to_ascii_lowercase();
    match NOT_THE_BUILDS.iter().any(|words| lower.contains(words)) && !is_of_step {
        true => Fault::System,
        false => Fault::User,
    }
}

/// `[1/3] FROM busybox`, of `Step 1/3 : FROM busybox`.
fn step_name(text: &str) -> Option<String> {
    let (place, instruction) = text.strip_prefix("Step ")?.split_once(" : ")?;
    let (n, of) = place.split_once('/')?;
    let is_place = n.parse::<u32>().is_ok() && of.parse::<u32>().is_ok();
    is_place.then(|| format!("[{place}] {}", instruction.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = concat!(
        "{\"stream\":\"Step 1/3 : FROM busybox\"}\r\n{\"stream\":\"\\n\"}\r\n",
        "{\"stream\":\" ---\\u003e 0123\\n\"}\r\n",
        "{\"stream\":\"Step 2/3 : RUN echo hello\"}\r\n{\"stream\":\"\\n\"}\r\n",
        "{\"stream\":\" ---\\u003e Using cache\\n\"}\r\n",
        "{\"stream\":\"Step 3/3 : RUN echo wörld\"}\r\n",
        "{\"stream\":\" ---\\u003e Running in 4567\\n\"}\r\n{\"stream\":\"wörld\\n\"}\r\n",
        "{\"stream\":\"Removing intermediate container 4567\\n\"}\r\n",
        "{\"aux\":{\"ID\":\"sha256:89\"}}\r\n{\"stream\":\"Successfully built 89\\n\"}\r\n",
    );

    fn read(text: &str, piece: usize, is_whole: bool) -> (Vec<BuildEvent>, BuildOutcome) {
        let mut transcript = Transcript::started(false);
        for piece in text.as_bytes().chunks(piece) {
            transcript.read(piece, 7);
        }
        let outcome = transcript.end(is_whole, 9);
        let events = transcript.events();
        let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
        (events.into_iter().map(|it| it.event).collect(), outcome)
    }

    #[test]
    fn steps_output_and_the_image_are_read_however_the_answer_is_cut() {
        for piece in [1, 3, 50, GOOD.len()] {
            let (events, outcome) = read(GOOD, piece, true);
            let BuildOutcome::Succeeded {
                image_id,
                steps,
                steps_cached,
                build_ms,
                ..
            } = outcome
            else {
                panic!("{outcome:?}");
            };
            assert_eq!((image_id.as_str(), build_ms), ("sha256:89", 9));
            assert_eq!((steps, steps_cached), (2, 1));
            let mut names = Vec::new();
            let mut output = String::new();
            for event in &events {
                if let BuildEvent::Step(step) = event
                    && step.completed_ms.is_some()
                {
                    names.push(step.name.as_str());
                }
                if let BuildEvent::Log { text, .. } = event {
                    output.push_str(text);
                }
            }
            assert_eq!(
                names,
                [
                    "[1/3] FROM busybox",
                    "[2/3] RUN echo hello",
                    "[3/3] RUN echo wörld"
                ]
            );
            assert_eq!(output, "wörld\nSuccessfully built 89\n");
        }
    }

    #[test]
    fn an_end_without_an_image_is_told_for_what_it_is() {
        let failed = "{\"stream\":\"Step 1/1 : RUN false\"}\r\n\
            {\"errorDetail\":{\"code\":3,\"message\":\"m\"},\"error\":\"returned a\\nnon-zero code: 3\"}\r\n";
        let (events, outcome) = read(failed, 10, true);
        let BuildOutcome::Failed { fault, message, .. } = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(
            (fault, message.as_str()),
            (Fault::User, "returned a non-zero code: 3")
        );
        assert!(events.iter().any(|event| matches!(
            event,
            BuildEvent::Step(step) if step.error.is_some()
        )));
        let (_, refused) = read("{\"message\":\"dockerfile parse error\"}", 5, true);
        assert!(matches!(refused, BuildOutcome::Failed { .. }));
        for (error, is_broken, want) in [
            ("write /x: no space left on device", false, Fault::System),
            ("anything", true, Fault::System),
            ("COPY failed: no such file", false, Fault::User),
            (
                "The command 'echo no space left on device; false' returned a non-zero code: 1",
                false,
                Fault::User,
            ),
        ] {
            let mut transcript = Transcript::started(is_broken);
            transcript.read(format!("{{\"error\":\"{error}\"}}\n").as_bytes(), 0);
            let outcome = transcript.end(true, 1);
            let BuildOutcome::Failed { fault, .. } = outcome else {
                panic!("{outcome:?}");
            };
            assert_eq!(fault, want, "{error}");
        }
        let cut = &GOOD[..GOOD.len() / 2];
        assert_eq!(read(cut, 9, false).1, BuildOutcome::Cancelled);
        let (_, silent) = read(cut, 9, true);
        assert!(matches!(
            silent,
            BuildOutcome::Failed {
                fault: Fault::System,
                ..
            }
        ));
    }

    #[test]
    fn a_flood_is_cut_and_the_end_still_told() {
        let line = format!("{{\"stream\":\"{}\"}}\n", "x".repeat(30_000));
        let mut transcript = Transcript::started(false);
        transcript.read(b"{\"stream\":\"Step 1/1 : RUN yes\"}\n", 0);
        let mut bytes = 0;
        let mut cuts = 0;
        for at_ms in 0..1000 {
            transcript.read(line.as_bytes(), at_ms);
            transcript.read(&[b'y'; 10_000], at_ms);
            assert!(transcript.line.len() <= LINE_BYTES_MAX);
            transcript.read(b"\n", at_ms);
            for event in transcript.events() {
                bytes += serde_json::to_vec(&event).unwrap().len();
                cuts += usize::from(event.event == BuildEvent::LogTruncated);
            }
        }
        assert_eq!(cuts, 1);
        assert!(bytes <= BUILD_EVENTS_BYTES_MAX, "{bytes}");
        transcript.end(true, 1000);
        let last = transcript.events().pop().unwrap();
        assert!(matches!(last.event, BuildEvent::Ended(_)));
    }
}
