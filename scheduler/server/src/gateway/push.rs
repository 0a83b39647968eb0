//! `POST /images/{name}/push`: the guest pushes, from next to the layers, and speaks Docker's progress lines.
//!
//! The credential is the request's own (`X-Registry-Auth`) or else the org's sealed one for that registry. It is handed over
//! for this push alone. Must not know: how a push is done.

use super::relay::relay;
use super::{Caller, Gateway, headers};
use crate::bounds::{IMAGE_LIST_BYTES_MAX, IMAGE_LIST_WAIT_MAX, REGISTRY_AUTH_BYTES_MAX};
use crate::credentials::registry_of;
use crate::farm::{FarmError, chain};
use crate::guest_client::{GuestClient, GuestError};
use crate::http::{Body, empty};
use crate::problem::{Code, Problem};
use crate::rate::LogLimit;
use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use futures_util::{StreamExt, stream};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, BodyStream, Limited, StreamBody};
use serde::Deserialize;
use slipway_core::build::RegistryCredential;
use slipway_core::guest_api::StartPush;
use slipway_core::host_api::EndpointPort;
use slipway_store::TokenRole;
use tokio::time::timeout;

/// Docker's clients pad or do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Docker's `AuthConfig`, as far as it matters here. `Debug` is not derived: it holds a secret.
#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthConfig {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

/// A builder's owner can have as many of these as it likes.
static UNREAD: LogLimit = LogLimit::new();

impl Gateway {
    /// Pushes one tag, or all tags of the image if the request names none, as dockerd does.
    pub(super) async fn push(
        &self,
        caller: &Caller,
        image: &str,
        parts: &Parts,
    ) -> Result<Response<Body>, Problem> {
        caller.principal.require(TokenRole::Deploy)?;
        if image.contains('@') {
            return Err(
                Problem::new(Code::Invalid, "cannot push a digest reference")
                    .hint("push the image by name and tag"),
            );
        }
        let registry = registry_of(image);
        let credential = match registry_auth(&parts.headers, registry)? {
            Some(credential) => Some(credential),
            None => {
                self.0
                    .credentials
                    .get(&caller.entered.org.id, registry)
                    .await?
            }
        };
        let mut targets = match query_value(parts.uri.query(), "tag") {
            Some(tag) if !tag.is_empty() => vec![format!("{image}:{tag}")],
            Some(_) | None => self.tags_of(caller, image).await?,
        }
        .into_iter();
        let start = |target: String| StartPush {
            image: target.clone(),
            target,
            credential: credential.clone(),
        };
        let first = targets.next().ok_or_else(|| {
            Problem::new(Code::NotFound, format!("no such image: {image}"))
                .hint("build or tag it first")
        })?;
        // What goes wrong before the first line is told with a status.
        let first = self.push_one(caller, start(first)).await?;
        let (gateway, caller) = (self.clone(), caller.clone());
        let others: Vec<StartPush> = targets.map(start).collect();
        let others = stream::iter(others).then(move |start| {
            let (gateway, caller) = (gateway.clone(), caller.clone());
            async move { caller.while_good(gateway.push_one(&caller, start)).await }
        });
        let frames = stream::once(async { Ok(first) })
            .chain(others)
            .map(|body| match body {
                Ok(body) => body,
                Err(problem) => crate::http::full(error_line(&problem)),
            })
            .flat_map(BodyStream::new);
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        let json = HeaderValue::from_static("application/json");
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, json);
        Ok(response)
    }

    async fn push_one(&self, caller: &Caller, start: StartPush) -> Result<Body, Problem> {
        let (stream, activity) = self
            .0
            .builders
            .connect(&caller.key, EndpointPort::Guest)
            .await?;
        let guest = GuestClient::new(stream).await.map_err(FarmError::from)?;
        match guest.push(&start).await {
            Ok(response) => Ok(relay(
                response.into_body(),
                activity,
                None,
                caller.principal.ended(),
            )),
            Err(GuestError::Refused { status, message }) => {
                let code = match status.as_u16() {
                    404 => Code::NotFound,
                    409 => Code::Conflict,
                    429 => Code::Limit,
                    400..=499 => Code::Invalid,
                    _ => Code::Unavailable,
                };
                Err(Problem::new(code, message))
            }
            Err(error) => Err(FarmError::from(error).into()),
        }
    }

    /// All `name:tag` that dockerd has of an image.
    async fn tags_of(&self, caller: &Caller, image: &str) -> Result<Vec<String>, Problem> {
        #[derive(Deserialize)]
        struct Image {
            #[serde(rename = "RepoTags")]
            repo_tags: Option<Vec<String>>,
        }
        let unread = |why: &str| {
            if let Some(left_out) = UNREAD.admit(tokio::time::Instant::now()) {
                tracing::warn!(why, left_out, "list of images not read");
            }
            Problem::new(Code::Unavailable, "the builder's images cannot be listed")
        };
        let mut request = Request::new(empty());
        *request.uri_mut() = http::Uri::from_static("/images/json");
        *request.headers_mut() =
            headers::to_builder(HeaderMap::new(), super::endpoints::RegistryHeaders::None);
        let answered = self.ask(&caller.key, request).await?;
        let body = Limited::new(answered.response.into_body(), IMAGE_LIST_BYTES_MAX);
        let bytes = timeout(IMAGE_LIST_WAIT_MAX, body.collect())
            .await
            .map_err(|late| unread(&late.to_string()))?
            .map_err(|error| unread(&chain(&*error)))?
            .to_bytes();
        let images: Vec<Image> =
            serde_json::from_slice(&bytes).map_err(|error| unread(&error.to_string()))?;
        let is_of = |name: &String| {
            name.strip_prefix(image)
                .and_then(|rest| rest.strip_prefix(':'))
                .is_some()
        };
        Ok(images
            .into_iter()
            .filter_map(|i| i.repo_tags)
            .flatten()
            .filter(is_of)
            .collect())
    }
}

/// A problem in the middle of progress lines, as dockerd tells one.
fn error_line(problem: &Problem) -> String {
    let message = problem.line();
    let line = serde_json::json!({ "errorDetail": { "message": message }, "error": message });
    format!("{line}\r\n")
}

/// The request's own credential, if it has one. Docker's clients send an empty one when they have none.
pub(super) fn registry_auth(
    headers: &HeaderMap,
    registry: &str,
) -> Result<Option<RegistryCredential>, Problem> {
    let bad = || {
        Problem::new(
            Code::Invalid,
            "X-Registry-Auth is not base64url-encoded JSON",
        )
    };
    let Some(value) = headers.get(headers::REGISTRY_AUTH) else {
        return Ok(None);
    };
    if value.len() > REGISTRY_AUTH_BYTES_MAX {
        return Err(bad());
    }
    let text = value
        .to_str()
        .map_err(|_| bad())?
        .replace('+', "-")
        .replace('/', "_");
    let json = BASE64.decode(text).map_err(|_| bad())?;
    if json.is_empty() {
        return Ok(None);
    }
    // The parser's own message would quote the secret.
    let config: AuthConfig = serde_json::from_slice(&json).map_err(|_| bad())?;
    let (username, password) = if !config.registrytoken.is_empty() {
        (String::new(), config.registrytoken)
    } else if !config.identitytoken.is_empty() {
        (String::new(), config.identitytoken)
    } else if config.username.is_empty() && !config.auth.is_empty() {
        let pair = config.auth.replace('+', "-").replace('/', "_");
        let pair = BASE64
            .decode(pair)
            .ok()
            .and_then(|pair| String::from_utf8(pair).ok());
        let pair = pair.ok_or_else(bad)?;
        let (username, password) = pair.split_once(':').ok_or_else(bad)?;
        (username.to_owned(), password.to_owned())
    } else {
        (config.username, config.password)
    };
    let has_one = !password.is_empty();
    let registry = registry.to_owned();
    Ok(has_one.then_some(RegistryCredential {
        registry,
        username,
        password,
    }))
}

/// A value of a query, decoded.
pub(super) fn query_value(query: Option<&str>, name: &str) -> Option<String> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_encoding::percent_decode_str(&text)
            .decode_utf8_lossy()
            .into_owned()
    };
    query?
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| decode(key) == name)
        .map(|(_, value)| decode(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE as PADDED};

    fn auth(json: &str, engine: &GeneralPurpose) -> Result<Option<RegistryCredential>, Problem> {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_str(&engine.encode(json)).unwrap();
        headers.insert(headers::REGISTRY_AUTH, value);
        registry_auth(&headers, "r.example")
    }

    #[test]
    fn credentials_as_dockers_clients_send_them() {
        let credential = |username: &str, password: &str| {
            Some(RegistryCredential {
                registry: "r.example".into(),
                username: username.into(),
                password: password.into(),
            })
        };
        for engine in [&STANDARD, &PADDED, &BASE64] {
            for (json, expected) in [
                ("", None),
                ("{}", None),
                (r#"{"username":"","password":""}"#, None),
                (
                    r#"{"username":"u","password":"p?~","serveraddress":"x"}"#,
                    credential("u", "p?~"),
                ),
                (r#"{"auth":"dTpwOnE="}"#, credential("u", "p:q")),
                (
                    r#"{"identitytoken":"t","username":"u"}"#,
                    credential("", "t"),
                ),
                (r#"{"registrytoken":"t"}"#, credential("", "t")),
            ] {
                assert_eq!(auth(json, engine), Ok(expected), "{json}");
            }
        }
        let problem = auth(r#"{"password": hunter2}"#, &PADDED).unwrap_err();
        assert!(!problem.line().contains("hunter2"));
        assert_eq!(registry_auth(&HeaderMap::new(), "r"), Ok(None));
    }

    #[test]
    fn query_values_are_decoded() {
        let query = Some("a=1&tag=v1%2Ex+y&b");
        assert_eq!(query_value(query, "tag").as_deref(), Some("v1.x y"));
        assert_eq!(query_value(query, "b").as_deref(), Some(""));
        assert_eq!(query_value(query, "c"), None);
        assert_eq!(query_value(None, "tag"), None);
    }
}
