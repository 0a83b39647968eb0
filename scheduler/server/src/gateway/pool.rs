//! Idle connections to builders, kept for the next request.
//!
//! A kept connection is no activity: the reaper may end its builder. Whoever takes one therefore first counts as activity, and
//! then gets it only if the generation it was made to still takes connections. The guest of a virtual machine cannot tell an idle
//! stream from one on which somebody waits, and is not paused before the last is closed: so they are closed when their time is over,
//! whether or not anybody comes. Must not know: what is sent on one.

use super::Activity;
use super::Builders;
use crate::bounds::{POOLED_IDLE_MAX, POOLED_MAX, POOLED_PER_BUILDER_MAX};
use crate::farm::BuilderKey;
use crate::http::Body;
use hyper::client::conn::http1::SendRequest;
use slipway_core::generation::Generation;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};

#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    idle: HashMap<BuilderKey, Vec<Idle>>,
    /// A task will close what has become old.
    swept: bool,
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<Body>,
    generation: Generation,
    since: Instant,
}

impl Idle {
    fn is_good(&self) -> bool {
        self.since.elapsed() < POOLED_IDLE_MAX && !self.sender.is_closed()
    }
}

impl Kept {
    fn len(&self) -> usize {
        self.idle.values().map(Vec::len).sum()
    }

    /// Closes what is old; gives when the next one is.
    fn sweep(&mut self) -> Option<Instant> {
        self.idle.retain(|_, kept| {
            kept.retain(Idle::is_good);
            !kept.is_empty()
        });
        let oldest = self.idle.values().flatten().map(|one| one.since).min()?;
        Some(oldest + POOLED_IDLE_MAX)
    }
}

impl Pool {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that is good as far as anybody knows, and the activity to go with it.
    pub(super) fn take(
        &self,
        builders: &dyn Builders,
        key: &BuilderKey,
    ) -> Option<(SendRequest<Body>, Activity)> {
        if !self.kept().idle.contains_key(key) {
            return None;
        }
        // In this order: from here on the reaper leaves the builder alone, unless it has begun already.
        let activity = builders.activity(key)?;
        let running = builders.running(key)?;
        let mut kept = self.kept();
        let of_builder = kept.idle.get_mut(key)?;
        while let Some(newest) = of_builder.pop() {
            let good = newest.is_good() && newest.sender.is_ready();
            if good && newest.generation == running {
                return Some((newest.sender, activity));
            }
        }
        kept.idle.remove(key);
        None
    }

    /// Keeps a connection to this generation, unless there are enough. Without a runtime, which is about to end, it is closed.
    pub(super) fn put(
        self: &Arc<Self>,
        key: &BuilderKey,
        generation: Generation,
        sender: SendRequest<Body>,
    ) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        if sender.is_closed() {
            return;
        }
        let mut kept = self.kept();
        if kept.len() >= POOLED_MAX {
            kept.sweep();
            if kept.len() >= POOLED_MAX {
                return;
            }
        }
        let of_builder = kept.idle.entry(key.clone()).or_default();
        of_builder.retain(Idle::is_good);
        if of_builder.len() >= POOLED_PER_BUILDER_MAX {
            return;
        }
        of_builder.push(Idle {
            sender,
            generation,
            since: Instant::now(),
        });
        if !std::mem::replace(&mut kept.swept, true) {
            runtime.spawn(sweep(Arc::downgrade(self)));
        }
    }
}

/// Closes each connection when its time is over, until there is none.
async fn sweep(pool: Weak<Pool>) {
    loop {
        let next = {
            let Some(pool) = pool.upgrade() else { return };
            let mut kept = pool.kept();
            let next = kept.sweep();
            kept.swept = next.is_some();
            next
        };
        let Some(next) = next else { return };
        sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper_util::rt::TokioIo;
    use slipway_core::id::OrgId;
    use tokio::io::{AsyncReadExt, DuplexStream};

    /// A connection, and the builder's end of it.
    async fn connection() -> (SendRequest<Body>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(64);
        let (sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(ours))
            .await
            .unwrap();
        tokio::spawn(driver);
        (sender, theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_idle_is_closed_in_time_though_nobody_comes() {
        let pool = Arc::new(Pool::default());
        let key = BuilderKey {
            org: OrgId::from_entropy([1; 10]),
            region: "local".into(),
            arch: "amd64".into(),
        };
        for round in 0..2 {
            let (first, mut first_end) = connection().await;
            let (second, mut second_end) = connection().await;
            let began = Instant::now();
            pool.put(&key, Generation(1), first);
            tokio::time::sleep(POOLED_IDLE_MAX / 2).await;
            pool.put(&key, Generation(1), second);
            assert_eq!(first_end.read(&mut [0]).await.unwrap(), 0, "{round}");
            assert!(began.elapsed() >= POOLED_IDLE_MAX);
            assert!(began.elapsed() < POOLED_IDLE_MAX * 11 / 10);
            assert_eq!(pool.kept().len(), 1, "each has its own time");
            assert_eq!(second_end.read(&mut [0]).await.unwrap(), 0);
            assert!(began.elapsed() < POOLED_IDLE_MAX * 8 / 5);
            assert_eq!(pool.kept().len(), 0);
        }
    }
}
