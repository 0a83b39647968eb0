//! The driver of one builder: plans, carries the plan out without choosing, and waits for news.
//!
//! One task per builder, so its steps never overlap. Whatever it does can be cut anywhere: the record is written before a
//! start, and everything else is found again from what the host says.
//!
//! Must not know: when something should be done (the planner does).

use super::Shared;
use super::builder::{Builder, NOT_READY};
use super::cache::{ensure_volume, replace_volume, reset};
use super::deferred::{StepDeferred, deferred, is_in_progress, not_lent, start_failed, turn};
use super::keys::{LendFor, lend, revoke};
use super::ready::await_ready;
use super::reap::ask_to_end;
use crate::chain::chain;
use crate::clock::now;
use crate::host_client::HostClientError;
use slipway_core::host_api::{HostErrorCode, MachineRunState, MachineSpec};
use slipway_core::machine::{MachineEvent, MachineState};
use slipway_core::planner::{Action, Observed, Plan, RETRY_WAIT, Step, plan};
use slipway_core::quota::BUILDER_PIDS_MAX;
use slipway_core::time::Timestamp;
use slipway_store::{MachineRecord, StoreError};
use std::sync::Arc;
use std::time::Duration;

/// Drives a builder until the control plane ends.
pub(super) async fn drive(shared: Arc<Shared>, builder: Arc<Builder>) {
    let mut watched = None;
    loop {
        let (plan, state) = {
            let inner = builder.lock();
            (
                plan(now(), &inner.planned(&builder.host())),
                inner.machine.state,
            )
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

async fn execute(shared: &Shared, builder: &Builder, step: &Step) -> Result<(), StepDeferred> {
    match step.action {
        Action::Learn(event) => {
            let host = builder.host();
            let why = host.refused(&step.machine, step.generation).or_else(|| {
                let inner = builder.lock();
                let words = host.last_words(&step.machine, step.generation)?;
                boots(inner.machine.state).then(|| inner.died_at_boot(&words))
            });
            let Err(illegal) = builder.learn(event, why) else {
                return Ok(());
            };
            tracing::error!(machine = %step.machine, %illegal, "the planner erred");
            // It would plan the same at once, whatever is held.
            tokio::time::sleep(RETRY_WAIT).await;
            Err(StepDeferred)
        }
        Action::EnsureVolume => ensure_volume(shared, builder, step).await,
        Action::Start => start(shared, builder, step).await,
        Action::Stop { grace } => stop(builder, step, grace).await,
        Action::SuspectVolume => {
            let (org, machine, volume) = (&builder.key.org, &step.machine, &step.volume);
            tracing::warn!(%org, %machine, %volume, "the guest says that its volume is damaged");
            builder.change(|inner| {
                inner.volume_damaged = true;
                inner.volume_foreign = false;
                inner.machine.last_error =
                    Some("Docker found its data on the cache volume damaged".to_owned());
            });
            Ok(())
        }
        Action::Remove => {
            builder.lock().acting = true;
            let host = builder.host();
            let client = &host.client;
            let done = client
                .remove_machine(step.machine.clone(), step.generation)
                .await;
            settle(builder).await;
            revoke(shared, builder, &step.volume, step.generation).await;
            done.map_err(|error| deferred(builder, &error))
        }
        Action::AskToEnd => ask_to_end(shared, builder, step.generation).await,
        Action::ReplaceVolume => replace_volume(shared, builder, &step.volume).await,
    }
}

/// No build has run in it yet.
fn boots(state: MachineState) -> bool {
    matches!(
        state,
        MachineState::Starting { .. } | MachineState::Booting { .. }
    )
}

/// After a side effect: learns what the host has now, and believes its lists again.
async fn settle(builder: &Builder) {
    let fresh = builder.host().refresh().await;
    let mut inner = builder.lock();
    inner.acting = false;
    inner.observed = match fresh {
        Ok(()) => builder.host().observed(&inner.machine.id),
        Err(_) => Observed::Unknown,
    };
    drop(inner);
    if fresh.is_err() {
        // A newer list may have come by the watch meanwhile.
        builder.observe();
    }
    builder.wake.notify_one();
}

async fn start(shared: &Shared, builder: &Builder, step: &Step) -> Result<(), StepDeferred> {
    let generation = step.generation;
    let host = builder.host();
    let _turn = turn(builder, &host).await?;
    // Before it is looked at whether it may start: what is decided of the volume after that has a higher number.
    let fence = match shared.store.volume(&builder.key.org, &step.volume).await {
        Ok(volume) => volume.fenced(),
        Err(error) => return Err(deferred(builder, &error)),
    };
    let begun = builder.change(|inner| {
        // Its volume may have begun to leave since this was planned, or nobody wants it any more.
        if !inner.may_start() {
            return None;
        }
        inner.acting = true;
        let asked = if inner.in_progress.take() == Some(generation) {
            Ok(inner.machine.state)
        } else {
            inner.machine.generation = generation;
            inner.machine.size = inner.next_size();
            inner.learn(MachineEvent::StartAsked {
                generation,
                at: now(),
            })
        };
        let spec = MachineSpec {
            machine: step.machine.clone(),
            generation,
            volume: step.volume.clone(),
            cpu_millis: inner.machine.size.cpu_millis,
            memory_bytes: inner.machine.size.memory.0,
            pids_max: BUILDER_PIDS_MAX,
            isolation: inner.wishes.isolation,
        };
        Some((spec, asked))
    });
    let Some((spec, asked)) = begun else {
        return Err(StepDeferred);
    };
    if let Err(illegal) = asked {
        builder.lock().acting = false;
        return Err(deferred(builder, &illegal));
    }
    // The record goes first: a control plane that comes back knows which generation may live.
    if let Err(error) = shared.persist(builder).await {
        builder.lock().acting = false;
        return Err(deferred(builder, &error));
    }
    if let Err(error) = lend(shared, builder, generation, LendFor::Start).await {
        let failed = not_lent(builder, generation, &error);
        settle(builder).await;
        return Err(failed);
    }
    let result = host.client.ensure_machine(fence, spec).await;
    match result {
        Ok(report) => {
            if report.generation == generation && report.state == MachineRunState::Running {
                // Those who wait may connect at once; what else the host says comes with its list.
                let at = now();
                let _ = builder.learn(MachineEvent::HostRuns { generation, at }, None);
            }
            settle(builder).await;
            Ok(())
        }
        Err(error) => {
            let failed = match error {
                HostClientError::Refused(_) if is_in_progress(&error) => {
                    builder.lock().in_progress = Some(generation);
                    deferred(builder, &error)
                }
                HostClientError::Refused(_) => start_failed(builder, generation, &error),
                // It may have been done all the same: the next list tells.
                HostClientError::Unreachable { .. }
                | HostClientError::TimedOut(_)
                | HostClientError::Protocol(_)
                | HostClientError::OtherVersion(_) => deferred(builder, &error),
            };
            settle(builder).await;
            Err(failed)
        }
    }
}

async fn stop(builder: &Builder, step: &Step, grace: Duration) -> Result<(), StepDeferred> {
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
                inner.machine.last_error = Some(NOT_READY.to_owned());
            }
            // The kill is repeated if it shows no effect.
            inner.hold_until = now().after(RETRY_WAIT);
        }
    });
    let host = builder.host();
    let client = &host.client;
    let done = client
        .stop_machine(step.machine.clone(), generation, grace)
        .await;
    settle(builder).await;
    match done {
        Ok(_) => Ok(()),
        // It has ended already, and the list says so.
        Err(error) if error.code() == Some(HostErrorCode::NotFound) => Ok(()),
        Err(error) => Err(deferred(builder, &error)),
    }
}

impl Shared {
    /// Records what has changed of a machine since it was recorded last.
    pub(super) async fn persist(&self, builder: &Builder) -> Result<(), StoreError> {
        let _recording = builder.recording.lock().await;
        let (machine, record, told) = {
            let mut inner = builder.lock();
            let record = inner.record();
            let known = inner.recorded.as_ref();
            if known.is_some_and(|known| same(known, &record)) {
                return Ok(());
            }
            // What is not changed here may have been changed by somebody else.
            let unchanged = known.is_some_and(|known| known.intent == record.intent);
            inner.machine.revision += 1;
            let revision = inner.machine.revision;
            let record = MachineRecord { revision, ..record };
            let told = MachineRecord {
                intent: record.intent.filter(|_| !unchanged),
                ..record.clone()
            };
            (inner.machine.id.clone(), record, told)
        };
        match self
            .store
            .record_machine(&builder.key.org, &machine, &told)
            .await
        {
            Ok(()) => {
                builder.lock().recorded = Some(record);
                Ok(())
            }
            // Somebody has recorded a newer start meanwhile, and with it all that was to be recorded here.
            Err(StoreError::Changed(_))
                if builder.lock().machine.generation > record.generation =>
            {
                Ok(())
            }
            Err(error) => {
                let kind = error.kind();
                tracing::error!(%machine, ?kind, why = ?chain(&error), "machine not recorded");
                Err(error)
            }
        }
    }
}

/// The same but for the time and the number.
fn same(a: &MachineRecord, b: &MachineRecord) -> bool {
    a.generation == b.generation
        && a.intent == b.intent
        && a.state == b.state
        && a.failed_starts == b.failed_starts
        && a.volume_replaced == b.volume_replaced
        && a.last_error == b.last_error
        && a.notice == b.notice
        && a.cpu_millis == b.cpu_millis
        && a.memory == b.memory
}
