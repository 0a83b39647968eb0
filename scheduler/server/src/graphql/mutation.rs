//! Changes.

use super::error::Problem;
use super::input::{
    BuilderInput, CreateAppInput, CreateOrgInput, CreateTokenInput, EnsureMachineRemoteBuilderInput,
    IssueClientCertificateInput, OrgLimits, SetRegistryCredentialInput, StartBuildInput,
    UpdateOrgInput, check_name,
};
use super::query::{find_build, show_build};
use super::view::{
    App, Build, Builder, ClientCertificate, NewToken, Org, RegistryCredential, Token,
};
use super::{Services, caller, fly, services};
use crate::builds::BuildRequest;
use crate::farm::{BuilderKey, now};
use async_graphql::{Context, ID, Object, Result};
use slipway_core::build::BuildSpec;
use slipway_core::host_api::EndpointPort;
use slipway_core::id::{AppId, CredentialId, OrgId, TokenId};
use slipway_core::limits::MACHINE_READY_WAIT_MAX;
use slipway_core::quota::{BuilderSize, check_builder_size, check_idle};
use slipway_store::{AppRole, OrgChange, SealedCredential, TokenRole};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Mutation;

#[Object]
impl Mutation {
    /// Makes an org. Needs the installation's own token.
    async fn create_org(&self, context: &Context<'_>, input: CreateOrgInput) -> Result<Org> {
        let (services, caller) = (services(context)?, caller(context)?);
        caller.require_installation()?;
        check_name(&input.slug)?;
        let org = slipway_store::Org {
            id: OrgId::from_entropy(entropy()?),
            name: input.name.unwrap_or_else(|| input.slug.clone()),
            slug: input.slug,
            idle: input.idle_ms.map_or(services.defaults.idle, Duration::from_millis),
            default_region: services.defaults.region.clone(),
            default_arch: services.defaults.arch.clone(),
            builder_size: size(
                services.defaults.size,
                &OrgLimits {
                    cpu_millis: input.cpu_millis,
                    memory_bytes: input.memory_bytes,
                    volume_bytes: input.volume_bytes,
                },
            ),
            created_at: now(),
        };
        check_limits(&org.builder_size, org.idle)?;
        services.store.create_org(&org).await.map_err(Problem::from)?;
        Ok(org.into())
    }

    /// Changes an org's limits. A builder that runs gets its size at its next start.
    async fn update_org(&self, context: &Context<'_>, input: UpdateOrgInput) -> Result<Org> {
        let (services, caller) = (services(context)?, caller(context)?);
        caller.require_org_wide()?;
        caller.require(TokenRole::Admin)?;
        let org = caller.org(services, input.org.as_deref()).await?;
        let limits = OrgLimits {
            cpu_millis: input.cpu_millis,
            memory_bytes: input.memory_bytes,
            volume_bytes: input.volume_bytes,
        };
        let builder_size = size(org.builder_size, &limits);
        let idle = input.idle_ms.map(Duration::from_millis);
        check_limits(&builder_size, idle.unwrap_or(org.idle))?;
        let change = OrgChange {
            name: input.name,
            idle,
            default_region: input.default_region,
            default_arch: input.default_arch,
            builder_size: (builder_size != org.builder_size).then_some(builder_size),
        };
        let org = services.store.update_org(&org.id, &change).await.map_err(Problem::from)?;
        services.farm.org_changed(&org);
        Ok(org.into())
    }

    /// Makes an app.
    async fn create_app(&self, context: &Context<'_>, input: CreateAppInput) -> Result<App> {
        let (services, caller) = (services(context)?, caller(context)?);
        caller.require_org_wide()?;
        caller.require(TokenRole::Deploy)?;
        check_name(&input.name)?;
        let org = caller.org(services, input.org.as_deref()).await?;
        let app = slipway_store::App {
            id: AppId::from_entropy(entropy()?),
            org: org.id,
            name: input.name,
            role: AppRole::User,
            billable: true,
            created_at: now(),
        };
        services.store.create_app(&app).await.map_err(Problem::from)?;
        Ok(app.into())
    }

    /// Makes a token. Its secret is told only in this answer.
    async fn create_token(&self, context: &Context<'_>, input: CreateTokenInput) -> Result<NewToken> {
        let (services, caller) = (services(context)?, caller(context)?);
        caller.require_org_wide()?;
        caller.require(TokenRole::Admin)?;
        let org = caller.org(services, input.org.as_deref()).await?;
        let app = match input.app {
            Some(name) => Some(caller.app(services, &org.id, &name).await?.id),
            None => None,
        };
        let at = now();
        let expires = input.expires_in_ms.map(|ms| at.after(Duration::from_millis(ms)));
        let new = crate::auth::mint_token(&services.store, crate::auth::NewToken {
            org: Some(org.id),
            app,
            name: input.name.chars().take(128).collect(),
            role: input.role.into(),
            expires_at: expires,
            at,
        })
        .await
        .map_err(|error| Problem::internal("the token could not be made", &error))?;
        Ok(NewToken { secret: new.secret, token: new.token.into() })
    }

    /// Revokes a token: nothing is begun with it any more.
    async fn revoke_token(&self, context: &Context<'_>, id: ID) -> Result<Token> {
        let (services, caller) = (services(context)?, caller(context)?);
        caller.require_org_wide()?;
        caller.require(TokenRole::Admin)?;
        let unknown = || Problem::user("NOT_FOUND", "there is no such token, or it is not yours");
        let id: TokenId = id.parse().map_err(|_| unknown())?;
        let mut orgs: Vec<_> =
            caller.orgs(services).await?.into_iter().map(|org| Some(org.id)).collect();
        if caller.token.org.is_none() {
            orgs.push(None);
        }
        for org in orgs {
            let all = services.store.tokens(org.as_ref()).await.map_err(Problem::from)?;
            if all.iter().any(|token| token.id == id) {
                let store = &services.store;
                store.revoke_token(org.as_ref(), &id, now()).await.map_err(Problem::from)?;
                services.auth.forget(&id);
                let all = store.tokens(org.as_ref()).await.map_err(Problem::from)?;
                let token = all.into_iter().find(|token| token.id == id).ok_or_else(unknown)?;
                return Ok(token.into());
            }
        }
        Err(unknown().into())
    }

    /// Has the org's builder running, and waits until it is ready.
    async fn ensure_builder(&self, context: &Context<'_>, input: BuilderInput) -> Result<Builder> {
        let services = services(context)?;
        let key = builder_key(context, &input).await?;
        services.farm.ensure_builder(&key).await.map_err(Problem::from)?;
        wait_ready(services, &key).await?;
        Ok(services.farm.builder(&key).map_err(Problem::from)?.into())
    }

    /// Ends the org's builder; its cache stays.
    async fn stop_builder(&self, context: &Context<'_>, input: BuilderInput) -> Result<Builder> {
        let key = builder_key(context, &input).await?;
        Ok(services(context)?.farm.stop_builder(&key).await.map_err(Problem::from)?.into())
    }

    /// Ends the org's builder and gives it an empty cache.
    async fn reset_builder_cache(
        &self,
        context: &Context<'_>,
        input: BuilderInput,
    ) -> Result<Builder> {
        let key = builder_key(context, &input).await?;
        Ok(services(context)?.farm.reset_cache(&key).await.map_err(Problem::from)?.into())
    }

    /// Starts a build. The caller has a BuildKit session of the id `session` open at the Docker gateway, which serves the
    /// context. Its events come by the subscription `buildEvents`.
    async fn start_build(&self, context: &Context<'_>, input: StartBuildInput) -> Result<Build> {
        let (services, caller) = (services(context)?, caller(context)?);
        caller.require(TokenRole::Deploy)?;
        let org = caller.org(services, input.org.as_deref()).await?;
        let app = caller.app(services, &org.id, &input.app).await?;
        let key = key_of(&org, input.region.as_deref(), input.arch.as_deref());
        let credential = match input.credential {
            Some(given) => Some(given.into()),
            None if input.push => services.stored_credential(&org.id, &input.image).await?,
            None => None,
        };
        let spec = BuildSpec {
            image: input.image,
            push: input.push,
            frontend_attrs: input.frontend_attrs.into_iter().map(|a| (a.name, a.value)).collect(),
        };
        let request = BuildRequest { session: input.session, spec, credential };
        let build =
            services.builds.start_build(&key, &app.id, request).await.map_err(Problem::from)?;
        Ok(show_build(services, &org.id, build).await?)
    }

    /// Cancels a build; one that has ended stays as it is.
    async fn cancel_build(&self, context: &Context<'_>, id: ID) -> Result<Build> {
        let (services, caller) = (services(context)?, caller(context)?);
        caller.require(TokenRole::Deploy)?;
        let (org, build) = find_build(services, caller, &id).await?;
        services.builds.cancel(&org, &build.id).await.map_err(Problem::from)?;
        let (org, build) = find_build(services, caller, &id).await?;
        Ok(show_build(services, &org, build).await?)
    }

    /// Stores a registry credential, sealed; replaces the org's one for that registry.
    async fn set_registry_credential(
        &self,
        context: &Context<'_>,
        input: SetRegistryCredentialInput,
    ) -> Result<RegistryCredential> {
        let (services, caller) = (services(context)?, caller(context)?);
        caller.require_org_wide()?;
        caller.require(TokenRole::Admin)?;
        let org = caller.org(services, input.org.as_deref()).await?;
        let sealed = services
            .sealer
            .seal(&org.id, &input.registry, input.password.as_bytes())
            .map_err(|error| Problem::internal("the credential could not be sealed", &error))?;
        let credential = SealedCredential {
            id: CredentialId::from_entropy(entropy()?),
            org: org.id,
            registry: input.registry,
            username: input.username,
            sealed,
            created_at: now(),
        };
        services.store.put_credential(&credential).await.map_err(Problem::from)?;
        Ok(credential.into())
    }

    /// Removes a registry credential; true if there was one.
    async fn remove_registry_credential(
        &self,
        context: &Context<'_>,
        org: Option<String>,
        registry: String,
    ) -> Result<bool> {
        let (services, caller) = (services(context)?, caller(context)?);
        caller.require_org_wide()?;
        caller.require(TokenRole::Admin)?;
        let org = caller.org(services, org.as_deref()).await?;
        let store = &services.store;
        match store.credential_for(&org.id, &registry).await.map_err(Problem::from)? {
            Some(known) => {
                store.delete_credential(&org.id, &known.id).await.map_err(Problem::from)?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Issues a client certificate for the gateways. It ends with the caller's token, and after a year at the latest.
    async fn issue_client_certificate(
        &self,
        context: &Context<'_>,
        input: IssueClientCertificateInput,
    ) -> Result<ClientCertificate> {
        let (services, caller) = (services(context)?, caller(context)?);
        caller.require(TokenRole::Deploy)?;
        let org = caller.org(services, input.org.as_deref()).await?;
        let issued = services
            .authority
            .issue_client(&org.id, &caller.token.id)
            .map_err(|error| Problem::internal("the certificate could not be issued", &error))?;
        let ca = services.authority.certificate_pem().to_owned();
        Ok(ClientCertificate { ca, cert: issued.cert, key: issued.key })
    }

    /// The same as `ensureBuilder`, with the names that Fly's clients use.
    async fn ensure_machine_remote_builder(
        &self,
        context: &Context<'_>,
        input: EnsureMachineRemoteBuilderInput,
    ) -> Result<fly::EnsureMachineRemoteBuilderPayload> {
        fly::ensure(context, input).await
    }
}

/// Draws the bytes of a new id.
fn entropy() -> std::result::Result<[u8; slipway_core::id::ID_ENTROPY_BYTES], Problem> {
    crate::farm::entropy().map_err(Problem::from)
}

fn size(base: BuilderSize, limits: &OrgLimits) -> BuilderSize {
    BuilderSize {
        cpu_millis: limits.cpu_millis.unwrap_or(base.cpu_millis),
        memory: limits.memory_bytes.map_or(base.memory, slipway_core::units::ByteSize),
        volume: limits.volume_bytes.map_or(base.volume, slipway_core::units::ByteSize),
    }
}

fn check_limits(size: &BuilderSize, idle: Duration) -> std::result::Result<(), Problem> {
    check_builder_size(size)
        .and_then(|()| check_idle(idle))
        .map_err(|error| Problem::bad_input(error.to_string()))
}

/// The builder that is meant, if the caller may use it.
async fn builder_key(
    context: &Context<'_>,
    input: &BuilderInput,
) -> std::result::Result<BuilderKey, Problem> {
    let services = context.data::<Services>().map_err(|_| Problem::bad_input("no services"))?;
    let caller =
        context.data::<super::Caller>().map_err(|_| Problem::forbidden("who are you?"))?;
    caller.require(TokenRole::Deploy)?;
    let org = caller.org(services, input.org.as_deref()).await?;
    Ok(key_of(&org, input.region.as_deref(), input.arch.as_deref()))
}

pub(super) fn key_of(
    org: &slipway_store::Org,
    region: Option<&str>,
    arch: Option<&str>,
) -> BuilderKey {
    BuilderKey {
        org: org.id.clone(),
        region: region.unwrap_or(&org.default_region).to_owned(),
        arch: arch.unwrap_or(&org.default_arch).to_owned(),
    }
}

/// Waits until dockerd of a builder answers.
pub(super) async fn wait_ready(
    services: &Services,
    key: &BuilderKey,
) -> std::result::Result<(), Problem> {
    let (stream, _busy) =
        services.farm.connect(key, EndpointPort::Guest).await.map_err(Problem::from)?;
    let asked = async {
        crate::guest_client::GuestClient::new(stream).await?.status(MACHINE_READY_WAIT_MAX).await
    };
    let status = asked
        .await
        .map_err(|error| Problem::from(crate::farm::FarmError::Guest(error)))?;
    if status.ready { Ok(()) } else { Err(crate::farm::FarmError::NotRunning.into()) }
}
