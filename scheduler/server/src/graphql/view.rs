//! What is shown, and how it comes from what is known. No secret is in any of these types but the two that are told once.

use super::Result;
use super::access::Access;
use super::input::parse_id;
use super::scalar::{DateTime, Long};
use crate::bounds::{GUEST_LOOK_WAIT_MAX, PAGE_MAX};
use crate::farm::BuilderView;
use async_graphql::{Context, Enum, ID, Json, Object, SimpleObject};
use slipway_core::build::{BuildOutcome, Fault, NumberedEvent};
use slipway_core::guest_api::GuestStatus;
use slipway_core::id::HostId;
use slipway_core::machine::MachineState;
use slipway_store as store;
use slipway_store::Intent;
use std::time::Duration;
use tokio::sync::OnceCell;

/// What a token may do, least first.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "store::TokenRole")]
pub(super) enum TokenRole {
    /// Look.
    Read,
    /// Build, push, and use the builder.
    Deploy,
    /// All of it.
    Admin,
}

/// What an app is for.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "store::AppRole")]
pub(super) enum AppRole {
    /// The user's own.
    User,
    /// It holds the org's builders.
    Builder,
}

/// What a builder does.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
pub(super) enum BuilderState {
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

/// What a build does.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "store::BuildState")]
pub(super) enum BuildState {
    /// Its builder has not accepted it yet.
    Pending,
    /// Its builder has accepted it.
    Running,
    /// Built, and pushed if that was asked.
    Succeeded,
    /// Not.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

/// What is known of a volume.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "store::VolumeState")]
pub(super) enum VolumeState {
    /// Promised, perhaps not made yet.
    Planned,
    /// Made.
    Ready,
    /// Replaced because its builder would not start; kept for a look.
    Aside,
    /// About to be destroyed.
    Condemned,
}

/// Whose fault a failure is.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
#[graphql(name = "Fault")]
pub(super) enum FaultView {
    /// The caller's.
    User,
    /// The server's, or the network's.
    System,
}

/// A tenant.
#[derive(SimpleObject)]
pub(super) struct Org {
    /// Its id.
    id: ID,
    /// Its name in URLs and on the command line.
    slug: String,
    /// Its name for people.
    name: String,
    /// A builder ends itself after so many milliseconds without activity.
    idle_ms: Long,
    /// Region of builders when a request names none.
    default_region: String,
    /// Architecture of builders when a request names none.
    default_arch: String,
    /// Processor limit of a builder, in thousandths.
    cpu_millis: u32,
    /// Memory limit of a builder.
    memory_bytes: Long,
    /// Size of a builder's cache volume.
    volume_bytes: Long,
    /// When it was made.
    created_at: DateTime,
}

impl From<store::Org> for Org {
    fn from(org: store::Org) -> Self {
        Self {
            id: ID(org.id.into()),
            slug: org.slug,
            name: org.name,
            idle_ms: millis(org.idle),
            default_region: org.default_region,
            default_arch: org.default_arch,
            cpu_millis: org.builder_size.cpu_millis,
            memory_bytes: Long(org.builder_size.memory.0),
            volume_bytes: Long(org.builder_size.volume.0),
            created_at: DateTime(org.created_at),
        }
    }
}

/// An application.
#[derive(SimpleObject)]
pub(super) struct App {
    /// Its id.
    id: ID,
    /// Its name, unique within the org.
    name: String,
    /// What it is for.
    role: AppRole,
    /// It is charged for. Builders are not.
    billable: bool,
    /// When it was made.
    created_at: DateTime,
}

impl From<store::App> for App {
    fn from(app: store::App) -> Self {
        Self {
            id: ID(app.id.into()),
            name: app.name,
            role: app.role.into(),
            billable: app.billable,
            created_at: DateTime(app.created_at),
        }
    }
}

/// A token, without its secret.
#[derive(SimpleObject)]
pub(super) struct Token {
    /// Its id.
    id: ID,
    /// What it is for.
    name: String,
    /// What it may do.
    role: TokenRole,
    /// The one app it is good for.
    app: Option<ID>,
    /// When it was made.
    created_at: DateTime,
    /// Not good from then on.
    expires_at: Option<DateTime>,
    /// When it was last used, coarsely.
    last_used_at: Option<DateTime>,
    /// Not good since then.
    revoked_at: Option<DateTime>,
}

impl From<store::Token> for Token {
    fn from(token: store::Token) -> Self {
        Self {
            id: ID(token.id.into()),
            name: token.name,
            role: token.role.into(),
            app: token.app.map(|app| ID(app.into())),
            created_at: DateTime(token.created_at),
            expires_at: token.expires_at.map(DateTime),
            last_used_at: token.last_used_at.map(DateTime),
            revoked_at: token.revoked_at.map(DateTime),
        }
    }
}

/// A new token with its secret, which is told this once.
#[derive(SimpleObject)]
pub(super) struct NewToken {
    /// The secret.
    pub(super) secret: String,
    /// The token.
    pub(super) token: Token,
}

/// A client certificate with its key, which is told this once. All PEM.
#[derive(SimpleObject)]
pub(super) struct ClientCertificate {
    /// The server's certificate authority.
    pub(super) ca: String,
    /// The certificate.
    pub(super) cert: String,
    /// Its key.
    pub(super) key: String,
    /// Not good from then on.
    pub(super) expires_at: DateTime,
}

/// A registry credential, without its password.
#[derive(SimpleObject)]
pub(super) struct RegistryCredential {
    /// Its id.
    id: ID,
    /// Registry host.
    registry: String,
    /// User name.
    username: String,
    /// When it was stored.
    created_at: DateTime,
}

impl From<store::SealedCredential> for RegistryCredential {
    fn from(row: store::SealedCredential) -> Self {
        Self {
            id: ID(row.id.into()),
            registry: row.registry,
            username: row.username,
            created_at: DateTime(row.created_at),
        }
    }
}

/// Where the server is, and what.
#[derive(SimpleObject)]
pub(super) struct Server {
    /// Its version.
    pub(super) version: String,
    /// The API, as `host:port`.
    pub(super) api: String,
    /// The Docker gateway, as `host:port`: `DOCKER_HOST=tcp://...` with TLS.
    pub(super) docker: String,
    /// The BuildKit gateway, as `host:port`: for buildx's `remote` driver, with TLS.
    pub(super) buildkit: String,
}

/// Who asks.
#[derive(SimpleObject)]
pub(super) struct Viewer {
    /// The token of the request.
    pub(super) token: Token,
    /// The org it is good for; absent for the installation's administrator.
    pub(super) org: Option<Org>,
    /// What answers.
    pub(super) server: Server,
}

/// What is in flight inside a builder.
#[derive(SimpleObject)]
pub(super) struct Activity {
    /// Builds of `startBuild`.
    builds: u32,
    /// Pushes.
    pushes: u32,
    /// Containers that run, steps of `docker build` among them.
    containers: u32,
    /// Milliseconds since the last of these ended; 0 while one is in flight.
    idle_ms: Long,
}

/// A builder: one per org, region and architecture.
pub(super) struct Builder {
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
        let host = Access::of(context)?.host(&self.view.host).await?;
        Ok(host.map(|host| host.name))
    }

    /// Id of its cache volume.
    async fn volume(&self) -> ID {
        ID(self.view.volume.to_string())
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
    async fn volume_used_bytes(&self, context: &Context<'_>) -> Option<Long> {
        self.guest(context)
            .await
            .map(|guest| Long(guest.disk.used_bytes))
    }

    /// What is in flight inside; absent while it does not run.
    async fn activity(&self, context: &Context<'_>) -> Option<Activity> {
        let activity = self.guest(context).await?.activity;
        Some(Activity {
            builds: activity.builds,
            pushes: activity.pushes,
            containers: activity.containers,
            idle_ms: Long(activity.idle_ms),
        })
    }

    /// Milliseconds since something was last in flight inside; absent while it does not run.
    async fn idle_ms(&self, context: &Context<'_>) -> Option<Long> {
        self.guest(context)
            .await
            .map(|guest| Long(guest.activity.idle_ms))
    }

    /// Connections through the gateways now.
    async fn connections(&self) -> u32 {
        self.view.in_flight
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

/// A persistent disk.
pub(super) struct Volume(pub(super) store::Volume);

impl Volume {
    fn builder(&self, context: &Context<'_>) -> Result<Option<BuilderView>> {
        let builders = Access::of(context)?.parts.farm.builders(&self.0.org);
        Ok(builders.into_iter().find(|view| view.volume == self.0.id))
    }
}

/// A persistent disk.
#[Object]
impl Volume {
    /// Its id.
    async fn id(&self) -> ID {
        ID(self.0.id.to_string())
    }

    /// What is known of it.
    async fn state(&self) -> VolumeState {
        self.0.state.into()
    }

    /// Region of the host it is on.
    async fn region(&self, context: &Context<'_>) -> Result<Option<String>> {
        let host = Access::of(context)?.host(&self.0.host).await?;
        Ok(host.map(|host| host.region))
    }

    /// Hard cap.
    async fn size_bytes(&self) -> Long {
        Long(self.0.size.0)
    }

    /// Bytes in use; absent while no builder that runs has it.
    async fn used_bytes(&self, context: &Context<'_>) -> Result<Option<Long>> {
        let Some(view) = self.builder(context)? else {
            return Ok(None);
        };
        Ok(Builder::from(view)
            .guest(context)
            .await
            .map(|guest| Long(guest.disk.used_bytes)))
    }

    /// Id of the builder that has it.
    async fn attached_to(&self, context: &Context<'_>) -> Result<Option<ID>> {
        Ok(self
            .builder(context)?
            .map(|view| ID(view.machine.to_string())))
    }

    /// When it was promised.
    async fn created_at(&self) -> DateTime {
        DateTime(self.0.created_at)
    }
}

/// One build of one image.
pub(super) struct Build(pub(super) store::Build);

/// One build of one image.
#[Object]
impl Build {
    /// Its id.
    async fn id(&self) -> ID {
        ID(self.0.id.to_string())
    }

    /// Name of the app it is for.
    async fn app(&self, context: &Context<'_>) -> Result<String> {
        let access = Access::of(context)?;
        Ok(access.parts.store.app(&self.0.org, &self.0.app).await?.name)
    }

    /// Id of the builder it runs on.
    async fn builder(&self) -> ID {
        ID(self.0.machine.to_string())
    }

    /// Name of the image.
    async fn image(&self) -> &str {
        &self.0.spec.image
    }

    /// What it does now.
    async fn state(&self) -> BuildState {
        self.0.state.into()
    }

    /// It is pushed when built.
    async fn push(&self) -> bool {
        self.0.spec.push
    }

    /// When it was asked for.
    async fn created_at(&self) -> DateTime {
        DateTime(self.0.created_at)
    }

    /// When it ended.
    async fn ended_at(&self) -> Option<DateTime> {
        self.0.ended_at.map(DateTime)
    }

    /// Digest of the image's config.
    async fn image_id(&self) -> Option<&str> {
        self.succeeded().map(|done| done.image_id)
    }

    /// Digest of the pushed manifest.
    async fn digest(&self) -> Option<&str> {
        self.succeeded().and_then(|done| done.digest)
    }

    /// Bytes of the image, uncompressed.
    async fn size_bytes(&self) -> Option<Long> {
        self.succeeded().map(|done| Long(done.size_bytes))
    }

    /// Milliseconds spent building.
    async fn build_ms(&self) -> Option<Long> {
        self.succeeded().map(|done| Long(done.build_ms))
    }

    /// Milliseconds spent pushing.
    async fn push_ms(&self) -> Option<Long> {
        self.succeeded().map(|done| Long(done.push_ms))
    }

    /// Why it failed.
    async fn error(&self) -> Option<&str> {
        self.failed().map(|(_, message, _)| message)
    }

    /// What to do about that.
    async fn hint(&self) -> Option<&str> {
        self.failed().and_then(|(_, _, hint)| hint)
    }

    /// Whose fault that is.
    async fn fault(&self) -> Option<FaultView> {
        self.failed().map(|(fault, _, _)| match fault {
            Fault::User => FaultView::User,
            Fault::System => FaultView::System,
        })
    }

    /// Number of its newest event.
    async fn last_seq(&self) -> Long {
        Long(self.0.last_seq)
    }

    /// Its events after a number, in order: steps, output, progress, the end. At most 200; ask on from the last.
    async fn events(
        &self,
        context: &Context<'_>,
        #[graphql(default)] after: u32,
    ) -> Result<Vec<Json<NumberedEvent>>> {
        let access = Access::of(context)?;
        let events = access
            .parts
            .store
            .build_events(&self.0.org, &self.0.id, u64::from(after))
            .await?;
        Ok(events
            .into_iter()
            .take(PAGE_MAX as usize)
            .map(Json)
            .collect())
    }
}

struct Succeeded<'a> {
    image_id: &'a str,
    digest: Option<&'a str>,
    size_bytes: u64,
    build_ms: u64,
    push_ms: u64,
}

impl Build {
    fn succeeded(&self) -> Option<Succeeded<'_>> {
        match self.0.outcome.as_ref()? {
            BuildOutcome::Succeeded {
                image_id,
                digest,
                size_bytes,
                build_ms,
                push_ms,
            } => Some(Succeeded {
                image_id,
                digest: digest.as_deref(),
                size_bytes: *size_bytes,
                build_ms: *build_ms,
                push_ms: *push_ms,
            }),
            BuildOutcome::Failed { .. } | BuildOutcome::Cancelled => None,
        }
    }

    fn failed(&self) -> Option<(Fault, &str, Option<&str>)> {
        match self.0.outcome.as_ref()? {
            BuildOutcome::Failed {
                fault,
                message,
                hint,
            } => Some((*fault, message, hint.as_deref())),
            BuildOutcome::Succeeded { .. } | BuildOutcome::Cancelled => None,
        }
    }
}

impl Access<'_> {
    async fn host(&self, id: &HostId) -> Result<Option<store::Host>> {
        let hosts = self.parts.store.hosts().await?;
        Ok(hosts
            .into_iter()
            .map(|used| used.host)
            .find(|host| host.id == *id))
    }
}

/// A machine's id as an id that was asked for.
///
/// # Errors
/// The caller's: not an id.
pub(super) fn machine_id(id: &ID) -> Result<slipway_core::id::MachineId> {
    parse_id(id)
}

fn millis(duration: Duration) -> Long {
    Long(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX >> 1))
}
