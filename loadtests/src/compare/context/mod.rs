//! `compare context`: how a build context gets to the same dockerd. Ours syncs files through the gateway, with TLS and who-asks; the
//! peers speak straight to dockerd's socket.
//!
//! `first`: BuildKit's cache, in which it keeps what was synced before, is emptied before each run. `unchanged`: it was built
//! just before.

use super::farm::Farm;
use super::main_job::{make_tree, timed};
use super::{Case, Contender, Run, Sample, Unit};
use crate::testbed::{DockerClient, Testbed, show};
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const OURS: &str = "slipway deploy --build-only, through the gateway";
const BUILDKIT: &str = "docker build (BuildKit), straight";
const CLASSIC: &str = "docker build (classic: a tar), straight";

/// Runs the cases that were asked for.
pub(super) fn run(run: &mut Run) -> Result<()> {
    const CASES: [(&str, Tree, Since); 4] = [
        ("small-first", Tree::Small, Since::Nothing),
        ("small-unchanged", Tree::Small, Since::Build),
        ("large-first", Tree::Large, Since::Nothing),
        ("large-unchanged", Tree::Large, Since::Build),
    ];
    if !CASES.iter().any(|(name, ..)| run.choice.wants(name)) {
        return Ok(());
    }
    let farm = Farm::start(run)?;
    let ways = Ways::new(&farm.bed)?;
    for (name, tree, since) in CASES {
        if run.choice.wants(name) {
            ways.case(run, name, tree, since)?;
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tree {
    /// Many small files.
    Small,
    /// One large one.
    Large,
}

/// Since when nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    Nothing,
    Build,
}

struct Ways<'a> {
    bed: &'a Testbed,
    docker: DockerClient,
    image: String,
}

impl<'a> Ways<'a> {
    fn new(bed: &'a Testbed) -> Result<Self> {
        let dir = bed.dir().join("context-client");
        Ok(Self {
            docker: DockerClient::mount_for_socket(&dir, &bed.machine_socket()?)?,
            image: format!("{}/context:1", bed.registry.address()),
            bed,
        })
    }

    fn case(&self, run: &mut Run, name: &'static str, tree: Tree, since: Since) -> Result<()> {
        let (dir, input) = self.make(run, tree)?;
        let sample = |way: fn(&Self, &Path) -> Command| {
            let dir = dir.clone();
            move |_| self.measure(way, &dir, since).map(Sample::seconds)
        };
        let title = match since {
            Since::Nothing => "for the first time",
            Since::Build => "unchanged",
        };
        run.case(Case {
            name,
            title: format!("Build context, {title}"),
            input,
            unit: Unit::Seconds,
            rounds: run.choice.size(1, 3),
            contenders: vec![
                Contender::ours(OURS, sample(Self::ours)),
                Contender::peer(BUILDKIT, sample(Self::buildkit)),
                Contender::peer(CLASSIC, sample(Self::classic)),
            ],
            bars: Vec::new(),
            size_reference: None,
        })
    }

    /// Makes a tree, if it is not there. Gives where, and what to say of it.
    fn make(&self, run: &Run, tree: Tree) -> Result<(PathBuf, String)> {
        let (files, bytes): (usize, u64) = match tree {
            Tree::Small => (run.choice.size(2_000, 50_000), 0),
            Tree::Large => (0, run.choice.size(32 << 20, 512 << 20)),
        };
        let (name, input) = match tree {
            Tree::Small => ("small", format!("{files} files of some 260 bytes")),
            Tree::Large => ("large", format!("One file of {} MiB", bytes >> 20)),
        };
        let dir = self.docker.root().join(name);
        if !dir.exists() {
            make_tree(&dir, files.max(70))?;
            if bytes > 0 {
                let mut file = std::fs::File::create(dir.join("src/0/large"))?;
                super::archive::noise(&mut file, bytes)?;
            }
        }
        Ok((dir, input))
    }

    fn measure(
        &self,
        way: fn(&Self, &Path) -> Command,
        dir: &Path,
        since: Since,
    ) -> Result<Duration> {
        match since {
            Since::Nothing => self.forget()?,
            Since::Build => drop(timed(way(self, dir))?),
        }
        timed(way(self, dir))
    }

    /// Empties what dockerd and its BuildKit have of earlier builds.
    fn forget(&self) -> Result<()> {
        for arguments in [
            &["image", "rm", "-f", "classic", "buildkit", &self.image][..],
            &["builder", "prune", "-af"],
        ] {
            let output = self.docker.command("docker", arguments).output()?;
            // Images that are not there yet are fine.
            let fine = output.status.success() || arguments[0] == "image";
            ensure!(fine, "{}", show(&output));
        }
        Ok(())
    }

    fn ours(&self, dir: &Path) -> Command {
        let mut command = self
            .bed
            .slipway(&["deploy", "--org", "acme", "--app", "context"]);
        command.args(["--image", &self.image, "--remote-only", "--build-only"]);
        command.args(["--progress", "quiet"]).arg(dir);
        command
    }

    fn buildkit(&self, dir: &Path) -> Command {
        self.build("buildkit", dir, "1")
    }

    fn classic(&self, dir: &Path) -> Command {
        self.build("classic", dir, "0")
    }

    fn build(&self, tag: &str, dir: &Path, buildkit: &str) -> Command {
        let inside = dir.strip_prefix(self.docker.root()).unwrap_or(dir);
        let inside = format!("/{}", inside.display());
        let arguments = ["build", "-q", "-t", tag, &inside];
        let mut command = self.docker.command("docker", &arguments);
        command.env("DOCKER_BUILDKIT", buildkit);
        command
    }
}
