//! Idle connections to builders, kept for the next request.
//!
//! A kept connection is no activity: the reaper may end its builder. Whoever takes one therefore first counts as activity, and
//! then gets it only if the generation it was made to still takes connections. Must not know: what is sent on one.

use super::Activity;
use super::Builders;
use crate::bounds::{POOLED_IDLE_MAX, POOLED_MAX, POOLED_PER_BUILDER_MAX};
use crate::farm::BuilderKey;
use crate::http::Body;
use hyper::client::conn::http1::SendRequest;
use slipway_core::generation::Generation;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<HashMap<BuilderKey, Vec<Idle>>>);

#[derive(Debug)]
struct Idle {
    sender: SendRequest<Body>,
    generation: Generation,
    since: Instant,
}

impl Pool {
    fn idle(&self) -> MutexGuard<'_, HashMap<BuilderKey, Vec<Idle>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that is good as far as anybody knows, and the activity to go with it.
    pub(super) fn take(
        &self,
        builders: &dyn Builders,
        key: &BuilderKey,
    ) -> Option<(SendRequest<Body>, Activity)> {
        if !self.idle().contains_key(key) {
            return None;
        }
        // In this order: from here on the reaper leaves the builder alone, unless it has begun already.
        let activity = builders.activity(key)?;
        let running = builders.running(key)?;
        let mut idle = self.idle();
        let kept = idle.get_mut(key)?;
        while let Some(newest) = kept.pop() {
            let fresh = newest.since.elapsed() < POOLED_IDLE_MAX;
            if fresh && newest.generation == running && newest.sender.is_ready() {
                return Some((newest.sender, activity));
            }
        }
        idle.remove(key);
        None
    }

    /// Keeps a connection to this generation, unless there are enough.
    pub(super) fn put(&self, key: &BuilderKey, generation: Generation, sender: SendRequest<Body>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle();
        if idle.values().map(Vec::len).sum::<usize>() >= POOLED_MAX {
            idle.retain(|_, kept| {
                kept.retain(|one| one.since.elapsed() < POOLED_IDLE_MAX && !one.sender.is_closed());
                !kept.is_empty()
            });
            if idle.values().map(Vec::len).sum::<usize>() >= POOLED_MAX {
                return;
            }
        }
        let kept = idle.entry(key.clone()).or_default();
        kept.retain(|one| one.since.elapsed() < POOLED_IDLE_MAX && !one.sender.is_closed());
        if kept.len() < POOLED_PER_BUILDER_MAX {
            kept.push(Idle {
                sender,
                generation,
                since: Instant::now(),
            });
        }
    }
}
