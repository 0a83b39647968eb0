//! The store on SQLite: write-ahead log, foreign keys on, a few connections that read, and two that write, by turns.
//!
//! What a verb has recorded survives a power cut: the writing connection syncs each commit (`synchronous = FULL`), because hosts
//! act on records at once and durably (the old copy of a moved volume is destroyed, a volume is formatted with its key), and what
//! was promised to people holds (a token is revoked). Only what is told again or expendable is written by the second connection
//! (`NORMAL`): the events of builds, the time of a token's last use, the deletion of old builds. The last of these may be lost in a
//! power cut; none is torn, and each commit of the first connection syncs those before it.
//!
//! Must not know: anything above a row; each verb is one statement or one `BEGIN IMMEDIATE` transaction.

mod builds;
mod codec;
mod machines;
mod moves;
mod orgs;
mod pool;
mod snapshots;
mod store;
mod volume_rows;
mod volumes;

pub use codec::UnknownWordError;

use crate::error::StoreError;
use crate::limits::{BUSY_WAIT_MAX, CONNECTION_WAIT_MAX, READERS_MAX, RESTORED_AHEAD};
use slipway_core::ceilings::PoolShare;
use sqlx::migrate::{Migration, MigrationSource, MigrationType, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Sqlite, SqliteConnection, Transaction};
use std::borrow::Cow;
use std::path::Path;

/// The store in one SQLite file. Clones share its connections.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    readers: SqlitePool,
    /// One connection, which syncs each commit. Whoever writes holds it.
    writer: SqlitePool,
    /// One connection, which leaves syncing to the log's checkpoints and to [`Self::writer`]. Used through [`Self::unsynced`] alone.
    unsynced: SqlitePool,
    /// What one org may be promised of pools; all there is if absent.
    share: Option<PoolShare>,
}

impl SqliteStore {
    /// Opens the file, makes it if it is not there, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it cannot be opened, [`StoreError::Migrate`] if it is of a newer version.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_WAIT_MAX)
            .statement_cache_capacity(128);
        let pool = |connections: u32| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(CONNECTION_WAIT_MAX)
                .idle_timeout(None)
                .max_lifetime(None)
                .before_acquire(|connection, _| Box::pin(async { Ok(is_usable(connection)) }))
        };
        let writer = pool(1)
            .connect_with(options.clone())
            .await
            .map_err(unavailable("open"))?;
        let migrator = Migrator::new(Embedded).await.map_err(StoreError::Migrate)?;
        migrator.run(&writer).await.map_err(StoreError::Migrate)?;
        let unsynced = options
            .clone()
            .create_if_missing(false)
            .synchronous(SqliteSynchronous::Normal);
        let unsynced = pool(1)
            .connect_with(unsynced)
            .await
            .map_err(unavailable("open"))?;
        let readers = pool(READERS_MAX)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await
            .map_err(unavailable("open for reading"))?;
        Ok(Self {
            readers,
            writer,
            unsynced,
            share: None,
        })
    }

    /// The same, and no org is promised more of the pools than this.
    #[must_use]
    pub fn sharing_pools(self, share: PoolShare) -> Self {
        Self {
            share: Some(share),
            ..self
        }
    }

    /// Copies the database at `from`, which may be in use, as it is at one moment to a new file `to`, synced. In the copy each
    /// machine's newest generation and each volume's fencing number is [`RESTORED_AHEAD`] higher, so that hosts take the orders of whoever
    /// is restored from it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; then `to` may be there in part.
    pub async fn back_up(from: &Path, to: &Path) -> Result<(), StoreError> {
        let name = to
            .to_str()
            .ok_or(StoreError::OutOfRange("path of a backup"))?;
        let options = SqliteConnectOptions::new().busy_timeout(BUSY_WAIT_MAX);
        let source = options.clone().filename(from).read_only(true);
        let mut source = source.connect().await.map_err(unavailable("open"))?;
        sqlx::query("VACUUM INTO ?")
            .bind(name)
            .execute(&mut source)
            .await
            .map_err(unavailable("copy itself"))?;
        source.close().await.map_err(unavailable("close"))?;
        let copy = options
            .filename(to)
            .journal_mode(SqliteJournalMode::Delete)
            .synchronous(SqliteSynchronous::Extra);
        let mut copy = copy.connect().await.map_err(unavailable("open"))?;
        for numbers in [
            "UPDATE machines SET generation = generation + ?",
            "UPDATE volumes SET fence = fence + ?",
            "UPDATE snapshots SET fence = fence + ?",
        ] {
            sqlx::query(numbers)
                .bind(RESTORED_AHEAD)
                .execute(&mut copy)
                .await
                .map_err(unavailable("set generations and fencing numbers ahead"))?;
        }
        copy.close().await.map_err(unavailable("close"))?;
        let synced = std::fs::File::open(to).and_then(|file| file.sync_all());
        synced.map_err(|error| unavailable("sync")(sqlx::Error::Io(error)))
    }

    /// Waits for what is under way and closes the file. Verbs fail from then on.
    pub async fn close(&self) {
        self.readers.close().await;
        self.unsynced.close().await;
        self.writer.close().await;
    }

    /// A transaction that holds the write lock from its first moment, so that what it reads stays true.
    ///
    /// It begins in a task of its own: a caller that is dropped while a custom `BEGIN` is on its way would leave the one
    /// writing connection inside a transaction that nobody can end (sqlx 0.8.6). Dropped later, it is rolled back.
    async fn write(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        let writer = self.writer.clone();
        let begun = tokio::spawn(async move { writer.begin_with("BEGIN IMMEDIATE").await });
        match begun.await {
            Ok(transaction) => transaction.map_err(unavailable("begin")),
            // Only a runtime that is ending cancels it.
            Err(_) => Err(unavailable("begin")(sqlx::Error::PoolClosed)),
        }
    }

    /// The turn to write, with the connection that does not sync its commits. For what may be lost in a power cut.
    async fn unsynced(&self) -> Result<(Turn, PoolConnection<Sqlite>), StoreError> {
        let turn = self.writer.acquire().await.map_err(unavailable("begin"))?;
        let connection = self.unsynced.acquire().await;
        Ok((Turn(turn), connection.map_err(unavailable("begin"))?))
    }

    /// The same with a transaction, begun like that of [`Self::write`].
    async fn write_unsynced(&self) -> Result<(Turn, Transaction<'static, Sqlite>), StoreError> {
        let (writer, unsynced) = (self.writer.clone(), self.unsynced.clone());
        let begun = tokio::spawn(async move {
            let turn = writer.acquire().await?;
            let transaction = unsynced.begin_with("BEGIN IMMEDIATE").await?;
            Ok((Turn(turn), transaction))
        });
        match begun.await {
            Ok(begun) => begun.map_err(unavailable("begin")),
            Err(_) => Err(unavailable("begin")(sqlx::Error::PoolClosed)),
        }
    }
}

/// The turn of a writer that uses the other connection: nobody else writes while it is held.
struct Turn(#[expect(dead_code, reason = "held, not used")] PoolConnection<Sqlite>);

/// Whether a connection that comes back to its pool can begin a transaction. When a commit fails, on a full disk say, SQLite rolls back by
/// itself; sqlx's own `ROLLBACK` then fails too, and it counts one open transaction more for as long as the connection lives.
fn is_usable(connection: &SqliteConnection) -> bool {
    let is_usable = !connection.is_in_transaction();
    if !is_usable {
        tracing::warn!("a transaction ended badly; its connection to the database is replaced");
    }
    is_usable
}

/// Wraps a database error with what was tried.
fn unavailable(action: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Unavailable { action, source }
}

/// The migrations, in the binary itself.
#[derive(Debug)]
struct Embedded;

const MIGRATIONS: &[(i64, &str, &str)] = &[
    (
        1,
        "init",
        include_str!("../../migrations/sqlite/0001_init.sql"),
    ),
    (
        4,
        "isolation",
        include_str!("../../migrations/sqlite/0004_isolation.sql"),
    ),
    (
        5,
        "build retention",
        include_str!("../../migrations/sqlite/0005_build_retention.sql"),
    ),
    (
        6,
        "volumes",
        include_str!("../../migrations/sqlite/0006_volumes.sql"),
    ),
    (
        7,
        "imports",
        include_str!("../../migrations/sqlite/0007_imports.sql"),
    ),
    (
        8,
        "moves",
        include_str!("../../migrations/sqlite/0008_moves.sql"),
    ),
    (
        9,
        "second snapshots",
        include_str!("../../migrations/sqlite/0009_second_snapshots.sql"),
    ),
    (
        11,
        "halted moves",
        include_str!("../../migrations/sqlite/0011_halted_moves.sql"),
    ),
    (
        12,
        "revisions",
        include_str!("../../migrations/sqlite/0012_revisions.sql"),
    ),
    (
        13,
        "pools",
        include_str!("../../migrations/sqlite/0013_pools.sql"),
    ),
    (
        14,
        "fences",
        include_str!("../../migrations/sqlite/0014_fences.sql"),
    ),
    (
        15,
        "build sources",
        include_str!("../../migrations/sqlite/0015_build_sources.sql"),
    ),
];

impl<'s> MigrationSource<'s> for Embedded {
    fn resolve(
        self,
    ) -> std::pin::Pin<
        Box<dyn Future<Output = Result<Vec<Migration>, sqlx::error::BoxDynError>> + Send + 's>,
    > {
        let all = MIGRATIONS.iter().map(|&(version, name, sql)| {
            let (name, sql) = (Cow::Borrowed(name), Cow::Borrowed(sql));
            Migration::new(version, name, MigrationType::Simple, sql, false)
        });
        let all = all.collect();
        Box::pin(async move { Ok(all) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::Store;
    use crate::volume::{VolumePurpose, VolumeState};
    use slipway_core::units::ByteSize;

    #[tokio::test]
    async fn a_transaction_that_ended_by_itself_stops_no_later_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = SqliteStore::open(&dir.path().join("db"))
            .await
            .expect("opens");
        for _ in 0..2 {
            let mut transaction = store.write().await.expect("begins");
            let (_turn, mut unsynced);
            // As SQLite does when a commit fails.
            sqlx::query("ROLLBACK")
                .execute(&mut *transaction)
                .await
                .expect("ends");
            drop(transaction);
            (_turn, unsynced) = store.write_unsynced().await.expect("begins afterwards");
            sqlx::query("ROLLBACK")
                .execute(&mut *unsynced)
                .await
                .expect("ends");
        }
        let writes = store.write().await.expect("begins afterwards");
        writes.commit().await.expect("commits");
        let (_turn, writes) = store.write_unsynced().await.expect("begins afterwards");
        writes.commit().await.expect("commits");
    }

    /// SQLite says the same of a file that may not get larger as of a disk that is full.
    #[tokio::test]
    async fn a_full_disk_is_told_from_other_faults_of_the_database() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
        let bound = sqlx::query("PRAGMA max_page_count = 1");
        bound.execute(&store.writer).await.unwrap();
        let full = sqlx::query("CREATE TABLE rubbish AS SELECT zeroblob(1 << 20)");
        let full = full.execute(&store.writer).await;
        let full = full.map_err(unavailable("fill")).unwrap_err();
        assert!(full.is_disk_full(), "{full:?}");
        let other = sqlx::query("SELECT nothing").execute(&store.writer).await;
        let other = other.map_err(unavailable("fill")).unwrap_err();
        assert!(!other.is_disk_full(), "{other:?}");
    }

    /// Those before volumes had names.
    #[derive(Debug)]
    struct Older;

    impl<'s> MigrationSource<'s> for Older {
        fn resolve(
            self,
        ) -> std::pin::Pin<
            Box<dyn Future<Output = Result<Vec<Migration>, sqlx::error::BoxDynError>> + Send + 's>,
        > {
            Box::pin(async move {
                let mut all = Embedded.resolve().await?;
                all.retain(|migration| migration.version < 6);
                Ok(all)
            })
        }
    }

    const ROWS: &str = "
        INSERT INTO orgs (id, slug, name, idle_ms, default_region, default_arch, builder_cpu_millis,
            builder_memory, builder_volume, created_at)
        VALUES ('org_0000000000000000', 'acme', 'Acme', 1, 'r', 'amd64', 1, 1, 1, 1);
        INSERT INTO hosts VALUES ('hst_0000000000000000', 'h', 'r', 'amd64', '/s', 99, 1, 1);
        INSERT INTO volumes VALUES
            ('vol_0000000000000000', 'org_0000000000000000', 'hst_0000000000000000', 7, 'planned', 1),
            ('vol_0000000000000001', 'org_0000000000000000', 'hst_0000000000000000', 8, 'ready', 2),
            ('vol_0000000000000002', 'org_0000000000000000', 'hst_0000000000000000', 9, 'aside', 3);";

    #[tokio::test]
    async fn caches_of_an_older_version_are_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slipway.db");
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true);
        let older = SqlitePool::connect_with(options).await.unwrap();
        let migrator = Migrator::new(Older).await.unwrap();
        migrator.run(&older).await.unwrap();
        sqlx::raw_sql(ROWS).execute(&older).await.unwrap();
        older.close().await;

        let store = SqliteStore::open(&path).await.unwrap();
        let org = "org_0000000000000000".parse().unwrap();
        let volumes = store.volumes(&org).await.unwrap();
        let read: Vec<_> = volumes.iter().map(|v| (v.state, v.size, v.made)).collect();
        let bytes = ByteSize;
        assert_eq!(
            read,
            [
                (VolumeState::Planned, bytes(7), bytes(0)),
                (VolumeState::Ready, bytes(8), bytes(8)),
                (VolumeState::Aside, bytes(9), bytes(9)),
            ]
        );
        for volume in volumes {
            assert_eq!(volume.purpose, VolumePurpose::Cache);
            assert!(!volume.policy.scheduled_snapshots, "a cache is expendable");
        }
    }
}
