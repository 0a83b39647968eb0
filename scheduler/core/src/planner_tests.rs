use super::*;
use crate::limits::MACHINE_SILENCE_MAX;
use proptest::prelude::*;
use std::collections::BTreeMap;

const NOW: Timestamp = Timestamp(1_000_000);
const IDLE: Duration = Duration::from_secs(10);

fn volume(n: u8) -> VolumeId {
    VolumeId::from_entropy([n; 10])
}

fn view() -> MachineView {
    MachineView {
        machine: MachineId::from_entropy([1; 10]),
        volume: volume(0),
        generation: Generation(5),
        wanted: true,
        state: MachineState::Stopped,
        observed: Observed::Absent,
        in_flight: 0,
        quiet_since: NOW,
        idle: IDLE,
        ask_not_before: Timestamp(0),
        volume_ready: true,
        volume_damaged: false,
        replace_not_before: Timestamp(0),
        volume_replaced: false,
        failed_starts: 0,
        in_progress: None,
        heard_at: Timestamp(0),
        silence_max: MACHINE_SILENCE_MAX,
        hold_until: Timestamp(0),
    }
}

fn at(ms_ago: u64) -> Timestamp {
    Timestamp(NOW.0 - ms_ago)
}

fn seen(generation: u64, state: &str) -> Observed {
    let state = match state {
        "runs" => MachineRunState::Running,
        "clean" => exited(true, false),
        "dirty" => exited(false, false),
        "damaged" => exited(false, true),
        other => panic!("{other}"),
    };
    Observed::Present {
        generation: Generation(generation),
        state,
    }
}

fn exited(clean: bool, damaged: bool) -> MachineRunState {
    MachineRunState::Exited { clean, damaged }
}

fn show(plan: &Plan) -> String {
    let mut words: Vec<String> = plan
        .steps
        .iter()
        .map(|step| {
            let what = match step.action {
                Action::Learn(event) => format!("{event:?}")
                    .split([' ', '{'])
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
                Action::EnsureVolume => "ensure-volume".to_owned(),
                Action::Start => "start".to_owned(),
                Action::Stop { grace } if grace.is_zero() => "kill".to_owned(),
                Action::Stop { .. } => "stop".to_owned(),
                Action::SuspectVolume => "suspect-volume".to_owned(),
                Action::Remove => "remove".to_owned(),
                Action::AskToEnd => "ask-to-end".to_owned(),
                Action::ReplaceVolume => "replace-volume".to_owned(),
            };
            format!("{what}({})", step.generation)
        })
        .collect();
    if let Some(when) = plan.look_again_at {
        words.push(format!("again+{}", when.0 as i64 - NOW.0 as i64));
    }
    words.join(" ")
}

fn check(change: impl FnOnce(&mut MachineView), expected: &str) {
    let mut it = view();
    change(&mut it);
    assert_eq!(show(&plan(NOW, &it)), expected, "{it:?}");
}

fn running(it: &mut MachineView) {
    it.state = MachineState::Running {
        generation: Generation(5),
    };
    it.observed = seen(5, "runs");
}

fn crashed(it: &mut MachineView, failed_starts: u32, retry_in: i64) {
    it.failed_starts = failed_starts;
    it.in_flight = 1;
    it.state = MachineState::Crashed {
        generation: Generation(5),
        failures: failed_starts,
        retry_at: Timestamp(NOW.0.saturating_add_signed(retry_in)),
    };
}

#[test]
fn starts_what_is_wanted_and_leaves_alone_what_is_not() {
    check(|_| (), "start(6)");
    check(|it| it.volume_ready = false, "ensure-volume(6) start(6)");
    check(|it| it.wanted = false, "");
    check(|it| it.observed = Observed::Unknown, "");
    check(|it| it.hold_until = Timestamp(NOW.0 + 9), "again+9");
}

#[test]
fn ends_every_other_generation_first() {
    check(|it| it.observed = seen(4, "runs"), "kill(5)");
    check(|it| it.observed = seen(9, "runs"), "kill(9)");
    check(|it| it.observed = seen(9, "dirty"), "remove(9)");
    check(
        |it| {
            running(it);
            it.observed = seen(4, "runs");
        },
        "kill(5)",
    );
    check(
        |it| {
            it.state = MachineState::Starting {
                generation: Generation(5),
                since: at(5),
            };
            it.observed = seen(4, "dirty");
        },
        "StartFailed(5) remove(5)",
    );
}

#[test]
fn adopts_what_it_finds_running() {
    check(|it| it.observed = seen(5, "runs"), "HostRuns(5)");
    check(
        |it| {
            it.state = MachineState::Starting {
                generation: Generation(5),
                since: at(5),
            };
            it.observed = seen(5, "runs");
        },
        "HostRuns(5)",
    );
    check(
        |it| {
            crashed(it, 1, 100);
            it.observed = seen(5, "runs");
        },
        "HostRuns(5)",
    );
}

#[test]
fn learns_how_it_ended_and_clears_up() {
    for (how, state) in [("clean", "Ended"), ("dirty", "Ended")] {
        check(
            |it| {
                running(it);
                it.observed = seen(5, how);
            },
            &format!("{state}(5) remove(5)"),
        );
    }
    check(
        |it| {
            running(it);
            it.observed = Observed::Absent;
        },
        "Ended(5)",
    );
    check(
        |it| {
            it.state = MachineState::Starting {
                generation: Generation(5),
                since: at(5),
            };
        },
        "StartFailed(5)",
    );
}

#[test]
fn restarts_after_the_backoff_while_somebody_uses_it() {
    check(|it| crashed(it, 1, 70), "again+70");
    check(|it| crashed(it, 1, 0), "start(6)");
    check(
        |it| {
            crashed(it, 1, 0);
            it.wanted = false;
        },
        "GaveUp(5)",
    );
    check(
        |it| {
            crashed(it, 1, 0);
            (it.in_flight, it.quiet_since) = (0, at(10_000));
        },
        "GaveUp(5)",
    );
}

#[test]
fn replaces_a_volume_that_was_seen_to_be_damaged_once() {
    check(
        |it| {
            crashed(it, 1, 5_000);
            it.volume_damaged = true;
        },
        "replace-volume(6)",
    );
    check(
        |it| {
            crashed(it, 1, 0);
            (it.volume_damaged, it.volume_replaced) = (true, true);
        },
        "start(6)",
    );
    check(
        |it| {
            running(it);
            it.observed = seen(5, "damaged");
        },
        "suspect-volume(5) Ended(5) remove(5)",
    );
}

#[test]
fn failed_starts_alone_never_cost_a_volume() {
    for failed in [1, 3, 100, u32::MAX] {
        check(|it| crashed(it, failed, 0), "start(6)");
        check(|it| crashed(it, failed, 70), "again+70");
    }
}

#[test]
fn looks_again_later_when_there_is_no_room_for_an_empty_volume() {
    check(
        |it| {
            crashed(it, 1, -5);
            it.volume_damaged = true;
            it.replace_not_before = Timestamp(NOW.0 + 40);
        },
        "again+40",
    );
}

#[test]
fn a_start_that_the_host_works_on_is_asked_for_again_and_is_no_failure() {
    let starting = |it: &mut MachineView| {
        it.state = MachineState::Starting {
            generation: Generation(5),
            since: at(500_000),
        };
        it.in_progress = Some(Generation(5));
    };
    check(starting, "start(5)");
    check(
        |it| {
            starting(it);
            it.hold_until = Timestamp(NOW.0 + 9);
        },
        "again+9",
    );
    check(
        |it| {
            starting(it);
            it.in_progress = Some(Generation(4));
        },
        "StartFailed(5)",
    );
    check(
        |it| {
            starting(it);
            it.wanted = false;
        },
        "StartFailed(5)",
    );
    check(
        |it| {
            starting(it);
            it.observed = seen(5, "runs");
        },
        "HostRuns(5)",
    );
}

#[test]
fn reaps_only_what_is_quiet() {
    check(running, "again+10000");
    check(
        |it| {
            running(it);
            it.quiet_since = at(10_000);
        },
        "ask-to-end(5)",
    );
    check(
        |it| {
            running(it);
            it.quiet_since = at(10_000);
            it.in_flight = 1;
        },
        "",
    );
    check(
        |it| {
            running(it);
            it.quiet_since = at(10_000);
            it.ask_not_before = Timestamp(NOW.0 + 3);
        },
        "again+3",
    );
}

#[test]
fn loses_patience() {
    let booting = |it: &mut MachineView, ms: u64| {
        it.state = MachineState::Booting {
            generation: Generation(5),
            since: at(ms),
        };
        it.observed = seen(5, "runs");
    };
    check(|it| booting(it, 0), "again+90000");
    check(|it| booting(it, 90_000), "kill(5)");
    // One whose guest says that dockerd starts is waited for, but not for ever.
    let heard = |it: &mut MachineView, ms: u64, heard: u64| {
        booting(it, ms);
        it.heard_at = at(heard);
    };
    check(|it| heard(it, 500_000, 20_000), "again+70000");
    check(|it| heard(it, 500_000, 90_000), "kill(5)");
    check(|it| heard(it, 880_000, 0), "again+20000");
    check(|it| heard(it, 900_000, 0), "kill(5)");
    // What an earlier generation said is no word of this one.
    check(|it| heard(it, 80_000, 200_000), "again+10000");
    let ending = |it: &mut MachineView, ms: u64| {
        it.state = MachineState::Ending {
            generation: Generation(5),
            since: at(ms),
        };
        it.observed = seen(5, "runs");
    };
    check(|it| ending(it, 0), "again+40000");
    check(|it| ending(it, 40_000), "kill(5)");
}

#[test]
fn stops_what_shall_stop() {
    check(
        |it| {
            running(it);
            it.wanted = false;
            it.in_flight = 3;
        },
        "stop(5)",
    );
}

// === a simulated host, and whatever may happen to it ===

/// What the world does to a machine between two plans.
#[derive(Debug, Clone)]
enum Fate {
    Want,
    Unwant,
    Connect,
    Disconnect,
    Crash,
    ExitWell,
    Ready,
    HostSilent,
    HostHeard,
    HostLosesAll,
    Wait(u32),
    DamageVolume,
    /// The guest finds what is on the volume damaged, and ends.
    GuestSeesDamage,
    /// The pool has no room for another volume, or has it again.
    PoolFull(bool),
    /// The host answers the next so many times that it still works on the start.
    SlowStart(u8),
    /// The next so many starts fail.
    FailStarts(u8),
    /// The next start is done, but its answer is lost.
    LoseAnswer,
    /// The next start is recorded and never reaches the host, which still has what it had.
    LoseStart,
    /// An older generation comes up late, as from a host that was cut off.
    OldComesUp,
    /// The control plane is killed: what was not recorded is forgotten.
    Restart,
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        4 => Just(Fate::Want),
        1 => Just(Fate::Unwant),
        3 => Just(Fate::Connect),
        3 => Just(Fate::Disconnect),
        2 => Just(Fate::Crash),
        1 => Just(Fate::ExitWell),
        4 => Just(Fate::Ready),
        1 => Just(Fate::HostSilent),
        2 => Just(Fate::HostHeard),
        1 => Just(Fate::HostLosesAll),
        4 => (0u32..70_000).prop_map(Fate::Wait),
        1 => Just(Fate::DamageVolume),
        1 => Just(Fate::GuestSeesDamage),
        1 => proptest::bool::ANY.prop_map(Fate::PoolFull),
        1 => (1u8..6).prop_map(Fate::SlowStart),
        1 => (1u8..6).prop_map(Fate::FailStarts),
        1 => Just(Fate::LoseAnswer),
        1 => Just(Fate::LoseStart),
        1 => Just(Fate::OldComesUp),
        1 => Just(Fate::Restart),
    ];
    proptest::collection::vec(fate, 1..60)
}

struct World {
    now: Timestamp,
    view: MachineView,
    /// What the host really has: generation to (volume, state).
    host: BTreeMap<u64, (VolumeId, MachineRunState)>,
    newest_seen: Generation,
    host_silent: bool,
    host_volumes: Vec<VolumeId>,
    damaged: Vec<VolumeId>,
    /// How many of these there may be: one for each time that damage was seen.
    seen_damaged: u8,
    pool_full: bool,
    slow_start: u8,
    fail_starts: u8,
    lose_answer: bool,
    lose_start: bool,
    volumes_made: u8,
}

impl World {
    fn new() -> Self {
        let mut it = view();
        it.generation = Generation(0);
        it.wanted = false;
        it.volume_ready = false;
        Self {
            now: NOW,
            view: it,
            host: BTreeMap::new(),
            newest_seen: Generation(0),
            host_silent: false,
            host_volumes: Vec::new(),
            damaged: Vec::new(),
            seen_damaged: 0,
            pool_full: false,
            slow_start: 0,
            fail_starts: 0,
            lose_answer: false,
            lose_start: false,
            volumes_made: 0,
        }
    }

    fn befall(&mut self, fate: &Fate) {
        match fate {
            Fate::Want => self.view.wanted = true,
            Fate::Unwant => self.view.wanted = false,
            Fate::Connect => self.view.in_flight += 1,
            Fate::Disconnect => {
                if self.view.in_flight == 1 {
                    self.view.quiet_since = self.now;
                }
                self.view.in_flight = self.view.in_flight.saturating_sub(1);
            }
            Fate::Crash => self.end_live(exited(false, false)),
            Fate::ExitWell => self.end_live(exited(true, false)),
            Fate::GuestSeesDamage => self.end_live(exited(false, true)),
            Fate::PoolFull(full) => self.pool_full = *full,
            Fate::SlowStart(n) => self.slow_start = *n,
            Fate::Ready => {
                if let Some(generation) = self.view.state.connectable()
                    && self.lives(generation)
                {
                    self.learn(MachineEvent::GuestReady { generation });
                }
            }
            Fate::HostSilent => self.host_silent = true,
            Fate::HostHeard => self.host_silent = false,
            Fate::HostLosesAll => self.host.clear(),
            Fate::Wait(ms) => self.now.0 += u64::from(*ms),
            Fate::DamageVolume => self.damaged.push(self.view.volume.clone()),
            Fate::FailStarts(n) => self.fail_starts = *n,
            Fate::LoseAnswer => self.lose_answer = true,
            Fate::LoseStart => self.lose_start = true,
            Fate::OldComesUp => {
                if self.host.is_empty() && self.view.generation.0 > 1 {
                    let runs = (self.view.volume.clone(), MachineRunState::Running);
                    self.host.insert(self.view.generation.0 - 1, runs);
                }
            }
            Fate::Restart => {
                self.view.in_flight = 0;
                self.view.quiet_since = self.now;
                self.view.hold_until = Timestamp(0);
                self.view.ask_not_before = Timestamp(0);
                self.view.replace_not_before = Timestamp(0);
                self.view.volume_damaged = false;
                self.view.in_progress = None;
            }
        }
    }

    fn lives(&self, generation: Generation) -> bool {
        matches!(
            self.host.get(&generation.0),
            Some((_, MachineRunState::Running))
        )
    }

    fn end_live(&mut self, end: MachineRunState) {
        for (_, state) in self.host.values_mut() {
            if *state == MachineRunState::Running {
                *state = end;
            }
        }
    }

    fn observe(&mut self) {
        self.view.observed = if self.host_silent {
            Observed::Unknown
        } else {
            match self.host.iter().next() {
                None => Observed::Absent,
                Some((generation, (_, state))) => Observed::Present {
                    generation: Generation(*generation),
                    state: *state,
                },
            }
        };
    }

    /// As the driver applies events.
    fn learn(&mut self, event: MachineEvent) {
        let before = self.view.state;
        let state = before
            .on(event)
            .expect("the planner gives only legal events");
        self.view.state = state;
        match state {
            MachineState::Running { .. } => {
                self.view.failed_starts = 0;
                self.view.volume_replaced = false;
            }
            MachineState::Crashed { failures, .. } => {
                self.view.failed_starts = failures;
                self.view.volume_ready = false;
            }
            MachineState::Stopped if !matches!(before, MachineState::Ending { .. }) => {
                self.view.wanted = false;
            }
            MachineState::Stopped
            | MachineState::Starting { .. }
            | MachineState::Booting { .. }
            | MachineState::Ending { .. } => {}
        }
    }

    /// Plans and carries out once. Gives whether there was anything to do.
    fn turn(&mut self) -> bool {
        self.observe();
        let plan = plan(self.now, &self.view);
        for step in &plan.steps {
            if !self.carry_out(step) {
                break;
            }
        }
        !plan.steps.is_empty()
    }

    fn carry_out(&mut self, step: &Step) -> bool {
        let (now, generation) = (self.now, step.generation);
        assert_eq!(step.volume, self.view.volume);
        match step.action {
            Action::Learn(event) => self.learn(event),
            Action::EnsureVolume => {
                if !self.host_volumes.contains(&step.volume) {
                    self.host_volumes.push(step.volume.clone());
                }
                self.view.volume_ready = true;
            }
            Action::Start => return self.start(step),
            Action::Stop { grace } => {
                if grace > Duration::ZERO {
                    self.learn(MachineEvent::EndAsked {
                        generation,
                        at: now,
                    });
                } else {
                    self.view.hold_until = now.after(RETRY_WAIT);
                }
                self.fence(generation);
                self.end_live(exited(false, false));
            }
            Action::SuspectVolume => {
                self.view.volume_damaged = true;
                self.seen_damaged += 1;
            }
            Action::Remove => {
                self.fence(generation);
                let live = self.host.keys().any(|g| self.lives(Generation(*g)));
                assert!(!live, "a live machine was removed");
                self.host.clear();
            }
            Action::AskToEnd => {
                assert_eq!(self.view.in_flight, 0, "a machine in use was asked to end");
                self.view.wanted = false;
                self.learn(MachineEvent::EndAsked {
                    generation,
                    at: now,
                });
                if let Some((_, state)) = self.host.get_mut(&generation.0) {
                    *state = exited(true, false);
                }
            }
            Action::ReplaceVolume => {
                assert!(!self.view.volume_replaced, "a volume was replaced twice");
                assert!(self.seen_damaged > 0, "an intact volume was replaced");
                if self.pool_full {
                    self.view.replace_not_before = now.after(Duration::from_secs(30));
                    return false;
                }
                self.seen_damaged = 0;
                self.volumes_made += 1;
                self.view.volume = volume(self.volumes_made);
                self.view.volume_ready = false;
                self.view.volume_damaged = false;
                self.view.volume_replaced = true;
                self.view.failed_starts = 0;
                // The new volume's steps come with the next plan.
                return false;
            }
        }
        true
    }

    fn start(&mut self, step: &Step) -> bool {
        let (now, generation) = (self.now, step.generation);
        if self.view.in_progress == Some(generation) {
            assert_eq!(
                generation, self.view.generation,
                "only the newest is asked for again"
            );
        } else {
            assert!(generation > self.view.generation, "generations only grow");
            self.view.generation = generation;
            self.learn(MachineEvent::StartAsked {
                generation,
                at: now,
            });
        }
        self.view.in_progress = None;
        self.fence(generation);
        if std::mem::take(&mut self.lose_start) {
            self.view.hold_until = now.after(RETRY_WAIT);
            return false;
        }
        let failures_before = self.view.failed_starts;
        let failed = MachineEvent::StartFailed {
            generation,
            at: now,
            failures_before,
        };
        let held: Vec<_> = self
            .host
            .values()
            .filter(|(v, _)| *v == step.volume)
            .collect();
        assert!(held.is_empty(), "a second machine for one volume: {held:?}");
        assert!(self.host_volumes.contains(&step.volume));
        if self.damaged.contains(&step.volume) {
            self.view.volume_damaged = true;
            self.seen_damaged += 1;
            self.learn(failed);
            return false;
        }
        if self.slow_start > 0 {
            self.slow_start -= 1;
            self.view.in_progress = Some(generation);
            self.view.hold_until = now.after(RETRY_WAIT);
            return false;
        }
        if self.fail_starts > 0 {
            self.fail_starts -= 1;
            self.learn(failed);
            return false;
        }
        let runs = (step.volume.clone(), MachineRunState::Running);
        self.host.insert(generation.0, runs);
        if std::mem::take(&mut self.lose_answer) {
            self.view.hold_until = now.after(RETRY_WAIT);
            return false;
        }
        self.learn(MachineEvent::HostRuns {
            generation,
            at: now,
        });
        true
    }

    /// Hosts refuse what is older than the newest they have seen.
    fn fence(&mut self, generation: Generation) {
        assert!(generation >= self.newest_seen, "a host would refuse this");
        self.newest_seen = generation;
    }

    /// Turns until there is nothing to do now.
    fn settle(&mut self) {
        for _ in 0..20 {
            let live = self
                .host
                .values()
                .filter(|(_, s)| *s == MachineRunState::Running);
            assert!(live.count() <= 1, "two live machines");
            if !self.turn() {
                return;
            }
        }
        panic!("does not settle: {:?} {:?}", self.view, self.host);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens: never two live machines for one volume, no illegal transition, no busy loop, nothing in use is
    /// reaped. (All asserted inside.) And when the world calms down, what is wanted runs and what is not does not.
    #[test]
    fn converges_whatever_happens(fates in fates()) {
        let mut world = World::new();
        for fate in &fates {
            world.befall(fate);
            world.settle();
        }
        world.befall(&Fate::HostHeard);
        world.fail_starts = 0;
        world.slow_start = 0;
        world.pool_full = false;
        world.damaged.clear();
        world.lose_answer = false;
        world.lose_start = false;
        world.befall(&Fate::Connect);
        for _ in 0..10 {
            world.befall(&Fate::Want);
            world.settle();
            world.befall(&Fate::Ready);
            world.befall(&Fate::Wait(61_000));
        }
        world.settle();
        let generation = world.view.generation;
        prop_assert_eq!(world.view.state, MachineState::Running { generation });
        prop_assert!(world.lives(generation));
        while world.view.in_flight > 0 {
            world.befall(&Fate::Disconnect);
        }
        for _ in 0..3 {
            world.befall(&Fate::Wait(20_000));
            world.settle();
        }
        prop_assert_eq!(world.view.state, MachineState::Stopped);
        prop_assert!(world.host.is_empty());
    }
}
