//! The shapes of what the API takes and gives.

use serde::{Deserialize, Serialize};
use slipway_core::build::{BuiltPlatform, RegistryCredential};
use slipway_core::compression::Compression;
use std::collections::BTreeMap;

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
    /// So many ended builds are kept.
    pub(crate) builds_kept: u32,
    /// For so many milliseconds.
    pub(crate) builds_age_ms: u64,
    /// Region of new builders.
    pub(crate) default_region: String,
    /// Architecture of new builders.
    pub(crate) default_arch: String,
    /// How builders must be isolated.
    pub(crate) isolation: String,
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
    /// Processors, in thousandths.
    pub(crate) cpu_millis: u32,
    /// Memory.
    pub(crate) memory_bytes: u64,
    /// Processors from its next start on, when that is another number.
    #[serde(default)]
    pub(crate) next_cpu_millis: Option<u32>,
    /// Memory from its next start on, when that is another size.
    #[serde(default)]
    pub(crate) next_memory_bytes: Option<u64>,
    /// Size of its cache volume.
    pub(crate) volume_bytes: u64,
    /// Connections through the gateways now.
    pub(crate) connections: u32,
    /// Bytes in use on its cache volume, where it was asked for and the builder runs.
    #[serde(default)]
    pub(crate) volume_used_bytes: Option<u64>,
    /// Its Docker engine, where it was asked for and the builder runs.
    #[serde(default)]
    pub(crate) engine: Option<Engine>,
    /// For how long nothing was in flight inside, where it was asked for and the builder runs.
    #[serde(default)]
    pub(crate) idle_ms: Option<u64>,
    /// What it waits for while somebody wants it and it is not up.
    #[serde(default)]
    pub(crate) waiting_for: Option<String>,
    /// Why it last failed.
    pub(crate) last_error: Option<String>,
    /// What its owner should know, such as a cache that was replaced.
    pub(crate) notice: Option<String>,
}

/// The Docker engine of a builder.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Engine {
    /// Its version.
    pub(crate) version: String,
    /// Where it keeps images.
    pub(crate) image_store: String,
    /// Version of its BuildKit, once it was asked. Some builds of dockerd do not know it: Debian's says `v0.0.0+unknown`.
    #[serde(default)]
    pub(crate) buildkit: Option<String>,
    /// When the packages of the image that it has booted were last looked up.
    #[serde(default)]
    pub(crate) image_made_at: Option<String>,
}

impl Engine {
    /// For people.
    pub(crate) fn describe(&self) -> String {
        let known = |version: &&String| !version.contains("unknown");
        let buildkit = self.buildkit.iter().filter(known);
        let buildkit = buildkit.map(|version| format!("BuildKit {version}"));
        let parts = std::iter::once(self.version.clone())
            .chain(buildkit)
            .chain([format!("{} image store", self.image_store)]);
        parts.collect::<Vec<_>>().join(", ")
    }
}

/// What builders of a region boot.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BootedImages {
    /// The region.
    pub(crate) region: String,
    /// When the packages of the builder image were last looked up.
    pub(crate) image_made_at: Option<String>,
    /// The same of the kernel of virtual machines, where there are any.
    pub(crate) kernel_made_at: Option<String>,
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
    /// It is pushed when built.
    pub(crate) push: bool,
    /// By which way it came.
    pub(crate) source: String,
    /// Name of the token that asked for it.
    pub(crate) asked_by: Option<String>,
    /// When it was asked for.
    pub(crate) created_at: String,
    /// When it ended.
    pub(crate) ended_at: Option<String>,
    /// Digest of the pushed manifest.
    pub(crate) digest: Option<String>,
    /// Sum of the image's layers, uncompressed.
    pub(crate) size_bytes: Option<u64>,
    /// Solving and exporting.
    pub(crate) build_ms: Option<u64>,
    /// Pushing.
    pub(crate) push_ms: Option<u64>,
    /// Steps of the Dockerfile.
    pub(crate) steps: Option<u32>,
    /// Those of them that came from the cache.
    pub(crate) steps_cached: Option<u32>,
    /// Why it failed.
    pub(crate) error: Option<String>,
    /// What to do about that.
    pub(crate) hint: Option<String>,
    /// Lines of the Dockerfile round the fault.
    #[serde(default)]
    pub(crate) excerpt: Option<String>,
    /// Number of its newest event.
    pub(crate) last_seq: u64,
    /// Further names of the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) tags: Vec<String>,
    /// Platforms that were named and built.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) platforms: Vec<BuiltPlatform>,
    /// What is attested of the image, where it was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) statements: Vec<Statement>,
}

/// A statement that goes with an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Statement {
    /// Platform of the image that it is about.
    pub(crate) platform: Option<String>,
    /// What it says.
    pub(crate) predicate_type: String,
    /// Digest of the statement.
    pub(crate) digest: String,
    /// Bytes of the statement.
    pub(crate) size_bytes: u64,
    /// The statement, as JSON.
    pub(crate) text: Option<String>,
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
    /// What is worth knowing about its hosts.
    pub(crate) notices: Vec<String>,
    /// What builders boot, by region.
    #[serde(default)]
    pub(crate) images: Vec<BootedImages>,
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
            None => format!(
                "the installation's administrator (token {})",
                self.token.name
            ),
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
    /// So many ended builds are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) builds_kept: Option<u32>,
    /// For so many milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) builds_age_ms: Option<u64>,
    /// Processors of a builder, in thousandths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_millis: Option<u32>,
    /// Memory of a builder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_bytes: Option<u64>,
    /// Size of a builder's cache volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) volume_bytes: Option<u64>,
    /// How builders must be isolated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) isolation: Option<&'static str>,
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
    /// Compression of the pushed layers; the builder's choice if absent.
    pub(crate) compression: Option<Compression>,
    /// Id of the session that is open at the builder.
    pub(crate) session: &'a str,
    /// For the push alone.
    pub(crate) credential: Option<&'a RegistryCredential>,
    /// Further names of the image.
    pub(crate) tags: &'a [String],
    /// For the push to those of other registries.
    pub(crate) tag_credentials: &'a [RegistryCredential],
    /// What steps may ask for beyond the usual.
    pub(crate) entitlements: &'a [String],
    /// Caches to look at.
    pub(crate) cache_from: &'a [String],
    /// Caches to write.
    pub(crate) cache_to: &'a [String],
    /// Send the result's files to the session as well.
    pub(crate) export: bool,
    /// Send the image to the session as well.
    pub(crate) load: bool,
    /// Annotations of manifests and index.
    pub(crate) annotations: &'a [String],
    /// Region of the builder.
    pub(crate) region: Option<&'a str>,
    /// Architecture of the builder.
    pub(crate) arch: Option<&'a str>,
}

/// What the server lends to who pulls from a registry. `Debug` shows no token.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PullLoan {
    /// `NOTHING`, `TOKEN` or `PASSWORD`: what the registry takes.
    pub(crate) kind: String,
    /// The token, if repositories were named.
    pub(crate) token: Option<String>,
    /// For how many milliseconds it is good.
    pub(crate) life_ms: Option<u64>,
}

impl std::fmt::Debug for PullLoan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullLoan")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}
