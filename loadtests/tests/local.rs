//! `slipway deploy` with the Docker that runs here: when it was asked for, and when it is chosen by itself.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use slipway_loadtests::testbed::{Engine, ImageStore, Testbed, running, wait_for};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
/// Nobody listens there.
const NOBODY: &str = "127.0.0.1:1";

/// What a step of this run runs, and no other process of the computer: a suite of another checkout may run beside it.
fn sleep() -> String {
    format!("sleep {}", 86_400 + std::process::id())
}

/// `slipway deploy` with a Docker at `socket`, by somebody who is logged in.
fn deploy(bed: &Testbed, socket: &Path, dir: &Path, image: &str, more: &[&str]) -> Command {
    let mut command = bed.slipway(&["deploy"]);
    command
        .arg(dir)
        .args(["--app", "web", "--org", "acme", "--image", image])
        .args(more)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()));
    command
}

#[test]
fn a_local_docker_is_used_when_asked_for_or_when_it_serves() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let registry = bed.registry.address().to_owned();
    let engine = Engine::start(
        &bed.dir().join("engine"),
        ImageStore::Classic,
        std::slice::from_ref(&registry),
    )?;
    let (socket, nowhere) = (engine.socket(), bed.dir().join("no.sock"));
    let dockerfile = format!("FROM {registry}/library/busybox\nCOPY a /a\n");
    let dir = bed.project("web", &[("Dockerfile", &dockerfile), ("a", "1")])?;
    let image = format!("{registry}/web:1");
    let at = |socket: &Path, more: &[&str]| deploy(&bed, socket, &dir, &image, more);

    let local = bed.deployed(
        at(&socket, &["--local-only"]).env("SLIPWAY_CONFIG_DIR", bed.dir().join("nobody")),
    )?;
    ensure!(local["build"].is_null(), "it was not local: {local}");
    let digest = local["digest"].as_str().context("no digest")?;
    let (code, _) = bed.registry.get(&format!("/v2/web/manifests/{digest}"))?;
    ensure!(code == 200, "not pushed: {code}");
    let warm = bed.deployed(&mut at(&socket, &[]))?;
    ensure!(
        warm["build"].is_null(),
        "it was not chosen by itself: {warm}"
    );
    ensure!(warm["digest"] == local["digest"], "{local} {warm}");
    let builders = bed.slipway_json(&["builders", "list", "--org", "acme", "--json"])?;
    ensure!(builders.as_array().is_some_and(Vec::is_empty), "{builders}");

    let asked = at(&socket, &["--local-only", "--call", "targets"]).output()?;
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    ensure!(
        asked.status.success() && said.contains("TARGET"),
        "{asked:?}"
    );

    // Another processor than the target's, or no Docker: remotely.
    let foreign = if cfg!(target_arch = "x86_64") {
        "arm64"
    } else {
        "amd64"
    };
    let platform = format!("linux/{foreign}");
    let emulated = bed.deployed(&mut at(&socket, &["--platform", &platform]))?;
    ensure!(emulated["build"].is_string(), "it was local: {emulated}");
    let remote = bed.deployed(&mut at(&nowhere, &[]))?;
    ensure!(remote["build"].is_string(), "it was not remote: {remote}");
    bed.refused(
        &mut at(&nowhere, &["--local-only"]),
        1,
        &["no Docker answers at"],
    )?;

    Ok(())
}

/// What goes wrong is whoever's fault it is on a builder, and is told in the same way.
#[test]
fn a_local_build_fails_like_a_remote_one() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let registry = bed.registry.address().to_owned();
    let insecure = [registry.clone(), NOBODY.to_owned()];
    let engine = Engine::start(&bed.dir().join("engine"), ImageStore::Classic, &insecure)?;
    let (socket, image) = (engine.socket(), format!("{registry}/web:1"));
    let from = format!("FROM {registry}/library/busybox\n");
    let case =
        |name: &str, rest: &str| bed.project(name, &[("Dockerfile", &format!("{from}{rest}\n"))]);
    let missing = case("missing", "COPY nowhere /")?;
    let local = |dir: &Path, image: &str| deploy(&bed, &socket, dir, image, &["--local-only"]);
    bed.refused(&mut local(&missing, &image), 1, &["nowhere"])?;

    // The engine has no bridge.
    let failing = case("failing", "RUN --network=none echo last words >&2; exit 7")?;
    let said = bed.refused(&mut local(&failing, &image), 1, &["exit code: 7"])?;
    let end: Vec<&str> = said.lines().rev().take(7).collect();
    ensure!(
        end[6].contains("last words")
            && end[5] == "------"
            && end[4] == "Dockerfile:2"
            && end[2].contains("2 | >>> RUN --network=none echo last words")
            && end[1].starts_with("error: "),
        "what the step said and where it stands are not the last: {said}"
    );

    let good = case("good", "LABEL good=yes")?;
    let away = format!("{NOBODY}/web:1");
    bed.refused(&mut local(&good, &away), 2, &["connection refused"])?;
    let wrong = format!("{registry}/web/UPPER:1");
    bed.refused(&mut local(&good, &wrong), 1, &["lower case"])?;

    let sleep = sleep();
    let long = case("long", &format!("RUN --network=none {sleep}"))?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let deploy = bed.start_deploy(&mut local(&long, &image))?;
        // What the step is called is told before it starts; a cancellation at that very instant is lost in BuildKit.
        wait_for("the step's process", WAIT, || {
            ensure!(running(&sleep) > 0, "no such process");
            Ok(())
        })?;
        deploy.signal(signal)?;
        let (code, said) = deploy.end()?;
        ensure!(code == Some(130), "{code:?}: {said}");
        ensure!(said.contains("the build was cancelled"), "{said}");
        wait_for("the step's end", WAIT, || {
            ensure!(running(&sleep) == 0, "{sleep} still runs");
            Ok(())
        })?;
    }
    Ok(())
}
