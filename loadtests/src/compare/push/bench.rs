//! What the cases share: one dockerd with the images, one registry on loopback, a store for buildah.

use super::super::relay::Relay;
use super::super::{Run, Sample, version_of};
use crate::testbed::{Engine, ImageStore, Registry, binaries_dir, show};
use anyhow::{Context, Result, ensure};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Ended and removed when dropped.
pub(super) struct Bench {
    // Dropped in this order.
    pub(super) old_api: Relay,
    pub(super) engine: Engine,
    registry: RefCell<Registry>,
    pub(super) slipway_push: PathBuf,
    dir: tempfile::TempDir,
}

impl Bench {
    /// Starts dockerd and the registry.
    pub(super) fn start() -> Result<Bench> {
        let dir = tempfile::Builder::new()
            .prefix("slipway-compare-")
            .tempdir_in("/var/tmp")?;
        let slipway_push = binaries_dir()?.join("slipway-push");
        ensure!(
            slipway_push.exists(),
            "slipway-push is missing; run `cargo build --workspace --release`"
        );
        let place = dir.path().join("registry");
        std::fs::create_dir(&place)?;
        let mut registry = Registry::at(&place, &free_address()?);
        registry.start()?;
        let engine = Engine::start(&dir.path().join("engine"), ImageStore::Classic, &[])?;
        let socket = engine.socket();
        Ok(Bench {
            old_api: Relay::for_old_clients(&dir.path().join("docker.sock"), &socket)?,
            engine,
            registry: RefCell::new(registry),
            slipway_push,
            dir,
        })
    }

    /// The registry; contenders take turns with it.
    pub(super) fn registry_cell(&self) -> &RefCell<Registry> {
        &self.registry
    }

    /// `ip:port` of the registry.
    pub(super) fn registry_address(&self) -> String {
        self.registry.borrow().address().to_owned()
    }

    /// A path below which a contender keeps what it wants.
    pub(super) fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn note_versions(&self, run: &mut Run) {
        let program = |name: &str, argument: &str| {
            let mut command = Command::new(name);
            command.arg(argument);
            version_of(command)
        };
        run.version("Slipway", Some(env!("CARGO_PKG_VERSION").to_owned()));
        run.version("Docker", version_of(self.engine.docker(&["--version"])));
        run.version("skopeo", program("skopeo", "--version"));
        run.version("buildah", program("buildah", "--version"));
        run.version("docker-registry", program("docker-registry", "--version"));
    }
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").finish_non_exhaustive()
    }
}

/// An address on loopback that nobody has at this moment.
pub(in crate::compare) fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("bind to loopback")?;
    Ok(listener.local_addr()?.to_string())
}

/// Runs a push to the end, and demands that what it pushed is whole in the registry.
pub(in crate::compare) fn timed(
    mut command: Command,
    registry: &Registry,
    pushed: &str,
) -> Result<Sample> {
    let before = registry.requests();
    let began = Instant::now();
    let output = command.output()?;
    let took = began.elapsed();
    ensure!(output.status.success(), "{}", show(&output));
    let requests = registry.requests() - before;
    Ok(Sample {
        size: Some(proven(registry, pushed)?),
        requests: Some(requests),
        ..Sample::seconds(took)
    })
}

/// Bytes of the different layers of `repository:tag`, every one of which the registry has.
pub(super) fn proven(registry: &Registry, pushed: &str) -> Result<u64> {
    let (repository, tag) = pushed.rsplit_once(':').context("no tag")?;
    let (status, body) = registry.get(&format!("/v2/{repository}/manifests/{tag}"))?;
    ensure!(status == 200, "{pushed}: its manifest answers {status}");
    let manifest: serde_json::Value = serde_json::from_str(&body)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    let mut sizes = BTreeMap::new();
    for blob in layers.iter().chain([&manifest["config"]]) {
        let digest = blob["digest"].as_str().context("no digest")?;
        let status = registry.head(&format!("/v2/{repository}/blobs/{digest}"))?;
        ensure!(status == 200, "{pushed}: {digest} answers {status}");
        sizes.insert(digest, blob["size"].as_u64().context("no size")?);
    }
    if let Some(config) = manifest["config"]["digest"].as_str() {
        sizes.remove(config);
    }
    Ok(sizes.values().sum())
}

/// Whether a program is installed.
pub(in crate::compare) fn is_installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|dir: PathBuf| Path::new(&dir).join(program).is_file())
}
