//! A proxy before the registry that does to each request what a test tells it to.

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;

type Body = BoxBody<Bytes, io::Error>;

/// What a request looks like to a rule.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
}

/// What becomes of a request.
pub(crate) enum Act {
    /// To the registry and back.
    Forward,
    /// At most so many bytes of the body to the registry; when there are more, both connections are cut.
    Cut(usize),
    /// So many bytes of the body every 50 ms.
    Slow(usize),
    /// This answer; the registry sees nothing.
    Answer(StatusCode, Vec<(&'static str, String)>, &'static str),
    /// An answer with this status and a body that never ends.
    Endless(StatusCode),
    /// The registry gets the request and the client a cut connection.
    LoseAnswer,
    /// The registry's answer with this header changed.
    Change(&'static str, String),
    /// The registry's answer with another status.
    Status(StatusCode),
    /// The registry's answer without its `Location`: the upload goes on where it was opened, and the proxy knows where that is.
    Hidden,
    /// The registry's answer with its `Location` as a path.
    Relative,
    /// 413 to a larger body, which the registry does not see.
    Most(usize),
    /// So many bytes of the body are stored for good, then the client's connection is cut.
    Keep(usize),
    /// A question about an upload, answered for the state that `Keep` has left.
    Kept,
}

/// What happens to a request's body on its way.
#[derive(Clone)]
enum Way {
    Whole,
    Cut(usize),
    /// Ends well after so many bytes; then the flag is set.
    Keep(usize, Arc<AtomicBool>),
    Slow(usize),
}

/// What the proxy remembers.
#[derive(Clone, Default)]
struct Memory {
    seen: Arc<Mutex<Vec<Seen>>>,
    /// By upload: its newest location.
    kept: Arc<Mutex<HashMap<String, Uri>>>,
}

type Rule = dyn Fn(&Seen, usize) -> Act + Send + Sync;

/// A running proxy. Ends with the runtime of its test.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    memory: Memory,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Starts before a registry. The rule gets each request and its number.
    pub(crate) async fn start(
        backend: SocketAddr,
        rule: impl Fn(&Seen, usize) -> Act + Send + Sync + 'static,
    ) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let memory = Memory::default();
        let (rule, log): (Arc<Rule>, _) = (Arc::new(rule), memory.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (rule, log) = (rule.clone(), log.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        handle(request, backend, rule.clone(), log.clone())
                    });
                    // Cut connections end in an error here; that is their purpose.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Proxy {
            address,
            memory,
            task,
        }
    }

    pub(crate) fn target(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.memory.seen.lock().unwrap().clone()
    }

    /// How many of them there were.
    pub(crate) fn count(&self, method: &Method, part: &str) -> usize {
        self.seen()
            .iter()
            .filter(|seen| seen.method == *method && seen.path.contains(part))
            .count()
    }
}

async fn handle(
    mut request: Request<Incoming>,
    backend: SocketAddr,
    rule: Arc<Rule>,
    memory: Memory,
) -> Result<Response<Body>, io::Error> {
    let path = request
        .uri()
        .path_and_query()
        .map(ToString::to_string)
        .unwrap_or_default();
    let seen = Seen {
        method: request.method().clone(),
        path,
        headers: request.headers().clone(),
    };
    let number = {
        let mut log = memory.seen.lock().unwrap();
        log.push(seen.clone());
        log.len() - 1
    };
    match rule(&seen, number) {
        Act::Forward => forward(request, backend, Way::Whole).await,
        Act::Cut(bytes) => forward(request, backend, Way::Cut(bytes)).await,
        Act::Slow(bytes) => forward(request, backend, Way::Slow(bytes)).await,
        Act::LoseAnswer => {
            forward(request, backend, Way::Whole).await?;
            Err(io::Error::other("lost"))
        }
        Act::Change(name, value) => {
            let mut response = forward(request, backend, Way::Whole).await?;
            response.headers_mut().insert(name, value.parse().unwrap());
            Ok(response)
        }
        Act::Status(status) => {
            let mut response = forward(request, backend, Way::Whole).await?;
            *response.status_mut() = status;
            Ok(response)
        }
        Act::Hidden => hidden(request, backend, &memory).await,
        Act::Relative => {
            let mut response = forward(request, backend, Way::Whole).await?;
            if let Some(location) = response.headers().get(header::LOCATION) {
                let uri: Uri = location.to_str().unwrap().parse().unwrap();
                let path = uri.path_and_query().unwrap().as_str().parse().unwrap();
                response.headers_mut().insert(header::LOCATION, path);
            }
            Ok(response)
        }
        Act::Most(bytes) => most(request, backend, bytes).await,
        Act::Keep(bytes) => keep(request, backend, bytes, &memory).await,
        Act::Kept => {
            if let Some(location) = memory.kept.lock().unwrap().get(request.uri().path()) {
                *request.uri_mut() = location.clone();
            }
            forward(request, backend, Way::Whole).await
        }
        Act::Answer(status, headers, body) => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            let body = Full::new(Bytes::from_static(body.as_bytes()))
                .map_err(|never| match never {})
                .boxed();
            Ok(response.body(body).unwrap())
        }
        Act::Endless(status) => {
            let chunks = futures_util::stream::repeat_with(|| {
                Ok(Frame::data(Bytes::from_static(&[b'x'; 4096])))
            });
            Ok(Response::builder()
                .status(status)
                .body(BodyExt::boxed(StreamBody::new(chunks)))
                .unwrap())
        }
    }
}

async fn hidden(
    mut request: Request<Incoming>,
    backend: SocketAddr,
    memory: &Memory,
) -> Result<Response<Body>, io::Error> {
    let path = request.uri().path().to_string();
    let known = memory.kept.lock().unwrap().get(&path).cloned();
    if let Some(known) = known {
        let state = known.query().unwrap_or_default();
        let digest = request.uri().query().unwrap_or_default();
        let digest = digest.split('&').find(|pair| pair.starts_with("digest="));
        let query = [Some(state), digest].into_iter().flatten();
        let query = query.collect::<Vec<_>>().join("&");
        *request.uri_mut() = format!("{path}?{query}").parse().unwrap();
    }
    let mut response = forward(request, backend, Way::Whole).await?;
    if let Some(location) = response.headers_mut().remove(header::LOCATION) {
        let location: Uri = location.to_str().unwrap().parse().unwrap();
        memory.kept.lock().unwrap().insert(path, location);
    }
    Ok(response)
}

async fn most(
    request: Request<Incoming>,
    backend: SocketAddr,
    bytes: usize,
) -> Result<Response<Body>, io::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    if body.len() > bytes {
        let empty = Full::new(Bytes::new()).map_err(|never| match never {});
        let refused = Response::builder().status(StatusCode::PAYLOAD_TOO_LARGE);
        return Ok(refused.body(empty.boxed()).unwrap());
    }
    let body = Full::new(body).map_err(|never| match never {}).boxed();
    send(Request::from_parts(parts, body), backend).await
}

async fn keep(
    request: Request<Incoming>,
    backend: SocketAddr,
    bytes: usize,
    memory: &Memory,
) -> Result<Response<Body>, io::Error> {
    let was_cut = Arc::new(AtomicBool::new(false));
    let way = Way::Keep(bytes, was_cut.clone());
    let response = forward(request, backend, way).await?;
    if !was_cut.load(Ordering::SeqCst) {
        return Ok(response);
    }
    let location = response.headers()[header::LOCATION]
        .to_str()
        .unwrap()
        .parse::<Uri>()
        .unwrap();
    memory
        .kept
        .lock()
        .unwrap()
        .insert(location.path().to_string(), location);
    Err(io::Error::other("cut"))
}

/// Passes a request on, with a bound on its body's bytes or their pace.
async fn forward(
    request: Request<Incoming>,
    backend: SocketAddr,
    way: Way,
) -> Result<Response<Body>, io::Error> {
    let (mut parts, body) = request.into_parts();
    let body: Body = if let Way::Whole = way {
        body.map_err(io::Error::other).boxed()
    } else {
        parts.headers.remove(header::CONTENT_LENGTH);
        bounded(body, way)
    };
    send(Request::from_parts(parts, body), backend).await
}

async fn send(request: Request<Body>, backend: SocketAddr) -> Result<Response<Body>, io::Error> {
    let stream = tokio::net::TcpStream::connect(backend).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let driver = tokio::spawn(connection);
    let (mut parts, body) = request.into_parts();
    parts.uri = parts
        .uri
        .path_and_query()
        .map(|path| path.to_string().parse::<Uri>().unwrap())
        .unwrap_or_default();
    let response = sender.send_request(Request::from_parts(parts, body)).await;
    let response = match response {
        Ok(response) => response,
        Err(error) => {
            driver.abort();
            return Err(io::Error::other(error));
        }
    };
    Ok(response.map(|body| body.map_err(io::Error::other).boxed()))
}

fn bounded(body: Incoming, way: Way) -> Body {
    let data = body
        .into_data_stream()
        .map(|chunk| chunk.map_err(io::Error::other));
    let (mut left, pace) = match &way {
        Way::Whole => (usize::MAX, None),
        Way::Cut(bytes) | Way::Keep(bytes, _) => (*bytes, None),
        Way::Slow(bytes) => (usize::MAX, Some(*bytes)),
    };
    let stream = data.flat_map(move |chunk| {
        let parts: Vec<Option<Result<Bytes, io::Error>>> = match chunk {
            Ok(chunk) if chunk.len() > left => {
                let head = chunk.slice(..left);
                left = 0;
                let end = match &way {
                    Way::Keep(_, was_cut) => {
                        was_cut.store(true, Ordering::SeqCst);
                        None
                    }
                    Way::Whole | Way::Cut(_) | Way::Slow(_) => Some(Err(io::Error::other("cut"))),
                };
                vec![Some(Ok(head)), end]
            }
            Ok(chunk) => {
                left -= chunk.len().min(left);
                chunk
                    .chunks(pace.unwrap_or(usize::MAX))
                    .map(|part| Some(Ok(Bytes::copy_from_slice(part))))
                    .collect()
            }
            Err(error) => vec![Some(Err(error))],
        };
        futures_util::stream::iter(parts)
    });
    let stream = stream
        .take_while(|part| std::future::ready(part.is_some()))
        .filter_map(std::future::ready);
    let stream = stream.then(move |part| async move {
        if pace.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        part.map(Frame::data)
    });
    BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(Box::pin(stream)))))
}

/// A stream that can be shared between threads, because only one at a time polls it.
struct SyncStream<S>(Mutex<std::pin::Pin<Box<S>>>);

impl<S: futures_util::Stream> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;
    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.lock().unwrap().as_mut().poll_next(context)
    }
}
