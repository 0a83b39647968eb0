//! The API listener: `/graphql`, `/healthz` and the authority's certificate.
//!
//! | request | authentication | answer |
//! |---|---|---|
//! | `GET /healthz` | none | 200 |
//! | `GET /v1/ca.pem` | none (it is public, and whoever trusts nothing yet needs it) | the authority's certificate |
//! | `POST /graphql` | Bearer or Basic | GraphQL over HTTP; with `Accept: text/event-stream`, over server-sent events |
//! | `GET /v1/snapshots/ID/export` | Bearer or Basic | the contents of a snapshot ([`crate::transfers`]) |
//! | `POST`, `PUT /v1/volumes/ID/import` | Bearer or Basic | how far an import is; its rest |
//!
//! Must not know: the schema.

use crate::auth::{Credential, Principal};
use crate::bounds::{GRAPHQL_BODY_BYTES_MAX, GRAPHQL_BODY_WAIT_MAX, SSE_HEARTBEAT};
use crate::connection::Connection;
use crate::gateway::{authenticate, check_head};
use crate::graphql::{self, Executor, Full, Outcome, Received};
use crate::http::{Body, JSON, answer, challenge, closing, empty};
use crate::origin::{check_same_site, is_json};
use crate::parts::Parts;
use crate::problem::{Code, Problem};
use crate::transfer_path::Transfer;
use crate::transfers;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::header::{ACCEPT, ALLOW, SERVER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// The API; clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    parts: Arc<Parts>,
    executor: Executor,
}

const VERSION: &str = concat!("slipway/", env!("CARGO_PKG_VERSION"));
const EVENT_STREAM: &str = "text/event-stream";

impl Api {
    pub(crate) fn new(parts: Parts) -> Self {
        let parts = Arc::new(parts);
        Self {
            executor: Executor::new(Arc::clone(&parts)),
            parts,
        }
    }

    /// Answers one request.
    pub(crate) async fn serve(
        &self,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let mut response = self.route(connection, request).await;
        // RFC 9110, 10.2.4. A client of another version can say so when it does not understand the answer.
        response
            .headers_mut()
            .insert(SERVER, HeaderValue::from_static(VERSION));
        response
    }

    async fn route(
        &self,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        match (&method, path.as_str()) {
            (&Method::GET | &Method::HEAD, "/healthz") => {
                answer(StatusCode::OK, "text/plain; charset=utf-8", "ok\n")
            }
            (&Method::GET | &Method::HEAD, "/v1/ca.pem") => {
                let pem = self.parts.authority.pem().to_owned();
                answer(StatusCode::OK, "application/x-pem-file", pem)
            }
            (_, "/healthz" | "/v1/ca.pem") => not_allowed("GET, HEAD"),
            (&Method::POST, "/graphql") => self.graphql(connection, request).await,
            (_, "/graphql") => not_allowed("POST"),
            (method, path) if let Some(transfer) = Transfer::of(path) => {
                if !transfer
                    .methods()
                    .split(", ")
                    .any(|known| known == method.as_str())
                {
                    return not_allowed(transfer.methods());
                }
                match self.principal(connection, &request).await {
                    Ok(principal) => {
                        let parts = &self.parts;
                        let served =
                            transfers::serve(&transfer, parts, connection, principal, request)
                                .await;
                        served.unwrap_or_else(|problem| refused(&problem))
                    }
                    Err(problem) => closing(refused(&problem)),
                }
            }
            _ => refused(&Problem::new(Code::NotFound, "no such page")),
        }
    }

    async fn principal(
        &self,
        connection: &Connection,
        request: &Request<Incoming>,
    ) -> Result<Principal, Problem> {
        check_head(request)?;
        let headers = request.headers();
        check_same_site(headers, Some(&self.parts.addresses.api))?;
        let credential = Credential::of(headers, None);
        let principal =
            authenticate(&self.parts.authenticator, credential, connection.peer()).await?;
        connection.authenticated(principal.org())?;
        Ok(principal)
    }

    async fn graphql(
        &self,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let principal = match self.principal(connection, &request).await {
            Ok(principal) => principal,
            Err(problem) => return closing(refused(&problem)),
        };
        if !is_json(request.headers()) {
            let problem = Problem::new(Code::Invalid, "the content type must be application/json");
            return refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, &problem);
        }
        let events = accepts(request.headers(), EVENT_STREAM);
        let received = self.executor.receive(&principal);
        let body = match read(request.into_body(), received).await {
            Ok(body) => body,
            Err((status, problem)) => return refusal(status, &problem),
        };
        let outcome = match self.executor.execute(principal, body, events).await {
            Ok(outcome) => outcome,
            Err(problem) => return refused(&problem),
        };
        match outcome {
            Outcome::Answer(json) => answer(StatusCode::OK, JSON, json),
            Outcome::Events(stream) => {
                let cancel = self.parts.cancel.clone().cancelled_owned();
                event_stream(stream.take_until(cancel), Arc::clone(connection))
            }
        }
    }
}

/// Server-sent events as graphql-sse's distinct connections mode has them.
fn event_stream(
    answers: impl Stream<Item = String> + Send + 'static,
    connection: Arc<Connection>,
) -> Response<Body> {
    let events = answers.map(|json| format!("event: next\ndata: {json}\n\n"));
    let events = events.chain(futures_util::stream::once(async {
        "event: complete\ndata:\n\n".to_owned()
    }));
    let events = with_heartbeat(events, SSE_HEARTBEAT).map(move |text| {
        let _held = &connection;
        Ok::<_, Infallible>(Frame::data(Bytes::from(text)))
    });
    let body = StreamBody::new(events)
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut response = answer(StatusCode::OK, EVENT_STREAM, Bytes::new());
    *response.body_mut() = body;
    response
        .headers_mut()
        .insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Puts a comment wherever nothing came for `every`.
fn with_heartbeat(
    events: impl Stream<Item = String> + Send + 'static,
    every: Duration,
) -> impl Stream<Item = String> + Send + 'static {
    futures_util::stream::unfold(Box::pin(events), move |mut events| async move {
        match tokio::time::timeout(every, events.next()).await {
            Ok(Some(event)) => Some((event, events)),
            Ok(None) => None,
            Err(_) => Some((":\n\n".to_owned(), events)),
        }
    })
}

/// Reads a body within its bounds.
async fn read(body: Incoming, mut to: Received) -> Result<Received, (StatusCode, Problem)> {
    let problem =
        |status: StatusCode, message: String| (status, Problem::new(Code::Invalid, message));
    let mut body = pin!(body);
    let whole = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                let message = "the request broke off".to_owned();
                return Err(problem(StatusCode::BAD_REQUEST, message));
            };
            // Trailers mean nothing here.
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            to.add(&piece).map_err(|full| match full {
                Full::Answer => problem(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the request is larger than {GRAPHQL_BODY_BYTES_MAX} bytes"),
                ),
                Full::Memory => {
                    let message =
                        "requests that are being read take all the memory there is for them";
                    let problem = Problem::new(Code::Limit, message);
                    let hint = "send fewer large requests at once";
                    (problem.code.status(), problem.hint(hint))
                }
            })?;
        }
        Ok(())
    };
    match tokio::time::timeout(GRAPHQL_BODY_WAIT_MAX, whole).await {
        Ok(done) => done.map(|()| to),
        Err(_) => {
            let message = "the request did not arrive in time".to_owned();
            Err(problem(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

/// Whether this media type is asked for, alone or in a list.
fn accepts(headers: &HeaderMap, wanted: &str) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|part| part.split(';').next())
        .any(|part| part.trim().eq_ignore_ascii_case(wanted))
}

fn refused(problem: &Problem) -> Response<Body> {
    refusal(problem.code.status(), problem)
}

/// A refusal in GraphQL's form, which says the same in Docker's.
fn refusal(status: StatusCode, problem: &Problem) -> Response<Body> {
    let mut response = answer(status, JSON, graphql::problem_json(problem));
    challenge(&mut response, problem.code);
    response
}

fn not_allowed(methods: &'static str) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(methods));
    response
}
