//! Connecting to a builder that may have to be woken first.
//!
//! Must not know: what wakes it (the driver does, from the intent set here).

use super::builder::{Attempt, Builder};
use super::{FarmError, Shared, timed_out};
use crate::chain::chain;
use crate::host_client::HostClientError;
use crate::limits::{
    CONNECT_RETRY_MAX, CONNECT_RETRY_MIN, CRASHES_SEEN_MAX, HOST_AWAY_WAIT_MAX, WAKE_WAIT_MAX,
};
use crate::machine_stream::MachineStream;
use slipway_core::host_api::{EndpointPort, HostErrorCode};
use slipway_core::machine::MachineState;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

impl Shared {
    /// A stream to a builder, when it takes one.
    pub(super) async fn open(
        &self,
        builder: &Builder,
        port: EndpointPort,
    ) -> Result<MachineStream, FarmError> {
        let mut waiting: Option<Waiting> = None;
        loop {
            // Before looking, so that no change after the look is missed.
            let mut changes = builder.changes();
            match builder.attempt(port) {
                Attempt::Open(generation) => {
                    let machine = builder.lock().machine.id.clone();
                    let host = builder.host();
                    let client = &host.client;
                    match client.open_endpoint(machine, generation, port).await {
                        Ok(stream) => return Ok(stream),
                        Err(error) => {
                            tracing::debug!(why = ?chain(&error), "endpoint not opened");
                            if has_ended(&error) {
                                builder.look_again().await;
                            }
                            let waiting = waiting.get_or_insert_default();
                            waiting.refused = true;
                            waiting.busy = error.code() == Some(HostErrorCode::Busy);
                        }
                    }
                }
                Attempt::Wait => {}
                Attempt::WontStart(why) => return Err(FarmError::WontStart(why)),
            }
            let waiting = waiting.get_or_insert_default();
            waiting.look(builder)?;
            tokio::select! {
                () = self.cancel.cancelled() => return Err(FarmError::Closed),
                changed = waiting.pause(&mut changes) => if !changed {
                    return Err(if waiting.busy {
                        FarmError::TakesNone { waited: WAKE_WAIT_MAX }
                    } else {
                        timed_out(builder, "up", WAKE_WAIT_MAX)
                    });
                }
            }
        }
    }
}

/// A host refuses a connection like this when the machine ended just now.
pub(super) fn has_ended(error: &HostClientError) -> bool {
    matches!(
        error.code(),
        Some(HostErrorCode::NotFound | HostErrorCode::StaleGeneration)
    )
}

/// A connection that waits for its builder.
struct Waiting {
    deadline: Instant,
    /// Until when the builder's host may be silent, while it is.
    host_deadline: Option<Instant>,
    retry: Duration,
    /// The host has just refused a connection although the builder seems to run: do not count on a change.
    refused: bool,
    /// Its machine runs and took no connection the last time.
    busy: bool,
    crashed: Option<MachineState>,
    crashes: u32,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            deadline: Instant::now() + WAKE_WAIT_MAX,
            host_deadline: None,
            retry: CONNECT_RETRY_MIN,
            refused: false,
            busy: false,
            crashed: None,
            crashes: 0,
        }
    }
}

impl Waiting {
    /// Counts crashes, and how long the host is away; enough is enough.
    fn look(&mut self, builder: &Builder) -> Result<(), FarmError> {
        if *builder.host().reachable.borrow() {
            self.host_deadline = None;
        } else {
            let now = Instant::now();
            let until = *self.host_deadline.get_or_insert(now + HOST_AWAY_WAIT_MAX);
            if now >= until {
                return Err(FarmError::HostAway);
            }
        }
        let inner = builder.lock();
        let state = inner.machine.state;
        let crashed = matches!(state, MachineState::Crashed { .. });
        if crashed && self.crashed != Some(state) {
            self.crashed = Some(state);
            // What is delayed is waited for, up to the deadline.
            self.crashes += u32::from(!inner.delayed);
        }
        if self.crashes < CRASHES_SEEN_MAX {
            Ok(())
        } else {
            Err(FarmError::WontStart(inner.last_error()))
        }
    }

    /// Waits for a change. Gives whether there is time left.
    async fn pause(&mut self, changes: &mut tokio::sync::watch::Receiver<u64>) -> bool {
        let mut until = self
            .deadline
            .min(self.host_deadline.unwrap_or(self.deadline));
        if std::mem::take(&mut self.refused) {
            until = until.min(Instant::now() + self.retry);
            self.retry = CONNECT_RETRY_MAX.min(self.retry * 2);
        }
        // The sender lives as long as the builder; a timeout is only the end if it was the last.
        let _ = timeout_at(until, changes.changed()).await;
        Instant::now() < self.deadline
    }
}
