//! The solve side: one HTTP/2 connection to a BuildKit control API, and solves on it.
//!
//! It must not know how the connection was made, nor who serves the session that a solve names.

use crate::event::{SolveEvent, events_of};
use crate::limits;
use crate::solve_error::{SolveError, SolveFailure};
use bollard_buildkit_proto::moby::buildkit::v1::{self as control, sourcepolicy};
use control::control_client::ControlClient;
use control::frontend::llb_bridge_client::LlbBridgeClient;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tonic::body::Body;

/// Attribute of the exporter's answer that holds the image id: with containerd's store the digest of its manifest, else that of its config.
pub(crate) const IMAGE_ID_KEY: &str = "containerimage.digest";
/// Older exporters of dockerd's answer with this alone.
pub(crate) const IMAGE_CONFIG_KEY: &str = "containerimage.config.digest";
/// How an image without a name is called in containerd's store, before its digest.
const DANGLING_PREFIX: &str = "moby-dangling";

/// Why a connection could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The other side does not speak HTTP/2, or closed the stream.
    #[error("start HTTP/2 with the builder")]
    Handshake(#[source] hyper::Error),
}

/// What to solve.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SolveRequest {
    /// Name of the solve, unique at the builder.
    pub build_ref: String,
    /// Id of the session that serves the context.
    pub session: String,
    /// Attributes of the frontend `dockerfile.v0` (`filename`, `target`, `build-arg:X`, `label:X`, `platform`, ...).
    pub frontend_attrs: BTreeMap<String, String>,
    /// Name (and tag) the image gets in dockerd; several separated by commas; empty for none.
    pub image_name: String,
    /// What steps may ask for beyond the usual: `network.host`, `security.insecure`.
    pub entitlements: Vec<String>,
    /// Caches to look at.
    pub cache_from: Vec<CacheEntry>,
    /// Caches to write.
    pub cache_to: Vec<CacheEntry>,
    /// What the session gets of the result as well ([`crate::SessionOptions::export`]).
    pub export: Option<Export>,
    /// Where the image goes.
    pub exporter: Exporter,
    /// Where images of a registry are looked for in its place, host by host. The caller tries again without, where that fails.
    pub mirrors: BTreeMap<String, String>,
    /// Further attributes of that exporter, before its own ones: annotations, compression.
    pub exporter_attrs: BTreeMap<String, String>,
}

/// What makes the image of what was solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Exporter {
    /// dockerd's own, whichever store it keeps images in; takes short names.
    #[default]
    Dockerd,
    /// For a dockerd that keeps images in containerd's store: new layers become uncompressed blobs, and nothing is unpacked before a
    /// container is made of it. Takes whole names only (with registry and tag).
    Containerd,
}

/// One archive for the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Export {
    /// The result's files.
    Files,
    /// The image with its names, as `docker load` reads it. Only where images are in containerd's store: dockerd's own has no such
    /// exporter.
    Image,
}

/// A cache outside of the builder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// BuildKit's name of its kind: `registry`, `inline`, `local`.
    pub kind: String,
    /// Its attributes, as `ref`.
    pub attrs: BTreeMap<String, String>,
}

impl std::str::FromStr for CacheEntry {
    type Err = BadCacheEntry;

    /// Reads `type=KIND,NAME=VALUE,...`.
    fn from_str(text: &str) -> Result<CacheEntry, BadCacheEntry> {
        let pairs = text.split(',').map(|pair| pair.split_once('='));
        let mut attrs = pairs
            .map(|pair| pair.map(|(name, value)| (name.to_owned(), value.to_owned())))
            .collect::<Option<BTreeMap<_, _>>>()
            .ok_or(BadCacheEntry)?;
        let kind = attrs.remove("type").ok_or(BadCacheEntry)?;
        Ok(CacheEntry { kind, attrs })
    }
}

/// The text names no cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a cache looks like type=registry,ref=registry.example/app:cache")]
pub struct BadCacheEntry;

/// What a solve made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SolveResult {
    /// Image id in dockerd: the digest of its config, or of its manifest where images are in containerd's store.
    pub image_id: String,
    /// All that the exporter answered.
    pub exporter_response: BTreeMap<String, String>,
}

/// A connection to a builder. Cheap to clone; ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Starts HTTP/2 on `io`, a stream to a BuildKit control API (see [`crate::dial_docker_grpc`]). Must be called
    /// within a tokio runtime, which then drives the connection.
    pub async fn connect<IO>(io: IO) -> Result<Client, ConnectError>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits::CALL_WINDOW_BYTES)
            .initial_connection_window_size(limits::CALL_CONNECTION_WINDOW_BYTES)
            .max_header_list_size(limits::ANSWER_HEADERS_BYTES_MAX)
            .keep_alive_interval(limits::KEEPALIVE_PERIOD)
            .keep_alive_timeout(limits::KEEPALIVE_WAIT_MAX)
            .handshake(TokioIo::new(io))
            .await
            .map_err(ConnectError::Handshake)?;
        // The driver ends by itself when the last sender is dropped or the stream breaks; calls in flight then fail,
        // so its own error would be told twice.
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "connection to the builder ended");
            }
        });
        Ok(Client {
            connection: Connection { sender },
        })
    }

    /// Solves a Dockerfile and exports the image into dockerd. Events go to `events` in order; when nobody takes them
    /// the solve goes slower, and when the receiver is gone they are dropped. Dropping the future cancels the solve.
    pub async fn solve(
        &self,
        request: SolveRequest,
        events: mpsc::Sender<SolveEvent>,
    ) -> Result<SolveResult, SolveFailure> {
        let failed = FailedSteps::default();
        let status = control::StatusRequest {
            r#ref: request.build_ref.clone(),
        };
        let mut solver = self.control();
        let solve = solver.solve(control_request(request));
        let follow = self.follow(status, events, &failed);
        tokio::pin!(solve, follow);
        let mut followed = false;
        let solved = loop {
            tokio::select! {
                solved = &mut solve => break solved,
                () = &mut follow, if !followed => followed = true,
            }
        };
        if !followed {
            let drained = tokio::time::timeout(limits::EVENTS_DRAIN_WAIT_MAX, &mut follow).await;
            if drained.is_err() {
                tracing::debug!("events of the solve did not end in time; the rest is dropped");
            }
        }
        let response = solved
            .map_err(|status| SolveFailure::of_status(status, |digest| failed.name(digest)))?;
        Ok(result_of(response.into_inner())?)
    }

    /// Whether solves are under way at the builder at this moment, and all of them have names ([`SolveRequest::build_ref`]) that are
    /// `ours`, whoever asked for them and through which connection.
    pub async fn is_alone(&self, ours: impl Fn(&str) -> bool) -> Result<bool, SolveError> {
        let request = control::BuildHistoryRequest {
            active_only: true,
            early_exit: true,
            ..Default::default()
        };
        let answer = self.control().listen_build_history(request).await;
        let mut active = answer.map_err(SolveError::of_status)?.into_inner();
        let mut some = false;
        while let Some(event) = active.message().await.map_err(SolveError::of_status)? {
            if !event.record.is_some_and(|record| ours(&record.r#ref)) {
                return Ok(false);
            }
            some = true;
        }
        Ok(some)
    }

    /// The builder's version of BuildKit, such as `v0.13.1`; empty if it names none. Builders before 0.11 do not know the question.
    pub async fn version(&self) -> Result<String, SolveError> {
        let answer = self.control().info(control::InfoRequest {}).await;
        let info = answer.map_err(SolveError::of_status)?.into_inner();
        Ok(info.buildkit_version.unwrap_or_default().version)
    }

    pub(crate) fn control(&self) -> ControlClient<Connection> {
        // BuildKit takes any authority; gRPC wants one.
        let origin = http::Uri::from_static("http://builder");
        ControlClient::with_origin(self.connection.clone(), origin)
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
    }

    pub(crate) fn bridge(&self) -> LlbBridgeClient<Connection> {
        let origin = http::Uri::from_static("http://builder");
        LlbBridgeClient::with_origin(self.connection.clone(), origin)
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
    }

    /// Passes the events of a solve on until the builder ends them. An error here is not told: the solve's own answer
    /// is what counts, and it fails too when the connection does.
    pub(crate) async fn follow(
        &self,
        request: control::StatusRequest,
        events: mpsc::Sender<SolveEvent>,
        failed: &FailedSteps,
    ) {
        let mut stream = match self.control().status(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => {
                tracing::debug!(code = ?status.code(), "no events of the solve");
                return;
            }
        };
        loop {
            match stream.message().await {
                Ok(Some(status)) => {
                    for event in events_of(status) {
                        failed.note(&event);
                        if events.send(event).await.is_err() {
                            return;
                        }
                    }
                }
                Ok(None) => return,
                Err(status) => {
                    tracing::debug!(code = ?status.code(), "events of the solve broke off");
                    return;
                }
            }
        }
    }
}

/// Names of the steps that failed, by digest: an error names the digest alone.
#[derive(Debug, Default)]
pub(crate) struct FailedSteps(Mutex<BTreeMap<String, String>>);

impl FailedSteps {
    fn note(&self, event: &SolveEvent) {
        if let SolveEvent::Step {
            digest,
            name,
            error: Some(_),
            ..
        } = event
        {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() < limits::FAILED_STEPS_MAX {
                known.insert(digest.clone(), name.clone());
            }
        }
    }

    pub(crate) fn name(&self, digest: &str) -> Option<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(digest).cloned()
    }
}

fn control_request(request: SolveRequest) -> control::SolveRequest {
    let sent = request
        .export
        .map(|export| sent_of(export, &request.image_name));
    let (image_exporter, mut attrs) = exporter_of(request.exporter, request.image_name);
    attrs.extend(request.exporter_attrs);
    let mut frontend_attrs: HashMap<_, _> = request.frontend_attrs.into_iter().collect();
    if !request.cache_from.is_empty() {
        // The frontend solves by itself, and looks at these only.
        frontend_attrs.insert("cache-imports".to_owned(), imports(&request.cache_from));
    }
    let exporter = |kind: &str, attrs: HashMap<_, _>| control::Exporter {
        r#type: kind.to_owned(),
        attrs,
    };
    // The last one's answer counts where several give the same attribute, and the image's id must be that of the stored image.
    let mut exporters: Vec<_> = sent
        .map(|(kind, attrs)| exporter(kind, attrs))
        .into_iter()
        .collect();
    exporters.push(exporter(image_exporter, attrs.clone()));
    control::SolveRequest {
        r#ref: request.build_ref,
        session: request.session,
        frontend: "dockerfile.v0".to_owned(),
        frontend_attrs,
        // Both ways of naming the exporter: BuildKit before 0.13 knows the first only, and later ones ignore it when
        // they see the second.
        exporter_deprecated: image_exporter.to_owned(),
        exporter_attrs_deprecated: attrs,
        exporters,
        cache: Some(control::CacheOptions {
            imports: cache_options(request.cache_from),
            exports: cache_options(request.cache_to),
            ..Default::default()
        }),
        entitlements: request.entitlements,
        source_policy: policy(&request.mirrors),
        ..Default::default()
    }
}

/// Mirrors as BuildKit takes them: a rule for each that renames what is fetched.
fn policy(mirrors: &BTreeMap<String, String>) -> Option<sourcepolicy::Policy> {
    let rule = |(host, mirror): (&String, &String)| sourcepolicy::Rule {
        action: sourcepolicy::PolicyAction::Convert.into(),
        selector: Some(sourcepolicy::Selector {
            identifier: format!("docker-image://{host}/*"),
            match_type: sourcepolicy::MatchType::Wildcard.into(),
            constraints: Vec::new(),
        }),
        updates: Some(sourcepolicy::Update {
            identifier: format!("docker-image://{mirror}/${{1}}"),
            attrs: HashMap::new(),
        }),
    };
    let rules: Vec<_> = mirrors.iter().map(rule).collect();
    (!rules.is_empty()).then_some(sourcepolicy::Policy { version: 1, rules })
}

/// Caches as the frontend reads them.
fn imports(entries: &[CacheEntry]) -> String {
    let entries = entries.iter();
    entries
        .map(|CacheEntry { kind, attrs }| serde_json::json!({ "Type": kind, "Attrs": attrs }))
        .collect::<serde_json::Value>()
        .to_string()
}

fn cache_options(entries: Vec<CacheEntry>) -> Vec<control::CacheOptionsEntry> {
    let entries = entries.into_iter();
    entries
        .map(|CacheEntry { kind, attrs }| control::CacheOptionsEntry {
            r#type: kind,
            attrs: attrs.into_iter().collect(),
        })
        .collect()
}

fn sent_of(export: Export, name: &str) -> (&'static str, HashMap<String, String>) {
    match export {
        Export::Files => ("tar", HashMap::new()),
        Export::Image => {
            // As the stored image has them, so that no layer is compressed for the way alone.
            let mut attrs = HashMap::from([("compression".to_owned(), "uncompressed".to_owned())]);
            if !name.is_empty() {
                attrs.insert("name".to_owned(), name.to_owned());
            }
            ("docker", attrs)
        }
    }
}

fn exporter_of(exporter: Exporter, name: String) -> (&'static str, HashMap<String, String>) {
    let mut attrs = HashMap::new();
    if !name.is_empty() {
        attrs.insert("name".to_owned(), name);
    }
    match exporter {
        Exporter::Dockerd => ("moby", attrs),
        Exporter::Containerd => {
            let more = [
                ("compression", "uncompressed"),
                ("dangling-name-prefix", DANGLING_PREFIX),
                ("unpack", "false"),
            ];
            attrs.extend(more.map(|(key, value)| (key.to_owned(), value.to_owned())));
            ("image", attrs)
        }
    }
}

fn result_of(response: control::SolveResponse) -> Result<SolveResult, SolveError> {
    let exporter_response: BTreeMap<_, _> = response.exporter_response.into_iter().collect();
    let image_id = exporter_response
        .get(IMAGE_ID_KEY)
        .or_else(|| exporter_response.get(IMAGE_CONFIG_KEY))
        .cloned()
        .ok_or(SolveError::NoImage)?;
    Ok(SolveResult {
        image_id,
        exporter_response,
    })
}

/// The connection as tonic wants it: a service from request to response.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    sender: http2::SendRequest<Body>,
}

impl tower::Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<
        Box<dyn Future<Output = Result<http::Response<Incoming>, hyper::Error>> + Send>,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}
