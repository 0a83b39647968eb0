//! `POST /images/{name}/push`.

use super::{serve, text};
use crate::http::{Body, full};
use crate::testing::{Bench, eventually, request};
use base64::Engine;
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;
use std::sync::{Arc, Mutex};

fn refusal(status: StatusCode, message: &str) -> http::Response<Body> {
    let mut refusal = text(json!({ "message": message }).to_string());
    *refusal.status_mut() = status;
    refusal
}

fn push(path: &str, auth: Option<&str>) -> http::Request<Body> {
    let mut request = request("POST", path, full(""));
    if let Some(auth) = auth {
        let value = base64::engine::general_purpose::URL_SAFE.encode(auth);
        let value = HeaderValue::try_from(value).unwrap();
        request.headers_mut().insert("x-registry-auth", value);
    }
    request
}

#[tokio::test]
async fn pushes_go_to_the_guest_with_the_requests_credential_and_the_orgs_stays_here() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "ADMIN").await;
    let seen = Arc::new(Mutex::new(Vec::<serde_json::Value>::new()));
    let log = Arc::clone(&seen);
    serve(&bench, "guest.sock", move |request| {
        let log = Arc::clone(&log);
        async move {
            if request.uri().path().starts_with("/v1/loans/push-") {
                // It is over, and wants nothing more.
                return refusal(StatusCode::NOT_FOUND, "there is no such loan");
            }
            assert_eq!(request.uri().path(), "/v1/push");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let start: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let target = start["target"].to_string();
            log.lock().unwrap().push(start);
            if target.contains("missing") {
                return refusal(StatusCode::NOT_FOUND, "no such image");
            }
            if target.contains("older") {
                let words = "the body is not what it should be at line 1, column 99";
                return refusal(StatusCode::BAD_REQUEST, words);
            }
            text(format!("{{\"status\":{target}}}\r\n"))
        }
    });
    serve(&bench, "docker.sock", |request| async move {
        assert_eq!(request.uri().path(), "/images/json");
        text(
            json!([
                { "RepoTags": ["r.example/a:v1", "r.example/a:v2", "r.example/ab:v1"] },
                { "RepoTags": null },
            ])
            .to_string(),
        )
    });
    let set = "mutation { setRegistryCredential(input: {
        registry: \"https://R.example/v2/\", username: \"ci\", password: \"kept\" }) { registry } }";
    let stored = bench.query(&who, set, json!({})).await;
    assert_eq!(stored["setRegistryCredential"]["registry"], "r.example");

    let own = Some(r#"{"username":"me","password":"mine","serveraddress":"r.example"}"#);
    let capitals = r#"{"ServerAddress":"r.example","Username":"me","Password":"theirs"}"#;
    let path = "/v1.45/images/r.example%2Fa/push?tag=v1";
    for (path, auth, password, lines) in [
        (path, own, json!("mine"), 1),
        (path, Some("{}"), json!(null), 1),
        (path, None, json!(null), 1),
        (path, Some("null"), json!(null), 1),
        (path, Some("nonsense"), json!(null), 1),
        (path, Some(capitals), json!("theirs"), 1),
        ("/images/s.example/a/push?tag=v1", None, json!(null), 1),
        ("/images/r.example/a/push", None, json!(null), 2),
    ] {
        seen.lock().unwrap().clear();
        let answer = bench.ask("docker", &who, push(path, auth)).await;
        assert_eq!(
            (answer.status.as_u16(), answer.body.lines().count()),
            (200, lines),
            "{path}"
        );
        for start in seen.lock().unwrap().iter() {
            assert_eq!(start["credential"]["password"], password, "{path}");
            assert_eq!(start["image"], start["target"]);
            // Only the org's own credential, which is for r.example, is lent from.
            let is_lent = password.is_null() && path.contains("r.example");
            assert_eq!(start["loan"].is_string(), is_lent, "{path}");
            assert!(!start.to_string().contains("kept"), "{path}");
        }
    }
    for (path, auth, status) in [
        ("/images/r.example/missing/push?tag=v1", None, 404),
        ("/images/r.example/untagged/push", None, 404),
        ("/images/r.example/a@sha256:00/push?tag=v1", None, 400),
    ] {
        let answer = bench.ask("docker", &who, push(path, auth)).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.json()["message"].is_string());
    }
    // A builder that does not know of loans yet.
    let path = "/images/r.example/older/push?tag=v1";
    let answer = bench.ask("docker", &who, push(path, None)).await;
    let told = answer.json()["message"].to_string();
    assert!(
        answer.status == 409
            && told.contains("an older version")
            && told.contains("`slipway builders stop`"),
        "{answer:?}"
    );
    eventually("no activity", || bench.builder.active() == 0).await;
    bench.end().await;
}
