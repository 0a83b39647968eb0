//! Which builder is meant, and the wait until it answers.

use super::Result;
use super::access::{Access, Scope};
use super::input::{BuilderInput, label};
use crate::chain::chain;
use crate::farm::{BuilderKey, FarmError, NextEvent};
use crate::guest_client::{GuestClient, GuestError};
use crate::limits::{CONNECT_RETRY_MAX, READY_ASK_WAIT, WAKE_TRIES_MAX, WAKE_WAIT_MAX};
use crate::machine_stream::MachineStream;
use crate::problem::{Code, Problem};
use slipway_core::host_api::EndpointPort;
use slipway_core::machine::MachineState;
use slipway_store::{Org, TokenRole};

/// Which builder of which org is meant.
///
/// # Errors
/// As [`Access::enter`]; [`Code::Invalid`].
pub(super) async fn builder_key(
    access: &Access<'_>,
    input: BuilderInput,
    role: TokenRole,
) -> Result<(Scope, BuilderKey)> {
    let scope = access.enter(input.org.as_deref(), role).await?;
    let key = key_in(scope.shared(), input)?;
    Ok((scope, key))
}

/// The same, for what ends everybody's work on it: with the role admin, and not with a token of one app.
///
/// # Errors
/// As [`Access::enter_whole`]; [`Code::Invalid`].
pub(super) async fn whole_builder_key(
    access: &Access<'_>,
    input: BuilderInput,
) -> Result<BuilderKey> {
    let org = access
        .enter_whole(input.org.as_deref(), TokenRole::Admin)
        .await?;
    key_in(&org, input)
}

fn key_in(org: &Org, input: BuilderInput) -> Result<BuilderKey> {
    Ok(BuilderKey {
        org: org.id.clone(),
        region: label(
            input.region.unwrap_or_else(|| org.default_region.clone()),
            "region",
        )?,
        arch: label(
            input.arch.unwrap_or_else(|| org.default_arch.clone()),
            "architecture",
        )?,
    })
}

/// Waits until the guest says that its Docker is ready.
async fn docker_answers(stream: MachineStream) -> std::result::Result<(), GuestError> {
    let mut guest = GuestClient::new(stream).await?;
    // It answers that it is not ready for as long as dockerd makes progress.
    while !guest.status(READY_ASK_WAIT).await?.ready {
        tokio::time::sleep(CONNECT_RETRY_MAX).await;
    }
    Ok(())
}

/// Wakes a builder (which is made if there is none) and waits until its Docker answers, and the farm knows it.
///
/// # Errors
/// The farm's; [`Code::Unavailable`] if Docker does not answer in time.
pub(super) async fn wait_ready(access: &Access<'_>, key: &BuilderKey) -> Result<()> {
    let farm = &access.parts.farm;
    let mut changes = farm.subscribe(&key.org);
    let known = async {
        let mut tries = 1;
        // Held until the farm knows it too, so that it does not end in between.
        let _activity = loop {
            let (stream, activity) = farm.connect(key, EndpointPort::Guest).await?;
            match docker_answers(stream).await {
                Ok(()) => break activity,
                // Its machine died while it booted; the next one may do better.
                Err(GuestError::Transport(error)) if tries < WAKE_TRIES_MAX => {
                    tracing::info!(?key, why = ?chain(&error), "a builder died while it booted");
                    tries += 1;
                }
                Err(error) => return Err(error.into()),
            }
        };
        while !matches!(farm.builder(key)?.state, MachineState::Running { .. }) {
            if changes.next().await == NextEvent::Closed {
                return Ok(false);
            }
        }
        Ok::<_, FarmError>(true)
    };
    match tokio::time::timeout(WAKE_WAIT_MAX, known).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Err(error)) => Err(error.into()),
        Ok(Ok(false)) | Err(_) => Err(Problem::new(
            Code::Unavailable,
            "the builder's Docker does not answer yet",
        )
        .hint("try again in a minute")
        .into()),
    }
}
