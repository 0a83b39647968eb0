//! Orgs as they were a moment ago, so that a burst of small requests asks the store once.
//!
//! Must not know: who may enter one.

use crate::bounds::{RECENT_ORGS_KEEP, RECENT_ORGS_MAX};
use slipway_core::id::OrgId;
use slipway_store::Org;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct RecentOrgs(Mutex<HashMap<OrgId, (Org, Instant)>>);

impl RecentOrgs {
    pub(super) fn get(&self, id: &OrgId, now: Instant) -> Option<Org> {
        let orgs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (org, until) = orgs.get(id)?;
        (*until > now).then(|| org.clone())
    }

    pub(super) fn put(&self, org: &Org, now: Instant) {
        let mut orgs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if orgs.len() >= RECENT_ORGS_MAX {
            orgs.retain(|_, (_, until)| *until > now);
        }
        if orgs.len() < RECENT_ORGS_MAX {
            orgs.insert(org.id.clone(), (org.clone(), now + RECENT_ORGS_KEEP));
        }
    }
}
