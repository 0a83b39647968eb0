//! Where progress goes: a live tree, plain lines, JSON lines, or nowhere. The only writer of them.

use super::board::{Board, Change};
use super::live::Live;
use super::{plain, tree};
use crate::args::ProgressMode;
use crate::limits::TREE_PERIOD;
use serde::Serialize;
use slipway_core::build::NumberedEvent;
use slipway_terminal::printer::{Format, Printer, stderr_is_terminal};
use std::time::{Duration, Instant};

/// Progress of one deploy.
#[derive(Debug)]
pub(crate) struct View {
    printer: Printer,
    kind: Kind,
    board: Board,
    status: String,
    began: Instant,
    /// The local clock when the newest event came, to let the build's clock run on between events.
    event_at: Option<Instant>,
}

#[derive(Debug)]
enum Kind {
    Tree(Live),
    Plain,
    /// Like `Plain`, but the lines are what was asked for.
    Log,
    Json,
    Quiet,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Status { message: &'a str },
    Event(&'a NumberedEvent),
}

impl View {
    /// Chooses by what was asked for and whether a person watches.
    pub(crate) fn new(printer: Printer, mode: ProgressMode) -> Self {
        let kind = match (printer.format(), mode) {
            (Format::Json, _) => Kind::Json,
            (Format::Human, ProgressMode::Quiet) => Kind::Quiet,
            (Format::Human, _) if printer.is_quiet() => Kind::Quiet,
            (Format::Human, ProgressMode::Plain) => Kind::Plain,
            (Format::Human, ProgressMode::Tty) => Kind::Tree(Live::new()),
            (Format::Human, ProgressMode::Auto) if stderr_is_terminal() => Kind::Tree(Live::new()),
            (Format::Human, ProgressMode::Auto) => Kind::Plain,
        };
        Self::of_kind(printer, kind)
    }

    /// For a log that was asked for: lines on standard output.
    pub(crate) fn for_log(printer: Printer) -> Self {
        let kind = match printer.format() {
            Format::Json => Kind::Json,
            Format::Human => Kind::Log,
        };
        Self::of_kind(printer, kind)
    }

    fn of_kind(printer: Printer, kind: Kind) -> Self {
        Self {
            printer,
            kind,
            board: Board::default(),
            status: "starting".to_owned(),
            began: Instant::now(),
            event_at: None,
        }
    }

    /// What is known of the build.
    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    /// Says what goes on now, outside the build's own steps.
    pub(crate) fn status(&mut self, message: &str) {
        if self.status == message {
            return;
        }
        let changes = self.board.settle(None);
        self.show(&changes);
        message.clone_into(&mut self.status);
        match &self.kind {
            Kind::Tree(_) => self.tick(),
            Kind::Plain | Kind::Log => self.printer.note(message),
            Kind::Json => self.printer.json(&Line::Status { message }),
            Kind::Quiet => {}
        }
    }

    /// A line that stays, on every kind of view but the quiet one.
    pub(crate) fn note(&mut self, line: &str) {
        match &self.kind {
            Kind::Tree(_) => self.draw(&[line.to_owned()]),
            Kind::Plain | Kind::Log | Kind::Json => self.printer.note(line),
            Kind::Quiet => {}
        }
    }

    /// Takes an event of the build and shows what it changed.
    pub(crate) fn event(&mut self, event: &NumberedEvent) {
        if event.seq <= self.board.last_seq() {
            return;
        }
        self.event_at = Some(Instant::now());
        let changes = self.board.apply(event);
        if let Kind::Json = self.kind {
            self.printer.json(&Line::Event(event));
        }
        self.show(&changes);
    }

    fn show(&mut self, changes: &[Change]) {
        match &self.kind {
            Kind::Tree(live) => {
                let width = live.room().width;
                let lasting = changes
                    .iter()
                    .filter_map(|change| self.lasting(change, width));
                let lines: Vec<String> = lasting.collect();
                if !lines.is_empty() {
                    self.draw(&lines);
                }
            }
            Kind::Plain => {
                for line in plain::lines(&self.board, changes) {
                    self.printer.note(&line);
                }
            }
            Kind::Log => {
                for line in plain::lines(&self.board, changes) {
                    self.printer.data(&line);
                }
            }
            Kind::Json | Kind::Quiet => {}
        }
    }

    /// What stays above the live tree.
    fn lasting(&self, change: &Change, width: usize) -> Option<String> {
        match change {
            Change::Completed(at) => self.board.at(*at).map(|step| tree::completed(step, width)),
            Change::Warning(_) | Change::LogTruncated | Change::Queued(_) => {
                plain::lines(&self.board, std::slice::from_ref(change)).pop()
            }
            Change::Announced(_)
            | Change::Line { .. }
            | Change::Transferred { .. }
            | Change::Pushed(_) => None,
        }
    }

    /// Draws the live tree anew, and tells what nothing else has brought out; to be called every [`TREE_PERIOD`].
    pub(crate) fn tick(&mut self) {
        if self.event_at.is_some_and(|at| at.elapsed() >= TREE_PERIOD) {
            let changes = self.board.settle(None);
            self.show(&changes);
        }
        self.draw(&[]);
    }

    /// On a terminal: draws the live tree anew, below lines that stay.
    fn draw(&mut self, above: &[String]) {
        let now_ms = self.now_ms();
        if let Kind::Tree(live) = &mut self.kind {
            let frame = tree::lines(&self.board, &self.status, now_ms, live.room());
            live.draw(above, &frame);
        }
    }

    /// Ends what is on the terminal and shows nothing from now on; gives where the last words can go.
    pub(crate) fn silence(&mut self) -> Printer {
        self.finish();
        self.kind = Kind::Quiet;
        self.printer
    }

    fn now_ms(&self) -> u64 {
        let (base, since) = match self.event_at {
            Some(at) => (self.board.last_ms(), at),
            None => (0, self.began),
        };
        base.saturating_add(millis(since.elapsed()))
    }

    /// Milliseconds since the deploy began, by the local clock.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        millis(self.began.elapsed())
    }

    /// Tells what is left to tell, and takes the live part off the terminal.
    pub(crate) fn finish(&mut self) {
        let changes = self.board.settle(None);
        self.show(&changes);
        if let Kind::Tree(live) = &mut self.kind {
            live.draw(&[], &[]);
        }
    }

    /// Shows the output of the step that failed, on every kind of view: it is what the caller needs.
    pub(crate) fn show_failed_step(&self) {
        for line in plain::failed_step(&self.board) {
            self.printer.note(&line);
        }
    }
}

/// Whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
