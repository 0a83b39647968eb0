//! The lives of builders and builds as a client of the API sees them. The farm is the real one, on the test host.

use crate::testing::{Bench, Who, host};
use serde_json::{Value, json};
use slipway_core::build::{BuildEvent, BuildOutcome, Fault};
use std::time::Duration;

const STOP: &str = "mutation { stopBuilder(input: { org: \"acme\" }) { state } }";

async fn farm() -> (host::Bed, Bench) {
    let mut bed = host::Bed::start().await;
    bed.stop_farm().await;
    let bench = Bench::start_on(&bed.dir.path().join("host.sock")).await;
    (bed, bench)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_builder_from_beginning_to_end() {
    let (bed, mut bench) = farm().await;
    let who = bench.org("acme", "DEPLOY").await;
    let stranger = bench.org("other", "ADMIN").await;
    let states = "subscription { builderState { state } }";
    let mut changes = bench.subscribe(&who, states, json!({})).await;
    let mut foreign = bench.subscribe(&stranger, states, json!({})).await;

    let ensure = "mutation { ensureBuilder(input: {}) { id state volume host lastError } }";
    // Whoever subscribes hears the state as it is, then the changes: it boots until that was heard.
    bed.world.lock().hold_ready = true;
    let hear = async {
        while changes.next().await.unwrap()["data"]["builderState"]["state"] != "BOOTING" {}
        bed.world.guest().unwrap().ready.send_replace(true);
        while changes.next().await.unwrap()["data"]["builderState"]["state"] != "RUNNING" {}
    };
    let (made, ()) = tokio::join!(bench.query(&who, ensure, json!({})), hear);
    let builder = made["ensureBuilder"].clone();
    assert_eq!(
        (&builder["state"], &builder["host"]),
        (&json!("RUNNING"), &json!("test"))
    );

    let fly = "mutation { ensureMachineRemoteBuilder(input: {
        organizationId: \"acme\", v2: true, clientMutationId: \"7\" }) {
        clientMutationId machine { id state ips { nodes { family kind ip } } }
        app { name organization { id slug } } } }";
    let fly = bench.query(&who, fly, json!({})).await["ensureMachineRemoteBuilder"].clone();
    assert_eq!(fly["machine"]["id"], builder["id"]);
    assert_eq!(fly["machine"]["state"], "started");
    assert_eq!(fly["app"]["organization"]["slug"], "acme");
    let apps = bench
        .query(&who, "{ apps { name role billable } }", json!({}))
        .await;
    let app = json!({ "name": fly["app"]["name"], "role": "BUILDER", "billable": false });
    assert_eq!(apps["apps"], json!([app]));
    let volumes = "{ volumes { id attachedTo region } }";
    let volumes = bench.query(&who, volumes, json!({})).await;
    let volume = json!({
        "id": builder["volume"], "attachedTo": builder["id"], "region": "local" });
    assert_eq!(volumes["volumes"], json!([volume]));

    let stopped = bench.query(&bench.admin(), STOP, json!({})).await;
    assert_eq!(stopped["stopBuilder"]["state"], "STOPPED");
    let nowhere = "mutation { ensureBuilder(input: { region: \"mars\" }) { id } }";
    assert_eq!(bench.refused(&who, nowhere, json!({})).await, "INVALID");
    bench.end().await;
    assert_eq!(foreign.next().await, None, "another org is told nothing");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_builds_from_beginning_to_end() {
    let (bed, mut bench) = farm().await;
    let who = bench.org("acme", "DEPLOY").await;
    let stranger = bench.org("other", "ADMIN").await;
    let first = begin_build(&bench, &who).await;
    let second = begin_build(&bench, &who).await;
    let guest = bed.world.guest().unwrap();
    let follow = "subscription($id: ID!, $after: Int!) { buildEvents(id: $id, after: $after) }";
    let from = |id: &Value, after: u32| json!({ "id": id, "after": after });
    let mut events = bench.subscribe(&who, follow, from(&first, 0)).await;
    let id = first.as_str().unwrap().parse().unwrap();
    let message = "careful".into();
    let failed = BuildOutcome::Failed {
        fault: Fault::User,
        message: "RUN failed".into(),
        hint: Some("look above".into()),
        excerpt: Some("Dockerfile:2".into()),
    };
    for event in [
        BuildEvent::Started,
        BuildEvent::Warning { message },
        BuildEvent::Ended(failed),
    ] {
        guest.tell(&id, event);
    }
    let mut told = Vec::new();
    while let Some(event) = events.next().await {
        let event = &event["data"]["buildEvents"];
        told.push(json!([event["seq"], event["event"]]));
    }
    assert_eq!(
        json!(told),
        json!([[1, "started"], [2, "warning"], [3, "ended"]])
    );
    // A client that comes back gets what it has not seen.
    let mut rest = bench.subscribe(&who, follow, from(&first, 2)).await;
    assert_eq!(rest.next().await.unwrap()["data"]["buildEvents"]["seq"], 3);
    assert_eq!(rest.next().await, None);

    let cancel = "mutation($id: ID!) { cancelBuild(id: $id) { id } }";
    for id in [&first, &second] {
        let code = bench.refused(&stranger, cancel, json!({ "id": id })).await;
        assert_eq!(code, "NOT_FOUND");
    }
    bench.query(&who, cancel, json!({ "id": second })).await;
    let mut events = bench.subscribe(&who, follow, from(&second, 0)).await;
    while events.next().await.is_some() {}
    let why = "query($id: ID!) { build(id: $id) { error excerpt } }";
    // The end is told first and recorded in the build's row right after.
    for id in [&first, &second] {
        let ended = "query($id: ID!) { build(id: $id) { endedAt } }";
        host::eventually("the build's end is recorded", || async {
            let build = bench.query(&who, ended, json!({ "id": id })).await;
            build["build"]["endedAt"].is_string().then_some(())
        })
        .await;
    }
    let failed = bench.query(&who, why, json!({ "id": first })).await;
    assert_eq!(
        failed["build"],
        json!({ "error": "RUN failed", "excerpt": "Dockerfile:2" })
    );

    let build = "query($id: ID!) {
        build(id: $id) { state error hint fault lastSeq events(after: 2) } }";
    let failed = bench.query(&who, build, json!({ "id": first })).await["build"].clone();
    assert_eq!(failed["events"].as_array().unwrap().len(), 1);
    for (field, value) in [
        ("state", json!("FAILED")),
        ("fault", json!("USER")),
        ("error", json!("RUN failed")),
        ("hint", json!("look above")),
        ("lastSeq", json!(3)),
    ] {
        assert_eq!(failed[field], value, "{field}");
    }
    let list = "{ builds(app: \"shop\", limit: 5) { id state app } }";
    let list = bench.query(&who, list, json!({})).await["builds"].clone();
    let row = |id: &Value, state: &str| json!({ "id": id, "state": state, "app": "shop" });
    assert_eq!(
        list,
        json!([row(&second, "CANCELLED"), row(&first, "FAILED")])
    );
    bench.end().await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_has_begun_is_finished_when_it_goes_away() {
    let (bed, mut bench) = farm().await;
    let who = bench.org("acme", "DEPLOY").await;
    begin_build(&bench, &who).await;
    bench.query(&bench.admin(), STOP, json!({})).await;
    bed.world.lock().start_pause = Duration::from_secs(1);
    let asked = bed.world.lock().starts_asked;
    let start =
        "mutation { startBuild(input: { app: \"shop\", image: \"left\", session: \"s\" }) { id } }";
    let list = "{ builds { image state } }";
    // The client leaves when the builder's start is under way.
    tokio::select! {
        answer = bench.try_query(&who, start, json!({})) => panic!("it did not wait: {answer:?}"),
        () = host::eventually("a start", || async {
            (bed.world.lock().starts_asked > asked).then_some(())
        }) => {}
    }
    host::eventually("the builder has taken the build", || async {
        let builds = bench.query(&who, list, json!({})).await["builds"].clone();
        let newest = json!({ "image": "left", "state": "RUNNING" });
        (builds[0] == newest).then_some(())
    })
    .await;
    bench.end().await;
    bed.end().await;
}

/// Starts a build for the app `shop`, which is made if need be. Gives its id.
async fn begin_build(bench: &Bench, who: &Who) -> Value {
    let start = "mutation { startBuild(input: { app: \"shop\", image: \"r.example/shop:1\",
        session: \"s\", frontendAttrs: [{ name: \"target\", value: \"x\" }] }) { id state } }";
    let answer = bench.try_query(who, start, json!({})).await;
    if answer.get("errors").is_none() {
        assert_eq!(answer["data"]["startBuild"]["state"], "RUNNING");
        return answer["data"]["startBuild"]["id"].clone();
    }
    assert_eq!(answer["errors"][0]["extensions"]["code"], "APP_NOT_FOUND");
    let make = "mutation { createApp(input: { name: \"shop\" }) { id } }";
    bench.query(who, make, json!({})).await;
    bench.query(who, start, json!({})).await["startBuild"]["id"].clone()
}
