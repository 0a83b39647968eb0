//! One line per happening, as in a log file: what is printed when nobody watches a terminal.

use super::board::{Board, Change, StepState};
use super::text::{bytes, seconds};
use slipway_core::build::{PushProgress, PushState};

/// The lines for changes of `board`.
pub(super) fn lines(board: &Board, changes: &[Change]) -> Vec<String> {
    changes
        .iter()
        .filter_map(|change| line(board, change))
        .collect()
}

fn line(board: &Board, change: &Change) -> Option<String> {
    match change {
        Change::Queued(0) => Some("waiting for a place on the builder".to_owned()),
        Change::Queued(ahead) => Some(format!(
            "waiting for a place on the builder, behind {ahead} other build{}",
            if *ahead == 1 { "" } else { "s" }
        )),
        Change::Announced(at) => board
            .at(*at)
            .map(|step| format!("#{} {}", step.number, step.name)),
        Change::Line { step, at_ms, text } => board
            .at(*step)
            .map(|step| format!("#{} {} {text}", step.number, stamp(*at_ms))),
        Change::Transferred {
            step,
            what,
            bytes: 0,
        } => board
            .at(*step)
            .map(|step| format!("#{} {what} done", step.number)),
        Change::Transferred {
            step,
            what,
            bytes: count,
        } => board
            .at(*step)
            .map(|step| format!("#{} {what} {} done", step.number, bytes(*count))),
        Change::Completed(at) => board
            .at(*at)
            .map(|step| format!("#{} {}", step.number, ending(step))),
        Change::Warning(message) => Some(format!("warning: {message}")),
        Change::Pushed(progress) => Some(pushed(progress)),
        Change::LogTruncated => {
            Some("warning: the build says too much; from here on only the last output of a step that fails is kept".to_owned())
        }
    }
}

/// `DONE 1.2s`, `CACHED`, `CANCELED`, `ERROR: ...`.
pub(super) fn ending(step: &StepState) -> String {
    match &step.error {
        Some(_) if step.is_cancelled() => "CANCELED".to_owned(),
        Some(error) => format!("ERROR: {error}"),
        None if step.cached => "CACHED".to_owned(),
        None => format!("DONE {}", seconds(step.duration_ms().unwrap_or(0))),
    }
}

/// What came of an item of the push.
pub(super) fn pushed(progress: &PushProgress) -> String {
    let what = short(&progress.item);
    match progress.state {
        PushState::Exists => format!("push {what} exists already"),
        PushState::Mounted => format!("push {what} linked from another repository"),
        PushState::Pushed | PushState::Pushing | PushState::Waiting => match progress.total {
            0 => format!("push {what} done"),
            _ => format!("push {what} done, {}", sizes(progress)),
        },
    }
}

/// `375 MiB → 152 MiB, 140 MiB sent`, without what is not known (older builders tell the first only) or is said already.
fn sizes(progress: &PushProgress) -> String {
    let mut text = bytes(progress.total);
    if progress.compressed > 0 && progress.compressed != progress.total {
        text.push_str(&format!(" → {}", bytes(progress.compressed)));
    }
    if progress.compressed > 0 && progress.sent != progress.compressed {
        text.push_str(&format!(", {} sent", bytes(progress.sent)));
    }
    text
}

/// The first twelve digits of a digest.
pub(super) fn short(item: &str) -> &str {
    let digits = item.strip_prefix("sha256:").unwrap_or(item);
    digits.get(..12).unwrap_or(digits)
}

/// The output of the step that failed, to be shown last.
pub(super) fn failed_step(board: &Board) -> Vec<String> {
    let Some(step) = board.failed().filter(|step| !step.lines.is_empty()) else {
        return Vec::new();
    };
    let mut lines = vec!["------".to_owned(), format!(" > {}:", step.name)];
    if step.dropped > 0 {
        lines.push(format!("({} earlier lines are not shown)", step.dropped));
    }
    lines.extend(
        step.lines
            .iter()
            .map(|(at_ms, text)| format!("{} {text}", stamp(*at_ms))),
    );
    lines.push("------".to_owned());
    lines
}

/// Seconds since the step began, with milliseconds.
fn stamp(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}
