//! An unchanged tree on a warm builder: `slipway deploy --build-only` against `docker build` straight at the same dockerd.

use super::super::farm::Farm;
use super::super::{Bar, Case, Contender, Run, Sample, Unit};
use crate::testbed::{DockerClient, show};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const THEIRS: &str = "docker build (BuildKit), straight at the same dockerd";
const OURS: &str = "slipway deploy --build-only";

/// A tree of small files, after one warm-up each.
pub(super) fn unchanged(farm: &Farm, run: &mut Run) -> Result<()> {
    let files = run.choice.size(1000, 7000);
    let bed = &farm.bed;
    let docker =
        DockerClient::mount_for_socket(&bed.dir().join("bench-client"), &bed.machine_socket()?)?;
    let tree = docker.root().join("ctx");
    make_tree(&tree, files)?;
    let image = format!("{}/bench:1", bed.registry.address());
    let ours = || {
        let mut command = bed.slipway(&["deploy", "--org", "acme", "--app", "bench"]);
        command.args(["--image", &image, "--remote-only", "--build-only"]);
        command.args(["--progress", "quiet"]).arg(&tree);
        timed(command)
    };
    let theirs = || timed(docker.command("docker", &["build", "-q", "-t", "direct", "/ctx"]));
    ours()?;
    theirs()?;
    run.case(Case {
        name: "deploy",
        title: "Unchanged deploy on a warm builder".to_owned(),
        input: format!("{files} files of some 260 bytes, nothing changed since the build before"),
        unit: Unit::Seconds,
        rounds: run.choice.size(3, 9),
        contenders: vec![
            Contender::peer(THEIRS, |_| theirs().map(Sample::seconds)),
            Contender::ours(OURS, |_| ours().map(Sample::seconds)),
        ],
        bars: vec![Bar::within(OURS, THEIRS, 1.2)],
        size_reference: None,
    })
}

/// A Dockerfile and `files` small files in 70 directories.
pub(in crate::compare) fn make_tree(tree: &Path, files: usize) -> Result<()> {
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

/// Runs a command to its good end, and gives how long that took.
pub(in crate::compare) fn timed(mut command: Command) -> Result<Duration> {
    let begin = Instant::now();
    let output = command.output()?;
    let took = begin.elapsed();
    ensure!(output.status.success(), "{command:?}: {}", show(&output));
    Ok(took)
}
