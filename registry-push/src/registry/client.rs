//! One registry, one repository: requests with authentication, redirects, retries and time bounds.
//!
//! Knows nothing of blobs' contents. The streamed part of an upload goes through [`Registry::begin`], everything else through
//! [`Registry::request`].

use super::auth::Auth;
use super::failures::is_hopeless;
use super::insecure::{self, Scheme};
use super::retry::{Attempts, is_rate_limit, is_transient, retry_after};
use crate::digest::Digest;
use crate::error::{ProtocolFault, PushError, Said};
use crate::limits::{
    ANSWER_BODY_BYTES, ANSWER_BODY_TIMEOUT, ANSWER_TIMEOUT, CONNECT_TIMEOUT, REDIRECTS,
};
use crate::options::PushOptions;
use crate::target::{Credential, Target};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use reqwest::Url;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Re-authentications of one request: one for the first challenge, one for a token that ended early.
const REAUTHENTICATIONS: u32 = 2;

/// A repository at a registry.
pub(crate) struct Registry {
    pub(super) host: String,
    pub(super) repository: String,
    pub(super) credential: Option<Credential>,
    /// As it is without asking.
    presumed: Url,
    /// As it is by an answer of an insecure registry; of the others never set.
    found: OnceLock<Found>,
    options: PushOptions,
    auth: Auth,
    /// Most bytes of one streamed request, as far as is known of the registry or a proxy before it.
    request_most: AtomicU64,
    clear: reqwest::Client,
    /// Made when first needed, so that a push in clear works without any root certificate.
    secure: OnceLock<reqwest::Client>,
}

/// What was found of an insecure registry.
struct Found {
    base: Url,
    /// The client for it, if it has TLS.
    unverified: Option<reqwest::Client>,
}

/// A whole answer; the body is cut at [`ANSWER_BODY_BYTES`].
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// Where it came from, after redirects.
    pub(crate) url: Url,
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
        let host = target.api_host().to_string();
        let scheme = if options.is_plain(&host) {
            "http"
        } else {
            "https"
        };
        let protocol = |fault| PushError::Protocol {
            host: host.clone(),
            item: "its name".to_string(),
            fault,
        };
        let presumed = Url::parse(&format!("{scheme}://{host}/v2/{}/", target.repository()))
            .map_err(|_| protocol(ProtocolFault::Location))?;
        let clear = client_builder(options)
            .and_then(|builder| builder.tls_certs_only([]).build())
            .map_err(|source| PushError::Client {
                host: host.clone(),
                source,
            })?;
        Ok(Registry {
            host,
            repository: target.repository().to_string(),
            credential: credential.cloned(),
            presumed,
            found: OnceLock::new(),
            options: options.clone(),
            auth: Auth::default(),
            request_most: AtomicU64::new(u64::MAX),
            clear,
            secure: OnceLock::new(),
        })
    }

    /// Finds out how an insecure registry speaks. To be awaited before the first request; asks others nothing.
    pub(crate) async fn settle(&self) -> Result<(), PushError> {
        let (list, host) = (&self.options.insecure, &self.host);
        if list.is_empty() || self.options.require_tls || self.found.get().is_some() {
            return Ok(());
        }
        if !insecure::is_named(list, host, &insecure::addresses(host).await) {
            return Ok(());
        }
        let failed = |source| PushError::Client {
            host: host.clone(),
            source,
        };
        let (scheme, unverified) = match insecure::scheme(host, &self.clear).await {
            Scheme::Clear => ("http", None),
            Scheme::Unverified => {
                let builder = client_builder(&self.options).map_err(failed)?;
                let client = builder.tls_danger_accept_invalid_certs(true).build();
                ("https", Some(client.map_err(failed)?))
            }
        };
        let base = Url::parse(&format!("{scheme}://{host}/v2/{}/", self.repository))
            .map_err(|_| self.protocol("its name", ProtocolFault::Location))?;
        // Who settles at the same time has found the same.
        let _ = self.found.set(Found { base, unverified });
        Ok(())
    }

    fn base(&self) -> &Url {
        self.found.get().map_or(&self.presumed, |found| &found.base)
    }

    /// Host and port of the API.
    pub(crate) fn name(&self) -> &str {
        &self.host
    }

    /// Whether there is a credential to show.
    pub(crate) fn has_credential(&self) -> bool {
        self.credential.is_some()
    }

    /// The repository pushed to.
    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    /// `/v2/<repository>/<path>`. The path is made of digests and tags, which need no escaping.
    pub(crate) fn url(&self, path: &str) -> Url {
        // The base was parsed; joining a plain relative path to it cannot fail.
        self.base()
            .join(path)
            .unwrap_or_else(|_| self.base().clone())
    }

    /// Most bytes of one streamed request.
    pub(super) fn request_most(&self) -> u64 {
        self.request_most.load(Ordering::Relaxed)
    }

    /// A larger request than this was refused as too large.
    pub(super) fn bound_requests(&self, most: u64) {
        self.request_most.fetch_min(most, Ordering::Relaxed);
    }

    /// The client for a URL.
    pub(super) fn http(&self, url: &Url) -> Result<&reqwest::Client, PushError> {
        if url.scheme() == "http" {
            return Ok(&self.clear);
        }
        // Of a redirect to somebody else the certificate is verified.
        if let Some(client) = self.found.get().and_then(|found| found.unverified.as_ref())
            && self.is_own(url)
        {
            return Ok(client);
        }
        if let Some(client) = self.secure.get() {
            return Ok(client);
        }
        let failed = |source| PushError::Client {
            host: self.host.clone(),
            source,
        };
        let mut builder = client_builder(&self.options).map_err(failed)?;
        for pem in &self.options.extra_roots_pem {
            builder = builder
                .tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem).map_err(failed)?);
        }
        let client = builder.build().map_err(failed)?;
        Ok(self.secure.get_or_init(|| client))
    }

    /// Whether this host may be spoken to in clear.
    pub(super) fn may_be_plain(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        let with_port = url
            .port()
            .map_or_else(|| host.to_string(), |port| format!("{host}:{port}"));
        self.options.is_plain(&with_port)
            || (self.is_own(url) && self.base().scheme() == "http")
            || (!self.options.require_tls
                && insecure::is_named(&self.options.insecure, &with_port, &address_of(host)))
    }

    /// The URL with TLS, if that makes it one of the registry's own: a registry behind a TLS proxy often writes its own scheme wrongly.
    pub(super) fn secured(&self, url: &Url) -> Option<Url> {
        let is_meant = url.scheme() == "http"
            && self.base().scheme() == "https"
            && url.host() == self.base().host();
        let mut secured = url.clone();
        let is_secured = is_meant && secured.set_scheme("https").is_ok();
        (is_secured && self.is_own(&secured)).then_some(secured)
    }

    /// Resolves a `Location` against the request it answers. Going from TLS to clear is refused.
    pub(crate) fn location(
        &self,
        item: &str,
        from: &Url,
        headers: &HeaderMap,
    ) -> Result<Url, PushError> {
        let text = headers
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok());
        let url = text
            .and_then(|text| from.join(text).ok())
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| self.protocol(item, ProtocolFault::Location))?;
        if url.scheme() == "http" && self.base().scheme() == "https" {
            if let Some(secured) = self.secured(&url) {
                return Ok(secured);
            }
            if !self.may_be_plain(&url) {
                return Err(self.protocol(item, ProtocolFault::Downgrade));
            }
        }
        Ok(url)
    }

    /// Sends a request until it has an answer that no retry would better: any status but 401, the transient ones and rate limits.
    pub(crate) async fn request(&self, ask: Ask<'_>) -> Result<Answer, PushError> {
        let mut attempts = Attempts::default();
        loop {
            let (error, wait) = match self.authenticated(&ask).await {
                Ok(answer) if is_limited(&answer) => {
                    let wait = attempts.limited(retry_after(&answer.headers));
                    (self.failed(ask.item, &answer, attempts.made()), wait)
                }
                Ok(answer) if is_transient(answer.status) => {
                    let wait = attempts.failed(retry_after(&answer.headers));
                    (self.failed(ask.item, &answer, attempts.made()), wait)
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
                Err(_) => return Err(self.timed_out(ask.item, ask.within)),
                Ok(Err(source)) => return Err(self.transport(ask.item, 1, source)),
                Ok(Ok(response)) => response,
            };
            let answer = read_answer(response).await;
            match answer.status {
                StatusCode::UNAUTHORIZED if self.is_own(&url) => {
                    refusals += 1;
                    if refusals > REAUTHENTICATIONS {
                        return Err(self.unauthorized(Said::from_body(&answer.body)));
                    }
                    self.refused(&answer, shown.as_ref()).await?;
                }
                status
                    if status.is_redirection() && answer.headers.contains_key(header::LOCATION) =>
                {
                    redirects += 1;
                    if redirects > REDIRECTS {
                        return Err(self.protocol(ask.item, ProtocolFault::Redirects));
                    }
                    url = self.location(ask.item, &url, &answer.headers)?;
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
        let mut request = self.http(url)?.request(method.clone(), url.clone());
        let mut shown = None;
        if self.is_own(url) {
            shown = self.auth.header(self, mount_from).await?;
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
            .refused(self, &answer.headers, shown, Said::from_body(&answer.body))
            .await
    }

    /// Same scheme, host and port as the registry.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base().origin()
    }

    /// Whether the registry gives this blob away, whatever it says of it: some answer HEAD for blobs that are gone. Asks for one byte.
    pub(crate) async fn gives_blob(&self, item: &str, digest: &Digest) -> Result<bool, PushError> {
        let mut ask = Ask::new(item, Method::GET, self.url(&format!("blobs/{digest}")));
        ask.headers
            .push((header::RANGE, HeaderValue::from_static("bytes=0-0")));
        let answer = self.request(ask).await?;
        match answer.status {
            // 416: an empty blob has no first byte.
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok(true)
            }
            status if status.is_client_error() => Ok(false),
            _ => Err(self.failed(item, &answer, 1)),
        }
    }

    /// Size of a blob at the registry; `None` when it does not have it.
    pub(crate) async fn blob_size(
        &self,
        item: &str,
        digest: &Digest,
    ) -> Result<Option<Option<u64>>, PushError> {
        let ask = Ask::new(item, Method::HEAD, self.url(&format!("blobs/{digest}")));
        let is_redirected = |answer: &Answer| !self.is_own(&answer.url);
        let answer = self.request(ask).await?;
        match answer.status {
            StatusCode::OK => Ok(Some(content_length(&answer.headers))),
            // A store that signs only GET: the registry knew the blob, or it would not have sent us there.
            StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED if is_redirected(&answer) => {
                Ok(Some(None))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
                Err(self.failed(item, &answer, 1))
            }
            // 404, and the 400 or 405 of registries that answer this question for nothing.
            status if status.is_client_error() => Ok(None),
            _ => Err(self.failed(item, &answer, 1)),
        }
    }
}

fn address_of(host: &str) -> Vec<std::net::IpAddr> {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    name.parse().into_iter().collect()
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

fn client_builder(options: &PushOptions) -> reqwest::Result<reqwest::ClientBuilder> {
    // reqwest takes the process's TLS provider; a caller that has chosen one keeps it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(15))
        .tcp_nodelay(true)
        .user_agent(concat!("slipway-push/", env!("CARGO_PKG_VERSION")));
    let but = || reqwest::NoProxy::from_string(&options.no_proxy);
    if let Some(proxy) = &options.http_proxy {
        builder = builder.proxy(reqwest::Proxy::http(proxy)?.no_proxy(but()));
    }
    if let Some(proxy) = &options.https_proxy {
        builder = builder.proxy(reqwest::Proxy::https(proxy)?.no_proxy(but()));
    }
    Ok(builder)
}

/// Reads the body as far as its bounds allow; a body that breaks off or has no end is taken as far as it came.
pub(super) async fn read_answer(mut response: reqwest::Response) -> Answer {
    let (status, headers, url) = (
        response.status(),
        response.headers().clone(),
        response.url().clone(),
    );
    let mut body = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            let room = ANSWER_BODY_BYTES - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if body.len() == ANSWER_BODY_BYTES {
                break;
            }
        }
    };
    // What came before the deadline stays in `body`.
    let _ = tokio::time::timeout(ANSWER_BODY_TIMEOUT, read).await;
    Answer {
        status,
        headers,
        body,
        url,
    }
}
