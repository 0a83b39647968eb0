//! `POST /images/{name}/push`: the guest pushes, from next to the layers, and speaks Docker's progress lines.
//!
//! The credential is the request's own (`X-Registry-Auth`) or else the org's sealed one for that registry. It is handed over
//! for this push alone. Must not know: how a push is done.

use super::relay::relay;
use super::{Caller, Gateway, headers};
use crate::bounds::{IMAGE_LIST_BYTES_MAX, IMAGE_LIST_WAIT_MAX, REGISTRY_AUTH_BYTES_MAX};
use crate::chain::chain;
use crate::credentials::registry_of;
use crate::entropy::entropy;
use crate::farm::FarmError;
use crate::guest_client::{GuestClient, GuestError, OLDER_HINT};
use crate::http::{Body, empty};
use crate::lending::Terms;
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
use serde_json::{Map, Value};
use slipway_core::build::RegistryCredential;
use slipway_core::guest_api::StartPush;
use slipway_core::host_api::EndpointPort;
use slipway_store::TokenRole;
use tokio::time::timeout;

/// Docker's clients pad or do not, and some leave bits in the last letter.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Docker's `AuthConfig`, as far as it matters here. `Debug` is not derived: it holds a secret.
#[derive(Default)]
struct AuthConfig {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

impl AuthConfig {
    /// Reads what dockerd would: names in any case, `null` for nothing. The parser's own message would quote the secret, so there is none.
    fn parse(json: &[u8]) -> Option<Self> {
        let mut config = Self::default();
        let Some(fields) = serde_json::from_slice::<Option<Map<String, Value>>>(json).ok()? else {
            return Some(config);
        };
        for (name, value) in fields {
            let field = match name.to_ascii_lowercase().as_str() {
                "username" => &mut config.username,
                "password" => &mut config.password,
                "auth" => &mut config.auth,
                "identitytoken" => &mut config.identitytoken,
                "registrytoken" => &mut config.registrytoken,
                _ => continue,
            };
            match value {
                Value::Null => {}
                Value::String(text) => *field = text,
                Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                    return None;
                }
            }
        }
        Some(config)
    }

    /// Name and secret, if there is one.
    fn pair(self) -> Option<(String, String)> {
        let (username, password) = if !self.registrytoken.is_empty() {
            (String::new(), self.registrytoken)
        } else if !self.identitytoken.is_empty() {
            (String::new(), self.identitytoken)
        } else if self.username.is_empty() && !self.auth.is_empty() {
            let pair = String::from_utf8(decode(&self.auth)?).ok()?;
            let (username, password) = pair.split_once(':')?;
            (username.to_owned(), password.to_owned())
        } else {
            (self.username, self.password)
        };
        (!password.is_empty()).then_some((username, password))
    }
}

/// Base64 in either alphabet, with blanks and line ends in it, padded too little or too much.
fn decode(text: &str) -> Option<Vec<u8>> {
    let letters: String = text
        .chars()
        .filter(|letter| !letter.is_ascii_whitespace())
        .map(|letter| match letter {
            '+' => '-',
            '/' => '_',
            other => other,
        })
        .collect();
    BASE64.decode(letters.trim_end_matches('=')).ok()
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
        let credential = registry_auth(&parts.headers, registry)?;
        let is_lent = credential.is_none() && {
            let org = &caller.entered.org.id;
            let lent = self.0.lending.registries(org, std::iter::once(image));
            !lent.await?.is_empty()
        };
        let mut targets = match query_value(parts.uri.query(), "tag") {
            Some(tag) if !tag.is_empty() => vec![format!("{image}:{tag}")],
            Some(_) | None => self.tags_of(caller, image).await?,
        }
        .into_iter();
        let start = |target: String| {
            Ok::<_, Problem>(StartPush {
                image: target.clone(),
                target,
                credential: credential.clone(),
                loan: is_lent.then(loan_id).transpose()?,
            })
        };
        let first = targets.next().ok_or_else(|| {
            Problem::new(Code::NotFound, format!("no such image: {image}"))
                .hint("build or tag it first")
        })?;
        // What goes wrong before the first line is told with a status.
        let first = self.push_one(caller, start(first)?).await?;
        let (gateway, caller) = (self.clone(), caller.clone());
        let others: Vec<StartPush> = targets.map(start).collect::<Result<_, _>>()?;
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
            Ok(response) => {
                if let Some(id) = start.loan {
                    self.lend(caller, id, start.target);
                }
                Ok(relay(
                    response.into_body(),
                    activity,
                    None,
                    None,
                    caller.principal.ended(),
                ))
            }
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
            Err(error @ GuestError::Older) => {
                Err(Problem::new(Code::Conflict, error.to_string()).hint(OLDER_HINT))
            }
            Err(error) => Err(FarmError::from(error).into()),
        }
    }

    /// Lends for a push until that is over, or the caller's token ends.
    fn lend(&self, caller: &Caller, id: String, target: String) {
        let (gateway, caller) = (self.clone(), caller.clone());
        let terms = Terms {
            id,
            org: caller.entered.org.id.clone(),
            images: vec![target],
        };
        self.0.streams.spawn(async move {
            let connect = || gateway.guest(&caller);
            let lending = gateway.0.lending.serve(terms, connect);
            tokio::select! {
                () = caller.principal.ended().cancelled() => {}
                () = lending => {}
            }
        });
    }

    /// Another connection to the guest of the caller's builder; its push counts as use already.
    async fn guest(&self, caller: &Caller) -> Option<Result<GuestClient, String>> {
        self.0.builders.running(&caller.key)?;
        let connected = self.0.builders.connect(&caller.key, EndpointPort::Guest);
        let stream = match connected.await {
            Ok((stream, _activity)) => stream,
            Err(problem) => return Some(Err(problem.line())),
        };
        Some(GuestClient::new(stream).await.map_err(|it| it.to_string()))
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
            .map_err(|error| unread(chain(&*error).for_log()))?
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

/// A name that nobody else gives.
fn loan_id() -> Result<String, Problem> {
    let id: String = entropy()?.map(|byte| format!("{byte:02x}")).concat();
    Ok(format!("push-{id}"))
}

/// A problem in the middle of progress lines, as dockerd tells one.
fn error_line(problem: &Problem) -> String {
    let message = problem.line();
    let line = serde_json::json!({ "errorDetail": { "message": message }, "error": message });
    format!("{line}\r\n")
}

/// The request's own credential, if it has one. Clients without a login send an empty one, `null`, or something that is none; a push goes on
/// without it, as with dockerd.
///
/// # Errors
/// [`Code::Invalid`] if it is longer than its bound.
pub(super) fn registry_auth(
    headers: &HeaderMap,
    registry: &str,
) -> Result<Option<RegistryCredential>, Problem> {
    let Some(value) = headers.get(headers::REGISTRY_AUTH) else {
        return Ok(None);
    };
    if value.len() > REGISTRY_AUTH_BYTES_MAX {
        return Err(Problem::new(
            Code::Invalid,
            format!("X-Registry-Auth is longer than {REGISTRY_AUTH_BYTES_MAX} bytes"),
        ));
    }
    let json = value.to_str().ok().and_then(decode).unwrap_or_default();
    let pair = AuthConfig::parse(&json).and_then(AuthConfig::pair);
    Ok(pair.map(|(username, password)| RegistryCredential {
        registry: registry.to_owned(),
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
                // docker-py, from a credential store.
                (
                    r#"{"ServerAddress":"x","Username":"u","Password":"p"}"#,
                    credential("u", "p"),
                ),
                (r#"{"IdentityToken":"t"}"#, credential("", "t")),
                // docker-java and others without a login.
                ("null", None),
                (r#"{"username":null,"password":null,"auth":null}"#, None),
                // What is none, dockerd takes for none.
                ("nonsense", None),
                ("[]", None),
                (r#"{"username":"u","password":1}"#, None),
                (r#"{"auth":"!"}"#, None),
            ] {
                assert_eq!(auth(json, engine), Ok(expected), "{json}");
            }
        }
        assert_eq!(registry_auth(&HeaderMap::new(), "r"), Ok(None));
    }

    #[test]
    fn sloppy_base64_is_read() {
        let of = |value: &str| {
            let value = HeaderValue::from_str(value).unwrap();
            let headers = HeaderMap::from_iter([(headers::REGISTRY_AUTH, value)]);
            registry_auth(&headers, "r").map(|read| read.map(|credential| credential.password))
        };
        let whole = STANDARD.encode(r#"{"username":"u","password":"pp"}"#);
        let (one, two) = whole.split_at(20);
        let bare = whole.trim_end_matches('=');
        // The last letter's unused bits may be set.
        let loose = STANDARD.encode(r#"{"auth":"dTpwcR"}"#);
        for value in [&*whole, bare, &format!("{one} {two}"), &format!("{bare}==")] {
            assert_eq!(of(value), Ok(Some("pp".to_owned())), "{value}");
        }
        assert_eq!(of(&loose), Ok(Some("pq".to_owned())));
        for value in ["", "!", "bnVsbA", "bnVsbA=", "bnVsbA=="] {
            assert_eq!(of(value), Ok(None), "{value}");
        }
        let long = "A".repeat(REGISTRY_AUTH_BYTES_MAX + 1);
        assert_eq!(
            of(&long).map_err(|problem| problem.code),
            Err(Code::Invalid)
        );
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
