//! `slipway deploy --detach`, and a build seen from elsewhere: `builds attach`, `builds logs`.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use slipway_loadtests::testbed::{RunningDeploy, Testbed, show, wait_for};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
/// More than one message of the file sync.
const CONTEXT_BYTES: usize = 3 << 20;

/// A build whose first step lasts until the test lets it go on by putting `debian` into the registry.
fn gated(bed: &Testbed, name: &str, rest: &str) -> Result<PathBuf> {
    let gate = format!(
        "http://{}/v2/library/debian/tags/list",
        bed.registry.address()
    );
    let dockerfile = format!(
        "FROM busybox\nRUN echo it waits; until wget -q -O /dev/null {gate}; do sleep 0.1; done\n{rest}\n"
    );
    let large = "x".repeat(CONTEXT_BYTES);
    bed.project(name, &[("Dockerfile", &dockerfile), ("large", &large)])
}

fn open_gate(bed: &Testbed) -> Result<()> {
    bed.registry.seed(&["debian"])
}

/// Runs it to its end: until nobody holds its pipes any more.
fn detached(deploy: &mut Command) -> Result<Value> {
    let output = deploy.args(["--detach", "--json"]).output()?;
    ensure!(output.status.success(), "{}", show(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    let last: Value = serde_json::from_str(text.lines().last().context("no output")?)?;
    ensure!(last["type"] == "detached", "{last}");
    Ok(last)
}

fn attach(bed: &Testbed, id: &str) -> Result<RunningDeploy> {
    bed.start_deploy(&mut bed.slipway(&["builds", "attach", id, "--progress", "plain"]))
}

fn state(bed: &Testbed, id: &str) -> Result<String> {
    let build = bed.slipway_json(&["builds", "show", id, "--json"])?;
    Ok(build["state"].as_str().unwrap_or_default().to_lowercase())
}

#[test]
fn a_detached_build_needs_its_directory_no_more_and_is_seen_from_elsewhere() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let rest = "COPY large /\nRUN --mount=type=secret,id=word grep -q \"the word\" /run/secrets/word && echo heard";
    let dir = gated(&bed, "away", rest)?;
    let secret = bed.dir().join("word");
    std::fs::write(&secret, "the word\n")?;
    let spec = format!("id=word,src={}", secret.display());
    let told = detached(bed.deploy(&dir, "away:1").args(["--secret", &spec]))?;
    let id = told["build"].as_str().context("no build")?;
    let keeper = Path::new("/proc").join(told["pid"].to_string());
    ensure!(state(&bed, id)? == "running", "{told}");
    ensure!(keeper.exists(), "nobody serves the secret: {told}");
    // What is sent is sent. The secret was read, and is asked for later.
    std::fs::remove_dir_all(&dir)?;
    std::fs::remove_file(&secret)?;

    wait_for("the log so far", WAIT, || {
        let log = bed.slipway_ok(&["builds", "logs", id])?;
        ensure!(log.contains("it waits"), "{log}");
        Ok(())
    })?;
    let mut first = attach(&bed, id)?;
    first.wait_for("it waits", WAIT)?;
    first.signal(Signal::SIGINT)?;
    let (code, said) = first.end()?;
    ensure!(
        code == Some(130) && said.contains("goes on"),
        "{code:?}: {said}"
    );
    ensure!(state(&bed, id)? == "running", "the attach ended the build");

    let mut second = attach(&bed, id)?;
    second.wait_for("it waits", WAIT)?;
    let log = bed.start_deploy(&mut bed.slipway(&["builds", "logs", "--follow", id]))?;
    open_gate(&bed)?;
    let (code, said) = second.end()?;
    ensure!(code == Some(0), "{code:?}: {said}\n{}", bed.logs());
    ensure!(
        said.contains("heard") && said.contains("away:1@sha256:"),
        "{said}"
    );
    let (code, said) = log.end()?;
    ensure!(
        code == Some(0) && said.contains("heard"),
        "{code:?}: {said}"
    );
    let (code, _) = bed.registry.get("/v2/away/manifests/1")?;
    ensure!(code == 200, "not pushed: {code}");
    wait_for("the keeper's end", WAIT, || {
        ensure!(!keeper.exists(), "{told} is still there");
        Ok(())
    })
}

#[test]
fn how_a_detached_build_ends_is_told_to_who_attaches() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    // Before the detach nothing is different: Ctrl-C ends it, mistakes are told.
    let dir = gated(&bed, "ends", "RUN echo last words; exit 7")?;
    let mut early =
        bed.start_deploy(
            bed.deploy(&dir, "ends:0")
                .args(["--detach", "--progress", "plain"]),
        )?;
    early.wait_for("waiting for the builder", WAIT)?;
    early.signal(Signal::SIGINT)?;
    let (code, said) = early.end()?;
    ensure!(
        code == Some(130) && said.contains("interrupted"),
        "{code:?}: {said}"
    );
    let wrong = bed.project("wrong", &[("Dockerfile", "FROM busybox\nRUNN true\n")])?;
    bed.refused(bed.deploy(&wrong, "wrong:1").arg("--detach"), 1, &["RUNN"])?;

    let cancelled = detached(&mut bed.deploy(&dir, "ends:1"))?;
    let id = cancelled["build"].as_str().context("no build")?;
    bed.slipway_ok(&["builds", "cancel", id])?;
    bed.refused(
        &mut bed.slipway(&["builds", "attach", id]),
        1,
        &["was cancelled"],
    )?;

    let failed = detached(&mut bed.deploy(&dir, "ends:2"))?;
    let id = failed["build"].as_str().context("no build")?;
    open_gate(&bed)?;
    let mut attach = bed.slipway(&["builds", "attach", id, "--progress", "plain"]);
    let place = "| >>> RUN echo last words; exit 7";
    bed.refused(&mut attach, 1, &["last words", place, "exit code: 7"])?;
    for verb in ["show", "logs"] {
        let told = bed.slipway_ok(&["builds", verb, id])?;
        ensure!(
            told.contains(place) && told.contains("exit code: 7"),
            "builds {verb} does not tell the place: {told}"
        );
    }
    let told = bed.slipway_ok(&["builds", "show", id, "--json"])?;
    let told: Value = serde_json::from_str(&told)?;
    let excerpt = told["excerpt"].as_str().unwrap_or_default();
    ensure!(excerpt.contains(place), "{told}");

    // A registry that the farm closes to builders is reported before the build has run.
    let long = bed.project("long", &[("Dockerfile", "FROM busybox\nRUN sleep 3600\n")])?;
    let closed = "10.255.255.1:5000/long:1";
    bed.refused(
        bed.deploy_as(&long, closed).args(["--progress", "plain"]),
        2,
        &[
            "no way to the registry 10.255.255.1:5000",
            "operator allows",
        ],
    )?;

    // A build that is over before its deploy could detach gives the same line to a script.
    let quick = bed.project(
        "quick",
        &[("Dockerfile", "FROM busybox\nLABEL quick=yes\n")],
    )?;
    let output = bed.deploy(&quick, "quick:1").arg("--detach").output()?;
    ensure!(output.status.success(), "{}", show(&output));
    let id = String::from_utf8(output.stdout)?;
    let attached = bed.slipway_ok(&["builds", "attach", id.trim()])?;
    ensure!(attached.contains("quick:1@sha256:"), "{attached}");
    Ok(())
}
