//! Learning that a builder's dockerd answers.

use super::builder::Builder;
use super::error::FarmError;
use crate::chain::chain;
use crate::clock::now;
use crate::guest_client::{GuestClient, GuestError};
use crate::limits::{CONNECT_RETRY_MAX, CONNECT_RETRY_MIN, READY_ASK_WAIT};
use slipway_core::generation::Generation;
use slipway_core::host_api::EndpointPort;
use slipway_core::machine::{MachineEvent, MachineState};

/// Waits for dockerd of one generation to answer, and records it. Ends when that generation is over.
pub(super) async fn await_ready(builder: &Builder, generation: Generation) {
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
        match ask(builder, generation).await {
            Ok(Said::Ready) => {
                let _ = builder.learn(MachineEvent::GuestReady { generation }, None);
                return;
            }
            // It gives up by itself when dockerd makes no progress.
            Ok(Said::Starting) => builder.lock().heard_at = now(),
            Ok(Said::Nothing) => {}
            Err(error) => {
                tracing::debug!(why = ?chain(&error), "guest not asked whether it is ready");
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
        pause = CONNECT_RETRY_MAX.min(pause * 2);
    }
}

/// What a guest says that is asked whether it is ready.
enum Said {
    Ready,
    Starting,
    Nothing,
}

async fn ask(builder: &Builder, generation: Generation) -> Result<Said, FarmError> {
    let machine = builder.lock().machine.id.clone();
    let host = builder.host();
    let client = &host.client;
    let stream = client
        .open_endpoint(machine, generation, EndpointPort::Guest)
        .await?;
    let mut guest = GuestClient::new(stream).await?;
    match guest.status(READY_ASK_WAIT).await {
        Ok(status) if status.ready => Ok(Said::Ready),
        Ok(_) => Ok(Said::Starting),
        Err(GuestError::TimedOut(_)) => Ok(Said::Nothing),
        Err(error) => Err(error.into()),
    }
}
