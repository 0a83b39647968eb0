//! Where a registry is and how it is reached: its base, the clients with and without TLS, what a redirect may lead to.
//!
//! Knows nothing of authentication, retries or what is asked.

use super::insecure::{self, Scheme};
use crate::error::{ProtocolFault, PushError};
use crate::lend::{Lender, Reach};
use crate::limits::{ANSWER_BODY_BYTES, ANSWER_BODY_TIMEOUT, CONNECT_TIMEOUT};
use crate::options::PushOptions;
use crate::target::{Credential, Target, host_name};
use futures_util::FutureExt as _;
use http::{HeaderMap, StatusCode, header};
use reqwest::Url;
use std::sync::OnceLock;
use std::time::Duration;

/// A repository at a registry, as it is reached.
pub(crate) struct Endpoint {
    pub(super) host: String,
    pub(super) repository: String,
    /// Set at once, or when it is lent.
    pub(super) credential: OnceLock<Credential>,
    /// As it is without asking.
    presumed: Url,
    /// As it is by an answer of an insecure registry; of the others never set.
    found: OnceLock<Found>,
    options: PushOptions,
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

impl Endpoint {
    /// Prepares for a push; opens no connection yet.
    pub(crate) fn new(
        target: &Target,
        credential: Option<&Credential>,
        options: &PushOptions,
    ) -> Result<Endpoint, PushError> {
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
        Ok(Endpoint {
            host,
            repository: target.repository().to_string(),
            credential: credential.cloned().map(OnceLock::from).unwrap_or_default(),
            presumed,
            found: OnceLock::new(),
            options: options.clone(),
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
        // The URL's host is what will be connected to, however it was written.
        self.check_reach(self.presumed.host_str().unwrap_or_default())?;
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

    /// Whether an address may be connected to. A name is looked up by the client, which leaves out addresses that may not.
    fn check_reach(&self, host: &str) -> Result<(), PushError> {
        let Some(reach) = &self.options.reach else {
            return Ok(());
        };
        match address_of(host_name(host))
            .iter()
            .all(|it| reach.allows(*it))
        {
            true => Ok(()),
            false => Err(PushError::Closed {
                host: host.to_string(),
            }),
        }
    }

    /// Whoever lends what is to be shown.
    pub(super) fn lender(&self) -> Option<&dyn Lender> {
        self.options.lender.as_deref()
    }

    fn base(&self) -> &Url {
        self.found.get().map_or(&self.presumed, |found| &found.base)
    }

    /// Host and port of the API.
    pub(crate) fn name(&self) -> &str {
        &self.host
    }

    /// Whether there is something to show.
    pub(crate) fn has_credential(&self) -> bool {
        self.credential.get().is_some() || self.lender().is_some()
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

    /// The client for a URL.
    pub(super) fn http(&self, url: &Url) -> Result<&reqwest::Client, PushError> {
        self.check_reach(url.host_str().unwrap_or_default())?;
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

    /// Same scheme, host and port as the registry.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base().origin()
    }
}

fn address_of(host: &str) -> Vec<std::net::IpAddr> {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    name.parse().into_iter().collect()
}

/// A name leads to addresses that may not be reached, and to no other.
#[derive(Debug, thiserror::Error)]
#[error("no address of it may be reached")]
pub(super) struct NoAddress;

/// The system's resolver, without the addresses that may not be reached.
struct Lookup(Reach);

impl reqwest::dns::Resolve for Lookup {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let reach = self.0.clone();
        async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<_> = found.filter(|it| reach.allows(it.ip())).collect();
            if allowed.is_empty() {
                return Err(NoAddress.into());
            }
            Ok(Box::new(allowed.into_iter()) as reqwest::dns::Addrs)
        }
        .boxed()
    }
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
    if let Some(reach) = &options.reach {
        builder = builder.dns_resolver(std::sync::Arc::new(Lookup(reach.clone())));
    }
    let but = || reqwest::NoProxy::from_string(&options.no_proxy);
    if let Some(proxy) = &options.http_proxy {
        builder = builder.proxy(reqwest::Proxy::http(proxy)?.no_proxy(but()));
    }
    if let Some(proxy) = &options.https_proxy {
        builder = builder.proxy(reqwest::Proxy::https(proxy)?.no_proxy(but()));
    }
    if options.reach.is_some() {
        // Neither those nor the environment's: a proxy would look names up by itself, and reach what may not be reached.
        builder = builder.no_proxy();
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
