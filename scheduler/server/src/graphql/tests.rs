//! The API through its real listener: who may see what, and what is refused how.

use crate::http::full;
use crate::testing::{Bench, Who, request};
use serde_json::json;

#[tokio::test]
async fn nothing_answers_without_a_credential_but_health_and_the_public_certificate() {
    let mut bench = Bench::start().await;
    let nobody = Who::default();
    for (method, path, expected) in [
        ("GET", "/healthz", 200),
        ("HEAD", "/healthz", 200),
        ("POST", "/healthz", 405),
        ("GET", "/v1/ca.pem", 200),
        ("POST", "/graphql", 401),
        ("GET", "/graphql", 405),
        ("GET", "/graphiql", 404),
        ("GET", "/", 404),
        ("GET", "/../healthz", 404),
    ] {
        let answer = bench
            .ask("api", &nobody, request(method, path, full("")))
            .await;
        assert_eq!(answer.status, expected, "{method} {path}");
        assert_eq!(
            answer.headers.contains_key("www-authenticate"),
            expected == 401
        );
    }
    bench.end().await;
}

#[tokio::test]
async fn wrong_expired_and_revoked_tokens_are_told_apart_and_floods_are_bounded() {
    let mut bench = Bench::start().await;
    let good = bench.org("acme", "DEPLOY").await;
    let viewer = "{ viewer { token { role } org { slug } server { docker buildkit } } }";
    let seen = bench.query(&good, viewer, json!({})).await;
    assert_eq!(seen["viewer"]["org"]["slug"], "acme");
    assert_eq!(seen["viewer"]["token"]["role"], "DEPLOY");

    let (short, _) = bench.token("acme", json!({ "expiresInMs": 1 })).await;
    let (gone, id) = bench.token("acme", json!({})).await;
    bench.query(&gone, viewer, json!({})).await;
    let revoke = "mutation($id: ID!) { revokeToken(id: $id) { revokedAt } }";
    let revoked = bench
        .query(&bench.admin(), revoke, json!({ "id": id }))
        .await;
    assert!(revoked["revokeToken"]["revokedAt"].is_string());
    let foreign = Who::bearer("slp_0123456789012345678901234567890123456789012");
    for (who, message) in [
        (&short, "expired"),
        (&gone, "revoked"),
        (&foreign, "not known"),
        (&Who::bearer("nonsense"), "malformed"),
        (&Who::default(), "required"),
    ] {
        let answer = bench
            .ask("api", who, request("POST", "/graphql", full("{}")))
            .await;
        assert_eq!(answer.status, 401, "{message}");
        let text = answer.json()["errors"][0]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(text.contains(message), "{text}");
        assert!(answer.headers.contains_key("www-authenticate"));
    }
    let mut limited = false;
    for _ in 0..crate::bounds::AUTH_FAILURES_MAX {
        let answer = bench
            .ask("docker", &foreign, request("GET", "/_ping", full("")))
            .await;
        limited |= answer.status == 429 && answer.headers.contains_key("retry-after");
    }
    assert!(limited);
    // Nobody behind the same address is shut out, and were it the first time that the credential is seen.
    let (fresh, _) = bench.token("acme", json!({})).await;
    bench.query(&fresh, viewer, json!({})).await;
    bench.end().await;
}

/// Browsers add a credential that they remember to what pages of other sites send, if no preflight is needed for it.
#[tokio::test]
async fn a_page_of_another_site_can_do_nothing_with_a_remembered_credential() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "ADMIN").await;
    let cross = ("sec-fetch-site", "cross-site");
    let typed = ("content-type", "application/json");
    for (n, (status, fields)) in [
        (415, vec![]),
        (
            415,
            vec![("content-type", "text/plain;x=,application/json")],
        ),
        (
            415,
            vec![("content-type", "text/plain;charset=utf-8,application/json")],
        ),
        (415, vec![typed, typed]),
        (403, vec![typed, cross]),
        (403, vec![typed, ("origin", "https://evil.example")]),
        (403, vec![typed, ("origin", "null")]),
        (200, vec![typed, ("origin", "https://slipway")]),
        (200, vec![typed]),
    ]
    .into_iter()
    .enumerate()
    {
        let make = format!("mutation {{ createApp(input: {{ name: \"app{n}\" }}) {{ id }} }}");
        let mut ask = request(
            "POST",
            "/graphql",
            full(json!({ "query": make }).to_string()),
        );
        for (name, value) in &fields {
            let value = http::HeaderValue::from_static(value);
            ask.headers_mut().append(*name, value);
        }
        let answer = bench.ask("api", &who, ask).await;
        assert_eq!(answer.status, status, "{fields:?}");
    }
    let apps = bench.query(&who, "{ apps { name } }", json!({})).await;
    let mut names: Vec<&str> = apps["apps"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|app| app["name"].as_str())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["app7", "app8"]);
    // The gateway's verbs need no body at all.
    let mut kill = request("POST", "/containers/a/kill", full(""));
    let value = http::HeaderValue::from_static("cross-site");
    kill.headers_mut().insert("sec-fetch-site", value);
    assert_eq!(bench.ask("docker", &who, kill).await.status, 403);
    assert_eq!(bench.builder.connections(), 0);
    bench.end().await;
}

#[tokio::test]
async fn an_org_sees_nothing_of_another() {
    let mut bench = Bench::start().await;
    let (mine, theirs) = (
        bench.org("mine", "ADMIN").await,
        bench.org("theirs", "ADMIN").await,
    );
    let set = "mutation($input: SetRegistryCredentialInput!) {
        setRegistryCredential(input: $input) { registry username } }";
    let secret =
        json!({ "input": { "registry": "r.example", "username": "u", "password": "hunter2" } });
    bench.query(&theirs, set, secret.clone()).await;
    let theirs_id = bench.query(&theirs, "{ org { id } }", json!({})).await["org"]["id"].clone();
    let (_, their_token) = bench.token("theirs", json!({})).await;

    for org in [json!("theirs"), theirs_id] {
        for query in [
            "query($org: String) { org(org: $org) { id } }",
            "query($org: String) { apps(org: $org) { id } }",
            "query($org: String) { tokens(org: $org) { id } }",
            "query($org: String) { builders(org: $org) { id } }",
            "query($org: String) { volumes(org: $org) { id } }",
            "query($org: String) { builds(org: $org) { id } }",
            "query($org: String) { registryCredentials(org: $org) { id } }",
            "mutation($org: String) { updateOrg(input: { org: $org, name: \"x\" }) { id } }",
            "mutation($org: String) { createApp(input: { org: $org, name: \"x\" }) { id } }",
            "mutation($org: String) { createToken(input: { org: $org, name: \"x\" }) { secret } }",
            "mutation($org: String) { ensureBuilder(input: { org: $org }) { id } }",
            "mutation($org: String) { stopBuilder(input: { org: $org }) { id } }",
            "mutation($org: String) { resetBuilderCache(input: { org: $org }) { id } }",
            "mutation($org: String) { issueClientCertificate(input: { org: $org }) { key } }",
            "mutation($org: String) { lendPull(input: { org: $org, registry: \"r.example\" }) { kind } }",
            "mutation($org: String) { removeRegistryCredential(org: $org, registry: \"r.example\") }",
            "mutation($org: String) { setRegistryCredential(input: { org: $org, registry: \"r\", password: \"p\" }) { id } }",
            "mutation($org: String) { startBuild(input: { org: $org, app: \"a\", image: \"i\", session: \"s\" }) { id } }",
        ] {
            let code = bench.refused(&mine, query, json!({ "org": org })).await;
            assert_eq!(code, "NOT_FOUND", "{query}");
        }
    }
    let revoke = "mutation($id: ID!) { revokeToken(id: $id) { id } }";
    assert_eq!(
        bench
            .refused(&mine, revoke, json!({ "id": their_token }))
            .await,
        "NOT_FOUND"
    );
    let own = bench
        .query(
            &mine,
            "{ registryCredentials { id } orgs { slug } }",
            json!({}),
        )
        .await;
    assert_eq!(
        own,
        json!({ "registryCredentials": [], "orgs": [{ "slug": "mine" }] })
    );
    // What is sealed is in no file in clear.
    for entry in std::fs::read_dir(bench.path("data")).unwrap().flatten() {
        let bytes = std::fs::read(entry.path()).unwrap();
        let leaked = bytes.windows(7).any(|window| window == b"hunter2");
        assert!(!leaked, "{}", entry.path().display());
    }
    bench.end().await;
}

const STOP: &str = "mutation { stopBuilder(input: {}) { id } }";
const RESET: &str = "mutation { resetBuilderCache(input: {}) { id } }";

#[tokio::test]
async fn roles_and_scopes_bound_what_a_token_may_do() {
    let mut bench = Bench::start().await;
    let reader = bench.org("acme", "READ").await;
    let (deployer, _) = bench.token("acme", json!({ "role": "DEPLOY" })).await;
    let create_app =
        "mutation($name: String!) { createApp(input: { name: $name }) { role billable } }";
    let app = json!({ "name": "shop" });
    assert_eq!(
        bench.refused(&reader, create_app, app.clone()).await,
        "FORBIDDEN"
    );
    let made = bench.query(&deployer, create_app, app.clone()).await;
    assert_eq!(
        made["createApp"],
        json!({ "role": "USER", "billable": true })
    );
    assert_eq!(bench.refused(&deployer, create_app, app).await, "CONFLICT");
    bench
        .query(&deployer, create_app, json!({ "name": "other" }))
        .await;

    for query in [
        "mutation { createOrg(input: { slug: \"x\" }) { id } }",
        "mutation { updateOrg(input: { name: \"x\" }) { id } }",
        "mutation { createToken(input: { name: \"x\" }) { secret } }",
        "{ tokens { id } }",
        STOP,
        RESET,
    ] {
        assert_eq!(
            bench.refused(&deployer, query, json!({})).await,
            "FORBIDDEN",
            "{query}"
        );
    }
    let told = &bench.try_query(&deployer, STOP, json!({})).await["errors"][0];
    let message = "this needs a token with the role admin; yours has the role deploy";
    assert_eq!(told["message"], message);
    let hint = told["extensions"]["hint"].as_str().unwrap();
    assert!(
        hint.contains("`slipway tokens create NAME --role admin`"),
        "{hint}"
    );
    let start = "mutation($app: String!) {
        startBuild(input: { app: $app, image: \"i\", session: \"s\" }) { id } }";
    assert_eq!(
        bench
            .refused(&deployer, start, json!({ "app": "unknown" }))
            .await,
        "APP_NOT_FOUND"
    );
    let (scoped, _) = bench
        .token("acme", json!({ "app": "shop", "role": "ADMIN" }))
        .await;
    assert_eq!(
        bench
            .refused(&scoped, start, json!({ "app": "other" }))
            .await,
        "FORBIDDEN"
    );
    for query in ["{ tokens { id } }", STOP, RESET] {
        let code = bench.refused(&scoped, query, json!({})).await;
        assert_eq!(code, "FORBIDDEN", "{query}");
    }
    let seen = bench.query(&scoped, "{ apps { name } }", json!({})).await;
    assert_eq!(seen, json!({ "apps": [{ "name": "shop" }] }));
    // The administrator has no org of its own, and says which.
    assert_eq!(
        bench
            .refused(&bench.admin(), "{ apps { name } }", json!({}))
            .await,
        "INVALID"
    );
    bench.end().await;
}

#[tokio::test]
async fn basics_user_name_is_an_app_of_the_tokens_org() {
    use base64::Engine;
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "DEPLOY").await;
    bench.org("other", "DEPLOY").await;
    let admin = bench.admin();
    let create =
        "mutation($o: String, $n: String!) { createApp(input: { org: $o, name: $n }) { id } }";
    bench
        .query(&admin, create, json!({ "o": "acme", "n": "shop" }))
        .await;
    bench
        .query(&admin, create, json!({ "o": "other", "n": "theirs" }))
        .await;
    let secret = who.authorization.unwrap().replace("Bearer ", "");
    let basic = |app: &str| Who {
        authorization: Some(format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(format!("{app}:{secret}"))
        )),
        certificate: None,
    };
    bench
        .query(&basic("shop"), "{ org { slug } }", json!({}))
        .await;
    bench.query(&basic(""), "{ org { slug } }", json!({})).await;
    for app in ["theirs", "nobodys"] {
        let code = bench
            .refused(&basic(app), "{ org { slug } }", json!({}))
            .await;
        assert_eq!(code, "APP_NOT_FOUND", "{app}");
        assert_eq!(
            bench.docker(&basic(app), "GET", "/_ping").await.status,
            404,
            "{app}"
        );
    }
    bench.end().await;
}

#[tokio::test]
async fn bad_requests_get_a_code_and_a_bound() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "ADMIN").await;
    let deep = format!(
        "{{ __schema {} {} }}",
        "{ types { fields { type ".repeat(8),
        "} } }".repeat(8)
    );
    let wide = format!(
        "{{ {} }}",
        (0..1200)
            .map(|n| format!("a{n}: orgs {{ id }} "))
            .collect::<String>()
    );
    for query in [
        "{",
        "{ nothing }",
        "query($x: Int!) { orgs { id } }",
        &deep,
        &wide,
    ] {
        assert_eq!(bench.refused(&who, query, json!({})).await, "INVALID");
    }
    for (field, value) in [
        ("idleMs", json!(1)),
        ("memoryBytes", json!(1)),
        ("cpuMillis", json!(0)),
        // More than the operator lets any org have.
        ("memoryBytes", json!(1u64 << 50)),
        ("cpuMillis", json!(4_000_000_000u32)),
        ("volumeBytes", json!(1u64 << 41)),
        ("buildsKept", json!(100_000)),
    ] {
        let update = "mutation($input: UpdateOrgInput!) { updateOrg(input: $input) { id } }";
        let mut input = json!({});
        input[field] = value;
        let code = bench.refused(&who, update, json!({ "input": input })).await;
        assert_eq!(code, "INVALID", "{field}");
    }
    for slug in ["", "A", "a b", "-a", "a/b"] {
        let create = "mutation($slug: String!) { createOrg(input: { slug: $slug }) { id } }";
        let code = bench
            .refused(&bench.admin(), create, json!({ "slug": slug }))
            .await;
        assert_eq!(code, "INVALID", "{slug}");
    }
    let post = |body: String, content_type: &'static str| {
        let mut request = request("POST", "/graphql", full(body));
        let content_type = http::HeaderValue::from_static(content_type);
        request.headers_mut().insert("content-type", content_type);
        request
    };
    for (body, content_type, status) in [
        (
            "{\"query\": \"{ orgs { id } }\"}".to_owned(),
            "application/json; charset=utf-8",
            200,
        ),
        ("not json".to_owned(), "application/json", 400),
        ("{}".to_owned(), "text/plain", 415),
        (
            "x".repeat(crate::bounds::GRAPHQL_BODY_BYTES_MAX + 1),
            "application/json",
            413,
        ),
    ] {
        let answer = bench.ask("api", &who, post(body, content_type)).await;
        assert_eq!(answer.status, status, "{content_type}");
    }
    bench.end().await;
}

#[tokio::test]
async fn tokens_authority_and_orgs_outlive_a_restart() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "READ").await;
    let admin = bench.file("admin.token");
    bench.end().await;
    bench.resume().await;
    assert_eq!(bench.file("admin.token"), admin);
    let seen = bench
        .query(&who, "{ org { slug idleMs } }", json!({}))
        .await;
    assert_eq!(seen["org"], json!({ "slug": "acme", "idleMs": 60_000 }));
    bench.end().await;
}

#[tokio::test]
async fn a_subscription_ends_with_its_token() {
    let mut bench = Bench::start().await;
    bench.org("acme", "READ").await;
    let (who, id) = bench.token("acme", json!({ "role": "READ" })).await;
    let query = "subscription { builderState { id } }";
    let mut events = bench.subscribe(&who, query, json!({})).await;
    let revoke = "mutation($id: ID!) { revokeToken(id: $id) { id } }";
    bench
        .query(&bench.admin(), revoke, json!({ "id": id }))
        .await;
    assert_eq!(events.next().await, None);
    bench.end().await;
}

#[tokio::test]
async fn an_unknown_build_is_told_as_an_event_of_the_stream() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "READ").await;
    let query = "subscription($id: ID!) { buildEvents(id: $id, after: 3) }";
    let id = json!({ "id": "bld_0000000000000000" });
    let mut events = bench.subscribe(&who, query, id).await;
    let told = events.next().await.unwrap();
    assert_eq!(told["errors"][0]["extensions"]["code"], "NOT_FOUND");
    assert_eq!(events.next().await, None);
    bench.end().await;
}
