//! What may be done.

use super::Result;
use super::access::Access;
use super::builder_choice::{builder_key, wait_ready, whole_builder_key};
use super::fly::{self, EnsureMachineRemoteBuilderPayload};
use super::ids::parse_id;
use super::input::{
    AskedBuild, BuilderInput, CreateAppInput, CreateOrgInput, CreateTokenInput,
    EnsureMachineRemoteBuilderInput, IssueClientCertificateInput, LendPullInput,
    SetRegistryCredentialInput, StartBuildInput, UpdateOrgInput, display_name, label,
};
use super::limits::TOKEN_LIFE_MAX;
use super::running::Running;
use super::scalar::{DateTime, Long};
use super::view::{
    App, Build, Builder, ClientCertificate, NewToken, Org, PullLoan, RegistryCredential, Token,
};
use crate::auth::Secret;
use crate::bounds::{CLIENT_CERTIFICATE_LIFE_MAX, CLIENT_CERTIFICATE_LIFE_MIN};
use crate::builds::BuildRequest;
use crate::ca::CertificateIdentity;
use crate::clock::now;
use crate::credentials::registry_of;
use crate::entropy::{NoEntropy, entropy};
use crate::problem::{Code, Problem};
use async_graphql::{Context, ID, Object};
use slipway_core::build::RegistryCredential as ClearCredential;
use slipway_core::id::{AppId, OrgId, TokenId};
use slipway_core::quota::{BuildRetention, BuilderSize};
use slipway_core::time::Timestamp;
use slipway_store as store;
use slipway_store::{AppRole, StoreError, TokenRole, What};
use std::time::Duration;

#[derive(Default)]
pub(super) struct CoreMutation;

/// What may be done. Each may be sent again without harm, but those that make something with a name: they say CONFLICT then.
#[Object]
impl CoreMutation {
    /// Makes an org. Needs the administrator's token.
    async fn create_org(&self, context: &Context<'_>, input: CreateOrgInput) -> Result<Org> {
        let access = Access::of(context)?;
        access.principal.require_administrator()?;
        let settings = &access.parts.settings;
        let slug = label(input.slug, "name of an org")?;
        let size = settings.builder.size();
        let most = settings.ceilings();
        let retention = most.cut_retention(BuildRetention::default());
        let change = input.limits.change(input.name, size, retention, &most)?;
        let org = store::Org {
            id: OrgId::from_entropy(entropy()?),
            name: change.name.unwrap_or_else(|| slug.clone()),
            slug,
            idle: change.idle.unwrap_or_else(|| settings.builder.idle()),
            retention: BuildRetention {
                count: change.builds_kept.unwrap_or(retention.count),
                age: change.builds_age.unwrap_or(retention.age),
            },
            default_region: change
                .default_region
                .unwrap_or_else(|| settings.default_region()),
            default_arch: change
                .default_arch
                .unwrap_or_else(|| settings.default_arch()),
            isolation: change.isolation.unwrap_or_default(),
            builder_size: BuilderSize {
                cpu_millis: change.cpu_millis.unwrap_or(size.cpu_millis),
                memory: change.memory.unwrap_or(size.memory),
                volume: change.volume.unwrap_or(size.volume),
            },
            created_at: now(),
        };
        access.store().create_org(&org).await?;
        tracing::info!(org = %org.id, slug = org.slug, "org made");
        Ok(org.into())
    }

    /// Changes an org.
    async fn update_org(&self, context: &Context<'_>, input: UpdateOrgInput) -> Result<Org> {
        let access = Access::of(context)?;
        let now = access
            .enter_whole(input.org.as_deref(), TokenRole::Admin)
            .await?;
        let most = access.parts.settings.ceilings();
        let change = input
            .limits
            .change(input.name, now.builder_size, now.retention, &most)?;
        let org = access.store().update_org(&now.id, &change).await?;
        access.parts.farm.org_changed(&org);
        Ok(org.into())
    }

    /// Makes a token. Its secret is told this once.
    async fn create_token(
        &self,
        context: &Context<'_>,
        input: CreateTokenInput,
    ) -> Result<NewToken> {
        let access = Access::of(context)?;
        let org = access
            .enter_whole(input.org.as_deref(), TokenRole::Admin)
            .await?;
        let app = match input.app {
            Some(name) => Some(access.store().app_by_name(&org.id, &name).await?.id),
            None => None,
        };
        let secret = Secret::draw().map_err(NoEntropy)?;
        let at = now();
        let token = store::Token {
            id: TokenId::from_entropy(entropy()?),
            org: Some(org.id),
            app,
            name: display_name(input.name)?,
            role: input.role.into(),
            created_at: at,
            expires_at: input
                .expires_in_ms
                .map(|life| token_end(at, life))
                .transpose()?,
            revoked_at: None,
            last_used_at: None,
        };
        access.store().create_token(&token, &secret.hash()).await?;
        tracing::info!(org = ?token.org, token = %token.id, "token made");
        Ok(NewToken {
            secret: secret.expose().to_owned(),
            token: token.into(),
        })
    }

    /// Revokes a token and the certificates issued with it, at once: what runs for it is cut. Revoked already is fine.
    async fn revoke_token(&self, context: &Context<'_>, id: ID) -> Result<Token> {
        let access = Access::of(context)?;
        let id: TokenId = parse_id(&id)?;
        // Whether it is another org's is told to nobody, and to the administrator only what it is.
        let found = access.store().token(&id).await?.ok_or_else(no_token)?;
        match &found.org {
            Some(org) if access.principal.org().is_none_or(|own| own == org) => {
                access
                    .enter_whole(Some(org.as_str()), TokenRole::Admin)
                    .await?;
            }
            None if access.principal.org().is_none() => access.principal.require_administrator()?,
            Some(_) | None => {
                access.enter_whole(None, TokenRole::Admin).await?;
                return Err(no_token());
            }
        }
        access
            .store()
            .revoke_token(found.org.as_ref(), &id, now())
            .await?;
        access.parts.authenticator.revoked(&id);
        tracing::info!(token = %id, "token revoked");
        let token = access.store().token(&id).await?;
        token.map(Token::from).ok_or_else(no_token)
    }

    /// Makes an app.
    async fn create_app(&self, context: &Context<'_>, input: CreateAppInput) -> Result<App> {
        let access = Access::of(context)?;
        let org = access
            .enter_whole(input.org.as_deref(), TokenRole::Deploy)
            .await?;
        let app = store::App {
            id: AppId::from_entropy(entropy()?),
            org: org.id,
            name: label(input.name, "name of an app")?,
            role: AppRole::User,
            billable: true,
            created_at: now(),
        };
        access.store().create_app(&app).await?;
        Ok(app.into())
    }

    /// Makes the builder if there is none, wakes it, and waits until Docker answers.
    async fn ensure_builder(&self, context: &Context<'_>, input: BuilderInput) -> Result<Builder> {
        let access = Access::of(context)?;
        let (_, key) = builder_key(&access, input, TokenRole::Deploy).await?;
        wait_ready(&access, &key).await?;
        Ok(access.parts.farm.builder(&key)?.into())
    }

    /// Ends the builder now, busy or not. Its cache stays, and the next request wakes it. Needs the role admin, for the
    /// whole org: everybody's builds end with it.
    async fn stop_builder(&self, context: &Context<'_>, input: BuilderInput) -> Result<Builder> {
        let access = Access::of(context)?;
        let key = whole_builder_key(&access, input).await?;
        Ok(access.parts.farm.stop_builder(&key).await?.into())
    }

    /// Ends the builder and empties its cache, for good. Needs the role admin, for the whole org.
    async fn reset_builder_cache(
        &self,
        context: &Context<'_>,
        input: BuilderInput,
    ) -> Result<Builder> {
        let access = Access::of(context)?;
        let key = whole_builder_key(&access, input).await?;
        Ok(access.parts.farm.reset_cache(&key).await?.into())
    }

    /// Starts a build. APP_NOT_FOUND if there is no such app: make it and try again.
    async fn start_build(&self, context: &Context<'_>, input: StartBuildInput) -> Result<Build> {
        let access = Access::of(context)?;
        let choice = BuilderInput {
            org: input.org.clone(),
            region: input.region.clone(),
            arch: input.arch.clone(),
        };
        let (scope, key) = builder_key(&access, choice, TokenRole::Deploy).await?;
        let app = access.app(&scope, &input.app).await?;
        let AskedBuild {
            spec,
            session,
            credential,
            tag_credentials,
        } = input.asked()?;
        let given: Vec<&str> = credential
            .iter()
            .chain(&tag_credentials)
            .map(|it| &*it.registry)
            .collect();
        let images = std::iter::once(&spec.image).chain(&spec.tags);
        let images = images.filter(|it| spec.push && !given.contains(&registry_of(it)));
        let lent = access
            .parts
            .lending
            .registries(&key.org, images.map(String::as_str));
        let lent = lent.await?;
        let request = BuildRequest {
            session,
            spec,
            credential,
            tag_credentials,
            lent,
            asked_by: Some(access.principal.token().name.clone()),
            until: Running::of(context)?.over().clone(),
        };
        let build = access
            .parts
            .builds
            .start_build(&key, &app.id, request)
            .await?;
        tracing::info!(org = %key.org, build = %build.id, app = app.name, "build started");
        Ok(Build(build))
    }

    /// Cancels a build. One that has ended stays as it is.
    async fn cancel_build(&self, context: &Context<'_>, id: ID) -> Result<Build> {
        let access = Access::of(context)?;
        let (org, build) = access.build(&parse_id(&id)?, TokenRole::Deploy).await?;
        access.parts.builds.cancel(&org, &build.id).await?;
        Ok(Build(access.store().build(&org, &build.id).await?))
    }

    /// Stores a registry credential, sealed; replaces the one for the same registry.
    async fn set_registry_credential(
        &self,
        context: &Context<'_>,
        input: SetRegistryCredentialInput,
    ) -> Result<RegistryCredential> {
        let access = Access::of(context)?;
        let org = access
            .enter_whole(input.org.as_deref(), TokenRole::Admin)
            .await?;
        let SetRegistryCredentialInput {
            registry,
            username,
            password,
            ..
        } = input;
        let clear = ClearCredential {
            registry,
            username,
            password,
        };
        Ok(access.parts.credentials.put(&org.id, clear).await?.into())
    }

    /// Removes a registry credential. Gives whether there was one.
    async fn remove_registry_credential(
        &self,
        context: &Context<'_>,
        org: Option<String>,
        registry: String,
    ) -> Result<bool> {
        let access = Access::of(context)?;
        let org = access.enter_whole(org.as_deref(), TokenRole::Admin).await?;
        Ok(access.parts.credentials.remove(&org.id, &registry).await?)
    }

    /// Lends a token of a registry's for pulling from some of its repositories, made with the login that the org has stored there.
    async fn lend_pull(&self, context: &Context<'_>, input: LendPullInput) -> Result<PullLoan> {
        let access = Access::of(context)?;
        let scope = access
            .enter(input.org.as_deref(), TokenRole::Deploy)
            .await?;
        let org = &scope.shared().id;
        let lending = &access.parts.lending;
        let loan = lending.pull(org, &input.registry, &input.repositories);
        let loan = loan.await?;
        if loan.is_token() {
            let token = &access.principal.token().id;
            let LendPullInput {
                registry,
                repositories,
                ..
            } = &input;
            tracing::info!(org = %org, %token, registry, ?repositories, "token for pulls lent");
        }
        Ok(loan.into())
    }

    /// Issues a client certificate for the gateways, which speaks for the token of this request in this org, and ends
    /// with it.
    async fn issue_client_certificate(
        &self,
        context: &Context<'_>,
        input: IssueClientCertificateInput,
    ) -> Result<ClientCertificate> {
        let access = Access::of(context)?;
        let scope = access
            .enter(input.org.as_deref(), TokenRole::Deploy)
            .await?;
        let token = access.principal.token();
        let asked = input
            .expires_in_ms
            .map(|Long(millis)| Duration::from_millis(millis));
        let at = now();
        let life = certificate_life(asked, token.expires_at.map(|end| end.since(at)))?;
        let identity = CertificateIdentity {
            token: token.id.clone(),
            org: scope.shared().id.clone(),
        };
        let issued = access
            .parts
            .authority
            .issue_client(&identity, at, life)
            .map_err(|error| Problem::internal(&error))?;
        tracing::info!(org = %identity.org, token = %identity.token, "client certificate issued");
        Ok(ClientCertificate {
            ca: access.parts.authority.pem().to_owned(),
            cert: issued.cert_pem,
            key: issued.key_pem,
            expires_at: DateTime(issued.not_after),
        })
    }

    /// Makes and wakes the org's builder and waits until Docker answers, with Fly's names.
    async fn ensure_machine_remote_builder(
        &self,
        context: &Context<'_>,
        input: EnsureMachineRemoteBuilderInput,
    ) -> Result<EnsureMachineRemoteBuilderPayload> {
        fly::ensure(&Access::of(context)?, input).await
    }
}

/// When a token ends.
fn token_end(at: Timestamp, Long(millis): Long) -> Result<Timestamp> {
    let life = Duration::from_millis(millis);
    if life > TOKEN_LIFE_MAX {
        let days = TOKEN_LIFE_MAX.as_secs() / (24 * 3600);
        return Err(
            Problem::new(Code::Invalid, format!("a token lives at most {days} days"))
                .hint("leave the end out for a token that does not expire")
                .into(),
        );
    }
    Ok(at.after(life))
}

/// A certificate never outlives its token; a life that somebody asked for is given or refused, not trimmed.
fn certificate_life(asked: Option<Duration>, token_left: Option<Duration>) -> Result<Duration> {
    let bounds = CLIENT_CERTIFICATE_LIFE_MIN..=CLIENT_CERTIFICATE_LIFE_MAX;
    let longest = token_left.map_or(CLIENT_CERTIFICATE_LIFE_MAX, |left| {
        left.min(CLIENT_CERTIFICATE_LIFE_MAX)
    });
    match asked {
        None => Ok(longest),
        Some(asked) if !bounds.contains(&asked) => {
            Err(Problem::new(Code::Invalid, "a certificate lives from a day to a year").into())
        }
        Some(asked) if asked > longest => {
            Err(Problem::new(Code::Invalid, "the token ends before that").into())
        }
        Some(asked) => Ok(asked),
    }
}

fn no_token() -> super::Refused {
    StoreError::NotFound(What::Token).into()
}
