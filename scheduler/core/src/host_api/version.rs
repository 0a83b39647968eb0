//! The versions of the host API, and which of them two sides speak with each other.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The newest version that this release speaks.
pub const HOST_API_VERSION: u32 = 3;
/// All versions that this release speaks: its own, and that of the release before it.
pub const HOST_API_VERSIONS: VersionRange = VersionRange {
    oldest: 2,
    newest: HOST_API_VERSION,
};
/// The only version of hosts that do not say what they speak.
const UNSAID_VERSION: u32 = 2;
/// The first version with fencing numbers, pages and epochs.
pub const FENCED_SINCE: u32 = 3;

/// The versions of the host API that one side speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The oldest.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

impl VersionRange {
    /// Whether this version is one of them.
    pub fn has(self, version: u32) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }

    /// The highest version that both sides speak. `theirs` is absent for a side that does not say.
    ///
    /// # Errors
    /// [`NoCommonVersion`] if there is none.
    pub fn common(self, theirs: Option<Self>) -> Result<u32, NoCommonVersion> {
        let theirs = theirs.unwrap_or(Self {
            oldest: UNSAID_VERSION,
            newest: UNSAID_VERSION,
        });
        let newest = self.newest.min(theirs.newest);
        if newest < self.oldest.max(theirs.oldest) {
            return Err(NoCommonVersion { ours: self, theirs });
        }
        Ok(newest)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            return self.oldest.fmt(f);
        }
        write!(f, "{} to {}", self.oldest, self.newest)
    }
}

/// Two releases are too far apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the host speaks version {theirs} of the host API, and this control plane {ours} (hint: upgrade the older of the two one release at a time)"
)]
pub struct NoCommonVersion {
    /// What this side speaks.
    pub ours: VersionRange,
    /// What the other side speaks.
    pub theirs: VersionRange,
}
