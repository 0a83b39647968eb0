//! An unchanged tree on a warm builder: `slipway deploy --build-only` against `docker build` straight at the same dockerd.

use super::figures::{Times, Verdict};
use crate::testbed::{DockerClient, Testbed, show};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// A tree of `files` small files, built `rounds` times each way, interleaved, after one warm-up each.
pub(super) fn unchanged(bed: &Testbed, files: usize, rounds: usize) -> Result<Verdict> {
    let docker = DockerClient::mount_for_socket(
        &bed.dir().join("bench-client"),
        &super::machine_socket(bed)?,
    )?;
    let tree = docker.root().join("ctx");
    make_tree(&tree, files)?;
    let image = format!("{}/bench:1", bed.registry.address());
    let ours = || {
        let mut command = bed.slipway(&["deploy", "--org", "acme", "--app", "bench"]);
        command.args([
            "--image",
            &image,
            "--remote-only",
            "--build-only",
            "--progress",
            "quiet",
        ]);
        command.arg(&tree);
        timed(command)
    };
    let theirs = || timed(docker.command("docker", &["build", "-q", "-t", "direct", "/ctx"]));
    ours()?;
    theirs()?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        a.push(theirs()?);
        b.push(ours()?);
    }
    let (a, b) = (Times::new(a), Times::new(b));
    super::outln(&format!("  docker build:   {a}\n  slipway deploy: {b}"));
    let ratio = b.median().as_secs_f64() / a.median().as_secs_f64();
    let got = format!("{ratio:.2}x docker build");
    Ok(super::verdict(
        "unchanged deploy, warm builder",
        got,
        "<= 1.2x",
        ratio <= 1.2,
    ))
}

fn make_tree(tree: &Path, files: usize) -> Result<()> {
    for n in 0..files {
        let dir = tree.join(format!("src/{}", n % 70));
        if n < 70 {
            std::fs::create_dir_all(&dir)?;
        }
        let path = dir.join(format!("file-{n}.txt"));
        std::fs::write(&path, format!("file {n}\n").repeat(20)).context("write tree")?;
    }
    std::fs::write(
        tree.join("Dockerfile"),
        "FROM debian:trixie\nCOPY src /src\nRUN ls /src\n",
    )?;
    Ok(())
}

fn timed(mut command: Command) -> Result<Duration> {
    let begin = Instant::now();
    let output = command.output()?;
    let took = begin.elapsed();
    ensure!(output.status.success(), "{command:?}: {}", show(&output));
    Ok(took)
}
