//! What a machine does: builds, pushes, and room for the next build.

use crate::build::{Ask, Build};
use crate::harness::{signal, volume, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const VOLUME_BYTES: u64 = 2 << 30;
pub(crate) const IMAGE: &str = "127.0.0.1:5000/app:1";
pub(crate) const HELLO: &str = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY hello.txt /\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo out; echo err >&2; /bin/busybox cat /hello.txt\"]\n";
pub(crate) const HANGS: &str =
    "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sleep\", \"600\"]\n";

pub(crate) fn ask(dockerfile: &str) -> Ask<'_> {
    Ask {
        dockerfile,
        image: IMAGE,
        push: false,
    }
}

pub(crate) fn shell(command: &str) -> String {
    format!(
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"{command}\"]\n"
    )
}

fn log_text(events: &[Value]) -> String {
    let logs = events.iter().filter(|event| event["event"] == "log");
    logs.filter_map(|event| event["text"].as_str()).collect()
}

#[test]
fn when_memory_runs_out_a_step_ends_before_the_engine() {
    let Some(volume) = volume(VOLUME_BYTES) else {
        return;
    };
    let runtime = Runtime::new().expect("runtime");
    let machine = volume.start();
    let dockerfile = shell("/bin/busybox cat /proc/self/oom_score_adj");
    let build = Build::start(&runtime, &machine, &ask(&dockerfile));
    let outcome = build.outcome();
    assert_eq!(outcome["outcome"], "succeeded", "{outcome}");
    let score = |text: String| text.trim().parse::<i32>().expect("a number");
    let step = score(log_text(&build.events(0)));
    for pid in [
        machine.pid(),
        machine.daemon("dockerd"),
        machine.daemon("containerd"),
    ] {
        let path = format!("/proc/{pid}/oom_score_adj");
        let daemon = score(std::fs::read_to_string(path).expect("it runs"));
        assert!(step >= daemon + 300, "a step has {step}, a daemon {daemon}");
    }
}

#[test]
fn a_build_is_solved_pushed_and_told() {
    let Some(volume) = volume(VOLUME_BYTES) else {
        return;
    };
    let runtime = Runtime::new().expect("runtime");
    let machine = volume.start();
    let _registry = machine.registry();
    let build = Build::start(
        &runtime,
        &machine,
        &Ask {
            push: true,
            ..ask(HELLO)
        },
    );
    let outcome = build.outcome();
    assert_eq!(outcome["outcome"], "succeeded", "{outcome}");
    let digest = outcome["digest"].as_str().expect("a digest");
    let manifest = machine
        .fetch(
            "http://127.0.0.1:5000/v2/app/manifests/1",
            "application/vnd.docker.distribution.manifest.v2+json",
        )
        .expect("the registry has it");
    assert!(
        manifest.contains(digest)
            && manifest.contains(outcome["image_id"].as_str().expect("an id")),
        "{manifest}"
    );
    assert!(outcome["size_bytes"].as_u64() > Some(500_000), "{outcome}");

    let events = build.events(0);
    assert!(log_text(&events).contains("hello"), "{events:?}");
    let streams: Vec<&Value> = events
        .iter()
        .filter(|event| event["event"] == "log")
        .map(|event| &event["stream"])
        .collect();
    assert!(
        streams.contains(&&json!(1)) && streams.contains(&&json!(2)),
        "{streams:?}"
    );
    for state in ["pushed", "pushing"] {
        assert!(
            events
                .iter()
                .any(|event| event["event"] == "push" && event["state"] == state),
            "{state}: {events:?}"
        );
    }
    let seqs = u64::try_from(events.len()).expect("few");
    assert_eq!(
        build.events(seqs - 2),
        events[events.len() - 2..],
        "read on from any number"
    );
    assert_eq!(build.events(seqs), Vec::<Value>::new());
    let known = machine.guest("GET", "/v1/builds", "").json();
    assert_eq!(known[0]["last_seq"], seqs);
    assert_eq!(known[0]["outcome"]["outcome"], "succeeded");

    let again = Build::start(
        &runtime,
        &machine,
        &Ask {
            push: true,
            ..ask(HELLO)
        },
    );
    let same = again.outcome();
    assert_eq!(same["digest"], digest, "{same}");
    let cached = again
        .events(0)
        .iter()
        .filter(|event| event["cached"] == true)
        .count();
    assert!(cached >= 3, "unchanged steps come from the cache");
    machine.end();
}

#[test]
fn a_push_is_told_in_dockers_words() {
    let Some(volume) = volume(VOLUME_BYTES) else {
        return;
    };
    let runtime = Runtime::new().expect("runtime");
    let machine = volume.start();
    let _registry = machine.registry();
    let build = Build::start(&runtime, &machine, &ask(HELLO));
    let outcome = build.outcome();
    assert_eq!(
        (&outcome["outcome"], &outcome["digest"]),
        (&json!("succeeded"), &Value::Null),
        "{outcome}"
    );
    let push = |image: &str, target: &str| {
        let body = json!({"image": image, "target": target, "credential": null}).to_string();
        let answer = machine.guest("POST", "/v1/push", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.lines()
    };
    let lines = push(IMAGE, IMAGE);
    assert_eq!(
        lines[0]["status"],
        "The push refers to repository [127.0.0.1:5000/app]"
    );
    assert!(
        lines.iter().any(|line| line["status"] == "Pushed"),
        "{lines:?}"
    );
    let aux = &lines.last().expect("a last line")["aux"];
    assert_eq!(aux["Tag"], "1");
    let digest = aux["Digest"].as_str().expect("a digest");
    assert!(
        machine
            .fetch(
                &format!("http://127.0.0.1:5000/v2/app/manifests/{digest}"),
                "*/*"
            )
            .is_some()
    );
    let lines = push(IMAGE, "127.0.0.1:5000/app:2");
    assert!(
        lines
            .iter()
            .any(|line| line["status"] == "Layer already exists"),
        "{lines:?}"
    );
    for (image, target, error) in [
        (
            "nothing:1",
            "127.0.0.1:5000/nothing:1",
            "An image does not exist locally with the tag: nothing:1",
        ),
        (IMAGE, "127.0.0.1:1/app:1", "cannot connect"),
        (IMAGE, "NOT A NAME", "not an image reference"),
    ] {
        let lines = push(image, target);
        let last = lines.last().expect("a last line");
        assert!(
            last["error"]
                .as_str()
                .is_some_and(|text| text.contains(error)),
            "{last}"
        );
        assert_eq!(last["errorDetail"]["message"], last["error"]);
    }
    machine.end();
}

#[test]
fn the_users_mistakes_are_told_as_such() {
    let Some(volume) = volume(VOLUME_BYTES) else {
        return;
    };
    let runtime = Runtime::new().expect("runtime");
    let machine = volume.start();
    for (dockerfile, message) in [
        (shell("echo last words; exit 3"), "exit code: 3"),
        // Words alone fill no disk.
        (
            shell("echo No space left on device; exit 4"),
            "exit code: 4",
        ),
        ("FROM scratch\nCOPY absent /\n".to_owned(), "absent"),
        (
            "FROM scratch\nWHAT is this\n".to_owned(),
            "unknown instruction",
        ),
        (String::new(), "Dockerfile cannot be empty"),
    ] {
        let build = Build::start(&runtime, &machine, &ask(&dockerfile));
        let outcome = build.outcome();
        assert_eq!(
            (&outcome["outcome"], &outcome["fault"]),
            (&json!("failed"), &json!("user")),
            "{outcome}"
        );
        assert!(
            outcome["message"]
                .as_str()
                .is_some_and(|text| text.contains(message)),
            "{outcome}"
        );
        let started = build
            .events(0)
            .iter()
            .filter(|event| event["event"] == "started")
            .count();
        assert_eq!(started, 1);
    }
    let events = machine.guest("GET", "/v1/builds", "").json();
    assert_eq!(events.as_array().map(Vec::len), Some(5));
    // A registry that is not there is nobody's mistake here.
    let build = Build::start(
        &runtime,
        &machine,
        &Ask {
            push: true,
            ..ask(HELLO)
        },
    );
    let outcome = build.outcome();
    assert_eq!(
        (&outcome["outcome"], &outcome["fault"]),
        (&json!("failed"), &json!("system")),
        "{outcome}"
    );
    assert!(outcome["hint"].is_string(), "{outcome}");
    machine.end();
}

#[test]
fn a_running_build_keeps_the_machine_up_until_it_is_cancelled() {
    let Some(volume) = volume(VOLUME_BYTES) else {
        return;
    };
    let runtime = Runtime::new().expect("runtime");
    let machine = volume.start();
    let build = Build::start(&runtime, &machine, &ask(HANGS));
    wait_for("the step to run", || {
        machine.status()["activity"]["steps"] == 1
    });
    // BuildKit loses a cancellation in the instant before a step's process runs.
    wait_for("the step's process", || machine.runs(&["sleep", "600"]));
    let refused = machine.guest("POST", "/v1/end", "");
    assert_eq!(refused.status, 409, "{}", refused.body);
    let activity = refused.json();
    assert_eq!(
        (
            &activity["builds"],
            &activity["steps"],
            &activity["idle_ms"]
        ),
        (&json!(1), &json!(1), &json!(0))
    );
    build.cancel();
    let outcome = build.outcome();
    assert_eq!(outcome["outcome"], "cancelled", "{outcome}");
    build.cancel();
    // The step itself is gone too, not only our interest in it.
    wait_for("the step to end", || {
        machine.status()["activity"]["steps"] == 0
    });
    wait_for("idle time", || {
        machine.status()["activity"]["idle_ms"].as_u64() > Some(50)
    });
    machine.end();
}

#[test]
fn builds_beyond_the_bound_wait_and_a_signal_ends_them_all() {
    let Some(volume) = volume(VOLUME_BYTES) else {
        return;
    };
    let runtime = Runtime::new().expect("runtime");
    let machine = volume.start();
    let running = slipway_core::limits::BUILDS_RUNNING_MAX;
    let readers: Vec<_> = {
        let mut builds: Vec<Build<'_>> = Vec::new();
        for _ in 0..running + 2 {
            builds.push(Build::start(&runtime, &machine, &ask(HANGS)));
        }
        wait_for("the last to wait", || {
            let known = machine.guest("GET", "/v1/builds", "").json();
            known.as_array().is_some_and(|known| {
                known[running + 1]["last_seq"] == 1 && known[0]["last_seq"].as_u64() > Some(2)
            })
        });
        builds[0].cancel();
        assert_eq!(builds[0].outcome()["outcome"], "cancelled");
        // Its place is taken by the first that waited.
        wait_for("the next to begin", || {
            let known = machine.guest("GET", "/v1/builds", "").json();
            known.as_array().is_some_and(|known| {
                known[running]["last_seq"].as_u64() > Some(2) && known[running + 1]["last_seq"] == 1
            })
        });
        let open: Vec<_> = builds[1..].iter().map(Build::open_events).collect();
        // Streams that are open when the end comes get the last word.
        signal(machine.pid(), Signal::SIGTERM);
        open.into_iter()
            .map(|answer| answer.rest().lines())
            .collect()
    };
    assert_eq!(machine.wait().code(), Some(0), "{}", machine.console());
    assert_eq!(machine.record(), "end 0\n");
    for events in &readers {
        let last = events.last().expect("a last event");
        assert_eq!(
            (&last["outcome"], &last["fault"]),
            (&json!("failed"), &json!("system")),
            "{last}"
        );
    }
    assert_eq!(
        readers[running][0]["event"], "queued",
        "{:?}",
        readers[running]
    );
    assert_eq!(readers[running][0]["ahead"], 1);
}

#[test]
fn a_build_outlives_its_client() {
    let Some(volume) = volume(VOLUME_BYTES) else {
        return;
    };
    let runtime = Runtime::new().expect("runtime");
    let machine = volume.start();
    let build = Build::start(&runtime, &machine, &ask(&waits_for_go()));
    build.wait_for(r#""text":"it waits"#);
    build.cut_session();
    let outcome = Build::start(
        &runtime,
        &machine,
        &Ask {
            image: "go:1",
            ..ask(&says_go())
        },
    )
    .outcome();
    assert_eq!(outcome["outcome"], "succeeded", "{outcome}");
    let outcome = build.outcome();
    assert_eq!(outcome["outcome"], "succeeded", "{outcome}");
    machine.end();
}

#[test]
fn a_session_may_come_late_but_not_never() {
    let Some(volume) = volume(VOLUME_BYTES) else {
        return;
    };
    let runtime = Runtime::new().expect("runtime");
    let machine = volume.start();
    let mut late = Build::start_without_session(&machine, &ask(HELLO));
    late.wait_for("started");
    late.open_session(&runtime);
    assert_eq!(late.outcome()["outcome"], "succeeded");
    let never = Build::start_without_session(&machine, &ask(HELLO)).outcome();
    assert_eq!(
        (&never["outcome"], &never["fault"]),
        (&json!("failed"), &json!("system")),
        "{never}"
    );
    assert!(never["hint"].is_string(), "{never}");
    machine.end();
}

const GO: &str = "--mount=type=cache,target=/go";

/// Waits in its second stage until [`says_go`] is built; only then does the third stage use what the first has made.
pub(crate) fn waits_for_go() -> String {
    let run = |command: &str| format!("[\"/bin/busybox\", \"sh\", \"-c\", \"{command}\"]\n");
    let made = run(
        "/bin/busybox dd if=/dev/urandom of=/made bs=1M count=40; /bin/busybox md5sum /made > /sum",
    );
    let waits = run("echo it waits; while [ ! -e /go/on ]; do /bin/busybox sleep 0.05; done");
    let checks = run("/bin/busybox md5sum -c /sum");
    format!(
        "FROM scratch AS base\nCOPY busybox /bin/busybox\nFROM base AS made\nRUN {made}FROM base AS waits\nRUN {GO} {waits}FROM made\nCOPY --from=waits /bin/busybox /again\nRUN {checks}"
    )
}

/// See [`waits_for_go`].
pub(crate) fn says_go() -> String {
    format!(
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN {GO} [\"/bin/busybox\", \"touch\", \"/go/on\"]\n"
    )
}
