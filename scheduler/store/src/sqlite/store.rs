//! The verbs of the store, each handed to the file that has its statements.

use super::SqliteStore;
use crate::error::StoreError;
use crate::model::{
    App, Build, BuildFilter, Ensured, Host, HostUse, Machine, MachineRecord, NewBuild, NewBuilder,
    Org, OrgChange, Owned, SealedCredential, SecretHash, Token, TokenPage,
};
use crate::verbs::{Store, SystemStore};
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

#[async_trait]
impl Store for SqliteStore {
    async fn create_org(&self, org: &Org) -> Result<()> {
        self.insert_org(org).await
    }

    async fn org(&self, org: &OrgId) -> Result<Org> {
        self.select_org(org).await
    }

    async fn org_by_slug(&self, slug: &str) -> Result<Org> {
        self.select_org_by_slug(slug).await
    }

    async fn update_org(&self, org: &OrgId, change: &OrgChange) -> Result<Org> {
        self.change_org(org, change).await
    }

    async fn create_app(&self, app: &App) -> Result<()> {
        self.insert_app(app).await
    }

    async fn app(&self, org: &OrgId, app: &AppId) -> Result<App> {
        self.select_app(org, app).await
    }

    async fn app_by_name(&self, org: &OrgId, name: &str) -> Result<App> {
        self.select_app_by_name(org, name).await
    }

    async fn apps(&self, org: &OrgId) -> Result<Vec<App>> {
        self.select_apps(org).await
    }

    async fn delete_app(&self, org: &OrgId, app: &AppId) -> Result<()> {
        self.remove_app(org, app).await
    }

    async fn create_token(&self, token: &Token, hash: &SecretHash) -> Result<()> {
        self.insert_token(token, hash).await
    }

    async fn tokens(&self, org: Option<&OrgId>, page: &TokenPage) -> Result<Vec<Token>> {
        self.select_tokens(org, page).await
    }

    async fn revoke_token(
        &self,
        org: Option<&OrgId>,
        token: &TokenId,
        at: Timestamp,
    ) -> Result<()> {
        self.mark_token_revoked(org, token, at).await
    }

    async fn ensure_builder(&self, org: &OrgId, new: &NewBuilder) -> Result<Ensured> {
        self.ensure_builder_row(org, new).await
    }

    async fn builder(&self, org: &OrgId, region: &str, arch: &str) -> Result<Option<Machine>> {
        self.select_builder(org, region, arch).await
    }

    async fn machine(&self, org: &OrgId, machine: &MachineId) -> Result<Machine> {
        self.select_machine(org, machine).await
    }

    async fn builders(&self, org: &OrgId) -> Result<Vec<Machine>> {
        self.select_builders(org).await
    }

    async fn record_machine(
        &self,
        org: &OrgId,
        machine: &MachineId,
        record: &MachineRecord,
    ) -> Result<()> {
        self.update_machine(org, machine, record).await
    }

    async fn replace_volume(
        &self,
        org: &OrgId,
        machine: &MachineId,
        old: &VolumeId,
        old_state: VolumeState,
        new: &VolumeId,
        at: Timestamp,
    ) -> Result<Volume> {
        self.swap_volume(org, machine, (old, old_state), new, at)
            .await
    }

    async fn volume(&self, org: &OrgId, volume: &VolumeId) -> Result<Volume> {
        self.select_volume(org, volume).await
    }

    async fn volumes(&self, org: &OrgId) -> Result<Vec<Volume>> {
        self.select_volumes(org).await
    }

    async fn set_volume_state(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        state: VolumeState,
    ) -> Result<Volume> {
        self.update_volume_state(org, volume, state).await
    }

    async fn forget_volume(&self, org: &OrgId, volume: &VolumeId) -> Result<()> {
        self.delete_volume(org, volume).await
    }

    async fn create_volume(&self, org: &OrgId, new: &NewVolume) -> Result<Volume> {
        self.insert_volume(org, new).await
    }

    async fn record_volume_made(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        made: ByteSize,
        encrypted: Option<bool>,
    ) -> Result<()> {
        self.update_volume_made(org, volume, made, encrypted).await
    }

    async fn extend_volume(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        size: ByteSize,
    ) -> Result<Volume> {
        self.grow_volume(org, volume, size).await
    }

    async fn keep_import(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        until: Timestamp,
    ) -> Result<Volume> {
        self.update_import_until(org, volume, until).await
    }

    async fn begin_move(&self, org: &OrgId, volume: &VolumeId, new: &NewMove) -> Result<Volume> {
        self.insert_move(org, volume, new).await
    }

    async fn catch_up_move(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        second: &SnapshotId,
        reserve: ByteSize,
    ) -> Result<Volume> {
        self.name_second(org, volume, second, reserve).await
    }

    async fn finish_move(&self, org: &OrgId, volume: &VolumeId) -> Result<Volume> {
        self.switch_host(org, volume).await
    }

    async fn give_up_move(&self, org: &OrgId, volume: &VolumeId) -> Result<Volume> {
        self.turn_back(org, volume).await
    }

    async fn halt_move(&self, org: &OrgId, volume: &VolumeId) -> Result<()> {
        self.halt(org, volume).await
    }

    async fn choose_copy(&self, org: &OrgId, volume: &VolumeId, host: &HostId) -> Result<Volume> {
        self.choose_host(org, volume, host).await
    }

    async fn forget_move(&self, org: &OrgId, volume: &VolumeId) -> Result<()> {
        self.clear_move(org, volume).await
    }

    async fn undo_extension(&self, org: &OrgId, volume: &VolumeId, size: ByteSize) -> Result<()> {
        self.shrink_to_made(org, volume, size).await
    }

    async fn set_volume_policy(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        was: &VolumePolicy,
        policy: &VolumePolicy,
    ) -> Result<Volume> {
        self.update_volume_policy(org, volume, was, policy).await
    }

    async fn set_volume_notice(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        notice: Option<&str>,
    ) -> Result<()> {
        self.update_volume_notice(org, volume, notice).await
    }

    async fn schedule_destruction(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        at: Option<Timestamp>,
    ) -> Result<Volume> {
        self.update_destroy_at(org, volume, at).await
    }

    async fn start_volume_deletion(
        &self,
        org: &OrgId,
        volume: &VolumeId,
        now: Timestamp,
    ) -> Result<()> {
        self.start_due_volume_deletion(org, volume, now).await
    }

    async fn create_snapshot(&self, org: &OrgId, new: &NewSnapshot) -> Result<Snapshot> {
        self.insert_snapshot(org, new).await
    }

    async fn snapshot(&self, org: &OrgId, snapshot: &SnapshotId) -> Result<Snapshot> {
        self.select_snapshot(org, snapshot).await
    }

    async fn snapshots(&self, org: &OrgId, volume: &VolumeId) -> Result<Vec<Snapshot>> {
        self.select_snapshots(org, volume).await
    }

    async fn record_snapshot_made(
        &self,
        org: &OrgId,
        snapshot: &SnapshotId,
        stored: ByteSize,
        encrypted: bool,
    ) -> Result<Snapshot> {
        self.update_snapshot_made(org, snapshot, stored, encrypted)
            .await
    }

    async fn start_snapshot_deletion(&self, org: &OrgId, snapshot: &SnapshotId) -> Result<()> {
        self.start_free_snapshot_deletion(org, snapshot).await
    }

    async fn forget_snapshot(&self, org: &OrgId, snapshot: &SnapshotId) -> Result<()> {
        self.remove_snapshot(org, snapshot).await
    }

    async fn create_build(&self, org: &OrgId, build: &NewBuild) -> Result<Build> {
        self.insert_build(org, build).await
    }

    async fn build(&self, org: &OrgId, build: &BuildId) -> Result<Build> {
        self.select_build(org, build).await
    }

    async fn builds(&self, org: &OrgId, filter: &BuildFilter) -> Result<Vec<Build>> {
        self.select_builds(org, filter).await
    }

    async fn mark_build_running(&self, org: &OrgId, build: &BuildId) -> Result<()> {
        self.set_build_running(org, build).await
    }

    async fn append_build_events(
        &self,
        org: &OrgId,
        build: &BuildId,
        events: &[NumberedEvent],
    ) -> Result<u64> {
        self.insert_events(org, build, events).await
    }

    async fn build_events(
        &self,
        org: &OrgId,
        build: &BuildId,
        after: u64,
        max: u32,
    ) -> Result<Vec<NumberedEvent>> {
        self.select_events(org, build, after, max).await
    }

    async fn finish_build(
        &self,
        org: &OrgId,
        build: &BuildId,
        outcome: &BuildOutcome,
        at: Timestamp,
    ) -> Result<Build> {
        self.end_build(org, build, outcome, at).await
    }

    async fn put_credential(&self, credential: &SealedCredential) -> Result<()> {
        self.upsert_credential(credential).await
    }

    async fn credentials(&self, org: &OrgId) -> Result<Vec<SealedCredential>> {
        self.select_credentials(org).await
    }

    async fn credential_for(
        &self,
        org: &OrgId,
        registry: &str,
    ) -> Result<Option<SealedCredential>> {
        self.select_credential_for(org, registry).await
    }

    async fn delete_credential(&self, org: &OrgId, credential: &CredentialId) -> Result<()> {
        self.remove_credential(org, credential).await
    }
}

#[async_trait]
impl SystemStore for SqliteStore {
    async fn all_orgs(&self) -> Result<Vec<Org>> {
        self.select_all_orgs().await
    }

    async fn owner(&self, of: Owned<'_>) -> Result<Option<OrgId>> {
        self.select_owner(of).await
    }

    async fn token_by_hash(&self, hash: &SecretHash) -> Result<Option<Token>> {
        self.select_token_by_hash(hash).await
    }

    async fn token(&self, token: &TokenId) -> Result<Option<Token>> {
        self.select_token(token).await
    }

    async fn tokens_by_id(&self, tokens: &[TokenId]) -> Result<Vec<Token>> {
        self.select_tokens_by_id(tokens).await
    }

    async fn touch_token(&self, token: &TokenId, at: Timestamp) -> Result<()> {
        self.mark_token_used(token, at).await
    }

    async fn put_host(&self, host: &Host) -> Result<Host> {
        self.upsert_host(host).await
    }

    async fn rename_host(&self, host: &HostId, name: &str) -> Result<()> {
        self.rename_host_row(host, name).await
    }

    async fn hosts(&self) -> Result<Vec<HostUse>> {
        self.select_hosts().await
    }

    async fn all_machines(&self) -> Result<Vec<Machine>> {
        self.select_all_machines().await
    }

    async fn volumes_on(&self, host: &HostId) -> Result<Vec<Volume>> {
        self.select_volumes_on(host).await
    }

    async fn snapshots_on(&self, host: &HostId) -> Result<Vec<Snapshot>> {
        self.select_snapshots_on(host).await
    }

    async fn delete_old_builds(
        &self,
        org: &OrgId,
        keep: u32,
        before: Timestamp,
        max: u32,
    ) -> Result<u32> {
        self.delete_old_build_rows(org, keep, before, max).await
    }

    async fn build_event_bytes(&self, org: &OrgId) -> Result<ByteSize> {
        self.sum_event_bytes(org).await
    }

    async fn unfinished_builds(&self) -> Result<Vec<Build>> {
        self.select_unfinished_builds().await
    }

    async fn meta(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.select_meta(key).await
    }

    async fn put_meta_if_absent(&self, key: &str, value: &[u8]) -> Result<Vec<u8>> {
        self.insert_meta_if_absent(key, value).await
    }

    async fn meta_under(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
        self.select_meta_under(prefix).await
    }

    async fn replace_meta(&self, key: &str, old: &[u8], new: &[u8]) -> Result<bool> {
        self.update_meta(key, old, new).await
    }

    async fn forget_meta(&self, key: &str) -> Result<()> {
        self.delete_meta(key).await
    }
}
