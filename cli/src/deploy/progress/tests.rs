//! Events in, lines out.

use super::board::{Board, Change};
use super::plain;
use super::text::{clean, seconds};
use super::tree::{self, Room};
use slipway_core::build::{BuildEvent, BuildOutcome, NumberedEvent, PushProgress, PushState, Step};

struct Script {
    board: Board,
    seq: u64,
    plain: Vec<String>,
}

impl Script {
    fn new() -> Self {
        Self {
            board: Board::default(),
            seq: 0,
            plain: Vec::new(),
        }
    }

    fn at(mut self, at_ms: u64, event: BuildEvent) -> Self {
        self.seq += 1;
        let event = NumberedEvent {
            seq: self.seq,
            at_ms,
            event,
        };
        let changes = self.board.apply(&event);
        self.plain.extend(plain::lines(&self.board, &changes));
        // The same event again, as after a reconnect, says nothing new.
        assert_eq!(self.board.apply(&event), Vec::<Change>::new());
        self
    }
}

fn step(name: &str, started_ms: Option<u64>, completed_ms: Option<u64>) -> Step {
    Step {
        digest: format!("sha256:{name}"),
        name: name.to_owned(),
        started_ms,
        completed_ms,
        cached: false,
        error: None,
    }
}

fn log(name: &str, text: &str) -> BuildEvent {
    BuildEvent::Log {
        step: format!("sha256:{name}"),
        stream: 1,
        text: text.to_owned(),
    }
}

fn push(item: &str, state: PushState, current: u64, total: u64) -> BuildEvent {
    moved(item, state, [current, total, 0, 0])
}

fn moved(item: &str, state: PushState, bytes: [u64; 4]) -> BuildEvent {
    let [current, total, compressed, sent] = bytes;
    BuildEvent::Push(PushProgress {
        item: item.to_owned(),
        state,
        current,
        total,
        compressed,
        sent,
    })
}

const MAKE: &str = "[2/3] RUN make";

fn failing() -> Script {
    Script::new()
        .at(0, BuildEvent::Queued { ahead: 1 })
        .at(40, BuildEvent::Started)
        .at(
            50,
            BuildEvent::Step(step("[internal] load build context", Some(50), None)),
        )
        .at(
            150,
            BuildEvent::Step(step("[internal] load build context", Some(50), Some(150))),
        )
        .at(
            150,
            BuildEvent::Progress {
                step: "sha256:[internal] load build context".to_owned(),
                id: "transferring context:".to_owned(),
                current: 2048,
                total: 0,
                done: true,
            },
        )
        .at(
            151,
            BuildEvent::Step(step("[internal] load build context", Some(50), Some(150))),
        )
        .at(
            160,
            BuildEvent::Step(Step {
                cached: true,
                ..step("[1/3] FROM debian", Some(155), Some(155))
            }),
        )
        .at(200, BuildEvent::Step(step(MAKE, Some(200), None)))
        .at(512, log(MAKE, "cc -c a.c\ncc: err"))
        .at(
            600,
            log(MAKE, "or\n\u{1b}[31mred\u{1b}[0m\n10%\r20%\rdone\n"),
        )
        .at(700, log(MAKE, "last words"))
        .at(
            1500,
            BuildEvent::Step(Step {
                error: Some("process \"make\" did not complete: exit code: 2".to_owned()),
                ..step(MAKE, Some(200), Some(1500))
            }),
        )
        .at(1501, BuildEvent::Ended(BuildOutcome::Cancelled))
}

#[test]
fn plain_lines_tell_all_in_order() {
    let script = failing();
    assert_eq!(
        script.plain,
        [
            "waiting for a place on the builder, behind 1 other build",
            "#1 [internal] load build context",
            "#1 transferring context 2 KiB done",
            "#1 DONE 0.1s",
            "#2 [1/3] FROM debian",
            "#2 CACHED",
            "#3 [2/3] RUN make",
            "#3 0.312 cc -c a.c",
            "#3 0.400 cc: error",
            "#3 0.400 red",
            "#3 0.400 done",
            "#3 1.300 last words",
            "#3 ERROR: process \"make\" did not complete: exit code: 2",
        ]
    );
    assert_eq!(script.board.cached_steps(), (0, 1));
    assert_eq!(
        (script.board.context_ms(), script.board.queued_ms()),
        (100, 40)
    );
}

#[test]
fn the_failed_step_is_shown_last() {
    assert_eq!(
        plain::failed_step(&failing().board),
        [
            "------",
            " > [2/3] RUN make:",
            "0.312 cc -c a.c",
            "0.400 cc: error",
            "0.400 red",
            "0.400 done",
            "1.300 last words",
            "------",
        ]
    );
    assert_eq!(plain::failed_step(&Board::default()), Vec::<String>::new());
    let silent = Script::new().at(
        1,
        BuildEvent::Step(Step {
            error: Some("x".to_owned()),
            ..step(MAKE, Some(0), Some(1))
        }),
    );
    assert_eq!(plain::failed_step(&silent.board), Vec::<String>::new());
}

#[test]
fn long_output_is_kept_in_part_and_that_is_said() {
    let text: String = (0..1000).map(|n| format!("line {n}\n")).collect();
    let script = Script::new()
        .at(0, BuildEvent::Step(step(MAKE, Some(0), None)))
        .at(1, log(MAKE, &text))
        .at(
            2,
            BuildEvent::Step(Step {
                error: Some("x".to_owned()),
                ..step(MAKE, Some(0), Some(2))
            }),
        );
    let shown = plain::failed_step(&script.board);
    assert_eq!(shown[2], "(800 earlier lines are not shown)");
    assert_eq!(shown.len(), 200 + 4);
    assert_eq!(shown[shown.len() - 2], "0.001 line 999");
}

#[test]
fn the_tree_is_bounded_and_shows_what_runs() {
    let mut script = Script::new();
    for n in 0..40 {
        let name = format!("[stage{n} 1/1] RUN sleep");
        script = script.at(n, BuildEvent::Step(step(&name, Some(n), None)));
    }
    for height in [1, 3, 10, 200] {
        let lines = tree::lines(&script.board, "building", 5000, Room { width: 60, height });
        assert!(
            lines.len() <= height.saturating_sub(2).clamp(2, 25),
            "{height}: {}",
            lines.len()
        );
        assert!(
            lines
                .iter()
                .all(|line| console::measure_text_width(line) <= 60),
            "{lines:#?}"
        );
    }
    let script = Script::new()
        .at(
            0,
            BuildEvent::Step(step("[internal] load build context", Some(0), Some(100))),
        )
        .at(200, BuildEvent::Step(step(MAKE, Some(200), None)))
        .at(300, log(MAKE, "one\ntwo\n"))
        .at(
            400,
            push("sha256:0123456789abcdef", PushState::Pushing, 1024, 2048),
        )
        .at(400, push("sha256:ff", PushState::Exists, 0, 512));
    let lines = tree::lines(
        &script.board,
        "building",
        1700,
        Room {
            width: 40,
            height: 24,
        },
    );
    assert_eq!(
        lines,
        [
            "[+] building 1.7s (1/2)",
            " => [2/3] RUN make                  1.5s",
            " => => # one",
            " => => # two",
            " => push 1/2 items, 1 KiB / 2 KiB",
        ]
    );
}

#[test]
fn steps_that_ended_leave_a_line() {
    let script = failing();
    let lines: Vec<String> = script
        .board
        .steps()
        .iter()
        .map(|step| tree::completed(step, 50))
        .collect();
    assert_eq!(
        lines,
        [
            " => [internal] load build context             0.1s",
            " => CACHED [1/3] FROM debian",
            " => ERROR [2/3] RUN make                      1.3s\n => => ERROR: process \"make\" did not complete: exit code: 2",
        ]
    );
}

#[test]
fn steps_of_the_dockerfile_are_counted() {
    let mut script = Script::new();
    for (n, (name, cached)) in [
        ("[internal] load build definition from Dockerfile", true),
        ("[build 1/3] FROM docker.io/library/debian:trixie", true),
        ("[build 2/3] RUN [ 1/2 ]", true),
        ("[ 3/12] COPY a b", false),
        ("[stage-1 2/2] WORKDIR /x", true),
        ("exporting to image", true),
    ]
    .into_iter()
    .enumerate()
    {
        let at = n as u64;
        let step = Step {
            cached,
            ..step(name, Some(at), Some(at))
        };
        script = script.at(at, BuildEvent::Step(step));
    }
    assert_eq!(script.board.cached_steps(), (2, 3));
}

#[test]
fn a_step_that_nothing_follows_is_told_as_done_when_asked() {
    let mut script = Script::new().at(1, BuildEvent::Step(step(MAKE, Some(0), Some(1))));
    assert_eq!(script.plain, ["#1 [2/3] RUN make"]);
    let changes = script.board.settle(None);
    assert_eq!(plain::lines(&script.board, &changes), ["#1 DONE 0.0s"]);
    assert_eq!(script.board.settle(None), []);
}

#[test]
fn pushed_items_are_told_once() {
    let script = Script::new()
        .at(
            0,
            push("sha256:0123456789abcdef", PushState::Waiting, 0, 10),
        )
        .at(
            1,
            push("sha256:0123456789abcdef", PushState::Pushing, 5, 10),
        )
        .at(
            2,
            push("sha256:0123456789abcdef", PushState::Pushed, 10, 10),
        )
        .at(
            3,
            push("sha256:0123456789abcdef", PushState::Pushed, 10, 10),
        )
        .at(4, push("config", PushState::Exists, 0, 0))
        .at(5, push("sha256:ab", PushState::Mounted, 0, 0));
    assert_eq!(
        script.plain,
        [
            "push 0123456789ab done, 10 B",
            "push config exists already",
            "push ab linked from another repository",
        ]
    );
}

#[test]
fn the_outcome_is_kept() {
    let script = Script::new().at(9, BuildEvent::Ended(BuildOutcome::Cancelled));
    assert_eq!(script.board.outcome(), Some(&BuildOutcome::Cancelled));
    assert_eq!((script.board.last_seq(), script.board.last_ms()), (1, 9));
}

#[test]
fn hostile_output_cannot_steer_the_terminal() {
    for (raw, shown) in [
        ("plain", "plain"),
        ("a\tb", "a    b"),
        ("\u{1b}[2J\u{1b}[Hgone", "gone"),
        ("\u{1b}]0;title\u{7}text", "text"),
        ("\u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{1b}\\", "link"),
        ("\u{1b}[31", ""),
        ("\u{1b}", ""),
        ("bell\u{7}\u{8}\u{9b}", "bell"),
        ("old\rnew\r", "new"),
    ] {
        assert_eq!(clean(raw), shown, "{raw:?}");
    }
}

#[test]
fn times_are_short() {
    for (ms, text) in [
        (0, "0.0s"),
        (999, "0.9s"),
        (59_999, "59.9s"),
        (125_000, "2m05s"),
    ] {
        assert_eq!(seconds(ms), text);
    }
}

#[test]
fn the_context_is_sent_when_its_transfer_has_ended_and_not_before() {
    let context = "[internal] load build context";
    let transfer = |current, done| BuildEvent::Progress {
        step: format!("sha256:{context}"),
        id: "transferring context:".to_owned(),
        current,
        total: 0,
        done,
    };
    let named = |name, started, ended| BuildEvent::Step(step(name, started, ended));
    let mut script = Script::new();
    for (at_ms, event, sent) in [
        (
            1,
            named("[internal] load metadata", Some(0), Some(1)),
            false,
        ),
        (2, named("[1/3] FROM a", Some(2), Some(2)), false),
        (2, named("[2/3] RUN true", None, None), false),
        (2, named(context, None, None), false),
        (3, named("[2/3] RUN true", Some(3), None), false),
        (4, named(context, Some(4), Some(4)), false),
        (5, named(context, Some(5), None), false),
        (6, transfer(3, false), false),
        (6, transfer(0, true), false),
        (7, transfer(5, true), true),
        (8, named(context, Some(5), Some(8)), true),
    ] {
        script = script.at(at_ms, event);
        assert_eq!(script.board.context_is_sent(), sent, "after {at_ms}");
        assert!(!script.board.is_solved());
    }
    let script = script.at(9, push("config", PushState::Waiting, 0, 1));
    assert!(script.board.is_solved());
    let without = Script::new().at(1, BuildEvent::Step(step("[1/1] RUN true", Some(1), None)));
    assert!(without.board.context_is_sent());
}

#[test]
fn a_push_tells_what_was_read_compressed_and_sent() {
    const MIB: u64 = 1 << 20;
    let layer = "sha256:0123456789abcdef";
    let script = Script::new()
        .at(
            1,
            moved("config", PushState::Pushed, [2048, 2048, 2048, 2048]),
        )
        .at(
            2,
            moved(
                "sha256:aa",
                PushState::Exists,
                [9 * MIB, 9 * MIB, 4 * MIB, 0],
            ),
        )
        .at(
            3,
            moved(
                layer,
                PushState::Pushing,
                [100 * MIB, 375 * MIB, 50 * MIB, 40 * MIB],
            ),
        );
    let room = Room {
        width: 120,
        height: 24,
    };
    let tree = tree::lines(&script.board, "pushing", 3, room);
    assert_eq!(
        tree.last().map(String::as_str),
        Some(" => push 2/3 items, 100 MiB / 375 MiB → 50 MiB, 40 MiB sent"),
    );
    let script = script
        .at(
            4,
            moved(
                layer,
                PushState::Pushed,
                [375 * MIB, 375 * MIB, 152 * MIB, 160 * MIB],
            ),
        )
        .at(
            5,
            moved(
                "sha256:bb",
                PushState::Pushed,
                [9 * MIB, 9 * MIB, 4 * MIB, 4 * MIB],
            ),
        )
        .at(6, push("sha256:cc", PushState::Pushed, 9 * MIB, 9 * MIB));
    assert_eq!(
        script.plain,
        [
            "push config done, 2 KiB",
            "push aa exists already",
            "push 0123456789ab done, 375 MiB → 152 MiB, 160 MiB sent",
            "push bb done, 9 MiB → 4 MiB",
            "push cc done, 9 MiB",
        ]
    );
}

#[test]
fn an_older_builder_tells_less_of_a_push() {
    let old = r#"{"item":"config","state":"pushed","current":1,"total":2}"#;
    let progress: PushProgress = serde_json::from_str(old).expect("an event of before");
    assert_eq!((progress.compressed, progress.sent), (0, 0));
}

#[test]
fn a_long_line_is_cut_at_its_bound_however_it_arrives() {
    use crate::limits::OUTPUT_LINE_BYTES_MAX;
    let long = "é".repeat(OUTPUT_LINE_BYTES_MAX);
    let mut script = Script::new().at(0, BuildEvent::Step(step(MAKE, Some(0), None)));
    for piece in [&long[..10], &long[10..], "\nshort\n"] {
        script = script.at(1, log(MAKE, piece));
    }
    let state = &script.board.steps()[0];
    let lines: Vec<&str> = state.lines.iter().map(|(_, line)| line.as_str()).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| line.len() <= OUTPUT_LINE_BYTES_MAX));
    assert_eq!(lines[..2].concat(), long);
    assert_eq!(lines[2], "short");
}
