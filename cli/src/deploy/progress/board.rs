//! What is known of a build so far: its steps in the order in which they appeared, their output, the push.

use super::text::clean;
use crate::limits::{FAILED_STEP_LINES_MAX, OUTPUT_LINE_BYTES_MAX};
use slipway_core::build::{
    BuildEvent, BuildOutcome, NumberedEvent, PushProgress, PushState, Step, is_of_the_dockerfile,
};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// A build as seen by its caller.
#[derive(Debug, Default)]
pub(crate) struct Board {
    steps: Vec<StepState>,
    index: HashMap<String, usize>,
    /// Steps that were given a number.
    numbered: usize,
    /// Steps that have completed but whose last transfers may still be told: they are told as completed a moment later.
    settling: Vec<usize>,
    push: BTreeMap<String, PushProgress>,
    started_ms: Option<u64>,
    last_ms: u64,
    last_seq: u64,
    outcome: Option<BuildOutcome>,
}

/// A step and what it said.
#[derive(Debug, Default)]
pub(crate) struct StepState {
    /// Number shown, from 1, in the order in which steps began; 0 before that.
    pub(super) number: usize,
    /// As BuildKit names it.
    pub(super) name: String,
    /// Milliseconds since the build was accepted.
    pub(super) started_ms: Option<u64>,
    /// Milliseconds since the build was accepted.
    pub(super) completed_ms: Option<u64>,
    /// Its result came from the cache.
    pub(super) cached: bool,
    /// Why it failed.
    pub(super) error: Option<String>,
    /// Its newest lines, each with the milliseconds since the step began.
    pub(super) lines: VecDeque<(u64, String)>,
    /// Lines that were dropped from the front of `lines`.
    pub(super) dropped: usize,
    /// Transfers that run, by what they are.
    pub(super) transfers: BTreeMap<String, (u64, u64)>,
    /// A transfer came to its end.
    transferred: bool,
    partial: String,
    /// Its end was told.
    told: bool,
}

/// What an event changed, for those who print line by line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// It waits behind others.
    Queued(u32),
    /// A step began.
    Announced(usize),
    /// A step said a line.
    Line {
        step: usize,
        at_ms: u64,
        text: String,
    },
    /// A transfer inside a step is done.
    Transferred {
        step: usize,
        what: String,
        bytes: u64,
    },
    /// A step ended.
    Completed(usize),
    /// The frontend warns.
    Warning(String),
    /// A layer (or config, or manifest) came to its end state.
    Pushed(PushProgress),
    /// The log went over its limit.
    LogTruncated,
}

impl Board {
    /// Takes an event. One that was seen already (after a reconnect) changes nothing.
    pub(super) fn apply(&mut self, numbered: &NumberedEvent) -> Vec<Change> {
        if numbered.seq <= self.last_seq {
            return Vec::new();
        }
        self.last_seq = numbered.seq;
        self.last_ms = self.last_ms.max(numbered.at_ms);
        let mut changes = self.settle(step_of(&numbered.event));
        match &numbered.event {
            BuildEvent::Queued { ahead } => changes.push(Change::Queued(*ahead)),
            BuildEvent::Started => self.started_ms = Some(numbered.at_ms),
            BuildEvent::Step(step) => self.step(step, &mut changes),
            BuildEvent::Log { step, text, .. } => {
                self.log(step, numbered.at_ms, text, &mut changes);
            }
            BuildEvent::Progress {
                step,
                id,
                current,
                total,
                done,
            } => {
                let at = self.position(step);
                let state = &mut self.steps[at];
                if *done {
                    state.transfers.remove(id);
                    // One that is given up is told as done, too: with nothing transferred.
                    state.transferred |= *current > 0;
                    let what = clean(id).trim_end_matches(':').to_owned();
                    changes.push(Change::Transferred {
                        step: at,
                        what,
                        bytes: *current,
                    });
                } else {
                    state.transfers.insert(id.clone(), (*current, *total));
                }
            }
            BuildEvent::Warning { message } => changes.push(Change::Warning(clean(message))),
            BuildEvent::Push(progress) => self.pushed(progress, &mut changes),
            BuildEvent::LogTruncated => changes.push(Change::LogTruncated),
            BuildEvent::Ended(outcome) => {
                for at in 0..self.steps.len() {
                    self.flush(at, &mut changes);
                }
                changes.extend(self.settle(None));
                self.outcome = Some(outcome.clone());
            }
        }
        changes
    }

    fn position(&mut self, digest: &str) -> usize {
        if let Some(at) = self.index.get(digest) {
            return *at;
        }
        let at = self.steps.len();
        self.steps.push(StepState::default());
        self.index.insert(digest.to_owned(), at);
        at
    }

    fn step(&mut self, step: &Step, changes: &mut Vec<Change>) {
        let at = self.position(&step.digest);
        let state = &mut self.steps[at];
        state.name = clean(&step.name);
        state.started_ms = state.started_ms.or(step.started_ms);
        state.cached |= step.cached;
        if step.error.is_some() {
            state.error.clone_from(&step.error);
        }
        if (step.started_ms.is_some() || step.completed_ms.is_some()) && state.number == 0 {
            self.numbered += 1;
            state.number = self.numbered;
            changes.push(Change::Announced(at));
        }
        // BuildKit starts and completes some steps several times over, with transfers in between.
        state.completed_ms = match step.completed_ms {
            Some(completed) => {
                if !self.settling.contains(&at) && !state.told {
                    self.settling.push(at);
                }
                Some(completed)
            }
            None if step.started_ms > state.completed_ms => {
                state.told = false;
                None
            }
            None => state.completed_ms,
        };
    }

    /// Tells the steps that have completed, but for the one that is spoken of right now (and, if there is none, all).
    pub(super) fn settle(&mut self, but: Option<&str>) -> Vec<Change> {
        let but = but.and_then(|digest| self.index.get(digest).copied());
        let mut changes = Vec::new();
        for at in std::mem::take(&mut self.settling) {
            if Some(at) == but || self.steps[at].completed_ms.is_none() {
                self.settling.push(at);
                continue;
            }
            self.steps[at].told = true;
            self.flush(at, &mut changes);
            changes.push(Change::Completed(at));
        }
        changes
    }

    fn log(&mut self, digest: &str, at_ms: u64, text: &str, changes: &mut Vec<Change>) {
        let at = self.position(digest);
        let state = &mut self.steps[at];
        let since = at_ms.saturating_sub(state.started_ms.unwrap_or(at_ms));
        for piece in text.split_inclusive('\n') {
            let mut rest = piece.trim_end_matches('\n');
            while state.partial.len() + rest.len() > OUTPUT_LINE_BYTES_MAX {
                let room = OUTPUT_LINE_BYTES_MAX - state.partial.len();
                let (fits, more) = rest.split_at(rest.floor_char_boundary(room));
                state.partial.push_str(fits);
                rest = more;
                let line = std::mem::take(&mut state.partial);
                state.keep(at, since, &line, changes);
            }
            state.partial.push_str(rest);
            if piece.ends_with('\n') {
                let line = std::mem::take(&mut state.partial);
                state.keep(at, since, &line, changes);
            }
        }
    }

    /// Output without a last line feed is a line, too, once nothing more can come.
    fn flush(&mut self, at: usize, changes: &mut Vec<Change>) {
        let last_ms = self.last_ms;
        let state = &mut self.steps[at];
        if !state.partial.is_empty() {
            let line = std::mem::take(&mut state.partial);
            let end = state.completed_ms.unwrap_or(last_ms);
            let since = end.saturating_sub(state.started_ms.unwrap_or(end));
            state.keep(at, since, &line, changes);
        }
    }

    fn pushed(&mut self, progress: &PushProgress, changes: &mut Vec<Change>) {
        let before = self.push.insert(progress.item.clone(), progress.clone());
        let changed = before.is_none_or(|before| before.state != progress.state);
        match progress.state {
            PushState::Pushed | PushState::Exists | PushState::Mounted if changed => {
                changes.push(Change::Pushed(progress.clone()));
            }
            PushState::Pushed
            | PushState::Exists
            | PushState::Mounted
            | PushState::Waiting
            | PushState::Pushing => {}
        }
    }

    /// Steps in the order in which they appeared.
    pub(super) fn steps(&self) -> &[StepState] {
        &self.steps
    }

    /// The step at a place that a [`Change`] named.
    pub(super) fn at(&self, place: usize) -> Option<&StepState> {
        self.steps.get(place)
    }

    /// The push, by item.
    pub(super) fn push(&self) -> &BTreeMap<String, PushProgress> {
        &self.push
    }

    /// The number of the newest event: what a new connection asks to continue after.
    pub(crate) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// The build's own clock at the newest event.
    pub(crate) fn last_ms(&self) -> u64 {
        self.last_ms
    }

    /// How the build ended, once it has.
    pub(crate) fn outcome(&self) -> Option<&BuildOutcome> {
        self.outcome.as_ref()
    }

    /// Milliseconds that the build waited behind others.
    pub(crate) fn queued_ms(&self) -> u64 {
        self.started_ms.unwrap_or(0)
    }

    /// Steps of the Dockerfile that came from the cache, of how many. Steps of BuildKit itself do not count.
    pub(crate) fn cached_steps(&self) -> (usize, usize) {
        let own = |step: &&StepState| step.is_of_the_dockerfile();
        let all = self.steps.iter().filter(own).count();
        let cached = self
            .steps
            .iter()
            .filter(own)
            .filter(|step| step.cached)
            .count();
        (cached, all)
    }

    /// Everything that the build takes from the directory has been sent. BuildKit announces all steps of the Dockerfile
    /// before it starts any: so when one of them has begun, the context's own step is known, if there is one. That step
    /// starts and completes before its transfer as well; only the end of the transfer tells that it is done.
    pub(crate) fn context_is_sent(&self) -> bool {
        let begun = |step: &StepState| step.number > 0 && step.is_of_the_dockerfile();
        let mut contexts = self.steps.iter().filter(|step| step.is_context());
        self.steps.iter().any(begun) && contexts.all(|step| step.transferred)
    }

    /// The solve has ended and is not tried again: nobody asks the session for anything any more.
    pub(crate) fn is_solved(&self) -> bool {
        self.outcome.is_some() || !self.push.is_empty()
    }

    /// Milliseconds that the context took.
    pub(crate) fn context_ms(&self) -> u64 {
        self.steps
            .iter()
            .filter(|step| step.is_context())
            .filter_map(StepState::duration_ms)
            .sum()
    }

    /// The step that failed first, to be shown last.
    pub(super) fn failed(&self) -> Option<&StepState> {
        self.steps
            .iter()
            .filter(|step| step.error.is_some() && !step.is_cancelled())
            .min_by_key(|step| step.completed_ms)
    }
}

/// The step that an event is about.
fn step_of(event: &BuildEvent) -> Option<&str> {
    match event {
        BuildEvent::Step(step) => Some(&step.digest),
        BuildEvent::Log { step, .. } | BuildEvent::Progress { step, .. } => Some(step),
        BuildEvent::Queued { .. }
        | BuildEvent::Started
        | BuildEvent::Warning { .. }
        | BuildEvent::Push(_)
        | BuildEvent::LogTruncated
        | BuildEvent::Ended(_) => None,
    }
}

impl StepState {
    fn keep(&mut self, at: usize, at_ms: u64, line: &str, changes: &mut Vec<Change>) {
        let text = clean(line);
        if self.lines.len() == FAILED_STEP_LINES_MAX {
            self.lines.pop_front();
            self.dropped += 1;
        }
        self.lines.push_back((at_ms, text.clone()));
        changes.push(Change::Line {
            step: at,
            at_ms,
            text,
        });
    }

    /// Milliseconds from start to end, once it has ended.
    pub(super) fn duration_ms(&self) -> Option<u64> {
        match (self.started_ms, self.completed_ms) {
            (Some(started), Some(completed)) => Some(completed.saturating_sub(started)),
            (Some(_), None) | (None, Some(_)) | (None, None) => None,
        }
    }

    /// It was given up because another one failed or the build was cancelled. The words stand at the end: before them may be the
    /// user's own command.
    pub(super) fn is_cancelled(&self) -> bool {
        self.error
            .as_ref()
            .is_some_and(|error| error.ends_with("context canceled"))
    }

    /// It runs now.
    pub(super) fn is_running(&self) -> bool {
        self.started_ms.is_some() && self.completed_ms.is_none()
    }

    /// It takes the context from the caller.
    fn is_context(&self) -> bool {
        self.name.starts_with("[internal] load build context")
    }

    fn is_of_the_dockerfile(&self) -> bool {
        is_of_the_dockerfile(&self.name)
    }
}
