//! The main job in a virtual machine: an org demands one on a host whose usual machines are sandboxes. Its processor may be
//! emulated, so everything is small.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::{DockerClient, Testbed, cache_dir, wait_for};
use std::time::Duration;

/// For an end, and for a boot with an emulated processor on a busy computer.
const WAIT: Duration = Duration::from_secs(150);
const DOCKERFILE: &str = "FROM busybox:latest\nRUN uname -r > /kernel && echo built\n";

fn builder_state(bed: &Testbed) -> Result<String> {
    let list = bed.slipway_json(&["builders", "list", "--org", "acme", "--json"])?;
    let state = list[0]["state"].as_str().context("no builder")?;
    Ok(state.to_lowercase())
}

#[test]
fn an_org_that_demands_a_virtual_machine_builds_pushes_sleeps_and_wakes_in_one() -> Result<()> {
    let bed = Testbed::start_with("isolation = \"auto\"\n")?;
    bed.registry.seed(&["busybox"])?;
    bed.slipway_ok(&[
        "orgs",
        "update",
        "acme",
        "--isolation",
        "vm",
        "--memory",
        "2GiB",
        "--cpus",
        "2",
        "--volume-size",
        "5GiB",
    ])?;
    let client = DockerClient::of_farm(&bed)?;
    let context = client.root().join("context");
    std::fs::create_dir_all(&context)?;
    std::fs::write(context.join("Dockerfile"), DOCKERFILE)?;
    let image = format!("{}/vm:1", bed.registry.address());

    let built = client.docker_ok(&["build", "--progress", "plain", "-t", &image, "/context"])?;
    println!("{built}");
    let kernel = client.docker_ok(&["run", "--rm", &image, "cat", "/kernel"])?;
    let release = std::fs::read_to_string(cache_dir().join("image/kernel/release"))?;
    ensure!(
        kernel.trim() == release.trim(),
        "the kernel of the build was {kernel}: {}",
        bed.logs()
    );
    client.docker_ok(&["push", &image])?;
    ensure!(bed.registry.get("/v2/vm/manifests/1")?.0 == 200);

    bed.slipway_ok(&["orgs", "update", "acme", "--idle", "2s"])?;
    wait_for("the builder's own end", WAIT, || {
        let state = builder_state(&bed)?;
        ensure!(state == "stopped", "it is {state}");
        Ok(())
    })?;
    let images = client.docker_ok(&["images", "-q", &image])?;
    ensure!(!images.trim().is_empty(), "the cache was lost");
    Ok(())
}
