//! Every request this client makes, word for word. A test holds each text against the server's schema, so that client
//! and server cannot drift apart unseen.

use super::graphql::Query;

macro_rules! queries {
    ($($name:ident = $field:literal: $text:expr;)*) => {
        $(pub(super) const $name: Query = Query { text: $text, field: $field };)*
        /// All of them, for the test.
        #[cfg(test)]
        pub(super) const ALL: &[(&str, Query)] = &[$((stringify!($name), $name)),*];
    };
}

macro_rules! org {
    () => {
        "id slug name idleMs buildsKept buildsAgeMs defaultRegion defaultArch isolation cpuMillis memoryBytes volumeBytes"
    };
}
macro_rules! app {
    () => {
        "id name role billable createdAt"
    };
}
macro_rules! builder {
    () => {
        "id region arch state cpuMillis memoryBytes volumeBytes nextCpuMillis nextMemoryBytes connections waitingFor lastError notice"
    };
}
macro_rules! build {
    () => {
        "id app image state push source askedBy createdAt endedAt digest sizeBytes buildMs pushMs steps stepsCached error hint excerpt lastSeq tags platforms { platform emulated }"
    };
}
macro_rules! token {
    () => {
        "id name role createdAt expiresAt lastUsedAt revokedAt"
    };
}
macro_rules! volume {
    () => {
        "id name purpose state region zone movingTo sizeBytes usedBytes encrypted attachedTo source importDigest importUntil snapshotRetentionDays scheduledSnapshots autoExtendThresholdPercent autoExtendIncrementBytes autoExtendLimitBytes destroyAt notice createdAt"
    };
}
macro_rules! snapshot {
    () => {
        "id volume volumeName state volumeSizeBytes storedBytes scheduled createdAt expiresAt"
    };
}
macro_rules! credential {
    () => {
        "id registry username createdAt"
    };
}

queries! {
    VIEWER = "viewer": concat!("query { viewer { token { ", token!(), " } org { ", org!(), " } server { version docker buildkit notices images { region imageMadeAt kernelMadeAt } } } }");
    ORGS = "orgs": concat!("query { orgs { ", org!(), " } }");
    CREATE_ORG = "createOrg": concat!("mutation($input: CreateOrgInput!) { createOrg(input: $input) { ", org!(), " } }");
    UPDATE_ORG = "updateOrg": concat!("mutation($input: UpdateOrgInput!) { updateOrg(input: $input) { ", org!(), " } }");
    APPS = "apps": concat!("query($org: String) { apps(org: $org) { ", app!(), " } }");
    CREATE_APP = "createApp": concat!("mutation($input: CreateAppInput!) { createApp(input: $input) { ", app!(), " } }");
    TOKENS = "tokens": concat!("query($org: String, $before: ID) { tokens(org: $org, before: $before) { ", token!(), " } }");
    CREATE_TOKEN = "createToken": concat!("mutation($input: CreateTokenInput!) { createToken(input: $input) { secret token { ", token!(), " } } }");
    REVOKE_TOKEN = "revokeToken": concat!("mutation($id: ID!) { revokeToken(id: $id) { ", token!(), " } }");
    BUILDERS = "builders": concat!("query($org: String) { builders(org: $org) { ", builder!(), " volumeUsedBytes idleMs engine { version imageStore buildkit imageMadeAt } } }");
    ENSURE_BUILDER = "ensureBuilder": concat!("mutation($input: BuilderInput!) { ensureBuilder(input: $input) { ", builder!(), " } }");
    STOP_BUILDER = "stopBuilder": concat!("mutation($input: BuilderInput!) { stopBuilder(input: $input) { ", builder!(), " } }");
    RESET_CACHE = "resetBuilderCache": concat!("mutation($input: BuilderInput!) { resetBuilderCache(input: $input) { ", builder!(), " } }");
    BUILDS = "builds": concat!("query($org: String, $app: String, $limit: Int) { builds(org: $org, app: $app, limit: $limit) { ", build!(), " } }");
    BUILD = "build": concat!("query($id: ID!) { build(id: $id) { ", build!(), " statements { platform predicateType digest sizeBytes text } } }");
    START_BUILD = "startBuild": concat!("mutation($input: StartBuildInput!) { startBuild(input: $input) { ", build!(), " } }");
    CANCEL_BUILD = "cancelBuild": concat!("mutation($id: ID!) { cancelBuild(id: $id) { ", build!(), " } }");
    BUILD_EVENTS = "buildEvents": "subscription($id: ID!, $after: Int) { buildEvents(id: $id, after: $after) }";
    VOLUMES = "volumes": concat!("query($org: String) { volumes(org: $org) { ", volume!(), " } }");
    VOLUME = "volume": concat!("query($id: ID!) { volume(id: $id) { ", volume!(), " } }");
    CREATE_VOLUME = "createVolume": concat!("mutation($input: CreateVolumeInput!) { createVolume(input: $input) { ", volume!(), " } }");
    IMPORT_VOLUME = "importVolume": concat!("mutation($input: ImportVolumeInput!) { importVolume(input: $input) { ", volume!(), " } }");
    FORK_VOLUME = "forkVolume": concat!("mutation($input: ForkVolumeInput!) { forkVolume(input: $input) { ", volume!(), " } }");
    UPDATE_VOLUME = "updateVolume": concat!("mutation($input: UpdateVolumeInput!) { updateVolume(input: $input) { ", volume!(), " } }");
    EXTEND_VOLUME = "extendVolume": concat!("mutation($id: ID!, $sizeBytes: Long!) { extendVolume(id: $id, sizeBytes: $sizeBytes) { ", volume!(), " } }");
    MOVE_VOLUME = "moveVolume": concat!("mutation($id: ID!, $zone: String, $region: String) { moveVolume(id: $id, zone: $zone, region: $region) { ", volume!(), " } }");
    KEEP_VOLUME_COPY = "keepVolumeCopy": concat!("mutation($id: ID!, $zone: String!, $forgetOther: Boolean!) { keepVolumeCopy(id: $id, zone: $zone, forgetOther: $forgetOther) { ", volume!(), " } }");
    CANCEL_VOLUME_MOVE = "cancelVolumeMove": concat!("mutation($id: ID!) { cancelVolumeMove(id: $id) { ", volume!(), " } }");
    DESTROY_VOLUME = "destroyVolume": concat!("mutation($id: ID!, $now: Boolean!) { destroyVolume(id: $id, now: $now) { ", volume!(), " } }");
    RESTORE_VOLUME = "restoreVolume": concat!("mutation($id: ID!) { restoreVolume(id: $id) { ", volume!(), " } }");
    SNAPSHOTS = "volumeSnapshots": concat!("query($volume: ID!) { volumeSnapshots(volume: $volume) { ", snapshot!(), " } }");
    CREATE_SNAPSHOT = "createVolumeSnapshot": concat!("mutation($volume: ID!) { createVolumeSnapshot(volume: $volume) { ", snapshot!(), " } }");
    DELETE_SNAPSHOT = "deleteVolumeSnapshot": "mutation($id: ID!) { deleteVolumeSnapshot(id: $id) }";
    CREDENTIALS = "registryCredentials": concat!("query($org: String) { registryCredentials(org: $org) { ", credential!(), " } }");
    SET_CREDENTIAL = "setRegistryCredential": concat!("mutation($input: SetRegistryCredentialInput!) { setRegistryCredential(input: $input) { ", credential!(), " } }");
    REMOVE_CREDENTIAL = "removeRegistryCredential": "mutation($org: String, $registry: String!) { removeRegistryCredential(org: $org, registry: $registry) }";
    LEND_PULL = "lendPull": "mutation($input: LendPullInput!) { lendPull(input: $input) { kind token lifeMs } }";
    ISSUE_CERTIFICATE = "issueClientCertificate": "mutation($input: IssueClientCertificateInput!) { issueClientCertificate(input: $input) { ca cert key } }";
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
