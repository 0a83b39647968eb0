//! Between rows of volumes and their records.

use super::codec::{Reader, int, on_insert, time};
use crate::error::{StoreError, What};
use crate::volume::{Import, Move, Volume};
use slipway_core::fence::Fence;
use slipway_core::host_api::VolumeSource;
use slipway_core::units::ByteSize;
use slipway_core::volume::{AutoExtend, MoveStep, VolumePolicy};
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, Transaction};

type Result<T> = std::result::Result<T, StoreError>;

pub(super) fn volume_of(row: &SqliteRow) -> Result<Volume> {
    let row = Reader(row);
    let volume = row.parse_opt("from_volume")?;
    let snapshot = row.parse_opt("from_snapshot")?;
    let auto_extend = match (
        row.u64_opt("extend_percent")?,
        row.u64_opt("extend_by")?,
        row.u64_opt("extend_limit")?,
    ) {
        (Some(percent), Some(by), Some(limit)) => Some(AutoExtend {
            threshold_percent: u32::try_from(percent).unwrap_or(u32::MAX),
            increment: ByteSize(by),
            limit: ByteSize(limit),
        }),
        (None | Some(_), None | Some(_), None | Some(_)) => None,
    };
    let digest = row.text_opt("import_digest")?;
    let import = row.time_opt("import_until")?;
    Ok(Volume {
        id: row.parse("id")?,
        org: row.parse("org_id")?,
        host: row.parse("host_id")?,
        fence: Fence(row.u64("fence")?),
        name: row.text("name")?,
        purpose: row.parse("purpose")?,
        size: row.size("size")?,
        made: row.size("made_size")?,
        encrypted: row.flag_opt("encrypted")?,
        state: row.parse("state")?,
        source: match (volume, snapshot) {
            (Some(volume), _) => Some(VolumeSource::Volume { volume }),
            (None, Some(snapshot)) => Some(VolumeSource::Snapshot { snapshot }),
            (None, None) => None,
        },
        import: import.map(|until| Import { until, digest }),
        moving: move_of(&row)?,
        policy: VolumePolicy {
            snapshot_retention_days: row.u32("snapshot_retention_days")?,
            scheduled_snapshots: row.flag("scheduled_snapshots")?,
            auto_extend,
        },
        destroy_at: row.time_opt("destroy_at")?,
        notice: row.text_opt("notice")?,
        created_at: row.time("created_at")?,
    })
}

fn move_of(row: &Reader<'_>) -> Result<Option<Move>> {
    let Some(copy) = row.parse_opt("copy_host")? else {
        return Ok(None);
    };
    let second = row.parse_opt("copy_second")?;
    // The table takes two words alone. (What is taken for the other destroys nothing.)
    let step = match row.text("copy_step")?.as_str() {
        "clearing" if row.flag("copy_halted")? => MoveStep::Halted,
        "clearing" => MoveStep::Clearing,
        _ if second.is_some() => MoveStep::CatchingUp,
        _ => MoveStep::Sending,
    };
    Ok(Some(Move {
        step,
        copy,
        snapshot: row.parse("copy_snapshot")?,
        second,
        source: row.parse("copy_source")?,
        reserve: row.size("copy_reserve")?,
    }))
}

/// Records a volume. Its size has been promised.
pub(super) async fn record_volume(tx: &mut Transaction<'_, Sqlite>, volume: &Volume) -> Result<()> {
    let (from_volume, from_snapshot) = match &volume.source {
        Some(VolumeSource::Volume { volume }) => (Some(volume.as_str()), None),
        Some(VolumeSource::Snapshot { snapshot }) => (None, Some(snapshot.as_str())),
        None => (None, None),
    };
    let policy = &volume.policy;
    let (percent, by, limit) = extension(policy)?;
    let import = volume.import.as_ref();
    let import_until = import.map(|import| time(import.until)).transpose()?;
    sqlx::query(
        "INSERT INTO volumes (id, org_id, host_id, fence, name, purpose, size, made_size, state, \
         from_volume, from_snapshot, import_until, import_digest, snapshot_retention_days, scheduled_snapshots, \
         extend_percent, extend_by, extend_limit, created_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(volume.id.as_str())
    .bind(volume.org.as_str())
    .bind(volume.host.as_str())
    .bind(int("fencing number", volume.fence.0)?)
    .bind(&volume.name)
    .bind(volume.purpose.as_str())
    .bind(int("volume size", volume.size.0)?)
    .bind(int("volume size", volume.made.0)?)
    .bind(volume.state.as_str())
    .bind(from_volume)
    .bind(from_snapshot)
    .bind(import_until)
    .bind(import.and_then(|import| import.digest.as_deref()))
    .bind(i64::from(policy.snapshot_retention_days))
    .bind(policy.scheduled_snapshots)
    .bind(percent)
    .bind(by)
    .bind(limit)
    .bind(time(volume.created_at)?)
    .execute(&mut **tx)
    .await
    .map_err(on_insert(What::Volume, What::Org, "record a volume"))?;
    Ok(())
}

/// Threshold, increment and limit.
type Columns = (Option<i64>, Option<i64>, Option<i64>);

pub(super) fn extension(policy: &VolumePolicy) -> Result<Columns> {
    let Some(auto) = &policy.auto_extend else {
        return Ok((None, None, None));
    };
    Ok((
        Some(i64::from(auto.threshold_percent)),
        Some(int("increment", auto.increment.0)?),
        Some(int("limit", auto.limit.0)?),
    ))
}
