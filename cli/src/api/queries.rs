//! Every request this client makes, word for word, and the shapes of the answers.
//!
//! A test holds each text against docs/schema.graphql, so that client and server cannot drift apart unseen.

use super::graphql::Query;
use super::{ApiClient, ApiError, EventStream, ServerAddress, StreamEnd};
use crate::args::Role;
use crate::exit::{Failure, Outcome};
use crate::limits::WAKE_WAIT_MAX;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slipway_core::build::{NumberedEvent, RegistryCredential};
use std::collections::BTreeMap;
use std::time::Duration;

macro_rules! queries {
    ($($name:ident = $field:literal: $text:expr;)*) => {
        $(const $name: Query = Query { text: $text, field: $field };)*
        /// All of them, for the test.
        #[cfg(test)]
        pub(super) const ALL: &[(&str, Query)] = &[$((stringify!($name), $name)),*];
    };
}

macro_rules! org {
    () => {
        "id slug name idleMs defaultRegion defaultArch cpuMillis memoryBytes volumeBytes"
    };
}
macro_rules! app {
    () => {
        "id name role billable createdAt"
    };
}
macro_rules! builder { () => { "id region arch state host cpuMillis memoryBytes volumeBytes volumeUsedBytes idleMs lastError notice" }; }
macro_rules! build {
    () => {
        "id app image state push createdAt endedAt digest sizeBytes buildMs pushMs error hint"
    };
}
macro_rules! token {
    () => {
        "id name role createdAt expiresAt lastUsedAt revokedAt"
    };
}
macro_rules! volume {
    () => {
        "id state region sizeBytes usedBytes attachedTo createdAt"
    };
}
macro_rules! credential {
    () => {
        "id registry username createdAt"
    };
}

queries! {
    VIEWER = "viewer": concat!("query { viewer { token { ", token!(), " } org { ", org!(), " } server { version docker buildkit } } }");
    ORGS = "orgs": concat!("query { orgs { ", org!(), " } }");
    CREATE_ORG = "createOrg": concat!("mutation($input: CreateOrgInput!) { createOrg(input: $input) { ", org!(), " } }");
    UPDATE_ORG = "updateOrg": concat!("mutation($input: UpdateOrgInput!) { updateOrg(input: $input) { ", org!(), " } }");
    APPS = "apps": concat!("query($org: String) { apps(org: $org) { ", app!(), " } }");
    CREATE_APP = "createApp": concat!("mutation($input: CreateAppInput!) { createApp(input: $input) { ", app!(), " } }");
    TOKENS = "tokens": concat!("query($org: String) { tokens(org: $org) { ", token!(), " } }");
    CREATE_TOKEN = "createToken": concat!("mutation($input: CreateTokenInput!) { createToken(input: $input) { secret token { ", token!(), " } } }");
    REVOKE_TOKEN = "revokeToken": concat!("mutation($id: ID!) { revokeToken(id: $id) { ", token!(), " } }");
    BUILDERS = "builders": concat!("query($org: String) { builders(org: $org) { ", builder!(), " } }");
    ENSURE_BUILDER = "ensureBuilder": concat!("mutation($input: BuilderInput!) { ensureBuilder(input: $input) { ", builder!(), " } }");
    STOP_BUILDER = "stopBuilder": concat!("mutation($input: BuilderInput!) { stopBuilder(input: $input) { ", builder!(), " } }");
    RESET_CACHE = "resetBuilderCache": concat!("mutation($input: BuilderInput!) { resetBuilderCache(input: $input) { ", builder!(), " } }");
    BUILDS = "builds": concat!("query($org: String, $app: String, $limit: Int) { builds(org: $org, app: $app, limit: $limit) { ", build!(), " } }");
    BUILD = "build": concat!("query($id: ID!) { build(id: $id) { ", build!(), " } }");
    START_BUILD = "startBuild": concat!("mutation($input: StartBuildInput!) { startBuild(input: $input) { ", build!(), " } }");
    CANCEL_BUILD = "cancelBuild": concat!("mutation($id: ID!) { cancelBuild(id: $id) { ", build!(), " } }");
    BUILD_EVENTS = "buildEvents": "subscription($id: ID!, $after: Int) { buildEvents(id: $id, after: $after) }";
    VOLUMES = "volumes": concat!("query($org: String) { volumes(org: $org) { ", volume!(), " } }");
    CREDENTIALS = "registryCredentials": concat!("query($org: String) { registryCredentials(org: $org) { ", credential!(), " } }");
    SET_CREDENTIAL = "setRegistryCredential": concat!("mutation($input: SetRegistryCredentialInput!) { setRegistryCredential(input: $input) { ", credential!(), " } }");
    REMOVE_CREDENTIAL = "removeRegistryCredential": "mutation($org: String, $registry: String!) { removeRegistryCredential(org: $org, registry: $registry) }";
    ISSUE_CERTIFICATE = "issueClientCertificate": "mutation($input: IssueClientCertificateInput!) { issueClientCertificate(input: $input) { ca cert key } }";
}

/// An org.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Org {
    /// Id.
    pub(crate) id: String,
    /// Name.
    pub(crate) slug: String,
    /// Name for people.
    pub(crate) name: String,
    /// Builders end after this long without activity.
    pub(crate) idle_ms: u64,
    /// Region of new builders.
    pub(crate) default_region: String,
    /// Architecture of new builders.
    pub(crate) default_arch: String,
    /// Processors of a builder, in thousandths.
    pub(crate) cpu_millis: u32,
    /// Memory of a builder.
    pub(crate) memory_bytes: u64,
    /// Size of a builder's cache volume.
    pub(crate) volume_bytes: u64,
}

/// An app.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct App {
    /// Id.
    pub(crate) id: String,
    /// Name, unique within its org.
    pub(crate) name: String,
    /// The user's own, or the one that holds the builders.
    pub(crate) role: String,
    /// It is charged for.
    pub(crate) billable: bool,
    /// When it was made.
    pub(crate) created_at: String,
}

/// A token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenInfo {
    /// Id.
    pub(crate) id: String,
    /// What it is for.
    pub(crate) name: String,
    /// What it may do.
    pub(crate) role: String,
    /// When it was made.
    pub(crate) created_at: String,
    /// Not good from then on.
    pub(crate) expires_at: Option<String>,
    /// When it was last used.
    pub(crate) last_used_at: Option<String>,
    /// Not good since then.
    pub(crate) revoked_at: Option<String>,
}

/// A builder.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Builder {
    /// Id of the machine.
    pub(crate) id: String,
    /// Region.
    pub(crate) region: String,
    /// Architecture.
    pub(crate) arch: String,
    /// What it does now.
    pub(crate) state: String,
    /// Why it last failed.
    pub(crate) last_error: Option<String>,
    /// What its owner should know, such as a cache that was replaced.
    pub(crate) notice: Option<String>,
}

/// A build.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Build {
    /// Id.
    pub(crate) id: String,
    /// Name of the app.
    pub(crate) app: String,
    /// Full name with tag.
    pub(crate) image: String,
    /// What it does now.
    pub(crate) state: String,
    /// When it was asked for.
    pub(crate) created_at: String,
}

/// A volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Volume {
    /// Id.
    pub(crate) id: String,
    /// What is known of it.
    pub(crate) state: String,
    /// Hard cap.
    pub(crate) size_bytes: u64,
}

/// A registry credential, without its password.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Credential {
    /// Id.
    pub(crate) id: String,
    /// Registry host.
    pub(crate) registry: String,
    /// User name.
    pub(crate) username: String,
    /// When it was stored.
    pub(crate) created_at: String,
}

/// What the server is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServerInfo {
    /// Its version.
    pub(crate) version: String,
    /// Address of the Docker gateway.
    pub(crate) docker: String,
    /// Address of the BuildKit gateway.
    pub(crate) buildkit: String,
}

/// Who asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Viewer {
    /// The token of the request.
    pub(crate) token: TokenInfo,
    /// The org it is good for; absent for the installation's administrator.
    pub(crate) org: Option<Org>,
    /// What answers.
    pub(crate) server: ServerInfo,
}

impl Viewer {
    /// For people.
    pub(crate) fn describe(&self) -> String {
        match &self.org {
            Some(org) => format!("{} of org {}", self.token.name, org.slug),
            None => format!("{}, the administrator", self.token.name),
        }
    }
}

/// What may be changed of an org; `None` leaves it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OrgChange {
    /// Idle time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_ms: Option<u64>,
    /// Processors of a builder, in thousandths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_millis: Option<u32>,
    /// Memory of a builder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_bytes: Option<u64>,
    /// Size of a builder's cache volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) volume_bytes: Option<u64>,
}

impl OrgChange {
    /// Nothing changes.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A token with its secret, which is told only once.
#[derive(Serialize, Deserialize)]
pub(crate) struct NewToken {
    /// The secret.
    pub(crate) secret: String,
    /// The token.
    pub(crate) token: TokenInfo,
}

/// A client certificate.
#[derive(Deserialize)]
pub(crate) struct Certificate {
    /// Authority, PEM.
    pub(crate) ca: String,
    /// Certificate, PEM.
    pub(crate) cert: String,
    /// Key, PEM.
    pub(crate) key: String,
}

/// A build to start.
#[derive(Debug, Clone)]
pub(crate) struct NewBuild<'a> {
    /// Org.
    pub(crate) org: &'a str,
    /// App.
    pub(crate) app: &'a str,
    /// Full name of the image.
    pub(crate) image: &'a str,
    /// Push it when built.
    pub(crate) push: bool,
    /// BuildKit's frontend attributes.
    pub(crate) frontend_attrs: &'a BTreeMap<String, String>,
    /// Id of the session that is open at the builder.
    pub(crate) session: &'a str,
    /// For the push alone.
    pub(crate) credential: Option<&'a RegistryCredential>,
    /// Region of the builder.
    pub(crate) region: Option<&'a str>,
    /// Architecture of the builder.
    pub(crate) arch: Option<&'a str>,
}

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
    Ok(client.call(VIEWER, json!({})).await?)
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
    Ok(client.call(ORGS, json!({})).await?)
}

fn with(mut input: Value, more: impl Serialize) -> Value {
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
        .call(CREATE_ORG, with(json!({ "slug": name }), change))
        .await?)
}

/// Changes an org.
pub(crate) async fn update_org(client: &ApiClient, org: &str, change: &OrgChange) -> Outcome<Org> {
    Ok(client
        .call(UPDATE_ORG, with(json!({ "org": org }), change))
        .await?)
}

/// Apps of an org.
pub(crate) async fn apps(client: &ApiClient, org: &str) -> Outcome<Vec<App>> {
    Ok(client.call(APPS, json!({ "org": org })).await?)
}

/// Makes an app.
pub(crate) async fn create_app(client: &ApiClient, org: &str, name: &str) -> Outcome<App> {
    Ok(client
        .call(
            CREATE_APP,
            with(json!({ "org": org }), json!({ "name": name })),
        )
        .await?)
}

/// Tokens of an org.
pub(crate) async fn tokens(client: &ApiClient, org: &str) -> Outcome<Vec<TokenInfo>> {
    Ok(client.call(TOKENS, json!({ "org": org })).await?)
}

/// Makes a token.
pub(crate) async fn create_token(
    client: &ApiClient,
    org: &str,
    name: &str,
    role: Role,
    expires: Option<Duration>,
) -> Outcome<NewToken> {
    let role = match role {
        Role::Read => "READ",
        Role::Deploy => "DEPLOY",
        Role::Admin => "ADMIN",
    };
    let mut input = json!({ "org": org, "name": name, "role": role });
    if let Some(expires) = expires {
        input["expiresInMs"] = json!(u64::try_from(expires.as_millis()).unwrap_or(u64::MAX));
    }
    Ok(client.call(CREATE_TOKEN, json!({ "input": input })).await?)
}

/// Revokes a token.
pub(crate) async fn revoke_token(client: &ApiClient, id: &str) -> Outcome<TokenInfo> {
    Ok(client.call(REVOKE_TOKEN, json!({ "id": id })).await?)
}

/// Builders of an org.
pub(crate) async fn builders(client: &ApiClient, org: &str) -> Outcome<Vec<Builder>> {
    Ok(client.call(BUILDERS, json!({ "org": org })).await?)
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
) -> Outcome<Builder> {
    let input = builder_input(org, region, arch);
    Ok(client
        .call_within(ENSURE_BUILDER, input, WAKE_WAIT_MAX)
        .await?)
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
        .call_within(STOP_BUILDER, input, WAKE_WAIT_MAX)
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
        .call_within(RESET_CACHE, input, WAKE_WAIT_MAX)
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
        .call(BUILDS, json!({ "org": org, "app": app, "limit": limit }))
        .await?)
}

/// One build.
pub(crate) async fn build(client: &ApiClient, id: &str) -> Outcome<Build> {
    Ok(client.call(BUILD, json!({ "id": id })).await?)
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
    let input = json!({
        "org": new.org,
        "app": new.app,
        "image": new.image,
        "push": new.push,
        "frontendAttrs": attrs,
        "session": new.session,
        "credential": new.credential,
        "region": new.region,
        "arch": new.arch,
    });
    client
        .call_within(START_BUILD, json!({ "input": input }), WAKE_WAIT_MAX)
        .await
}

/// The build was refused only because there is no such app yet.
pub(crate) fn is_unknown_app(error: &ApiError) -> bool {
    error.code == "APP_NOT_FOUND"
}

/// Cancels a build; one that has ended stays as it is.
pub(crate) async fn cancel_build(client: &ApiClient, id: &str) -> Outcome<Build> {
    Ok(client.call(CANCEL_BUILD, json!({ "id": id })).await?)
}

/// Events of a build after a number.
pub(crate) async fn build_events(
    client: &ApiClient,
    id: &str,
    after: u64,
) -> Result<EventStream, ApiError> {
    client
        .subscribe(BUILD_EVENTS, json!({ "id": id, "after": after }))
        .await
}

/// The next event of a build.
pub(crate) async fn next_event(
    stream: &mut EventStream,
) -> Result<Option<NumberedEvent>, StreamEnd> {
    stream.next().await
}

/// Volumes of an org.
pub(crate) async fn volumes(client: &ApiClient, org: &str) -> Outcome<Vec<Volume>> {
    Ok(client.call(VOLUMES, json!({ "org": org })).await?)
}

/// Registry credentials of an org.
pub(crate) async fn credentials(client: &ApiClient, org: &str) -> Outcome<Vec<Credential>> {
    Ok(client.call(CREDENTIALS, json!({ "org": org })).await?)
}

/// Stores a registry credential.
pub(crate) async fn set_credential(
    client: &ApiClient,
    org: &str,
    credential: &RegistryCredential,
) -> Outcome<Credential> {
    Ok(client
        .call(SET_CREDENTIAL, with(json!({ "org": org }), credential))
        .await?)
}

/// Removes a registry credential.
pub(crate) async fn remove_credential(
    client: &ApiClient,
    org: &str,
    registry: &str,
) -> Outcome<()> {
    let _: Value = client
        .call(
            REMOVE_CREDENTIAL,
            json!({ "org": org, "registry": registry }),
        )
        .await?;
    Ok(())
}

/// Has a client certificate issued.
pub(crate) async fn issue_certificate(client: &ApiClient, org: &str) -> Outcome<Certificate> {
    Ok(client
        .call(ISSUE_CERTIFICATE, json!({ "input": { "org": org } }))
        .await?)
}
