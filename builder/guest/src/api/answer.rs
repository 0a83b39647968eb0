//! Answers of the guest API: JSON, JSON lines, and errors as `{"message": ...}`.
//!
//! It must not know what was asked.

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;
use serde_json::json;
use std::convert::Infallible;

/// The body of every answer.
pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The path or the method is not in the table.
    #[error("there is no {method} {path}")]
    Unknown {
        /// What was asked.
        method: String,
        /// Of what.
        path: String,
    },
    /// The query or the body is not what it should be.
    #[error("{0}")]
    Malformed(String),
    /// The body is too large.
    #[error(
        "the request is larger than {} bytes",
        crate::limits::REQUEST_BODY_BYTES_MAX
    )]
    TooLarge,
    /// The body did not come in time.
    #[error("the request did not come in time")]
    TooSlow,
    /// What was named is not there.
    #[error("{0}")]
    NotFound(String),
    /// It is not the guest's to do.
    #[error("{0}")]
    NotOurs(&'static str),
    /// It cannot be done now.
    #[error("{0}")]
    Unavailable(String),
    /// Somebody the guest depends on failed.
    #[error("{0}")]
    Failed(String),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Refusal::Unknown { .. } | Refusal::NotFound(_) => StatusCode::NOT_FOUND,
            Refusal::Malformed(_) => StatusCode::BAD_REQUEST,
            Refusal::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Refusal::NotOurs(_) => StatusCode::CONFLICT,
            Refusal::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The refusal as an answer.
    pub(crate) fn into_answer(self) -> Response<Body> {
        json(self.status(), &json!({"message": self.to_string()}))
    }
}

/// An answer of one JSON value.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => whole(status, bytes.into()),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            whole(
                StatusCode::INTERNAL_SERVER_ERROR,
                Bytes::from_static(br#"{"message":"internal error"}"#),
            )
        }
    }
}

/// An answer of JSON lines that come in pieces.
pub(crate) fn lines(pieces: impl Stream<Item = Bytes> + Send + Sync + 'static) -> Response<Body> {
    use futures_util::StreamExt as _;
    let frames = pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    with_type(
        StatusCode::OK,
        "application/x-ndjson",
        BodyExt::boxed(StreamBody::new(frames)),
    )
}

fn whole(status: StatusCode, bytes: Bytes) -> Response<Body> {
    with_type(status, "application/json", Full::new(bytes).boxed())
}

fn with_type(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
