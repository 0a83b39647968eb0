//! Ctrl-C, and what it leaves: nothing.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use slipway_loadtests::testbed::{Testbed, running, wait_for};
use std::time::Duration;

/// What a step of this run runs, and no other process of the computer: a suite of another checkout may run beside it.
fn sleep() -> String {
    format!("sleep {}", 86_400 + std::process::id())
}

#[test]
fn ctrl_c_cancels_the_build_on_the_builder() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let sleep = sleep();
    let dockerfile = format!("FROM busybox\nRUN echo it sleeps && {sleep}\n");
    let dir = bed.project("long", &[("Dockerfile", &dockerfile)])?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut deploy = bed.start_deploy(&mut bed.deploy(&dir, "long:1"))?;
        deploy.wait_for("it sleeps", Duration::from_secs(60))?;
        wait_for("the step's process", Duration::from_secs(20), || {
            ensure!(running(&sleep) > 0, "no such process");
            Ok(())
        })?;
        deploy.signal(signal)?;
        let (code, said) = deploy.end()?;
        ensure!(code == Some(130), "{code:?}: {said}");
        ensure!(said.contains("the build was cancelled"), "{said}");
        wait_for("the step's end", Duration::from_secs(20), || {
            ensure!(running(&sleep) == 0, "{sleep} still runs");
            Ok(())
        })?;
    }
    let builds = bed.slipway_json(&["builds", "list", "--org", "acme", "--json"])?;
    let states: Vec<_> = builds
        .as_array()
        .into_iter()
        .flatten()
        .map(|build| build["state"].as_str().unwrap_or_default().to_lowercase())
        .collect();
    ensure!(states == ["cancelled", "cancelled"], "{builds}");
    // The builder is as good as before, and not busy.
    let dir = bed.project("short", &[("Dockerfile", "FROM busybox\nRUN echo quick\n")])?;
    bed.deployed(&mut bed.deploy(&dir, "short:1"))?;
    Ok(())
}
