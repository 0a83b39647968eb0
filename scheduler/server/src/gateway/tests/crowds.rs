//! Crowds of connections: those that say nothing, those whose credential is refused. None of them keeps others out.

use super::hijack;
use super::wire::strict;
use crate::bounds::{UNAUTHENTICATED_MAX, UNAUTHENTICATED_PER_NETWORK_MAX};
use crate::http::full;
use crate::testing::{Answer, Bench, Who, request, soon};
use http::HeaderValue;
use serde_json::json;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An own address of this computer's, on which nothing listens.
fn elsewhere(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, n)
}

/// Asks on a connection of its own, from this address. None: the connection broke.
async fn asked(bench: &Bench, from: Ipv4Addr, listener: &str, who: &Who) -> Option<()> {
    let mut tls = bench.tls_from(from, listener, who).await.ok()?;
    let authorization = who.authorization.as_deref().unwrap();
    let path = if listener == "api" {
        "/healthz"
    } else {
        "/v1.45/info"
    };
    let ask = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {authorization}\r\n\r\n"
    );
    tls.write_all(ask.as_bytes()).await.ok()?;
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await.ok()?;
    answer.starts_with("HTTP/1.1 200 ").then_some(())
}

async fn is_closed(mut tcp: TcpStream) -> bool {
    matches!(
        soon("the close", tcp.read(&mut [0; 8])).await,
        Ok(0) | Err(_)
    )
}

#[tokio::test]
async fn silent_connections_of_one_network_keep_nobody_out() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    strict(&bench);
    let mut silent = Vec::new();
    for _ in 0..=UNAUTHENTICATED_PER_NETWORK_MAX {
        silent.push(bench.tcp("docker").await);
    }
    assert!(is_closed(silent.pop().unwrap()).await, "one beyond");
    let other = asked(&bench, elsewhere(1), "docker", &who);
    assert_eq!(soon("an answer", other).await, Some(()));
    let same_network = async {
        while asked(&bench, Ipv4Addr::LOCALHOST, "docker", &who)
            .await
            .is_none()
        {
            tokio::task::yield_now().await;
        }
    };
    soon("room", same_network).await;
    assert!(is_closed(silent.swap_remove(0)).await, "the oldest");
    bench.end().await;
}

#[tokio::test]
async fn silent_connections_of_several_networks_fill_no_listener() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    strict(&bench);
    // It was there before and stays.
    let mut kept = bench.http("docker", &who).await;
    let ping = || who.sign(request("GET", "/_ping", full("")));
    let answer = Answer::of(kept.send_request(ping()).await.unwrap()).await;
    assert_eq!(answer.status, 200);
    for listener in ["api", "docker"] {
        let mut silent = Vec::new();
        let networks = UNAUTHENTICATED_MAX / UNAUTHENTICATED_PER_NETWORK_MAX + 2;
        for n in 0..networks {
            let from = elsewhere(10 + u8::try_from(n).unwrap());
            for _ in 0..UNAUTHENTICATED_PER_NETWORK_MAX {
                silent.push(bench.tcp_from(from, listener).await);
            }
        }
        for n in 100..110 {
            let other = asked(&bench, elsewhere(n), listener, &who);
            assert_eq!(soon("an answer", other).await, Some(()), "{listener}");
        }
    }
    kept.ready().await.unwrap();
    let answer = Answer::of(kept.send_request(ping()).await.unwrap()).await;
    assert_eq!(answer.status, 200);

    bench.end().await;
}

#[tokio::test]
async fn nor_do_they_fill_that_of_buildkit() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let certificate = bench.certificate(&who).await;
    hijack(&bench, |mut writer, mut reader| async move {
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    });
    let mut silent = Vec::new();
    for n in 0..UNAUTHENTICATED_MAX + UNAUTHENTICATED_PER_NETWORK_MAX {
        let network = u8::try_from(n / UNAUTHENTICATED_PER_NETWORK_MAX).unwrap();
        silent.push(bench.tcp_from(elsewhere(10 + network), "buildkit").await);
    }
    let mut grpc = bench.tls("buildkit", &certificate, "h2").await.unwrap();
    grpc.write_all(b"PRI").await.unwrap();
    assert_eq!(soon("an echo", grpc.read_u8()).await.unwrap(), b'P');
    bench.end().await;
}

/// A connection on which a credential was refused is none that an org could collect.
#[tokio::test]
async fn a_refused_caller_loses_the_connection() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let (reader, _) = bench.token("acme", json!({ "role": "READ" })).await;
    let wrong = Who::bearer(&format!("slp_{}", "A".repeat(43)));
    strict(&bench);
    for (listener, who, org, status) in [
        ("docker", &Who::default(), None, 401),
        ("docker", &wrong, None, 401),
        ("docker", &reader, None, 403),
        ("docker", &who, Some("nosuch"), 404),
        ("api", &Who::default(), None, 401),
        ("api", &wrong, None, 401),
    ] {
        let path = if listener == "api" {
            "/graphql"
        } else {
            "/_ping"
        };
        let mut ask = request("POST", path, full(""));
        if let Some(org) = org {
            ask.headers_mut()
                .insert("x-slipway-org", HeaderValue::from_static(org));
        }
        let mut sender = bench.http(listener, who).await;
        let answer = sender.send_request(who.sign(ask)).await.unwrap();
        assert_eq!(answer.status(), status, "{listener}");
        assert_eq!(answer.headers()["connection"], "close", "{listener}");
        drop(answer);
        let ended = async { while sender.ready().await.is_ok() {} };
        soon("the end", ended).await;
    }
    // A good caller whose request is refused keeps it.
    let mut sender = bench.http("docker", &who).await;
    for status in [403, 200] {
        let path = if status == 403 { "/metrics" } else { "/info" };
        let ask = who.sign(request("GET", path, full("")));
        let answer = Answer::of(sender.send_request(ask).await.unwrap()).await;
        assert_eq!(answer.status, status);
        sender.ready().await.unwrap();
    }
    bench.end().await;
}
