//! What runs for a token ends with it: revoked here, revoked by another process, expired.

use super::{hijack, serve, text, upgrade};
use crate::http::full;
use crate::testing::{Bench, Who, eventually, listen, request, soon};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::json;
use slipway_core::id::TokenId;
use slipway_store::{SecretHash, SqliteStore, Store, Token, TokenRole};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

/// The store, as another process has it.
async fn database(bench: &Bench) -> SqliteStore {
    let path = bench.path("data/slipway.db");
    SqliteStore::open(&path).await.unwrap()
}

#[tokio::test]
async fn revoking_a_token_cuts_its_streams_and_certificates() {
    let mut bench = Bench::start().await;
    bench.org("acme", "DEPLOY").await;
    let (who, id) = bench.token("acme", json!({ "role": "DEPLOY" })).await;
    let (other, _) = bench.token("acme", json!({ "role": "DEPLOY" })).await;
    let certificate = bench.certificate(&who).await;
    hijack(&bench, |mut writer, mut reader| async move {
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    });
    let mut streams = Vec::new();
    for who in [&who, &certificate, &other] {
        let mut sender = bench.http("docker", who).await;
        let ask = who.sign(upgrade("/v1.45/containers/a/attach?stream=1", "tcp"));
        let mut response = sender.send_request(ask).await.unwrap();
        assert_eq!(response.status(), 101);
        streams.push(TokioIo::new(
            hyper::upgrade::on(&mut response).await.unwrap(),
        ));
    }
    assert_eq!(bench.builder.active(), 3);
    let revoke = "mutation($id: ID!) { revokeToken(id: $id) { id } }";
    bench
        .query(&bench.admin(), revoke, json!({ "id": id }))
        .await;
    eventually("the revoked two end", || bench.builder.active() == 1).await;
    let mut alive = streams.pop().unwrap();
    alive.write_all(b"x").await.unwrap();
    assert_eq!(soon("an echo", alive.read_u8()).await.unwrap(), b'x');
    for who in [&who, &certificate] {
        assert_eq!(bench.docker(who, "GET", "/_ping").await.status, 401);
    }
    bench.end().await;
}

/// A builder of which some streams never end: the hijacked echo, all others say a line again and again.
fn endless(bench: &Bench) {
    let listener = listen(&bench.path("docker.sock"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(endless_answer(stream));
        }
    });
}

async fn endless_answer(stream: UnixStream) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    if head.to_lowercase().contains("upgrade: ") {
        let answer = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
        let _gone = stream.write_all(answer).await;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let _ended = tokio::io::copy(&mut reader, &mut writer).await;
        return;
    }
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut line: &[u8] = answer;
    while stream.write_all(line).await.is_ok() {
        line = b"5\r\nline\n\r\n";
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One of each kind that lasts: a hijacked stream, an answer without end, a subscription. Gives what ends with each.
async fn lasting(bench: &Bench, who: &Who, subscriber: &Who) -> JoinSet<()> {
    let mut ends = JoinSet::new();
    let mut sender = bench.http("docker", who).await;
    let ask = who.sign(upgrade("/v1.45/exec/0a/start", "tcp"));
    let mut response = sender.send_request(ask).await.unwrap();
    assert_eq!(response.status(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon("an echo", stream.read_u8()).await.unwrap(), b'x');
    ends.spawn(async move { assert!(stream.read_u8().await.is_err()) });

    let mut sender = bench.http("docker", who).await;
    let logs = who.sign(request("GET", "/containers/a/logs?follow=1", full("")));
    let mut response = sender.send_request(logs).await.unwrap();
    assert!(soon("a line", response.frame()).await.unwrap().is_ok());
    ends.spawn(async move {
        let _held = sender;
        while let Some(Ok(_)) = response.frame().await {}
    });

    let follow = "subscription { builderState { id } }";
    let mut events = bench.subscribe(subscriber, follow, json!({})).await;
    ends.spawn(async move { assert_eq!(events.next().await, None) });
    ends
}

/// Waits until all have ended.
async fn all_end(bench: &Bench, mut ends: JoinSet<()>) {
    while let Some(end) = soon("an end", ends.join_next()).await {
        end.unwrap();
    }
    eventually("no activity", || bench.builder.active() == 0).await;
}

/// A push first asks dockerd for the tags, or the guest to push: neither has to answer.
#[tokio::test]
async fn a_push_that_waits_for_its_builder_ends_with_its_token() {
    let mut bench = Bench::start().await;
    bench.org("acme", "DEPLOY").await;
    let silent = ["docker.sock", "guest.sock"].map(|socket| listen(&bench.path(socket)));
    let revoke = "mutation($id: ID!) { revokeToken(id: $id) { id } }";
    for path in ["/images/r/a/push", "/images/r/a/push?tag=v1"] {
        let (who, id) = bench.token("acme", json!({ "role": "DEPLOY" })).await;
        let before = bench.builder.connections();
        let pushed = bench.docker(&who, "POST", path);
        let revoked = async {
            eventually("it waits for the builder", || {
                bench.builder.connections() > before
            })
            .await;
            let id = json!({ "id": id });
            bench.query(&bench.admin(), revoke, id).await;
        };
        let both = Box::pin(async { tokio::join!(pushed, revoked) });
        let (answer, ()) = soon("an answer", both).await;
        assert_eq!(answer.status, 401, "{path}");
        eventually("no activity", || bench.builder.active() == 0).await;
    }
    drop(silent);
    bench.end().await;
}

#[tokio::test]
async fn what_runs_for_a_token_ends_when_it_expires() {
    let mut bench = Bench::start().await;
    bench.org("acme", "DEPLOY").await;
    endless(&bench);
    // Long enough for all that lasts to be there before.
    let life = Duration::from_secs(12);
    let born = std::time::Instant::now();
    let input = json!({ "role": "DEPLOY", "expiresInMs": life.as_millis() });
    let (who, _) = bench.token("acme", input).await;
    let mut ends = lasting(&bench, &who, &who).await;
    tokio::time::timeout(life.saturating_sub(born.elapsed()), ends.join_next())
        .await
        .expect_err("nothing ends before its time");
    all_end(&bench, ends).await;
    assert_eq!(bench.docker(&who, "GET", "/info").await.status, 401);
    bench.end().await;
}

#[tokio::test]
async fn what_runs_for_a_token_ends_when_another_process_revokes_it() {
    let mut bench = Bench::start().await;
    bench.org("acme", "DEPLOY").await;
    endless(&bench);
    let (who, id) = bench.token("acme", json!({ "role": "DEPLOY" })).await;
    let certificate = bench.certificate(&who).await;
    let mut ends = lasting(&bench, &certificate, &who).await;
    let mut grpc = bench.tls("buildkit", &certificate, "h2").await.unwrap();
    grpc.write_all(b"PRI").await.unwrap();
    assert_eq!(soon("an echo", grpc.read_u8()).await.unwrap(), b'P');
    ends.spawn(async move { while matches!(grpc.read(&mut [0; 8]).await, Ok(1..)) {} });

    let store = database(&bench).await;
    let org = store.org_by_slug("acme").await.unwrap().id;
    store
        .revoke_token(Some(&org), &id.parse().unwrap(), crate::clock::now())
        .await
        .unwrap();
    all_end(&bench, ends).await;
    bench.end().await;
}

#[tokio::test]
async fn a_certificate_is_good_however_many_tokens_were_made_after_its_own() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    let certificate = bench.certificate(&who).await;
    serve(&bench, "docker.sock", |_| async { text("OK") });
    let store = database(&bench).await;
    let org = store.org_by_slug("acme").await.unwrap().id;
    // As many as an org may have.
    for n in 0..slipway_core::quota::ORG_TOKENS_MAX {
        let mut id = [0; 10];
        id[..4].copy_from_slice(&n.to_be_bytes());
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&n.to_be_bytes());
        let token = Token {
            id: TokenId::from_entropy(id),
            org: Some(org.clone()),
            app: None,
            name: "newer".to_owned(),
            role: TokenRole::Read,
            created_at: crate::clock::now(),
            expires_at: None,
            revoked_at: None,
            last_used_at: None,
        };
        match store.create_token(&token, &SecretHash(hash)).await {
            Ok(()) => {}
            Err(slipway_store::StoreError::Quota(_)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(bench.docker(&certificate, "GET", "/_ping").await.body, "OK");
    bench.end().await;
}
