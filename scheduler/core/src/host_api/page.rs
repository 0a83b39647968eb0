//! Lists in parts, and where in the changes of a list somebody is.

use crate::limits::HOST_API_PAGE_MAX;
use serde::{Deserialize, Serialize};

/// One part of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The last id that the caller has; absent: from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// At most so many; never more than [`HOST_API_PAGE_MAX`].
    pub max: u32,
}

impl Page {
    /// The part of a list that this page is, and whether there is more after it. `list` is in the order of `id`.
    pub fn cut<T>(&self, list: Vec<T>, id: impl Fn(&T) -> &str) -> (Vec<T>, bool) {
        let max = usize::try_from(self.max.clamp(1, HOST_API_PAGE_MAX)).unwrap_or(usize::MAX);
        let seen = |item: &T| self.after.as_deref().is_some_and(|after| id(item) <= after);
        let mut page: Vec<T> = list.into_iter().skip_while(seen).take(max + 1).collect();
        let more = page.len() > max;
        page.truncate(max);
        (page, more)
    }
}

/// One life of a host daemon, drawn when it starts. Revisions are of one life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// A place in the changes of a host's machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The life of the daemon; absent from a host of version 2.
    pub epoch: Option<Epoch>,
    /// Grows with each change within it.
    pub revision: u64,
}
