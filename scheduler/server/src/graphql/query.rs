//! Questions.

use super::caller::Caller;
use super::error::Problem;
use super::view::{
    App, Build, Builder, Org, RegistryCredential, Server, Token, Viewer, Volume, time,
};
use super::{Services, caller, services};
use async_graphql::{Context, ID, Object, Result};
use slipway_core::id::{AppId, BuildId, OrgId};
use slipway_store::{BuildFilter, StoreError, TokenRole};
use std::collections::HashMap;

/// Most rows of one answer.
const ROWS_MAX: u32 = 200;
const ROWS_DEFAULT: u32 = 20;

#[derive(Debug)]
pub(super) struct Query;

#[Object]
impl Query {
    /// Who asks, and what answers.
    async fn viewer(&self, context: &Context<'_>) -> Result<Viewer> {
        let (services, caller) = (services(context)?, caller(context)?);
        let org = match &caller.token.org {
            Some(own) => Some(services.store.org(own).await.map_err(Problem::from)?.into()),
            None => None,
        };
        let token = caller.token.clone().into();
        let server = Server {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            docker: services.docker_address.clone(),
            buildkit: services.buildkit_address.clone(),
        };
        Ok(Viewer { token, org, server })
    }

    /// The orgs the caller can see.
    async fn orgs(&self, context: &Context<'_>) -> Result<Vec<Org>> {
        let orgs = caller(context)?.orgs(services(context)?).await?;
        Ok(orgs.into_iter().map(Org::from).collect())
    }

    /// Apps of an org, the one that holds its builders among them.
    async fn apps(&self, context: &Context<'_>, org: Option<String>) -> Result<Vec<App>> {
        let (services, caller) = (services(context)?, caller(context)?);
        let org = caller.org(services, org.as_deref()).await?;
        let apps = services.store.apps(&org.id).await.map_err(Problem::from)?;
        Ok(apps.into_iter().filter(|app| caller.may_use(&app.id)).map(App::from).collect())
    }

    /// Tokens of an org, without their secrets.
    async fn tokens(&self, context: &Context<'_>, org: Option<String>) -> Result<Vec<Token>> {
        let (services, caller) = (services(context)?, caller(context)?);
        caller.require_org_wide()?;
        caller.require(TokenRole::Admin)?;
        let org = caller.org(services, org.as_deref()).await?;
        let tokens = services.store.tokens(Some(&org.id)).await.map_err(Problem::from)?;
        Ok(tokens.into_iter().map(Token::from).collect())
    }

    /// Builders of an org.
    async fn builders(&self, context: &Context<'_>, org: Option<String>) -> Result<Vec<Builder>> {
        let (services, caller) = (services(context)?, caller(context)?);
        let org = caller.org(services, org.as_deref()).await?;
        Ok(services.farm.builders(&org.id).into_iter().map(Builder::from).collect())
    }

    /// Volumes of an org.
    async fn volumes(&self, context: &Context<'_>, org: Option<String>) -> Result<Vec<Volume>> {
        let (services, caller) = (services(context)?, caller(context)?);
        caller.require_org_wide()?;
        let org = caller.org(services, org.as_deref()).await?;
        volumes(services, &org.id).await.map_err(Into::into)
    }

    /// Builds of an org, newest first.
    async fn builds(
        &self,
        context: &Context<'_>,
        org: Option<String>,
        app: Option<String>,
        limit: Option<u32>,
    ) -> Result<Vec<Build>> {
        let (services, caller) = (services(context)?, caller(context)?);
        let org = caller.org(services, org.as_deref()).await?;
        let app = match (app, &caller.token.app) {
            (Some(name), _) => Some(caller.app(services, &org.id, &name).await?.id),
            (None, own) => own.clone(),
        };
        let limit = limit.unwrap_or(ROWS_DEFAULT).min(ROWS_MAX);
        let filter = BuildFilter { app, before: None, limit };
        let builds = services.store.builds(&org.id, &filter).await.map_err(Problem::from)?;
        let names = app_names(services, &org.id).await?;
        let named = |app: &AppId| names.get(app).cloned().unwrap_or_default();
        Ok(builds.into_iter().map(|build| { let app = named(&build.app); Build::new(build, app) }).collect())
    }

    /// One build.
    async fn build(&self, context: &Context<'_>, id: ID) -> Result<Build> {
        let (services, caller) = (services(context)?, caller(context)?);
        let (org, build) = find_build(services, caller, &id).await?;
        Ok(show_build(services, &org, build).await?)
    }

    /// Stored registry credentials, without their passwords.
    async fn registry_credentials(
        &self,
        context: &Context<'_>,
        org: Option<String>,
    ) -> Result<Vec<RegistryCredential>> {
        let (services, caller) = (services(context)?, caller(context)?);
        caller.require_org_wide()?;
        let org = caller.org(services, org.as_deref()).await?;
        let all = services.store.credentials(&org.id).await.map_err(Problem::from)?;
        Ok(all.into_iter().map(RegistryCredential::from).collect())
    }
}

async fn volumes(services: &Services, org: &OrgId) -> std::result::Result<Vec<Volume>, Problem> {
    let regions: HashMap<_, _> = services
        .store
        .hosts()
        .await?
        .into_iter()
        .map(|used| (used.host.id, used.host.region))
        .collect();
    let holders: HashMap<_, _> =
        services.farm.builders(org).into_iter().map(|b| (b.volume, b.machine)).collect();
    let used = services.farm.volume_use(org).await;
    let all = services.store.volumes(org).await?;
    Ok(all
        .into_iter()
        .map(|volume| Volume {
            region: regions.get(&volume.host).cloned().unwrap_or_default(),
            used_bytes: used.get(&volume.id).copied(),
            attached_to: holders.get(&volume.id).map(|machine| machine.as_str().into()),
            id: volume.id.as_str().into(),
            state: volume.state.into(),
            size_bytes: volume.size.0,
            created_at: time(volume.created_at),
        })
        .collect())
}

async fn app_names(
    services: &Services,
    org: &OrgId,
) -> std::result::Result<HashMap<AppId, String>, Problem> {
    let apps = services.store.apps(org).await?;
    Ok(apps.into_iter().map(|app| (app.id, app.name)).collect())
}

/// A build by its id, in whichever org of this caller it is.
pub(super) async fn find_build(
    services: &Services,
    caller: &Caller,
    id: &str,
) -> std::result::Result<(OrgId, slipway_store::Build), Problem> {
    let unknown = || Problem::user("BUILD_NOT_FOUND", "there is no such build, or it is not yours");
    let id: BuildId = id.parse().map_err(|_| unknown().hint("an id looks like bld_0k3vq2m9c4t7xw1e"))?;
    for org in caller.orgs(services).await? {
        match services.store.build(&org.id, &id).await {
            Ok(build) if caller.may_use(&build.app) => return Ok((org.id, build)),
            Ok(_) | Err(StoreError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(unknown())
}

pub(super) async fn show_build(
    services: &Services,
    org: &OrgId,
    build: slipway_store::Build,
) -> std::result::Result<Build, Problem> {
    let app = services.store.app(org, &build.app).await?;
    Ok(Build::new(build, app.name))
}
