//! Builds that end before they are done.

use crate::common::{BASE, Build, Dockerd, connect, dockerd, new_id, write_files};
use slipway_buildkit::{Client, SolveError, SolveEvent, dial_docker_grpc, dial_docker_session};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

const WAIT_MAX: Duration = Duration::from_secs(180);

/// A context whose build goes on for long, once it has said `running`.
fn long_build(dockerd: &Dockerd, mark: &str) -> Build {
    let context = dockerd.work_dir("long");
    let dockerfile = format!("FROM {BASE}\nRUN echo {mark} running; sleep 3141\nCOPY late /\n");
    write_files(&context, &[("Dockerfile", &dockerfile), ("late", "x")]);
    Build::new(dockerd, &context)
}

async fn serve(build: &Build, dockerd: &Dockerd, id: &str) -> tokio::task::JoinHandle<()> {
    let (session, _) = build.session(id);
    let stream = UnixStream::connect(dockerd.socket()).await.unwrap();
    let stream = dial_docker_session(stream, &session.headers())
        .await
        .unwrap();
    tokio::spawn(async move {
        session.serve(stream).await.unwrap();
    })
}

async fn until_running(events: &mut mpsc::Receiver<SolveEvent>) {
    let running = async {
        loop {
            let event = events.recv().await.expect("the build must run");
            if let SolveEvent::Log { bytes, .. } = event
                && String::from_utf8_lossy(&bytes).contains("running")
            {
                return;
            }
        }
    };
    tokio::time::timeout(WAIT_MAX, running)
        .await
        .expect("the step must begin");
}

/// Command lines of processes that sleep, seen from the host.
fn sleepers() -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let command =
        |entry: std::fs::DirEntry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
    processes
        .map(command)
        .filter(|line| line == b"sleep\x003141\x00")
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_solve_is_cancelled_at_the_builder() {
    let Some(dockerd) = dockerd() else { return };
    let build = long_build(&dockerd, "cancel");
    let id = new_id();
    let served = serve(&build, &dockerd, &id).await;
    let client = connect(&dockerd).await;
    let (sender, mut events) = mpsc::channel(16);
    let request = build.request(&id);
    let solving = tokio::spawn(async move { client.solve(request, sender).await });
    until_running(&mut events).await;
    // The step says that it runs before it sleeps.
    let deadline = Instant::now() + WAIT_MAX;
    while sleepers() == 0 {
        assert!(Instant::now() < deadline, "the step must sleep");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    solving.abort();
    while sleepers() > 0 {
        assert!(Instant::now() < deadline, "the step must be killed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    served.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solve_without_its_session_says_so() {
    let Some(dockerd) = dockerd() else { return };
    let build = long_build(&dockerd, "none");
    let client = connect(&dockerd).await;
    let (sender, _events) = mpsc::channel(16);
    let error = client
        .solve(build.request(&new_id()), sender)
        .await
        .unwrap_err();
    assert!(
        matches!(error.error, SolveError::SessionLost { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_lost_midway_is_told() {
    let Some(dockerd) = dockerd() else { return };
    let context = dockerd.work_dir("lost");
    // The second stage asks for the context only after the first has waited for long enough.
    let dockerfile = format!(
        "FROM {BASE}\nRUN --mount=type=secret,id=x echo running; sleep 3\nRUN --mount=type=secret,id=y,required true\n"
    );
    write_files(&context, &[("Dockerfile", &dockerfile)]);
    let build = Build::new(&dockerd, &context);
    let id = new_id();
    let served = serve(&build, &dockerd, &id).await;
    let client = connect(&dockerd).await;
    let (sender, mut events) = mpsc::channel(64);
    let request = build.request(&id);
    let solving = tokio::spawn(async move { client.solve(request, sender).await });
    until_running(&mut events).await;
    served.abort();
    let error = solving.await.unwrap().unwrap_err();
    assert!(
        matches!(error.error, SolveError::SessionLost { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_to_the_builder_is_told() {
    let Some(dockerd) = dockerd() else { return };
    let build = long_build(&dockerd, "cut");
    let id = new_id();
    let served = serve(&build, &dockerd, &id).await;
    let (near, mut middle) = tokio::io::duplex(1 << 16);
    let mut far = UnixStream::connect(dockerd.socket()).await.unwrap();
    let between =
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut middle, &mut far).await });
    let client = Client::connect(dial_docker_grpc(near).await.unwrap())
        .await
        .unwrap();
    let (sender, mut events) = mpsc::channel(64);
    let request = build.request(&id);
    let solving = tokio::spawn(async move { client.solve(request, sender).await });
    until_running(&mut events).await;
    between.abort();
    let error = solving.await.unwrap().unwrap_err();
    assert!(matches!(error.error, SolveError::Transport(_)), "{error:?}");
    served.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_knows_whether_another_runs() {
    let Some(dockerd) = dockerd() else { return };
    // Builds of other tests run at this dockerd too; those of this one are known by their names.
    let prefix = format!("alone-{}-", new_id());
    let begin = async |name: &str| {
        let build = long_build(&dockerd, &format!("{prefix}{name}"));
        let id = new_id();
        let served = serve(&build, &dockerd, &id).await;
        let client = connect(&dockerd).await;
        let (sender, mut events) = mpsc::channel(16);
        let mut request = build.request(&id);
        request.build_ref = format!("{prefix}{name}");
        let solving = tokio::spawn(async move { client.solve(request, sender).await });
        until_running(&mut events).await;
        (solving, served, events)
    };
    let asker = connect(&dockerd).await;
    let is_alone = async |name: &str| {
        let ours = |other: &str| other == format!("{prefix}{name}") || !other.starts_with(&prefix);
        asker.is_alone(ours).await.unwrap()
    };
    let first = begin("first").await;
    assert!(is_alone("first").await);
    assert!(!is_alone("none").await);
    let second = begin("second").await;
    assert!(!is_alone("first").await && !is_alone("second").await);
    second.0.abort();
    let deadline = Instant::now() + WAIT_MAX;
    while !is_alone("first").await {
        assert!(Instant::now() < deadline, "the second build must end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    first.0.abort();
    for served in [first.1, second.1] {
        served.abort();
    }
}
