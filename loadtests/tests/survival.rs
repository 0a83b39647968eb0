//! Invariant 5: killing the control plane or the host daemon during a build kills no build; both adopt what runs.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use slipway_loadtests::testbed::{Testbed, show, wait_for};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

/// A build that says when it has begun, and goes on until a file of the cache mount... is counted up; no cache.
const SLOW: &str = "\
FROM debian:trixie
RUN echo begun; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo tick $i; sleep 1; done; echo finished
";

fn start_slow_deploy(bed: &Testbed) -> Result<(Child, PathBuf)> {
    let dir = bed.dir().join("slow");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("Dockerfile"), SLOW)?;
    let log = bed.dir().join("deploy.log");
    let out = std::fs::File::create(&log)?;
    let image = format!("{}/slow:1", bed.registry.address());
    let child = bed
        .slipway(&[
            "deploy",
            dir.to_str().context("path")?,
            "--org",
            "acme",
            "--app",
            "slow",
        ])
        .args(["--image", &image, "--remote-only", "--progress", "plain"])
        .stdout(out.try_clone()?)
        .stderr(out)
        .stdin(Stdio::null())
        .spawn()?;
    wait_for("the build's first tick", Duration::from_secs(120), || {
        let text = std::fs::read_to_string(&log)?;
        ensure!(text.contains("tick 1"), "so far: {text}\n{}", bed.logs());
        Ok(())
    })?;
    Ok((child, log))
}

fn must_succeed(bed: &Testbed, child: Child, log: &PathBuf) -> Result<()> {
    let output = child.wait_with_output()?;
    let text = std::fs::read_to_string(log)?;
    ensure!(
        output.status.success(),
        "{}\n{text}\n{}",
        show(&output),
        bed.logs()
    );
    ensure!(
        text.matches("tick 5").count() == 1,
        "a step ran or was shown twice: {text}"
    );
    let (code, _) = bed.registry.get("/v2/slow/manifests/1")?;
    ensure!(code == 200, "not pushed: {code}");
    let builds: Value = bed.slipway_json(&["builds", "list", "--org", "acme", "--json"])?;
    ensure!(
        builds.as_array().is_some_and(|b| b.len() == 1),
        "one build became several: {builds}"
    );
    Ok(())
}

#[test]
fn a_build_goes_on_when_the_control_plane_is_killed() -> Result<()> {
    let mut bed = Testbed::start()?;
    bed.registry.seed(&["debian"])?;
    let (child, log) = start_slow_deploy(&bed)?;
    bed.kill_serve();
    bed.start_serve()?;
    must_succeed(&bed, child, &log)
}

#[test]
fn a_build_goes_on_when_the_host_daemon_is_killed() -> Result<()> {
    let mut bed = Testbed::start()?;
    bed.registry.seed(&["debian"])?;
    let (child, log) = start_slow_deploy(&bed)?;
    bed.kill_host();
    bed.start_host()?;
    must_succeed(&bed, child, &log)
}
