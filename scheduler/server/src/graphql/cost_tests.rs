//! What one request may cost, through the real listener: time, memory, and what it may still do once its token is revoked.

use crate::http::full;
use crate::testing::{Bench, Who, host, request, soon};
use futures_util::future::select_all;
use serde_json::{Value, json};
use slipway_core::build::BuildEvent;
use std::fmt::Write;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Each of `levels` fragments spreads the next one twice: so many bytes, 2^levels paths.
fn doubling(kind: &str, on: &str, levels: usize) -> String {
    let mut text = format!("{kind}{{...F0}} ");
    for level in 0..levels {
        let next = level + 1;
        write!(text, "fragment F{level} on {on}{{...F{next} ...F{next}}} ").unwrap();
    }
    write!(text, "fragment F{levels} on {on}{{__typename}}").unwrap();
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nested_fragments_hold_nobody_up() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "READ").await;
    for levels in [20, 31] {
        for (kind, on) in [("query", "Query"), ("mutation", "Mutation")] {
            let text = doubling(kind, on, levels);
            let asked = bench.refused(&who, &text, json!({}));
            assert_eq!(soon("an answer", asked).await, "INVALID", "{kind} {levels}");
        }
        let text = doubling("subscription", "Subscription", levels);
        let mut events = bench.subscribe(&who, &text, json!({})).await;
        let told = events.next().await.unwrap();
        assert_eq!(told["errors"][0]["extensions"]["code"], "INVALID");
        assert_eq!(events.next().await, None);
    }
    let health = bench
        .ask("api", &Who::default(), request("GET", "/healthz", full("")))
        .await;
    assert_eq!(health.status, 200);
    bench.end().await;
}

#[tokio::test]
async fn errors_are_no_larger_than_what_they_are_about() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "READ").await;
    let mut text = "{".to_owned();
    for n in 0..4000 {
        write!(text, "unknown{n} ").unwrap();
    }
    text.push('}');
    let unknown: String = (0..60).map(|n| format!("unknown{n} ")).collect();
    for text in [text, format!("{{{unknown}}}")] {
        let answer = bench.try_query(&who, &text, json!({})).await;
        let errors = answer["errors"].as_array().unwrap().len();
        assert!(errors <= super::limits::GRAPHQL_ERRORS_MAX + 1, "{errors}");
        let bytes = answer.to_string().len();
        assert!(bytes < 32 << 10, "{bytes} bytes of errors");
    }
    // A long name in a variable is not told back in full.
    let org = json!({ "org": "x".repeat(500_000) });
    let asked = "query($org: String) { org(org: $org) { id } }";
    let answer = bench.try_query(&who, asked, org).await;
    assert!(answer.to_string().len() < 4096);
    bench.end().await;
}

/// An org that begins large requests and does not end them has its share of memory in them, and no more. What is small has room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_do_not_end_have_their_orgs_share_of_memory_and_no_more() {
    const PIECE: usize = 900 << 10;
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "READ").await;
    let other = bench.org("other", "READ").await;
    let authorization = who.authorization.clone().unwrap();
    let most = super::limits::GRAPHQL_ORG_ANSWERS_BYTES_MAX / PIECE + 4;
    let mut held = Vec::new();
    for _ in 0..most {
        let mut tls = bench.tls("api", &who, "http/1.1").await.unwrap();
        let head = format!(
            "POST /graphql HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            PIECE + 1
        );
        tls.write_all(head.as_bytes()).await.unwrap();
        // One that is refused may be closed while it is still sending.
        let _ = tls.write_all(&vec![b' '; PIECE]).await;
        let _ = tls.flush().await;
        held.push(tls);
    }
    let answers = held.iter_mut().map(|tls| {
        Box::pin(async {
            let mut answer = [0; 12];
            tls.read_exact(&mut answer).await.expect("an answer");
            String::from_utf8_lossy(&answer).into_owned()
        })
    });
    // Those that are held are answered 408, long after this.
    let (first, ..) = soon("a refusal", select_all(answers)).await;
    assert_eq!(first, "HTTP/1.1 429");
    for who in [&who, &other] {
        let name = bench.query(who, "{ viewer { token { role } } }", json!({}));
        assert_eq!(name.await["viewer"]["token"]["role"], "READ");
    }
    let large = json!({ "org": " ".repeat(500_000) });
    let asked = "query($org: String) { org(org: $org) { id } }";
    assert_eq!(
        bench.refused(&other, asked, large.clone()).await,
        "NOT_FOUND"
    );
    // What was held is free again when its connection has gone.
    drop(held);
    soon("room", async {
        while bench.refused(&who, asked, large.clone()).await != "NOT_FOUND" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    bench.end().await;
}

#[tokio::test]
async fn what_people_and_tools_ask_fits() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "READ").await;
    // As code generators ask for the schema.
    let reference = "kind name ofType { kind name ofType { kind name ofType { kind name ofType { kind name } } } }";
    let schema = format!(
        "query IntrospectionQuery {{ __schema {{ queryType {{ name }} mutationType {{ name }}
           types {{ ...FullType }} directives {{ name locations args {{ ...InputValue }} }} }} }}
         fragment FullType on __Type {{ kind name description
           fields(includeDeprecated: true) {{ name description args {{ ...InputValue }}
             type {{ ...TypeRef }} isDeprecated deprecationReason }}
           inputFields {{ ...InputValue }} interfaces {{ ...TypeRef }}
           enumValues(includeDeprecated: true) {{ name description isDeprecated }}
           possibleTypes {{ ...TypeRef }} }}
         fragment InputValue on __InputValue {{ name description type {{ ...TypeRef }} defaultValue }}
         fragment TypeRef on __Type {{ {reference} }}"
    );
    let schema = bench.query(&who, &schema, json!({})).await;
    assert!(schema["__schema"]["types"].as_array().unwrap().len() > 20);
    // Whole rows of every list at once.
    let lists = "{ viewer { org { slug } } orgs { id slug }
        builds(limit: 200) { id app builder image state push createdAt endedAt digest error hint lastSeq }
        builders { id state host volume volumeUsedBytes idleMs activity { builds } lastError notice }
        apps { id name role } }";
    bench.query(&who, lists, json!({})).await;
    bench.end().await;
}

/// A build of `shop` whose builder has told so many events of so many bytes.
async fn told_build(bench: &Bench, bed: &host::Bed, who: &Who, many: usize, bytes: usize) -> Value {
    let make = "mutation { createApp(input: { name: \"shop\" }) { id } }";
    bench.query(who, make, json!({})).await;
    let start =
        "mutation { startBuild(input: { app: \"shop\", image: \"shop\", session: \"s\" }) { id } }";
    let id = bench.query(who, start, json!({})).await["startBuild"]["id"].clone();
    let guest = bed.world.guest().unwrap();
    for _ in 0..many {
        let message = "x".repeat(bytes);
        guest.tell(
            &id.as_str().unwrap().parse().unwrap(),
            BuildEvent::Warning { message },
        );
    }
    let asked = "query($id: ID!) { build(id: $id) { lastSeq } }";
    host::eventually("all is recorded", || async {
        let seen = bench.query(who, asked, json!({ "id": id })).await;
        (seen["build"]["lastSeq"] == many).then_some(())
    })
    .await;
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_query_makes_an_answer_of_more_than_the_bound() {
    let mut bed = host::Bed::start().await;
    bed.stop_farm().await;
    let mut bench = Bench::start_on(&bed.dir.path().join("host.sock")).await;
    let who = bench.org("acme", "DEPLOY").await;
    let id = told_build(&bench, &bed, &who, 120, 60_000).await;

    let aliases: String = (0..60).map(|n| format!("e{n}: events ")).collect();
    let asked = format!("query($id: ID!) {{ build(id: $id) {{ {aliases} }} }}");
    let body = json!({ "query": asked, "variables": { "id": id } }).to_string();
    let mut post = request("POST", "/graphql", full(body));
    let content_type = http::HeaderValue::from_static("application/json");
    post.headers_mut().insert("content-type", content_type);
    let answer = bench.ask("api", &who, post).await;
    let refused = &answer.json()["errors"][0]["extensions"]["code"];
    assert!(*refused == "LIMIT" || *refused == "INVALID", "{refused}");
    assert!(answer.body.len() < 4096, "{} bytes", answer.body.len());

    // Four pages of a MiB fit one by one, not all at once.
    let four =
        "query($id: ID!) { build(id: $id) { a: events b: events c: events d: events e: events } }";
    assert_eq!(
        bench.refused(&who, four, json!({ "id": id })).await,
        "LIMIT"
    );
    let lists = "{ builds(limit: 200) { events } }";
    assert_eq!(bench.refused(&who, lists, json!({})).await, "INVALID");

    let page =
        "query($id: ID!, $after: Int!) { build(id: $id) { events(after: $after, limit: 50) } }";
    let mut seen = 0;
    while seen < 120 {
        let asked = bench
            .query(&who, page, json!({ "id": id, "after": seen }))
            .await;
        let events = asked["build"]["events"].as_array().unwrap();
        let bytes: usize = events.iter().map(|event| event.to_string().len()).sum();
        assert!(bytes <= (1 << 20) + 61_000, "{bytes} bytes in one page");
        assert_eq!(events[0]["seq"], seen + 1);
        seen = events.last().unwrap()["seq"].as_u64().unwrap();
    }
    bench.end().await;
    bed.end().await;
}

/// Waits until the one builder has been asked to start.
async fn starting(bench: &Bench) {
    let asked = "{ builders(org: \"acme\") { state } }";
    host::eventually("the builder starts", || async {
        let seen = bench.query(&bench.admin(), asked, json!({})).await;
        (seen["builders"][0]["state"] == "STARTING").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_does_nothing_more_not_even_in_a_request_under_way() {
    let mut bed = host::Bed::start().await;
    bed.stop_farm().await;
    let mut bench = Bench::start_on(&bed.dir.path().join("host.sock")).await;
    bench.org("acme", "ADMIN").await;
    let (thief, id) = bench.token("acme", json!({ "role": "ADMIN" })).await;
    bed.world.lock().hold_starts = true;
    let asked = "mutation { ensureBuilder(input: {}) { id }
        createToken(input: { name: \"made after the revocation\", role: ADMIN }) { secret } }";
    let begun = bench.try_query(&thief, asked, json!({}));
    let revoked = async {
        starting(&bench).await;
        let revoke = "mutation($id: ID!) { revokeToken(id: $id) { id } }";
        bench
            .query(&bench.admin(), revoke, json!({ "id": id }))
            .await;
    };
    let (answer, ()) = tokio::join!(begun, revoked);
    assert_eq!(
        answer["errors"][0]["extensions"]["code"], "UNAUTHENTICATED",
        "{answer}"
    );
    bed.world.lock().hold_starts = false;
    // The field under way has been finished, and no other has begun.
    let builders = "{ builders(org: \"acme\") { state } }";
    host::eventually("the builder is up", || async {
        let seen = bench.query(&bench.admin(), builders, json!({})).await;
        (seen["builders"][0]["state"] == "RUNNING").then_some(())
    })
    .await;
    // All requests have ended then.
    bench.end().await;
    bench.resume().await;
    let tokens = "{ tokens(org: \"acme\") { name } }";
    let tokens = bench.query(&bench.admin(), tokens, json!({})).await;
    assert!(!tokens.to_string().contains("made after"), "{tokens}");
    bench.end().await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_does_not_begin_once_its_token_is_revoked() {
    let mut bed = host::Bed::start().await;
    bed.stop_farm().await;
    let mut bench = Bench::start_on(&bed.dir.path().join("host.sock")).await;
    let who = bench.org("acme", "DEPLOY").await;
    let make = "mutation { createApp(input: { name: \"shop\" }) { id } }";
    bench.query(&who, make, json!({})).await;
    let (gone, id) = bench.token("acme", json!({ "role": "DEPLOY" })).await;
    bed.world.lock().hold_starts = true;
    let start =
        "mutation { startBuild(input: { app: \"shop\", image: \"i\", session: \"s\" }) { id } }";
    let begun = bench.try_query(&gone, start, json!({}));
    let revoked = async {
        starting(&bench).await;
        let revoke = "mutation($id: ID!) { revokeToken(id: $id) { id } }";
        bench
            .query(&bench.admin(), revoke, json!({ "id": id }))
            .await;
    };
    let (answer, ()) = tokio::join!(begun, revoked);
    assert_eq!(answer["errors"][0]["extensions"]["code"], "UNAUTHENTICATED");
    host::eventually("the build is recorded as failed", || async {
        let builds = bench.query(&who, "{ builds { state } }", json!({})).await;
        (builds["builds"] == json!([{ "state": "FAILED" }])).then_some(())
    })
    .await;
    bed.world.lock().hold_starts = false;
    let ensure = "mutation { ensureBuilder(input: {}) { id } }";
    bench.query(&who, ensure, json!({})).await;
    assert_eq!(
        bed.world.guest().unwrap().builds(),
        vec![],
        "nothing was built"
    );
    bench.end().await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutation_in_an_event_stream_is_finished_when_its_client_goes_away() {
    let mut bed = host::Bed::start().await;
    bed.stop_farm().await;
    let mut bench = Bench::start_on(&bed.dir.path().join("host.sock")).await;
    let who = bench.org("acme", "DEPLOY").await;
    let make = "mutation { createApp(input: { name: \"shop\" }) { id } }";
    bench.query(&who, make, json!({})).await;
    bed.world.lock().hold_starts = true;
    let start =
        "mutation { startBuild(input: { app: \"shop\", image: \"i\", session: \"s\" }) { id } }";
    let left = bench.subscribe(&who, start, json!({}));
    tokio::select! {
        _ = left => panic!("the answer came before the builder was up"),
        () = starting(&bench) => {}
    }
    bed.world.lock().hold_starts = false;
    host::eventually("the build runs", || async {
        let builds = bench.query(&who, "{ builds { state } }", json!({})).await;
        (builds["builds"] == json!([{ "state": "RUNNING" }])).then_some(())
    })
    .await;
    // It is followed: its end is recorded.
    let guest = bed.world.guest().unwrap();
    let cancelled = slipway_core::build::BuildOutcome::Cancelled;
    guest.tell(&guest.builds()[0], BuildEvent::Ended(cancelled));
    host::eventually("the build has ended", || async {
        let builds = bench.query(&who, "{ builds { state } }", json!({})).await;
        (builds["builds"] == json!([{ "state": "CANCELLED" }])).then_some(())
    })
    .await;
    bench.end().await;
    bed.end().await;
}

#[tokio::test]
async fn names_show_what_they_are_and_tokens_end_at_a_time_there_is() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "ADMIN").await;
    let token =
        "mutation($input: CreateTokenInput!) { createToken(input: $input) { token { id } } }";
    for name in [
        "a\u{202e}b",
        "a\u{200b}",
        "a\u{2066}b",
        "a\nb",
        "a\u{1b}[2J",
    ] {
        let input = json!({ "input": { "name": name } });
        assert_eq!(
            bench.refused(&who, token, input).await,
            "INVALID",
            "{name:?}"
        );
        let org = "mutation($name: String!) { updateOrg(input: { name: $name }) { id } }";
        let code = bench.refused(&who, org, json!({ "name": name })).await;
        assert_eq!(code, "INVALID", "{name:?}");
        let login = "mutation($name: String!) { setRegistryCredential(input: {
            registry: \"r.example\", username: $name, password: \"p\" }) { id } }";
        let code = bench.refused(&who, login, json!({ "name": name })).await;
        assert_eq!(code, "INVALID", "{name:?}");
    }
    for life in [i64::MAX, 3651 * 24 * 3600 * 1000] {
        let input = json!({ "input": { "name": "long", "expiresInMs": life } });
        assert_eq!(bench.refused(&who, token, input).await, "INVALID");
    }
    bench.end().await;
}

#[tokio::test]
async fn every_token_can_be_listed_page_by_page_and_revoked() {
    let mut bench = Bench::start().await;
    let who = bench.org("acme", "ADMIN").await;
    let theirs = bench.org("rival", "ADMIN").await;
    for _ in 0..11 {
        bench.token("acme", json!({ "role": "READ" })).await;
    }
    let list = "query($before: ID) { tokens(before: $before, limit: 5) { id revokedAt } }";
    let mut ids: Vec<Value> = Vec::new();
    loop {
        let page = bench
            .query(&who, list, json!({ "before": ids.last() }))
            .await;
        let page = page["tokens"].as_array().unwrap().clone();
        if page.is_empty() {
            break;
        }
        ids.extend(page.iter().map(|token| token["id"].clone()));
    }
    assert_eq!(ids.len(), 12);
    let revoke = "mutation($id: ID!) { revokeToken(id: $id) { revokedAt } }";
    for id in &ids[..11] {
        assert_eq!(
            bench.refused(&theirs, revoke, json!({ "id": id })).await,
            "NOT_FOUND"
        );
        let revoked = bench.query(&who, revoke, json!({ "id": id })).await;
        assert!(revoked["revokeToken"]["revokedAt"].is_string());
    }
    // The administrator's own token is nobody else's to revoke.
    let own = bench
        .query(&bench.admin(), "{ viewer { token { id } } }", json!({}))
        .await;
    let id = json!({ "id": own["viewer"]["token"]["id"] });
    assert_eq!(bench.refused(&theirs, revoke, id).await, "NOT_FOUND");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_one_app_sees_what_is_its_apps_and_what_all_share() {
    let mut bed = host::Bed::start().await;
    bed.stop_farm().await;
    let mut bench = Bench::start_on(&bed.dir.path().join("host.sock")).await;
    let who = bench.org("acme", "ADMIN").await;
    for name in ["shop", "blog"] {
        let make = "mutation($name: String!) { createApp(input: { name: $name }) { id } }";
        bench.query(&who, make, json!({ "name": name })).await;
    }
    let start = "mutation($app: String!) {
        startBuild(input: { app: $app, image: \"i\", session: \"s\" }) { id } }";
    let shop = bench.query(&who, start, json!({ "app": "shop" })).await["startBuild"]["id"].clone();
    let blog = bench.query(&who, start, json!({ "app": "blog" })).await["startBuild"]["id"].clone();
    let (scoped, _) = bench
        .token("acme", json!({ "app": "shop", "role": "ADMIN" }))
        .await;

    let seen = "{ apps { name } builds { id } builders { state } org { slug } }";
    let seen = bench.query(&scoped, seen, json!({})).await;
    assert_eq!(seen["apps"], json!([{ "name": "shop" }]));
    assert_eq!(seen["builds"], json!([{ "id": shop }]));
    assert_eq!(seen["builders"].as_array().unwrap().len(), 1);
    for query in [
        "{ volumes { id } }",
        "{ tokens { id } }",
        "{ registryCredentials { id } }",
        "{ builds(app: \"blog\") { id } }",
        "mutation { updateOrg(input: { name: \"x\" }) { id } }",
        "mutation { createApp(input: { name: \"x\" }) { id } }",
        "mutation { createVolume(input: { name: \"x\" }) { id } }",
    ] {
        assert_eq!(
            bench.refused(&scoped, query, json!({})).await,
            "FORBIDDEN",
            "{query}"
        );
    }
    let build = "query($id: ID!) { build(id: $id) { app } }";
    assert_eq!(
        bench.refused(&scoped, build, json!({ "id": blog })).await,
        "NOT_FOUND"
    );
    assert_eq!(
        bench.query(&scoped, build, json!({ "id": shop })).await["build"]["app"],
        "shop"
    );
    // The administrator finds each by its id alone.
    let found = bench
        .query(&bench.admin(), build, json!({ "id": blog }))
        .await;
    assert_eq!(found["build"]["app"], "blog");
    bench.end().await;
    bed.end().await;
}
