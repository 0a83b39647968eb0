//! What the API shows: plain objects, converted from the domain's own, never derived on them.

use super::Services;
use crate::farm::{BuilderKey, BuilderView};
use async_graphql::{ComplexObject, Context, Enum, ID, SimpleObject};
use slipway_core::build::BuildOutcome;
use slipway_core::guest_api::GuestStatus;
use slipway_core::machine::MachineState;
use slipway_core::time::Timestamp;
use slipway_store as store;
use std::time::{Duration, UNIX_EPOCH};

/// Longest the API waits for a builder's own word on its disk and activity.
const GUEST_WORD_WAIT: Duration = Duration::from_millis(500);

/// RFC 3339, in UTC.
pub(super) fn time(at: Timestamp) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(at.0)).to_string()
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A tenant.
#[derive(Debug, SimpleObject)]
pub(super) struct Org {
    id: ID,
    /// Unique name.
    slug: String,
    /// Name for people.
    name: String,
    /// A builder ends after this long without activity, in milliseconds.
    idle_ms: u64,
    default_region: String,
    default_arch: String,
    /// Processors of a builder, in thousandths.
    cpu_millis: u32,
    /// Memory of a builder.
    memory_bytes: u64,
    /// Size of a builder's cache volume.
    volume_bytes: u64,
}

impl From<store::Org> for Org {
    fn from(org: store::Org) -> Self {
        Self {
            id: org.id.as_str().into(),
            slug: org.slug,
            name: org.name,
            idle_ms: millis(org.idle),
            default_region: org.default_region,
            default_arch: org.default_arch,
            cpu_millis: org.builder_size.cpu_millis,
            memory_bytes: org.builder_size.memory.0,
            volume_bytes: org.builder_size.volume.0,
        }
    }
}

/// What an app is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
pub(super) enum AppRole {
    /// The user's own.
    User,
    /// Holds the org's builders; not billable.
    Builder,
}

/// An application of an org.
#[derive(Debug, SimpleObject)]
pub(super) struct App {
    id: ID,
    /// Unique within its org.
    name: String,
    role: AppRole,
    /// False for the app that holds the builders.
    billable: bool,
    created_at: String,
}

impl From<store::App> for App {
    fn from(app: store::App) -> Self {
        Self {
            id: app.id.as_str().into(),
            name: app.name,
            role: match app.role {
                store::AppRole::User => AppRole::User,
                store::AppRole::Builder => AppRole::Builder,
            },
            billable: app.billable,
            created_at: time(app.created_at),
        }
    }
}

/// What a token may do; each may do all that those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
pub(super) enum TokenRole {
    /// Look.
    Read,
    /// Build and push.
    Deploy,
    /// Manage the org.
    Admin,
}

impl From<TokenRole> for store::TokenRole {
    fn from(role: TokenRole) -> Self {
        match role {
            TokenRole::Read => Self::Read,
            TokenRole::Deploy => Self::Deploy,
            TokenRole::Admin => Self::Admin,
        }
    }
}

/// An API token, without its secret.
#[derive(Debug, SimpleObject)]
pub(super) struct Token {
    id: ID,
    /// What it is for.
    name: String,
    role: TokenRole,
    created_at: String,
    expires_at: Option<String>,
    last_used_at: Option<String>,
    revoked_at: Option<String>,
}

impl From<store::Token> for Token {
    fn from(token: store::Token) -> Self {
        Self {
            id: token.id.as_str().into(),
            name: token.name,
            role: match token.role {
                store::TokenRole::Read => TokenRole::Read,
                store::TokenRole::Deploy => TokenRole::Deploy,
                store::TokenRole::Admin => TokenRole::Admin,
            },
            created_at: time(token.created_at),
            expires_at: token.expires_at.map(time),
            last_used_at: token.last_used_at.map(time),
            revoked_at: token.revoked_at.map(time),
        }
    }
}

/// A token with its secret, which is told only once.
#[derive(Debug, SimpleObject)]
pub(super) struct NewToken {
    pub(super) secret: String,
    pub(super) token: Token,
}

/// What a builder does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
pub(super) enum BuilderState {
    /// It does not run, and starts when somebody builds.
    Stopped,
    /// Its machine is being made.
    Starting,
    /// Its machine runs, dockerd does not answer yet.
    Booting,
    /// It can build.
    Running,
    /// It was asked to end.
    Ending,
    /// It ended badly, and is started again when wanted.
    Crashed,
}

impl From<MachineState> for BuilderState {
    fn from(state: MachineState) -> Self {
        match state {
            MachineState::Stopped => Self::Stopped,
            MachineState::Starting { .. } => Self::Starting,
            MachineState::Booting { .. } => Self::Booting,
            MachineState::Running { .. } => Self::Running,
            MachineState::Ending { .. } => Self::Ending,
            MachineState::Crashed { .. } => Self::Crashed,
        }
    }
}

/// A builder: a machine of the org's builder app, with a cache volume.
#[derive(Debug, SimpleObject)]
#[graphql(complex)]
pub(super) struct Builder {
    id: ID,
    region: String,
    arch: String,
    state: BuilderState,
    /// Id of the host it is placed on.
    host: ID,
    /// Id of its cache volume.
    volume: ID,
    cpu_millis: u32,
    memory_bytes: u64,
    volume_bytes: u64,
    /// Connections through the gateways now.
    connections: u32,
    /// Why it last failed.
    last_error: Option<String>,
    /// What its owner should know, such as a cache that was replaced.
    notice: Option<String>,
    #[graphql(skip)]
    key: BuilderKey,
}

#[ComplexObject]
impl Builder {
    /// Bytes in use on the cache volume; absent while it does not run.
    async fn volume_used_bytes(&self, context: &Context<'_>) -> Option<u64> {
        guest_word(context, &self.key).await.map(|status| status.disk.used_bytes)
    }

    /// For how long nothing was in flight inside, in milliseconds; absent while it does not run.
    async fn idle_ms(&self, context: &Context<'_>) -> Option<u64> {
        guest_word(context, &self.key).await.map(|status| status.activity.idle_ms)
    }
}

async fn guest_word(context: &Context<'_>, key: &BuilderKey) -> Option<GuestStatus> {
    let services = context.data::<Services>().ok()?;
    let asked = async {
        let mut guest = services.farm.guest_if_running(key).await.ok()?;
        guest.status(Duration::ZERO).await.ok()
    };
    tokio::time::timeout(GUEST_WORD_WAIT, asked).await.ok()?
}

impl From<BuilderView> for Builder {
    fn from(builder: BuilderView) -> Self {
        Self {
            id: builder.machine.as_str().into(),
            region: builder.key.region.clone(),
            arch: builder.key.arch.clone(),
            state: builder.state.into(),
            host: builder.host.as_str().into(),
            volume: builder.volume.as_str().into(),
            cpu_millis: builder.size.cpu_millis,
            memory_bytes: builder.size.memory.0,
            volume_bytes: builder.size.volume.0,
            connections: builder.in_flight,
            last_error: builder.last_error,
            notice: builder.notice,
            key: builder.key,
        }
    }
}

/// What a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
pub(super) enum VolumeState {
    /// Promised, not made yet.
    Planned,
    /// In use by its builder.
    Ready,
    /// Replaced by an empty one because the builder did not start with it.
    Aside,
    /// Being destroyed.
    Condemned,
}

/// A persistent disk.
#[derive(Debug, SimpleObject)]
pub(super) struct Volume {
    pub(super) id: ID,
    pub(super) state: VolumeState,
    pub(super) region: String,
    /// Hard cap.
    pub(super) size_bytes: u64,
    /// Bytes taken on the host's disk; absent if the host does not answer.
    pub(super) used_bytes: Option<u64>,
    /// Id of the builder that has it.
    pub(super) attached_to: Option<ID>,
    pub(super) created_at: String,
}

impl From<store::VolumeState> for VolumeState {
    fn from(state: store::VolumeState) -> Self {
        match state {
            store::VolumeState::Planned => Self::Planned,
            store::VolumeState::Ready => Self::Ready,
            store::VolumeState::Aside => Self::Aside,
            store::VolumeState::Condemned => Self::Condemned,
        }
    }
}

/// What a build does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
pub(super) enum BuildState {
    Pending,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

/// One build of one image.
#[derive(Debug, SimpleObject)]
pub(super) struct Build {
    id: ID,
    /// Name of the app.
    app: String,
    image: String,
    push: bool,
    state: BuildState,
    created_at: String,
    ended_at: Option<String>,
    /// Digest of the pushed manifest.
    digest: Option<String>,
    /// Sum of the image's layers, uncompressed.
    size_bytes: Option<u64>,
    build_ms: Option<u64>,
    push_ms: Option<u64>,
    /// Why it failed.
    error: Option<String>,
    /// What to do about that.
    hint: Option<String>,
}

impl Build {
    /// With the name of its app, which the record has only by id.
    pub(super) fn new(build: store::Build, app: String) -> Self {
        let mut shown = Self {
            id: build.id.as_str().into(),
            app,
            image: build.spec.image,
            push: build.spec.push,
            state: match build.state {
                store::BuildState::Pending => BuildState::Pending,
                store::BuildState::Running => BuildState::Running,
                store::BuildState::Succeeded => BuildState::Succeeded,
                store::BuildState::Failed => BuildState::Failed,
                store::BuildState::Cancelled => BuildState::Cancelled,
            },
            created_at: time(build.created_at),
            ended_at: build.ended_at.map(time),
            digest: None,
            size_bytes: None,
            build_ms: None,
            push_ms: None,
            error: None,
            hint: None,
        };
        match build.outcome {
            Some(BuildOutcome::Succeeded { digest, size_bytes, build_ms, push_ms, .. }) => {
                shown.digest = digest;
                shown.size_bytes = Some(size_bytes);
                shown.build_ms = Some(build_ms);
                shown.push_ms = Some(push_ms);
            }
            Some(BuildOutcome::Failed { message, hint, .. }) => {
                shown.error = Some(message);
                shown.hint = hint;
            }
            Some(BuildOutcome::Cancelled) | None => {}
        }
        shown
    }
}

/// A stored registry credential, without its password.
#[derive(Debug, SimpleObject)]
pub(super) struct RegistryCredential {
    id: ID,
    registry: String,
    username: String,
    created_at: String,
}

impl From<store::SealedCredential> for RegistryCredential {
    fn from(credential: store::SealedCredential) -> Self {
        Self {
            id: credential.id.as_str().into(),
            registry: credential.registry,
            username: credential.username,
            created_at: time(credential.created_at),
        }
    }
}

/// A client certificate with its key, which is told only once.
#[derive(Debug, SimpleObject)]
pub(super) struct ClientCertificate {
    /// Authority, PEM.
    pub(super) ca: String,
    /// Certificate, PEM.
    pub(super) cert: String,
    /// Key, PEM.
    pub(super) key: String,
}

/// What answers.
#[derive(Debug, SimpleObject)]
pub(super) struct Server {
    pub(super) version: String,
    /// Address of the Docker gateway.
    pub(super) docker: String,
    /// Address of the BuildKit gateway.
    pub(super) buildkit: String,
}

/// Who asks.
#[derive(Debug, SimpleObject)]
pub(super) struct Viewer {
    pub(super) token: Token,
    /// The org the token is good for; absent for the installation's administrator.
    pub(super) org: Option<Org>,
    pub(super) server: Server,
}
