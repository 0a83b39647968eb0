//! The gateway's part of [`crate::fuzz`].

use super::asked::AskedBuild;
use super::endpoints::{Decision, NormalPath, RegistryHeaders, decide};
use super::solves::SolveNames;
use super::{headers, push};
use crate::bounds::{REFERENCE_BYTES_MAX, SOLVE_LOOKED_AT_BYTES, SOLVE_NAME_BYTES_MAX};
use crate::connection::Connection;
use crate::http::{Body, empty};
use crate::listener::serve_http;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Bytes of a request's body that are read.
const BODY_BYTES: usize = 64 << 10;

/// A method, a blank, and a path. What is forwarded has one reading, and it is the one that was looked up.
pub(crate) fn path(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (method, path) = text.split_once(' ').unwrap_or(("GET", &text));
    if let Ok(normal) = NormalPath::parse(path) {
        assert_eq!(NormalPath::parse(&normal.encoded()).as_ref(), Ok(&normal));
    }
    match decide(method, path) {
        Decision::Allow(endpoint) => {
            let forwarded = &endpoint.path;
            assert!(http::uri::PathAndQuery::try_from(forwarded).is_ok());
            assert!(!forwarded.contains(['?', '#', '\\', ';']), "{forwarded}");
            let mut parts = forwarded[1..].split('/');
            assert!(parts.all(|part| !matches!(part, "" | "." | "..")));
            assert_eq!(decide(method, forwarded), Decision::Allow(endpoint.clone()));
        }
        Decision::ServedByGuestPush { image } => {
            assert!(
                image
                    .split('/')
                    .all(|part| !matches!(part, "" | "." | ".."))
            );
        }
        Decision::Refuse(refusal) => {
            let _ = refusal.to_string();
        }
    }
}

/// A name, a NUL, and a query.
pub(crate) fn query(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (name, query) = text.split_once('\0').unwrap_or(("tag", &text));
    let asked = AskedBuild::of(query);
    assert!(asked.spec.image.len() <= REFERENCE_BYTES_MAX);
    assert!(asked.spec.tags.len() <= query.len());
    if let Some(value) = push::query_value(Some(query), name) {
        assert!(value.len() <= query.len() * 3);
    }
}

/// A BuildKit client's stream. However it is cut, the same is read in it, and little is held.
pub(crate) fn solves(bytes: &[u8]) {
    let read = |piece: usize| {
        let (mut names, mut found) = (SolveNames::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            names.read(piece, |named| found.push(named));
            assert!(names.held() <= SOLVE_LOOKED_AT_BYTES + 9);
        }
        found
    };
    let whole = read(bytes.len().max(1));
    for named in &whole {
        assert!((1..=SOLVE_NAME_BYTES_MAX).contains(&named.reference.len()));
        let image = named.spec.as_ref().map_or(0, |spec| spec.image.len());
        assert!(image <= REFERENCE_BYTES_MAX);
    }
    assert_eq!(whole, read(1));
    assert_eq!(whole, read(7));
}

/// `X-Registry-Auth`, as it comes and in base64.
pub(crate) fn registry_auth(bytes: &[u8]) {
    let encoded = URL_SAFE.encode(bytes);
    for value in [bytes, encoded.as_bytes()] {
        let Ok(value) = HeaderValue::from_bytes(value) else {
            continue;
        };
        let headers = HeaderMap::from_iter([(headers::REGISTRY_AUTH, value.clone())]);
        if let Ok(Some(credential)) = push::registry_auth(&headers, "r") {
            assert!(!credential.password.is_empty());
            assert!(credential.username.len() + credential.password.len() <= value.len());
        }
    }
}

/// What a client sends on a connection. Of each request that is taken, the builder gets no credential, no field that is between two
/// neighbours only, and one host.
pub(crate) fn head(bytes: &[u8]) {
    thread_local! {
        static RUNTIME: Runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => panic!("no runtime: {error}"),
        };
    }
    let answered = RUNTIME.with(|runtime| runtime.block_on(exchange(bytes)));
    // At most an answer to each request, the shortest of which has 18 bytes, and one to what is none.
    assert!(answered.len() <= (bytes.len() / 18 + 2) * 256);
    assert!(answered.is_empty() || answered.starts_with(b"HTTP/1."));
}

async fn exchange(bytes: &[u8]) -> Vec<u8> {
    let (mut client, server) = tokio::io::duplex(4 << 20);
    let sent = async {
        let _ = client.write_all(bytes).await;
        let _ = client.shutdown().await;
        let mut answered = Vec::new();
        let _ = client.read_to_end(&mut answered).await;
        answered
    };
    let connection = Connection::alone();
    // As far as HTTP goes, it may send more than one request.
    assert!(connection.authenticated(None).is_ok());
    let served = serve_http(server, Arc::new(connection), CancellationToken::new(), look);
    tokio::join!(sent, served).0
}

async fn look(request: Request<Incoming>) -> Response<Body> {
    let mut response = Response::new(empty());
    if headers::check_head(&request).is_err() {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    }
    let (parts, body) = request.into_parts();
    let protocol = headers::upgrade(&parts.headers);
    for needs in [
        RegistryHeaders::None,
        RegistryHeaders::Auth,
        RegistryHeaders::Config,
    ] {
        let passed = headers::to_builder(parts.headers.clone(), needs);
        is_clean(&passed, needs, protocol.as_ref());
    }
    let _ = Limited::new(body, BODY_BYTES).collect().await;
    response
}

fn is_clean(passed: &HeaderMap, needs: RegistryHeaders, protocol: Option<&HeaderValue>) {
    for name in [
        header::AUTHORIZATION,
        header::COOKIE,
        header::EXPECT,
        header::PROXY_AUTHORIZATION,
        header::TRANSFER_ENCODING,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        HeaderName::from_static(super::ORG_HEADER),
    ] {
        assert!(!passed.contains_key(&name), "{name}");
    }
    assert_eq!(passed.get_all(header::HOST).iter().count(), 1);
    assert_eq!(passed.get(header::UPGRADE), protocol);
    let kept = passed.get(header::CONNECTION);
    assert_eq!(
        kept.map(HeaderValue::as_bytes),
        protocol.map(|_| &b"Upgrade"[..])
    );
    let has_auth = passed.contains_key(headers::REGISTRY_AUTH);
    assert!(!has_auth || needs == RegistryHeaders::Auth);
}
