//! The newest output of each step that runs, of a build whose record is full.
//!
//! Pure. It must not know what becomes of it.

use crate::limits::{TAIL_BYTES_MAX, TAIL_STEPS_MAX};
use slipway_core::build::BuildEvent;
use std::collections::{HashMap, VecDeque};

/// By digest of the step.
#[derive(Debug, Default)]
pub(super) struct Tails {
    steps: HashMap<String, Tail>,
}

#[derive(Debug, Default)]
struct Tail {
    /// Pieces of output with their times.
    pieces: VecDeque<(BuildEvent, u64)>,
    bytes: usize,
}

impl Tails {
    /// Keeps a piece of output; the oldest of the step go for it. Other events are not kept, nor output of further steps than
    /// [`TAIL_STEPS_MAX`].
    pub(super) fn keep(&mut self, event: BuildEvent, at_ms: u64) {
        let BuildEvent::Log { step, .. } = &event else {
            return;
        };
        if !self.steps.contains_key(step) && self.steps.len() >= TAIL_STEPS_MAX {
            return;
        }
        let tail = self.steps.entry(step.clone()).or_default();
        tail.bytes += text_bytes(&event);
        tail.pieces.push_back((event, at_ms));
        while tail.bytes > TAIL_BYTES_MAX
            && let Some((oldest, _)) = tail.pieces.pop_front()
        {
            tail.bytes -= text_bytes(&oldest);
        }
    }

    /// What was kept of a step that has ended, in order. It is kept no longer.
    pub(super) fn take(&mut self, step: &str) -> VecDeque<(BuildEvent, u64)> {
        let tail = self.steps.remove(step).unwrap_or_default();
        tail.pieces
    }
}

fn text_bytes(event: &BuildEvent) -> usize {
    if let BuildEvent::Log { text, .. } = event {
        text.len()
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(step: &str, text: &str) -> BuildEvent {
        BuildEvent::Log {
            step: step.to_owned(),
            stream: 1,
            text: text.to_owned(),
        }
    }

    #[test]
    fn the_newest_output_of_each_step_is_kept() {
        let mut tails = Tails::default();
        let line = "x".repeat(1000);
        for number in 0..1000 {
            tails.keep(log("a", &format!("{number} {line}")), number);
            tails.keep(log("b", "short"), number);
        }
        let kept = tails.take("a");
        let bytes: usize = kept.iter().map(|(event, _)| text_bytes(event)).sum();
        assert!((TAIL_BYTES_MAX - 2000..=TAIL_BYTES_MAX).contains(&bytes));
        let newest = Some((log("a", &format!("999 {line}")), 999));
        assert_eq!(kept.back(), newest.as_ref());
        assert_eq!(tails.take("b").len(), 1000);
        assert_eq!(tails.take("b").len(), 0);
        for number in 0..2 * TAIL_STEPS_MAX {
            tails.keep(log(&number.to_string(), "x"), 0);
        }
        assert_eq!(tails.steps.len(), TAIL_STEPS_MAX);
    }
}
