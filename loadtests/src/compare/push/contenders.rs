//! The ways to push, each as a command on an image of the bench's dockerd.

use super::bench::{Bench, is_installed};
use crate::testbed::show;
use anyhow::{Result, ensure};
use std::path::Path;
use std::process::Command;

/// Somebody's way from an image to `address/repository:tag`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// `slipway-push` with these arguments.
    Slipway(&'static [&'static str]),
    /// `docker push`.
    Docker,
    /// `skopeo copy docker-daemon:`.
    Skopeo,
    /// `buildah push` from a store of its own.
    Buildah,
}

/// Peers, in the order of each round.
pub(super) const PEERS: [Way; 3] = [Way::Docker, Way::Skopeo, Way::Buildah];

impl Way {
    /// As the results name it.
    pub(super) fn name(self) -> String {
        match self {
            Way::Slipway([]) => "slipway-push".to_owned(),
            Way::Slipway(arguments) => format!("slipway-push {}", arguments.join(" ")),
            Way::Docker => "docker push".to_owned(),
            Way::Skopeo => "skopeo copy".to_owned(),
            Way::Buildah => "buildah push".to_owned(),
        }
    }

    /// A name without what repositories and paths cannot have.
    pub(super) fn slug(self) -> String {
        let name = self.name();
        let words = name.split(|c: char| !c.is_ascii_alphanumeric());
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        words.join("-")
    }

    pub(super) fn is_ours(self) -> bool {
        matches!(self, Way::Slipway(_))
    }

    /// Why it cannot take part.
    pub(super) fn missing(self) -> Option<&'static str> {
        match self {
            Way::Skopeo if !is_installed("skopeo") => Some("not installed"),
            Way::Buildah if !is_installed("buildah") => Some("not installed"),
            Way::Slipway(_) | Way::Docker | Way::Skopeo | Way::Buildah => None,
        }
    }

    /// Whatever has to be done once for an image before it can be pushed; not measured.
    pub(super) fn prepare(self, bench: &Bench, image: &str, target: &str) -> Result<()> {
        match self {
            Way::Docker => bench.engine.docker_ok(&["tag", image, target]).map(drop),
            Way::Buildah => {
                // Its client knows one place for dockerd's socket only, so an archive carries the image over.
                let inside = format!("/contexts/{image}.tar");
                bench.engine.docker_ok(&["save", "-o", &inside, image])?;
                let outside = bench.engine.root().path().join(&inside[1..]);
                let archive = format!("docker-archive:{}", outside.display());
                let id = ok(buildah(bench, &["pull", "-q", &archive]))?;
                std::fs::remove_file(&outside)?;
                ok(buildah(bench, &["tag", id.trim(), target])).map(drop)
            }
            Way::Slipway(_) | Way::Skopeo => Ok(()),
        }
    }

    /// The push itself. `index`: where ours remembers between pushes; absent for nothing remembered.
    pub(super) fn command(
        self,
        bench: &Bench,
        image: &str,
        target: &str,
        index: Option<&Path>,
    ) -> Command {
        match self {
            Way::Slipway(arguments) => {
                let mut command = Command::new(&bench.slipway_push);
                command
                    .arg("--docker-root")
                    .arg(bench.engine.data())
                    .args(["--quiet", image, target])
                    .args(arguments);
                if let Some(index) = index {
                    command.arg("--index").arg(index);
                }
                command
            }
            Way::Docker => bench.engine.docker(&["push", "-q", target]),
            Way::Skopeo => {
                let mut command = Command::new("skopeo");
                command
                    .args(["copy", "-q", "--dest-tls-verify=false"])
                    .args(["--src-daemon-host", &bench.old_api.host()])
                    .arg(format!("docker-daemon:{image}:latest"))
                    .arg(format!("docker://{target}"))
                    .env("HOME", bench.scratch("skopeo"))
                    // What it remembers of digests, apart from this machine's own.
                    .env("XDG_DATA_HOME", bench.scratch("skopeo"));
                command
            }
            Way::Buildah => buildah(bench, &["push", "-q", "--tls-verify=false", target]),
        }
    }
}

fn buildah(bench: &Bench, arguments: &[&str]) -> Command {
    let mut command = Command::new("buildah");
    command
        .arg("--root")
        .arg(bench.scratch("buildah"))
        .arg("--runroot")
        .arg(bench.scratch("buildah-run"))
        .args(["--storage-driver", "overlay"])
        .args(arguments);
    command
}

fn ok(mut command: Command) -> Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{}", show(&output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
