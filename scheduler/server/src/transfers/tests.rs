//! Exports and imports as a client of the API does them. The farm is the real one, on the test host.

use super::*;
use crate::http::{empty, full};
use crate::testing::host::{HEAD, stream_of};
use crate::testing::{Answer, Bench, Who, eventually, host, request};
use futures_util::StreamExt;
use futures_util::stream::once;
use serde_json::Value;
use std::time::Duration;

async fn farm() -> (host::Bed, Bench) {
    let mut bed = host::Bed::start().await;
    bed.stop_farm().await;
    let bench = Bench::start_on(&bed.dir.path().join("host.sock")).await;
    (bed, bench)
}

async fn ask(bench: &Bench, who: &Who, method: &str, path: &str) -> Answer {
    bench.ask("api", who, request(method, path, empty())).await
}

/// An importing volume; gives its id and its path.
async fn importing(bench: &Bench, who: &Who) -> (String, String) {
    let import = "mutation { importVolume(input: { name: \"data\", sizeBytes: 1073741824 }) {
        id state importPath importDigest importUntil } }";
    let made = bench.query(who, import, json!({})).await["importVolume"].clone();
    assert_eq!(made["state"], "IMPORTING", "{made}");
    assert!(made["importUntil"].is_string(), "{made}");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    (text(&made["id"]), text(&made["importPath"]))
}

async fn put(bench: &Bench, who: &Who, path: &str, body: Vec<u8>) -> Answer {
    bench
        .ask("api", who, request("PUT", path, full(body)))
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contents_go_in_and_out_and_go_on_where_they_broke_off() {
    let (bed, mut bench) = farm().await;
    let who = bench.org("acme", "ADMIN").await;
    let (id, path) = importing(&bench, &who).await;
    let contents: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let told = ask(&bench, &who, "POST", &path).await;
    assert_eq!(told.json(), json!({ "offset": 0 }));

    // A client that dies in the middle.
    let half = HEAD + 100_000;
    let first = Bytes::from(stream_of(&contents, 0)).slice(..half);
    let world = Arc::clone(&bed.world);
    let dies = async move {
        eventually("some has arrived", || !world.lock().imports.is_empty()).await;
        Err(BodyError::from("the client dies"))
    };
    let pieces = once(async { Ok(Frame::data(first)) }).chain(once(dies));
    let body = BodyExt::boxed_unsync(StreamBody::new(pieces));
    let mut sender = bench.http("api", &who).await;
    let cut = sender.send_request(who.sign(request("PUT", &path, body)));
    cut.await.expect_err("no answer");
    let deadline = Instant::now() + Duration::from_secs(180);
    let offset = loop {
        // Until the server has noticed, it waits for the one that died.
        let told = ask(&bench, &who, "POST", &path).await;
        if told.status == StatusCode::OK {
            break told.json()["offset"].as_u64().expect("a number");
        }
        assert_eq!(told.status, StatusCode::CONFLICT, "{told:?}");
        assert!(Instant::now() < deadline, "the server has not noticed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(offset > 0 && offset <= 100_000, "{offset}");
    let rest = stream_of(&contents, usize::try_from(offset).expect("small"));
    let done = put(&bench, &who, &path, rest).await;
    assert_eq!(
        (done.status, done.json()),
        (StatusCode::OK, json!({ "whole": true }))
    );
    let again = ask(&bench, &who, "POST", &path).await;
    assert_eq!(again.json(), json!({ "whole": true }));

    let keep = "mutation($id: ID!) { createVolumeSnapshot(volume: $id) { id exportPath } }";
    let kept = bench.query(&who, keep, json!({ "id": id })).await;
    let out = kept["createVolumeSnapshot"]["exportPath"]
        .as_str()
        .expect("a path");
    for (query, start) in [("", 0), ("?offset=0", 0), ("?offset=299000", 299_000)] {
        let mut sender = bench.http("api", &who).await;
        let asked = request("GET", &format!("{out}{query}"), empty());
        let answer = sender
            .send_request(who.sign(asked))
            .await
            .expect("an answer");
        assert_eq!(answer.headers()["content-type"], "application/octet-stream");
        let body = answer
            .into_body()
            .collect()
            .await
            .expect("whole")
            .to_bytes();
        assert!(body == stream_of(&contents, start), "{query}");
    }
    bench.end().await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_an_orgs_own_and_its_admins_alone() {
    let (bed, mut bench) = farm().await;
    let owner = bench.org("acme", "ADMIN").await;
    let stranger = bench.org("other", "ADMIN").await;
    let (deployer, _) = bench.token("acme", json!({ "role": "DEPLOY" })).await;
    let (id, into) = importing(&bench, &owner).await;
    let done = put(&bench, &owner, &into, stream_of(b"secret", 0)).await;
    assert_eq!(done.status, StatusCode::OK);
    let keep = "mutation($id: ID!) { createVolumeSnapshot(volume: $id) { exportPath } }";
    let kept = bench.query(&owner, keep, json!({ "id": id })).await;
    let out = kept["createVolumeSnapshot"]["exportPath"]
        .as_str()
        .expect("a path");
    for (who, status) in [
        (&stranger, StatusCode::NOT_FOUND),
        (&deployer, StatusCode::FORBIDDEN),
        (&Who::default(), StatusCode::UNAUTHORIZED),
    ] {
        for (method, path) in [("GET", out), ("POST", &into), ("PUT", &into)] {
            let answer = ask(&bench, who, method, path).await;
            assert_eq!(answer.status, status, "{method} {path}");
            assert!(!answer.body.contains("secret"));
        }
        let import =
            "mutation { importVolume(input: { org: \"acme\", name: \"d\", sizeBytes: 1 }) { id } }";
        let refused = bench.try_query(who, import, json!({})).await;
        assert!(refused["errors"].is_array(), "{refused}");
    }
    for (method, path, status) in [
        ("POST", out, StatusCode::METHOD_NOT_ALLOWED),
        ("DELETE", &into, StatusCode::METHOD_NOT_ALLOWED),
        // To ask where an import goes on keeps it for longer, so it is no GET.
        ("GET", &into, StatusCode::METHOD_NOT_ALLOWED),
        (
            "GET",
            "/v1/snapshots/nonsense/export",
            StatusCode::NOT_FOUND,
        ),
        ("POST", "/v1/volumes//import", StatusCode::NOT_FOUND),
        ("GET", &format!("{out}?offset=-1"), StatusCode::BAD_REQUEST),
        ("GET", &format!("{out}?from=1"), StatusCode::BAD_REQUEST),
        ("PUT", &into, StatusCode::CONFLICT),
    ] {
        let answer = ask(&bench, &owner, method, path).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
    }
    bench.end().await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_what_is_refused_hears_why() {
    let (bed, mut bench) = farm().await;
    let who = bench.org("acme", "ADMIN").await;
    let (_, path) = importing(&bench, &who).await;
    // It is refused after 16 bytes, and much more is on its way.
    let mut rubbish = vec![255; 4 << 20];
    rubbish[..8].fill(255);
    let answer = put(&bench, &who, &path, rubbish).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
    let error = &answer.json()["errors"][0];
    assert_eq!(error["extensions"]["fault"], "user", "{error}");
    // In words of ours: the host's own name its paths.
    let told = error["message"].as_str().expect("text");
    assert!(told.contains("not an exported volume"), "{told}");
    assert!(!told.contains("test:"), "{told}");
    assert!(error["extensions"]["hint"].is_string(), "{error}");
    for (input, says) in [
        (
            "name: \"d\", sizeBytes: 1073741824, digest: \"xyz\"",
            "digest",
        ),
        ("name: \"No\", sizeBytes: 1073741824", "name"),
        ("name: \"d\", sizeBytes: 5", "not between"),
    ] {
        let import = format!("mutation {{ importVolume(input: {{ {input} }}) {{ id }} }}");
        let answer = bench.try_query(&who, &import, json!({})).await;
        let message = answer["errors"][0]["message"].as_str().expect("refused");
        assert!(message.contains(says), "{message}");
    }
    bench.end().await;
    bed.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_cut_off_and_one_that_waits_is_not() {
    let connection = || Arc::new(Connection::alone());
    let (stuck, waiting) = (connection(), connection());
    let stuck_given = Arc::new(Given::new(Some(Instant::now())));
    let waiting_given = Arc::new(Given::new(None));
    for (given, connection) in [(&stuck_given, &stuck), (&waiting_given, &waiting)] {
        tokio::spawn(cut_if_idle(Arc::downgrade(given), Arc::clone(connection)));
    }
    tokio::time::sleep(TRANSFER_IDLE_MAX + Duration::from_secs(1)).await;
    assert!(stuck.cut().is_cancelled());
    tokio::time::sleep(TRANSFER_IDLE_MAX * 5).await;
    assert!(
        !waiting.cut().is_cancelled(),
        "the host is slow, not the client"
    );
}
