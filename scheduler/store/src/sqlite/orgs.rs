//! Orgs, apps, tokens, registry credentials and the installation's own values.

use super::codec::{Reader, int, on_insert, time};
use super::{SqliteStore, unavailable};
use crate::error::{StoreError, What};
use crate::limits::LIST_ROWS_MAX;
use crate::model::{App, Org, OrgChange, Owned, SealedCredential, SecretHash, Token, TokenPage};
use slipway_core::id::{AppId, CredentialId, OrgId, TokenId};
use slipway_core::quota::{
    BuildRetention, BuilderSize, ORG_APPS_MAX, ORG_CREDENTIALS_MAX, ORG_TOKENS_ENDED_KEPT,
    ORG_TOKENS_MAX, QuotaError, check_one_more,
};
use slipway_core::time::Timestamp;
use sqlx::sqlite::SqliteRow;
use std::time::Duration;

type Result<T> = std::result::Result<T, StoreError>;

fn org_of(row: &SqliteRow) -> Result<Org> {
    let row = Reader(row);
    Ok(Org {
        id: row.parse("id")?,
        slug: row.text("slug")?,
        name: row.text("name")?,
        idle: Duration::from_millis(row.u64("idle_ms")?),
        retention: BuildRetention {
            count: row.u32("builds_kept")?,
            age: Duration::from_millis(row.u64("builds_age_ms")?),
        },
        default_region: row.text("default_region")?,
        default_arch: row.text("default_arch")?,
        isolation: row.parse("isolation")?,
        builder_size: BuilderSize {
            cpu_millis: row.u32("builder_cpu_millis")?,
            memory: row.size("builder_memory")?,
            volume: row.size("builder_volume")?,
        },
        created_at: row.time("created_at")?,
    })
}

fn app_of(row: &SqliteRow) -> Result<App> {
    let row = Reader(row);
    Ok(App {
        id: row.parse("id")?,
        org: row.parse("org_id")?,
        name: row.text("name")?,
        role: row.parse("role")?,
        billable: row.flag("billable")?,
        created_at: row.time("created_at")?,
    })
}

fn token_of(row: &SqliteRow) -> Result<Token> {
    let row = Reader(row);
    Ok(Token {
        id: row.parse("id")?,
        org: row.parse_opt("org_id")?,
        app: row.parse_opt("app_id")?,
        name: row.text("name")?,
        role: row.parse("role")?,
        created_at: row.time("created_at")?,
        expires_at: row.time_opt("expires_at")?,
        revoked_at: row.time_opt("revoked_at")?,
        last_used_at: row.time_opt("last_used_at")?,
    })
}

fn credential_of(row: &SqliteRow) -> Result<SealedCredential> {
    let row = Reader(row);
    Ok(SealedCredential {
        id: row.parse("id")?,
        org: row.parse("org_id")?,
        registry: row.text("registry")?,
        username: row.text("username")?,
        sealed: row.blob("sealed")?,
        created_at: row.time("created_at")?,
    })
}

fn idle_ms(idle: Duration) -> Result<i64> {
    i64::try_from(idle.as_millis()).map_err(|_| StoreError::OutOfRange("idle time"))
}

fn age_ms(age: Duration) -> Result<i64> {
    i64::try_from(age.as_millis()).map_err(|_| StoreError::OutOfRange("age of builds"))
}

impl SqliteStore {
    pub(super) async fn insert_org(&self, org: &Org) -> Result<()> {
        sqlx::query(
            "INSERT INTO orgs (id, slug, name, idle_ms, builds_kept, builds_age_ms, default_region, \
             default_arch, isolation, builder_cpu_millis, builder_memory, builder_volume, created_at) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(org.id.as_str())
        .bind(&org.slug)
        .bind(&org.name)
        .bind(idle_ms(org.idle)?)
        .bind(i64::from(org.retention.count))
        .bind(age_ms(org.retention.age)?)
        .bind(&org.default_region)
        .bind(&org.default_arch)
        .bind(org.isolation.as_str())
        .bind(i64::from(org.builder_size.cpu_millis))
        .bind(int("memory", org.builder_size.memory.0)?)
        .bind(int("volume size", org.builder_size.volume.0)?)
        .bind(time(org.created_at)?)
        .execute(&self.writer)
        .await
        .map_err(on_insert(What::Org, What::Org, "record an org"))?;
        Ok(())
    }

    pub(super) async fn select_org(&self, org: &OrgId) -> Result<Org> {
        let row = sqlx::query("SELECT * FROM orgs WHERE id = ?")
            .bind(org.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("read an org"))?;
        row.as_ref()
            .map(org_of)
            .unwrap_or(Err(StoreError::NotFound(What::Org)))
    }

    pub(super) async fn select_org_by_slug(&self, slug: &str) -> Result<Org> {
        let row = sqlx::query("SELECT * FROM orgs WHERE slug = ?")
            .bind(slug)
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("read an org"))?;
        row.as_ref()
            .map(org_of)
            .unwrap_or(Err(StoreError::NotFound(What::Org)))
    }

    pub(super) async fn select_all_orgs(&self) -> Result<Vec<Org>> {
        let rows = sqlx::query("SELECT * FROM orgs ORDER BY slug")
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable("list orgs"))?;
        rows.iter().map(org_of).collect()
    }

    pub(super) async fn select_owner(&self, of: Owned<'_>) -> Result<Option<OrgId>> {
        let (statement, key) = match of {
            Owned::Build(id) => (
                sqlx::query("SELECT org_id FROM builds WHERE id = ?"),
                id.as_str(),
            ),
            Owned::Volume(id) => (
                sqlx::query("SELECT org_id FROM volumes WHERE id = ?"),
                id.as_str(),
            ),
            Owned::Snapshot(id) => (
                sqlx::query("SELECT org_id FROM snapshots WHERE id = ?"),
                id.as_str(),
            ),
            Owned::SnapshotsOf(volume) => (
                sqlx::query("SELECT org_id FROM snapshots WHERE volume_id = ? LIMIT 1"),
                volume.as_str(),
            ),
            Owned::App(name) => (
                sqlx::query(
                    "SELECT a.org_id FROM apps a JOIN orgs o ON o.id = a.org_id \
                     WHERE a.name = ? ORDER BY o.slug LIMIT 1",
                ),
                name,
            ),
        };
        let row = statement
            .bind(key)
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("look an owner up"))?;
        row.as_ref()
            .map(|row| Reader(row).parse("org_id"))
            .transpose()
    }

    pub(super) async fn change_org(&self, org: &OrgId, change: &OrgChange) -> Result<Org> {
        let row = sqlx::query(
            "UPDATE orgs SET name = coalesce(?, name), idle_ms = coalesce(?, idle_ms), \
             builds_kept = coalesce(?, builds_kept), \
             builds_age_ms = coalesce(?, builds_age_ms), \
             default_region = coalesce(?, default_region), \
             default_arch = coalesce(?, default_arch), isolation = coalesce(?, isolation), \
             builder_cpu_millis = coalesce(?, builder_cpu_millis), \
             builder_memory = coalesce(?, builder_memory), \
             builder_volume = coalesce(?, builder_volume) WHERE id = ? RETURNING *",
        )
        .bind(change.name.as_deref())
        .bind(change.idle.map(idle_ms).transpose()?)
        .bind(change.builds_kept.map(i64::from))
        .bind(change.builds_age.map(age_ms).transpose()?)
        .bind(change.default_region.as_deref())
        .bind(change.default_arch.as_deref())
        .bind(change.isolation.map(|isolation| isolation.as_str()))
        .bind(change.cpu_millis.map(i64::from))
        .bind(change.memory.map(|m| int("memory", m.0)).transpose()?)
        .bind(change.volume.map(|v| int("volume size", v.0)).transpose()?)
        .bind(org.as_str())
        .fetch_optional(&self.writer)
        .await
        .map_err(unavailable("change an org"))?;
        row.as_ref()
            .map(org_of)
            .unwrap_or(Err(StoreError::NotFound(What::Org)))
    }

    pub(super) async fn insert_app(&self, app: &App) -> Result<()> {
        let mut tx = self.write().await?;
        let have: u32 = sqlx::query_scalar("SELECT count(*) FROM apps WHERE org_id = ?")
            .bind(app.org.as_str())
            .fetch_one(&mut *tx)
            .await
            .map_err(unavailable("count apps"))?;
        check_one_more(have, ORG_APPS_MAX, |have| QuotaError::Apps { have })?;
        sqlx::query(
            "INSERT INTO apps (id, org_id, name, role, billable, created_at) \
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(app.id.as_str())
        .bind(app.org.as_str())
        .bind(&app.name)
        .bind(app.role.as_str())
        .bind(app.billable)
        .bind(time(app.created_at)?)
        .execute(&mut *tx)
        .await
        .map_err(on_insert(What::App, What::Org, "record an app"))?;
        tx.commit().await.map_err(unavailable("commit"))
    }

    pub(super) async fn select_app(&self, org: &OrgId, app: &AppId) -> Result<App> {
        let row = sqlx::query("SELECT * FROM apps WHERE org_id = ? AND id = ?")
            .bind(org.as_str())
            .bind(app.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("read an app"))?;
        row.as_ref()
            .map(app_of)
            .unwrap_or(Err(StoreError::NotFound(What::App)))
    }

    pub(super) async fn select_app_by_name(&self, org: &OrgId, name: &str) -> Result<App> {
        let row = sqlx::query("SELECT * FROM apps WHERE org_id = ? AND name = ?")
            .bind(org.as_str())
            .bind(name)
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("read an app"))?;
        row.as_ref()
            .map(app_of)
            .unwrap_or(Err(StoreError::NotFound(What::App)))
    }

    pub(super) async fn select_apps(&self, org: &OrgId) -> Result<Vec<App>> {
        let rows = sqlx::query("SELECT * FROM apps WHERE org_id = ? ORDER BY name LIMIT ?")
            .bind(org.as_str())
            .bind(i64::from(LIST_ROWS_MAX))
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable("list apps"))?;
        rows.iter().map(app_of).collect()
    }

    pub(super) async fn remove_app(&self, org: &OrgId, app: &AppId) -> Result<()> {
        let done = sqlx::query("DELETE FROM apps WHERE org_id = ? AND id = ?")
            .bind(org.as_str())
            .bind(app.as_str())
            .execute(&self.writer)
            .await
            .map_err(|source| match source.as_database_error() {
                Some(e) if e.is_foreign_key_violation() => StoreError::InUse(What::App),
                Some(_) | None => StoreError::Unavailable {
                    action: "remove an app",
                    source,
                },
            })?;
        if done.rows_affected() == 0 {
            Err(StoreError::NotFound(What::App))
        } else {
            Ok(())
        }
    }

    pub(super) async fn insert_token(&self, token: &Token, hash: &SecretHash) -> Result<()> {
        let mut tx = self.write().await?;
        if let Some(org) = &token.org {
            let at = time(token.created_at)?;
            // Those that ended are kept to be shown, and not without end.
            sqlx::query(
                "DELETE FROM tokens WHERE id IN (SELECT id FROM tokens WHERE org_id = ?1 \
                 AND (revoked_at IS NOT NULL OR expires_at <= ?2) \
                 ORDER BY created_at DESC, id LIMIT -1 OFFSET ?3)",
            )
            .bind(org.as_str())
            .bind(at)
            .bind(i64::from(ORG_TOKENS_ENDED_KEPT))
            .execute(&mut *tx)
            .await
            .map_err(unavailable("forget tokens"))?;
            let have: u32 = sqlx::query_scalar(
                "SELECT count(*) FROM tokens WHERE org_id = ? AND revoked_at IS NULL \
                 AND (expires_at IS NULL OR expires_at > ?)",
            )
            .bind(org.as_str())
            .bind(at)
            .fetch_one(&mut *tx)
            .await
            .map_err(unavailable("count tokens"))?;
            check_one_more(have, ORG_TOKENS_MAX, |have| QuotaError::Tokens { have })?;
        }
        sqlx::query(
            "INSERT INTO tokens (id, org_id, app_id, name, role, secret_hash, created_at, \
             expires_at, revoked_at, last_used_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(token.id.as_str())
        .bind(token.org.as_ref().map(OrgId::as_str))
        .bind(token.app.as_ref().map(AppId::as_str))
        .bind(&token.name)
        .bind(token.role.as_str())
        .bind(&hash.0[..])
        .bind(time(token.created_at)?)
        .bind(token.expires_at.map(time).transpose()?)
        .bind(token.revoked_at.map(time).transpose()?)
        .bind(token.last_used_at.map(time).transpose()?)
        .execute(&mut *tx)
        .await
        .map_err(on_insert(What::Token, What::App, "record a token"))?;
        tx.commit().await.map_err(unavailable("commit"))
    }

    pub(super) async fn select_tokens(
        &self,
        org: Option<&OrgId>,
        page: &TokenPage,
    ) -> Result<Vec<Token>> {
        let rows = sqlx::query(
            "SELECT * FROM tokens WHERE org_id IS ?1 AND (?2 IS NULL OR (created_at, id) < \
             (SELECT created_at, id FROM tokens WHERE org_id IS ?1 AND id = ?2)) \
             ORDER BY created_at DESC, id DESC LIMIT ?3",
        )
        .bind(org.map(OrgId::as_str))
        .bind(page.before.as_ref().map(TokenId::as_str))
        .bind(i64::from(page.limit.min(LIST_ROWS_MAX)))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable("list tokens"))?;
        rows.iter().map(token_of).collect()
    }

    pub(super) async fn select_token_by_hash(&self, hash: &SecretHash) -> Result<Option<Token>> {
        let row = sqlx::query("SELECT * FROM tokens WHERE secret_hash = ?")
            .bind(&hash.0[..])
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("look a token up"))?;
        row.as_ref().map(token_of).transpose()
    }

    pub(super) async fn select_token(&self, token: &TokenId) -> Result<Option<Token>> {
        let row = sqlx::query("SELECT * FROM tokens WHERE id = ?")
            .bind(token.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("look a token up"))?;
        row.as_ref().map(token_of).transpose()
    }

    pub(super) async fn select_tokens_by_id(&self, tokens: &[TokenId]) -> Result<Vec<Token>> {
        let ids: Vec<&str> = tokens.iter().map(TokenId::as_str).collect();
        let rows = sqlx::query("SELECT * FROM tokens WHERE id IN (SELECT value FROM json_each(?))")
            .bind(serde_json::Value::from(ids).to_string())
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable("look tokens up"))?;
        rows.iter().map(token_of).collect()
    }

    pub(super) async fn mark_token_revoked(
        &self,
        org: Option<&OrgId>,
        token: &TokenId,
        at: Timestamp,
    ) -> Result<()> {
        let done = sqlx::query(
            "UPDATE tokens SET revoked_at = coalesce(revoked_at, ?) WHERE org_id IS ? AND id = ?",
        )
        .bind(time(at)?)
        .bind(org.map(OrgId::as_str))
        .bind(token.as_str())
        .execute(&self.writer)
        .await
        .map_err(unavailable("revoke a token"))?;
        if done.rows_affected() == 0 {
            Err(StoreError::NotFound(What::Token))
        } else {
            Ok(())
        }
    }

    pub(super) async fn mark_token_used(&self, token: &TokenId, at: Timestamp) -> Result<()> {
        let (_turn, mut connection) = self.unsynced().await?;
        sqlx::query("UPDATE tokens SET last_used_at = ? WHERE id = ?")
            .bind(time(at)?)
            .bind(token.as_str())
            .execute(&mut *connection)
            .await
            .map_err(unavailable("note a token's use"))?;
        Ok(())
    }

    pub(super) async fn upsert_credential(&self, credential: &SealedCredential) -> Result<()> {
        let mut tx = self.write().await?;
        let others: u32 = sqlx::query_scalar(
            "SELECT count(*) FROM registry_credentials WHERE org_id = ? AND registry <> ?",
        )
        .bind(credential.org.as_str())
        .bind(&credential.registry)
        .fetch_one(&mut *tx)
        .await
        .map_err(unavailable("count registry credentials"))?;
        check_one_more(others, ORG_CREDENTIALS_MAX, |have| {
            QuotaError::Credentials { have }
        })?;
        sqlx::query(
            "INSERT INTO registry_credentials (id, org_id, registry, username, sealed, created_at) \
             VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (org_id, registry) DO UPDATE SET \
             id = excluded.id, username = excluded.username, sealed = excluded.sealed, \
             created_at = excluded.created_at",
        )
        .bind(credential.id.as_str())
        .bind(credential.org.as_str())
        .bind(&credential.registry)
        .bind(&credential.username)
        .bind(&credential.sealed)
        .bind(time(credential.created_at)?)
        .execute(&mut *tx)
        .await
        .map_err(on_insert(
            What::Credential,
            What::Org,
            "record a registry credential",
        ))?;
        tx.commit().await.map_err(unavailable("commit"))
    }

    pub(super) async fn select_credentials(&self, org: &OrgId) -> Result<Vec<SealedCredential>> {
        let rows = sqlx::query(
            "SELECT * FROM registry_credentials WHERE org_id = ? ORDER BY registry LIMIT ?",
        )
        .bind(org.as_str())
        .bind(i64::from(LIST_ROWS_MAX))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable("list registry credentials"))?;
        rows.iter().map(credential_of).collect()
    }

    pub(super) async fn select_credential_for(
        &self,
        org: &OrgId,
        registry: &str,
    ) -> Result<Option<SealedCredential>> {
        let row =
            sqlx::query("SELECT * FROM registry_credentials WHERE org_id = ? AND registry = ?")
                .bind(org.as_str())
                .bind(registry)
                .fetch_optional(&self.readers)
                .await
                .map_err(unavailable("read a registry credential"))?;
        row.as_ref().map(credential_of).transpose()
    }

    pub(super) async fn remove_credential(&self, org: &OrgId, id: &CredentialId) -> Result<()> {
        let done = sqlx::query("DELETE FROM registry_credentials WHERE org_id = ? AND id = ?")
            .bind(org.as_str())
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map_err(unavailable("remove a registry credential"))?;
        if done.rows_affected() == 0 {
            Err(StoreError::NotFound(What::Credential))
        } else {
            Ok(())
        }
    }

    pub(super) async fn select_meta(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let row = sqlx::query("SELECT value FROM meta WHERE key = ?")
            .bind(key)
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("read a value"))?;
        row.as_ref()
            .map(|row| Reader(row).blob("value"))
            .transpose()
    }

    pub(super) async fn insert_meta_if_absent(&self, key: &str, value: &[u8]) -> Result<Vec<u8>> {
        let mut tx = self.write().await?;
        sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(key)
            .bind(value)
            .execute(&mut *tx)
            .await
            .map_err(unavailable("record a value"))?;
        let row = sqlx::query("SELECT value FROM meta WHERE key = ?")
            .bind(key)
            .fetch_one(&mut *tx)
            .await
            .map_err(unavailable("read a value"))?;
        tx.commit().await.map_err(unavailable("commit"))?;
        Reader(&row).blob("value")
    }

    pub(super) async fn select_meta_under(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
        // Not LIKE, in which some characters of a prefix would mean something.
        let statement =
            "SELECT key, value FROM meta WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key";
        let rows = sqlx::query(statement)
            .bind(prefix)
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable("read values"))?;
        rows.iter()
            .map(|row| {
                let reader = Reader(row);
                Ok((reader.text("key")?, reader.blob("value")?))
            })
            .collect()
    }

    pub(super) async fn update_meta(&self, key: &str, old: &[u8], new: &[u8]) -> Result<bool> {
        let mut tx = self.write().await?;
        let done = sqlx::query("UPDATE meta SET value = ? WHERE key = ? AND value = ?")
            .bind(new)
            .bind(key)
            .bind(old)
            .execute(&mut *tx)
            .await
            .map_err(unavailable("replace a value"))?;
        tx.commit().await.map_err(unavailable("commit"))?;
        Ok(done.rows_affected() > 0)
    }

    pub(super) async fn delete_meta(&self, key: &str) -> Result<()> {
        let mut tx = self.write().await?;
        sqlx::query("DELETE FROM meta WHERE key = ?")
            .bind(key)
            .execute(&mut *tx)
            .await
            .map_err(unavailable("forget a value"))?;
        tx.commit().await.map_err(unavailable("commit"))
    }
}
