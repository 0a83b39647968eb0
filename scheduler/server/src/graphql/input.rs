//! What the API takes.

use super::error::Problem;
use super::view::TokenRole;
use async_graphql::{ID, InputObject};

/// Longest name of an org or an app.
const NAME_CHARS_MAX: usize = 63;

/// Refuses names that could not be part of an image name or a host name.
pub(super) fn check_name(name: &str) -> Result<(), Problem> {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let ends = |b: Option<u8>| b.is_some_and(|b| b != b'-');
    let bytes = name.as_bytes();
    let good = bytes.len() <= NAME_CHARS_MAX
        && bytes.iter().copied().all(fine)
        && ends(bytes.first().copied())
        && ends(bytes.last().copied());
    if good {
        return Ok(());
    }
    Err(Problem::bad_input(format!("'{}' is not a name", name.chars().take(64).collect::<String>()))
        .hint(format!("use a-z, 0-9 and '-' inside, at most {NAME_CHARS_MAX} characters")))
}

/// Limits of an org's builders.
#[derive(Debug, Default)]
pub(super) struct OrgLimits {
    pub(super) cpu_millis: Option<u32>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) volume_bytes: Option<u64>,
}

#[derive(Debug, InputObject)]
pub(super) struct CreateOrgInput {
    pub(super) slug: String,
    pub(super) name: Option<String>,
    pub(super) idle_ms: Option<u64>,
    pub(super) cpu_millis: Option<u32>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) volume_bytes: Option<u64>,
}

#[derive(Debug, InputObject)]
pub(super) struct UpdateOrgInput {
    /// Slug or id; the caller's own by default.
    pub(super) org: Option<String>,
    pub(super) name: Option<String>,
    pub(super) idle_ms: Option<u64>,
    pub(super) default_region: Option<String>,
    pub(super) default_arch: Option<String>,
    pub(super) cpu_millis: Option<u32>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) volume_bytes: Option<u64>,
}

#[derive(Debug, InputObject)]
pub(super) struct CreateAppInput {
    pub(super) org: Option<String>,
    pub(super) name: String,
}

#[derive(Debug, InputObject)]
pub(super) struct CreateTokenInput {
    pub(super) org: Option<String>,
    /// What it is for.
    pub(super) name: String,
    #[graphql(default_with = "TokenRole::Deploy")]
    pub(super) role: TokenRole,
    /// Good for this app alone.
    pub(super) app: Option<String>,
    /// It ends after this long.
    pub(super) expires_in_ms: Option<u64>,
}

/// Which of an org's builders; its default region and architecture where nothing is said.
#[derive(Debug, InputObject)]
pub(super) struct BuilderInput {
    pub(super) org: Option<String>,
    pub(super) region: Option<String>,
    pub(super) arch: Option<String>,
}

/// One of BuildKit's `dockerfile.v0` attributes.
#[derive(Debug, InputObject)]
pub(super) struct FrontendAttrInput {
    pub(super) name: String,
    pub(super) value: String,
}

/// A registry credential for one push; never stored.
#[derive(InputObject)]
pub(super) struct PushCredentialInput {
    pub(super) registry: String,
    pub(super) username: String,
    pub(super) password: String,
}

impl From<PushCredentialInput> for slipway_core::build::RegistryCredential {
    fn from(input: PushCredentialInput) -> Self {
        Self { registry: input.registry, username: input.username, password: input.password }
    }
}

#[derive(InputObject)]
pub(super) struct StartBuildInput {
    pub(super) org: Option<String>,
    /// Name of the app.
    pub(super) app: String,
    /// Full name of the image, with registry and tag.
    pub(super) image: String,
    pub(super) push: bool,
    #[graphql(default)]
    pub(super) frontend_attrs: Vec<FrontendAttrInput>,
    /// Id of the BuildKit session that is open at the Docker gateway.
    pub(super) session: String,
    pub(super) credential: Option<PushCredentialInput>,
    pub(super) region: Option<String>,
    pub(super) arch: Option<String>,
}

#[derive(InputObject)]
pub(super) struct SetRegistryCredentialInput {
    pub(super) org: Option<String>,
    /// Registry host, with port if any.
    pub(super) registry: String,
    #[graphql(default)]
    pub(super) username: String,
    pub(super) password: String,
}

#[derive(Debug, InputObject)]
pub(super) struct IssueClientCertificateInput {
    pub(super) org: Option<String>,
}

/// Fly's own input.
#[derive(Debug, InputObject)]
pub(super) struct EnsureMachineRemoteBuilderInput {
    /// The app's name, to find the org by.
    pub(super) app_name: Option<String>,
    /// The org's id or slug.
    pub(super) organization_id: Option<ID>,
    pub(super) region: Option<String>,
    /// Taken and ignored.
    pub(super) v2: Option<bool>,
    /// Taken and given back.
    pub(super) client_mutation_id: Option<String>,
}
