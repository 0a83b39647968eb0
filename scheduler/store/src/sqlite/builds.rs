//! Builds and their events.

use super::codec::{Reader, from_json, int, on_insert, time, to_json};
use super::{SqliteStore, unavailable};
use crate::error::{StoreError, What};
use crate::limits::{EVENTS_READ_BYTES_MAX, EVENTS_READ_MAX, LIST_ROWS_MAX};
use crate::model::{Build, BuildFilter, BuildState, NewBuild};
use futures_util::TryStreamExt;
use slipway_core::build::{BuildOutcome, NumberedEvent};
use slipway_core::id::{AppId, BuildId, OrgId};
use slipway_core::quota::{
    BUILDER_BUILDS_UNDER_WAY_MAX, ORG_BUILDS_UNDER_WAY_MAX, QuotaError, check_one_more,
};
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use sqlx::sqlite::SqliteRow;

type Result<T> = std::result::Result<T, StoreError>;

fn build_of(row: &SqliteRow) -> Result<Build> {
    let row = Reader(row);
    Ok(Build {
        id: row.parse("id")?,
        org: row.parse("org_id")?,
        app: row.parse("app_id")?,
        machine: row.parse("machine_id")?,
        state: row.parse("state")?,
        spec: row.json("spec")?,
        source: row.parse("source")?,
        asked_by: row.text_opt("asked_by")?,
        outcome: row.json_opt("outcome")?,
        created_at: row.time("created_at")?,
        ended_at: row.time_opt("ended_at")?,
        last_seq: row.u64("last_seq")?,
        event_bytes: row.u64("event_bytes")?,
    })
}

fn ended_state(outcome: &BuildOutcome) -> BuildState {
    match outcome {
        BuildOutcome::Succeeded { .. } => BuildState::Succeeded,
        BuildOutcome::Failed { .. } => BuildState::Failed,
        BuildOutcome::Cancelled => BuildState::Cancelled,
    }
}

impl SqliteStore {
    pub(super) async fn insert_build(&self, org: &OrgId, new: &NewBuild) -> Result<Build> {
        let mut tx = self.write().await?;
        let (of_org, of_builder): (u32, u32) = sqlx::query_as(
            "SELECT count(*), coalesce(sum(machine_id = ?2), 0) \
             FROM builds INDEXED BY builds_unfinished WHERE org_id = ?1 AND state IN ('pending', 'running')",
        )
        .bind(org.as_str())
        .bind(new.machine.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(unavailable("count builds"))?;
        check_one_more(of_org, ORG_BUILDS_UNDER_WAY_MAX, |have| {
            QuotaError::BuildsUnderWay { have }
        })?;
        check_one_more(of_builder, BUILDER_BUILDS_UNDER_WAY_MAX, |have| {
            QuotaError::BuilderBuilds { have }
        })?;
        let row = sqlx::query(
            "INSERT INTO builds (id, org_id, app_id, machine_id, state, spec, source, asked_by, created_at, \
             last_seq, event_bytes) VALUES (?, ?, ?, ?, 'pending', ?, ?, ?, ?, 0, 0) RETURNING *",
        )
        .bind(new.id.as_str())
        .bind(org.as_str())
        .bind(new.app.as_str())
        .bind(new.machine.as_str())
        .bind(to_json("spec", &new.spec)?)
        .bind(new.source.as_str())
        .bind(new.asked_by.as_deref())
        .bind(time(new.at)?)
        .fetch_one(&mut *tx)
        .await
        .map_err(on_insert(What::Build, What::App, "record a build"))?;
        tx.commit().await.map_err(unavailable("commit"))?;
        build_of(&row)
    }

    pub(super) async fn select_build(&self, org: &OrgId, id: &BuildId) -> Result<Build> {
        let row = sqlx::query("SELECT * FROM builds WHERE org_id = ? AND id = ?")
            .bind(org.as_str())
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("read a build"))?;
        row.as_ref()
            .map(build_of)
            .unwrap_or(Err(StoreError::NotFound(What::Build)))
    }

    pub(super) async fn select_builds(
        &self,
        org: &OrgId,
        filter: &BuildFilter,
    ) -> Result<Vec<Build>> {
        let rows = sqlx::query(
            "SELECT * FROM builds WHERE org_id = ?1 AND (?2 IS NULL OR app_id = ?2) AND \
             (?3 IS NULL OR number < (SELECT number FROM builds WHERE org_id = ?1 AND id = ?3)) \
             ORDER BY number DESC LIMIT ?4",
        )
        .bind(org.as_str())
        .bind(filter.app.as_ref().map(AppId::as_str))
        .bind(filter.before.as_ref().map(BuildId::as_str))
        .bind(i64::from(filter.limit.min(LIST_ROWS_MAX)))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable("list builds"))?;
        rows.iter().map(build_of).collect()
    }

    pub(super) async fn select_unfinished_builds(&self) -> Result<Vec<Build>> {
        let rows = sqlx::query(
            "SELECT * FROM builds WHERE state IN ('pending', 'running') ORDER BY number",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable("list unfinished builds"))?;
        rows.iter().map(build_of).collect()
    }

    pub(super) async fn sum_event_bytes(&self, org: &OrgId) -> Result<ByteSize> {
        let bytes: i64 =
            sqlx::query_scalar("SELECT coalesce(sum(event_bytes), 0) FROM builds WHERE org_id = ?")
                .bind(org.as_str())
                .fetch_one(&self.readers)
                .await
                .map_err(unavailable("count the events of builds"))?;
        Ok(ByteSize(u64::try_from(bytes).unwrap_or(0)))
    }

    pub(super) async fn delete_old_build_rows(
        &self,
        org: &OrgId,
        keep: u32,
        before: Timestamp,
        max: u32,
    ) -> Result<u32> {
        // The newest one that is too many is found once, by the index; its number stays true, since later builds have
        // higher ones. Events go with their build.
        let newest_extra: Option<i64> = sqlx::query_scalar(
            "SELECT number FROM builds WHERE org_id = ? ORDER BY number DESC LIMIT 1 OFFSET ?",
        )
        .bind(org.as_str())
        .bind(i64::from(keep))
        .fetch_optional(&self.readers)
        .await
        .map_err(unavailable("count builds"))?;
        let numbers: Vec<i64> = sqlx::query_scalar(
            "SELECT number FROM builds WHERE org_id = ? AND ended_at IS NOT NULL AND \
             (number <= ? OR ended_at < ?) ORDER BY number LIMIT ?",
        )
        .bind(org.as_str())
        .bind(newest_extra.unwrap_or(0))
        .bind(time(before)?)
        .bind(i64::from(max))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable("list old builds"))?;
        let mut deleted = 0;
        for number in numbers {
            let (_turn, mut connection) = self.unsynced().await?;
            let done = sqlx::query("DELETE FROM builds WHERE number = ? AND ended_at IS NOT NULL")
                .bind(number)
                .execute(&mut *connection)
                .await
                .map_err(unavailable("delete an old build"))?;
            deleted += u32::try_from(done.rows_affected()).unwrap_or(u32::MAX);
        }
        Ok(deleted)
    }

    pub(super) async fn set_build_running(&self, org: &OrgId, id: &BuildId) -> Result<()> {
        sqlx::query(
            "UPDATE builds SET state = 'running' \
             WHERE org_id = ? AND id = ? AND state = 'pending'",
        )
        .bind(org.as_str())
        .bind(id.as_str())
        .execute(&self.writer)
        .await
        .map_err(unavailable("record a build's state"))?;
        Ok(())
    }

    pub(super) async fn insert_events(
        &self,
        org: &OrgId,
        id: &BuildId,
        events: &[NumberedEvent],
    ) -> Result<u64> {
        let (_turn, mut tx) = self.write_unsynced().await?;
        let row = sqlx::query("SELECT number, last_seq FROM builds WHERE org_id = ? AND id = ?")
            .bind(org.as_str())
            .bind(id.as_str())
            .fetch_optional(&mut *tx)
            .await
            .map_err(unavailable("read a build"))?
            .ok_or(StoreError::NotFound(What::Build))?;
        let (number, mut last) = (Reader(&row).u64("number")?, Reader(&row).u64("last_seq")?);
        let number = int("build number", number)?;
        let mut bytes = 0;
        for event in events {
            if event.seq <= last {
                continue;
            }
            let json = to_json("json", event)?;
            bytes += json.len() as u64;
            last = event.seq;
            sqlx::query("INSERT INTO build_events (build, seq, json) VALUES (?, ?, ?)")
                .bind(number)
                .bind(int("event number", event.seq)?)
                .bind(json)
                .execute(&mut *tx)
                .await
                .map_err(unavailable("record an event"))?;
        }
        if bytes > 0 {
            sqlx::query(
                "UPDATE builds SET last_seq = ?, event_bytes = event_bytes + ? WHERE number = ?",
            )
            .bind(int("event number", last)?)
            .bind(int("event bytes", bytes)?)
            .bind(number)
            .execute(&mut *tx)
            .await
            .map_err(unavailable("record events"))?;
        }
        tx.commit().await.map_err(unavailable("commit"))?;
        Ok(last)
    }

    pub(super) async fn select_events(
        &self,
        org: &OrgId,
        id: &BuildId,
        after: u64,
        max: u32,
    ) -> Result<Vec<NumberedEvent>> {
        let mut rows = sqlx::query(
            "SELECT b.number, e.json FROM builds b LEFT JOIN build_events e \
             ON e.build = b.number AND e.seq > ? \
             WHERE b.org_id = ? AND b.id = ? ORDER BY e.seq LIMIT ?",
        )
        .bind(int("event number", after)?)
        .bind(org.as_str())
        .bind(id.as_str())
        .bind(i64::from(max.clamp(1, EVENTS_READ_MAX)))
        .fetch(&self.readers);
        let (mut found, mut bytes, mut events) = (false, 0_usize, Vec::new());
        while let Some(row) = rows.try_next().await.map_err(unavailable("read events"))? {
            // A build without later events is one row without an event; no row at all is no build.
            found = true;
            let Some(json) = Reader(&row).text_opt("json")? else {
                break;
            };
            events.push(from_json("json", &json)?);
            bytes += json.len();
            if bytes >= EVENTS_READ_BYTES_MAX {
                break;
            }
        }
        if found {
            Ok(events)
        } else {
            Err(StoreError::NotFound(What::Build))
        }
    }

    pub(super) async fn end_build(
        &self,
        org: &OrgId,
        id: &BuildId,
        outcome: &BuildOutcome,
        at: Timestamp,
    ) -> Result<Build> {
        sqlx::query(
            "UPDATE builds SET state = ?, outcome = ?, ended_at = ? \
             WHERE org_id = ? AND id = ? AND state IN ('pending', 'running')",
        )
        .bind(ended_state(outcome).as_str())
        .bind(to_json("outcome", outcome)?)
        .bind(time(at)?)
        .bind(org.as_str())
        .bind(id.as_str())
        .execute(&self.writer)
        .await
        .map_err(unavailable("record a build's end"))?;
        self.select_build(org, id).await
    }
}
