//! One registry, one repository: requests with authentication, redirects, retries and time bounds.
//!
//! Knows nothing of blobs' contents. The streamed part of an upload goes through [`Registry::begin`], everything else through
//! [`Registry::request`].

use super::auth::{Auth, Wanted};
use super::endpoint::{Answer, Endpoint, read_answer};
use super::retry::{Attempts, is_hopeless, is_rate_limit, is_transient, retry_after};
use crate::digest::Digest;
use crate::error::{ProtocolFault, PushError, Said};
use crate::limits::{ANSWER_TIMEOUT, REDIRECTS};
use crate::options::PushOptions;
use crate::target::{Credential, Target};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use reqwest::Url;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Re-authentications of one request: one for the first challenge, one for a token that ended early.
const REAUTHENTICATIONS: u32 = 2;

/// A repository at a registry.
pub(crate) struct Registry {
    /// Where it is.
    pub(crate) at: Endpoint,
    auth: Auth,
    /// Most bytes of one streamed request, as far as is known of the registry or a proxy before it.
    request_most: AtomicU64,
}

/// What to ask.
#[derive(Debug, Clone)]
pub(crate) struct Ask<'a> {
    /// For messages: `layer sha256:…`, `the manifest`.
    pub(crate) item: &'a str,
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Bytes,
    /// Other repository that the token must cover.
    pub(crate) mount_from: Option<&'a str>,
    /// Bound from the request to its answer.
    pub(crate) within: Duration,
    /// Whether a failure that may pass is worth another try.
    pub(crate) is_retried: bool,
}

impl<'a> Ask<'a> {
    /// A request without body.
    pub(crate) fn new(item: &'a str, method: Method, url: Url) -> Ask<'a> {
        let headers = Vec::new();
        Ask {
            item,
            method,
            url,
            headers,
            body: Bytes::new(),
            mount_from: None,
            within: ANSWER_TIMEOUT,
            is_retried: true,
        }
    }
}

impl Registry {
    /// Prepares for a push; opens no connection yet.
    pub(crate) fn new(
        target: &Target,
        credential: Option<&Credential>,
        options: &PushOptions,
    ) -> Result<Registry, PushError> {
        Ok(Registry {
            at: Endpoint::new(target, credential, options)?,
            auth: Auth::default(),
            request_most: AtomicU64::new(u64::MAX),
        })
    }

    /// What the registry has asked for so far.
    pub(super) async fn wanted(&self) -> Wanted {
        self.auth.wanted().await
    }

    /// A token for somebody else, and how long it is good.
    pub(super) async fn token(
        &self,
        mount_from: Option<&str>,
    ) -> Result<(String, Duration), PushError> {
        self.auth.token(&self.at, mount_from).await
    }

    /// What the registry wants, by one question that shows nothing and is asked once.
    pub(super) async fn ask_what_is_wanted(&self, item: &str) -> Result<Wanted, PushError> {
        self.at.settle().await?;
        let url = self.at.url("/v2/");
        let request = self.at.http(&url)?.get(url);
        let answer = match tokio::time::timeout(ANSWER_TIMEOUT, request.send()).await {
            Err(_) => return Err(self.at.timed_out(item, ANSWER_TIMEOUT)),
            Ok(Err(source)) => return Err(self.at.transport(item, 1, source)),
            Ok(Ok(response)) => read_answer(response).await,
        };
        if answer.status == StatusCode::UNAUTHORIZED {
            self.refused(&answer, None).await?;
        } else if is_limited(&answer) || is_transient(answer.status) {
            return Err(self.at.failed(item, &answer, 1));
        }
        Ok(self.wanted().await)
    }

    /// A token for somebody else who pulls from these repositories, and how long it is good.
    pub(super) async fn pull_token(
        &self,
        repositories: &[String],
    ) -> Result<(String, Duration), PushError> {
        self.auth.pull_token(&self.at, repositories).await
    }

    /// Most bytes of one streamed request.
    pub(super) fn request_most(&self) -> u64 {
        self.request_most.load(Ordering::Relaxed)
    }

    /// A larger request than this was refused as too large.
    pub(super) fn bound_requests(&self, most: u64) {
        self.request_most.fetch_min(most, Ordering::Relaxed);
    }

    /// Sends a request until it has an answer that no retry would better: any status but 401, the transient ones and rate limits.
    pub(crate) async fn request(&self, ask: Ask<'_>) -> Result<Answer, PushError> {
        let mut attempts = Attempts::default();
        loop {
            let (error, wait) = match self.authenticated(&ask).await {
                Ok(answer) if is_limited(&answer) => {
                    let wait = attempts.limited(retry_after(&answer.headers));
                    (self.at.failed(ask.item, &answer, attempts.made()), wait)
                }
                Ok(answer) if is_transient(answer.status) => {
                    let wait = attempts.failed(retry_after(&answer.headers));
                    (self.at.failed(ask.item, &answer, attempts.made()), wait)
                }
                Ok(answer) => return Ok(answer),
                Err(
                    error @ (PushError::Broken { .. }
                    | PushError::TimedOut { .. }
                    | PushError::Unreachable { .. }),
                ) => {
                    let wait = if is_hopeless(&error) {
                        None
                    } else {
                        attempts.failed(None)
                    };
                    (error.with_attempts(attempts.made()), wait)
                }
                Err(error) => return Err(error),
            };
            let Some(wait) = wait.filter(|_| ask.is_retried) else {
                return Err(error);
            };
            tracing::debug!(item = ask.item, %error, wait_ms = wait.as_millis(), "request will be repeated");
            tokio::time::sleep(wait).await;
        }
    }

    /// One request with redirects and the answer to challenges.
    async fn authenticated(&self, ask: &Ask<'_>) -> Result<Answer, PushError> {
        let mut url = ask.url.clone();
        let (mut redirects, mut refusals) = (0, 0);
        loop {
            let (request, shown) = self.begin(&ask.method, &url, ask.mount_from).await?;
            let mut request = request.headers(ask.headers.iter().cloned().collect());
            if !ask.body.is_empty() || matches!(ask.method, Method::PUT | Method::POST) {
                request = request
                    .header(header::CONTENT_LENGTH, ask.body.len())
                    .body(ask.body.clone());
            }
            let response = match tokio::time::timeout(ask.within, request.send()).await {
                Err(_) => return Err(self.at.timed_out(ask.item, ask.within)),
                Ok(Err(source)) => return Err(self.at.transport(ask.item, 1, source)),
                Ok(Ok(response)) => response,
            };
            let answer = read_answer(response).await;
            match answer.status {
                // Tokens for a push often do not cover it, and no newer one would.
                StatusCode::UNAUTHORIZED if ask.method == Method::DELETE => return Ok(answer),
                StatusCode::UNAUTHORIZED if self.at.is_own(&url) => {
                    refusals += 1;
                    if refusals > REAUTHENTICATIONS {
                        return Err(self.at.unauthorized(Said::from_body(&answer.body)));
                    }
                    self.refused(&answer, shown.as_ref()).await?;
                }
                status
                    if status.is_redirection() && answer.headers.contains_key(header::LOCATION) =>
                {
                    redirects += 1;
                    if redirects > REDIRECTS {
                        return Err(self.at.protocol(ask.item, ProtocolFault::Redirects));
                    }
                    url = self.at.location(ask.item, &url, &answer.headers)?;
                }
                _ => return Ok(answer),
            }
        }
    }

    /// A request with the credential in it if, and only if, it goes to the registry itself. Also the credential shown.
    pub(super) async fn begin(
        &self,
        method: &Method,
        url: &Url,
        mount_from: Option<&str>,
    ) -> Result<(reqwest::RequestBuilder, Option<HeaderValue>), PushError> {
        let mut request = self.at.http(url)?.request(method.clone(), url.clone());
        let mut shown = None;
        if self.at.is_own(url) {
            shown = self.auth.header(&self.at, mount_from).await?;
            if let Some(value) = &shown {
                request = request.header(header::AUTHORIZATION, value.clone());
            }
        }
        Ok((request, shown))
    }

    /// Takes in a 401, so that the next request shows what was asked for; fails when that was shown already.
    pub(super) async fn refused(
        &self,
        answer: &Answer,
        shown: Option<&HeaderValue>,
    ) -> Result<(), PushError> {
        self.auth
            .refused(
                &self.at,
                &answer.headers,
                shown,
                Said::from_body(&answer.body),
            )
            .await
    }

    /// Whether the registry gives this blob away, whatever it says of it: some answer HEAD for blobs that are gone. Asks for one byte.
    pub(crate) async fn gives_blob(&self, item: &str, digest: &Digest) -> Result<bool, PushError> {
        let mut ask = Ask::new(item, Method::GET, self.at.url(&format!("blobs/{digest}")));
        ask.headers
            .push((header::RANGE, HeaderValue::from_static("bytes=0-0")));
        let answer = self.request(ask).await?;
        match answer.status {
            // 416: an empty blob has no first byte.
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok(true)
            }
            status if status.is_client_error() => Ok(false),
            _ => Err(self.at.failed(item, &answer, 1)),
        }
    }

    /// Size of a blob at the registry; `None` when it does not have it.
    pub(crate) async fn blob_size(
        &self,
        item: &str,
        digest: &Digest,
    ) -> Result<Option<Option<u64>>, PushError> {
        let ask = Ask::new(item, Method::HEAD, self.at.url(&format!("blobs/{digest}")));
        let is_redirected = |answer: &Answer| !self.at.is_own(&answer.url);
        let answer = self.request(ask).await?;
        match answer.status {
            StatusCode::OK => Ok(Some(content_length(&answer.headers))),
            // A store that signs only GET: the registry knew the blob, or it would not have sent us there.
            StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED if is_redirected(&answer) => {
                Ok(Some(None))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
                Err(self.at.failed(item, &answer, 1))
            }
            // 404, and the 400 or 405 of registries that answer this question for nothing.
            status if status.is_client_error() => Ok(None),
            _ => Err(self.at.failed(item, &answer, 1)),
        }
    }
}

fn is_limited(answer: &Answer) -> bool {
    is_rate_limit(
        answer.status,
        &answer.headers,
        &Said::from_body(&answer.body),
    )
}

/// The length of what was asked about. Proxies that compress answers to HEAD, or drop their length, write that of something else.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    let is_encoded = headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|encoding| encoding != "identity");
    let length = headers.get(header::CONTENT_LENGTH)?.to_str().ok()?;
    let length = length.parse().ok().filter(|length| *length != 0);
    length.filter(|_| !is_encoded)
}
