//! `ensureMachineRemoteBuilder` with Fly's names, for callers that know those.

use super::error::Problem;
use super::input::EnsureMachineRemoteBuilderInput;
use super::mutation::{key_of, wait_ready};
use super::{caller, services};
use async_graphql::{Context, ID, Result, SimpleObject};
use slipway_store::{StoreError, TokenRole};

/// Fly's payload.
#[derive(Debug, SimpleObject)]
pub(super) struct EnsureMachineRemoteBuilderPayload {
    client_mutation_id: Option<String>,
    machine: FlyMachine,
    app: FlyApp,
}

/// A machine, as Fly names its parts.
#[derive(Debug, SimpleObject)]
pub(super) struct FlyMachine {
    id: ID,
    state: String,
    ips: FlyMachineIpConnection,
}

/// Always empty: a builder is reached through the gateways only.
#[derive(Debug, SimpleObject)]
pub(super) struct FlyMachineIpConnection {
    nodes: Vec<FlyMachineIp>,
}

/// An address of a machine.
#[derive(Debug, SimpleObject)]
pub(super) struct FlyMachineIp {
    family: String,
    kind: String,
    ip: String,
}

/// The app that holds the builder.
#[derive(Debug, SimpleObject)]
pub(super) struct FlyApp {
    name: String,
    organization: FlyOrganization,
}

/// An org, as Fly names its parts.
#[derive(Debug, SimpleObject)]
pub(super) struct FlyOrganization {
    id: ID,
    slug: String,
}

pub(super) async fn ensure(
    context: &Context<'_>,
    input: EnsureMachineRemoteBuilderInput,
) -> Result<EnsureMachineRemoteBuilderPayload> {
    let (services, caller) = (services(context)?, caller(context)?);
    caller.require(TokenRole::Deploy)?;
    let org = match (&input.organization_id, &input.app_name) {
        (Some(id), _) => caller.org(services, Some(id.as_str())).await?,
        (None, Some(name)) => {
            let mut found = None;
            for org in caller.orgs(services).await? {
                match services.store.app_by_name(&org.id, name).await {
                    Ok(app) if caller.may_use(&app.id) => found = Some(org),
                    Ok(_) | Err(StoreError::NotFound(_)) => {}
                    Err(error) => return Err(Problem::from(error).into()),
                }
            }
            found.ok_or_else(|| Problem::user("APP_NOT_FOUND", "there is no such app"))?
        }
        (None, None) => caller.org(services, None).await?,
    };
    let key = key_of(&org, input.region.as_deref(), None);
    services.farm.ensure_builder(&key).await.map_err(Problem::from)?;
    wait_ready(services, &key).await?;
    let builder = services.farm.builder(&key).map_err(Problem::from)?;
    let app = services.store.app(&org.id, &builder.app).await.map_err(Problem::from)?;
    Ok(EnsureMachineRemoteBuilderPayload {
        client_mutation_id: input.client_mutation_id,
        machine: FlyMachine {
            id: builder.machine.as_str().into(),
            state: "started".to_owned(),
            ips: FlyMachineIpConnection { nodes: Vec::new() },
        },
        app: FlyApp {
            name: app.name,
            organization: FlyOrganization { id: org.id.as_str().into(), slug: org.slug },
        },
    })
}
