//! The gateways through their real listeners, in front of servers that behave as dockerd does at its oddest.

use crate::http::{Body, full};
use crate::testing::{Answer, Bench, Who, eventually, listen, request, soon};
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

mod crowds;
mod endings;
mod pushes;
mod streams;
mod wire;

/// A builder whose dockerd is `handle`, over hyper.
fn serve<F, Fut>(bench: &Bench, socket: &str, handle: F)
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Response<Body>> + Send,
{
    let listener = listen(&bench.path(socket));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let handle = handle.clone();
            let service = service_fn(move |request| {
                let answer = handle(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            tokio::spawn(served);
        }
    });
}

/// A builder that speaks bytes: reads the head of a request, answers 101, and leaves the rest to `talk`.
fn hijack<F, Fut>(bench: &Bench, talk: F) -> Arc<Mutex<String>>
where
    F: Fn(UnixStream, BufReader<UnixStream>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = listen(&bench.path("docker.sock"));
    let head = Arc::new(Mutex::new(String::new()));
    let seen = Arc::clone(&head);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = stream.into_std().unwrap();
            let writer = UnixStream::from_std(stream.try_clone().unwrap()).unwrap();
            let mut reader = BufReader::new(UnixStream::from_std(stream).unwrap());
            let mut text = String::new();
            while !text.ends_with("\r\n\r\n") {
                assert_ne!(reader.read_line(&mut text).await.unwrap(), 0);
            }
            *seen.lock().unwrap() = text.to_lowercase();
            let mut writer = writer;
            writer
                .write_all(b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
                .await
                .unwrap();
            tokio::spawn(talk(writer, reader));
        }
    });
    head
}

fn upgrade(path: &str, protocol: &'static str) -> Request<Body> {
    let mut request = request("POST", path, full(""));
    request
        .headers_mut()
        .insert("connection", HeaderValue::from_static("Upgrade"));
    request
        .headers_mut()
        .insert("upgrade", HeaderValue::from_static(protocol));
    request
}

fn text(body: impl Into<Bytes>) -> Response<Body> {
    Response::new(full(body))
}

#[tokio::test]
async fn requests_reach_the_own_builder_without_their_credential() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    serve(&bench, "docker.sock", |request| async move {
        let (parts, _) = request.into_parts();
        let names: Vec<_> = parts.headers.keys().map(ToString::to_string).collect();
        text(json!({ "uri": parts.uri.to_string(), "headers": names }).to_string())
    });
    let mut ask = request("GET", "//v1.45/./containers/json?all=1&x=%2f", full(""));
    for (name, value) in [
        ("x-slipway-region", "north"),
        ("x-slipway-arch", "arm64"),
        ("x-registry-auth", "secret"),
        ("cookie", "secret"),
        ("x-custom", "1"),
    ] {
        ask.headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    let seen = bench.ask("docker", &who, ask).await.json();
    assert_eq!(seen["uri"], "/v1.45/containers/json?all=1&x=%2f");
    let mut names: Vec<_> = seen["headers"].as_array().unwrap().clone();
    names.sort_by_key(ToString::to_string);
    assert_eq!(names, ["host", "x-custom"].map(|name| json!(name)));
    let key = bench.builder.keys().remove(0);
    assert_eq!((key.region.as_str(), key.arch.as_str()), ("north", "arm64"));

    // An absolute URI is an ordinary one to us.
    let absolute = request("GET", "http://anything/v1.45/info", full(""));
    let seen = bench.ask("docker", &who, absolute).await.json();
    assert_eq!(seen["uri"], "/v1.45/info");
    eventually("all activity has ended", || bench.builder.active() == 0).await;
    bench.end().await;
}

#[tokio::test]
async fn refusals_are_dockers_and_reach_no_builder() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    bench.org("other", "DEPLOY").await;
    let (reader, _) = bench.token("acme", json!({ "role": "READ" })).await;
    for (who, method, path, status, message) in [
        (
            &Who::default(),
            "GET",
            "/_ping",
            401,
            "authentication is required",
        ),
        (
            &Who::default(),
            "GET",
            "/swarm",
            401,
            "authentication is required",
        ),
        (&reader, "GET", "/_ping", 403, "role deploy"),
        (&bench.admin(), "GET", "/_ping", 400, "which org?"),
        (&who, "POST", "/v1.45/swarm/init", 403, "swarm"),
        (
            &who,
            "GET",
            "/v1.45/containers/%2e%2e/swarm",
            400,
            "ambiguous",
        ),
        (&who, "GET", "/nothing", 404, "page not found"),
        (&who, "PATCH", "/info", 404, "page not found"),
        (&who, "GET", "/_ping", 503, "the builder is down (wake it)"),
    ] {
        bench.builder.down.store(true, Ordering::SeqCst);
        let answer = bench.docker(who, method, path).await;
        assert_eq!(answer.status, status, "{path}");
        let got = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(got.contains(message), "{got}");
    }
    let mut foreign = request("GET", "/_ping", full(""));
    foreign
        .headers_mut()
        .insert("x-slipway-org", HeaderValue::from_static("other"));
    assert_eq!(bench.ask("docker", &who, foreign).await.status, 404);
    let long = format!("/{}", "a".repeat(crate::bounds::PATH_BYTES_MAX + 1));
    assert_eq!(bench.docker(&who, "GET", &long).await.status, 414);
    assert_eq!(bench.builder.connections(), 0);
    bench.end().await;
}

#[tokio::test]
async fn heads_over_their_bounds_are_refused() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let mut many = request("GET", "/_ping", full(""));
    for n in 0..=crate::bounds::REQUEST_HEADERS_MAX {
        let name = http::HeaderName::try_from(format!("x-{n}")).unwrap();
        many.headers_mut()
            .insert(name, HeaderValue::from_static("1"));
    }
    assert_eq!(bench.ask("docker", &who, many).await.status, 431);
    let mut large = request("GET", "/_ping", full(""));
    let value = "x".repeat(crate::bounds::REQUEST_HEAD_BYTES_MAX);
    large
        .headers_mut()
        .insert("x-large", HeaderValue::try_from(value).unwrap());
    assert_eq!(bench.ask("docker", &who, large).await.status, 431);
    bench.end().await;
}

#[tokio::test]
async fn trailers_and_continue_and_head_pass() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    serve(&bench, "docker.sock", |request| async move {
        if request.method() == "HEAD" {
            let mut response = Response::new(full(""));
            response
                .headers_mut()
                .insert("content-length", HeaderValue::from_static("2"));
            return response;
        }
        let whole = request.into_body().collect().await.unwrap();
        let sum = whole
            .trailers()
            .and_then(|fields| fields.get("x-sum").cloned());
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-echo", sum.unwrap_or(HeaderValue::from_static("none")));
        let frames = [
            Ok(Frame::data(whole.to_bytes())),
            Ok(Frame::trailers(trailers)),
        ];
        let stream = futures_util::stream::iter(frames);
        let mut response = Response::new(StreamBody::new(stream).boxed_unsync());
        response
            .headers_mut()
            .insert("trailer", HeaderValue::from_static("x-echo"));
        response
    });
    let mut fields = http::HeaderMap::new();
    fields.insert("x-sum", HeaderValue::from_static("42"));
    let frames = [
        Ok(Frame::data(Bytes::from_static(b"context"))),
        Ok(Frame::trailers(fields)),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let mut ask = request("POST", "/build", body);
    for (name, value) in [
        ("trailer", "x-sum"),
        ("te", "trailers"),
        ("expect", "100-continue"),
    ] {
        ask.headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    let mut sender = bench.http("docker", &who).await;
    let response = sender.send_request(who.sign(ask)).await.unwrap();
    let whole = response.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["x-echo"], "42");
    assert_eq!(whole.to_bytes(), "context");

    let head = bench.docker(&who, "HEAD", "/_ping").await;
    assert_eq!(
        (
            head.headers["content-length"].to_str().unwrap(),
            head.body.as_str()
        ),
        ("2", "")
    );
    bench.end().await;
}

#[tokio::test]
async fn a_body_is_not_asked_for_before_the_credential_is_good() {
    let mut bench = Bench::start().await;
    let mut tls = bench
        .tls("docker", &Who::default(), "http/1.1")
        .await
        .unwrap();
    tls.write_all(
        b"POST /build HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    )
    .await
    .unwrap();
    let mut answer = vec![0; 12];
    soon("an answer", tls.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, b"HTTP/1.1 401");
    bench.end().await;
}

#[tokio::test]
async fn a_certificate_is_enough_and_one_of_another_authority_is_not() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let certificate = bench.certificate(&who).await;
    serve(&bench, "docker.sock", |_| async { text("OK") });
    assert_eq!(bench.docker(&certificate, "GET", "/_ping").await.body, "OK");

    let mut elsewhere = Bench::start().await;
    let stranger = elsewhere.org("acme", "DEPLOY").await;
    let stranger = elsewhere.certificate(&stranger).await;
    // In TLS 1.3 the refusal comes after the client's side of the handshake.
    let refused = async {
        let mut tls = bench.tls("docker", &stranger, "http/1.1").await?;
        tls.write_all(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
            .await?;
        tls.read_u8().await
    };
    assert!(soon("a refusal", refused).await.is_err());
    elsewhere.end().await;
    bench.end().await;
}

#[tokio::test]
async fn kept_connections_are_used_again_and_stale_ones_replaced() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    serve(&bench, "docker.sock", |_| async { text("OK") });
    let mut sender = bench.http("docker", &who).await;
    for n in 0..20 {
        let response = sender
            .send_request(who.sign(request("GET", "/_ping", full(""))))
            .await;
        let answer = Answer::of(response.unwrap()).await;
        assert_eq!(answer.body, "OK", "{n}");
        sender.ready().await.unwrap();
        eventually("an idle connection is no activity", || {
            bench.builder.active() == 0
        })
        .await;
    }
    assert_eq!(bench.builder.connections(), 1);
    // The builder comes back as another process: what was kept is dead.
    let listener = listen(&bench.path("docker.sock"));
    drop(listener);
    serve(&bench, "docker.sock", |_| async {
        let mut response = text("once");
        response
            .headers_mut()
            .insert("connection", HeaderValue::from_static("close"));
        response
    });
    let before = bench.builder.connections();
    for _ in 0..3 {
        assert!(["OK", "once"].contains(&bench.docker(&who, "GET", "/_ping").await.body.as_str()));
    }
    assert!(bench.builder.connections() <= before + 3);
    bench.end().await;
}

#[tokio::test]
async fn a_request_that_was_sent_is_never_sent_again() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let listener = listen(&bench.path("docker.sock"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                loop {
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    counter.fetch_add(1, Ordering::SeqCst);
                    if head.starts_with("POST") {
                        // Dies in the middle of it.
                        return;
                    }
                    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK";
                    stream.write_all(ok).await.unwrap();
                }
            });
        }
    });
    assert_eq!(bench.docker(&who, "GET", "/_ping").await.body, "OK");
    let answer = bench.docker(&who, "POST", "/containers/create").await;
    assert_eq!(answer.status, 503);
    assert!(
        answer.json()["message"]
            .as_str()
            .unwrap()
            .contains("broke before it answered")
    );
    assert_eq!(count.load(Ordering::SeqCst), 2);
    bench.end().await;
}
