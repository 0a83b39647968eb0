//! The records of the store, as plain data.

use slipway_core::build::{BuildOutcome, BuildSource, BuildSpec};
use slipway_core::generation::Generation;
use slipway_core::id::{
    AppId, BuildId, CredentialId, HostId, MachineId, OrgId, SnapshotId, TokenId, VolumeId,
};
use slipway_core::isolation::Isolation;
use slipway_core::machine::MachineState;
use slipway_core::quota::{BuildRetention, BuilderSize};
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use std::path::PathBuf;
use std::time::Duration;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Org {
    /// Its id.
    pub id: OrgId,
    /// Its name in URLs and on the command line; unique.
    pub slug: String,
    /// Its name for people.
    pub name: String,
    /// A builder ends itself after this long without work.
    pub idle: Duration,
    /// How its ended builds are kept.
    pub retention: BuildRetention,
    /// Region of builders when a request names none.
    pub default_region: String,
    /// Architecture of builders when a request names none.
    pub default_arch: String,
    /// How its builders must be walled off.
    pub isolation: Isolation,
    /// What each new builder gets.
    pub builder_size: BuilderSize,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What may be changed of an org; `None` leaves it, so that two changes of different things both take effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OrgChange {
    /// New name for people.
    pub name: Option<String>,
    /// New idle time.
    pub idle: Option<Duration>,
    /// So many ended builds are kept.
    pub builds_kept: Option<u32>,
    /// An ended build is kept for so long.
    pub builds_age: Option<Duration>,
    /// New default region.
    pub default_region: Option<String>,
    /// New default architecture.
    pub default_arch: Option<String>,
    /// New demand on the wall around builders.
    pub isolation: Option<Isolation>,
    /// New processor limit of builders.
    pub cpu_millis: Option<u32>,
    /// New memory limit of builders.
    pub memory: Option<ByteSize>,
    /// New size of caches; builders that exist keep theirs.
    pub volume: Option<ByteSize>,
}

/// What an app is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppRole {
    /// The user's own.
    User,
    /// It holds the org's builders. There is at most one per org; not billable.
    Builder,
}

/// An application of an org.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// Its id.
    pub id: AppId,
    /// Whose it is.
    pub org: OrgId,
    /// Its name, unique within the org.
    pub name: String,
    /// What it is for.
    pub role: AppRole,
    /// It is charged for.
    pub billable: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What a token may do, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TokenRole {
    /// Look.
    Read,
    /// Build, push, and use the builder.
    Deploy,
    /// All of it.
    Admin,
}

/// A token as recorded; its secret is only known as a SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its public half.
    pub id: TokenId,
    /// The org it is good for; absent for the installation's administrator.
    pub org: Option<OrgId>,
    /// The one app it is good for; absent for all of the org.
    pub app: Option<AppId>,
    /// Its name for people.
    pub name: String,
    /// What it may do.
    pub role: TokenRole,
    /// When it was made.
    pub created_at: Timestamp,
    /// Not good from then on.
    pub expires_at: Option<Timestamp>,
    /// Not good since then.
    pub revoked_at: Option<Timestamp>,
    /// When it was last used, coarsely.
    pub last_used_at: Option<Timestamp>,
}

/// SHA-256 of a token's secret. `Debug` does not print it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SecretHash(pub [u8; 32]);

impl std::fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

/// A computer that runs machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Its name in the settings; unique.
    pub name: String,
    /// Label of its region.
    pub region: String,
    /// `amd64` or `arm64`.
    pub arch: String,
    /// Where its API listens.
    pub socket: PathBuf,
    /// Id of its pool, if it has said; no two hosts have the same.
    pub pool: Option<String>,
    /// What its pool can hold.
    pub pool_capacity: ByteSize,
    /// Memory it may give out.
    pub memory: ByteSize,
    /// Processor thousandths it may give out.
    pub cpu_millis: u32,
}

/// A host and what is promised of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostUse {
    /// The host.
    pub host: Host,
    /// Sum of the sizes of its volumes.
    pub pool_promised: ByteSize,
    /// Sum of the memory of its machines that are wanted.
    pub memory_promised: ByteSize,
}

/// Whether somebody wants a machine to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// It shall run.
    Wanted,
    /// It shall not, until somebody wants it again.
    Stopped,
}

/// A builder: one per org, region and architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its id.
    pub id: MachineId,
    /// Whose it is.
    pub org: OrgId,
    /// The builder app it belongs to.
    pub app: AppId,
    /// Label of its region.
    pub region: String,
    /// Its architecture.
    pub arch: String,
    /// Where it is placed.
    pub host: HostId,
    /// The volume it has.
    pub volume: VolumeId,
    /// What it gets. `volume` is the size of the volume it has.
    pub size: BuilderSize,
    /// Counts the records of what it does.
    pub revision: u64,
    /// The newest generation ever asked for.
    pub generation: Generation,
    /// Whether it shall run.
    pub intent: Intent,
    /// What it did when last recorded.
    pub state: MachineState,
    /// Failed starts in a row.
    pub failed_starts: u32,
    /// Its volume was replaced, and no start has succeeded since.
    pub volume_replaced: bool,
    /// Why it last failed.
    pub last_error: Option<String>,
    /// Something its owner should know (the cache was replaced).
    pub notice: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last recorded.
    pub updated_at: Timestamp,
}

/// A builder to make if there is none. The ids are used only if it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBuilder {
    /// Label of the region.
    pub region: String,
    /// Architecture.
    pub arch: String,
    /// Where to place it.
    pub host: HostId,
    /// What it gets.
    pub size: BuilderSize,
    /// Id for the builder app, if the org has none.
    pub app: AppId,
    /// Id for the machine.
    pub machine: MachineId,
    /// Id for the volume.
    pub volume: VolumeId,
    /// Now.
    pub at: Timestamp,
}

/// What became of a [`NewBuilder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ensured {
    /// It was made.
    Created(Machine),
    /// It was there already.
    Existing(Machine),
}

/// What a reconciler records about a machine. Refused if the row has a newer generation than `generation`, or a record that was taken
/// after this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineRecord {
    /// Grows with each record that is taken of a machine.
    pub revision: u64,
    /// The newest generation asked for; may go up, never down.
    pub generation: Generation,
    /// Whether it shall run; absent: as the row says, since whoever takes this record has not changed it.
    pub intent: Option<Intent>,
    /// What it does.
    pub state: MachineState,
    /// Failed starts in a row.
    pub failed_starts: u32,
    /// Its volume was replaced, and no start has succeeded since.
    pub volume_replaced: bool,
    /// Why it last failed.
    pub last_error: Option<String>,
    /// Something its owner should know.
    pub notice: Option<String>,
    /// Processor limit of this generation, in thousandths.
    pub cpu_millis: u32,
    /// Memory limit of this generation.
    pub memory: ByteSize,
    /// Now.
    pub at: Timestamp,
}

/// What a build is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildState {
    /// Recorded; the builder has not accepted it yet.
    Pending,
    /// The builder has accepted it.
    Running,
    /// Built, and pushed if that was asked.
    Succeeded,
    /// Not.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

/// One build.
#[derive(Debug, Clone, PartialEq)]
pub struct Build {
    /// Its id.
    pub id: BuildId,
    /// Whose it is.
    pub org: OrgId,
    /// The app it is for.
    pub app: AppId,
    /// The builder it runs on.
    pub machine: MachineId,
    /// What it is doing.
    pub state: BuildState,
    /// What was asked. No secrets in it.
    pub spec: BuildSpec,
    /// By which way it came.
    pub source: BuildSource,
    /// Name of the token that asked for it, as it was then; absent where it is not known.
    pub asked_by: Option<String>,
    /// How it ended.
    pub outcome: Option<BuildOutcome>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Number of the newest event recorded.
    pub last_seq: u64,
    /// Bytes of events recorded, as JSON.
    pub event_bytes: u64,
}

/// A build to record.
#[derive(Debug, Clone, PartialEq)]
pub struct NewBuild {
    /// Its id.
    pub id: BuildId,
    /// The app it is for; of the same org.
    pub app: AppId,
    /// The builder it runs on; of the same org.
    pub machine: MachineId,
    /// What was asked.
    pub spec: BuildSpec,
    /// By which way it came.
    pub source: BuildSource,
    /// Name of the token that asks for it, where it is known.
    pub asked_by: Option<String>,
    /// Now.
    pub at: Timestamp,
}

/// Which builds to list, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildFilter {
    /// Only of this app.
    pub app: Option<AppId>,
    /// Only those asked for before this one (paging).
    pub before: Option<BuildId>,
    /// At most so many; at most [`crate::limits::LIST_ROWS_MAX`].
    pub limit: u32,
}

/// Which tokens to list, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPage {
    /// Only those made before this one (paging).
    pub before: Option<TokenId>,
    /// At most so many; at most [`crate::limits::LIST_ROWS_MAX`].
    pub limit: u32,
}

/// Something whose owner is looked for by its id, or name, alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owned<'a> {
    /// A build.
    Build(&'a BuildId),
    /// A volume.
    Volume(&'a VolumeId),
    /// A snapshot.
    Snapshot(&'a SnapshotId),
    /// The snapshots of a volume, which may be gone.
    SnapshotsOf(&'a VolumeId),
    /// An app, by its name; of several orgs that have one, the first by slug.
    App(&'a str),
}

/// A registry credential, sealed. Who has the key is none of the store's business.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedCredential {
    /// Its id.
    pub id: CredentialId,
    /// Whose it is.
    pub org: OrgId,
    /// Registry host, with port if any; unique within the org.
    pub registry: String,
    /// User name.
    pub username: String,
    /// The sealed password.
    pub sealed: Vec<u8>,
    /// When it was recorded.
    pub created_at: Timestamp,
}

impl std::fmt::Debug for SealedCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedCredential")
            .field("id", &self.id)
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}
