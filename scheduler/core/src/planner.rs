//! What to do about one machine, given what is wanted, what is recorded, and what its host says.
//!
//! Level-triggered and pure: the same view gives the same plan, and carrying a plan out and planning again converges. A plan
//! is at most a few steps; whoever carries it out plans again afterwards, from fresh facts.
//!
//! Rules, in their order:
//! 1. What the host says is learnt before anything is done.
//! 2. Whatever else of this machine lives on the host is ended and forgotten first. So no two generations live at once,
//!    and no volume has two machines.
//! 3. A wanted machine is started with a generation above any seen; after a crash only once its backoff is over, and only
//!    while somebody still uses it. What ended well stays stopped.
//! 4. A machine whose volume was seen to be damaged gets one new, empty volume; the old one is kept aside. Failed starts
//!    alone say nothing about a volume, however many there are: a host that is slow, full or without a network fails them
//!    as well. If there is no room for an empty volume, nothing is done but to look again later.
//!    A start that the host still works on is no failure: the host is asked again for the same generation.
//! 5. A machine that is quiet for its idle time is asked to end; one that is silent while it boots, or does not end, is
//!    killed.
//!
//! Must not know: how a step is carried out, other machines, or where anything is stored.

use crate::generation::Generation;
use crate::host_api::{MachineReport, MachineRunState};
use crate::id::{MachineId, VolumeId};
use crate::idle::{self, Idle};
use crate::limits::{MACHINE_START_WAIT_MAX, MACHINE_STOP_GRACE};
use crate::machine::{MachineEvent, MachineState};
use crate::time::Timestamp;
use std::time::Duration;

/// A machine that was asked to end is killed after this: the host's own grace and a margin for its news to arrive.
pub const END_WAIT_MAX: Duration = Duration::from_secs(MACHINE_STOP_GRACE.as_secs() + 10);
/// A kill, or a step that failed, is tried again after this.
pub const RETRY_WAIT: Duration = Duration::from_secs(2);

/// What a host says about one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// It was not asked since the last side effect, or does not answer. Nothing may be concluded.
    Unknown,
    /// It has no such machine.
    Absent,
    /// It has this generation of it.
    Present {
        /// Which generation.
        generation: Generation,
        /// What it is doing.
        state: MachineRunState,
    },
}

impl Observed {
    /// The one report of a host's list that is about a machine.
    pub fn of(report: Option<&MachineReport>) -> Self {
        report.map_or(Self::Absent, |r| Self::Present {
            generation: r.generation,
            state: r.state,
        })
    }
}

/// All that a plan for one machine depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineView {
    /// Which machine.
    pub machine: MachineId,
    /// The volume it has.
    pub volume: VolumeId,
    /// The newest generation ever asked for.
    pub generation: Generation,
    /// It shall run.
    pub wanted: bool,
    /// What it does, as recorded.
    pub state: MachineState,
    /// What its host says.
    pub observed: Observed,
    /// Connections through the gateway now.
    pub in_flight: u32,
    /// When the last of them ended.
    pub quiet_since: Timestamp,
    /// The org's idle time.
    pub idle: Duration,
    /// The guest was asked, and said not to ask again before this.
    pub ask_not_before: Timestamp,
    /// The host is known to have the volume.
    pub volume_ready: bool,
    /// The host or the guest saw that the volume is damaged.
    pub volume_damaged: bool,
    /// There was no room for an empty volume in place of the damaged one; it is not looked for again before this.
    pub replace_not_before: Timestamp,
    /// The volume was replaced, and no start has succeeded since.
    pub volume_replaced: bool,
    /// Failed starts in a row.
    pub failed_starts: u32,
    /// The host said of this generation that it still works on the start.
    pub in_progress: Option<Generation>,
    /// When its guest was last heard while it booted.
    pub heard_at: Timestamp,
    /// How long its guest may be silent while it boots.
    pub silence_max: Duration,
    /// A step failed; nothing is tried on the host before this.
    pub hold_until: Timestamp,
}

/// One thing to do, about this machine, this volume and this generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which machine.
    pub machine: MachineId,
    /// Its volume.
    pub volume: VolumeId,
    /// The generation it is about. For [`Action::Start`] the new one; for [`Action::Stop`] and [`Action::Remove`] the
    /// newest known, because a host refuses a verb with an older one than it has seen, and obeys a newer one.
    pub generation: Generation,
    /// What to do.
    pub action: Action,
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Record that this has happened; it has.
    Learn(MachineEvent),
    /// Have the host make the volume if it has none.
    EnsureVolume,
    /// Record the generation, then have the host start it. The newest one, which it still works on, is only asked for again.
    Start,
    /// Have the host end it: politely, then after the grace by force.
    Stop {
        /// How long to be polite; zero kills at once.
        grace: Duration,
    },
    /// Record that the guest saw damage in the volume of this generation.
    SuspectVolume,
    /// Have the host forget it.
    Remove,
    /// Ask the guest whether it is idle too, and if so to end.
    AskToEnd,
    /// Give the machine a new, empty volume, keep the old one aside, and tell the owner.
    ReplaceVolume,
}

/// What to do now, and when to look again if nothing happens before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In this order; a step that fails ends the plan.
    pub steps: Vec<Step>,
    /// Plan again then at the latest; absent if only news can change anything.
    pub look_again_at: Option<Timestamp>,
}

/// The plan for one machine.
pub fn plan(now: Timestamp, view: &MachineView) -> Plan {
    match view.observed {
        Observed::Unknown => nothing(None),
        Observed::Absent => absent(now, view),
        Observed::Present {
            generation,
            state: MachineRunState::Exited { clean, damaged },
        } => exited(now, view, generation, End { clean, damaged }),
        Observed::Present {
            generation,
            state: MachineRunState::Running,
        } => running(now, view, generation),
    }
}

fn nothing(look_again_at: Option<Timestamp>) -> Plan {
    Plan {
        steps: Vec::new(),
        look_again_at,
    }
}

impl MachineView {
    fn step(&self, generation: Generation, action: Action) -> Step {
        Step {
            machine: self.machine.clone(),
            volume: self.volume.clone(),
            generation,
            action,
        }
    }

    fn one(&self, generation: Generation, action: Action) -> Plan {
        Plan {
            steps: vec![self.step(generation, action)],
            look_again_at: None,
        }
    }

    fn learn(&self, generation: Generation, event: MachineEvent) -> Step {
        self.step(generation, Action::Learn(event))
    }

    /// Ends whatever lives of this machine, or waits if the last try has just been.
    fn stop(&self, now: Timestamp, grace: Duration) -> Plan {
        if now < self.hold_until {
            nothing(Some(self.hold_until))
        } else {
            self.one(self.newest(), Action::Stop { grace })
        }
    }

    fn newest(&self) -> Generation {
        match self.observed {
            Observed::Present { generation, .. } => self.generation.max(generation),
            Observed::Unknown | Observed::Absent => self.generation,
        }
    }
}

/// The host has nothing of this machine.
fn absent(now: Timestamp, view: &MachineView) -> Plan {
    match view.state {
        MachineState::Starting { generation, .. }
            if view.wanted && view.in_progress == Some(generation) =>
        {
            if now < view.hold_until {
                nothing(Some(view.hold_until))
            } else {
                view.one(generation, Action::Start)
            }
        }
        MachineState::Starting { generation, .. } => {
            let failures_before = view.failed_starts;
            let event = MachineEvent::StartFailed {
                generation,
                at: now,
                failures_before,
            };
            view.one(generation, Action::Learn(event))
        }
        MachineState::Booting { generation, .. }
        | MachineState::Running { generation }
        | MachineState::Ending { generation, .. } => {
            let event = ended(view, generation, false, now);
            view.one(generation, Action::Learn(event))
        }
        MachineState::Stopped => {
            if view.wanted {
                start(now, view)
            } else {
                nothing(None)
            }
        }
        MachineState::Crashed { retry_at, .. } => after_crash(now, view, retry_at),
    }
}

fn ended(view: &MachineView, generation: Generation, clean: bool, at: Timestamp) -> MachineEvent {
    MachineEvent::Ended {
        generation,
        clean,
        at,
        failures_before: view.failed_starts,
    }
}

fn after_crash(now: Timestamp, view: &MachineView, retry_at: Timestamp) -> Plan {
    let quiet = idle::gateway(now, view.in_flight, view.quiet_since, view.idle);
    if !view.wanted || quiet == Idle::Due {
        return view.one(view.generation, Action::Learn(MachineEvent::GaveUp));
    }
    // A damaged volume does not get better by waiting.
    if now < retry_at && !must_replace(view) {
        return nothing(Some(retry_at));
    }
    start(now, view)
}

fn must_replace(view: &MachineView) -> bool {
    view.volume_damaged && !view.volume_replaced
}

fn start(now: Timestamp, view: &MachineView) -> Plan {
    if now < view.hold_until {
        return nothing(Some(view.hold_until));
    }
    let generation = view.newest().next();
    if must_replace(view) {
        if now < view.replace_not_before {
            return nothing(Some(view.replace_not_before));
        }
        // The plan after this one has the new volume in its view.
        return view.one(generation, Action::ReplaceVolume);
    }
    let mut steps = Vec::with_capacity(2);
    if !view.volume_ready {
        steps.push(view.step(generation, Action::EnsureVolume));
    }
    steps.push(view.step(generation, Action::Start));
    Plan {
        steps,
        look_again_at: None,
    }
}

/// How a generation ended.
#[derive(Clone, Copy)]
struct End {
    clean: bool,
    damaged: bool,
}

/// A generation of this machine has ended, and the host still holds what it had.
fn exited(now: Timestamp, view: &MachineView, generation: Generation, end: End) -> Plan {
    let End { clean, damaged } = end;
    let mut steps = Vec::with_capacity(3);
    match view.state.live_generation() {
        Some(mine) if mine == generation => {
            if damaged {
                steps.push(view.step(generation, Action::SuspectVolume));
            }
            steps.push(view.learn(generation, ended(view, generation, clean, now)));
        }
        // The host has an older one where a newer should be: the newer did not start.
        Some(mine) if mine > generation => {
            let mut plan = absent(now, view);
            plan.steps
                .retain(|step| matches!(step.action, Action::Learn(_)));
            steps = plan.steps;
        }
        Some(_) | None => {}
    }
    if now < view.hold_until {
        return Plan {
            steps,
            look_again_at: Some(view.hold_until),
        };
    }
    steps.push(view.step(view.newest(), Action::Remove));
    Plan {
        steps,
        look_again_at: None,
    }
}

/// A generation of this machine lives.
fn running(now: Timestamp, view: &MachineView, generation: Generation) -> Plan {
    if generation != view.generation {
        // Not the one that was asked for last: end it, whatever it does, before anything else of this machine starts.
        return view.stop(now, Duration::ZERO);
    }
    match view.state {
        MachineState::Stopped | MachineState::Starting { .. } | MachineState::Crashed { .. } => {
            let event = MachineEvent::HostRuns {
                generation,
                at: now,
            };
            view.one(generation, Action::Learn(event))
        }
        MachineState::Booting { since, .. } => {
            if view.wanted {
                let silent = since.max(view.heard_at).after(view.silence_max);
                kill_at(now, view, silent.min(since.after(MACHINE_START_WAIT_MAX)))
            } else {
                view.stop(now, MACHINE_STOP_GRACE)
            }
        }
        MachineState::Running { .. } => {
            if view.wanted {
                reap(now, view, generation)
            } else {
                view.stop(now, MACHINE_STOP_GRACE)
            }
        }
        MachineState::Ending { since, .. } => kill_at(now, view, since.after(END_WAIT_MAX)),
    }
}

fn kill_at(now: Timestamp, view: &MachineView, late: Timestamp) -> Plan {
    if now >= late {
        view.stop(now, Duration::ZERO)
    } else {
        nothing(Some(late))
    }
}

fn reap(now: Timestamp, view: &MachineView, generation: Generation) -> Plan {
    match idle::gateway(now, view.in_flight, view.quiet_since, view.idle) {
        Idle::Busy => nothing(None),
        Idle::NotBefore(at) => nothing(Some(at.max(view.ask_not_before))),
        Idle::Due if now < view.ask_not_before => nothing(Some(view.ask_not_before)),
        Idle::Due => view.one(generation, Action::AskToEnd),
    }
}

#[cfg(test)]
#[path = "planner_tests.rs"]
mod tests;
