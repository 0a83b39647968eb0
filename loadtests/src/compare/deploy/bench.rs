//! What the ways share: a farm with its registry, a bare dockerd of each kind, and one context.

use super::super::push::{bench::timed, images};
use super::super::relay::Relay;
use super::super::{Run, Sample, version_of};
use super::ways::Way;
use crate::testbed::{DockerClient, Engine, ImageStore, Testbed, show};
use anyhow::{Result, ensure};
use std::cell::RefCell;
use std::path::Path;
use std::process::Command;

const DOCKERFILE: &str = r#"FROM scratch
COPY busybox /bin/busybox
SHELL ["/bin/busybox", "sh", "-c"]
ARG ROUND
RUN --mount=type=bind,source=root.tar,target=/root.tar --network=none \
    /bin/busybox mkdir /files && /bin/busybox tar -xf /root.tar -C /files && echo $ROUND >/files/round
"#;

/// buildx's name for BuildKit without dockerd's own ways.
const BUILDKIT: &str = "buildkit";

/// Ended and removed when dropped.
pub(super) struct Bench {
    // Dropped in this order.
    machine: DockerClient,
    _buildkit: Relay,
    containerd: Engine,
    classic: Engine,
    bed: RefCell<Testbed>,
    /// Of the layer's tar.
    pub(super) bytes: u64,
    /// In the layer.
    pub(super) files: usize,
}

impl Bench {
    /// Starts it all, with a layer of about `bytes`.
    pub(super) fn start(bytes: u64) -> Result<Bench> {
        let bed = Testbed::start()?;
        bed.slipway_ok(&["builders", "ensure", "--org", "acme"])?;
        let dir = bed.dir().to_owned();
        let machine = DockerClient::mount_for_socket(&dir.join("client"), &bed.machine_socket()?)?;
        let registry = [bed.registry.address().to_owned()];
        let engine = |name: &str, store| Engine::start(&dir.join(name), store, &registry);
        let containerd = engine("containerd", ImageStore::Containerd)?;
        let classic = engine("classic", ImageStore::Classic)?;
        let socket = containerd.root().path().join("run/grpc.sock");
        let buildkit = Relay::to_buildkit(&socket, &containerd.socket())?;
        let remote = ["--name", BUILDKIT, "--driver", "remote"];
        let mut create = vec!["buildx", "create"];
        create.extend(remote);
        create.push("unix:///run/grpc.sock");
        containerd.docker_ok(&create)?;
        let context = machine.root().join("context");
        let (bytes, files) = make_context(&machine.root(), &context, bytes)?;
        for engine in [&containerd, &classic] {
            copy(&context, &engine.root().path().join("context"))?;
        }
        Ok(Bench {
            machine,
            _buildkit: buildkit,
            containerd,
            classic,
            bed: RefCell::new(bed),
            bytes,
            files,
        })
    }

    pub(super) fn note_versions(&self, run: &mut Run) {
        run.version("Slipway", Some(env!("CARGO_PKG_VERSION").to_owned()));
        run.version("Docker", version_of(self.classic.docker(&["--version"])));
        let buildx = self.classic.docker(&["buildx", "version"]);
        run.version("buildx", version_of(buildx));
        let mut registry = Command::new("docker-registry");
        registry.arg("--version");
        run.version("docker-registry", version_of(registry));
    }

    /// One run, with a layer that nobody has seen before.
    pub(super) fn run(&self, way: Way, round: usize) -> Result<Sample> {
        let layer = format!("ROUND={}-{round}", way.slug());
        ok(self.buildx(
            way,
            &layer,
            &["--output".to_owned(), "type=cacheonly".to_owned()],
        ))?;
        self.bed.borrow_mut().registry.start_empty()?;
        let bed = self.bed.borrow();
        let repository = format!("deploy/{}:{round}", way.slug());
        let image = format!("{}/{repository}", bed.registry.address());
        let command = if way.is_ours() {
            self.deploy(&bed, way, &layer, &image)
        } else {
            self.buildx(way, &layer, &way.output(&image))
        };
        timed(command, &bed.registry, &repository)
    }

    fn deploy(&self, bed: &Testbed, way: Way, layer: &str, image: &str) -> Command {
        let mut command = bed.slipway(&["deploy", "--org", "acme", "--app", "bench"]);
        command.args(["--remote-only", "--progress", "quiet"]);
        command.args(["--image", image, "--build-arg", layer]);
        if way == Way::SlipwayZstd {
            command.args(["--compression", "zstd"]);
        }
        command.arg(self.machine.root().join("context"));
        command
    }

    /// `buildx build` at the way's own dockerd; ours is the machine's, straight.
    fn buildx(&self, way: Way, layer: &str, output: &[String]) -> Command {
        let build = ["buildx", "build", "--quiet", "--provenance=false"];
        let mut arguments: Vec<&str> = build.to_vec();
        arguments.extend(["--build-arg", layer]);
        arguments.extend(output.iter().map(String::as_str));
        if way == Way::BuildxZstd {
            arguments.extend(["--builder", BUILDKIT]);
        }
        arguments.push("/context");
        match way {
            Way::Slipway | Way::SlipwayZstd => self.machine.command("docker", &arguments),
            Way::BuildxGzip | Way::BuildxZstd => self.containerd.docker(&arguments),
            Way::BuildxClassic => self.classic.docker(&arguments),
        }
    }
}

fn make_context(root: &Path, context: &Path, bytes: u64) -> Result<(u64, usize)> {
    std::fs::create_dir_all(context)?;
    std::fs::copy(root.join("bin/busybox"), context.join("busybox"))?;
    images::dockerfile(context, DOCKERFILE)?;
    let image = root.parent().unwrap_or(root).join("base");
    images::root_tar(&image, &context.join("root.tar"), bytes)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.arg("--archive").arg(from).arg(to);
    ok(command)
}

fn ok(mut command: Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{}", show(&output));
    Ok(())
}
