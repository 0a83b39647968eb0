//! Volumes: what is wanted of each, and what its host has said.

use super::codec::{int, time};
use super::pool::{Asks, check_share, promise};
use super::volume_rows::{extension, record_volume, volume_of};
use super::{SqliteStore, unavailable};
use crate::error::{StoreError, What};
use crate::limits::LIST_ROWS_MAX;
use crate::volume::{Move, NewVolume, Volume, VolumePurpose, VolumeState};
use slipway_core::fence::{Decision, Fence};
use slipway_core::host_api::VolumeSource;
use slipway_core::id::{HostId, OrgId, VolumeId};
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use slipway_core::volume::VolumePolicy;
use sqlx::{Sqlite, Transaction};

type Result<T> = std::result::Result<T, StoreError>;

/// One volume of an org, inside of a transaction.
pub(super) async fn volume_in(
    tx: &mut Transaction<'_, Sqlite>,
    org: &OrgId,
    id: &VolumeId,
) -> Result<Volume> {
    let row = sqlx::query("SELECT * FROM volumes WHERE org_id = ? AND id = ?")
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(unavailable("read a volume"))?;
    row.as_ref()
        .map(volume_of)
        .unwrap_or(Err(StoreError::NotFound(What::Volume)))
}

/// Holds what a new volume is to be made from against what there is, so that nothing is promised in vain.
async fn check_source(
    tx: &mut Transaction<'_, Sqlite>,
    org: &OrgId,
    new: &NewVolume,
) -> Result<()> {
    let (statement, id, missing) = match &new.source {
        None => return Ok(()),
        Some(VolumeSource::Volume { volume }) => (
            "SELECT 1 FROM volumes WHERE org_id = ? AND id = ? AND host_id = ? \
             AND state IN ('ready', 'aside') AND size <= ?",
            volume.as_str(),
            What::Volume,
        ),
        Some(VolumeSource::Snapshot { snapshot }) => (
            "SELECT 1 FROM snapshots WHERE org_id = ? AND id = ? AND host_id = ? \
             AND state = 'ready' AND size <= ?",
            snapshot.as_str(),
            What::Snapshot,
        ),
    };
    let found = sqlx::query(statement)
        .bind(org.as_str())
        .bind(id)
        .bind(new.host.as_str())
        .bind(int("volume size", new.size.0)?)
        .fetch_optional(&mut **tx)
        .await
        .map_err(unavailable("read what a volume is made from"))?;
    found.map(drop).ok_or(StoreError::NotFound(missing))
}

impl SqliteStore {
    pub(super) async fn insert_volume(&self, org: &OrgId, new: &NewVolume) -> Result<Volume> {
        let mut tx = self.write().await?;
        check_source(&mut tx, org, new).await?;
        let volume = Volume {
            id: new.id.clone(),
            org: org.clone(),
            host: new.host.clone(),
            fence: Fence::FIRST,
            name: new.name.clone(),
            purpose: VolumePurpose::Data,
            size: new.size,
            made: ByteSize(0),
            encrypted: None,
            state: VolumeState::Planned,
            source: new.source.clone(),
            import: new.import.clone(),
            moving: None,
            policy: new.policy,
            destroy_at: None,
            notice: None,
            created_at: new.at,
        };
        promise(&mut tx, &volume.host, volume.size).await?;
        let asks = (Asks::More, volume.size);
        check_share(&mut tx, self.share.as_ref(), org, &volume.host, asks).await?;
        record_volume(&mut tx, &volume).await?;
        tx.commit().await.map_err(unavailable("commit"))?;
        Ok(volume)
    }

    pub(super) async fn update_volume_made(
        &self,
        org: &OrgId,
        id: &VolumeId,
        made: ByteSize,
        encrypted: Option<bool>,
    ) -> Result<()> {
        self.on_volume(
            sqlx::query(
                "UPDATE volumes SET made_size = ?, encrypted = coalesce(?, encrypted), notice = NULL, \
                 import_until = NULL, import_digest = NULL, \
                 state = CASE state WHEN 'planned' THEN 'ready' ELSE state END \
                 WHERE org_id = ? AND id = ?",
            )
            .bind(int("volume size", made.0)?)
            .bind(encrypted),
            org,
            id,
        )
        .await
    }

    pub(super) async fn grow_volume(
        &self,
        org: &OrgId,
        id: &VolumeId,
        size: ByteSize,
    ) -> Result<Volume> {
        let mut tx = self.write().await?;
        let volume = volume_in(&mut tx, org, id).await?;
        if volume.size == size {
            return Ok(volume);
        }
        let grows = volume.made.0 > 0 && volume.made < volume.size;
        let stays = volume.destroy_at.is_none()
            && volume.import.is_none()
            && volume.moving.is_none()
            && matches!(volume.state, VolumeState::Planned | VolumeState::Ready);
        if grows || !stays || size < volume.size {
            return Err(StoreError::Changed(What::Volume));
        }
        let more = ByteSize(size.0 - volume.size.0);
        promise(&mut tx, &volume.host, more).await?;
        let asks = (Asks::More, more);
        check_share(&mut tx, self.share.as_ref(), org, &volume.host, asks).await?;
        sqlx::query("UPDATE volumes SET size = ? WHERE org_id = ? AND id = ?")
            .bind(int("volume size", size.0)?)
            .bind(org.as_str())
            .bind(id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(unavailable("extend a volume"))?;
        tx.commit().await.map_err(unavailable("commit"))?;
        Ok(Volume { size, ..volume })
    }

    pub(super) async fn shrink_to_made(
        &self,
        org: &OrgId,
        id: &VolumeId,
        size: ByteSize,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE volumes SET size = made_size \
             WHERE org_id = ? AND id = ? AND size = ? AND made_size > 0",
        )
        .bind(org.as_str())
        .bind(id.as_str())
        .bind(int("volume size", size.0)?)
        .execute(&self.writer)
        .await
        .map(drop)
        .map_err(unavailable("undo an extension"))
    }

    pub(super) async fn update_volume_policy(
        &self,
        org: &OrgId,
        id: &VolumeId,
        was: &VolumePolicy,
        policy: &VolumePolicy,
    ) -> Result<Volume> {
        let (percent, by, limit) = extension(policy)?;
        let (percent_was, by_was, limit_was) = extension(was)?;
        let row = sqlx::query(
            "UPDATE volumes SET snapshot_retention_days = ?, scheduled_snapshots = ?, \
             extend_percent = ?, extend_by = ?, extend_limit = ? \
             WHERE org_id = ? AND id = ? AND snapshot_retention_days = ? AND scheduled_snapshots = ? \
             AND extend_percent IS ? AND extend_by IS ? AND extend_limit IS ? RETURNING *",
        )
        .bind(i64::from(policy.snapshot_retention_days))
        .bind(policy.scheduled_snapshots)
        .bind(percent)
        .bind(by)
        .bind(limit)
        .bind(org.as_str())
        .bind(id.as_str())
        .bind(i64::from(was.snapshot_retention_days))
        .bind(was.scheduled_snapshots)
        .bind(percent_was)
        .bind(by_was)
        .bind(limit_was)
        .fetch_optional(&self.writer)
        .await
        .map_err(unavailable("change a volume"))?;
        match row.as_ref() {
            Some(row) => volume_of(row),
            None => {
                self.select_volume(org, id).await?;
                Err(StoreError::Changed(What::Volume))
            }
        }
    }

    pub(super) async fn update_volume_notice(
        &self,
        org: &OrgId,
        id: &VolumeId,
        notice: Option<&str>,
    ) -> Result<()> {
        let statement = sqlx::query("UPDATE volumes SET notice = ? WHERE org_id = ? AND id = ?");
        self.on_volume(statement.bind(notice), org, id).await
    }

    pub(super) async fn update_destroy_at(
        &self,
        org: &OrgId,
        id: &VolumeId,
        at: Option<Timestamp>,
    ) -> Result<Volume> {
        let mut tx = self.write().await?;
        let volume = volume_in(&mut tx, org, id).await?;
        if volume.state == VolumeState::Deleting {
            return Err(StoreError::Changed(What::Volume));
        }
        let moves = volume.moving.as_ref().is_some_and(Move::is_under_way);
        if at.is_some() && (moves || is_attached(&mut tx, org, id).await?) {
            return Err(StoreError::InUse(What::Volume));
        }
        let destroy_at = at.map(time).transpose()?;
        sqlx::query("UPDATE volumes SET destroy_at = ? WHERE org_id = ? AND id = ?")
            .bind(destroy_at)
            .bind(org.as_str())
            .bind(id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(unavailable("record when a volume is to go"))?;
        tx.commit().await.map_err(unavailable("commit"))?;
        Ok(Volume {
            destroy_at: at,
            ..volume
        })
    }

    pub(super) async fn start_due_volume_deletion(
        &self,
        org: &OrgId,
        id: &VolumeId,
        now: Timestamp,
    ) -> Result<()> {
        let mut tx = self.write().await?;
        let volume = volume_in(&mut tx, org, id).await?;
        if volume.state == VolumeState::Deleting {
            return Ok(());
        }
        let import = volume.import.as_ref().map(|import| import.until);
        let over = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        if !over(volume.destroy_at) && !over(import) {
            return Err(StoreError::Changed(What::Volume));
        }
        let awaited = sqlx::query(
            "SELECT 1 FROM volumes WHERE org_id = ? AND from_volume = ? AND state = 'planned' \
             AND destroy_at IS NULL",
        )
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(unavailable("read who needs a volume"))?;
        if awaited.is_some() || volume.moving.is_some() || is_attached(&mut tx, org, id).await? {
            return Err(StoreError::InUse(What::Volume));
        }
        sqlx::query("UPDATE volumes SET state = ?, fence = fence + ? WHERE org_id = ? AND id = ?")
            .bind(VolumeState::Deleting.as_str())
            .bind(raise(Decision::Delete)?)
            .bind(org.as_str())
            .bind(id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(unavailable("start the deletion of a volume"))?;
        tx.commit().await.map_err(unavailable("commit"))
    }

    pub(super) async fn update_import_until(
        &self,
        org: &OrgId,
        id: &VolumeId,
        until: Timestamp,
    ) -> Result<Volume> {
        let row = sqlx::query(
            "UPDATE volumes SET import_until = ? WHERE org_id = ? AND id = ? AND state = 'planned' \
             AND import_until IS NOT NULL AND destroy_at IS NULL RETURNING *",
        )
        .bind(time(until)?)
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_optional(&self.writer)
        .await
        .map_err(unavailable("record that a volume is sent"))?;
        match row {
            Some(row) => volume_of(&row),
            None => {
                self.select_volume(org, id).await?;
                Err(StoreError::Changed(What::Volume))
            }
        }
    }

    pub(super) async fn select_volume(&self, org: &OrgId, id: &VolumeId) -> Result<Volume> {
        let row = sqlx::query("SELECT * FROM volumes WHERE org_id = ? AND id = ?")
            .bind(org.as_str())
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("read a volume"))?;
        row.as_ref()
            .map(volume_of)
            .unwrap_or(Err(StoreError::NotFound(What::Volume)))
    }

    pub(super) async fn select_volumes(&self, org: &OrgId) -> Result<Vec<Volume>> {
        let rows =
            sqlx::query("SELECT * FROM volumes WHERE org_id = ? ORDER BY created_at, id LIMIT ?")
                .bind(org.as_str())
                .bind(i64::from(LIST_ROWS_MAX))
                .fetch_all(&self.readers)
                .await
                .map_err(unavailable("list volumes"))?;
        rows.iter().map(volume_of).collect()
    }

    pub(super) async fn select_volumes_on(&self, host: &HostId) -> Result<Vec<Volume>> {
        let rows = sqlx::query("SELECT * FROM volumes WHERE host_id = ? ORDER BY created_at, id")
            .bind(host.as_str())
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable("list volumes"))?;
        rows.iter().map(volume_of).collect()
    }

    pub(super) async fn update_volume_state(
        &self,
        org: &OrgId,
        id: &VolumeId,
        state: VolumeState,
    ) -> Result<Volume> {
        let raised_by = match state {
            VolumeState::Planned => raise(Decision::Empty)?,
            VolumeState::Deleting => raise(Decision::Delete)?,
            VolumeState::Ready | VolumeState::Aside => 0,
        };
        let row = sqlx::query(
            "UPDATE volumes SET state = ?1, fence = fence + ?2, \
             made_size = CASE ?1 WHEN 'planned' THEN 0 ELSE made_size END, \
             encrypted = CASE ?1 WHEN 'planned' THEN NULL ELSE encrypted END \
             WHERE org_id = ?3 AND id = ?4 RETURNING *",
        )
        .bind(state.as_str())
        .bind(raised_by)
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_optional(&self.writer)
        .await
        .map_err(unavailable("change a volume"))?;
        row.as_ref()
            .map(volume_of)
            .unwrap_or(Err(StoreError::NotFound(What::Volume)))
    }

    /// Runs a statement that ends with the org and the id of a volume, which must be there.
    async fn on_volume<'q>(
        &self,
        statement: sqlx::query::Query<'q, Sqlite, sqlx::sqlite::SqliteArguments<'q>>,
        org: &'q OrgId,
        id: &'q VolumeId,
    ) -> Result<()> {
        let done = statement
            .bind(org.as_str())
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map_err(unavailable("change a volume"))?;
        if done.rows_affected() == 0 {
            Err(StoreError::NotFound(What::Volume))
        } else {
            Ok(())
        }
    }

    pub(super) async fn delete_volume(&self, org: &OrgId, id: &VolumeId) -> Result<()> {
        let mut tx = self.write().await?;
        // Hosts have seen the volume's number, and take no lower one for its snapshots.
        sqlx::query(
            "UPDATE snapshots SET fence = max(fence, (SELECT fence FROM volumes WHERE id = ?2)) \
             WHERE org_id = ?1 AND volume_id = ?2 AND EXISTS (SELECT 1 FROM volumes WHERE org_id = ?1 AND id = ?2)",
        )
        .bind(org.as_str())
        .bind(id.as_str())
        .execute(&mut *tx)
        .await
        .map_err(unavailable("keep a volume's fencing number"))?;
        sqlx::query("DELETE FROM volumes WHERE org_id = ? AND id = ?")
            .bind(org.as_str())
            .bind(id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(|source| match source.as_database_error() {
                Some(e) if e.is_foreign_key_violation() => StoreError::InUse(What::Volume),
                Some(_) | None => StoreError::Unavailable {
                    action: "forget a volume",
                    source,
                },
            })?;
        tx.commit().await.map_err(unavailable("commit"))
    }
}

/// By how much a decision raises a volume's number, for a statement.
pub(super) fn raise(decision: Decision) -> Result<i64> {
    int("fencing number", decision.raises_by())
}

pub(super) async fn is_attached(
    tx: &mut Transaction<'_, Sqlite>,
    org: &OrgId,
    id: &VolumeId,
) -> Result<bool> {
    let machine = sqlx::query("SELECT 1 FROM machines WHERE org_id = ? AND volume_id = ?")
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(unavailable("read who has a volume"))?;
    Ok(machine.is_some())
}
