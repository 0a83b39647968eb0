//! What may be asked of a store.
//!
//! Unless a verb says otherwise, its errors are [`StoreError::NotFound`] for a row that this org does not have,
//! [`StoreError::Unavailable`] when the database does not answer, and [`StoreError::Corrupt`] for a row of another
//! version.

use crate::error::StoreError;
use crate::model::{
    App, Build, BuildFilter, Ensured, Host, HostUse, Machine, MachineRecord, NewBuild, NewBuilder,
    Org, OrgChange, Owned, SealedCredential, SecretHash, Token, TokenPage,
};
use crate::volume::{NewMove, NewSnapshot, NewVolume, Snapshot, Volume, VolumeState};
use async_trait::async_trait;
use slipway_core::build::{BuildOutcome, NumberedEvent};
use slipway_core::id::{
    AppId, BuildId, CredentialId, HostId, MachineId, OrgId, SnapshotId, TokenId, VolumeId,
};
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use slipway_core::volume::VolumePolicy;

type Result<T> = std::result::Result<T, StoreError>;

/// The verbs that act for one tenant, or for the installation's own administration.
#[async_trait]
pub trait Store: SystemStore {
    /// Records an org. Fails with [`StoreError::Exists`] if the slug is taken.
    async fn create_org(&self, org: &Org) -> Result<()>;
    /// One org.
    async fn org(&self, org: &OrgId) -> Result<Org>;
    /// One org by its slug.
    async fn org_by_slug(&self, slug: &str) -> Result<Org>;
    /// Changes an org; gives it as it is then.
    async fn update_org(&self, org: &OrgId, change: &OrgChange) -> Result<Org>;

    /// Records an app. Fails with [`StoreError::Exists`] if the org has one of that name (or, for the role builder, one
    /// of that role), with [`StoreError::Quota`] if it has too many.
    async fn create_app(&self, app: &App) -> Result<()>;
    /// One app.
    async fn app(&self, org: &OrgId, app: &AppId) -> Result<App>;
    /// One app by its name.
    async fn app_by_name(&self, org: &OrgId, name: &str) -> Result<App>;
    /// All apps of an org, by name.
    async fn apps(&self, org: &OrgId) -> Result<Vec<App>>;
    /// Removes an app that has no builds and no machines; [`StoreError::InUse`] otherwise.
    async fn delete_app(&self, org: &OrgId, app: &AppId) -> Result<()>;

    /// Records a token and the hash of its secret. [`StoreError::Quota`] if the org has too many that are good; of those that
    /// are not, the oldest are forgotten.
    async fn create_token(&self, token: &Token, hash: &SecretHash) -> Result<()>;
    /// Tokens of one org (`None`: of the administrator), newest first, revoked ones included.
    async fn tokens(&self, org: Option<&OrgId>, page: &TokenPage) -> Result<Vec<Token>>;
    /// Revokes a token of this org (`None`: of the administrator); revoked already is fine.
    async fn revoke_token(&self, org: Option<&OrgId>, token: &TokenId, at: Timestamp)
    -> Result<()>;

    /// The builder of this region and architecture; makes it with its volume, its app and the pool's accounting in one
    /// transaction if there is none. Its intent is `Wanted` afterwards, in either case.
    ///
    /// Fails with [`StoreError::PoolFull`] if the host's pool cannot promise the volume. For this and every other verb that
    /// promises a volume or a snapshot: [`StoreError::Quota`] if the org may not have so much of the pool.
    async fn ensure_builder(&self, org: &OrgId, new: &NewBuilder) -> Result<Ensured>;
    /// One builder, if the org has it.
    async fn builder(&self, org: &OrgId, region: &str, arch: &str) -> Result<Option<Machine>>;
    /// One machine.
    async fn machine(&self, org: &OrgId, machine: &MachineId) -> Result<Machine>;
    /// All builders of an org.
    async fn builders(&self, org: &OrgId) -> Result<Vec<Machine>>;
    /// Records what a machine does. [`StoreError::Changed`] if the row has a newer generation, or a later record.
    async fn record_machine(
        &self,
        org: &OrgId,
        machine: &MachineId,
        record: &MachineRecord,
    ) -> Result<()>;
    /// Gives the machine a new, empty volume `new` of the same size on the same host, in one transaction; the old one
    /// becomes `old_state`. [`StoreError::Changed`] if `old` is not the machine's volume any more,
    /// [`StoreError::PoolFull`] if the pool cannot hold both.
    async fn replace_volume(
        &self,
        org: &OrgId,
        machine: &MachineId,
        old: &VolumeId,
        old_state: VolumeState,
        new: &VolumeId,
        at: Timestamp,
    ) -> Result<Volume>;
    /// One volume.
    async fn volume(&self, org: &OrgId, volume: &VolumeId) -> Result<Volume>;
    /// All volumes of an org, oldest first.
    async fn volumes(&self, org: &OrgId) -> Result<Vec<Volume>>;
    /// Promises a volume of the org's own. What it is made from must be the org's, on the same host, made, no larger, and not
    /// about to go: [`StoreError::NotFound`] otherwise. [`StoreError::PoolFull`] if the host's pool cannot promise it.
    async fn create_volume(&self, org: &OrgId, new: &NewVolume) -> Result<Volume>;
    /// The host has made the volume with this hard cap, or has made it larger. What its owner was told is over.
    async fn record_volume_made(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        made: ByteSize,
        encrypted: Option<bool>,
    ) -> Result<()>;
    /// Waits for the contents that are sent to a volume until then; gives the volume. [`StoreError::Changed`] if none are:
    /// they are there, or it is to go.
    async fn keep_import(&self, org: &OrgId, volume: &VolumeId, until: Timestamp)
    -> Result<Volume>;
    /// Promises a volume more; the host may be behind. Gives the volume as it is then. The size that it has is fine, a
    /// smaller one is [`StoreError::Changed`], and so is one that is about to go, or that still grows to another size.
    /// [`StoreError::PoolFull`] if the pool cannot promise the difference.
    async fn extend_volume(&self, org: &OrgId, volume: &VolumeId, size: ByteSize)
    -> Result<Volume>;
    /// Takes a promise back that the host refused: the volume is as large as it was made. Without effect if it is not to
    /// grow to `size` any more.
    async fn undo_extension(&self, org: &OrgId, volume: &VolumeId, size: ByteSize) -> Result<()>;
    /// Records what its owner wants of a volume instead of `was`; gives the volume as it is then. [`StoreError::Changed`] if
    /// something else was wanted meanwhile.
    async fn set_volume_policy(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        was: &VolumePolicy,
        policy: &VolumePolicy,
    ) -> Result<Volume>;
    /// Begins to move a volume that is made and not to go: promises its size on the other host and the snapshot's reserve on its
    /// own. Gives the volume. A move to there that is under way is fine. [`StoreError::Changed`] if it is not like that,
    /// [`StoreError::PoolFull`].
    async fn begin_move(&self, org: &OrgId, volume: &VolumeId, new: &NewMove) -> Result<Volume>;
    /// From now on nobody may use the volume before the move has ended: what has changed is sent from this second snapshot, whose
    /// reserve is promised. Gives the volume; one that has a second snapshot keeps it. [`StoreError::Changed`] if it is not being
    /// moved, [`StoreError::PoolFull`].
    async fn catch_up_move(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        second: &SnapshotId,
        reserve: ByteSize,
    ) -> Result<Volume>;
    /// The copy on the other host is whole: the volume is there from now on, with the machine that has it, whose generation
    /// grows; and the old copy is to be destroyed. [`StoreError::Changed`] if it is not being moved, [`StoreError::InUse`]
    /// while a snapshot of it or another volume is still to be made where it was, or if a machine has it and there is no second
    /// snapshot.
    async fn finish_move(&self, org: &OrgId, volume: &VolumeId) -> Result<Volume>;
    /// Gives a move up: the volume stays where it is, and the new copy is to be destroyed. Gives the volume.
    /// [`StoreError::Changed`] if it is not being moved (any more).
    async fn give_up_move(&self, org: &OrgId, volume: &VolumeId) -> Result<Volume>;
    /// Nothing is done about a move any more until [`Self::choose_copy`]: the host that the record names does not have the volume, and
    /// the other copy may be the only one. [`StoreError::Changed`] if there is no move.
    async fn halt_move(&self, org: &OrgId, volume: &VolumeId) -> Result<()>;
    /// Says which of the two copies is the volume, of a move that is halted or whose end is decided: the one on this host, with the
    /// machine that has it; and the other copy is to be destroyed. Gives the volume. [`StoreError::Changed`] if there is no such
    /// move, or no copy on that host.
    async fn choose_copy(&self, org: &OrgId, volume: &VolumeId, host: &HostId) -> Result<Volume>;
    /// What a move has left is cleared away, which gives its part of the pools back. Without effect if there is nothing of it.
    async fn forget_move(&self, org: &OrgId, volume: &VolumeId) -> Result<()>;
    /// Records something that a volume's owner should know, or that there is nothing.
    async fn set_volume_notice(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        notice: Option<&str>,
    ) -> Result<()>;
    /// Has a volume go from then on, or (absent) not at all; gives it as it is then. [`StoreError::InUse`] if a machine has
    /// it or it is being moved, [`StoreError::Changed`] if there is no way back any more.
    async fn schedule_destruction(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        at: Option<Timestamp>,
    ) -> Result<Volume>;
    /// Starts the deletion of a volume whose time is over at `now`, or whose contents are not waited for any longer: from then on there is
    /// no way back. [`StoreError::InUse`] if a machine has it or another volume is still to be made from it,
    /// [`StoreError::Changed`] if its time is not over.
    async fn start_volume_deletion(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        now: Timestamp,
    ) -> Result<()>;

    /// Promises a snapshot of a volume that is made. [`StoreError::PoolFull`] if the pool has no room for its reserve.
    async fn create_snapshot(&self, org: &OrgId, new: &NewSnapshot) -> Result<Snapshot>;
    /// One snapshot.
    async fn snapshot(&self, org: &OrgId, snapshot: &SnapshotId) -> Result<Snapshot>;
    /// The snapshots of one volume, which may be gone, oldest first.
    async fn snapshots(&self, org: &OrgId, volume: &VolumeId) -> Result<Vec<Snapshot>>;
    /// The host has made the snapshot, and it takes so much. One that is ready or being deleted stays as it is.
    /// [`StoreError::PoolFull`] if that is more than the pool can promise.
    async fn record_snapshot_made(
        &self,
        org: &OrgId,
        snapshot: &SnapshotId,
        stored: ByteSize,
        encrypted: bool,
    ) -> Result<Snapshot>;
    /// Starts the deletion of a snapshot: from then on there is no way back. [`StoreError::InUse`] if a volume is still to be made from it.
    async fn start_snapshot_deletion(&self, org: &OrgId, snapshot: &SnapshotId) -> Result<()>;
    /// Forgets a snapshot, which gives what it takes back to the pool. Call it after the host has deleted it. Absent is fine.
    async fn forget_snapshot(&self, org: &OrgId, snapshot: &SnapshotId) -> Result<()>;

    /// Records what is known of a volume; gives it as it is then. One that is planned is not made, whatever it was, and may be made
    /// encrypted or not.
    async fn set_volume_state(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        state: VolumeState,
    ) -> Result<Volume>;
    /// Forgets a volume that no machine has, which gives its size back to the pool. Call it after the host has
    /// destroyed it. [`StoreError::InUse`] if a machine has it; absent is fine.
    async fn forget_volume(&self, org: &OrgId, volume: &VolumeId) -> Result<()>;

    /// Records a build. App and machine must be of the same org: [`StoreError::NotFound`] otherwise.
    /// [`StoreError::Quota`] if too many of the org's or the machine's have not ended.
    async fn create_build(&self, org: &OrgId, build: &NewBuild) -> Result<Build>;
    /// One build.
    async fn build(&self, org: &OrgId, build: &BuildId) -> Result<Build>;
    /// Builds of an org, newest first.
    async fn builds(&self, org: &OrgId, filter: &BuildFilter) -> Result<Vec<Build>>;
    /// The builder has accepted the build. An ended one stays as it is.
    async fn mark_build_running(&self, org: &OrgId, build: &BuildId) -> Result<()>;
    /// Records events. Those with a number that is recorded already are skipped, so the same batch may come twice.
    /// Gives the newest number recorded.
    async fn append_build_events(
        &self,
        org: &OrgId,
        build: &BuildId,
        events: &[NumberedEvent],
    ) -> Result<u64>;
    /// Events after number `after`, in order: at most `max` and [`crate::limits::EVENTS_READ_MAX`], and none after
    /// [`crate::limits::EVENTS_READ_BYTES_MAX`]. There is one if there is any.
    async fn build_events(
        &self,
        org: &OrgId,
        build: &BuildId,
        after: u64,
        max: u32,
    ) -> Result<Vec<NumberedEvent>>;
    /// Records how a build ended; the first ending counts. Gives the build as it is then.
    async fn finish_build(
        &self,
        org: &OrgId,
        build: &BuildId,
        outcome: &BuildOutcome,
        at: Timestamp,
    ) -> Result<Build>;

    /// Records a registry credential; replaces the org's one for the same registry. [`StoreError::Quota`] if the org has too
    /// many.
    async fn put_credential(&self, credential: &SealedCredential) -> Result<()>;
    /// The org's credentials, by registry.
    async fn credentials(&self, org: &OrgId) -> Result<Vec<SealedCredential>>;
    /// The org's credential for a registry, if there is one.
    async fn credential_for(&self, org: &OrgId, registry: &str)
    -> Result<Option<SealedCredential>>;
    /// Removes a credential.
    async fn delete_credential(&self, org: &OrgId, credential: &CredentialId) -> Result<()>;
}

/// The verbs that see all tenants: for reconcilers, authentication and administration. Nothing that these return may
/// reach a tenant unfiltered.
#[async_trait]
pub trait SystemStore: Send + Sync + std::fmt::Debug {
    /// All orgs, by slug.
    async fn all_orgs(&self) -> Result<Vec<Org>>;
    /// Whose something is; `None` if there is no such thing.
    async fn owner(&self, of: Owned<'_>) -> Result<Option<OrgId>>;
    /// The token with this secret, if there is one; revoked and expired ones too.
    async fn token_by_hash(&self, hash: &SecretHash) -> Result<Option<Token>>;
    /// One token by its id, if there is one; revoked and expired ones too.
    async fn token(&self, token: &TokenId) -> Result<Option<Token>>;
    /// Those of these tokens that there are, in any order; revoked and expired ones too.
    async fn tokens_by_id(&self, tokens: &[TokenId]) -> Result<Vec<Token>>;
    /// Notes that a token was used. Absent is fine.
    async fn touch_token(&self, token: &TokenId, at: Timestamp) -> Result<()>;
    /// Records a host by its name, or changes the one of that name, which keeps its id, and its pool if none is given. Gives the
    /// host. [`crate::StoreError::Exists`] if another has that pool.
    async fn put_host(&self, host: &Host) -> Result<Host>;
    /// Gives a host another name. If there is a host of that name, the two are one: it gets all that the first has, moves between
    /// the two are forgotten, and the first goes.
    async fn rename_host(&self, host: &HostId, name: &str) -> Result<()>;
    /// All hosts and what is promised of each, by name.
    async fn hosts(&self) -> Result<Vec<HostUse>>;
    /// All machines.
    async fn all_machines(&self) -> Result<Vec<Machine>>;
    /// All volumes of a host, oldest first.
    async fn volumes_on(&self, host: &HostId) -> Result<Vec<Volume>>;
    /// All snapshots of a host, oldest first.
    async fn snapshots_on(&self, host: &HostId) -> Result<Vec<Snapshot>>;
    /// Deletes the oldest ended builds of an org, with their events: those older than its newest `keep`, and those that
    /// ended before `before`. At most `max`, each in a transaction of its own. Gives how many; fewer than `max` means that
    /// no more are to be deleted.
    async fn delete_old_builds(
        &self,
        org: &OrgId,
        keep: u32,
        before: Timestamp,
        max: u32,
    ) -> Result<u32>;
    /// What the events of all builds of an org take.
    async fn build_event_bytes(&self, org: &OrgId) -> Result<ByteSize>;
    /// All builds that have not ended, oldest first.
    async fn unfinished_builds(&self) -> Result<Vec<Build>>;
    /// A value of the installation's own (certificate authority, sealing key's check).
    async fn meta(&self, key: &str) -> Result<Option<Vec<u8>>>;
    /// Records a value if the key has none yet; gives the one that is recorded then.
    async fn put_meta_if_absent(&self, key: &str, value: &[u8]) -> Result<Vec<u8>>;
    /// All values whose key begins with `prefix`, by key.
    async fn meta_under(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>>;
    /// Replaces a value if it is still `old`; gives whether it was.
    async fn replace_meta(&self, key: &str, old: &[u8], new: &[u8]) -> Result<bool>;
    /// Forgets a value; absent is fine.
    async fn forget_meta(&self, key: &str) -> Result<()>;
}
