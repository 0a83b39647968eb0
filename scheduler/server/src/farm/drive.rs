//! The driver of one builder: plans, carries the plan out without choosing, and waits for news.
//!
//! One task per builder, so its steps never overlap. Whatever it does can be cut anywhere: the record is written before a
//! start, and everything else is found again from what the host says.
//!
//! Must not know: when something should be done (the planner does).

use super::Shared;
use super::builder::{Builder, now};
use super::error::FarmError;
use super::host::chain;
use crate::guest_client::{EndAnswer, GuestClient, GuestError};
use crate::host_client::HostClientError;
use crate::limits::{CONNECT_RETRY_MAX, CONNECT_RETRY_MIN, READY_ASK_WAIT};
use slipway_core::generation::Generation;
use slipway_core::host_api::{EndpointPort, HostErrorCode, MachineRunState, MachineSpec};
use slipway_core::id::VolumeId;
use slipway_core::idle::{self, Idle};
use slipway_core::limits::{BUILDER_IDLE_MIN, MACHINE_STOP_GRACE};
use slipway_core::machine::{MachineEvent, MachineState};
use slipway_core::planner::{Action, Observed, Plan, RETRY_WAIT, Step, plan};
use slipway_core::quota::BUILDER_PIDS_MAX;
use slipway_core::time::Timestamp;
use slipway_store::{ErrorKind, Intent, StoreError, VolumeState};
use std::sync::Arc;
use std::time::Duration;

/// A step was not done, and is not to be tried again before the hold is over.
struct Held;

/// Drives a builder until the control plane ends.
pub(super) async fn drive(shared: Arc<Shared>, builder: Arc<Builder>) {
    let mut watched = None;
    loop {
        let (plan, state) = {
            let inner = builder.lock();
            (plan(now(), &inner.planned()), inner.machine.state)
        };
        if let MachineState::Booting { generation, .. } = state
            && watched != Some(generation)
        {
            watched = Some(generation);
            let (shared_too, builder_too) = (Arc::clone(&shared), Arc::clone(&builder));
            shared.tasks.spawn(async move {
                let cancelled = shared_too.cancel.clone().cancelled_owned();
                tokio::select! {
                    () = cancelled => {}
                    () = await_ready(&builder_too, generation) => {}
                }
            });
        }
        let acted = tokio::select! {
            () = shared.cancel.cancelled() => return,
            acted = act(&shared, &builder, &plan) => acted,
        };
        if acted {
            continue;
        }
        let again = shared
            .persist(&builder)
            .await
            .is_err()
            .then(|| now().after(RETRY_WAIT));
        let wake_at = match (plan.look_again_at, again) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            () = builder.wake.notified() => {}
            () = until(wake_at) => {}
        }
    }
}

async fn until(at: Option<Timestamp>) {
    match at {
        Some(at) => tokio::time::sleep(at.since(now())).await,
        None => std::future::pending().await,
    }
}

/// Carries a plan out, as far as it goes. Gives whether there was anything to do.
async fn act(shared: &Shared, builder: &Builder, plan: &Plan) -> bool {
    if plan.steps.is_empty() {
        return reset(shared, builder).await;
    }
    for step in &plan.steps {
        let span = tracing::debug_span!(
            "step", machine = %step.machine, volume = %step.volume, generation = %step.generation
        );
        tracing::debug!(parent: &span, action = ?step.action, "carry out");
        if execute(shared, builder, step).await.is_err() {
            break;
        }
    }
    true
}

async fn execute(shared: &Shared, builder: &Builder, step: &Step) -> Result<(), Held> {
    match step.action {
        Action::Learn(event) => builder.learn(event).map(drop).map_err(|illegal| {
            tracing::error!(machine = %step.machine, %illegal, "the planner erred");
            hold(builder, None);
            Held
        }),
        Action::EnsureVolume => ensure_volume(shared, builder, step).await,
        Action::Start => start(shared, builder, step).await,
        Action::Stop { grace } => stop(builder, step, grace).await,
        Action::Remove => {
            builder.lock().acting = true;
            let client = &builder.host.client;
            let done = client
                .remove_machine(step.machine.clone(), step.generation)
                .await;
            settle(builder).await;
            done.map_err(|error| held(builder, &error))
        }
        Action::AskToEnd => ask_to_end(shared, builder, step.generation).await,
        Action::ReplaceVolume => replace_volume(shared, builder, &step.volume).await,
    }
}

/// Nothing more is tried on the host for a while.
fn hold(builder: &Builder, error: Option<String>) {
    builder.change(|inner| {
        inner.hold_until = now().after(RETRY_WAIT);
        if error.is_some() {
            inner.machine.last_error = error;
        }
    });
}

fn held(builder: &Builder, error: &dyn std::error::Error) -> Held {
    let why = chain(error);
    tracing::warn!(org = %builder.key.org, why, "step not done; tried again later");
    hold(builder, Some(why));
    Held
}

/// After a side effect: learns what the host has now, and believes its lists again.
async fn settle(builder: &Builder) {
    let fresh = builder.host.refresh().await;
    let mut inner = builder.lock();
    inner.acting = false;
    inner.observed = match fresh {
        Ok(()) => builder.host.observed(&inner.machine.id),
        Err(_) => Observed::Unknown,
    };
    drop(inner);
    if fresh.is_err() {
        // A newer list may have come by the watch meanwhile.
        builder.observe();
    }
    builder.wake.notify_one();
}

async fn ensure_volume(shared: &Shared, builder: &Builder, step: &Step) -> Result<(), Held> {
    let size = builder.lock().machine.size.volume.0;
    if let Err(error) = builder
        .host
        .client
        .ensure_volume(step.volume.clone(), size)
        .await
    {
        return Err(start_failed(builder, step.generation, &error));
    }
    let org = &builder.key.org;
    if let Err(error) = shared
        .store
        .set_volume_state(org, &step.volume, VolumeState::Ready)
        .await
    {
        return Err(held(builder, &error));
    }
    builder.lock().volume_ready = true;
    Ok(())
}

async fn start(shared: &Shared, builder: &Builder, step: &Step) -> Result<(), Held> {
    let generation = step.generation;
    let (spec, asked) = builder.change(|inner| {
        inner.acting = true;
        inner.machine.generation = generation;
        let asked = inner.learn(MachineEvent::StartAsked {
            generation,
            at: now(),
        });
        let spec = MachineSpec {
            machine: step.machine.clone(),
            generation,
            volume: step.volume.clone(),
            cpu_millis: inner.machine.size.cpu_millis,
            memory_bytes: inner.machine.size.memory.0,
            pids_max: BUILDER_PIDS_MAX,
        };
        (spec, asked)
    });
    if let Err(illegal) = asked {
        builder.lock().acting = false;
        return Err(held(builder, &illegal));
    }
    // The record goes first: a control plane that comes back knows which generation may live.
    if let Err(error) = shared.persist(builder).await {
        builder.lock().acting = false;
        return Err(held(builder, &error));
    }
    let result = builder.host.client.ensure_machine(spec).await;
    match result {
        Ok(report) => {
            if report.generation == generation && report.state == MachineRunState::Running {
                // Those who wait may connect at once; what else the host says comes with its list.
                let _ = builder.learn(MachineEvent::HostRuns {
                    generation,
                    at: now(),
                });
            }
            settle(builder).await;
            Ok(())
        }
        Err(error) => {
            let failed = match error {
                HostClientError::Refused(_) => start_failed(builder, generation, &error),
                // It may have been done all the same: the next list tells.
                HostClientError::Unreachable { .. }
                | HostClientError::TimedOut(_)
                | HostClientError::Protocol(_) => held(builder, &error),
            };
            settle(builder).await;
            Err(failed)
        }
    }
}

/// Records a failed start, and whether the volume is to blame.
fn start_failed(builder: &Builder, generation: Generation, error: &HostClientError) -> Held {
    let why = match error {
        HostClientError::Refused(refusal) => refusal.message.clone(),
        HostClientError::Unreachable { .. }
        | HostClientError::TimedOut(_)
        | HostClientError::Protocol(_) => chain(error),
    };
    let (org, machine_generation) = (&builder.key.org, generation);
    tracing::warn!(%org, generation = %machine_generation, why, "builder did not start");
    let code = error.code();
    builder.change(|inner| {
        let failed = inner.machine.failed_starts;
        let failures_before = match code {
            Some(HostErrorCode::VolumeDamaged) => {
                inner.volume_damaged = true;
                failed
            }
            Some(HostErrorCode::Failed) => failed,
            // Not the volume's fault, so these never lead to its replacement.
            None
            | Some(
                HostErrorCode::Denied
                | HostErrorCode::BadRequest
                | HostErrorCode::StaleGeneration
                | HostErrorCode::NotFound
                | HostErrorCode::Busy
                | HostErrorCode::NoSpace,
            ) => failed.saturating_sub(1),
        };
        let at = now();
        if inner.machine.generation < generation {
            inner.machine.generation = generation;
            let _ = inner.learn(MachineEvent::StartAsked { generation, at });
        }
        let _ = inner.learn(MachineEvent::StartFailed {
            generation,
            at,
            failures_before,
        });
        inner.machine.last_error = Some(why);
    });
    Held
}

async fn stop(builder: &Builder, step: &Step, grace: Duration) -> Result<(), Held> {
    let generation = step.generation;
    builder.change(|inner| {
        inner.acting = true;
        if grace > Duration::ZERO {
            let _ = inner.learn(MachineEvent::EndAsked {
                generation,
                at: now(),
            });
        } else {
            if matches!(inner.machine.state, MachineState::Booting { .. }) {
                inner.machine.last_error = Some("it was not ready in time".to_owned());
            }
            // The kill is repeated if it shows no effect.
            inner.hold_until = now().after(RETRY_WAIT);
        }
    });
    let client = &builder.host.client;
    let done = client
        .stop_machine(step.machine.clone(), generation, grace)
        .await;
    settle(builder).await;
    match done {
        Ok(_) => Ok(()),
        // It has ended already, and the list says so.
        Err(error) if error.code() == Some(HostErrorCode::NotFound) => Ok(()),
        Err(error) => Err(held(builder, &error)),
    }
}

/// The reaper. Nothing is ended unless nothing is connected (looked at under the lock, in the same moment in which
/// connections begin to wait) and the guest itself agrees; a request that comes meanwhile waits and wakes it anew.
async fn ask_to_end(
    shared: &Shared,
    builder: &Builder,
    generation: Generation,
) -> Result<(), Held> {
    let idle_time = match shared.store.org(&builder.key.org).await {
        Ok(org) => org.idle,
        Err(error) => return Err(held_asking(builder, &error)),
    };
    builder.lock().idle = idle_time;
    let asked = ask_guest(builder, generation).await;
    let (mut guest, status) = match asked {
        Ok(answer) => answer,
        Err(error) => return Err(held_asking(builder, &error)),
    };
    if let Idle::NotBefore(at) = idle::guest(now(), &status.activity, idle_time) {
        builder.change(|inner| inner.ask_not_before = at);
        return Ok(());
    }
    let ending = builder.change(|inner| {
        let due = inner.is_due(now())
            && inner.machine.intent == Intent::Wanted
            && inner.machine.state == MachineState::Running { generation };
        if due {
            inner.machine.intent = Intent::Stopped;
            let _ = inner.learn(MachineEvent::EndAsked {
                generation,
                at: now(),
            });
        }
        due
    });
    if !ending {
        return Ok(());
    }
    match guest.end().await {
        Ok(EndAnswer::Ending) => {
            tracing::info!(org = %builder.key.org, %generation, "builder ends itself: idle");
        }
        Ok(EndAnswer::Busy(activity)) => {
            tracing::info!(org = %builder.key.org, ?activity, "builder refuses to end: busy");
            builder.change(|inner| {
                inner.machine.intent = Intent::Wanted;
                inner.ask_not_before = now().after(BUILDER_IDLE_MIN);
                let _ = inner.learn(MachineEvent::EndRefused { generation });
            });
        }
        Err(error) => {
            // Whether it ends is not known, so nobody may use it any more. It was idle a moment ago.
            tracing::warn!(org = %builder.key.org, why = chain(&error), "builder is made to end");
            let machine = builder.lock().machine.id.clone();
            let client = &builder.host.client;
            if let Err(error) = client
                .stop_machine(machine, generation, MACHINE_STOP_GRACE)
                .await
            {
                tracing::warn!(why = chain(&error), "stop not sent; killed later");
            }
        }
    }
    Ok(())
}

fn held_asking(builder: &Builder, error: &dyn std::error::Error) -> Held {
    tracing::warn!(org = %builder.key.org, why = chain(error), "guest not asked whether it is idle");
    builder.change(|inner| inner.ask_not_before = now().after(RETRY_WAIT));
    Held
}

async fn ask_guest(
    builder: &Builder,
    generation: Generation,
) -> Result<(GuestClient, slipway_core::guest_api::GuestStatus), FarmError> {
    let machine = builder.lock().machine.id.clone();
    let client = &builder.host.client;
    let stream = client
        .open_endpoint(machine, generation, EndpointPort::Guest)
        .await?;
    let mut guest = GuestClient::new(stream).await?;
    let status = guest.status(Duration::ZERO).await?;
    Ok((guest, status))
}

/// Waits for dockerd of one generation to answer, and records it. Ends when that generation is over.
async fn await_ready(builder: &Builder, generation: Generation) {
    let mut pause = CONNECT_RETRY_MIN;
    let mut changes = builder.changes();
    loop {
        changes.mark_unchanged();
        let booting = matches!(
            builder.lock().machine.state,
            MachineState::Booting { generation: mine, .. } if mine == generation
        );
        if !booting {
            return;
        }
        match ready(builder, generation).await {
            Ok(true) => {
                let _ = builder.learn(MachineEvent::GuestReady { generation });
                return;
            }
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(why = chain(&error), "guest not asked whether it is ready");
                tokio::select! {
                    _ = changes.changed() => {}
                    () = tokio::time::sleep(pause) => {}
                }
                pause = CONNECT_RETRY_MAX.min(pause * 2);
            }
        }
    }
}

async fn ready(builder: &Builder, generation: Generation) -> Result<bool, FarmError> {
    let machine = builder.lock().machine.id.clone();
    let client = &builder.host.client;
    let stream = client
        .open_endpoint(machine, generation, EndpointPort::Guest)
        .await?;
    let mut guest = GuestClient::new(stream).await?;
    match guest.status(READY_ASK_WAIT).await {
        Ok(status) => Ok(status.ready),
        Err(GuestError::TimedOut(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Gives the machine an empty volume: a new one, or the same one emptied if the pool has no room for two.
async fn replace_volume(shared: &Shared, builder: &Builder, old: &VolumeId) -> Result<(), Held> {
    let (org, machine, last_error) = {
        let inner = builder.lock();
        (
            &builder.key.org,
            inner.machine.id.clone(),
            inner.last_error(),
        )
    };
    let new = match super::entropy() {
        Ok(entropy) => VolumeId::from_entropy(entropy),
        Err(error) => return Err(held(builder, &error)),
    };
    let kept = shared
        .store
        .replace_volume(org, &machine, old, VolumeState::Aside, &new, now())
        .await;
    let (volume, notice) = match kept {
        Ok(volume) => (
            volume.id,
            format!(
                "the cache was replaced by an empty one, because the builder did not start \
                     ({last_error}); the old one is kept as {old}"
            ),
        ),
        Err(StoreError::PoolFull { .. }) => {
            if let Err(error) = empty_volume(shared, builder, old).await {
                return Err(held(builder, &error));
            }
            (
                old.clone(),
                format!(
                    "the cache was emptied, because the builder did not start \
                         ({last_error}), and there is no room to keep the old one"
                ),
            )
        }
        Err(error) => return Err(held(builder, &error)),
    };
    tracing::warn!(%org, %machine, %old, new = %volume, "cache replaced by an empty one");
    builder.change(|inner| {
        inner.machine.volume = volume;
        inner.machine.volume_replaced = true;
        inner.machine.failed_starts = 0;
        inner.machine.notice = Some(notice);
        inner.volume_ready = false;
        inner.volume_damaged = false;
        if let MachineState::Crashed { retry_at, .. } = &mut inner.machine.state {
            *retry_at = now();
        }
    });
    Ok(())
}

/// Destroys what is in a volume; the next start makes it anew.
async fn empty_volume(
    shared: &Shared,
    builder: &Builder,
    volume: &VolumeId,
) -> Result<(), FarmError> {
    let org = &builder.key.org;
    shared
        .store
        .set_volume_state(org, volume, VolumeState::Planned)
        .await?;
    builder.lock().volume_ready = false;
    builder.host.client.destroy_volume(volume.clone()).await?;
    Ok(())
}

/// Empties the cache if somebody waits for that and nothing of the machine lives. Gives whether it did.
async fn reset(shared: &Shared, builder: &Builder) -> bool {
    let waiting = {
        let mut inner = builder.lock();
        let ended = inner.machine.state.live_generation().is_none();
        let gone = inner.observed == Observed::Absent;
        if ended && gone {
            inner
                .reset
                .take()
                .map(|w| (w, inner.machine.volume.clone()))
        } else {
            None
        }
    };
    let Some((waiter, volume)) = waiting else {
        return false;
    };
    let done = empty_volume(shared, builder, &volume).await;
    let emptied = done.is_ok();
    builder.change(|inner| {
        if emptied {
            inner.machine.failed_starts = 0;
            inner.machine.volume_replaced = false;
            inner.machine.last_error = None;
            inner.machine.notice = None;
            inner.volume_damaged = false;
        }
    });
    // Whoever asked has gone: it is done all the same.
    let _ = waiter.send(done);
    true
}

impl Shared {
    /// Records what has changed of a machine since it was recorded last.
    pub(super) async fn persist(&self, builder: &Builder) -> Result<(), StoreError> {
        let (machine, record) = {
            let inner = builder.lock();
            let record = inner.record();
            if inner
                .recorded
                .as_ref()
                .is_some_and(|known| same(known, &record))
            {
                return Ok(());
            }
            (inner.machine.id.clone(), record)
        };
        match self
            .store
            .record_machine(&builder.key.org, &machine, &record)
            .await
        {
            Ok(()) => {
                builder.lock().recorded = Some(record);
                Ok(())
            }
            Err(error) => {
                let kind: ErrorKind = error.kind();
                tracing::error!(%machine, ?kind, why = chain(&error), "machine not recorded");
                Err(error)
            }
        }
    }
}

/// The same but for the time.
fn same(a: &slipway_store::MachineRecord, b: &slipway_store::MachineRecord) -> bool {
    a.generation == b.generation
        && a.intent == b.intent
        && a.state == b.state
        && a.failed_starts == b.failed_starts
        && a.volume_replaced == b.volume_replaced
        && a.last_error == b.last_error
        && a.notice == b.notice
}
