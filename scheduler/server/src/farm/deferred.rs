//! Steps of a builder that are not done now: why, and until when.
//!
//! Must not know: which step comes next.

use super::builder::Builder;
use super::host::HostLink;
use super::keys::code;
use super::lend_error::LendError;
use super::reason::Told;
use super::starts::Turn;
use crate::chain::chain;
use crate::clock::now;
use crate::host_client::HostClientError;
use slipway_core::generation::Generation;
use slipway_core::host_api::HostErrorCode;
use slipway_core::machine::{DELAYED_STARTS_COUNTED_MAX, MachineEvent};
use slipway_core::planner::RETRY_WAIT;

/// A step was not done, and is not to be tried again before the hold is over.
#[derive(Debug)]
pub(super) struct StepDeferred;

/// Nothing more is tried on the host for a while.
fn hold(builder: &Builder, told: String) {
    builder.change(|inner| {
        inner.hold_until = now().after(RETRY_WAIT);
        inner.machine.last_error = Some(told);
    });
}

/// Puts the step off, and says why.
pub(super) fn deferred(builder: &Builder, error: &(impl Told + 'static)) -> StepDeferred {
    let why = chain(error);
    tracing::warn!(org = %builder.key.org, ?why, "step not done; tried again later");
    hold(builder, error.told());
    StepDeferred
}

/// The builder's turn to start on its host; nothing if it is not to start any more when that comes.
pub(super) async fn turn<'h>(
    builder: &Builder,
    host: &'h HostLink,
) -> Result<Turn<'h>, StepDeferred> {
    if let Some(turn) = host.starts.now() {
        return Ok(turn);
    }
    let mut changes = builder.changes();
    let ticket = host.starts.queue();
    builder.change(|inner| inner.queued = Some(ticket.number()));
    let turn = ticket.turn();
    tokio::pin!(turn);
    let turn = loop {
        tokio::select! {
            turn = &mut turn => break Ok(turn),
            _ = changes.changed() => if !builder.lock().may_start() {
                break Err(StepDeferred);
            },
        }
    };
    builder.change(|inner| inner.queued = None);
    turn
}

/// Whether the host works on what was asked for, and is to be asked again.
pub(super) fn is_in_progress(error: &HostClientError) -> bool {
    error.code() == Some(HostErrorCode::InProgress)
}

/// Records a failed start, and whether the volume was seen to be damaged.
pub(super) fn start_failed(
    builder: &Builder,
    generation: Generation,
    error: &HostClientError,
) -> StepDeferred {
    start_failed_by(builder, generation, error, error.code())
}

/// The same for a key that cannot be had.
pub(super) fn not_lent(
    builder: &Builder,
    generation: Generation,
    error: &LendError,
) -> StepDeferred {
    start_failed_by(builder, generation, error, code(error))
}

/// The same for whatever was in the way; `code` if it was the host.
fn start_failed_by(
    builder: &Builder,
    generation: Generation,
    error: &(impl Told + 'static),
    code: Option<HostErrorCode>,
) -> StepDeferred {
    let (org, machine_generation) = (&builder.key.org, generation);
    let why = chain(error);
    tracing::warn!(%org, generation = %machine_generation, ?why, "builder did not start");
    builder.change(|inner| {
        let failed = inner.machine.failed_starts;
        inner.delayed = !matches!(
            code,
            Some(
                HostErrorCode::VolumeDamaged
                    | HostErrorCode::VolumeForeign
                    | HostErrorCode::Unsupported
                    | HostErrorCode::Failed
            )
        );
        let failures_before = match code {
            // An empty one takes its place, for either reason.
            Some(HostErrorCode::VolumeDamaged | HostErrorCode::VolumeForeign) => {
                inner.volume_damaged = true;
                inner.volume_foreign = code == Some(HostErrorCode::VolumeForeign);
                failed
            }
            // Until somebody changes what is demanded, or the host.
            Some(HostErrorCode::Failed | HostErrorCode::Unsupported) => failed,
            // It waits for something that may be over soon.
            None
            | Some(
                HostErrorCode::Denied
                | HostErrorCode::BadRequest
                | HostErrorCode::StaleGeneration
                | HostErrorCode::StaleFence
                | HostErrorCode::NotFound
                | HostErrorCode::Busy
                | HostErrorCode::NoSpace
                | HostErrorCode::DiskFull
                | HostErrorCode::KeyNeeded
                | HostErrorCode::InProgress,
            ) => failed.min(DELAYED_STARTS_COUNTED_MAX),
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
        inner.machine.last_error = Some(error.told());
    });
    StepDeferred
}
