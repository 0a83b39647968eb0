//! Builds that wait, run, or ended not long ago. They belong to the guest: whoever asked for one may go away, come back
//! and read on from the last event it has.
//!
//! It must not know how a build is solved or pushed, nor how events are asked for.

mod record;
mod tails;

use crate::books::{Books, InFlight};
use crate::ledger::{Closed, Work};
use crate::limits;
use crate::loans::{Borrower, Loans};
use bytes::Bytes;
use futures_util::Stream;
use record::Record;
use slipway_core::build::{BuildEvent, BuildOutcome, StepsSeen};
use slipway_core::guest_api::{BuildSummary, StartBuild};
use slipway_core::id::BuildId;
use slipway_core::limits::{BUILDS_RUNNING_MAX, BUILDS_WAITING_MAX};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

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
pub(crate) struct Held {
    /// Keeps the machine up.
    pub(crate) in_flight: InFlight,
    /// The way to credentials that the control plane keeps.
    pub(crate) borrower: Option<Borrower>,
}

/// What became of a build of a client's.
#[derive(Debug)]
pub(crate) enum Seen {
    /// It is in the list already.
    Known,
    /// It is in the list from now on.
    New(Arc<Build>),
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
    /// Accepts a build: it is the caller's to run then. Nothing, if its id is known already.
    ///
    /// # Errors
    /// [`NotAccepted`].
    pub(crate) fn accept(
        &self,
        request: &StartBuild,
        books: &Books,
        loans: &Arc<Loans>,
    ) -> Result<Option<(Arc<Build>, Held)>, NotAccepted> {
        let mut known = self.known();
        if known.iter().any(|build| build.id == request.id) {
            return Ok(None);
        }
        let waiting = known
            .iter()
            .filter(|build| !build.is_seen && build.record.borrow().is_waiting())
            .count();
        if waiting >= BUILDS_WAITING_MAX {
            return Err(NotAccepted::Full);
        }
        let in_flight = books.begin(Work::Build).map_err(NotAccepted::Closed)?;
        let build = Arc::new(Build::new(request.id.clone()));
        known.push_back(build.clone());
        drop(known);
        let borrower = (!request.lent.is_empty())
            .then(|| loans.begin(request.id.to_string(), request.lent.clone()));
        let held = Held {
            in_flight,
            borrower,
        };
        Ok(Some((build, held)))
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

    /// Waits for a place among those that run. None if there will never be one.
    pub(crate) async fn place(&self, build: &Build) -> Option<OwnedSemaphorePermit> {
        let places = self.places.clone();
        if let Ok(place) = places.clone().try_acquire_owned() {
            return Some(place);
        }
        build.append(BuildEvent::Queued {
            ahead: self.ahead_of(&build.id),
        });
        places.acquire_owned().await.ok()
    }

    /// A build that a client of dockerd's asked for, and whether it is new here: then the caller follows it. None if as many as
    /// may be are followed.
    pub(crate) fn see(&self, id: BuildId, began: Option<SystemTime>) -> Option<Seen> {
        let mut known = self.known();
        if known.iter().any(|build| build.id == id) {
            return Some(Seen::Known);
        }
        let under_way = known
            .iter()
            .filter(|build| build.is_seen && build.ended_at().is_none());
        if under_way.count() >= limits::SEEN_FOLLOWED_MAX {
            return None;
        }
        let mut build = Build::new(id);
        build.is_seen = true;
        build.accepted_at = began.unwrap_or(build.accepted_at);
        let build = Arc::new(build);
        known.push_back(build.clone());
        Some(Seen::New(build))
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

    /// Which it is.
    pub(crate) fn id(&self) -> &BuildId {
        &self.id
    }

    /// When it was accepted, or its client asked for it.
    pub(crate) fn accepted_at(&self) -> SystemTime {
        self.accepted_at
    }

    /// Waits until the build is asked to end, and says why.
    pub(crate) async fn stopped(&self) -> Stop {
        let mut stop = self.stop.subscribe();
        // The sender lives in `self`.
        let why = stop.wait_for(Option::is_some).await;
        why.ok().and_then(|why| *why).unwrap_or(Stop::Cancelled)
    }

    /// It has ended so. This is its last event.
    pub(crate) fn end(&self, outcome: BuildOutcome) {
        self.append(BuildEvent::Ended(outcome));
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        *self.image() = None;
    }

    /// The steps of its Dockerfile so far.
    pub(crate) fn steps_seen(&self) -> MutexGuard<'_, StepsSeen> {
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

    /// Records an event.
    pub(crate) fn append(&self, event: BuildEvent) {
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

    /// Id of the image it has made, while it needs it.
    pub(crate) fn image(&self) -> MutexGuard<'_, Option<String>> {
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
