//! What is in flight inside the machine, and since when nothing is; and whether something new may begin.
//!
//! Pure: callers pass `now` (milliseconds since the guest's start). It must not know who counts containers or runs
//! builds.

use crate::phase::{Event, IllegalTransition, Phase};
use slipway_core::guest_api::Activity;

/// Why nothing new may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Closed {
    /// The machine is on its way down.
    #[error("the builder is ending")]
    Ending,
}

/// What counts as work that is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A build, from its acceptance to its end.
    Build,
    /// A push.
    Push,
}

/// The books of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ledger {
    phase: Phase,
    ready_after_ms: Option<u64>,
    builds: u32,
    pushes: u32,
    containers: u32,
    steps: u32,
    busy_until_ms: u64,
}

impl Ledger {
    /// The books at the guest's start.
    pub(crate) fn new() -> Ledger {
        Ledger {
            phase: Phase::Starting,
            ready_after_ms: None,
            builds: 0,
            pushes: 0,
            containers: 0,
            steps: 0,
            busy_until_ms: 0,
        }
    }

    /// Where the machine is in its life.
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Milliseconds from the guest's start to the first answer of dockerd.
    pub(crate) fn ready_after_ms(&self) -> Option<u64> {
        self.ready_after_ms
    }

    /// Moves the machine on. The time until ready counts as busy, so that a slow start is no idle time; nor is what passed before
    /// the machine was wanted again.
    pub(crate) fn on(&mut self, event: Event, now_ms: u64) -> Result<Phase, IllegalTransition> {
        self.phase = self.phase.on(event)?;
        if event == Event::Answered {
            self.ready_after_ms = Some(now_ms);
        }
        if matches!(event, Event::Answered | Event::Resumed) {
            self.busy_until_ms = self.busy_until_ms.max(now_ms);
        }
        Ok(self.phase)
    }

    /// Asks for the end, which is refused while anything is in flight.
    pub(crate) fn end_if_idle(&mut self, now_ms: u64) -> Result<(), Activity> {
        let activity = self.activity(now_ms);
        match self.phase {
            Phase::Starting | Phase::Ready if !activity.is_idle() => Err(activity),
            Phase::Starting | Phase::Ready | Phase::Ending => {
                self.phase = Phase::Ending;
                Ok(())
            }
            Phase::Ended | Phase::Crashed => Ok(()),
        }
    }

    /// Something begins.
    pub(crate) fn begin(&mut self, work: Work) -> Result<(), Closed> {
        match self.phase {
            Phase::Starting | Phase::Ready => {
                *self.count(work) += 1;
                Ok(())
            }
            Phase::Ending | Phase::Ended | Phase::Crashed => Err(Closed::Ending),
        }
    }

    /// Something that began has ended.
    pub(crate) fn end(&mut self, work: Work, now_ms: u64) {
        let count = self.count(work);
        *count = count.saturating_sub(1);
        self.busy_until_ms = self.busy_until_ms.max(now_ms);
    }

    /// So much was seen to run. Steps are only told of: see [`Activity::steps`].
    pub(crate) fn running(&mut self, containers: u32, steps: u32, now_ms: u64) {
        if containers > 0 || self.containers > 0 {
            self.busy_until_ms = self.busy_until_ms.max(now_ms);
        }
        self.containers = containers;
        self.steps = steps;
    }

    /// What is in flight now.
    pub(crate) fn activity(&self, now_ms: u64) -> Activity {
        let mut activity = Activity {
            builds: self.builds,
            pushes: self.pushes,
            containers: self.containers,
            steps: self.steps,
            idle_ms: 0,
        };
        if activity.is_idle() && self.phase == Phase::Ready {
            activity.idle_ms = now_ms.saturating_sub(self.busy_until_ms);
        }
        activity
    }

    fn count(&mut self, work: Work) -> &mut u32 {
        match work {
            Work::Build => &mut self.builds,
            Work::Push => &mut self.pushes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phase::Manner;

    fn ready_at(now_ms: u64) -> Ledger {
        let mut ledger = Ledger::new();
        ledger.on(Event::Answered, now_ms).expect("starting");
        ledger
    }

    #[test]
    fn idle_time_runs_from_the_last_end() {
        let mut ledger = Ledger::new();
        assert_eq!(ledger.activity(400).idle_ms, 0, "a start is not idle time");
        ledger.on(Event::Answered, 500).expect("starting");
        assert_eq!(ledger.ready_after_ms(), Some(500));
        assert_eq!(ledger.activity(700).idle_ms, 200);
        ledger.begin(Work::Build).expect("open");
        ledger.begin(Work::Push).expect("open");
        assert_eq!(ledger.activity(900).idle_ms, 0);
        ledger.end(Work::Build, 1_000);
        assert_eq!(ledger.activity(1_500).idle_ms, 0, "the push goes on");
        ledger.end(Work::Push, 2_000);
        assert_eq!(ledger.activity(2_300).idle_ms, 300);
    }

    #[test]
    fn containers_keep_it_busy_until_they_are_seen_gone() {
        let mut ledger = ready_at(0);
        ledger.running(2, 0, 100);
        assert_eq!(ledger.activity(5_000).idle_ms, 0);
        assert_eq!(ledger.activity(5_000).containers, 2);
        ledger.running(0, 0, 6_000);
        assert_eq!(ledger.activity(6_500).idle_ms, 500);
        ledger.running(0, 0, 7_000);
        assert_eq!(
            ledger.activity(7_000).idle_ms,
            1_000,
            "none before, none now"
        );
    }

    #[test]
    fn a_step_that_was_left_over_keeps_nothing_up() {
        let mut ledger = ready_at(0);
        ledger.running(0, 1, 100);
        let activity = ledger.activity(5_000);
        assert_eq!((activity.steps, activity.idle_ms), (1, 5_000));
        assert!(!activity.is_quiet(), "garbage and pauses wait for it");
        assert_eq!(ledger.end_if_idle(5_000), Ok(()));
    }

    #[test]
    fn the_end_is_refused_while_anything_is_in_flight_and_closes_the_door() {
        let mut ledger = ready_at(0);
        ledger.begin(Work::Build).expect("open");
        let refused = ledger.end_if_idle(10).expect_err("a build is in flight");
        assert_eq!(refused.builds, 1);
        assert_eq!(ledger.phase(), Phase::Ready);
        ledger.end(Work::Build, 20);
        ledger.end_if_idle(30).expect("idle");
        assert_eq!(ledger.phase(), Phase::Ending);
        assert_eq!(ledger.begin(Work::Push), Err(Closed::Ending));
        ledger.end_if_idle(40).expect("asked twice");
    }

    #[test]
    fn a_machine_that_goes_on_is_ready_and_has_just_been_used() {
        let mut ledger = ready_at(0);
        ledger.end_if_idle(1_000).expect("idle");
        assert_eq!(ledger.on(Event::Resumed, 90_000), Ok(Phase::Ready));
        assert_eq!(ledger.activity(90_500).idle_ms, 500);
        ledger.begin(Work::Build).expect("open");
    }

    #[test]
    fn a_signal_ends_it_even_when_busy() {
        let mut ledger = ready_at(0);
        ledger.begin(Work::Build).expect("open");
        assert_eq!(ledger.on(Event::EndAsked, 5), Ok(Phase::Ending));
        ledger.end(Work::Build, 6);
        assert_eq!(
            ledger.on(Event::EngineEnded(Manner::Clean), 7),
            Ok(Phase::Ended)
        );
    }
}
