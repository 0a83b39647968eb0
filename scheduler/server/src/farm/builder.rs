//! One builder in memory: what is recorded of it, what its host says, who uses it. All of it under one lock that is never
//! held across an await, so that a connection that begins and the reaper see each other.
//!
//! Must not know: how steps are carried out.

use super::error::FarmError;
use super::host::HostLink;
use super::view::{BuilderKey, BuilderView, Events, FarmEvent, key_of};
use crate::clock::now;
use crate::limits::BUILDER_CONNECTIONS_MAX;
use slipway_core::ceilings::Ceilings;
use slipway_core::generation::Generation;
use slipway_core::host_api::EndpointPort;
use slipway_core::id::{HostId, VolumeId};
use slipway_core::idle::{self, Idle};
use slipway_core::isolation::Isolation;
use slipway_core::machine::{IllegalTransition, MachineEvent, MachineState};
use slipway_core::planner::{MachineView, Observed};
use slipway_core::quota::BuilderSize;
use slipway_core::time::Timestamp;
use slipway_store::{Intent, Machine, MachineRecord, Org};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};

/// Why a machine was killed that did not come up.
pub(super) const NOT_READY: &str = "it was not ready in time";

#[derive(Debug)]
pub(crate) struct Builder {
    pub(super) key: BuilderKey,
    /// Where it is; another after its volume has moved.
    host: RwLock<Arc<HostLink>>,
    inner: Mutex<Inner>,
    /// Held while it is recorded, so that records are written in the order in which they are taken.
    pub(super) recording: tokio::sync::Mutex<()>,
    /// The driver has something to plan for.
    pub(super) wake: Notify,
    /// Counts changes; those who wait for a state look again.
    changes: watch::Sender<u64>,
    events: Arc<Events>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) machine: Machine,
    pub(super) observed: Observed,
    pub(super) in_flight: u32,
    pub(super) quiet_since: Timestamp,
    pub(super) wishes: Wishes,
    pub(super) ask_not_before: Timestamp,
    /// When the guest last said that dockerd starts.
    pub(super) heard_at: Timestamp,
    pub(super) volume_ready: bool,
    pub(super) volume_damaged: bool,
    /// It is whole, but a virtual machine has written it and the builder is a sandbox.
    pub(super) volume_foreign: bool,
    /// There was no room for an empty cache in place of the damaged one.
    pub(super) replace_not_before: Timestamp,
    /// The host still works on the start of this generation.
    pub(super) in_progress: Option<Generation>,
    pub(super) hold_until: Timestamp,
    /// Its last start did not fail by itself, but waits for something that may be over soon.
    pub(super) delayed: bool,
    /// It waits for its turn to start on its host, with this ticket.
    pub(super) queued: Option<u64>,
    /// A side effect on the host is under way; lists of the host are not believed meanwhile.
    pub(super) acting: bool,
    /// This volume of it is on its way to another host: it does not start.
    pub(super) moving: Option<VolumeId>,
    /// What the store has, as far as this process knows.
    pub(super) recorded: Option<MachineRecord>,
    /// Somebody waits for the cache to be emptied, which the driver does once nothing of the machine lives.
    pub(super) reset: Option<oneshot::Sender<Result<(), FarmError>>>,
}

/// What an org wants of its builders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wishes {
    /// They end themselves after this long without work.
    pub(super) idle: Duration,
    /// How they must be isolated, from their next start on.
    pub(super) isolation: Isolation,
    /// The processor and memory that they get at their next start; absent: what they have.
    pub(super) size: Option<BuilderSize>,
}

impl Wishes {
    /// As the org's record has them, within what the installation lets any org have.
    pub(super) fn of(org: &Org, ceilings: &Ceilings) -> Self {
        Self {
            idle: org.idle,
            isolation: org.isolation,
            size: Some(ceilings.cut_size(org.builder_size)),
        }
    }
}

/// What a connection may do now.
#[derive(Debug)]
pub(super) enum Attempt {
    /// Connect to this generation.
    Open(Generation),
    /// Wait for a change and try again.
    Wait,
    /// It will not come up.
    WontStart(String),
}

/// Counts as activity of a builder until dropped: the reaper leaves the builder alone.
#[derive(Debug)]
#[must_use = "dropping the guard ends the activity"]
pub struct ActivityGuard(Arc<Builder>);

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.in_flight = inner.in_flight.saturating_sub(1);
        if inner.in_flight == 0 {
            inner.quiet_since = now();
            drop(inner);
            self.0.wake.notify_one();
        }
    }
}

impl Builder {
    pub(super) fn new(
        machine: Machine,
        wishes: Wishes,
        host: Arc<HostLink>,
        events: Arc<Events>,
    ) -> Self {
        let inner = Inner {
            observed: Observed::Unknown,
            in_flight: 0,
            quiet_since: now(),
            wishes,
            ask_not_before: Timestamp(0),
            heard_at: Timestamp(0),
            volume_ready: false,
            volume_damaged: false,
            volume_foreign: false,
            replace_not_before: Timestamp(0),
            in_progress: None,
            hold_until: Timestamp(0),
            delayed: false,
            queued: None,
            acting: false,
            moving: None,
            recorded: None,
            reset: None,
            machine,
        };
        Self {
            key: key_of(&inner.machine),
            host: RwLock::new(host),
            inner: Mutex::new(inner),
            recording: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            changes: watch::Sender::new(0),
            events,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    pub(super) fn host(&self) -> Arc<HostLink> {
        let host = self.host.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&host)
    }

    /// Keeps it from starting until it is told where it is, if nothing of it lives and this is its volume. Gives whether it does.
    pub(super) fn stand_still(&self, volume: &VolumeId) -> bool {
        let mut inner = self.lock();
        if inner.moving.is_some() {
            return inner.moving.as_ref() == Some(volume);
        }
        let lives = inner.machine.state.live_generation().is_some();
        let busy = inner.acting || inner.observed != Observed::Absent || inner.reset.is_some();
        if lives || busy || inner.machine.volume != *volume {
            return false;
        }
        inner.moving = Some(volume.clone());
        true
    }

    /// It may start again where it is.
    pub(super) fn go_on(&self) {
        self.change(|inner| inner.moving = None);
    }

    /// It is, or still is, on this host, and may start there.
    pub(super) fn is_on(&self, host: &HostId, link: &Arc<HostLink>, generation: Generation) {
        *self.host.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(link);
        self.change(|inner| {
            inner.moving = None;
            inner.observed = link.observed(&inner.machine.id);
            inner.machine.host = host.clone();
            inner.machine.generation = inner.machine.generation.max(generation);
        });
    }

    pub(super) fn view(&self) -> BuilderView {
        let host = self.host();
        self.lock().view(&host)
    }

    /// A receiver that has seen everything so far.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Changes something, then tells the driver and all who wait or listen.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let host = self.host();
        let mut inner = self.lock();
        let result = change(&mut inner);
        inner.machine.updated_at = now();
        // Published under the lock, so that changes are seen in their order.
        self.changes.send_modify(|n| *n += 1);
        self.events.publish(&self.key.org, || {
            FarmEvent::Builder(Box::new(inner.view(&host)))
        });
        drop(inner);
        self.wake.notify_one();
        result
    }

    /// Begins an activity, or gives the bound if there are too many.
    pub(super) fn begin(self: &Arc<Self>) -> Result<ActivityGuard, u32> {
        let mut inner = self.lock();
        if inner.in_flight >= BUILDER_CONNECTIONS_MAX {
            return Err(BUILDER_CONNECTIONS_MAX);
        }
        inner.in_flight += 1;
        drop(inner);
        Ok(ActivityGuard(Arc::clone(self)))
    }

    /// What a connection to `port` may do now; wants the builder if it must be woken.
    pub(super) fn attempt(&self, port: EndpointPort) -> Attempt {
        let inner = self.lock();
        let wanted = inner.machine.intent == Intent::Wanted;
        let wake = match inner.machine.state {
            _ if inner.reset.is_some() => false,
            MachineState::Running { generation } if wanted => return Attempt::Open(generation),
            // Requests wait in dockerd's backlog, unless the last start failed: then they must not be lost with it.
            MachineState::Booting { generation, .. }
                if wanted && (port == EndpointPort::Guest || inner.machine.failed_starts == 0) =>
            {
                return Attempt::Open(generation);
            }
            // Only its owner can say what may be given up for a new one.
            MachineState::Crashed { .. }
                if inner.volume_damaged && now() < inner.replace_not_before =>
            {
                return Attempt::WontStart(inner.told());
            }
            // Not even the new volume has helped.
            MachineState::Crashed { .. }
                if inner.machine.volume_replaced && inner.machine.failed_starts > 0 =>
            {
                return Attempt::WontStart(inner.last_error());
            }
            MachineState::Stopped | MachineState::Ending { .. } | MachineState::Crashed { .. } => {
                !wanted
            }
            // If it shall stop, its end comes first, and then this caller wakes it anew.
            MachineState::Starting { .. }
            | MachineState::Booting { .. }
            | MachineState::Running { .. } => false,
        };
        drop(inner);
        if wake {
            self.change(|inner| inner.machine.intent = Intent::Wanted);
        }
        Attempt::Wait
    }

    /// The generation to connect to if it runs now; never wakes it.
    pub(super) fn running(&self) -> Option<Generation> {
        self.lock().machine.state.connectable()
    }

    /// Takes what the host's newest list says, unless a side effect is under way.
    pub(super) fn observe(&self) {
        let mut inner = self.lock();
        if inner.acting {
            return;
        }
        let observed = self.host().observed(&inner.machine.id);
        if inner.observed != observed {
            inner.observed = observed;
            drop(inner);
            self.wake.notify_one();
        }
    }

    /// Asks the host anew, and takes what it says.
    pub(super) async fn look_again(&self) {
        // A host that does not answer says so by its watch.
        if self.host().refresh().await.is_ok() {
            self.observe();
        }
    }

    /// Takes a fact in. `why` is what is known of why that machine did not come up, if it is about its end.
    pub(super) fn learn(
        &self,
        event: MachineEvent,
        why: Option<String>,
    ) -> Result<MachineState, IllegalTransition> {
        self.change(|inner| {
            let state = inner.learn(event)?;
            if why.is_some() && matches!(state, MachineState::Crashed { .. }) {
                inner.machine.last_error = why;
            }
            Ok(state)
        })
    }
}

impl Inner {
    pub(super) fn view(&self, host: &HostLink) -> BuilderView {
        BuilderView {
            next_size: self.next_size(),
            waiting_for: self.waiting_for(host, now()),
            ..BuilderView::new(&self.machine, self.in_flight, self.quiet_since)
        }
    }

    /// It shall run, and nothing that is done to its cache is in the way.
    pub(super) fn may_start(&self) -> bool {
        let wanted = self.machine.intent == Intent::Wanted;
        wanted && self.moving.is_none() && self.reset.is_none()
    }

    /// What it gets at its next start. Its volume keeps the size that it has.
    pub(super) fn next_size(&self) -> BuilderSize {
        let now = self.machine.size;
        let asked = self.wishes.size.unwrap_or(now);
        BuilderSize {
            volume: now.volume,
            ..asked
        }
    }

    pub(super) fn last_error(&self) -> String {
        self.machine
            .last_error
            .clone()
            .unwrap_or_else(|| "it ended unexpectedly".to_owned())
    }

    /// Why it did not come up, with what it printed last. Nothing of a build is in that, for none has run.
    pub(super) fn died_at_boot(&self, last_words: &str) -> String {
        let how = match self.machine.last_error.as_deref() {
            Some(NOT_READY) => NOT_READY,
            Some(_) | None => "it ended before Docker was up",
        };
        format!("{how}; the last it printed: {last_words}")
    }

    /// What its owner should know, or else why it failed.
    fn told(&self) -> String {
        let notice = self.machine.notice.clone();
        notice.unwrap_or_else(|| self.last_error())
    }

    /// The planner's view.
    pub(super) fn planned(&self, host: &HostLink) -> MachineView {
        MachineView {
            machine: self.machine.id.clone(),
            volume: self.machine.volume.clone(),
            generation: self.machine.generation,
            wanted: self.may_start(),
            state: self.machine.state,
            observed: self.observed,
            in_flight: self.in_flight,
            quiet_since: self.quiet_since,
            idle: self.wishes.idle,
            ask_not_before: self.ask_not_before,
            volume_ready: self.volume_ready,
            volume_damaged: self.volume_damaged,
            replace_not_before: self.replace_not_before,
            in_progress: self.in_progress,
            volume_replaced: self.machine.volume_replaced,
            failed_starts: self.machine.failed_starts,
            heard_at: self.heard_at,
            silence_max: host.silence_max(self.wishes.isolation),
            hold_until: self.hold_until,
        }
    }

    pub(super) fn record(&self) -> MachineRecord {
        MachineRecord {
            revision: self.machine.revision,
            generation: self.machine.generation,
            intent: Some(self.machine.intent),
            state: self.machine.state,
            failed_starts: self.machine.failed_starts,
            volume_replaced: self.machine.volume_replaced,
            last_error: self.machine.last_error.clone(),
            notice: self.machine.notice.clone(),
            cpu_millis: self.machine.size.cpu_millis,
            memory: self.machine.size.memory,
            at: self.machine.updated_at,
        }
    }

    /// Nothing is connected, and nothing was for the idle time.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        idle::gateway(now, self.in_flight, self.quiet_since, self.wishes.idle) == Idle::Due
    }

    pub(super) fn learn(&mut self, event: MachineEvent) -> Result<MachineState, IllegalTransition> {
        let before = self.machine.state;
        let state = before.on(event)?;
        if matches!(event, MachineEvent::Ended { .. }) {
            self.delayed = false;
        }
        self.machine.state = state;
        if !matches!(state, MachineState::Starting { .. }) {
            self.in_progress = None;
        }
        match state {
            MachineState::Running { .. } => {
                self.machine.failed_starts = 0;
                self.machine.volume_replaced = false;
                self.machine.last_error = None;
            }
            MachineState::Crashed { failures, .. } => {
                self.machine.failed_starts = failures;
                // It may be that the volume is gone.
                self.volume_ready = false;
            }
            // What ended well without having been asked, or is given up, stays stopped. (What was asked to end lost its
            // intent then, and may have been wanted again since.)
            MachineState::Stopped if !matches!(before, MachineState::Ending { .. }) => {
                self.machine.intent = Intent::Stopped;
            }
            MachineState::Booting { .. } if before != state => {
                // A boot counts as activity, so that a short idle time does not end it before its first use.
                self.quiet_since = now();
            }
            MachineState::Stopped
            | MachineState::Starting { .. }
            | MachineState::Booting { .. }
            | MachineState::Ending { .. } => {}
        }
        Ok(state)
    }
}
