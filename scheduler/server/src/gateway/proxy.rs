//! One request to the builder's dockerd and its answer back, or the streams that both turn into.
//!
//! Must not know: which requests are allowed, whose they are.

use super::asked::AskedBuild;
use super::endpoints::{Builds, Endpoint};
use super::pump::pump;
use super::relay::{Return, relay};
use super::{Activity, Caller, Gateway, headers, solves};
use crate::bounds::UPGRADE_WAIT_MAX;
use crate::builds::Carried;
use crate::chain::chain;
use crate::connection::Connection;
use crate::farm::BuilderKey;
use crate::http::{Body, empty};
use crate::problem::{Code, Problem};
use crate::rate::LogLimit;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use slipway_core::build::BuildSource;
use slipway_core::host_api::EndpointPort;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::Instrument;

/// An answer of a builder, and what it came on.
pub(super) struct Answered {
    pub(super) response: Response<Incoming>,
    pub(super) sender: SendRequest<Body>,
    pub(super) activity: Activity,
}

impl Gateway {
    /// Passes a request on.
    pub(super) async fn proxy(
        &self,
        connection: &Arc<Connection>,
        caller: &Caller,
        endpoint: &Endpoint,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Problem> {
        let wants_upgrade = headers::upgrade(request.headers()).is_some();
        let client = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let mut outgoing = Request::new(body.map_err(Into::into).boxed_unsync());
        *outgoing.method_mut() = parts.method;
        *outgoing.uri_mut() = target(&endpoint.path, parts.uri.query())?;
        *outgoing.headers_mut() = headers::to_builder(parts.headers, endpoint.credentials);

        // Before the builder hears of the build.
        let carried = match endpoint.builds {
            Builds::None => None,
            Builds::One | Builds::Stream => Some(self.carry(caller, BuildSource::Docker)),
        };
        let build = match endpoint.builds {
            Builds::One => Some(AskedBuild::of(parts.uri.query().unwrap_or_default())),
            Builds::None | Builds::Stream => None,
        };
        if let (
            Some(carried),
            Some(AskedBuild {
                name: Some(name),
                spec,
                ..
            }),
        ) = (&carried, &build)
        {
            carried.named(name, Some(spec.clone()));
        }
        let asked = self.ask(&caller.key, outgoing);
        let answered = caller.while_good(asked).await?;
        if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let client = client.ok_or_else(|| broken("it changed the protocol unasked"))?;
            return Ok(self.hijack(connection, caller, client, answered, carried));
        }
        let Answered {
            response,
            sender,
            activity,
        } = answered;
        let activity = Activity::new((activity, carried));
        let tap = build
            .filter(|build| !build.by_buildkit)
            .map(|build| self.transcribe(caller, build.spec, response.status()));
        let back = self
            .0
            .builders
            .running(&caller.key)
            .map(|generation| Return {
                pool: Arc::clone(&self.0.pool),
                key: caller.key.clone(),
                generation,
                sender,
            });
        let (parts, body) = response.into_parts();
        let mut response =
            Response::new(relay(body, activity, back, tap, caller.principal.ended()));
        *response.status_mut() = parts.status;
        *response.headers_mut() = headers::to_client(parts.headers);
        Ok(response)
    }

    /// Sends a request on a kept connection, or on a new one. A kept one that has gone stale is replaced only if nothing of
    /// the request was sent.
    pub(super) async fn ask(
        &self,
        key: &BuilderKey,
        mut request: Request<Body>,
    ) -> Result<Answered, Problem> {
        while let Some((mut sender, activity)) = self.0.pool.take(&*self.0.builders, key) {
            match sender.try_send_request(request).await {
                Ok(response) => {
                    return Ok(Answered {
                        response,
                        sender,
                        activity,
                    });
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(not_answered(error.error())),
                },
            }
        }
        let (stream, activity) = self.0.builders.connect(key, EndpointPort::Docker).await?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(chain(&error).for_log()))?;
        let span = tracing::debug_span!("builder_connection", org = %key.org);
        let driven = async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(why = ?chain(&error), "connection to a builder broke");
            }
        };
        self.0.streams.spawn(driven.instrument(span));
        match sender.send_request(request).await {
            Ok(response) => Ok(Answered {
                response,
                sender,
                activity,
            }),
            Err(error) => Err(not_answered(&error)),
        }
    }

    /// Answers 101, and copies bytes both ways once both sides have let go of HTTP.
    fn hijack(
        &self,
        connection: &Arc<Connection>,
        caller: &Caller,
        client: OnUpgrade,
        answered: Answered,
        carried: Option<Carried>,
    ) -> Response<Body> {
        let Answered {
            mut response,
            sender,
            activity,
        } = answered;
        let builder = hyper::upgrade::on(&mut response);
        let protocol = response.headers().get(UPGRADE).cloned();
        let mut switching = Response::new(empty());
        *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *switching.headers_mut() = headers::to_client(std::mem::take(response.headers_mut()));
        let fields = switching.headers_mut();
        fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        fields.insert(
            UPGRADE,
            protocol.unwrap_or_else(|| HeaderValue::from_static("tcp")),
        );

        let (connection, caller) = (Arc::clone(connection), caller.clone());
        self.0.streams.spawn(async move {
            // All of it lives as long as the stream does.
            let _held = (connection, activity);
            let upgraded = async { tokio::try_join!(client, builder) };
            match tokio::time::timeout(UPGRADE_WAIT_MAX, upgraded).await {
                Ok(Ok((client, builder))) => {
                    drop(sender);
                    let (client, builder) = (TokioIo::new(client), TokioIo::new(builder));
                    match carried {
                        Some(carried) => {
                            let named = |named: solves::Named| {
                                carried.named(&named.reference, named.spec);
                            };
                            stream(&caller, solves::Read::new(client, named), builder).await;
                        }
                        None => stream(&caller, client, builder).await,
                    }
                }
                Ok(Err(error)) => tracing::debug!(why = ?chain(&error), "stream not opened"),
                Err(_) => tracing::debug!("stream not opened in time"),
            }
        });
        switching
    }
}

/// Copies until the end, or until the caller's token is good no longer.
pub(super) async fn stream<A, B>(caller: &Caller, client: A, builder: B)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let org = &caller.entered.org.id;
    tokio::select! {
        () = caller.principal.ended().cancelled() => {
            tracing::info!(%org, "stream ended: its token is good no longer");
        }
        done = pump(client, builder) => match done {
            Ok((sent, received)) => tracing::debug!(%org, sent, received, "stream ended"),
            Err(error) => tracing::debug!(%org, %error, "stream broke"),
        }
    }
}

fn target(path: &str, query: Option<&str>) -> Result<Uri, Problem> {
    let text = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    text.parse()
        .map_err(|_| Problem::new(Code::Invalid, "the path or query is malformed"))
}

/// Whose fault it is that a request has no answer: the body's, which the client sends, or the builder's.
fn not_answered(error: &hyper::Error) -> Problem {
    if error.is_user() {
        tracing::debug!(why = ?chain(error), "a request's body broke off");
        return Problem::new(
            Code::Invalid,
            "the request's body is malformed, or broke off",
        );
    }
    broken(chain(error).for_log())
}

/// A builder's owner can have as many of these as it likes.
static BROKEN: LogLimit = LogLimit::new();

fn broken(why: &str) -> Problem {
    if let Some(left_out) = BROKEN.admit(tokio::time::Instant::now()) {
        tracing::warn!(why, left_out, "builder did not answer a request");
    }
    Problem::new(
        Code::Unavailable,
        "the builder's connection broke before it answered",
    )
    .hint("it may have ended or crashed; try again, and see `slipway builders show`")
}
