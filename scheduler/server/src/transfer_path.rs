//! Paths of what a client reads of a snapshot, and of what it sends to a volume.
//!
//! Must not know: what is answered there.

use slipway_core::id::{SnapshotId, VolumeId};

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// The contents of a snapshot.
    Export(String),
    /// Those that are sent to a volume.
    Import(String),
}

impl Transfer {
    /// Where the contents of a snapshot are.
    pub(crate) fn export_path(snapshot: &SnapshotId) -> String {
        format!("/v1/snapshots/{snapshot}/export")
    }

    /// Where those of a volume are sent.
    pub(crate) fn import_path(volume: &VolumeId) -> String {
        format!("/v1/volumes/{volume}/import")
    }

    /// What this path names, if it is one of these.
    pub(crate) fn of(path: &str) -> Option<Self> {
        let named = |before: &str, after: &str| {
            let id = path.strip_prefix(before)?.strip_suffix(after)?;
            Some(id.to_owned()).filter(|id| !id.contains('/'))
        };
        named("/v1/snapshots/", "/export")
            .map(Self::Export)
            .or_else(|| named("/v1/volumes/", "/import").map(Self::Import))
    }

    /// What may be asked there.
    pub(crate) fn methods(&self) -> &'static str {
        match self {
            Self::Export(_) => "GET",
            Self::Import(_) => "POST, PUT",
        }
    }
}
