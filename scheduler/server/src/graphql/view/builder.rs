//! Builders, as shown.

use super::super::Result;
use super::super::access::Access;
use super::super::limits::GRAPHQL_GUEST_WEIGHT;
use super::super::running::Running;
use super::super::scalar::{DateTime, Long};
use crate::bounds::GUEST_LOOK_WAIT_MAX;
use crate::clock::now;
use crate::farm::{BuilderView, idle_for};
use async_graphql::{Context, Enum, ID, Object, SimpleObject};
use slipway_core::guest_api::GuestStatus;
use slipway_core::id::HostId;
use slipway_core::machine::MachineState;
use slipway_store as store;
use slipway_store::Intent;
use std::time::Duration;
use tokio::sync::OnceCell;

/// What a builder does.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
pub(in crate::graphql) enum BuilderState {
    /// It does not run; the next request wakes it.
    Stopped,
    /// It was asked to start.
    Starting,
    /// It runs, and Docker does not answer yet.
    Booting,
    /// Docker answers.
    Running,
    /// It was asked to end.
    Ending,
    /// It ended badly, and is tried again while somebody wants it.
    Crashed,
}

/// What is in flight inside a builder.
#[derive(SimpleObject)]
pub(in crate::graphql) struct Activity {
    /// Builds of `startBuild`.
    builds: u32,
    /// Pushes.
    pushes: u32,
    /// Containers that run.
    containers: u32,
    /// Steps of builds that run. They alone keep no builder up.
    steps: u32,
    /// Milliseconds since the last of these ended; 0 while one is in flight.
    idle_ms: Long,
}

/// The Docker engine in a builder.
#[derive(SimpleObject)]
pub(in crate::graphql) struct Engine {
    /// Its version.
    version: String,
    /// Where it keeps images: `classic` or `containerd`.
    image_store: String,
    /// Version of its BuildKit, as that says itself (Debian's says `v0.0.0+unknown`); absent in the first moments after its start.
    buildkit: Option<String>,
    /// When the packages of the image that it has booted were last looked up.
    image_made_at: Option<DateTime>,
}

/// A builder: one per org, region and architecture.
pub(in crate::graphql) struct Builder {
    view: BuilderView,
    guest: OnceCell<Option<GuestStatus>>,
}

impl From<BuilderView> for Builder {
    fn from(view: BuilderView) -> Self {
        Self {
            view,
            guest: OnceCell::new(),
        }
    }
}

impl Builder {
    /// Bytes in use on its volume; absent if it does not run or does not answer.
    pub(in crate::graphql) async fn used(&self, context: &Context<'_>) -> Option<u64> {
        self.guest(context).await.map(|guest| guest.disk.used_bytes)
    }

    /// What the guest says, asked once for all fields; absent if it does not run or does not answer.
    async fn guest(&self, context: &Context<'_>) -> Option<&GuestStatus> {
        let ask = || async {
            let farm = &Access::of(context).ok()?.parts.farm;
            self.view.state.connectable()?;
            let ask = async {
                let mut guest = farm.guest_if_running(&self.view.key).await.ok()?;
                guest.status(Duration::ZERO).await.ok()
            };
            tokio::time::timeout(GUEST_LOOK_WAIT_MAX, ask)
                .await
                .ok()
                .flatten()
        };
        self.guest.get_or_init(ask).await.as_ref()
    }
}

/// A builder: one per org, region and architecture.
#[Object]
impl Builder {
    /// Id of its machine.
    async fn id(&self) -> ID {
        ID(self.view.machine.to_string())
    }

    /// Region.
    async fn region(&self) -> &str {
        &self.view.key.region
    }

    /// Architecture.
    async fn arch(&self) -> &str {
        &self.view.key.arch
    }

    /// What it does now.
    async fn state(&self) -> BuilderState {
        match self.view.state {
            MachineState::Stopped => BuilderState::Stopped,
            MachineState::Starting { .. } => BuilderState::Starting,
            MachineState::Booting { .. } => BuilderState::Booting,
            MachineState::Running { .. } => BuilderState::Running,
            MachineState::Ending { .. } => BuilderState::Ending,
            MachineState::Crashed { .. } => BuilderState::Crashed,
        }
    }

    /// Somebody wants it to run.
    async fn wanted(&self) -> bool {
        self.view.intent == Intent::Wanted
    }

    /// Name of the host it is on.
    async fn host(&self, context: &Context<'_>) -> Result<Option<String>> {
        let host = host(context, &self.view.host).await?;
        Ok(host.map(|host| host.name))
    }

    /// Id of its cache volume.
    async fn volume(&self) -> ID {
        ID(self.view.volume.to_string())
    }

    /// Processor limit in thousandths at its next start, when that is another one.
    async fn next_cpu_millis(&self) -> Option<u32> {
        let next = self.view.next_size.cpu_millis;
        (next != self.view.size.cpu_millis).then_some(next)
    }

    /// Memory limit at its next start, when that is another one.
    async fn next_memory_bytes(&self) -> Option<Long> {
        let next = self.view.next_size.memory;
        (next != self.view.size.memory).then_some(Long(next.0))
    }

    /// Processor limit in thousandths.
    async fn cpu_millis(&self) -> u32 {
        self.view.size.cpu_millis
    }

    /// Memory limit.
    async fn memory_bytes(&self) -> Long {
        Long(self.view.size.memory.0)
    }

    /// Size of its cache volume.
    async fn volume_bytes(&self) -> Long {
        Long(self.view.size.volume.0)
    }

    /// Bytes in use on the cache volume; absent while it does not run.
    #[graphql(complexity = "GRAPHQL_GUEST_WEIGHT + child_complexity")]
    async fn volume_used_bytes(&self, context: &Context<'_>) -> Option<Long> {
        self.used(context).await.map(Long)
    }

    /// Its Docker engine; absent while it does not run.
    #[graphql(complexity = "GRAPHQL_GUEST_WEIGHT + child_complexity")]
    async fn engine(&self, context: &Context<'_>) -> Option<Engine> {
        let engine = self.guest(context).await?.engine.as_ref()?;
        Some(Engine {
            version: engine.version.clone(),
            image_store: engine.image_store.clone(),
            buildkit: engine.buildkit.clone().filter(|text| !text.is_empty()),
            image_made_at: engine.image_made_at.map(DateTime),
        })
    }

    /// What is in flight inside; absent while it does not run.
    #[graphql(complexity = "GRAPHQL_GUEST_WEIGHT + child_complexity")]
    async fn activity(&self, context: &Context<'_>) -> Option<Activity> {
        let activity = self.guest(context).await?.activity;
        Some(Activity {
            builds: activity.builds,
            pushes: activity.pushes,
            containers: activity.containers,
            steps: activity.steps,
            idle_ms: Long(activity.idle_ms),
        })
    }

    /// Milliseconds since something was last in flight inside or connected through a gateway; 0 while something is, absent while it
    /// does not run.
    #[graphql(complexity = "GRAPHQL_GUEST_WEIGHT + child_complexity")]
    async fn idle_ms(&self, context: &Context<'_>) -> Option<Long> {
        let guest = self.guest(context).await?;
        let view = &self.view;
        let idle = idle_for(now(), view.in_flight, view.quiet_since, &guest.activity);
        Some(Long(u64::try_from(idle.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Connections through the gateways now.
    async fn connections(&self) -> u32 {
        self.view.in_flight
    }

    /// What it waits for, in words, while somebody wants it and it is not up; absent for a start that takes its usual course.
    async fn waiting_for(&self) -> Option<&str> {
        self.view.waiting_for.as_deref()
    }

    /// Why it last failed.
    async fn last_error(&self) -> Option<&str> {
        self.view.last_error.as_deref()
    }

    /// Something its owner should know, such as a cache that was replaced.
    async fn notice(&self) -> Option<&str> {
        self.view.notice.as_deref()
    }

    /// When it was made.
    async fn created_at(&self) -> DateTime {
        DateTime(self.view.created_at)
    }

    /// When this last changed.
    async fn updated_at(&self) -> DateTime {
        DateTime(self.view.updated_at)
    }
}

/// A host, read once for one answer.
pub(in crate::graphql) async fn host(
    context: &Context<'_>,
    id: &HostId,
) -> Result<Option<store::Host>> {
    let store = Access::of(context)?.store();
    Ok(Running::of(context)?.host(store, id).await?)
}
