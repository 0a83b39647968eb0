//! Snapshots of volumes.

use super::codec::{Reader, int, on_insert, time};
use super::pool::{Asks, check_share, promise};
use super::volumes::{raise, volume_in};
use super::{SqliteStore, unavailable};
use crate::error::{StoreError, What};
use crate::limits::LIST_ROWS_MAX;
use crate::volume::{NewSnapshot, Snapshot, SnapshotState, VolumeState};
use slipway_core::fence::{Decision, Fence};
use slipway_core::id::{HostId, OrgId, SnapshotId, VolumeId};
use slipway_core::units::ByteSize;
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, Transaction};

type Result<T> = std::result::Result<T, StoreError>;

fn snapshot_of(row: &SqliteRow) -> Result<Snapshot> {
    let row = Reader(row);
    Ok(Snapshot {
        id: row.parse("id")?,
        org: row.parse("org_id")?,
        host: row.parse("host_id")?,
        volume: row.parse("volume_id")?,
        fence: Fence(row.u64("fence")?),
        volume_name: row.text("volume_name")?,
        size: row.size("size")?,
        stored: row.size("stored")?,
        state: row.parse("state")?,
        scheduled: row.flag("scheduled")?,
        encrypted: row.flag("encrypted")?,
        created_at: row.time("created_at")?,
        expires_at: row.time("expires_at")?,
    })
}

async fn snapshot_in(
    tx: &mut Transaction<'_, Sqlite>,
    org: &OrgId,
    id: &SnapshotId,
) -> Result<Snapshot> {
    let row = sqlx::query("SELECT * FROM snapshots WHERE org_id = ? AND id = ?")
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(unavailable("read a snapshot"))?;
    row.as_ref()
        .map(snapshot_of)
        .unwrap_or(Err(StoreError::NotFound(What::Snapshot)))
}

impl SqliteStore {
    pub(super) async fn insert_snapshot(&self, org: &OrgId, new: &NewSnapshot) -> Result<Snapshot> {
        let mut tx = self.write().await?;
        let volume = volume_in(&mut tx, org, &new.volume).await?;
        if !matches!(volume.state, VolumeState::Ready | VolumeState::Aside) {
            return Err(StoreError::Changed(What::Volume));
        }
        let snapshot = Snapshot {
            id: new.id.clone(),
            org: org.clone(),
            host: volume.host,
            volume: volume.id,
            fence: Fence::FIRST,
            volume_name: volume.name,
            size: volume.made.max(ByteSize(1)),
            stored: new.reserve,
            state: SnapshotState::Planned,
            scheduled: new.scheduled,
            encrypted: volume.encrypted.unwrap_or_default(),
            created_at: new.at,
            expires_at: new.expires_at,
        };
        promise(&mut tx, &snapshot.host, snapshot.stored).await?;
        let asks = (Asks::More, snapshot.stored);
        check_share(&mut tx, self.share.as_ref(), org, &snapshot.host, asks).await?;
        sqlx::query(
            "INSERT INTO snapshots (id, org_id, host_id, volume_id, volume_name, size, stored, \
             state, scheduled, encrypted, created_at, expires_at) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(snapshot.id.as_str())
        .bind(org.as_str())
        .bind(snapshot.host.as_str())
        .bind(snapshot.volume.as_str())
        .bind(&snapshot.volume_name)
        .bind(int("volume size", snapshot.size.0)?)
        .bind(int("snapshot size", snapshot.stored.0)?)
        .bind(snapshot.state.as_str())
        .bind(snapshot.scheduled)
        .bind(snapshot.encrypted)
        .bind(time(snapshot.created_at)?)
        .bind(time(snapshot.expires_at)?)
        .execute(&mut *tx)
        .await
        .map_err(on_insert(What::Snapshot, What::Org, "record a snapshot"))?;
        tx.commit().await.map_err(unavailable("commit"))?;
        Ok(snapshot)
    }

    pub(super) async fn select_snapshot(&self, org: &OrgId, id: &SnapshotId) -> Result<Snapshot> {
        let row = sqlx::query("SELECT * FROM snapshots WHERE org_id = ? AND id = ?")
            .bind(org.as_str())
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("read a snapshot"))?;
        row.as_ref()
            .map(snapshot_of)
            .unwrap_or(Err(StoreError::NotFound(What::Snapshot)))
    }

    pub(super) async fn select_snapshots(
        &self,
        org: &OrgId,
        volume: &VolumeId,
    ) -> Result<Vec<Snapshot>> {
        let rows = sqlx::query(
            "SELECT * FROM snapshots WHERE org_id = ? AND volume_id = ? \
             ORDER BY created_at, id LIMIT ?",
        )
        .bind(org.as_str())
        .bind(volume.as_str())
        .bind(i64::from(LIST_ROWS_MAX))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable("list snapshots"))?;
        rows.iter().map(snapshot_of).collect()
    }

    pub(super) async fn select_snapshots_on(&self, host: &HostId) -> Result<Vec<Snapshot>> {
        let rows = sqlx::query("SELECT * FROM snapshots WHERE host_id = ? ORDER BY created_at, id")
            .bind(host.as_str())
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable("list snapshots"))?;
        rows.iter().map(snapshot_of).collect()
    }

    pub(super) async fn update_snapshot_made(
        &self,
        org: &OrgId,
        id: &SnapshotId,
        stored: ByteSize,
        encrypted: bool,
    ) -> Result<Snapshot> {
        let mut tx = self.write().await?;
        let snapshot = snapshot_in(&mut tx, org, id).await?;
        if snapshot.state != SnapshotState::Planned {
            return Ok(snapshot);
        }
        let more = ByteSize(stored.0.saturating_sub(snapshot.stored.0));
        promise(&mut tx, &snapshot.host, more).await?;
        sqlx::query(
            "UPDATE snapshots SET state = 'ready', stored = ?, encrypted = ? \
             WHERE org_id = ? AND id = ?",
        )
        .bind(int("snapshot size", stored.0)?)
        .bind(encrypted)
        .bind(org.as_str())
        .bind(id.as_str())
        .execute(&mut *tx)
        .await
        .map_err(unavailable("record a snapshot"))?;
        tx.commit().await.map_err(unavailable("commit"))?;
        Ok(Snapshot {
            state: SnapshotState::Ready,
            stored,
            encrypted,
            ..snapshot
        })
    }

    pub(super) async fn start_free_snapshot_deletion(
        &self,
        org: &OrgId,
        id: &SnapshotId,
    ) -> Result<()> {
        let mut tx = self.write().await?;
        let snapshot = snapshot_in(&mut tx, org, id).await?;
        if snapshot.state == SnapshotState::Deleting {
            return Ok(());
        }
        let awaited = sqlx::query(
            "SELECT 1 FROM volumes WHERE org_id = ? AND from_snapshot = ? AND state = 'planned' \
             AND destroy_at IS NULL",
        )
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(unavailable("read who needs a snapshot"))?;
        if awaited.is_some() {
            return Err(StoreError::InUse(What::Snapshot));
        }
        for (statement, id) in [
            (
                sqlx::query(
                    "UPDATE snapshots SET state = ?, fence = fence + ? WHERE org_id = ? AND id = ?",
                )
                .bind(SnapshotState::Deleting.as_str()),
                id.as_str(),
            ),
            // It may be gone.
            (
                sqlx::query("UPDATE volumes SET fence = fence + ? WHERE org_id = ? AND id = ?"),
                snapshot.volume.as_str(),
            ),
        ] {
            statement
                .bind(raise(Decision::DeleteSnapshot)?)
                .bind(org.as_str())
                .bind(id)
                .execute(&mut *tx)
                .await
                .map_err(unavailable("start the deletion of a snapshot"))?;
        }
        tx.commit().await.map_err(unavailable("commit"))
    }

    pub(super) async fn remove_snapshot(&self, org: &OrgId, id: &SnapshotId) -> Result<()> {
        sqlx::query("DELETE FROM snapshots WHERE org_id = ? AND id = ?")
            .bind(org.as_str())
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(unavailable("forget a snapshot"))
    }
}
