//! The builder as clients of Fly's API ask for it: their names, our builder.
//!
//! Must not know: more of Fly's API than `ensureMachineRemoteBuilder`.

use super::Result;
use super::access::Access;
use super::builder_choice::{builder_key, wait_ready};
use super::input::{BuilderInput, EnsureMachineRemoteBuilderInput};
use async_graphql::{ID, SimpleObject};
use slipway_store::{Owned, StoreError, TokenRole, What};
use std::net::{IpAddr, SocketAddr};

/// Answer to `ensureMachineRemoteBuilder`.
#[derive(SimpleObject)]
pub(super) struct EnsureMachineRemoteBuilderPayload {
    /// As it came.
    client_mutation_id: Option<String>,
    /// The builder's machine.
    machine: FlyMachine,
    /// The app it belongs to.
    app: FlyApp,
}

/// A machine, as Fly shows one.
#[derive(SimpleObject)]
struct FlyMachine {
    /// Its id.
    id: ID,
    /// Fly's word for what it does: started.
    state: String,
    /// Where it is reached.
    ips: FlyIps,
}

/// Addresses.
#[derive(SimpleObject)]
struct FlyIps {
    /// The Docker gateway's, if the server is known by an address. (Builders themselves have none to offer.)
    nodes: Vec<FlyIp>,
}

/// An address.
#[derive(SimpleObject)]
struct FlyIp {
    /// v4 or v6.
    family: String,
    /// public.
    kind: String,
    /// The address.
    ip: String,
}

/// An app, as Fly shows one.
#[derive(SimpleObject)]
struct FlyApp {
    /// Its name.
    name: String,
    /// Whose it is.
    organization: FlyOrganization,
}

/// An org, as Fly shows one.
#[derive(SimpleObject)]
struct FlyOrganization {
    /// Its id.
    id: ID,
    /// Its slug.
    slug: String,
}

/// Carries it out.
///
/// # Errors
/// As for a builder of ours.
pub(super) async fn ensure(
    access: &Access<'_>,
    input: EnsureMachineRemoteBuilderInput,
) -> Result<EnsureMachineRemoteBuilderPayload> {
    let org = match (&input.organization_id, &input.app_name) {
        (Some(org), _) => Some(org.to_string()),
        (None, Some(app)) => Some(org_of(access, app).await?),
        (None, None) => None,
    };
    let choice = BuilderInput {
        org,
        region: input.region,
        arch: None,
    };
    let (scope, key) = builder_key(access, choice, TokenRole::Deploy).await?;
    if let Some(name) = &input.app_name {
        access.app(&scope, name).await?;
    }
    wait_ready(access, &key).await?;
    let view = access.parts.farm.builder(&key)?;
    let app = access.store().app(&key.org, &view.app).await?;
    let address = access.parts.addresses.docker.parse::<SocketAddr>().ok();
    let node = |address: SocketAddr| FlyIp {
        family: match address.ip() {
            IpAddr::V4(_) => "v4".to_owned(),
            IpAddr::V6(_) => "v6".to_owned(),
        },
        kind: "public".to_owned(),
        ip: address.ip().to_string(),
    };
    Ok(EnsureMachineRemoteBuilderPayload {
        client_mutation_id: input.client_mutation_id,
        machine: FlyMachine {
            id: ID(view.machine.into()),
            state: "started".to_owned(),
            ips: FlyIps {
                nodes: address.map(node).into_iter().collect(),
            },
        },
        app: FlyApp {
            name: app.name,
            organization: FlyOrganization {
                id: ID(scope.shared().id.to_string()),
                slug: scope.shared().slug.clone(),
            },
        },
    })
}

/// The org that has an app of this name. The administrator may look into all.
async fn org_of(access: &Access<'_>, app: &str) -> Result<String> {
    let owner = access.owner(Owned::App(app)).await?;
    let org = owner.ok_or(StoreError::NotFound(What::App))?;
    access.store().app_by_name(&org, app).await?;
    Ok(org.to_string())
}
