use super::*;

const OLD: Generation = Generation(4);
const GEN: Generation = Generation(5);
const NEW: Generation = Generation(6);
const T0: Timestamp = Timestamp(1_000);
const T1: Timestamp = Timestamp(2_000);

fn states() -> Vec<MachineState> {
    use MachineState as S;
    vec![
        S::Stopped,
        S::Starting {
            generation: GEN,
            since: T0,
        },
        S::Booting {
            generation: GEN,
            since: T0,
        },
        S::Running { generation: GEN },
        S::Ending {
            generation: GEN,
            since: T0,
        },
        S::Crashed {
            generation: GEN,
            failures: 2,
            retry_at: T0,
        },
    ]
}

fn events(generation: Generation) -> Vec<(&'static str, MachineEvent)> {
    use MachineEvent as E;
    let (at, failures_before) = (T1, 2);
    vec![
        ("start", E::StartAsked { generation, at }),
        ("runs", E::HostRuns { generation, at }),
        ("ready", E::GuestReady { generation }),
        (
            "failed",
            E::StartFailed {
                generation,
                at,
                failures_before,
            },
        ),
        ("end", E::EndAsked { generation, at }),
        ("refused", E::EndRefused { generation }),
        (
            "ended-well",
            E::Ended {
                generation,
                clean: true,
                at,
                failures_before,
            },
        ),
        (
            "ended-badly",
            E::Ended {
                generation,
                clean: false,
                at,
                failures_before,
            },
        ),
        ("gave-up", E::GaveUp),
    ]
}

/// Every state against every event of the same generation; `-` is illegal.
#[test]
fn the_whole_table() {
    let table = "
                 stopped   starting  booting  running  ending   crashed
    start        starting  -         -        -        -        -
    runs         booting   booting   booting  running  ending   booting
    ready        -         -         running  running  -        -
    failed       -         crashed   -        -        -        -
    end          -         ending    ending   ending   ending   -
    refused      -         -         -        -        running  -
    ended-well   -         stopped   stopped  stopped  stopped  -
    ended-badly  -         crashed   crashed  crashed  stopped  -
    gave-up      -         -         -        -        -        stopped";
    let mut rows = table
        .lines()
        .skip(1)
        .map(|l| l.split_whitespace().collect::<Vec<_>>());
    let head = rows.next().expect("a head");
    let mut seen = 0;
    for row in rows {
        let (_, event) = *events(GEN)
            .iter()
            .find(|(name, _)| *name == row[0])
            .expect("a known event");
        for (state, expected) in states().into_iter().zip(&row[1..]) {
            let got = state.on(event);
            let name = got.as_ref().map_or("-", MachineState::name);
            assert_eq!(name, *expected, "{} on {}", row[0], state.name());
            if let Err(error) = got {
                assert_eq!(error, IllegalTransition { state, event });
            }
            seen += 1;
        }
        assert_eq!(head.len() + 1, row.len());
    }
    assert_eq!(seen, states().len() * events(GEN).len());
}

#[test]
fn news_of_an_older_generation_changes_nothing() {
    for state in states().into_iter().skip(1) {
        for (name, event) in events(OLD) {
            if name != "gave-up" {
                assert!(
                    state.on(event).is_err(),
                    "{name} of an old generation on {state:?}"
                );
            }
        }
    }
}

#[test]
fn a_crashed_machine_starts_only_with_a_newer_generation() {
    let crashed = MachineState::Crashed {
        generation: GEN,
        failures: 1,
        retry_at: T0,
    };
    assert!(
        crashed
            .on(MachineEvent::StartAsked {
                generation: GEN,
                at: T1
            })
            .is_err()
    );
    assert_eq!(
        crashed.on(MachineEvent::StartAsked {
            generation: NEW,
            at: T1
        }),
        Ok(MachineState::Starting {
            generation: NEW,
            since: T1
        })
    );
}

#[test]
fn failed_starts_are_counted_and_a_crash_of_a_good_machine_is_not_one() {
    let ended = |state: MachineState| {
        state.on(MachineEvent::Ended {
            generation: GEN,
            clean: false,
            at: T1,
            failures_before: 2,
        })
    };
    let booting = MachineState::Booting {
        generation: GEN,
        since: T0,
    };
    assert!(matches!(
        ended(booting),
        Ok(MachineState::Crashed { failures: 3, .. })
    ));
    let running = MachineState::Running { generation: GEN };
    assert!(matches!(
        ended(running),
        Ok(MachineState::Crashed { failures: 0, .. })
    ));
}

#[test]
fn asked_twice_to_end_keeps_the_first_moment() {
    let ending = MachineState::Ending {
        generation: GEN,
        since: T0,
    };
    assert_eq!(
        ending.on(MachineEvent::EndAsked {
            generation: GEN,
            at: T1
        }),
        Ok(ending)
    );
}

#[test]
fn backoff_doubles_to_its_bound() {
    assert_eq!(backoff(0), RESTART_BACKOFF_MIN);
    assert_eq!(backoff(1), RESTART_BACKOFF_MIN);
    assert_eq!(backoff(2), RESTART_BACKOFF_MIN * 2);
    assert_eq!(backoff(u32::MAX), RESTART_BACKOFF_MAX);
    for failures in 1..40 {
        assert!(backoff(failures) <= backoff(failures + 1));
    }
}
