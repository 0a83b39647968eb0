//! The table of the guest API ([`slipway_core::guest_api`]): which request calls what.
//!
//! It must not know how anything is done.

use super::answer::{Body, Refusal, json, lines};
use super::push_lines;
use crate::builds::{Build, Stop};
use crate::garbage::Reason;
use crate::guest::Guest;
use crate::limits;
use crate::loans::Over;
use crate::phase::Phase;
use crate::solving::{self, solves};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde_json::json as value;
use slipway_core::guest_api::{LoanTurn, StartBuild, StartPush};
use slipway_core::id::{BuildId, InvalidId};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

type Answered = Result<Response<Body>, Refusal>;

/// Answers one request.
pub(super) async fn answer(
    guest: Arc<Guest>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let answered = route(guest, request).await;
    Ok(answered.unwrap_or_else(|refusal| {
        tracing::info!(%method, path, %refusal, "request was refused");
        refusal.into_answer()
    }))
}

async fn route(guest: Arc<Guest>, request: Request<Incoming>) -> Answered {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (request.method(), parts.as_slice()) {
        (&Method::GET, ["v1", "status"]) => status(&guest, request.uri().query()).await,
        (&Method::POST, ["v1", "end"]) => end(&guest).await,
        (&Method::POST, ["v1", "collect"]) => collect(&guest).await,
        (&Method::POST, ["v1", "builds"]) => {
            let start: StartBuild = body(request).await?;
            start_build(&guest, start)
        }
        (&Method::GET, ["v1", "builds"]) => Ok(json(StatusCode::OK, &guest.builds.summaries())),
        (&Method::GET, ["v1", "builds", id, "events"]) => {
            let after = number(request.uri().query(), "after")?.unwrap_or(0);
            Ok(lines(build(&guest, id)?.events(after)))
        }
        (&Method::GET, ["v1", "solves"]) => seen_solves(&guest),
        (&Method::DELETE, ["v1", "builds", id]) => {
            let build = build(&guest, id)?;
            if build.is_seen() {
                return Err(Refusal::NotOurs(
                    "the build belongs to a Docker client and ends with it: end it there",
                ));
            }
            build.stop(Stop::Cancelled);
            Ok(json(StatusCode::ACCEPTED, &value!({})))
        }
        (&Method::POST, ["v1", "loans", id]) => {
            let id = (*id).to_owned();
            let turn: LoanTurn = body(request).await?;
            loan(&guest, &id, turn).await
        }
        (&Method::POST, ["v1", "push"]) => {
            let start: StartPush = body(request).await?;
            start_push(&guest, start)
        }
        (method, _) => Err(Refusal::Unknown {
            method: method.to_string(),
            path,
        }),
    }
}

async fn status(guest: &Guest, query: Option<&str>) -> Answered {
    if let Some(wait_ms) = number(query, "wait_ready_ms")? {
        let wait = Duration::from_millis(wait_ms).min(limits::READY_WAIT_MAX);
        guest
            .books
            .wait_phase(wait, |phase| phase != Phase::Starting)
            .await;
    }
    Ok(json(StatusCode::OK, &guest.status().await))
}

async fn end(guest: &Guest) -> Answered {
    // Counted now, not a second ago: a container may just have begun.
    crate::running::count(&guest.books, &guest.docker).await;
    match guest.books.end_if_idle() {
        Ok(()) => Ok(json(StatusCode::ACCEPTED, &value!({}))),
        Err(activity) => Ok(json(StatusCode::CONFLICT, &activity)),
    }
}

async fn collect(guest: &Guest) -> Answered {
    if guest.books.phase() != Phase::Ready {
        return Err(Refusal::Unavailable("dockerd is not ready".to_owned()));
    }
    guest.collect(Reason::Routine).await;
    let disk = guest
        .disk()
        .ok_or_else(|| Refusal::Failed("the cache volume could not be measured".to_owned()))?;
    Ok(json(StatusCode::OK, &disk))
}

fn start_build(guest: &Arc<Guest>, start: StartBuild) -> Answered {
    match solving::start(guest, start) {
        Ok(()) => Ok(json(StatusCode::ACCEPTED, &value!({}))),
        Err(refused) => Err(Refusal::Unavailable(refused.to_string())),
    }
}

fn seen_solves(guest: &Arc<Guest>) -> Answered {
    match guest.books.phase() {
        Phase::Ready => Ok(lines(solves(guest.clone()))),
        Phase::Starting | Phase::Ending | Phase::Ended | Phase::Crashed => {
            Err(Refusal::Unavailable("dockerd is not ready".to_owned()))
        }
    }
}

fn start_push(guest: &Arc<Guest>, start: StartPush) -> Answered {
    match guest.books.phase() {
        Phase::Ready => {}
        Phase::Starting | Phase::Ending | Phase::Ended | Phase::Crashed => {
            return Err(Refusal::Unavailable("dockerd is not ready".to_owned()));
        }
    }
    if guest.books.activity().pushes >= limits::PUSHES_MAX {
        return Err(Refusal::Unavailable(format!(
            "{} pushes run already",
            limits::PUSHES_MAX
        )));
    }
    Ok(lines(push_lines::stream(guest.clone(), start)))
}

async fn loan(guest: &Guest, id: &str, turn: LoanTurn) -> Answered {
    match guest.loans.turn(id, turn.answer).await {
        Ok(Some(wish)) => Ok(json(StatusCode::OK, &wish)),
        Ok(None) => Ok(json(StatusCode::NO_CONTENT, &value!({}))),
        Err(Over) => Err(Refusal::NotFound("there is no such loan".to_owned())),
    }
}

fn build(guest: &Guest, id: &str) -> Result<Arc<Build>, Refusal> {
    let id: BuildId = id
        .parse()
        .map_err(|error: InvalidId| Refusal::Malformed(error.to_string()))?;
    guest
        .builds
        .get(&id)
        .ok_or_else(|| Refusal::NotFound(format!("there is no build {id}")))
}

/// The body as JSON, within its bounds.
async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let limited = Limited::new(request.into_body(), limits::REQUEST_BODY_BYTES_MAX).collect();
    let collected = tokio::time::timeout(limits::REQUEST_READ_WAIT_MAX, limited)
        .await
        .map_err(|_elapsed| Refusal::TooSlow)?
        .map_err(|error| match error.downcast_ref::<LengthLimitError>() {
            Some(_) => Refusal::TooLarge,
            None => Refusal::Malformed("the request's body broke off".to_owned()),
        })?;
    // The place only: serde's own words may quote a value, and a value may be a password.
    serde_json::from_slice(&collected.to_bytes()).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Refusal::Malformed(format!(
            "the body is not what it should be at line {line}, column {column}"
        ))
    })
}

/// The whole number that the query gives for `name`.
fn number(query: Option<&str>, name: &str) -> Result<Option<u64>, Refusal> {
    let pairs = query.unwrap_or_default().split('&');
    let Some(text) = pairs
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(key, text)| (key == name).then_some(text))
    else {
        return Ok(None);
    };
    text.parse()
        .map(Some)
        .map_err(|_| Refusal::Malformed(format!("'{name}' is not a whole number")))
}
