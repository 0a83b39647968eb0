//! Contents of volumes, read from the server and sent to it.
//!
//! Must not know: what a stream of contents looks like, files.

use super::graphql::ApiClient;
use super::http as wire;
use super::reply::ApiError;
use crate::limits::{API_WAIT_MAX, TRANSFER_SILENCE_MAX};
use bytes::Bytes;
use http::{Method, Response, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Deserialize;
use slipway_terminal::exit::{Failure, Outcome};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// The contents of a snapshot, as they come.
#[derive(Debug)]
pub(crate) struct Download {
    body: Incoming,
}

impl Download {
    /// Begins at this byte of the contents.
    ///
    /// # Errors
    /// The network's fault, or what the server says.
    pub(crate) async fn open(
        client: &ApiClient,
        snapshot: &str,
        offset: u64,
    ) -> Result<Self, ApiError> {
        let path = format!("/v1/snapshots/{snapshot}/export?offset={offset}");
        let response = ask(client, Method::GET, &path, API_WAIT_MAX).await?;
        let body = response.into_body();
        Ok(Self { body })
    }

    /// The next piece; nothing at the end of what was sent, which need not be the end of the contents.
    ///
    /// # Errors
    /// The network's fault.
    pub(crate) async fn next(&mut self) -> Outcome<Option<Bytes>> {
        loop {
            let frame = tokio::time::timeout(TRANSFER_SILENCE_MAX, self.body.frame());
            match frame.await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => return Ok(Some(data)),
                    Err(_trailers) => {}
                },
                Ok(Some(Err(error))) => {
                    return Err(Failure::system_caused("the export broke off", &error));
                }
                Err(_elapsed) => return Err(Failure::system("the export stands still")),
            }
        }
    }
}

/// Whether a refusal may be for the connection before, which is lost and which the server still waits for.
pub(crate) fn may_be_the_last_try(code: &str) -> bool {
    matches!(code, "CONFLICT" | "LIMIT")
}

/// How far an import is.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct SoFar {
    /// It goes on from this byte of the contents.
    #[serde(default)]
    pub(crate) offset: u64,
    /// It is whole, and the volume made.
    #[serde(default)]
    pub(crate) whole: bool,
}

/// Where an import goes on.
///
/// # Errors
/// The network's fault, or what the server says.
pub(crate) async fn so_far(client: &ApiClient, volume: &str) -> Result<SoFar, ApiError> {
    let response = ask(client, Method::POST, &path(volume), API_WAIT_MAX).await?;
    let body = wire::read_body(response.into_body(), API_WAIT_MAX).await?;
    serde_json::from_slice(&body).map_err(|error| {
        Failure::system_caused("the server's answer is not what was asked for", &error).into()
    })
}

/// Sends the rest of an import; nothing more to send is an error of whoever gives the pieces, who knows why. Whoever calls
/// bounds it.
///
/// # Errors
/// The network's fault, or what the server says.
pub(crate) async fn upload(
    client: &ApiClient,
    volume: &str,
    pieces: mpsc::Receiver<Result<Bytes, std::io::Error>>,
) -> Result<(), ApiError> {
    let body = StreamBody::new(ReceiverStream::new(pieces).map(|piece| piece.map(Frame::data)));
    let request = wire::request(Method::PUT, client.address(), &path(volume), client.token())
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .body(body)
        .map_err(|error| wire::unsendable(&error))?;
    let sent = wire::send_alone(client.transport(), client.address(), request).await?;
    checked(sent).await.map(drop)
}

fn path(volume: &str) -> String {
    format!("/v1/volumes/{volume}/import")
}

async fn ask(
    client: &ApiClient,
    method: Method,
    path: &str,
    wait: Duration,
) -> Result<Response<Incoming>, ApiError> {
    let request = wire::request(method, client.address(), path, client.token())
        .body(Full::<Bytes>::default())
        .map_err(|error| wire::unsendable(&error))?;
    let answer = wire::send_alone(client.transport(), client.address(), request);
    let answer = wire::within(wait, client.address(), answer).await??;
    checked(answer).await
}

/// The answer, if it is none of refusal.
async fn checked(response: Response<Incoming>) -> Result<Response<Incoming>, ApiError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = wire::read_body(response.into_body(), API_WAIT_MAX).await?;
    Err(ApiClient::refusal(status, &body))
}
