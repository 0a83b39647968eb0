//! Builds that wait, run, or ended not long ago. They belong to the guest: whoever asked for one may go away, come back
//! and read on from the last event it has.
//!
//! It must not know how a build is solved or pushed ([`run`]), nor how events are asked for.

mod convert;
mod outcome;
mod reach;
mod record;
mod run;
mod seen;
mod tails;
mod wishes;

pub(crate) use convert::Throttle;
pub(crate) use outcome::chain;
pub(crate) use seen::solves;

use crate::books::InFlight;
use crate::guest::Guest;
use crate::ledger::{Closed, Work};
use crate::limits;
use crate::loans::Borrower;
use bytes::Bytes;
use futures_util::Stream;
use record::Record;
use slipway_core::build::{BuildEvent, StepsSeen};
use slipway_core::guest_api::{BuildSummary, StartBuild};
use slipway_core::id::BuildId;
use slipway_core::limits::{BUILDS_RUNNING_MAX, BUILDS_WAITING_MAX};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Semaphore, watch};

/// Why a build was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAccepted {
    /// The machine is on its way down.
    #[error("{0}")]
    Closed(Closed),
    /// Too many wait already.
    #[error(
        "{BUILDS_WAITING_MAX} builds wait already on this builder; try again when some have ended"
    )]
    Full,
}

/// What a build holds until it ends.
#[derive(Debug)]
struct Held {
    in_flight: InFlight,
    /// The way to credentials that the control plane keeps.
    borrower: Option<Borrower>,
}

/// Why a build ends before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Somebody cancelled it.
    Cancelled,
    /// The machine ends.
    BuilderEnds,
}

/// One build.
#[derive(Debug)]
pub(crate) struct Build {
    id: BuildId,
    /// A client of dockerd's asked for it, and the guest only tells of it.
    is_seen: bool,
    accepted: Instant,
    accepted_at: SystemTime,
    record: watch::Sender<Record>,
    stop: watch::Sender<Option<Stop>>,
    ended: Mutex<Option<Instant>>,
    /// Id of the image it has made, while it needs it.
    image: Mutex<Option<String>>,
    steps: Mutex<StepsSeen>,
}

/// All builds the guest knows of, in the order of their acceptance.
#[derive(Debug)]
pub(crate) struct Builds {
    known: Mutex<VecDeque<Arc<Build>>>,
    places: Arc<Semaphore>,
}

impl Default for Builds {
    fn default() -> Self {
        Builds {
            known: Mutex::default(),
            places: Arc::new(Semaphore::new(BUILDS_RUNNING_MAX)),
        }
    }
}

impl Builds {
    /// Accepts a build and lets it run when there is a place. The id of a build that is known already changes nothing.
    pub(crate) fn start(&self, guest: &Arc<Guest>, request: StartBuild) -> Result<(), NotAccepted> {
        let mut known = self.known();
        if known.iter().any(|build| build.id == request.id) {
            return Ok(());
        }
        let waiting = known
            .iter()
            .filter(|build| !build.is_seen && build.record.borrow().is_waiting())
            .count();
        if waiting >= BUILDS_WAITING_MAX {
            return Err(NotAccepted::Full);
        }
        let in_flight = guest
            .books
            .begin(Work::Build)
            .map_err(NotAccepted::Closed)?;
        let build = Arc::new(Build::new(request.id.clone()));
        known.push_back(build.clone());
        drop(known);
        let borrower = (!request.lent.is_empty()).then(|| {
            let (id, registries) = (request.id.to_string(), request.lent.clone());
            guest.loans.begin(id, registries)
        });
        let held = Held {
            in_flight,
            borrower,
        };
        // Owned by the build itself: it always ends, by its own bound if by nothing else.
        tokio::spawn(run::run(guest.clone(), build, request, held));
        Ok(())
    }

    /// The build of this id.
    pub(crate) fn get(&self, id: &BuildId) -> Option<Arc<Build>> {
        self.known().iter().find(|build| build.id == *id).cloned()
    }

    /// All builds, in the order of their acceptance.
    pub(crate) fn summaries(&self) -> Vec<BuildSummary> {
        self.known().iter().map(|build| build.summary()).collect()
    }

    /// Forgets builds that ended long ago, or that are too many.
    pub(crate) fn forget_old(&self) {
        let mut known = self.known();
        let mut ended: Vec<(Duration, BuildId, usize)> = known
            .iter()
            .filter_map(|build| {
                let size = build.record.borrow().bytes();
                Some((build.ended_at()?.elapsed(), build.id.clone(), size))
            })
            .collect();
        ended.sort_by_key(|(age, _, _)| *age);
        let kept = kept(ended.iter().map(|(age, _, size)| (*age, *size)));
        let forgotten = ended.split_off(kept);
        known.retain(|build| !forgotten.iter().any(|(_, id, _)| *id == build.id));
    }

    /// Ends all builds, because the machine ends.
    pub(crate) fn end_all(&self) {
        for build in self.known().iter() {
            build.stop(Stop::BuilderEnds);
        }
    }

    /// A build that has not ended has made this image.
    pub(crate) fn holds_image(&self, id: &str) -> bool {
        self.known()
            .iter()
            .any(|build| build.image().as_deref() == Some(id))
    }

    fn ahead_of(&self, id: &BuildId) -> u32 {
        let known = self.known();
        let before = known.iter().take_while(|build| build.id != *id);
        let waiting = before
            .filter(|build| build.record.borrow().is_waiting())
            .count();
        u32::try_from(waiting).unwrap_or(u32::MAX)
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<Arc<Build>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many ended builds are kept, of a list of their ages and sizes from the youngest on.
fn kept(ended: impl Iterator<Item = (Duration, usize)>) -> usize {
    let mut bytes = 0_usize;
    ended
        .take(limits::BUILDS_KEPT_MAX)
        .take_while(|(age, size)| {
            bytes = bytes.saturating_add(*size);
            *age <= limits::BUILD_KEPT_FOR && bytes <= limits::BUILDS_KEPT_BYTES_MAX
        })
        .count()
}

impl Build {
    fn new(id: BuildId) -> Build {
        Build {
            id,
            is_seen: false,
            accepted: Instant::now(),
            accepted_at: SystemTime::now(),
            record: watch::Sender::new(Record::default()),
            stop: watch::Sender::new(None),
            ended: Mutex::new(None),
            image: Mutex::new(None),
            steps: Mutex::default(),
        }
    }

    /// The steps of its Dockerfile so far.
    fn steps_seen(&self) -> MutexGuard<'_, StepsSeen> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is a client's own, which alone can end it.
    pub(crate) fn is_seen(&self) -> bool {
        self.is_seen
    }

    /// Asks the build to end. It does so as soon as it can; the first reason counts.
    pub(crate) fn stop(&self, why: Stop) {
        self.stop.send_if_modified(|stop| {
            let first = stop.is_none();
            stop.get_or_insert(why);
            first
        });
    }

    /// The lines of all events after `seq`, in pieces; ends after the build's last event.
    pub(crate) fn events(
        self: Arc<Self>,
        seq: u64,
    ) -> impl Stream<Item = Bytes> + Send + Sync + 'static {
        let updates = self.record.subscribe();
        futures_util::stream::unfold(
            (self, updates, seq),
            |(build, mut updates, seq)| async move {
                let (lines, last) = {
                    // Waits until there is more than was read, or the end; the sender lives in `build`.
                    let record = updates
                        .wait_for(|record| record.last_seq() > seq || record.outcome().is_some())
                        .await
                        .ok()?;
                    record.after(seq, limits::EVENTS_PIECE_BYTES)
                };
                if lines.is_empty() {
                    return None;
                }
                Some((Bytes::from(lines.concat()), (build, updates, last)))
            },
        )
    }

    fn append(&self, event: BuildEvent) {
        let at_ms = u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let BuildEvent::Step(step) = &event {
            self.steps_seen().see(step);
        }
        self.record
            .send_modify(|record| record.append(event, at_ms));
    }

    fn summary(&self) -> BuildSummary {
        let record = self.record.borrow();
        BuildSummary {
            id: self.id.clone(),
            outcome: record.outcome().cloned(),
            last_seq: record.last_seq(),
        }
    }

    fn image(&self) -> MutexGuard<'_, Option<String>> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended_at(&self) -> Option<Instant> {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_builds_are_forgotten_by_age_number_and_size() {
        let young = Duration::from_secs(1);
        let old = limits::BUILD_KEPT_FOR + young;
        let large = limits::BUILDS_KEPT_BYTES_MAX / 2;
        for (ended, want) in [
            (vec![], 0),
            (vec![(young, 1), (young, 1), (old, 1)], 2),
            (
                vec![(young, 1); limits::BUILDS_KEPT_MAX + 5],
                limits::BUILDS_KEPT_MAX,
            ),
            (vec![(young, large), (young, large), (young, 1)], 2),
        ] {
            assert_eq!(kept(ended.into_iter()), want);
        }
    }
}
