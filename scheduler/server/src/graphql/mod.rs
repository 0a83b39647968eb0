//! The GraphQL API.
//!
//! Owns: the schema, what each caller may see, how failures are told. Must not know: HTTP, TLS, SQL, how anything is done;
//! resolvers parse, call, convert.

mod caller;
mod error;
mod fly;
mod input;
mod mutation;
mod query;
mod subscription;
mod view;

pub use caller::Caller;

use crate::auth::Authenticator;
use crate::bounds::{GRAPHQL_COMPLEXITY_MAX, GRAPHQL_DEPTH_MAX};
use crate::builds::BuildService;
use crate::ca::Authority;
use crate::farm::Farm;
use crate::seal::Sealer;
use async_graphql::{Context, Request, Response, Result, Schema};
use error::Problem;
use futures_util::Stream;
use slipway_core::build::RegistryCredential;
use slipway_core::id::OrgId;
use slipway_core::quota::BuilderSize;
use slipway_store::Store;
use std::sync::Arc;
use std::time::Duration;


/// What a new org gets.
#[derive(Debug, Clone)]
pub struct OrgDefaults {
    /// Idle time of its builders.
    pub idle: Duration,
    /// Region of its builders.
    pub region: String,
    /// Architecture of its builders.
    pub arch: String,
    /// Size of its builders.
    pub size: BuilderSize,
}

/// Everything resolvers may call.
#[derive(Debug, Clone)]
pub struct Services {
    /// Records.
    pub store: Arc<dyn Store>,
    /// Builders.
    pub farm: Farm,
    /// Builds.
    pub builds: BuildService,
    /// Credentials at rest.
    pub sealer: Arc<Sealer>,
    /// Client certificates.
    pub authority: Arc<Authority>,
    /// Tokens in use.
    pub auth: Arc<Authenticator>,
    /// What a new org gets.
    pub defaults: OrgDefaults,
    /// Where the Docker gateway is reached, as `host:port`.
    pub docker_address: String,
    /// Where the BuildKit gateway is reached, as `host:port`.
    pub buildkit_address: String,
}

impl Services {
    /// The org's stored credential for the registry of an image, in clear; absent if there is none.
    async fn stored_credential(
        &self,
        org: &OrgId,
        image: &str,
    ) -> std::result::Result<Option<RegistryCredential>, Problem> {
        let registry = registry_of(image);
        let Some(stored) = self.store.credential_for(org, registry).await? else {
            return Ok(None);
        };
        let opened = self.sealer.open_sealed(org, &stored.registry, &stored.sealed);
        let clear = opened.map_err(|error| unreadable(&error))?;
        let password = String::from_utf8(clear).map_err(|error| unreadable(&error))?;
        let (registry, username) = (stored.registry, stored.username);
        Ok(Some(RegistryCredential { registry, username, password }))
    }
}

fn unreadable(error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::internal("the stored credential could not be read", error)
}

/// The registry part of an image's name, as Docker reads it: what is before the first slash, if it can be a host.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        Some(_) | None => "docker.io",
    }
}

type SlipwaySchema = Schema<query::Query, mutation::Mutation, subscription::SubscriptionRoot>;

/// The API, ready to answer.
#[derive(Clone)]
pub struct Api(SlipwaySchema);

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    /// The API over these services.
    pub fn new(services: Services) -> Self {
        Self(builder().data(services).finish())
    }

    /// Answers one request.
    pub async fn execute(&self, request: Request, caller: Caller) -> Response {
        self.0.execute(request.data(caller)).await
    }

    /// Answers a subscription, until it ends.
    pub fn subscribe(
        &self,
        request: Request,
        caller: Caller,
    ) -> impl Stream<Item = Response> + Send + use<> {
        self.0.execute_stream(request.data(caller))
    }
}

/// The schema in GraphQL's own language; docs/schema.graphql is this.
pub fn sdl() -> String {
    builder().finish().sdl()
}

fn builder() -> async_graphql::SchemaBuilder<query::Query, mutation::Mutation, subscription::SubscriptionRoot>
{
    Schema::build(query::Query, mutation::Mutation, subscription::SubscriptionRoot)
        .limit_depth(GRAPHQL_DEPTH_MAX)
        .limit_complexity(GRAPHQL_COMPLEXITY_MAX)
}

fn services<'a>(context: &Context<'a>) -> Result<&'a Services> {
    context.data::<Services>()
}

fn caller<'a>(context: &Context<'a>) -> Result<&'a Caller> {
    context.data::<Caller>()
}
