//! The guest of a test machine: the guest API over real HTTP, and a dockerd that answers each byte with its generation.

use super::world::World;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use slipway_core::build::{BuildEvent, BuildOutcome, NumberedEvent};
use slipway_core::generation::Generation;
use slipway_core::guest_api::{
    Activity, BuildSummary, DiskUse, GuestStatus, SeenSolve, StartBuild,
};
use slipway_core::host_api::EndpointPort;
use slipway_core::id::{BuildId, MachineId};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

type Body = UnsyncBoxBody<Bytes, Infallible>;

pub struct TestGuest {
    world: Arc<World>,
    machine: MachineId,
    generation: Generation,
    pub ready: watch::Sender<bool>,
    dead: CancellationToken,
    /// Streams to dockerd that are open.
    streams: AtomicU32,
    /// Steps of a `docker build` that run.
    pub containers: AtomicU32,
    quiet_since: Mutex<Instant>,
    builds: Mutex<BTreeMap<BuildId, Vec<NumberedEvent>>>,
    /// It does not know all fields of a build.
    pub older: AtomicBool,
    /// Builds of Docker clients.
    solves: Mutex<Vec<SeenSolve>>,
    more: watch::Sender<u64>,
}

impl TestGuest {
    pub(super) fn new(
        world: Arc<World>,
        machine: MachineId,
        generation: Generation,
        ready: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            world,
            machine,
            generation,
            ready: watch::Sender::new(ready),
            dead: CancellationToken::new(),
            streams: AtomicU32::new(0),
            containers: AtomicU32::new(0),
            // As if it had been quiet for long: the gateway's side alone decides, which is the harder case.
            quiet_since: Mutex::new(Instant::now() - Duration::from_secs(3600)),
            builds: Mutex::default(),
            older: AtomicBool::new(false),
            solves: Mutex::default(),
            more: watch::Sender::new(0),
        })
    }

    pub(super) fn die(&self) {
        self.dead.cancel();
    }

    /// Ids of the builds it has taken.
    pub fn builds(&self) -> Vec<BuildId> {
        self.builds
            .lock()
            .expect("no panic")
            .keys()
            .cloned()
            .collect()
    }

    /// A Docker client asks for a build, which the guest tells of from now on.
    pub fn see(&self, solve: SeenSolve) {
        let mut builds = self.builds.lock().expect("no panic");
        builds.entry(solve.id.clone()).or_default();
        drop(builds);
        self.solves.lock().expect("no panic").push(solve);
        self.more.send_modify(|n| *n += 1);
    }

    /// It was asked to cancel the build.
    pub fn is_cancelled(&self, id: &BuildId) -> bool {
        let builds = self.builds.lock().expect("no panic");
        ended(&builds[id]) == Some(BuildOutcome::Cancelled)
    }

    /// A build goes on.
    pub fn tell(&self, id: &BuildId, event: BuildEvent) {
        let mut builds = self.builds.lock().expect("no panic");
        let events = builds.get_mut(id).expect("a build");
        let seq = events.len() as u64 + 1;
        events.push(NumberedEvent {
            seq,
            at_ms: seq,
            event,
        });
        self.more.send_modify(|n| *n += 1);
    }

    pub(super) fn open(self: &Arc<Self>, port: EndpointPort) -> std::os::unix::net::UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let guest = Arc::clone(self);
        let dead = self.dead.clone();
        if port == EndpointPort::Docker {
            self.streams.fetch_add(1, Ordering::SeqCst);
        }
        tokio::spawn(async move {
            let serve = async {
                match port {
                    EndpointPort::Docker => guest.dockerd(ours).await,
                    EndpointPort::Guest => guest.api(ours).await,
                }
            };
            tokio::select! {
                () = dead.cancelled() => {}
                () = serve => {}
            }
            if port == EndpointPort::Docker {
                guest.streams.fetch_sub(1, Ordering::SeqCst);
            }
        });
        theirs.into_std().expect("a stream")
    }

    /// Answers only when it is up; until then bytes wait, as in a listener's backlog.
    async fn dockerd(&self, mut stream: UnixStream) {
        let _ = self.ready.subscribe().wait_for(|up| *up).await;
        let mut byte = [0];
        while stream.read_exact(&mut byte).await.is_ok() {
            let answer = self.generation.0.to_be_bytes();
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }

    async fn api(self: &Arc<Self>, stream: UnixStream) {
        let guest = Arc::clone(self);
        let service = service_fn(move |request| {
            let guest = Arc::clone(&guest);
            async move { Ok::<_, Infallible>(guest.answer(request).await) }
        });
        let io = hyper_util::rt::TokioIo::new(stream);
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(io, service)
            .await;
    }

    fn activity(&self) -> Activity {
        let builds = self.builds.lock().expect("no panic");
        let running = builds
            .values()
            .filter(|events| ended(events).is_none())
            .count();
        let containers = self.containers.load(Ordering::SeqCst);
        let quiet = self
            .quiet_since
            .lock()
            .expect("no panic")
            .elapsed()
            .as_millis();
        let idle = running == 0 && containers == 0;
        Activity {
            builds: u32::try_from(running).expect("few"),
            pushes: 0,
            containers,
            steps: 0,
            idle_ms: if idle {
                u64::try_from(quiet).expect("short")
            } else {
                0
            },
        }
    }

    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let number = |name: &str| {
            let found = query.split('&').find_map(|pair| pair.strip_prefix(name));
            found
                .and_then(|n| n.strip_prefix('='))
                .and_then(|n| n.parse::<u64>().ok())
        };
        match (request.method(), path.as_str()) {
            (&Method::GET, "/v1/status") => {
                let wait = Duration::from_millis(number("wait_ready_ms").unwrap_or(0));
                let mut ready = self.ready.subscribe();
                let _ = tokio::time::timeout(wait, ready.wait_for(|up| *up)).await;
                json(
                    StatusCode::OK,
                    &GuestStatus {
                        version: "test".into(),
                        ready: *self.ready.borrow(),
                        activity: self.activity(),
                        disk: DiskUse::default(),
                        ready_after_ms: None,
                        engine: None,
                    },
                )
            }
            (&Method::POST, "/v1/end") => self.end(),
            (&Method::POST, "/v1/builds") => {
                let body = request
                    .into_body()
                    .collect()
                    .await
                    .expect("a body")
                    .to_bytes();
                let start: StartBuild = serde_json::from_slice(&body).expect("a build");
                if self.older.load(Ordering::SeqCst) {
                    let message = "the body is not what it should be at line 1, column 99";
                    let message = serde_json::json!({ "message": message });
                    return json(StatusCode::BAD_REQUEST, &message);
                }
                self.builds
                    .lock()
                    .expect("no panic")
                    .entry(start.id)
                    .or_default();
                json(StatusCode::ACCEPTED, &())
            }
            (&Method::GET, "/v1/solves") => self.solves(),
            (&Method::GET, "/v1/builds") => json(StatusCode::OK, &self.summaries()),
            (method, path) => {
                let rest = path.strip_prefix("/v1/builds/").expect("a known path");
                let id: BuildId = rest
                    .split('/')
                    .next()
                    .unwrap_or(rest)
                    .parse()
                    .expect("an id");
                if !self.builds.lock().expect("no panic").contains_key(&id) {
                    let message = serde_json::json!({ "message": "no such build" });
                    return json(StatusCode::NOT_FOUND, &message);
                }
                if method == Method::DELETE {
                    self.tell(&id, BuildEvent::Ended(BuildOutcome::Cancelled));
                    return json(StatusCode::ACCEPTED, &());
                }
                self.events(id, number("after").unwrap_or(0))
            }
        }
    }

    fn summaries(&self) -> Vec<BuildSummary> {
        let builds = self.builds.lock().expect("no panic");
        let summary = |(id, events): (&BuildId, &Vec<NumberedEvent>)| BuildSummary {
            id: id.clone(),
            outcome: ended(events),
            last_seq: events.len() as u64,
        };
        builds.iter().map(summary).collect()
    }

    fn end(self: &Arc<Self>) -> Response<Body> {
        let activity = self.activity();
        if !activity.is_idle() {
            return json(StatusCode::CONFLICT, &activity);
        }
        let open = self.streams.load(Ordering::SeqCst);
        if open > 0 {
            let what = format!("{} was asked to end with {open} streams open", self.machine);
            self.world.violate(what);
        }
        let guest = Arc::clone(self);
        tokio::spawn(async move {
            // It takes a moment to end, in which requests may come.
            tokio::time::sleep(Duration::from_millis(guest.generation.0 % 20)).await;
            guest
                .world
                .end_machine(&guest.machine, guest.generation, true);
        });
        json(StatusCode::ACCEPTED, &())
    }

    fn solves(self: &Arc<Self>) -> Response<Body> {
        let state = (Arc::clone(self), 0, self.more.subscribe());
        let stream = futures_util::stream::unfold(state, |(guest, told, mut more)| async move {
            loop {
                more.mark_unchanged();
                let next = guest.solves.lock().expect("no panic").get(told).cloned();
                if let Some(solve) = next {
                    let mut line = serde_json::to_vec(&solve).expect("json");
                    line.push(b'\n');
                    return Some((Ok(Frame::data(line.into())), (guest, told + 1, more)));
                }
                more.changed().await.ok()?;
            }
        });
        Response::new(StreamBody::new(stream).boxed_unsync())
    }

    fn events(self: &Arc<Self>, id: BuildId, after: u64) -> Response<Body> {
        let more = self.more.subscribe();
        let state = (Arc::clone(self), id, after, more);
        let stream =
            futures_util::stream::unfold(state, |(guest, id, after, mut more)| async move {
                loop {
                    more.mark_unchanged();
                    let next = {
                        let builds = guest.builds.lock().expect("no panic");
                        let events = &builds[&id];
                        let next = events.iter().find(|e| e.seq > after).cloned();
                        if next.is_none() && ended(events).is_some() {
                            return None;
                        }
                        next
                    };
                    if let Some(event) = next {
                        let mut line = serde_json::to_vec(&event).expect("json");
                        line.push(b'\n');
                        let frame = Ok(Frame::data(Bytes::from(line)));
                        return Some((frame, (guest, id, event.seq, more)));
                    }
                    more.changed().await.ok()?;
                }
            });
        Response::new(StreamBody::new(stream).boxed_unsync())
    }
}

fn ended(events: &[NumberedEvent]) -> Option<BuildOutcome> {
    match events.last().map(|e| &e.event) {
        Some(BuildEvent::Ended(outcome)) => Some(outcome.clone()),
        Some(_) | None => None,
    }
}

fn json<T: serde::Serialize>(status: StatusCode, value: &T) -> Response<Body> {
    let body = serde_json::to_vec(value).expect("json");
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
    *response.status_mut() = status;
    response
}
