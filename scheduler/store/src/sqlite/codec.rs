//! Between rows and records: checked integers, words for enums, ids that parse.

use crate::error::{StoreError, What};
use crate::model::{AppRole, BuildState, Intent, TokenRole};
use crate::volume::{SnapshotState, VolumePurpose, VolumeState};
use serde::Serialize;
use serde::de::DeserializeOwned;
use slipway_core::time::Timestamp;
use slipway_core::units::ByteSize;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite};
use std::str::FromStr;

type Result<T> = std::result::Result<T, StoreError>;

/// A row with typed access to its columns by name.
pub(super) struct Reader<'r>(pub(super) &'r SqliteRow);

impl<'r> Reader<'r> {
    fn get<T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>>(
        &self,
        column: &'static str,
    ) -> Result<T> {
        self.0.try_get(column).map_err(|e| corrupt(column, &e))
    }

    pub(super) fn text(&self, column: &'static str) -> Result<String> {
        self.get(column)
    }

    pub(super) fn text_opt(&self, column: &'static str) -> Result<Option<String>> {
        self.get(column)
    }

    pub(super) fn blob(&self, column: &'static str) -> Result<Vec<u8>> {
        self.get(column)
    }

    pub(super) fn flag(&self, column: &'static str) -> Result<bool> {
        Ok(self.get::<i64>(column)? != 0)
    }

    pub(super) fn flag_opt(&self, column: &'static str) -> Result<Option<bool>> {
        Ok(self.get::<Option<i64>>(column)?.map(|flag| flag != 0))
    }

    pub(super) fn u64_opt(&self, column: &'static str) -> Result<Option<u64>> {
        self.get::<Option<i64>>(column)?
            .map(|n| u64::try_from(n).map_err(|e| corrupt(column, &e)))
            .transpose()
    }

    pub(super) fn u64(&self, column: &'static str) -> Result<u64> {
        u64::try_from(self.get::<i64>(column)?).map_err(|e| corrupt(column, &e))
    }

    pub(super) fn u32(&self, column: &'static str) -> Result<u32> {
        u32::try_from(self.get::<i64>(column)?).map_err(|e| corrupt(column, &e))
    }

    pub(super) fn size(&self, column: &'static str) -> Result<ByteSize> {
        self.u64(column).map(ByteSize)
    }

    pub(super) fn time(&self, column: &'static str) -> Result<Timestamp> {
        self.u64(column).map(Timestamp)
    }

    pub(super) fn time_opt(&self, column: &'static str) -> Result<Option<Timestamp>> {
        Ok(self.u64_opt(column)?.map(Timestamp))
    }

    /// An id, or a word of one of the enums below.
    pub(super) fn parse<T: FromStr<Err: std::fmt::Display>>(
        &self,
        column: &'static str,
    ) -> Result<T> {
        self.get::<&str>(column)?
            .parse()
            .map_err(|e: T::Err| corrupt(column, &e))
    }

    pub(super) fn parse_opt<T: FromStr<Err: std::fmt::Display>>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>> {
        self.get::<Option<&str>>(column)?
            .map(|text| text.parse().map_err(|e: T::Err| corrupt(column, &e)))
            .transpose()
    }

    pub(super) fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T> {
        from_json(column, self.get(column)?)
    }

    pub(super) fn json_opt<T: DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>> {
        self.get::<Option<&str>>(column)?
            .map(|text| from_json(column, text))
            .transpose()
    }
}

fn corrupt(column: &'static str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Corrupt {
        column,
        detail: error.to_string(),
    }
}

/// A column's JSON text as a value.
pub(super) fn from_json<T: DeserializeOwned>(column: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| corrupt(column, &e))
}

/// A value as JSON text for a column.
pub(super) fn to_json<T: Serialize>(column: &'static str, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| corrupt(column, &e))
}

/// An unsigned number as SQLite's signed one.
pub(super) fn int(name: &'static str, value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| StoreError::OutOfRange(name))
}

/// A moment as a column's number.
pub(super) fn time(at: Timestamp) -> Result<i64> {
    int("time", at.0)
}

/// Turns a broken `UNIQUE` into [`StoreError::Exists`] and a broken reference into [`StoreError::NotFound`].
pub(super) fn on_insert(
    exists: What,
    missing: What,
    action: &'static str,
) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| match source.as_database_error() {
        Some(e) if e.is_unique_violation() => StoreError::Exists(exists),
        Some(e) if e.is_foreign_key_violation() => StoreError::NotFound(missing),
        Some(_) | None => StoreError::Unavailable { action, source },
    }
}

/// The stored text of [`VolumeState::Deleting`] and [`SnapshotState::Deleting`]. The tables' CHECKs hold this older word, so it stays as it is
/// in databases; the code says `Deleting`.
pub(super) const DELETING: &str = "condemned";

macro_rules! words {
    ($($name:ident { $($variant:ident = $word:tt),* $(,)? })*) => {$(
        impl $name {
            /// The word for it, as stored and shown.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl FromStr for $name {
            type Err = UnknownWordError;
            fn from_str(text: &str) -> std::result::Result<Self, UnknownWordError> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    other => Err(UnknownWordError(other.chars().take(32).collect())),
                }
            }
        }
    )*};
}

/// A word that is none of an enum's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is unknown")]
pub struct UnknownWordError(String);

words! {
    AppRole { User = "user", Builder = "builder" }
    TokenRole { Read = "read", Deploy = "deploy", Admin = "admin" }
    Intent { Wanted = "wanted", Stopped = "stopped" }
    VolumeState { Planned = "planned", Ready = "ready", Aside = "aside", Deleting = DELETING }
    VolumePurpose { Cache = "cache", Data = "data" }
    SnapshotState { Planned = "planned", Ready = "ready", Deleting = DELETING }
    BuildState {
        Pending = "pending",
        Running = "running",
        Succeeded = "succeeded",
        Failed = "failed",
        Cancelled = "cancelled",
    }
}
