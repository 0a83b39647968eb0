//! How a verb of the store can fail.

use slipway_core::quota::QuotaError;
use std::fmt;

/// Why a verb was not done. Nothing of it was recorded.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such row for this org.
    #[error("no such {0}")]
    NotFound(What),
    /// The name or id is taken.
    #[error("that {0} exists already")]
    Exists(What),
    /// The row is no longer as the caller believes: somebody else was faster.
    #[error("the {0} has changed meanwhile")]
    Changed(What),
    /// The pool of the host cannot promise that much more.
    #[error("the pool has {free_bytes} bytes left to promise, and {wanted_bytes} are wanted")]
    PoolFull {
        /// What is left.
        free_bytes: u64,
        /// What was asked for.
        wanted_bytes: u64,
    },
    /// The org may not have that much; the caller's fault.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// The row cannot go, because others refer to it.
    #[error("the {0} is still in use")]
    InUse(What),
    /// The database did not answer: locked for too long, disk full, file gone.
    #[error("the database did not {action}")]
    Unavailable {
        /// What was tried.
        action: &'static str,
        /// What the database says.
        #[source]
        source: sqlx::Error,
    },
    /// The schema could not be brought up to date.
    #[error("the database's schema could not be brought up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// A row holds what this version cannot read.
    #[error("the column {column} of a row cannot be read: {detail}")]
    Corrupt {
        /// Which column.
        column: &'static str,
        /// Why; names no content.
        detail: String,
    },
    /// A value does not fit the database's integers.
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
}

/// Kinds of [`StoreError`], for those who only need to choose what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller named something that is not there.
    NotFound,
    /// The caller's view or wish is at odds with what is recorded.
    Conflict,
    /// The org has all that it may have.
    Limit,
    /// There is no room.
    NoSpace,
    /// Try again later; nobody asked for anything wrong.
    Unavailable,
    /// Our bug, or a damaged file.
    Internal,
}

/// What a verb is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// An org.
    Org,
    /// An app.
    App,
    /// A token.
    Token,
    /// A host.
    Host,
    /// A volume.
    Volume,
    /// A snapshot of a volume.
    Snapshot,
    /// A machine.
    Machine,
    /// A build.
    Build,
    /// A registry credential.
    Credential,
}

impl StoreError {
    /// Whether the disk that the database lies on is full.
    pub fn is_disk_full(&self) -> bool {
        /// SQLite's result code `SQLITE_FULL`.
        const FULL: &str = "13";
        let Self::Unavailable { source, .. } = self else {
            return false;
        };
        let full = |error: &std::io::Error| error.kind() == std::io::ErrorKind::StorageFull;
        matches!(source, sqlx::Error::Io(error) if full(error))
            || source
                .as_database_error()
                .and_then(|error| error.code())
                .as_deref()
                == Some(FULL)
    }

    /// Which kind it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Exists(_) | Self::Changed(_) | Self::InUse(_) => ErrorKind::Conflict,
            Self::PoolFull { .. } => ErrorKind::NoSpace,
            Self::Quota(_) => ErrorKind::Limit,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::Migrate(_) | Self::Corrupt { .. } | Self::OutOfRange(_) => ErrorKind::Internal,
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Org => "org",
            Self::App => "app",
            Self::Token => "token",
            Self::Host => "host",
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
            Self::Machine => "machine",
            Self::Build => "build",
            Self::Credential => "registry credential",
        })
    }
}
