//! Volumes as a client of the API sees them. The farm is the real one, on the test host.

use crate::testing::{Bench, Who, host};
use serde_json::{Value, json};

const SHOW: &str = "query($id: ID!) { volume(id: $id) { id name state sizeBytes } }";

async fn farm() -> (host::Bed, Bench) {
    let mut bed = host::Bed::start().await;
    bed.stop_farm().await;
    let bench = Bench::start_on(&bed.dir.path().join("host.sock")).await;
    (bed, bench)
}

async fn create(bench: &Bench, who: &Who, mut input: Value) -> Value {
    let query = "mutation($input: CreateVolumeInput!) { createVolume(input: $input) {
        id name purpose state region zone sizeBytes usedBytes encrypted attachedTo source
        snapshotRetentionDays scheduledSnapshots autoExtendThresholdPercent destroyAt notice } }";
    if input["name"].is_null() {
        input["name"] = json!("data");
    }
    let made = bench.query(who, query, json!({ "input": input })).await;
    made["createVolume"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_made_changed_kept_forked_and_destroyed() {
    let (bed, mut bench) = farm().await;
    let who = bench.org("acme", "ADMIN").await;
    let made = create(
        &bench,
        &who,
        json!({ "region": "local", "sizeBytes": (2u64 << 30) - 5 }),
    )
    .await;
    let id = made["id"].clone();
    let expected = json!({
        "id": id, "name": "data", "purpose": "DATA", "state": "CREATED", "region": "local",
        "zone": "test", "sizeBytes": 2u64 << 30, "usedBytes": 0, "encrypted": false,
        "attachedTo": null, "source": null, "snapshotRetentionDays": 5,
        "scheduledSnapshots": true, "autoExtendThresholdPercent": null, "destroyAt": null,
        "notice": null,
    });
    assert_eq!(made, expected);
    let shown = bench.query(&who, SHOW, json!({ "id": id })).await;
    assert_eq!(shown["volume"]["sizeBytes"], 2u64 << 30);

    check_update(&bench, &who, &id).await;
    let keep = "mutation($id: ID!) { createVolumeSnapshot(volume: $id) {
        id volume volumeName state scheduled } }";
    let kept = bench.query(&who, keep, json!({ "id": id })).await["createVolumeSnapshot"].clone();
    assert_eq!(
        (&kept["state"], &kept["volume"], &kept["volumeName"]),
        (&json!("CREATED"), &id, &json!("data"))
    );
    let restored = create(
        &bench,
        &who,
        json!({ "name": "back", "snapshot": kept["id"] }),
    )
    .await;
    assert_eq!(
        (&restored["source"], &restored["sizeBytes"]),
        (&kept["id"], &made["sizeBytes"])
    );
    let fork = "mutation($id: ID!) { forkVolume(input: { volume: $id, name: \"copy\" }) {
        id name source scheduledSnapshots } }";
    let forked = bench.query(&who, fork, json!({ "id": id })).await["forkVolume"].clone();
    assert_eq!(
        (
            &forked["name"],
            &forked["source"],
            &forked["scheduledSnapshots"]
        ),
        (&json!("copy"), &id, &json!(false))
    );

    check_destroy(&bench, &who, &id, &kept["id"]).await;
    let names = bench.query(&who, "{ volumes { name } }", json!({})).await;
    assert_eq!(
        names["volumes"],
        json!([{ "name": "back" }, { "name": "copy" }])
    );
    bench.end().await;
    bed.end().await;
}

async fn check_update(bench: &Bench, who: &Who, id: &Value) {
    let update = "mutation($input: UpdateVolumeInput!) { updateVolume(input: $input) {
        snapshotRetentionDays scheduledSnapshots autoExtendThresholdPercent
        autoExtendIncrementBytes autoExtendLimitBytes } }";
    let input = json!({ "id": id, "scheduledSnapshots": false, "snapshotRetentionDays": 9,
        "autoExtendThresholdPercent": 80, "autoExtendIncrementBytes": 1u64 << 30,
        "autoExtendLimitBytes": 9u64 << 30 });
    let updated = bench.query(who, update, json!({ "input": input })).await;
    assert_eq!(
        updated["updateVolume"],
        json!({
        "snapshotRetentionDays": 9, "scheduledSnapshots": false,
        "autoExtendThresholdPercent": 80, "autoExtendIncrementBytes": 1u64 << 30,
        "autoExtendLimitBytes": 9u64 << 30 })
    );
    let off = json!({ "input": { "id": id, "autoExtendThresholdPercent": 0 } });
    let updated = bench.query(who, update, off).await;
    assert_eq!(
        updated["updateVolume"]["autoExtendThresholdPercent"],
        Value::Null
    );
    assert_eq!(
        updated["updateVolume"]["snapshotRetentionDays"], 9,
        "the rest stays"
    );
}

async fn check_destroy(bench: &Bench, who: &Who, id: &Value, kept: &Value) {
    let destroy = "mutation($id: ID!, $now: Boolean!) { destroyVolume(id: $id, now: $now) {
        state destroyAt } }";
    let going = bench
        .query(who, destroy, json!({ "id": id, "now": false }))
        .await;
    assert_eq!(going["destroyVolume"]["state"], "PENDING_DESTROY");
    let restore = "mutation($id: ID!) { restoreVolume(id: $id) { state destroyAt } }";
    let back = bench.query(who, restore, json!({ "id": id })).await;
    assert_eq!(
        back["restoreVolume"],
        json!({ "state": "CREATED", "destroyAt": null })
    );
    let gone = bench
        .query(who, destroy, json!({ "id": id, "now": true }))
        .await;
    assert_eq!(gone["destroyVolume"]["state"], "DESTROYING");
    assert_eq!(
        bench.refused(who, SHOW, json!({ "id": id })).await,
        "NOT_FOUND"
    );
    // Its snapshot is found by the id of the volume that is gone.
    let list = "query($id: ID!) { volumeSnapshots(volume: $id) { id } }";
    let left = bench.query(who, list, json!({ "id": id })).await;
    assert_eq!(left["volumeSnapshots"], json!([{ "id": kept }]));
    let delete = "mutation($id: ID!) { deleteVolumeSnapshot(id: $id) }";
    bench.query(who, delete, json!({ "id": kept })).await;
    assert_eq!(
        bench.refused(who, list, json!({ "id": id })).await,
        "NOT_FOUND"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_an_orgs_own_and_changed_by_its_admins_alone() {
    let (bed, mut bench) = farm().await;
    let owner = bench.org("acme", "ADMIN").await;
    let stranger = bench.org("other", "ADMIN").await;
    let (deployer, _) = bench.token("acme", json!({ "role": "DEPLOY" })).await;
    let volume = create(&bench, &owner, json!({})).await;
    let keep = "mutation($id: ID!) { createVolumeSnapshot(volume: $id) { id } }";
    let kept = bench
        .query(&owner, keep, json!({ "id": volume["id"] }))
        .await;
    let ids = json!({ "id": volume["id"], "snapshot": kept["createVolumeSnapshot"]["id"] });
    let reads = [
        "query($id: ID!) { volume(id: $id) { id } }",
        "query($id: ID!) { volumeSnapshots(volume: $id) { id } }",
    ];
    let changes = [
        "mutation($id: ID!) { updateVolume(input: { id: $id, scheduledSnapshots: false }) { id } }",
        "mutation($id: ID!) { extendVolume(id: $id, sizeBytes: 9000000000) { id } }",
        "mutation($id: ID!) { forkVolume(input: { volume: $id }) { id } }",
        "mutation($id: ID!) { destroyVolume(id: $id, now: true) { id } }",
        "mutation($id: ID!) { restoreVolume(id: $id) { id } }",
        keep,
        "mutation($snapshot: ID!) { deleteVolumeSnapshot(id: $snapshot) }",
    ];
    for query in reads.iter().chain(&changes) {
        let code = bench.refused(&stranger, query, ids.clone()).await;
        assert_eq!(code, "NOT_FOUND", "{query}");
    }
    for query in changes {
        let code = bench.refused(&deployer, query, ids.clone()).await;
        assert_eq!(code, "FORBIDDEN", "{query}");
    }
    for query in reads {
        bench.query(&deployer, query, ids.clone()).await;
    }
    // Nor is another's snapshot made into a volume of one's own.
    let create = "mutation($snapshot: ID!) { createVolume(input: {
        name: \"stolen\", snapshot: $snapshot }) { id } }";
    assert_eq!(
        bench.refused(&stranger, create, ids.clone()).await,
        "NOT_FOUND"
    );
    assert_eq!(
        bench.refused(&deployer, create, ids.clone()).await,
        "FORBIDDEN"
    );
    let listed = bench
        .query(&owner, "{ volumes { id sizeBytes state } }", json!({}))
        .await;
    let as_it_was = json!([{ "id": volume["id"], "sizeBytes": 1u64 << 30, "state": "CREATED" }]);
    assert_eq!(listed["volumes"], as_it_was);
    bench.end().await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_told_with_a_hint() {
    let (bed, mut bench) = farm().await;
    let who = bench.org("acme", "ADMIN").await;
    let volume = create(&bench, &who, json!({ "sizeBytes": 2u64 << 30 })).await;
    let create =
        |input: &str| format!("mutation {{ createVolume(input: {{ {input} }}) {{ id }} }}");
    let update = |input: &str| {
        format!("mutation {{ updateVolume(input: {{ id: $id, {input} }}) {{ id }} }}")
    };
    let extend =
        |size: &str| format!("mutation {{ extendVolume(id: $id, sizeBytes: {size}) {{ id }} }}");
    for (query, code, says) in [
        (create("name: \"No Good\""), "INVALID", "name of a volume"),
        (
            create("name: \"d\", sizeBytes: 5"),
            "INVALID",
            "not between",
        ),
        (
            create("name: \"d\", sizeBytes: 9000000000000000000"),
            "INVALID",
            "not between",
        ),
        (
            create("name: \"d\", region: \"mars\""),
            "INVALID",
            "there are: local",
        ),
        (
            create("name: \"d\", encrypted: true"),
            "INVALID",
            "encrypted",
        ),
        (
            create("name: \"data\", requireUniqueZone: true"),
            "INVALID",
            "of that name",
        ),
        (
            create("name: \"d\", snapshotRetentionDays: 61"),
            "INVALID",
            "61 days",
        ),
        (
            create("name: \"d\", snapshot: $id"),
            "INVALID",
            "not a snapshot id",
        ),
        (
            create("name: \"d\", snapshot: \"snp_0000000000000000\""),
            "NOT_FOUND",
            "no such snapshot",
        ),
        (
            create("name: \"d\", sizeBytes: 500000000000"),
            "NO_SPACE",
            "of its pool left",
        ),
        (
            update("autoExtendThresholdPercent: 80"),
            "INVALID",
            "an increment and a limit",
        ),
        (
            update(
                "autoExtendThresholdPercent: 100, autoExtendIncrementBytes: 1073741824, autoExtendLimitBytes: 9000000000",
            ),
            "INVALID",
            "100%",
        ),
        (
            update(
                "autoExtendThresholdPercent: 80, autoExtendIncrementBytes: 1073741824, autoExtendLimitBytes: 1073741824",
            ),
            "INVALID",
            "below the volume's size",
        ),
        (update("snapshotRetentionDays: 0"), "INVALID", "0 days"),
        (extend("1073741824"), "INVALID", "never gets smaller"),
        (extend("500000000000"), "NO_SPACE", "no room"),
    ] {
        let query = query.replace("$id", &volume["id"].to_string());
        let answer = bench.try_query(&who, &query, json!({})).await;
        let error = &answer["errors"][0];
        assert_eq!(error["extensions"]["code"], code, "{query}: {answer}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(says), "{query}: {message}");
        assert!(error["extensions"]["hint"].is_string(), "{query}: {answer}");
    }
    bench.end().await;
    bed.end().await;
}
