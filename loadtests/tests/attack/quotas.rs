//! What one org could take from all others: a size without bound, the pool, caches that are set aside again and again.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use slipway_loadtests::testbed::{DockerClient, Testbed, show};

/// Three quarters of the testbed's pool are what one org may have of it; twice this is more, and the pool would have room for it.
const VOLUME: u64 = 80 << 30;
/// What dockerd does not start over. Root of a container is root of the builder, so any tenant can do it.
const SPOIL: &str = "rm -rf /v/volumes && echo x > /v/volumes && sync";

fn refused(answer: &Value, code: &str) -> Result<()> {
    let said = &answer["errors"][0]["extensions"]["code"];
    ensure!(said == code, "not refused as {code}: {answer}");
    Ok(())
}

#[test]
fn one_org_does_not_use_up_what_all_share() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    bed.slipway_ok(&["orgs", "create", "blue"])?;
    let admin = [
        "tokens", "create", "red", "--org", "acme", "--role", "admin",
    ];
    let red = bed.slipway_ok(&admin)?.trim().to_owned();

    let update = "mutation($input: UpdateOrgInput!) { updateOrg(input: $input) { id } }";
    for (field, value) in [
        ("memoryBytes", json!(1u64 << 50)),
        ("cpuMillis", json!(4_000_000_000u32)),
        ("volumeBytes", json!(1u64 << 41)),
        ("buildsKept", json!(100_000)),
    ] {
        let answer = bed.graphql(&red, update, &json!({ "input": { field: value } }))?;
        refused(&answer, "INVALID").context(field)?;
    }
    let create = "mutation($input: CreateVolumeInput!) { createVolume(input: $input) { id } }";
    let volume = json!({ "input": { "name": "hog", "sizeBytes": VOLUME } });
    let made = bed.graphql(&red, create, &volume)?;
    ensure!(made["errors"].is_null(), "{made}");
    refused(&bed.graphql(&red, create, &volume)?, "LIMIT")?;
    // Others still get their builders, and so does the org itself.
    bed.slipway_ok(&["orgs", "update", "acme", "--volume-size", "10GiB"])?;
    bed.slipway_ok(&["builders", "ensure", "--org", "blue"])?;
    bed.slipway_ok(&["builders", "ensure", "--org", "acme"])?;
    bed.slipway_ok(&["builders", "stop", "--org", "blue"])?;
    a_spoilt_cache_is_set_aside_once(&bed)?;
    what_is_asked_for_reaches_the_builder(&bed)
}

fn caches(bed: &Testbed) -> Result<usize> {
    let volumes = bed.slipway_json(&["volumes", "list", "--org", "acme", "--json"])?;
    let volumes = volumes.as_array().context("no list")?;
    let is_cache = |volume: &&Value| volume["purpose"] == "CACHE";
    Ok(volumes.iter().filter(is_cache).count())
}

fn a_spoilt_cache_is_set_aside_once(bed: &Testbed) -> Result<()> {
    let docker = DockerClient::of_farm(bed)?;
    let image = format!("{}/library/busybox:latest", bed.registry.address());
    let spoil = || -> Result<()> {
        let run = [
            "run",
            "--rm",
            "-v",
            "/var/lib/docker:/v",
            &image,
            "sh",
            "-c",
            SPOIL,
        ];
        docker.docker_ok(&run)?;
        bed.slipway_ok(&["builders", "stop", "--org", "acme"])
            .map(drop)
    };
    let wake = ["builders", "ensure", "--org", "acme"];
    // Whoever waits while the machine that finds the damage dies waits for the next one.
    let says = |words: &str| -> Result<()> {
        let told = show(&bed.slipway(&wake).output()?);
        ensure!(told.contains(words), "{told}");
        Ok(())
    };
    spoil()?;
    says("the old one is kept as vol_")?;
    ensure!(caches(bed)? == 2, "the damaged cache was not kept");
    spoil()?;
    says("slipway builders reset-cache")?;
    ensure!(caches(bed)? == 2, "a second one was set aside");
    bed.slipway_ok(&["builders", "reset-cache", "--org", "acme", "--yes"])
        .map(drop)
}

fn what_is_asked_for_reaches_the_builder(bed: &Testbed) -> Result<()> {
    bed.slipway_ok(&["builders", "ensure", "--org", "acme"])?;
    bed.slipway_ok(&["orgs", "update", "acme", "--memory", "1GiB"])?;
    let show = ["builders", "show", "--org", "acme"];
    let told = bed.slipway_ok(&show)?;
    ensure!(told.contains("1 GiB from its next start on"), "{told}");
    bed.slipway_ok(&["builders", "stop", "--org", "acme"])?;
    bed.slipway_ok(&["builders", "ensure", "--org", "acme"])?;
    let has = bed.slipway_json(&[&show[..], &["--json"]].concat())?;
    ensure!(has["memoryBytes"] == json!(1u64 << 30), "{has}");
    Ok(())
}
