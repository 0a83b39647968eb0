//! Tokens for pulling, from a small registry with a token server, both over real sockets.

use crate::testing::{Bench, Who};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

const LEND: &str = "mutation($registry: String!, $repositories: [String!]!, $org: String) {
    lendPull(input: { org: $org, registry: $registry, repositories: $repositories }) { kind token lifeMs } }";
/// `ci:kept-word`.
const RIGHT: &str = "Basic Y2k6a2VwdC13b3Jk";

/// Path and query of each request, and what was shown with it.
type Seen = Vec<(String, Option<String>)>;

/// Wants tokens of its own token server, or passwords.
struct Registry {
    address: String,
    seen: Arc<Mutex<Seen>>,
}

impl Registry {
    async fn start(challenge: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (log, own) = (Arc::clone(&seen), address.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(answer(client, own.clone(), challenge, Arc::clone(&log)));
            }
        });
        Self { address, seen }
    }

    fn take_seen(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

async fn answer(client: TcpStream, own: String, challenge: &str, log: Arc<Mutex<Seen>>) {
    let mut client = BufReader::new(client);
    let mut line = String::new();
    client.read_line(&mut line).await.unwrap();
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut shown = None;
    while !line.trim().is_empty() {
        line.clear();
        client.read_line(&mut line).await.unwrap();
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("authorization") {
            shown = Some(value.trim().to_owned());
        }
    }
    let is_right = shown.as_deref() == Some(RIGHT);
    log.lock().unwrap().push((path.clone(), shown));
    let (status, head, body) = match path.starts_with("/token") {
        true if is_right => (
            "200 OK",
            String::new(),
            r#"{"token":"short-lived","expires_in":90}"#,
        ),
        true => (
            "401 Unauthorized",
            String::new(),
            r#"{"details":"incorrect password"}"#,
        ),
        false => {
            let head = format!("WWW-Authenticate: {}\r\n", challenge.replace("OWN", &own));
            ("401 Unauthorized", head, "{}")
        }
    };
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status}\r\n{head}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    client.write_all(text.as_bytes()).await.unwrap();
}

async fn store(bench: &Bench, who: &Who, registry: &Registry, password: &str) {
    let set = "mutation($registry: String!, $password: String!) { setRegistryCredential(input: {
        registry: $registry, username: \"ci\", password: $password }) { registry } }";
    let input = json!({ "registry": registry.address, "password": password });
    bench.query(who, set, input).await;
}

fn ask(registry: &Registry, repositories: &[&str]) -> Value {
    json!({ "registry": registry.address, "repositories": repositories })
}

const TOKENS: &str = "Bearer realm=\"http://OWN/token\",service=\"test\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_is_lent_tokens_to_pull_with_and_never_the_password() {
    let mut bench = Bench::unstarted(None);
    bench.allow = vec!["127.0.0.1"];
    bench.resume().await;
    let registry = Registry::start(TOKENS).await;
    let admin = bench.org("acme", "ADMIN").await;
    let (who, _) = bench.token("acme", json!({ "role": "DEPLOY" })).await;
    let (reader, _) = bench.token("acme", json!({ "role": "READ" })).await;
    let other = bench.org("other", "ADMIN").await;
    let loan = |kind: &str, token: Value, life: Value| json!({ "lendPull": { "kind": kind, "token": token, "lifeMs": life } });
    let nothing = loan("NOTHING", Value::Null, Value::Null);
    let base = ask(&registry, &["team/base"]);
    assert_eq!(bench.query(&who, LEND, base.clone()).await, nothing);
    assert!(registry.take_seen().is_empty(), "there is no login to show");

    store(&bench, &admin, &registry, "kept-word").await;
    let known = bench.query(&who, LEND, ask(&registry, &[])).await;
    assert_eq!(known, loan("TOKEN", Value::Null, Value::Null));
    assert_eq!(registry.take_seen(), [("/v2/".to_owned(), None)]);
    for (repositories, scopes) in [
        (&["team/base"][..], "scope=repository%3Ateam%2Fbase%3Apull"),
        (
            &["a", "b/c"],
            "scope=repository%3Aa%3Apull&scope=repository%3Ab%2Fc%3Apull",
        ),
    ] {
        let lent = bench.query(&who, LEND, ask(&registry, repositories)).await;
        let lent = &lent["lendPull"];
        assert_eq!(lent["token"], "short-lived", "{lent}");
        let life = lent["lifeMs"].as_u64().unwrap();
        assert!((60_000..=90_000).contains(&life), "{life} ms");
        // What the registry wants is known: the token server alone is asked, with the password, for pulling alone.
        let path = format!("/token?service=test&{scopes}&account=ci");
        assert_eq!(registry.take_seen(), [(path, Some(RIGHT.to_owned()))]);
    }
    for (who, variables, code) in [
        (&reader, base.clone(), "FORBIDDEN"),
        (&who, ask(&registry, &["team/base:pull,push"]), "INVALID"),
        (&who, ask(&registry, &["a"; 17]), "INVALID"),
        (
            &who,
            json!({ "registry": "a/b", "repositories": [] }),
            "INVALID",
        ),
    ] {
        assert_eq!(bench.refused(who, LEND, variables).await, code);
    }
    // Another org has no login there, whoever else has.
    assert_eq!(bench.query(&other, LEND, base.clone()).await, nothing);
    assert!(registry.take_seen().is_empty());

    store(&bench, &admin, &registry, "old-word").await;
    let told = bench.try_query(&who, LEND, base).await;
    let error = &told["errors"][0];
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("incorrect password"), "{told}");
    let hint = error["extensions"]["hint"].as_str().unwrap();
    assert!(hint.contains("slipway registry login"), "{told}");
    assert!(!told.to_string().contains("old-word"), "{told}");

    let basic = Registry::start("Basic realm=\"test\"").await;
    store(&bench, &admin, &basic, "kept-word").await;
    let known = bench.query(&who, LEND, ask(&basic, &["team/base"])).await;
    assert_eq!(known, loan("PASSWORD", Value::Null, Value::Null));
    assert!(basic.take_seen().iter().all(|(_, shown)| shown.is_none()));
    bench.end().await;
}

/// A tenant names the registry, and the registry its token server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_asked_at_addresses_that_the_operator_did_not_open() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "ADMIN").await;
    let registry = Registry::start(TOKENS).await;
    store(&bench, &who, &registry, "kept-word").await;
    let known = bench.query(&who, LEND, ask(&registry, &[])).await;
    assert_eq!(known["lendPull"]["kind"], "NOTHING");
    let refused = bench
        .refused(&who, LEND, ask(&registry, &["team/base"]))
        .await;
    assert_eq!(refused, "UNAVAILABLE");
    assert!(registry.take_seen().is_empty());
    bench.end().await;
}
