//! The power goes in the middle of a build that writes.

use anyhow::{Result, ensure};
use slipway_loadtests::testbed::Testbed;
use std::time::Duration;

const WRITES: &str = "\
FROM busybox
RUN echo kept > /kept
RUN echo it writes; i=0; while [ ! -e /stop ]; do i=$((i + 1)); dd if=/dev/urandom of=/w$((i % 50)) bs=64k count=16 2>/dev/null; done
";

#[test]
fn a_host_that_lost_its_power_in_a_build_comes_back_with_its_cache() -> Result<()> {
    let mut bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let quick = bed.project(
        "quick",
        &[("Dockerfile", "FROM busybox\nRUN echo kept > /kept\n")],
    )?;
    let first = bed.deployed(&mut bed.deploy(&quick, "quick:1"))?;
    // What was written long ago is on the disk.
    nix::unistd::sync();
    let dir = bed.project("writes", &[("Dockerfile", WRITES)])?;
    let mut deploy = bed.start_deploy(&mut bed.deploy(&dir, "writes:1"))?;
    deploy.wait_for("it writes", Duration::from_secs(60))?;

    bed.pull_the_plug()?;
    bed.start_host()?;
    bed.start_serve()?;
    let (code, said) = deploy.end()?;
    ensure!(code == Some(2), "{code:?}: {said}\n{}", bed.logs());
    let last = said.trim_end().lines().last().unwrap_or_default();
    ensure!(
        last.starts_with("hint: "),
        "the last line is no hint: {said}"
    );

    let again = bed.deployed(&mut bed.deploy(&quick, "quick:2"))?;
    ensure!(
        again["steps_cached"] == again["steps"],
        "the cache was not used again: {again}\n{}",
        bed.logs()
    );
    ensure!(again["digest"] == first["digest"], "{first} {again}");
    let log = std::fs::read_to_string(bed.dir().join("host.log"))?;
    ensure!(
        log.contains("unclean end before, checking the file system"),
        "{log}"
    );
    ensure!(
        bed.volume_images()?.len() == 1,
        "a sound volume was replaced"
    );
    let builds = bed.slipway_json(&["builds", "list", "--org", "acme", "--json"])?;
    let running = builds
        .as_array()
        .into_iter()
        .flatten()
        .filter(|build| {
            build["state"]
                .to_string()
                .to_lowercase()
                .contains("running")
        })
        .count();
    ensure!(running == 0, "{builds}");
    Ok(())
}
