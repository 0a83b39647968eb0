//! The shapes that all three listeners share: bodies, short answers, Docker's form of an error.
//!
//! Must not know: routes, orgs.

use crate::problem::{Code, Problem};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};

/// Why a body broke off.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// Any body.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// A body that is there whole.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// No body.
pub(crate) fn empty() -> Body {
    full(Bytes::new())
}

/// The type of JSON.
pub(crate) const JSON: &str = "application/json; charset=utf-8";

/// A short answer of a known type.
pub(crate) fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The same answer, after which the connection is closed.
pub(crate) fn closing(mut response: Response<Body>) -> Response<Body> {
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A problem as Docker's clients show it: `{"message": "..."}`.
pub(crate) fn docker_problem(problem: &Problem) -> Response<Body> {
    docker_refusal(problem.code.status(), &problem.line(), problem.code)
}

/// The same with a status of its own.
pub(crate) fn docker_refusal(status: StatusCode, message: &str, code: Code) -> Response<Body> {
    let body = serde_json::json!({ "message": message }).to_string();
    let mut response = answer(status, "application/json", body);
    challenge(&mut response, code);
    response
}

/// Adds what goes with a code: how to authenticate, when to come back.
pub(crate) fn challenge(response: &mut Response<Body>, code: Code) {
    let (name, value) = match code {
        Code::Unauthenticated => (
            WWW_AUTHENTICATE,
            r#"Basic realm="slipway", charset="UTF-8", Bearer realm="slipway""#,
        ),
        Code::Limit | Code::Unavailable => (RETRY_AFTER, "5"),
        Code::Forbidden
        | Code::NotFound
        | Code::AppNotFound
        | Code::Invalid
        | Code::Conflict
        | Code::NoSpace
        | Code::Internal => return,
    };
    response
        .headers_mut()
        .insert(name, HeaderValue::from_static(value));
}
