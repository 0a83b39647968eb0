//! What the parts of the guest share.
//!
//! It must not know who calls it.

use crate::books::Books;
use crate::builds::Builds;
use crate::config::GuestConfig;
use crate::docker::Docker;
use crate::emulation::Emulation;
use crate::engine::{DATA_ROOT, ENGINE_SOCKET};
use crate::garbage::{Collector, Reason, World};
use crate::loans::Loans;
use crate::phase::Phase;
use crate::share::CGROUPS;
use crate::share::ooms::Ooms;
use crate::store::ImageStore;
use crate::{disk, limits, running};
use slipway_buildkit::{Client, dial_docker_grpc};
use slipway_core::guest_api::{DiskUse, EngineStatus, GuestStatus};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use tokio::sync::OnceCell;

/// The guest.
#[derive(Debug)]
pub(crate) struct Guest {
    /// What is in flight.
    pub(crate) books: Books,
    /// dockerd.
    pub(crate) docker: Docker,
    /// Builds that wait, run, or ended not long ago.
    pub(crate) builds: Builds,
    /// What the host says about registries.
    pub(crate) config: GuestConfig,
    /// Where dockerd keeps its images.
    pub(crate) store: ImageStore,
    /// How often memory ran out.
    pub(crate) ooms: Ooms,
    /// What pushes want of the control plane.
    pub(crate) loans: Arc<Loans>,
    /// Programs of other processors.
    pub(crate) emulation: Emulation,
    engine_version: OnceCell<String>,
    buildkit_version: OnceLock<String>,
    collector: Collector,
}

impl Guest {
    /// A guest whose engine was just started.
    pub(crate) fn new(books: Books, config: GuestConfig, store: ImageStore) -> Arc<Guest> {
        Arc::new(Guest {
            docker: Docker::at(Path::new(ENGINE_SOCKET)),
            builds: Builds::default(),
            collector: Collector::default(),
            ooms: Ooms::watch(Path::new(CGROUPS), Path::new("/proc/vmstat")),
            books,
            config,
            store,
            loans: Arc::default(),
            emulation: Emulation::default(),
            engine_version: OnceCell::new(),
            buildkit_version: OnceLock::new(),
        })
    }

    /// Space on the cache volume; none if it cannot be told, which is logged.
    pub(crate) fn disk(&self) -> Option<DiskUse> {
        disk::measure(Path::new(DATA_ROOT))
            .inspect_err(|error| tracing::warn!(%error, "the cache volume was not measured"))
            .ok()
    }

    /// Collects garbage down to the low-water mark, after any collection that runs already; gives the bytes that came
    /// free.
    pub(crate) async fn collect(&self, reason: Reason) -> u64 {
        let world = World {
            docker: &self.docker,
            books: &self.books,
            builds: &self.builds,
        };
        self.collector.collect(world, reason).await
    }

    /// How the guest does, with containers counted now.
    pub(crate) async fn status(&self) -> GuestStatus {
        running::count(&self.books, &self.docker).await;
        let engine = self.engine().await;
        let ledger = self.books.read();
        GuestStatus {
            engine,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: ledger.phase() == Phase::Ready,
            activity: ledger.activity(self.books.now_ms()),
            disk: self.disk().unwrap_or_default(),
            ready_after_ms: ledger.ready_after_ms(),
        }
    }

    /// The engine, asked once.
    async fn engine(&self) -> Option<EngineStatus> {
        if self.books.phase() != Phase::Ready {
            return None;
        }
        let version = self
            .engine_version
            .get_or_try_init(|| self.docker.version());
        let version = version
            .await
            .inspect_err(|error| tracing::debug!(%error, "dockerd does not say its version"));
        Some(EngineStatus {
            version: version.ok()?.clone(),
            image_store: self.store.name().to_owned(),
            buildkit: self.buildkit_version.get().cloned(),
            image_made_at: self.config.image_made_at,
        })
    }

    /// Whether [`Guest::ask_buildkit`] has been answered.
    pub(crate) fn knows_buildkit(&self) -> bool {
        self.buildkit_version.get().is_some()
    }

    /// Asks BuildKit for its version, for whoever wants to know it later: nobody who waits for the engine waits for that.
    pub(crate) async fn ask_buildkit(&self) {
        let asked = tokio::time::timeout(limits::ENGINE_REQUEST_WAIT_MAX, async {
            let stream = dial_docker_grpc(self.docker.connect().await?).await?;
            anyhow::Ok(Client::connect(stream).await?.version().await?)
        });
        match asked.await {
            Ok(Ok(version)) => drop(self.buildkit_version.set(version)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "BuildKit does not say its version");
            }
            Err(_elapsed) => tracing::debug!("BuildKit does not say its version in time"),
        }
    }
}
