//! Volumes that move to another host: which copy counts, and what the other one takes of its pool.

use super::codec::int;
use super::pool::{Asks, check_share, promise};
use super::volume_rows::volume_of;
use super::volumes::{is_attached, raise, volume_in};
use super::{SqliteStore, unavailable};
use crate::error::{StoreError, What};
use crate::volume::{Move, NewMove, Volume, VolumePurpose, VolumeState};
use slipway_core::fence::Decision;
use slipway_core::id::{HostId, OrgId, SnapshotId, VolumeId};
use slipway_core::units::ByteSize;
use sqlx::{Sqlite, Transaction};

type Result<T> = std::result::Result<T, StoreError>;

impl SqliteStore {
    pub(super) async fn insert_move(
        &self,
        org: &OrgId,
        id: &VolumeId,
        new: &NewMove,
    ) -> Result<Volume> {
        let mut tx = self.write().await?;
        let volume = volume_in(&mut tx, org, id).await?;
        if let Some(known) = &volume.moving
            && known.is_under_way()
            && known.copy == new.to
        {
            return Ok(volume);
        }
        let settled = volume.state == VolumeState::Ready
            && volume.made == volume.size
            && volume.destroy_at.is_none();
        if !settled || volume.moving.is_some() || volume.host == new.to {
            return Err(StoreError::Changed(What::Volume));
        }
        promise(&mut tx, &new.to, volume.size).await?;
        let asks = match volume.purpose {
            VolumePurpose::Cache => Asks::Cache,
            VolumePurpose::Data => Asks::More,
        };
        let asks = (asks, volume.size);
        check_share(&mut tx, self.share.as_ref(), org, &new.to, asks).await?;
        promise(&mut tx, &volume.host, new.reserve).await?;
        let row = sqlx::query(
            "UPDATE volumes SET copy_host = ?, copy_step = 'sending', copy_snapshot = ?, \
             copy_source = host_id, copy_reserve = ?, notice = NULL, fence = fence + ? \
             WHERE org_id = ? AND id = ? RETURNING *",
        )
        .bind(new.to.as_str())
        .bind(new.snapshot.as_str())
        .bind(int("reserve", new.reserve.0)?)
        .bind(raise(Decision::BeginMove)?)
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(unavailable("begin a move"))?;
        tx.commit().await.map_err(unavailable("commit"))?;
        volume_of(&row)
    }

    pub(super) async fn name_second(
        &self,
        org: &OrgId,
        id: &VolumeId,
        second: &SnapshotId,
        reserve: ByteSize,
    ) -> Result<Volume> {
        let mut tx = self.write().await?;
        let moving = under_way(&mut tx, org, id).await?;
        if moving.second.is_some() {
            return volume_in(&mut tx, org, id).await;
        }
        promise(&mut tx, &moving.source, reserve).await?;
        let row = sqlx::query(
            "UPDATE volumes SET copy_second = ?, copy_reserve = copy_reserve + ? \
             WHERE org_id = ? AND id = ? RETURNING *",
        )
        .bind(second.as_str())
        .bind(int("reserve", reserve.0)?)
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(unavailable("go on with a move"))?;
        tx.commit().await.map_err(unavailable("commit"))?;
        volume_of(&row)
    }

    pub(super) async fn switch_host(&self, org: &OrgId, id: &VolumeId) -> Result<Volume> {
        let mut tx = self.write().await?;
        let moving = under_way(&mut tx, org, id).await?;
        let awaited = sqlx::query(
            "SELECT 1 FROM volumes WHERE org_id = ?1 AND from_volume = ?2 AND state = 'planned' \
             UNION ALL SELECT 1 FROM snapshots WHERE org_id = ?1 AND volume_id = ?2 AND state = 'planned'",
        )
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(unavailable("read who needs a volume"))?;
        let attached = is_attached(&mut tx, org, id).await?;
        // What a machine has may have changed since the first snapshot.
        if awaited.is_some() || (attached && moving.second.is_none()) {
            return Err(StoreError::InUse(What::Volume));
        }
        switch_machine(&mut tx, org, id, &moving.copy).await?;
        // All on the right is as it was before.
        let row = sqlx::query(
            "UPDATE volumes SET host_id = copy_host, copy_host = host_id, copy_step = 'clearing', \
             notice = NULL, fence = fence + ? WHERE org_id = ? AND id = ? RETURNING *",
        )
        .bind(raise(Decision::DecideMove)?)
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(unavailable("switch a volume's host"))?;
        tx.commit().await.map_err(unavailable("commit"))?;
        volume_of(&row)
    }

    pub(super) async fn turn_back(&self, org: &OrgId, id: &VolumeId) -> Result<Volume> {
        let mut tx = self.write().await?;
        under_way(&mut tx, org, id).await?;
        let row = sqlx::query(
            "UPDATE volumes SET copy_step = 'clearing', fence = fence + ? \
             WHERE org_id = ? AND id = ? RETURNING *",
        )
        .bind(raise(Decision::DecideMove)?)
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(unavailable("give a move up"))?;
        tx.commit().await.map_err(unavailable("commit"))?;
        volume_of(&row)
    }

    pub(super) async fn halt(&self, org: &OrgId, id: &VolumeId) -> Result<()> {
        let done = sqlx::query(
            "UPDATE volumes SET copy_step = 'clearing', copy_halted = 1 \
             WHERE org_id = ? AND id = ? AND copy_host IS NOT NULL",
        )
        .bind(org.as_str())
        .bind(id.as_str())
        .execute(&self.writer)
        .await
        .map_err(unavailable("halt a move"))?;
        if done.rows_affected() == 0 {
            return Err(StoreError::Changed(What::Volume));
        }
        Ok(())
    }

    pub(super) async fn choose_host(
        &self,
        org: &OrgId,
        id: &VolumeId,
        host: &HostId,
    ) -> Result<Volume> {
        let mut tx = self.write().await?;
        let volume = volume_in(&mut tx, org, id).await?;
        let decided = volume.moving.filter(|moving| !moving.is_under_way());
        let moving = decided.ok_or(StoreError::Changed(What::Volume))?;
        if *host == moving.copy {
            switch_machine(&mut tx, org, id, host).await?;
        } else if *host != volume.host {
            return Err(StoreError::Changed(What::Volume));
        }
        // All on the right is as it was before.
        let row = sqlx::query(
            "UPDATE volumes SET copy_host = CASE host_id WHEN ?1 THEN copy_host ELSE host_id END, \
             host_id = ?1, copy_halted = 0, notice = NULL, fence = fence + ?2 \
             WHERE org_id = ?3 AND id = ?4 RETURNING *",
        )
        .bind(host.as_str())
        .bind(raise(Decision::DecideMove)?)
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(unavailable("choose a copy"))?;
        tx.commit().await.map_err(unavailable("commit"))?;
        volume_of(&row)
    }

    pub(super) async fn clear_move(&self, org: &OrgId, id: &VolumeId) -> Result<()> {
        sqlx::query(
            "UPDATE volumes SET copy_host = NULL, copy_step = NULL, copy_snapshot = NULL, \
             copy_second = NULL, copy_source = NULL, copy_reserve = 0 \
             WHERE org_id = ? AND id = ? AND copy_step = 'clearing' AND copy_halted = 0",
        )
        .bind(org.as_str())
        .bind(id.as_str())
        .execute(&self.writer)
        .await
        .map(drop)
        .map_err(unavailable("forget a move"))
    }
}

/// The machine that has a volume is where that is, from its next start on.
async fn switch_machine(
    tx: &mut Transaction<'_, Sqlite>,
    org: &OrgId,
    id: &VolumeId,
    host: &HostId,
) -> Result<()> {
    sqlx::query(
        "UPDATE machines SET host_id = ?, generation = generation + 1 \
         WHERE org_id = ? AND volume_id = ?",
    )
    .bind(host.as_str())
    .bind(org.as_str())
    .bind(id.as_str())
    .execute(&mut **tx)
    .await
    .map_err(unavailable("switch a machine's host"))?;
    Ok(())
}

/// The move of a volume that is being moved; refuses anything about others.
async fn under_way(tx: &mut Transaction<'_, Sqlite>, org: &OrgId, id: &VolumeId) -> Result<Move> {
    let volume = volume_in(tx, org, id).await?;
    let moving = volume.moving.filter(Move::is_under_way);
    moving.ok_or(StoreError::Changed(What::Volume))
}
