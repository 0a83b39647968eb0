//! The [`Ledger`] with a clock, shared by everything that runs in the guest.
//!
//! It must not know what the work is.

use crate::ledger::{Closed, Ledger, Work};
use crate::phase::{Event, Phase};
use slipway_core::guest_api::Activity;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The machine's books. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Books {
    started: Instant,
    /// Milliseconds that the machine was paused in all, during which its clocks stood.
    paused_ms: Arc<AtomicU64>,
    ledger: Arc<watch::Sender<Ledger>>,
}

/// Work in flight; dropping it ends the work.
#[derive(Debug)]
pub(crate) struct InFlight {
    books: Books,
    work: Work,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let now_ms = self.books.now_ms();
        self.books
            .ledger
            .send_modify(|ledger| ledger.end(self.work, now_ms));
    }
}

impl Books {
    /// New books of a guest that was started at `started`.
    pub(crate) fn new(started: Instant) -> Books {
        Books {
            started,
            paused_ms: Arc::default(),
            ledger: Arc::new(watch::Sender::new(Ledger::new())),
        }
    }

    /// Milliseconds since the guest's start, as they passed outside.
    pub(crate) fn now_ms(&self) -> u64 {
        let ran = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        ran.saturating_add(self.paused_ms.load(Ordering::Relaxed))
    }

    /// The machine was paused for so long. Nothing was in flight, so that is idle time: a machine that rests between two looks
    /// of the control plane would else never have been idle for long enough to be ended.
    pub(crate) fn was_paused(&self, for_so_long: Duration) {
        let ms = u64::try_from(for_so_long.as_millis()).unwrap_or(u64::MAX);
        let add = |before: u64| Some(before.saturating_add(ms));
        // Always adds, so there is nothing to be told.
        let _ = self
            .paused_ms
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// A copy of the books as they are.
    pub(crate) fn read(&self) -> Ledger {
        *self.ledger.borrow()
    }

    /// What is in flight now.
    pub(crate) fn activity(&self) -> Activity {
        self.read().activity(self.now_ms())
    }

    /// Where the machine is in its life.
    pub(crate) fn phase(&self) -> Phase {
        self.read().phase()
    }

    /// Moves the machine on; gives the phase after it. An event that cannot happen is logged and changes nothing.
    pub(crate) fn on(&self, event: Event) -> Phase {
        let now_ms = self.now_ms();
        self.ledger.send_modify(|ledger| {
            let before = ledger.phase();
            match ledger.on(event, now_ms) {
                Ok(after) if after != before => {
                    tracing::info!(?event, ?before, ?after, at_ms = now_ms, "phase");
                }
                Ok(_) => {}
                Err(illegal) => tracing::warn!(%illegal, "event is ignored"),
            }
        });
        self.phase()
    }

    /// Asks for the end; refused with what is in flight.
    pub(crate) fn end_if_idle(&self) -> Result<(), Activity> {
        let now_ms = self.now_ms();
        let mut ended = Ok(());
        self.ledger
            .send_modify(|ledger| ended = ledger.end_if_idle(now_ms));
        ended
    }

    /// Begins a piece of work, which lasts until the guard is dropped.
    pub(crate) fn begin(&self, work: Work) -> Result<InFlight, Closed> {
        let mut begun = Ok(());
        self.ledger.send_modify(|ledger| begun = ledger.begin(work));
        begun?;
        Ok(InFlight {
            books: self.clone(),
            work,
        })
    }

    /// So many containers and steps were seen to run.
    pub(crate) fn running(&self, containers: u32, steps: u32) {
        let now_ms = self.now_ms();
        self.ledger
            .send_modify(|ledger| ledger.running(containers, steps, now_ms));
    }

    /// Waits until the phase is one that `wanted` takes, at most for `wait`. Gives the phase in either case.
    pub(crate) async fn wait_phase(&self, wait: Duration, wanted: impl Fn(Phase) -> bool) -> Phase {
        let mut watched = self.ledger.subscribe();
        let reached = watched.wait_for(|ledger| wanted(ledger.phase()));
        // The sender lives in `self`, so only the time can run out.
        let _ = tokio::time::timeout(wait, reached).await;
        self.phase()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_idle_time() {
        let books = Books::new(Instant::now());
        books.on(Event::Answered);
        let pause = Duration::from_secs(600);
        books.clone().was_paused(pause);
        let idle = Duration::from_millis(books.activity().idle_ms);
        assert!(idle >= pause && idle < pause + Duration::from_secs(60));

        let build = books.begin(Work::Build).expect("open");
        drop(build);
        assert!(books.activity().idle_ms < 60_000, "that was before");
        books.was_paused(Duration::MAX);
        books.was_paused(Duration::MAX);
        assert!(books.activity().idle_ms > 60_000, "nothing overflows");
    }
}
