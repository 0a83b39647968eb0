//! A build as the scheduler asks for it: the session of a client at dockerd's endpoint, the build at the guest's.

use crate::harness::{Answer, Machine, OpenAnswer};
use serde_json::{Value, json};
use slipway_buildkit::{LocalDir, Session, SessionOptions, StatsHandle, dial_docker_session};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A build that was asked for. Its session ends when it is dropped.
pub(crate) struct Build<'m> {
    machine: &'m Machine<'m>,
    pub(crate) id: String,
    session: Option<JoinHandle<()>>,
    context: TempDir,
}

/// What to ask for.
pub(crate) struct Ask<'a> {
    pub(crate) dockerfile: &'a str,
    pub(crate) image: &'a str,
    pub(crate) push: bool,
}

impl<'m> Build<'m> {
    /// Opens a session and asks for the build. The context has busybox and `hello.txt`.
    pub(crate) fn start(runtime: &Runtime, machine: &'m Machine<'_>, ask: &Ask<'_>) -> Build<'m> {
        let mut build = Build::start_without_session(machine, ask);
        build.open_session(runtime);
        build
    }

    /// Asks for the build, whose session is not there.
    pub(crate) fn start_without_session(machine: &'m Machine<'_>, ask: &Ask<'_>) -> Build<'m> {
        let context = tempfile::tempdir().expect("temp dir");
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        std::fs::copy(
            busybox.expect("busybox is there"),
            context.path().join("busybox"),
        )
        .expect("copy busybox");
        std::fs::write(context.path().join("hello.txt"), "hello\n").expect("write");
        std::fs::write(context.path().join("Dockerfile"), ask.dockerfile).expect("write");
        let build = Build {
            machine,
            id: new_id(),
            session: None,
            context,
        };
        for _the_same_id_again in 0..2 {
            let answer = build.ask(ask);
            assert_eq!(answer.status, 202, "{}", answer.body);
        }
        build
    }

    /// Opens the build's session.
    pub(crate) fn open_session(&mut self, runtime: &Runtime) {
        let id = self.session_id();
        let opened = open_session(self.machine, &id, self.context.path());
        self.session = Some(runtime.block_on(opened));
    }

    /// Cuts the build's session off.
    pub(crate) fn cut_session(&self) {
        self.session.as_ref().expect("it is open").abort();
    }

    fn session_id(&self) -> String {
        format!("session-{}", self.id)
    }

    fn ask(&self, ask: &Ask<'_>) -> Answer {
        let spec = json!({"image": ask.image, "push": ask.push, "frontend_attrs": {"force-network-mode": "none"}});
        let body =
            json!({"id": self.id, "session": self.session_id(), "spec": spec, "credential": null});
        self.machine.guest("POST", "/v1/builds", &body.to_string())
    }

    /// All events after `seq`, once the build has ended. Their numbers are checked.
    pub(crate) fn events(&self, seq: u64) -> Vec<Value> {
        let path = format!("/v1/builds/{}/events?after={seq}", self.id);
        let events = self.machine.guest("GET", &path, "").lines();
        for (event, want) in events.iter().zip(seq + 1..) {
            assert_eq!(event["seq"], want, "{event}");
        }
        events
    }

    /// Opens the stream of all events, which goes on until the build ends.
    pub(crate) fn open_events(&self) -> OpenAnswer {
        self.machine
            .guest_begin(&format!("/v1/builds/{}/events?after=0", self.id))
    }

    /// Waits until the build's events hold this text, while it goes on.
    pub(crate) fn wait_for(&self, text: &str) {
        let path = format!("/v1/builds/{}/events", self.id);
        self.machine.guest_until(&path, text);
    }

    /// Waits for the end; gives the outcome.
    pub(crate) fn outcome(&self) -> Value {
        let last = self.events(0).pop().expect("a last event");
        assert_eq!(last["event"], "ended", "{last}");
        last
    }

    pub(crate) fn cancel(&self) {
        let answer = self
            .machine
            .guest("DELETE", &format!("/v1/builds/{}", self.id), "");
        assert_eq!(answer.status, 202, "{}", answer.body);
    }
}

impl Drop for Build<'_> {
    fn drop(&mut self) {
        if let Some(session) = &self.session {
            session.abort();
        }
    }
}

async fn open_session(machine: &Machine<'_>, id: &str, context: &Path) -> JoinHandle<()> {
    let local = |name: &str| LocalDir {
        name: name.to_owned(),
        root: context.to_owned(),
    };
    let session = Session::new(SessionOptions {
        id: id.to_owned(),
        name: "test".to_owned(),
        shared_key: String::new(),
        locals: vec![local("context"), local("dockerfile")],
        stats: StatsHandle::default(),
        ..SessionOptions::default()
    });
    let stream = UnixStream::connect(machine.socket("docker.sock"))
        .await
        .expect("connect");
    let stream = dial_docker_session(stream, &session.headers())
        .await
        .expect("upgrade");
    tokio::spawn(async move {
        // It ends with the build, or is cut off by the test; how is no matter here.
        let _ = session.serve(stream).await;
    })
}

fn new_id() -> String {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut entropy = [0; 10];
    entropy[..4].copy_from_slice(&std::process::id().to_be_bytes());
    entropy[4..8].copy_from_slice(&count.to_be_bytes());
    slipway_core::id::BuildId::from_entropy(entropy).to_string()
}
