//! Contents of volumes over HTTP: what a client reads of a snapshot, and what it sends to a volume.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/snapshots/ID/export?offset=N` | the contents from byte N on, as a stream of `slipway_volume_stream`; one without its trailer is not whole |
//! | `POST /v1/volumes/ID/import` | `{"offset": N}`: the import is waited for anew, and goes on from that byte of the contents; or `{"whole": true}` |
//! | `PUT /v1/volumes/ID/import` | takes such a stream that begins there or before; 200 when the volume is made |
//!
//! All need the role admin for the whole org, as whatever changes volumes. Must not know: hosts, keys.

use crate::auth::Principal;
use crate::connection::Connection;
use crate::farm::{BodyEnded, Download, ImportedSoFar};
use crate::graphql::Refused;
use crate::graphql::access::Access;
use crate::http::{Body, BodyError, JSON, answer};
use crate::limits::{REFUSED_BODY_READ_FOR, TRANSFER_BYTES, TRANSFER_IDLE_MAX};
use crate::parts::Parts;
use crate::problem::{Code, Problem};
use crate::transfer_path::Transfer;
use bytes::Bytes;
use futures_util::stream::unfold;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use pace::{Pace, TooSlow};
use serde_json::json;
use slipway_store::TokenRole;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

mod pace;

/// Answers one request.
///
/// # Errors
/// Whoever's fault it is.
pub(crate) async fn serve(
    transfer: &Transfer,
    parts: &Arc<Parts>,
    connection: &Arc<Connection>,
    principal: Principal,
    request: Request<Incoming>,
) -> Result<Response<Body>, Problem> {
    let ends = Ends {
        token: principal.ended().clone(),
        cancel: parts.cancel.clone(),
    };
    let access = Access {
        parts,
        principal: &principal,
    };
    match transfer {
        Transfer::Export(id) => {
            let offset = offset(request.uri().query())?;
            let found = access.snapshot(&parse(id)?, TokenRole::Admin).await;
            let (org, found) = found.map_err(Refused::into_problem)?;
            let exported = parts.farm.export_snapshot(&org.id, &found.id, offset);
            let download = exported.await?;
            Ok(streamed(download, ends, connection))
        }
        Transfer::Import(id) => {
            let found = access.volume(&parse(id)?, TokenRole::Admin).await;
            let (org, volume) = found.map_err(Refused::into_problem)?;
            let (org, farm) = (&org.id, &parts.farm);
            if request.method() == Method::POST {
                let so_far = match farm.imported_so_far(org, &volume.id).await? {
                    ImportedSoFar::At(offset) => json!({ "offset": offset }),
                    ImportedSoFar::Whole => json!({ "whole": true }),
                };
                return Ok(answer(StatusCode::OK, JSON, so_far.to_string()));
            }
            let (to, body) = mpsc::channel(1);
            parts.tasks.spawn(feed(request.into_body(), to, ends));
            farm.import_volume(org, &volume.id, body).await?;
            Ok(answer(
                StatusCode::OK,
                JSON,
                json!({ "whole": true }).to_string(),
            ))
        }
    }
}

fn parse<T: std::str::FromStr>(id: &str) -> Result<T, Problem> {
    id.parse().map_err(|_| {
        Problem::new(Code::NotFound, "no such page").hint("look at the id in the path")
    })
}

/// `offset=N`, and nothing else.
fn offset(query: Option<&str>) -> Result<u64, Problem> {
    let Some(query) = query.filter(|query| !query.is_empty()) else {
        return Ok(0);
    };
    let offset = query.strip_prefix("offset=");
    offset
        .and_then(|offset| offset.parse().ok())
        .ok_or_else(|| {
            Problem::new(Code::Invalid, "the query of an export is not one")
                .hint("it is `offset=` and the byte of the contents to begin with")
        })
}

/// What ends a transfer before its end.
#[derive(Debug, Clone)]
struct Ends {
    /// The token is not good any more.
    token: CancellationToken,
    /// The control plane ends.
    cancel: CancellationToken,
}

impl Ends {
    async fn wait(&self) {
        tokio::select! {
            () = self.token.cancelled() => {}
            () = self.cancel.cancelled() => {}
        }
    }
}

/// When the client was given bytes that it has not taken yet.
type Given = Mutex<Option<Instant>>;

fn streamed(download: Download, ends: Ends, connection: &Arc<Connection>) -> Response<Body> {
    let given = Arc::<Given>::default();
    tokio::spawn(cut_if_idle(Arc::downgrade(&given), Arc::clone(connection)));
    let set = |given: &Given, at| {
        std::mem::replace(
            &mut *given.lock().unwrap_or_else(PoisonError::into_inner),
            at,
        )
    };
    let state = (download, vec![0; TRANSFER_BYTES], Pace::default(), 0);
    let pieces = unfold(state, move |(mut from, mut buffer, mut pace, last)| {
        let (ends, given) = (ends.clone(), Arc::clone(&given));
        async move {
            // It is asked for more, so the client has taken what there was.
            let took = set(&given, None).map_or(Duration::ZERO, |since| since.elapsed());
            let read = match pace.moved(last, took) {
                Err(TooSlow) => Err(BodyError::from("the client is too slow")),
                Ok(()) => tokio::select! {
                    read = from.read(&mut buffer) => read.map_err(BodyError::from),
                    () = ends.wait() => Err(BodyError::from("the server or the token ended")),
                },
            };
            set(&given, Some(Instant::now()));
            match read {
                Ok(0) => None,
                Ok(length) => {
                    let piece = Bytes::copy_from_slice(&buffer[..length]);
                    Some((Ok(Frame::data(piece)), (from, buffer, pace, length)))
                }
                Err(error) => Some((Err(error), (from, buffer, pace, 0))),
            }
        }
    });
    let mut response = answer(StatusCode::OK, "application/octet-stream", Bytes::new());
    *response.body_mut() = BodyExt::boxed_unsync(StreamBody::new(pieces));
    response
        .headers_mut()
        .insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Cuts a client off that takes nothing for [`TRANSFER_IDLE_MAX`]; hyper would wait for it for ever.
async fn cut_if_idle(given: Weak<Given>, connection: Arc<Connection>) {
    let mut look_at = Instant::now() + TRANSFER_IDLE_MAX;
    loop {
        sleep_until(look_at).await;
        let Some(given) = given.upgrade() else { return };
        let since = *given.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        look_at = since.unwrap_or(now) + TRANSFER_IDLE_MAX;
        if look_at <= now {
            connection.cut().cancel();
            return;
        }
    }
}

/// Hands on what a client sends, with no more than one piece in between. When nobody takes it any more, what still comes is
/// read for a while: a connection that is closed with bytes unread may take the answer with it.
async fn feed(mut body: Incoming, to: mpsc::Sender<Result<Bytes, BodyEnded>>, ends: Ends) {
    let mut pace = Pace::default();
    loop {
        let asked = Instant::now();
        let frame = tokio::select! {
            frame = timeout(TRANSFER_IDLE_MAX, body.frame()) => frame,
            () = to.closed() => break,
            () = ends.wait() => {
                let _ = to.send(Err(BodyEnded)).await;
                return;
            }
        };
        let piece = match frame {
            Ok(None) => return,
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => match pace.moved(data.len(), asked.elapsed()) {
                    Ok(()) => Ok(data),
                    Err(TooSlow) => Err(BodyEnded),
                },
                // Trailers mean nothing here.
                Err(_) => continue,
            },
            Ok(Some(Err(_))) | Err(_) => Err(BodyEnded),
        };
        let ended = piece.is_err();
        if to.send(piece).await.is_err() {
            break;
        }
        if ended {
            return;
        }
    }
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = timeout(REFUSED_BODY_READ_FOR, rest).await;
}

#[cfg(test)]
mod tests;
