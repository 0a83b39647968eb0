//! Reading a build's events: what is recorded, then what is recorded next.

use slipway_core::build::NumberedEvent;
use slipway_core::id::{BuildId, OrgId};
use slipway_store::limits::EVENTS_READ_MAX;
use slipway_store::{Store, StoreError};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::watch;

/// Reads a build's events from the store, page by page.
pub(super) struct EventReader {
    pub(super) store: Arc<dyn Store>,
    pub(super) org: OrgId,
    pub(super) id: BuildId,
    pub(super) after: u64,
    pub(super) page: VecDeque<NumberedEvent>,
    /// Absent when nobody follows the build any more: what is in the store is all there is.
    pub(super) more: Option<watch::Receiver<u64>>,
}

impl EventReader {
    /// The next event; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<NumberedEvent>, StoreError> {
        loop {
            if let Some(event) = self.page.pop_front() {
                self.after = event.seq;
                return Ok(Some(event));
            }
            // Marked before the read, so that what is recorded during it is not missed.
            let last = match &mut self.more {
                Some(more) => {
                    more.mark_unchanged();
                    false
                }
                None => true,
            };
            self.page = self
                .store
                .build_events(&self.org, &self.id, self.after, EVENTS_READ_MAX)
                .await?
                .into();
            if !self.page.is_empty() {
                continue;
            }
            if last {
                return Ok(None);
            }
            if let Some(more) = &mut self.more
                && more.changed().await.is_err()
            {
                self.more = None;
            }
        }
    }
}
