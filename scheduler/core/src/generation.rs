//! The fencing number of a machine: each start gets a higher one, and hosts refuse lower ones.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A fencing number. Only the scheduler makes new ones.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// A request carried a generation that is older than one already seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("generation {got} is older than {have}")]
pub struct StaleGeneration {
    /// The highest generation seen so far.
    pub have: Generation,
    /// What the request carried.
    pub got: Generation,
}

impl Generation {
    /// The next one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Refuses `got` if it is older than `self`.
    ///
    /// # Errors
    /// [`StaleGeneration`] with both numbers.
    pub fn check(self, got: Self) -> Result<(), StaleGeneration> {
        if got < self {
            Err(StaleGeneration { have: self, got })
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
