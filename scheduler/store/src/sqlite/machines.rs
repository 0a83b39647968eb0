//! Hosts and machines.

use super::codec::{Reader, int, on_insert, time, to_json};
use super::pool::{Asks, check_share, promise, promised};
use super::volume_rows::{record_volume, volume_of};
use super::{SqliteStore, unavailable};
use crate::error::{StoreError, What};
use crate::limits::LIST_ROWS_MAX;
use crate::model::{Ensured, Host, HostUse, Machine, MachineRecord, NewBuilder};
use crate::volume::{Volume, VolumePurpose, VolumeState};
use slipway_core::fence::Fence;
use slipway_core::generation::Generation;
use slipway_core::id::{AppId, HostId, MachineId, OrgId, VolumeId};
use slipway_core::machine::MachineState;
use slipway_core::quota::BuilderSize;
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use slipway_core::volume::VolumePolicy;
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, Transaction};

type Result<T> = std::result::Result<T, StoreError>;

/// Name of the app that holds an org's builders.
const BUILDER_APP: &str = "slipway-builder";
/// Name of the volumes that are builders' caches.
const CACHE_VOLUME: &str = "builder-cache";

macro_rules! machines {
    ($tail:literal) => {
        concat!(
            "SELECT m.*, v.size AS volume_size FROM machines m \
             JOIN volumes v ON v.id = m.volume_id ",
            $tail
        )
    };
}

fn machine_of(row: &SqliteRow) -> Result<Machine> {
    let row = Reader(row);
    Ok(Machine {
        id: row.parse("id")?,
        org: row.parse("org_id")?,
        app: row.parse("app_id")?,
        region: row.text("region")?,
        arch: row.text("arch")?,
        host: row.parse("host_id")?,
        volume: row.parse("volume_id")?,
        size: BuilderSize {
            cpu_millis: row.u32("cpu_millis")?,
            memory: row.size("memory")?,
            volume: row.size("volume_size")?,
        },
        revision: row.u64("revision")?,
        generation: Generation(row.u64("generation")?),
        intent: row.parse("intent")?,
        state: row.json("state")?,
        failed_starts: row.u32("failed_starts")?,
        volume_replaced: row.flag("volume_replaced")?,
        last_error: row.text_opt("last_error")?,
        notice: row.text_opt("notice")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
    })
}

fn host_of(row: &SqliteRow) -> Result<Host> {
    let row = Reader(row);
    Ok(Host {
        id: row.parse("id")?,
        name: row.text("name")?,
        region: row.text("region")?,
        arch: row.text("arch")?,
        socket: row.text("socket")?.into(),
        pool_capacity: row.size("pool_capacity")?,
        memory: row.size("memory")?,
        cpu_millis: row.u32("cpu_millis")?,
        pool: row.text_opt("pool")?,
    })
}

/// The org's builder app; makes it if there is none.
async fn builder_app(
    tx: &mut Transaction<'_, Sqlite>,
    org: &OrgId,
    id: &AppId,
    at: Timestamp,
) -> Result<AppId> {
    sqlx::query(
        "INSERT INTO apps (id, org_id, name, role, billable, created_at) \
         SELECT ?1, ?2, CASE WHEN EXISTS (SELECT 1 FROM apps WHERE org_id = ?2 AND name = ?3) \
         THEN ?1 ELSE ?3 END, 'builder', 0, ?4 \
         WHERE NOT EXISTS (SELECT 1 FROM apps WHERE org_id = ?2 AND role = 'builder')",
    )
    .bind(id.as_str())
    .bind(org.as_str())
    .bind(BUILDER_APP)
    .bind(time(at)?)
    .execute(&mut **tx)
    .await
    .map_err(on_insert(What::App, What::Org, "record a builder app"))?;
    let row = sqlx::query("SELECT id FROM apps WHERE org_id = ? AND role = 'builder'")
        .bind(org.as_str())
        .fetch_one(&mut **tx)
        .await
        .map_err(unavailable("read a builder app"))?;
    Reader(&row).parse("id")
}

async fn builder_in(
    tx: &mut Transaction<'_, Sqlite>,
    org: &OrgId,
    region: &str,
    arch: &str,
) -> Result<Option<Machine>> {
    let row = sqlx::query(machines!(
        "WHERE m.org_id = ? AND m.region = ? AND m.arch = ?"
    ))
    .bind(org.as_str())
    .bind(region)
    .bind(arch)
    .fetch_optional(&mut **tx)
    .await
    .map_err(unavailable("read a builder"))?;
    row.as_ref().map(machine_of).transpose()
}

impl SqliteStore {
    pub(super) async fn upsert_host(&self, host: &Host) -> Result<Host> {
        let socket = host
            .socket
            .to_str()
            .ok_or(StoreError::OutOfRange("host socket path"))?;
        let row = sqlx::query(
            "INSERT INTO hosts (id, name, region, arch, socket, pool_capacity, memory, cpu_millis, pool) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET \
             region = excluded.region, arch = excluded.arch, socket = excluded.socket, \
             pool_capacity = excluded.pool_capacity, memory = excluded.memory, \
             cpu_millis = excluded.cpu_millis, \
             pool = coalesce(excluded.pool, pool) RETURNING *",
        )
        .bind(host.id.as_str())
        .bind(&host.name)
        .bind(&host.region)
        .bind(&host.arch)
        .bind(socket)
        .bind(int("pool capacity", host.pool_capacity.0)?)
        .bind(int("memory", host.memory.0)?)
        .bind(i64::from(host.cpu_millis))
        .bind(&host.pool)
        .fetch_one(&self.writer)
        .await
        .map_err(on_insert(What::Host, What::Host, "record a host"))?;
        host_of(&row)
    }

    pub(super) async fn rename_host_row(&self, host: &HostId, name: &str) -> Result<()> {
        let mut tx = self.write().await?;
        let own: Option<String> =
            sqlx::query_scalar("SELECT id FROM hosts WHERE name = ? AND id <> ?")
                .bind(name)
                .bind(host.as_str())
                .fetch_optional(&mut *tx)
                .await
                .map_err(unavailable("rename a host"))?;
        let steps: &[&str] = match own {
            None => &["UPDATE hosts SET name = ?1 WHERE id = ?2"],
            Some(_) => &[
                "UPDATE volumes SET host_id = ?1 WHERE host_id = ?2",
                "UPDATE volumes SET copy_host = ?1 WHERE copy_host = ?2",
                "UPDATE volumes SET copy_source = ?1 WHERE copy_source = ?2",
                "UPDATE machines SET host_id = ?1 WHERE host_id = ?2",
                "UPDATE snapshots SET host_id = ?1 WHERE host_id = ?2",
                // What was to be copied, or destroyed, is the volume itself.
                "UPDATE volumes SET copy_host = NULL, copy_step = NULL, copy_snapshot = NULL, copy_second = NULL, \
                 copy_source = NULL, copy_reserve = 0, copy_halted = 0 WHERE copy_host = host_id",
                "DELETE FROM hosts WHERE id = ?2",
            ],
        };
        let to = own.as_deref().unwrap_or(name);
        for step in steps {
            sqlx::query(step)
                .bind(to)
                .bind(host.as_str())
                .execute(&mut *tx)
                .await
                .map_err(unavailable("rename a host"))?;
        }
        tx.commit().await.map_err(unavailable("commit"))
    }

    pub(super) async fn select_hosts(&self) -> Result<Vec<HostUse>> {
        let rows = sqlx::query(concat!(
            "SELECT h.*, ",
            promised!("h.id"),
            " AS pool_promised, \
             (SELECT coalesce(sum(memory), 0) FROM machines \
              WHERE host_id = h.id AND intent = 'wanted') AS memory_promised \
             FROM hosts h ORDER BY h.name"
        ))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable("list hosts"))?;
        rows.iter()
            .map(|row| {
                Ok(HostUse {
                    host: host_of(row)?,
                    pool_promised: Reader(row).size("pool_promised")?,
                    memory_promised: Reader(row).size("memory_promised")?,
                })
            })
            .collect()
    }

    pub(super) async fn ensure_builder_row(
        &self,
        org: &OrgId,
        new: &NewBuilder,
    ) -> Result<Ensured> {
        let mut tx = self.write().await?;
        if let Some(mut machine) = builder_in(&mut tx, org, &new.region, &new.arch).await? {
            sqlx::query("UPDATE machines SET intent = 'wanted' WHERE org_id = ? AND id = ?")
                .bind(org.as_str())
                .bind(machine.id.as_str())
                .execute(&mut *tx)
                .await
                .map_err(unavailable("want a builder"))?;
            tx.commit().await.map_err(unavailable("commit"))?;
            machine.intent = crate::model::Intent::Wanted;
            return Ok(Ensured::Existing(machine));
        }
        let app = builder_app(&mut tx, org, &new.app, new.at).await?;
        let volume = Volume {
            id: new.volume.clone(),
            org: org.clone(),
            host: new.host.clone(),
            name: CACHE_VOLUME.to_owned(),
            purpose: VolumePurpose::Cache,
            size: new.size.volume,
            made: ByteSize(0),
            encrypted: None,
            state: VolumeState::Planned,
            source: None,
            import: None,
            moving: None,
            fence: Fence::FIRST,
            // A cache is expendable, so nobody keeps it by itself.
            policy: VolumePolicy {
                scheduled_snapshots: false,
                ..VolumePolicy::default()
            },
            destroy_at: None,
            notice: None,
            created_at: new.at,
        };
        promise(&mut tx, &volume.host, volume.size).await?;
        let asks = (Asks::Cache, volume.size);
        check_share(&mut tx, self.share.as_ref(), org, &volume.host, asks).await?;
        record_volume(&mut tx, &volume).await?;
        sqlx::query(
            "INSERT INTO machines (id, org_id, app_id, region, arch, host_id, volume_id, \
             cpu_millis, memory, generation, intent, state, failed_starts, volume_replaced, \
             created_at, updated_at) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 'wanted', ?, 0, 0, ?, ?)",
        )
        .bind(new.machine.as_str())
        .bind(org.as_str())
        .bind(app.as_str())
        .bind(&new.region)
        .bind(&new.arch)
        .bind(new.host.as_str())
        .bind(new.volume.as_str())
        .bind(i64::from(new.size.cpu_millis))
        .bind(int("memory", new.size.memory.0)?)
        .bind(to_json("state", &MachineState::Stopped)?)
        .bind(time(new.at)?)
        .bind(time(new.at)?)
        .execute(&mut *tx)
        .await
        .map_err(on_insert(What::Machine, What::Org, "record a builder"))?;
        let machine = builder_in(&mut tx, org, &new.region, &new.arch)
            .await?
            .ok_or(StoreError::NotFound(What::Machine))?;
        tx.commit().await.map_err(unavailable("commit"))?;
        Ok(Ensured::Created(machine))
    }

    pub(super) async fn select_builder(
        &self,
        org: &OrgId,
        region: &str,
        arch: &str,
    ) -> Result<Option<Machine>> {
        let row = sqlx::query(machines!(
            "WHERE m.org_id = ? AND m.region = ? AND m.arch = ?"
        ))
        .bind(org.as_str())
        .bind(region)
        .bind(arch)
        .fetch_optional(&self.readers)
        .await
        .map_err(unavailable("read a builder"))?;
        row.as_ref().map(machine_of).transpose()
    }

    pub(super) async fn select_machine(&self, org: &OrgId, id: &MachineId) -> Result<Machine> {
        let row = sqlx::query(machines!("WHERE m.org_id = ? AND m.id = ?"))
            .bind(org.as_str())
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("read a machine"))?;
        row.as_ref()
            .map(machine_of)
            .unwrap_or(Err(StoreError::NotFound(What::Machine)))
    }

    pub(super) async fn select_builders(&self, org: &OrgId) -> Result<Vec<Machine>> {
        let rows = sqlx::query(machines!(
            "WHERE m.org_id = ? ORDER BY m.region, m.arch LIMIT ?"
        ))
        .bind(org.as_str())
        .bind(i64::from(LIST_ROWS_MAX))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable("list builders"))?;
        rows.iter().map(machine_of).collect()
    }

    pub(super) async fn select_all_machines(&self) -> Result<Vec<Machine>> {
        let rows = sqlx::query(machines!("ORDER BY m.id"))
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable("list machines"))?;
        rows.iter().map(machine_of).collect()
    }

    pub(super) async fn update_machine(
        &self,
        org: &OrgId,
        id: &MachineId,
        record: &MachineRecord,
    ) -> Result<()> {
        let generation = int("generation", record.generation.0)?;
        let revision = int("revision", record.revision)?;
        let done = sqlx::query(
            "UPDATE machines SET revision = ?, generation = ?, intent = coalesce(?, intent), state = ?, \
             failed_starts = ?, volume_replaced = ?, last_error = ?, notice = ?, cpu_millis = ?, \
             memory = ?, updated_at = ? \
             WHERE org_id = ? AND id = ? AND generation <= ? AND revision < ?",
        )
        .bind(revision)
        .bind(generation)
        .bind(record.intent.map(|intent| intent.as_str()))
        .bind(to_json("state", &record.state)?)
        .bind(i64::from(record.failed_starts))
        .bind(record.volume_replaced)
        .bind(record.last_error.as_deref())
        .bind(record.notice.as_deref())
        .bind(i64::from(record.cpu_millis))
        .bind(int("memory", record.memory.0)?)
        .bind(time(record.at)?)
        .bind(org.as_str())
        .bind(id.as_str())
        .bind(generation)
        .bind(revision)
        .execute(&self.writer)
        .await
        .map_err(unavailable("record a machine"))?;
        if done.rows_affected() == 1 {
            return Ok(());
        }
        self.select_machine(org, id).await?;
        Err(StoreError::Changed(What::Machine))
    }

    pub(super) async fn swap_volume(
        &self,
        org: &OrgId,
        machine: &MachineId,
        old: (&VolumeId, VolumeState),
        new: &VolumeId,
        at: Timestamp,
    ) -> Result<Volume> {
        let mut tx = self.write().await?;
        let row = sqlx::query(
            "SELECT v.* FROM volumes v JOIN machines m ON m.volume_id = v.id \
             WHERE m.org_id = ? AND m.id = ?",
        )
        .bind(org.as_str())
        .bind(machine.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(unavailable("read a machine's volume"))?
        .ok_or(StoreError::NotFound(What::Machine))?;
        let attached = volume_of(&row)?;
        if attached.id != *old.0 {
            return Err(StoreError::Changed(What::Machine));
        }
        let volume = Volume {
            id: new.clone(),
            state: VolumeState::Planned,
            made: ByteSize(0),
            encrypted: None,
            source: None,
            import: None,
            moving: None,
            fence: Fence::FIRST,
            destroy_at: None,
            notice: None,
            created_at: at,
            ..attached
        };
        promise(&mut tx, &volume.host, volume.size).await?;
        let asks = (Asks::Cache, volume.size);
        check_share(&mut tx, self.share.as_ref(), org, &volume.host, asks).await?;
        record_volume(&mut tx, &volume).await?;
        for (statement, first, second) in [
            (
                "UPDATE volumes SET state = ? WHERE org_id = ? AND id = ?",
                old.1.as_str(),
                old.0.as_str(),
            ),
            (
                "UPDATE machines SET volume_id = ? WHERE org_id = ? AND id = ?",
                new.as_str(),
                machine.as_str(),
            ),
        ] {
            sqlx::query(statement)
                .bind(first)
                .bind(org.as_str())
                .bind(second)
                .execute(&mut *tx)
                .await
                .map_err(unavailable("replace a volume"))?;
        }
        tx.commit().await.map_err(unavailable("commit"))?;
        Ok(volume)
    }
}
