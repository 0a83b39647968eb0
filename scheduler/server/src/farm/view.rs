//! What others may see of builders, and how changes of them reach subscribers.

use crate::limits::SUBSCRIBER_CHANGES_MAX;
use slipway_core::guest_api::Activity;
use slipway_core::id::{AppId, HostId, MachineId, OrgId, VolumeId};
use slipway_core::machine::MachineState;
use slipway_core::quota::BuilderSize;
use slipway_core::time::Timestamp;
use slipway_store::{Build, Intent, Machine};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;

/// Which builder: there is one per org, region and architecture.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BuilderKey {
    /// Whose.
    pub org: OrgId,
    /// Label of its region.
    pub region: String,
    /// `amd64` or `arm64`.
    pub arch: String,
}

/// A builder as its owner may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuilderView {
    /// Which.
    pub key: BuilderKey,
    /// The builder app it belongs to.
    pub app: AppId,
    /// Its machine.
    pub machine: MachineId,
    /// Its cache volume.
    pub volume: VolumeId,
    /// Where it is placed.
    pub host: HostId,
    /// What it has, or had when it ran last.
    pub size: BuilderSize,
    /// What it gets at its next start.
    pub next_size: BuilderSize,
    /// Whether it shall run.
    pub intent: Intent,
    /// What it does.
    pub state: MachineState,
    /// Connections through the gateway now.
    pub in_flight: u32,
    /// When the last of them ended, or the machine last booted.
    pub quiet_since: Timestamp,
    /// What it waits for, while somebody wants it and it is not up.
    pub waiting_for: Option<String>,
    /// Why it last failed.
    pub last_error: Option<String>,
    /// Something its owner should know.
    pub notice: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When this last changed.
    pub updated_at: Timestamp,
}

impl BuilderView {
    pub(super) fn new(machine: &Machine, in_flight: u32, quiet_since: Timestamp) -> Self {
        Self {
            key: key_of(machine),
            app: machine.app.clone(),
            machine: machine.id.clone(),
            volume: machine.volume.clone(),
            host: machine.host.clone(),
            size: machine.size,
            next_size: machine.size,
            intent: machine.intent,
            state: machine.state,
            in_flight,
            quiet_since,
            waiting_for: None,
            last_error: machine.last_error.clone(),
            notice: machine.notice.clone(),
            created_at: machine.created_at,
            updated_at: machine.updated_at,
        }
    }
}

/// For how long nothing has been in flight, as people are shown it: zero while a connection is open or the guest is busy, else the
/// time since the last of either ended.
pub(crate) fn idle_for(
    now: Timestamp,
    in_flight: u32,
    quiet_since: Timestamp,
    activity: &Activity,
) -> Duration {
    if in_flight > 0 || !activity.is_idle() {
        return Duration::ZERO;
    }
    now.since(quiet_since)
        .min(Duration::from_millis(activity.idle_ms))
}

pub(super) fn key_of(machine: &Machine) -> BuilderKey {
    BuilderKey {
        org: machine.org.clone(),
        region: machine.region.clone(),
        arch: machine.arch.clone(),
    }
}

/// Something of an org has changed.
#[derive(Debug, Clone, PartialEq)]
pub enum FarmEvent {
    /// A builder, as it is now.
    Builder(Box<BuilderView>),
    /// A build, as it is now.
    Build(Box<Build>),
}

/// What a subscriber gets next.
#[derive(Debug, Clone, PartialEq)]
pub enum NextEvent {
    /// A change.
    Event(FarmEvent),
    /// The subscriber was too slow and has missed some: read everything anew.
    Missed,
    /// There will be no more.
    Closed,
}

/// The changes of one org, from the moment of subscribing.
#[derive(Debug)]
pub struct Subscription(broadcast::Receiver<FarmEvent>);

impl Subscription {
    /// The next change. Cancel-safe.
    pub async fn next(&mut self) -> NextEvent {
        match self.0.recv().await {
            Ok(event) => NextEvent::Event(event),
            Err(broadcast::error::RecvError::Lagged(_)) => NextEvent::Missed,
            Err(broadcast::error::RecvError::Closed) => NextEvent::Closed,
        }
    }
}

/// One channel per org that somebody listens to, so that no org's changes pass by another's subscriber.
#[derive(Debug, Default)]
pub(crate) struct Events(Mutex<HashMap<OrgId, broadcast::Sender<FarmEvent>>>);

impl Events {
    pub(crate) fn subscribe(&self, org: &OrgId) -> Subscription {
        let mut channels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|_, sender| sender.receiver_count() > 0);
        let sender = channels
            .entry(org.clone())
            .or_insert_with(|| broadcast::channel(SUBSCRIBER_CHANGES_MAX).0);
        Subscription(sender.subscribe())
    }

    pub(crate) fn publish(&self, org: &OrgId, event: impl FnOnce() -> FarmEvent) {
        let channels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = channels.get(org) {
            // No receiver is left: nobody wants to know.
            let _ = sender.send(event());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builder_that_is_used_or_was_just_woken_is_not_idle() {
        let (now, ago) = (Timestamp(100_000), |ms: u64| Timestamp(100_000 - ms));
        let quiet = |idle_ms| Activity {
            idle_ms,
            ..Activity::default()
        };
        let ms = |in_flight, since, activity: &Activity| {
            idle_for(now, in_flight, since, activity).as_millis()
        };
        // Nothing inside, but a stream is open: a client that reads events, or a session.
        assert_eq!(ms(1, ago(60_000), &quiet(50_000)), 0);
        // The guest works without any connection: a build whose client is gone.
        let building = Activity {
            builds: 1,
            ..quiet(0)
        };
        assert_eq!(ms(0, ago(60_000), &building), 0);
        // Whatever ended last counts.
        assert_eq!(ms(0, ago(2_000), &quiet(50_000)), 2_000);
        assert_eq!(ms(0, ago(60_000), &quiet(7_000)), 7_000);
        // It has just booted.
        assert_eq!(ms(0, ago(300), &quiet(100)), 100);
        // The clock was set back.
        assert_eq!(ms(0, Timestamp(200_000), &quiet(7_000)), 0);
    }
}
