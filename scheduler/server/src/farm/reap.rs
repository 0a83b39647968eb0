//! Ending a builder that is idle.
//!
//! Must not know: when to look (the planner does).

use super::Shared;
use super::builder::Builder;
use super::deferred::StepDeferred;
use super::error::FarmError;
use crate::bounds::GUEST_LOOK_WAIT_MAX;
use crate::chain::chain;
use crate::clock::now;
use crate::guest_client::{EndAnswer, GuestClient};
use slipway_core::generation::Generation;
use slipway_core::guest_api::{DiskUse, GuestStatus};
use slipway_core::host_api::EndpointPort;
use slipway_core::idle::{self, Idle};
use slipway_core::limits::{BUILDER_IDLE_MIN, MACHINE_STOP_GRACE};
use slipway_core::machine::{MachineEvent, MachineState};
use slipway_core::planner::RETRY_WAIT;
use slipway_store::Intent;
use std::time::Duration;

/// The reaper. Nothing is ended unless nothing is connected (looked at under the lock, in the same moment in which
/// connections begin to wait) and the guest itself agrees; a request that comes meanwhile waits and wakes it anew.
pub(super) async fn ask_to_end(
    shared: &Shared,
    builder: &Builder,
    generation: Generation,
) -> Result<(), StepDeferred> {
    let idle_time = match shared.store.org(&builder.key.org).await {
        Ok(org) => org.idle,
        Err(error) => return Err(deferred_asking(builder, &error)),
    };
    builder.lock().wishes.idle = idle_time;
    let asked = ask_guest(builder, generation).await;
    let (mut guest, status) = match asked {
        Ok(answer) => answer,
        Err(error) => return Err(deferred_asking(builder, &error)),
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
            tracing::warn!(org = %builder.key.org, why = ?chain(&error), "builder is made to end");
            let machine = builder.lock().machine.id.clone();
            let host = builder.host();
            let client = &host.client;
            if let Err(error) = client
                .stop_machine(machine, generation, MACHINE_STOP_GRACE)
                .await
            {
                tracing::warn!(why = ?chain(&error), "stop not sent; killed later");
            }
        }
    }
    Ok(())
}

fn deferred_asking(builder: &Builder, error: &(dyn std::error::Error + 'static)) -> StepDeferred {
    tracing::warn!(org = %builder.key.org, why = ?chain(error), "guest not asked whether it is idle");
    builder.change(|inner| inner.ask_not_before = now().after(RETRY_WAIT));
    StepDeferred
}

impl Shared {
    /// How full the volume of a builder is, by its guest; nothing if it does not run or does not answer.
    pub(super) async fn guest_disk(&self, builder: &Builder) -> Option<DiskUse> {
        let generation = builder.running()?;
        let asked = tokio::time::timeout(GUEST_LOOK_WAIT_MAX, ask_guest(builder, generation));
        let (_, status) = asked.await.ok()?.ok()?;
        Some(status.disk)
    }
}

async fn ask_guest(
    builder: &Builder,
    generation: Generation,
) -> Result<(GuestClient, GuestStatus), FarmError> {
    let machine = builder.lock().machine.id.clone();
    let host = builder.host();
    let client = &host.client;
    let stream = client
        .open_endpoint(machine, generation, EndpointPort::Guest)
        .await?;
    let mut guest = GuestClient::new(stream).await?;
    let status = guest.status(Duration::ZERO).await?;
    Ok((guest, status))
}
