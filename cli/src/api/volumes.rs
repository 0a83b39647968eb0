//! Volumes and their snapshots, as the API has them.

use super::ApiClient;
use super::requests as ask;
use crate::limits::WAKE_WAIT_MAX;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slipway_terminal::exit::Outcome;

/// A volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Volume {
    /// Id.
    pub(crate) id: String,
    /// Name.
    pub(crate) name: String,
    /// What it is for.
    pub(crate) purpose: String,
    /// What is known of it.
    pub(crate) state: String,
    /// Region.
    pub(crate) region: Option<String>,
    /// Host: volumes with the same one are lost together.
    pub(crate) zone: Option<String>,
    /// Host that it is being moved to.
    pub(crate) moving_to: Option<String>,
    /// Hard cap.
    pub(crate) size_bytes: u64,
    /// Bytes in use; absent if nobody who knows answers.
    pub(crate) used_bytes: Option<u64>,
    /// Whether it is encrypted; absent until its host has said so.
    pub(crate) encrypted: Option<bool>,
    /// Id of the builder that has it.
    pub(crate) attached_to: Option<String>,
    /// Id of what it was made from.
    pub(crate) source: Option<String>,
    /// Checksum of what is sent to it, as long as it is not there.
    pub(crate) import_digest: Option<String>,
    /// What is sent to it is waited for until then.
    pub(crate) import_until: Option<String>,
    /// New snapshots are kept for so many days.
    pub(crate) snapshot_retention_days: u32,
    /// A snapshot is made every day.
    pub(crate) scheduled_snapshots: bool,
    /// It grows by itself from so many percent in use on.
    pub(crate) auto_extend_threshold_percent: Option<u32>,
    /// By so much at a time.
    pub(crate) auto_extend_increment_bytes: Option<u64>,
    /// Up to this size.
    pub(crate) auto_extend_limit_bytes: Option<u64>,
    /// When it is destroyed, unless it is restored.
    pub(crate) destroy_at: Option<String>,
    /// What its owner should know.
    pub(crate) notice: Option<String>,
    /// When it was made.
    pub(crate) created_at: String,
}

/// A snapshot of a volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Snapshot {
    /// Id.
    pub(crate) id: String,
    /// Id of the volume; it may be gone.
    pub(crate) volume: String,
    /// What that is, or was, called.
    pub(crate) volume_name: String,
    /// What is known of it.
    pub(crate) state: String,
    /// The volume's hard cap at that time.
    pub(crate) volume_size_bytes: u64,
    /// What it counts for the pool.
    pub(crate) stored_bytes: u64,
    /// Nobody asked for it but the schedule.
    pub(crate) scheduled: bool,
    /// When it was made.
    pub(crate) created_at: String,
    /// It is not kept from then on.
    pub(crate) expires_at: String,
}

/// A volume to make. What is absent is as the server has it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewVolume<'a> {
    /// Org.
    pub(crate) org: &'a str,
    /// Name.
    pub(crate) name: &'a str,
    /// Region.
    pub(crate) region: Option<&'a str>,
    /// Hard cap.
    pub(crate) size_bytes: Option<u64>,
    /// Id of a snapshot.
    pub(crate) snapshot: Option<&'a str>,
    /// New snapshots are kept for so many days.
    pub(crate) snapshot_retention_days: Option<u32>,
    /// A snapshot is made every day.
    pub(crate) scheduled_snapshots: bool,
    /// It must be encrypted, or must not.
    pub(crate) encrypted: Option<bool>,
    /// Not on a host that has one of this name.
    pub(crate) require_unique_zone: bool,
}

/// A volume whose contents will be sent. What is absent is as the server has it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImportedVolume<'a> {
    /// Org.
    pub(crate) org: &'a str,
    /// Name.
    pub(crate) name: &'a str,
    /// Region.
    pub(crate) region: Option<&'a str>,
    /// Hard cap.
    pub(crate) size_bytes: u64,
    /// Checksum of what will be sent.
    pub(crate) digest: Option<&'a str>,
}

/// A volume to fork.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Fork<'a> {
    /// Id of the source.
    pub(crate) volume: &'a str,
    /// Name.
    pub(crate) name: Option<&'a str>,
    /// Region.
    pub(crate) region: Option<&'a str>,
    /// Hard cap.
    pub(crate) size_bytes: Option<u64>,
}

/// What to change of a volume; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeChange {
    /// New snapshots are kept for so many days.
    pub(crate) snapshot_retention_days: Option<u32>,
    /// A snapshot is made every day.
    pub(crate) scheduled_snapshots: Option<bool>,
    /// It grows by itself from so many percent in use on; 0: not at all.
    pub(crate) auto_extend_threshold_percent: Option<u32>,
    /// By so much at a time.
    pub(crate) auto_extend_increment_bytes: Option<u64>,
    /// Up to this size.
    pub(crate) auto_extend_limit_bytes: Option<u64>,
}

/// Volumes of an org.
pub(crate) async fn volumes(client: &ApiClient, org: &str) -> Outcome<Vec<Volume>> {
    Ok(client.call(ask::VOLUMES, json!({ "org": org })).await?)
}

/// One volume.
pub(crate) async fn volume(client: &ApiClient, id: &str) -> Outcome<Volume> {
    Ok(client.call(ask::VOLUME, json!({ "id": id })).await?)
}

/// Makes a volume. (Hosts may copy for a while, as with all that follows.)
pub(crate) async fn create(client: &ApiClient, new: &NewVolume<'_>) -> Outcome<Volume> {
    let input = json!({ "input": new });
    Ok(client
        .call_within(ask::CREATE_VOLUME, input, WAKE_WAIT_MAX)
        .await?)
}

/// Makes a volume that waits for its contents.
pub(crate) async fn import(client: &ApiClient, new: &ImportedVolume<'_>) -> Outcome<Volume> {
    let input = json!({ "input": new });
    Ok(client
        .call_within(ask::IMPORT_VOLUME, input, WAKE_WAIT_MAX)
        .await?)
}

/// Forks a volume.
pub(crate) async fn fork(client: &ApiClient, fork: &Fork<'_>) -> Outcome<Volume> {
    let input = json!({ "input": fork });
    Ok(client
        .call_within(ask::FORK_VOLUME, input, WAKE_WAIT_MAX)
        .await?)
}

/// Changes what is wanted of a volume.
pub(crate) async fn update(client: &ApiClient, id: &str, change: &VolumeChange) -> Outcome<Volume> {
    let input = super::queries::with(json!({ "id": id }), change);
    Ok(client.call(ask::UPDATE_VOLUME, input).await?)
}

/// Makes a volume larger.
pub(crate) async fn extend(client: &ApiClient, id: &str, size_bytes: u64) -> Outcome<Volume> {
    let variables = json!({ "id": id, "sizeBytes": size_bytes });
    Ok(client
        .call_within(ask::EXTEND_VOLUME, variables, WAKE_WAIT_MAX)
        .await?)
}

/// Begins to move a volume to a host or to a region.
pub(crate) async fn relocate(
    client: &ApiClient,
    id: &str,
    zone: Option<&str>,
    region: Option<&str>,
) -> Outcome<Volume> {
    let variables = json!({ "id": id, "zone": zone, "region": region });
    Ok(client.call(ask::MOVE_VOLUME, variables).await?)
}

/// Says which copy of a volume is kept, of a move that is halted.
pub(crate) async fn keep_copy(
    client: &ApiClient,
    id: &str,
    zone: &str,
    forget_other: bool,
) -> Outcome<Volume> {
    let variables = json!({ "id": id, "zone": zone, "forgetOther": forget_other });
    Ok(client
        .call_within(ask::KEEP_VOLUME_COPY, variables, WAKE_WAIT_MAX)
        .await?)
}

/// Gives the move of a volume up.
pub(crate) async fn cancel_move(client: &ApiClient, id: &str) -> Outcome<Volume> {
    let variables = json!({ "id": id });
    Ok(client
        .call_within(ask::CANCEL_VOLUME_MOVE, variables, WAKE_WAIT_MAX)
        .await?)
}

/// Destroys a volume, later or now.
pub(crate) async fn destroy(client: &ApiClient, id: &str, now: bool) -> Outcome<Volume> {
    let variables = json!({ "id": id, "now": now });
    Ok(client
        .call_within(ask::DESTROY_VOLUME, variables, WAKE_WAIT_MAX)
        .await?)
}

/// Keeps a volume that is to be destroyed.
pub(crate) async fn restore(client: &ApiClient, id: &str) -> Outcome<Volume> {
    let variables = json!({ "id": id });
    Ok(client
        .call_within(ask::RESTORE_VOLUME, variables, WAKE_WAIT_MAX)
        .await?)
}

/// Snapshots of a volume.
pub(crate) async fn snapshots(client: &ApiClient, volume: &str) -> Outcome<Vec<Snapshot>> {
    Ok(client
        .call(ask::SNAPSHOTS, json!({ "volume": volume }))
        .await?)
}

/// Makes a snapshot.
pub(crate) async fn create_snapshot(client: &ApiClient, volume: &str) -> Outcome<Snapshot> {
    let variables = json!({ "volume": volume });
    Ok(client
        .call_within(ask::CREATE_SNAPSHOT, variables, WAKE_WAIT_MAX)
        .await?)
}

/// Deletes a snapshot.
pub(crate) async fn delete_snapshot(client: &ApiClient, id: &str) -> Outcome<()> {
    let variables = json!({ "id": id });
    let _: Value = client
        .call_within(ask::DELETE_SNAPSHOT, variables, WAKE_WAIT_MAX)
        .await?;
    Ok(())
}
