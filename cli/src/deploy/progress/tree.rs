//! The live part of the terminal: what runs now, what it says, how far transfers are. A bounded number of lines.

use super::board::{Board, StepState};
use super::plain::ending;
use super::text::{bytes, cut, seconds};
use crate::limits::{TREE_LINES_MAX, TREE_LOG_LINES_MAX};
use slipway_core::build::PushState;

/// Room on the terminal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Columns.
    pub(super) width: usize,
    /// Rows.
    pub(super) height: usize,
}

/// The lines of the live part at `now_ms` of the build's clock.
pub(super) fn lines(board: &Board, status: &str, now_ms: u64, room: Room) -> Vec<String> {
    let most = TREE_LINES_MAX.min(room.height.saturating_sub(2)).max(1);
    let done = board
        .steps()
        .iter()
        .filter(|step| step.completed_ms.is_some())
        .count();
    let head = match board.steps().iter().filter(|step| step.number > 0).count() {
        0 => format!("[+] {status} {}", seconds(now_ms)),
        all => format!("[+] {status} {} ({done}/{all})", seconds(now_ms)),
    };
    let mut lines = vec![cut(&head, room.width)];
    let running: Vec<&StepState> = board
        .steps()
        .iter()
        .filter(|step| step.is_running())
        .collect();
    let push = push_line(board);
    let mut left = most.saturating_sub(1 + usize::from(push.is_some()));
    for (at, step) in running.iter().enumerate() {
        let after = running.len() - at - 1;
        if left < 1 + usize::from(after > 0) {
            lines.push(format!(" => ({} more steps run)", after + 1));
            break;
        }
        let elapsed = now_ms.saturating_sub(step.started_ms.unwrap_or(now_ms));
        lines.push(timed(
            &format!(" => {}", step.name),
            &seconds(elapsed),
            room.width,
        ));
        left -= 1;
        // Steps that follow get a line each before this one's output gets any.
        let details = details(
            step,
            left.saturating_sub(after).min(TREE_LOG_LINES_MAX),
            room.width,
        );
        left -= details.len();
        lines.extend(details);
    }
    lines.extend(push.map(|line| cut(&line, room.width)));
    lines
}

fn details(step: &StepState, most: usize, width: usize) -> Vec<String> {
    let transfers = step.transfers.iter().map(|(what, (current, total))| {
        let what = what.trim_end_matches(':');
        match total {
            0 if *current == 0 => format!(" => => {what}"),
            0 => format!(" => => {what} {}", bytes(*current)),
            total => format!(" => => {what} {} / {}", bytes(*current), bytes(*total)),
        }
    });
    let mut lines: Vec<String> = transfers.take(most).map(|line| cut(&line, width)).collect();
    let room = most - lines.len();
    let from = step.lines.len().saturating_sub(room);
    lines.extend(
        step.lines
            .iter()
            .skip(from)
            .map(|(_, text)| cut(&format!(" => => # {text}"), width)),
    );
    lines
}

fn push_line(board: &Board) -> Option<String> {
    let push = board.push();
    if push.is_empty() {
        return None;
    }
    let (mut done, mut current, mut total) = (0, 0u64, 0u64);
    let (mut compressed, mut sent) = (0u64, 0u64);
    for progress in push.values() {
        // Of what the registry had, nothing was compressed now.
        if !matches!(progress.state, PushState::Exists | PushState::Mounted) {
            compressed = compressed.saturating_add(progress.compressed);
            sent = sent.saturating_add(progress.sent);
        }
        match progress.state {
            PushState::Waiting | PushState::Pushing => {
                current = current.saturating_add(progress.current);
                total = total.saturating_add(progress.total);
            }
            PushState::Pushed => {
                done += 1;
                current = current.saturating_add(progress.total);
                total = total.saturating_add(progress.total);
            }
            PushState::Exists | PushState::Mounted => done += 1,
        }
    }
    let mut line = format!(
        " => push {done}/{} items, {} / {}",
        push.len(),
        bytes(current.min(total)),
        bytes(total)
    );
    // Older builders do not tell.
    if compressed > 0 {
        line.push_str(&format!(" → {}, {} sent", bytes(compressed), bytes(sent)));
    }
    Some(line)
}

/// The line that stays above the live part when a step has ended.
pub(super) fn completed(step: &StepState, width: usize) -> String {
    let (mark, right) = match (&step.error, step.cached) {
        (Some(_), _) if step.is_cancelled() => ("CANCELED ", String::new()),
        (Some(_), _) => ("ERROR ", seconds(step.duration_ms().unwrap_or(0))),
        (None, true) => ("CACHED ", String::new()),
        (None, false) => ("", seconds(step.duration_ms().unwrap_or(0))),
    };
    let line = timed(&format!(" => {mark}{}", step.name), &right, width);
    match &step.error {
        Some(_) if !step.is_cancelled() => format!("{line}\n => => {}", ending(step)),
        Some(_) | None => line,
    }
}

/// `left` at the left, `right` at the right.
fn timed(left: &str, right: &str, width: usize) -> String {
    let space = width.saturating_sub(right.len() + 1);
    let left = cut(left, space);
    let fill = space.saturating_sub(console::measure_text_width(&left));
    format!("{left}{:fill$} {right}", "").trim_end().to_owned()
}
