//! A cache volume that is full, and one that is damaged.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::Testbed;
use std::io::{Seek, SeekFrom, Write};

fn dd(name: &str, mebibytes: u32) -> String {
    format!(
        "FROM busybox\nRUN echo {name} && dd if=/dev/urandom of=/large bs=1M count={mebibytes}\n"
    )
}

#[test]
fn a_full_disk_is_collected_once_and_then_told() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    bed.slipway_ok(&["orgs", "update", "acme", "--volume-size", "1GiB"])?;
    let build = |name: &str, mebibytes| -> Result<std::process::Command> {
        let dir = bed.project(name, &[("Dockerfile", &dd(name, mebibytes))])?;
        let mut deploy = bed.deploy(&dir, "room:1");
        deploy.arg("--build-only");
        Ok(deploy)
    };
    // Garbage as soon as the next build takes over the name.
    bed.deployed(&mut build("first", 350)?)?;
    let output = build("second", 500)?
        .args(["--progress", "plain"])
        .output()?;
    let text = slipway_loadtests::testbed::show(&output);
    ensure!(output.status.success(), "{text}\n{}", bed.logs());
    let said = bed.refused(&mut build("third", 1500)?, 1, &["disk is full", "larger"])?;
    let tries = said
        .matches("its garbage was collected, and the build is tried again")
        .count();
    ensure!(tries <= 1, "tried {tries} times again: {said}");
    bed.deployed(&mut build("fourth", 5)?)?;
    Ok(())
}

/// Invariant 11: the cache is expendable.
#[test]
fn a_damaged_volume_is_kept_aside_and_the_build_goes_on_with_an_empty_one() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let dir = bed.project("web", &[("Dockerfile", "FROM busybox\nRUN echo 1 > /1\n")])?;
    let before = bed.deployed(&mut bed.deploy(&dir, "web:1"))?;
    bed.slipway_ok(&["builders", "stop", "--org", "acme"])?;
    let [image] = &bed.volume_images()?[..] else {
        anyhow::bail!("not one volume");
    };
    // Superblock, group descriptors, journal, and whatever a checker would restore the first from.
    let mut disk = std::fs::File::options().write(true).open(image)?;
    let length = disk.metadata()?.len();
    for at in (0..length).step_by(16 << 20) {
        disk.seek(SeekFrom::Start(at))?;
        disk.write_all(&[0x5a; 64 << 10])?;
    }
    drop(disk);

    let output = bed.deploy(&dir, "web:2").output()?;
    let text = slipway_loadtests::testbed::show(&output);
    ensure!(output.status.success(), "{text}\n{}", bed.logs());
    ensure!(
        text.contains("the cache was replaced by an empty one"),
        "the user was not told: {text}"
    );
    let after = bed.deployed(&mut bed.deploy(&dir, "web:3"))?;
    ensure!(after["digest"].is_string() && before["digest"].is_string());
    ensure!(bed.volume_images()?.len() == 2, "the old one was not kept");
    let builder = bed.slipway_json(&["builders", "list", "--org", "acme", "--json"])?;
    let notice = builder[0]["notice"].as_str().context("no notice")?;
    ensure!(notice.contains("kept as vol_"), "{notice}");
    let volumes = bed.slipway_json(&["volumes", "list", "--org", "acme", "--json"])?;
    let states: Vec<_> = volumes
        .as_array()
        .into_iter()
        .flatten()
        .map(|volume| volume["state"].to_string().to_lowercase())
        .collect();
    ensure!(
        states.iter().any(|state| state.contains("aside")),
        "{volumes}"
    );
    Ok(())
}
