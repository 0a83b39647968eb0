//! Who asks, and for what: tokens that no longer count, names that do not exist, a server that is not there.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::{Testbed, wait_for};
use std::process::Command;
use std::time::Duration;

/// A command as somebody who has this token and nothing else.
fn with_token(bed: &Testbed, token: &str, mut command: Command) -> Result<Command> {
    command
        .env("SLIPWAY_CONFIG_DIR", bed.dir().join("nobody"))
        .env("SLIPWAY_SERVER", format!("https://{}", bed.address("api")?))
        .env("SLIPWAY_CA", bed.ca())
        .env("SLIPWAY_TOKEN", token);
    Ok(command)
}

#[test]
fn tokens_that_do_not_count_and_names_that_do_not_exist() -> Result<()> {
    let bed = Testbed::start()?;
    let dir = bed.project(
        "web",
        &[("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "1")],
    )?;
    bed.slipway_ok(&["orgs", "create", "evil"])?;
    let deploy = |token: &str| with_token(&bed, token, bed.deploy(&dir, "web:1"));

    let good = bed.org_token("acme")?;
    bed.deployed(&mut deploy(&good)?)?;
    let foreign = bed.org_token("evil")?;
    bed.refused(&mut deploy(&foreign)?, 1, &["acme"])?;
    bed.refused(&mut deploy("slp_nonsense")?, 1, &["slipway login"])?;
    let tokens = bed.slipway_json(&["tokens", "list", "--org", "acme", "--json"])?;
    let id = tokens[0]["id"].as_str().context("no token")?;
    bed.slipway_ok(&["tokens", "revoke", id])?;
    bed.refused(&mut deploy(&good)?, 1, &["slipway login"])?;

    let short = bed.slipway_ok(&[
        "tokens",
        "create",
        "short",
        "--org",
        "acme",
        "--expires",
        "1s",
    ])?;
    wait_for("the token's end", Duration::from_secs(20), || {
        bed.refused(&mut deploy(short.trim())?, 1, &["slipway login"])
    })?;

    let looker = bed.slipway_ok(&[
        "tokens", "create", "look", "--org", "acme", "--role", "read",
    ])?;
    bed.refused(&mut deploy(looker.trim())?, 1, &[])?;
    bed.refused(
        &mut bed.slipway(&["builds", "logs", "bld_0000000000000000"]),
        1,
        &["no such build", "slipway builds list"],
    )?;
    bed.refused(
        &mut bed.slipway(&["builds", "list", "--org", "nobody"]),
        1,
        &["nobody"],
    )?;
    let nobodys = bed
        .slipway(&["builds", "list", "--org", "acme", "--app", "nothing"])
        .output()?;
    ensure!(nobodys.status.success() || nobodys.status.code() == Some(1));
    bed.refused(
        &mut bed.slipway(&["apps", "create", "Bad Name", "--org", "acme"]),
        1,
        &["not valid as a name", "lower-case"],
    )?;
    Ok(())
}

#[test]
fn a_server_that_is_not_there_is_told_at_once() -> Result<()> {
    let mut bed = Testbed::start()?;
    let dir = bed.project(
        "web",
        &[("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "1")],
    )?;
    bed.kill_serve();
    bed.refused(&mut bed.deploy(&dir, "web:1"), 2, &["cannot reach"])?;
    bed.refused(&mut bed.slipway(&["status"]), 2, &["cannot reach"])?;
    bed.start_serve()?;
    bed.deployed(&mut bed.deploy(&dir, "web:1"))?;
    // Without its host, the control plane says so and does not hang for ever.
    bed.slipway_ok(&["builders", "stop", "--org", "acme"])?;
    bed.kill_host();
    bed.refused(&mut bed.deploy(&dir, "web:1"), 2, &[])?;
    bed.start_host()?;
    bed.deployed(&mut bed.deploy(&dir, "web:1"))?;
    Ok(())
}
