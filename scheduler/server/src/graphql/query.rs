//! What may be asked.

use super::Result;
use super::access::Access;
use super::ids::parse_id;
use super::limits::GRAPHQL_LIST_WEIGHT;
use super::scalar::DateTime;
use super::view::{
    App, BootedImages, Build, Builder, Org, RegistryCredential, Server, Token, Viewer,
};
use crate::bounds::PAGE_MAX;
use crate::farm::ImageAges;
use async_graphql::{Context, ID, Object};
use slipway_core::quota::ORG_BUILDERS_MAX;
use slipway_store::{BuildFilter, TokenPage, TokenRole};

#[derive(Default)]
pub(super) struct CoreQuery;

/// What may be asked. `org` is an id or a slug; without it, the token's own org is meant.
#[Object]
impl CoreQuery {
    /// Who asks, and what answers.
    async fn viewer(&self, context: &Context<'_>) -> Result<Viewer> {
        let access = Access::of(context)?;
        let org = match access.principal.org() {
            Some(_) => Some(
                access
                    .enter(None, TokenRole::Read)
                    .await?
                    .shared()
                    .clone()
                    .into(),
            ),
            None => None,
        };
        Ok(Viewer {
            token: access.principal.token().clone().into(),
            org,
            server: server(&access),
        })
    }

    /// The orgs that the token can see: its own, or all for the administrator.
    #[graphql(complexity = "GRAPHQL_LIST_WEIGHT * child_complexity")]
    async fn orgs(&self, context: &Context<'_>) -> Result<Vec<Org>> {
        let access = Access::of(context)?;
        match access.principal.org() {
            Some(_) => Ok(vec![
                access
                    .enter(None, TokenRole::Read)
                    .await?
                    .shared()
                    .clone()
                    .into(),
            ]),
            None => Ok(access
                .store()
                .all_orgs()
                .await?
                .into_iter()
                .map(Org::from)
                .collect()),
        }
    }

    /// One org.
    async fn org(&self, context: &Context<'_>, org: Option<String>) -> Result<Org> {
        let access = Access::of(context)?;
        let scope = access.enter(org.as_deref(), TokenRole::Read).await?;
        Ok(scope.shared().clone().into())
    }

    /// Apps of an org, builders among them, by name.
    #[graphql(complexity = "GRAPHQL_LIST_WEIGHT * child_complexity")]
    async fn apps(&self, context: &Context<'_>, org: Option<String>) -> Result<Vec<App>> {
        let access = Access::of(context)?;
        let scope = access.enter(org.as_deref(), TokenRole::Read).await?;
        let (org, only) = scope.filtered();
        let apps = access.store().apps(&org).await?.into_iter();
        let visible = apps.filter(|app| only.as_ref().is_none_or(|only| *only == app.id));
        Ok(visible.map(App::from).collect())
    }

    /// Tokens of an org, newest first, revoked ones included, without their secrets; `before` is the last id of the page before.
    /// Without `org`, the administrator sees the administrator's.
    #[graphql(complexity = "1 + limit.min(PAGE_MAX) as usize * child_complexity")]
    async fn tokens(
        &self,
        context: &Context<'_>,
        org: Option<String>,
        before: Option<ID>,
        #[graphql(default = 200)] limit: u32,
    ) -> Result<Vec<Token>> {
        let access = Access::of(context)?;
        let page = TokenPage {
            before: before.as_ref().map(parse_id).transpose()?,
            limit: limit.min(PAGE_MAX),
        };
        let tokens = if org.is_none() && access.principal.org().is_none() {
            access.principal.require_administrator()?;
            access.store().tokens(None, &page).await?
        } else {
            let org = access.enter_whole(org.as_deref(), TokenRole::Admin).await?;
            access.store().tokens(Some(&org.id), &page).await?
        };
        Ok(tokens.into_iter().map(Token::from).collect())
    }

    /// Builders of an org.
    #[graphql(complexity = "ORG_BUILDERS_MAX as usize * child_complexity")]
    async fn builders(&self, context: &Context<'_>, org: Option<String>) -> Result<Vec<Builder>> {
        let access = Access::of(context)?;
        let scope = access.enter(org.as_deref(), TokenRole::Read).await?;
        let views = access.parts.farm.builders(&scope.shared().id);
        Ok(views.into_iter().map(Builder::from).collect())
    }

    /// One builder of an org, by the id of its machine.
    async fn builder(
        &self,
        context: &Context<'_>,
        org: Option<String>,
        id: ID,
    ) -> Result<Option<Builder>> {
        let access = Access::of(context)?;
        let scope = access.enter(org.as_deref(), TokenRole::Read).await?;
        let id = super::view::machine_id(&id)?;
        let views = access.parts.farm.builders(&scope.shared().id);
        Ok(views
            .into_iter()
            .find(|view| view.machine == id)
            .map(Builder::from))
    }

    /// Builds of an org, newest first, at most 200; `before` is the last id of the page before.
    #[graphql(complexity = "1 + limit.min(PAGE_MAX) as usize * child_complexity")]
    async fn builds(
        &self,
        context: &Context<'_>,
        org: Option<String>,
        app: Option<String>,
        before: Option<ID>,
        #[graphql(default = 50)] limit: u32,
    ) -> Result<Vec<Build>> {
        let access = Access::of(context)?;
        let scope = access.enter(org.as_deref(), TokenRole::Read).await?;
        let named = match app {
            Some(name) => Some(access.app(&scope, &name).await?.id),
            None => None,
        };
        let (org, only) = scope.filtered();
        let app = named.or(only);
        let before = before.as_ref().map(parse_id).transpose()?;
        let filter = BuildFilter {
            app,
            before,
            limit: limit.min(PAGE_MAX),
        };
        let builds = access.store().builds(&org, &filter).await?;
        Ok(builds.into_iter().map(Build).collect())
    }

    /// One build.
    async fn build(&self, context: &Context<'_>, id: ID) -> Result<Build> {
        let access = Access::of(context)?;
        Ok(Build(
            access.build(&parse_id(&id)?, TokenRole::Read).await?.1,
        ))
    }

    /// Registry credentials of an org, by registry, without their passwords.
    #[graphql(complexity = "GRAPHQL_LIST_WEIGHT * child_complexity")]
    async fn registry_credentials(
        &self,
        context: &Context<'_>,
        org: Option<String>,
    ) -> Result<Vec<RegistryCredential>> {
        let access = Access::of(context)?;
        let whole = access
            .enter_whole(org.as_deref(), TokenRole::Deploy)
            .await?;
        let rows = access.store().credentials(&whole.id).await?;
        Ok(rows.into_iter().map(RegistryCredential::from).collect())
    }
}

fn server(access: &Access<'_>) -> Server {
    let addresses = access.parts.addresses.clone();
    let images = access.parts.farm.images().into_iter();
    let booted = |(region, made): (String, ImageAges)| BootedImages {
        region,
        image_made_at: made.image.map(DateTime),
        kernel_made_at: made.kernel.map(DateTime),
    };
    Server {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: addresses.api,
        docker: addresses.docker,
        buildkit: addresses.buildkit,
        notices: access.parts.farm.notices(),
        images: images.map(booted).collect(),
    }
}
