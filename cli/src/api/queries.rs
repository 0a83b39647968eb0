//! What may be asked of the API, as functions. Errors are whoever's fault the server says.

use super::requests as ask;
use super::shapes::{
    App, Build, Builder, Certificate, Credential, NewBuild, NewToken, Org, OrgChange, PullLoan,
    TokenInfo, Viewer,
};
use super::{ApiClient, ApiError, EventStream, ServerAddress, StreamEnd};
use crate::args::Role;
use crate::limits::WAKE_WAIT_MAX;
use serde::Serialize;
use serde_json::{Value, json};
use slipway_core::build::{NumberedEvent, RegistryCredential};
use slipway_terminal::exit::{Failure, Outcome};
use std::time::Duration;

/// Where an org's builders are reached.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Name of the org.
    pub(crate) org: String,
    /// Docker gateway.
    pub(crate) docker: ServerAddress,
    /// BuildKit gateway.
    pub(crate) buildkit: ServerAddress,
}

/// Who asks, and what answers.
pub(crate) async fn viewer(client: &ApiClient) -> Outcome<Viewer> {
    Ok(client.call(ask::VIEWER, json!({})).await?)
}

/// The org that is meant and the gateways.
pub(crate) async fn locate(client: &ApiClient, org: Option<&str>) -> Outcome<Place> {
    let viewer = viewer(client).await?;
    let gateway = |address: &str| ServerAddress::parse(&format!("tcp://{address}"));
    Ok(Place {
        docker: gateway(&viewer.server.docker)?,
        buildkit: gateway(&viewer.server.buildkit)?,
        org: choose_org(client, org, viewer.org).await?,
    })
}

/// The org that was named, else the token's own, else the only one there is.
pub(crate) async fn org_or_own(client: &ApiClient, named: Option<&str>) -> Outcome<String> {
    match named {
        Some(name) => Ok(name.to_owned()),
        None => choose_org(client, None, viewer(client).await?.org).await,
    }
}

async fn choose_org(client: &ApiClient, named: Option<&str>, own: Option<Org>) -> Outcome<String> {
    match (named, own) {
        (Some(name), _) => Ok(name.to_owned()),
        (None, Some(org)) => Ok(org.slug),
        (None, None) => {
            let mut all = orgs(client).await?.into_iter();
            match (all.next(), all.next()) {
                (Some(only), None) => Ok(only.slug),
                (None, _) => {
                    Err(Failure::user("there is no org yet").hint("slipway orgs create NAME"))
                }
                (Some(_), Some(_)) => Err(Failure::user("which org?")
                    .hint("say --org NAME; `slipway orgs list` shows them")),
            }
        }
    }
}

/// All orgs that can be seen.
pub(crate) async fn orgs(client: &ApiClient) -> Outcome<Vec<Org>> {
    Ok(client.call(ask::ORGS, json!({})).await?)
}

/// An input with more fields in it.
pub(super) fn with(mut input: Value, more: impl Serialize) -> Value {
    if let (Some(fields), Ok(Value::Object(more))) =
        (input.as_object_mut(), serde_json::to_value(more))
    {
        fields.extend(more);
    }
    json!({ "input": input })
}

/// Makes an org.
pub(crate) async fn create_org(client: &ApiClient, name: &str, change: &OrgChange) -> Outcome<Org> {
    Ok(client
        .call(ask::CREATE_ORG, with(json!({ "slug": name }), change))
        .await?)
}

/// Changes an org.
pub(crate) async fn update_org(client: &ApiClient, org: &str, change: &OrgChange) -> Outcome<Org> {
    Ok(client
        .call(ask::UPDATE_ORG, with(json!({ "org": org }), change))
        .await?)
}

/// Apps of an org.
pub(crate) async fn apps(client: &ApiClient, org: &str) -> Outcome<Vec<App>> {
    Ok(client.call(ask::APPS, json!({ "org": org })).await?)
}

/// Makes an app.
pub(crate) async fn create_app(client: &ApiClient, org: &str, name: &str) -> Outcome<App> {
    Ok(client
        .call(
            ask::CREATE_APP,
            with(json!({ "org": org }), json!({ "name": name })),
        )
        .await?)
}

/// Makes an app unless somebody else does so at the same time.
pub(crate) async fn ensure_app(client: &ApiClient, org: &str, name: &str) -> Outcome<()> {
    let input = json!({ "input": { "org": org, "name": name } });
    match client.call::<App>(ask::CREATE_APP, input).await {
        Ok(_) => Ok(()),
        Err(error) if error.code == "CONFLICT" => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Tokens of an org.
pub(crate) async fn tokens(client: &ApiClient, org: &str) -> Outcome<Vec<TokenInfo>> {
    let mut tokens: Vec<TokenInfo> = Vec::new();
    loop {
        let before = tokens.last().map(|token| token.id.as_str());
        let page = client
            .call::<Vec<TokenInfo>>(ask::TOKENS, json!({ "org": org, "before": before }))
            .await?;
        if page.is_empty() {
            return Ok(tokens);
        }
        tokens.extend(page);
    }
}

/// Makes a token.
pub(crate) async fn create_token(
    client: &ApiClient,
    org: &str,
    app: Option<&str>,
    name: &str,
    role: Role,
    expires: Option<Duration>,
) -> Outcome<NewToken> {
    let role = match role {
        Role::Read => "READ",
        Role::Deploy => "DEPLOY",
        Role::Admin => "ADMIN",
    };
    let mut input = json!({ "org": org, "app": app, "name": name, "role": role });
    if let Some(expires) = expires {
        input["expiresInMs"] = json!(u64::try_from(expires.as_millis()).unwrap_or(u64::MAX));
    }
    Ok(client
        .call(ask::CREATE_TOKEN, json!({ "input": input }))
        .await?)
}

/// Revokes a token.
pub(crate) async fn revoke_token(client: &ApiClient, id: &str) -> Outcome<TokenInfo> {
    Ok(client.call(ask::REVOKE_TOKEN, json!({ "id": id })).await?)
}

/// Builders of an org.
pub(crate) async fn builders(client: &ApiClient, org: &str) -> Outcome<Vec<Builder>> {
    Ok(client.call(ask::BUILDERS, json!({ "org": org })).await?)
}

fn builder_input(org: &str, region: Option<&str>, arch: Option<&str>) -> Value {
    json!({ "input": { "org": org, "region": region, "arch": arch } })
}

/// Has the builder running.
pub(crate) async fn ensure_builder(
    client: &ApiClient,
    org: &str,
    region: Option<&str>,
    arch: Option<&str>,
) -> Result<Builder, ApiError> {
    let input = builder_input(org, region, arch);
    client
        .call_within(ask::ENSURE_BUILDER, input, WAKE_WAIT_MAX)
        .await
}

/// What was asked for is not to be had here.
pub(crate) fn is_invalid(error: &ApiError) -> bool {
    error.code == "INVALID"
}

/// Ends the builder.
pub(crate) async fn stop_builder(
    client: &ApiClient,
    org: &str,
    region: Option<&str>,
    arch: Option<&str>,
) -> Outcome<Builder> {
    let input = builder_input(org, region, arch);
    Ok(client
        .call_within(ask::STOP_BUILDER, input, WAKE_WAIT_MAX)
        .await?)
}

/// Ends the builder and empties its cache.
pub(crate) async fn reset_cache(
    client: &ApiClient,
    org: &str,
    region: Option<&str>,
    arch: Option<&str>,
) -> Outcome<Builder> {
    let input = builder_input(org, region, arch);
    Ok(client
        .call_within(ask::RESET_CACHE, input, WAKE_WAIT_MAX)
        .await?)
}

/// Headers that tell the gateway which builder is meant.
pub(crate) fn builder_headers(
    org: &str,
    region: Option<&str>,
    arch: Option<&str>,
) -> Vec<(String, String)> {
    [
        ("X-Slipway-Org", Some(org)),
        ("X-Slipway-Region", region),
        ("X-Slipway-Arch", arch),
    ]
    .into_iter()
    .filter_map(|(name, value)| value.map(|value| (name.to_owned(), value.to_owned())))
    .collect()
}

/// Builds of an org, newest first.
pub(crate) async fn builds(
    client: &ApiClient,
    org: &str,
    app: Option<&str>,
    limit: u32,
) -> Outcome<Vec<Build>> {
    Ok(client
        .call(
            ask::BUILDS,
            json!({ "org": org, "app": app, "limit": limit }),
        )
        .await?)
}

/// One build.
pub(crate) async fn build(client: &ApiClient, id: &str) -> Outcome<Build> {
    Ok(client.call(ask::BUILD, json!({ "id": id })).await?)
}

/// Starts a build.
///
/// # Errors
/// See [`is_unknown_app`].
pub(crate) async fn start_build(client: &ApiClient, new: &NewBuild<'_>) -> Result<Build, ApiError> {
    let attrs: Vec<Value> = new
        .frontend_attrs
        .iter()
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect();
    let mut input = json!({
        "org": new.org,
        "app": new.app,
        "image": new.image,
        "push": new.push,
        "frontendAttrs": attrs,
        "compression": new.compression,
        "session": new.session,
        "credential": new.credential,
        "region": new.region,
        "arch": new.arch,
    });
    // Left out where they say nothing: an older server does not know them.
    let lists = [
        ("tags", json!(new.tags)),
        ("tagCredentials", json!(new.tag_credentials)),
        ("entitlements", json!(new.entitlements)),
        ("cacheFrom", json!(new.cache_from)),
        ("cacheTo", json!(new.cache_to)),
        ("export", json!(new.export)),
        ("load", json!(new.load)),
        ("annotations", json!(new.annotations)),
    ];
    for (name, value) in lists {
        if value != json!([]) && value != json!(false) {
            input[name] = value;
        }
    }
    client
        .call_within(ask::START_BUILD, json!({ "input": input }), WAKE_WAIT_MAX)
        .await
}

/// The build was refused only because there is no such app yet.
pub(crate) fn is_unknown_app(error: &ApiError) -> bool {
    error.code == "APP_NOT_FOUND"
}

/// Cancels a build; one that has ended stays as it is.
pub(crate) async fn cancel_build(client: &ApiClient, id: &str) -> Outcome<Build> {
    Ok(client.call(ask::CANCEL_BUILD, json!({ "id": id })).await?)
}

/// Events of a build after a number.
pub(crate) async fn build_events(
    client: &ApiClient,
    id: &str,
    after: u64,
) -> Result<EventStream, ApiError> {
    client
        .subscribe(ask::BUILD_EVENTS, json!({ "id": id, "after": after }))
        .await
}

/// The next event of a build.
pub(crate) async fn next_event(
    stream: &mut EventStream,
) -> Result<Option<NumberedEvent>, StreamEnd> {
    stream.next().await
}

/// Registry credentials of an org.
pub(crate) async fn credentials(client: &ApiClient, org: &str) -> Outcome<Vec<Credential>> {
    Ok(client.call(ask::CREDENTIALS, json!({ "org": org })).await?)
}

/// Stores a registry credential.
pub(crate) async fn set_credential(
    client: &ApiClient,
    org: &str,
    credential: &RegistryCredential,
) -> Outcome<Credential> {
    Ok(client
        .call(ask::SET_CREDENTIAL, with(json!({ "org": org }), credential))
        .await?)
}

/// Removes a registry credential; says whether there was one.
pub(crate) async fn remove_credential(
    client: &ApiClient,
    org: &str,
    registry: &str,
) -> Outcome<bool> {
    Ok(client
        .call(
            ask::REMOVE_CREDENTIAL,
            json!({ "org": org, "registry": registry }),
        )
        .await?)
}

/// A token for pulling from these repositories with the login that the org has stored; without any, what would be lent.
pub(crate) async fn lend_pull(
    client: &ApiClient,
    org: &str,
    registry: &str,
    repositories: &[String],
) -> Result<PullLoan, ApiError> {
    let input = json!({ "org": org, "registry": registry, "repositories": repositories });
    client.call(ask::LEND_PULL, json!({ "input": input })).await
}

/// Has a client certificate issued.
pub(crate) async fn issue_certificate(client: &ApiClient, org: &str) -> Outcome<Certificate> {
    Ok(client
        .call(ask::ISSUE_CERTIFICATE, json!({ "input": { "org": org } }))
        .await?)
}
