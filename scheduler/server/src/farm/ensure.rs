//! Making and wanting builders: single-flight, within quotas, placed by the planner's rules.
//!
//! Must not know: how a builder is started.

use super::builder::{Builder, Wishes};
use super::{BuilderKey, FarmError, Shared};
use crate::clock::now;
use crate::entropy::entropy;
use crate::limits::PLACEMENT_TRIES_MAX;
use slipway_core::id::{AppId, MachineId, VolumeId};
use slipway_core::placement::{HostLoad, PlacementRequest, place};
use slipway_core::quota::check_one_more_builder;
use slipway_core::units::ByteSize;
use slipway_store::{Ensured, Intent, NewBuilder, Org, StoreError};
use std::sync::Arc;

impl Shared {
    /// The builder, made if there is none, and wanted.
    pub(super) async fn ensure(
        self: &Arc<Self>,
        key: &BuilderKey,
    ) -> Result<Arc<Builder>, FarmError> {
        if let Some(builder) = self.builder(key) {
            self.want(&builder).await?;
            return Ok(builder);
        }
        let _making = self.making.lock().await;
        if let Some(builder) = self.builder(key) {
            self.want(&builder).await?;
            return Ok(builder);
        }
        let org = self.store.org(&key.org).await?;
        self.ceilings.check_builder_size(&org.builder_size)?;
        let have = self.store.builders(&key.org).await?.len();
        check_one_more_builder(u32::try_from(have).unwrap_or(u32::MAX))?;
        let mut full = None;
        for _ in 0..PLACEMENT_TRIES_MAX {
            match self.make(key, &org).await {
                Err(FarmError::Store(error @ StoreError::PoolFull { .. })) => full = Some(error),
                done => return done,
            }
        }
        Err(full.map_or(FarmError::Closed, FarmError::Store))
    }

    /// Wants a builder that is there, and records it.
    async fn want(&self, builder: &Builder) -> Result<(), FarmError> {
        let wanted = {
            let mut inner = builder.lock();
            inner.quiet_since = now();
            let recorded = inner.recorded.as_ref().and_then(|r| r.intent);
            inner.machine.intent == Intent::Wanted && recorded == Some(Intent::Wanted)
        };
        if !wanted {
            builder.change(|inner| inner.machine.intent = Intent::Wanted);
            self.persist(builder).await?;
        }
        Ok(())
    }

    async fn make(
        self: &Arc<Self>,
        key: &BuilderKey,
        org: &Org,
    ) -> Result<Arc<Builder>, FarmError> {
        let loads = self.loads().await?;
        let request = PlacementRequest {
            region: key.region.clone(),
            arch: key.arch.clone(),
            volume: org.builder_size.volume,
            memory: org.builder_size.memory,
            volume_host: None,
            isolation: org.isolation,
        };
        let new = NewBuilder {
            region: key.region.clone(),
            arch: key.arch.clone(),
            host: place(&request, &loads)?,
            size: org.builder_size,
            app: AppId::from_entropy(entropy()?),
            machine: MachineId::from_entropy(entropy()?),
            volume: VolumeId::from_entropy(entropy()?),
            at: now(),
        };
        let (Ensured::Created(machine) | Ensured::Existing(machine)) =
            self.store.ensure_builder(&key.org, &new).await?;
        tracing::info!(org = %key.org, machine = %machine.id, host = %machine.host, "builder placed");
        self.drive(machine, Wishes::of(org, &self.ceilings)).await
    }

    pub(super) async fn loads(&self) -> Result<Vec<HostLoad>, FarmError> {
        let hosts = self.store.hosts().await?;
        let loads = hosts.into_iter().filter_map(|used| {
            let link = self.link(&used.host.id).filter(|link| link.placeable)?;
            let free = used
                .host
                .pool_capacity
                .0
                .saturating_sub(used.pool_promised.0);
            let reachable = *link.reachable.borrow();
            Some(HostLoad {
                host: used.host.id,
                region: used.host.region,
                arch: used.host.arch,
                reachable,
                pool_free: ByteSize(free),
                memory: used.host.memory,
                memory_promised: used.memory_promised,
                kinds: link.kinds(),
                encrypts: link.encrypts(),
            })
        });
        Ok(loads.collect())
    }
}
