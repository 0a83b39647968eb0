//! What mutations take, and from there to what the rest of the house takes.

use super::Result;
use super::scalar::Long;
use super::view::{Isolation, TokenRole};
use crate::bounds::{
    BUILD_LISTED_MAX, FRONTEND_ATTRS_BYTES_MAX, FRONTEND_ATTRS_MAX, NAME_BYTES_MAX,
    REFERENCE_BYTES_MAX,
};
use crate::problem::{Code, Problem};
use crate::settings::is_label;
use crate::text::misleads;
use async_graphql::{ID, InputObject};
use slipway_core::build::{BuildSpec, RegistryCredential};
use slipway_core::ceilings::Ceilings;
use slipway_core::quota::{BuildRetention, BuilderSize, QuotaError, check_idle};
use slipway_core::units::ByteSize;
use slipway_store::OrgChange;
use std::collections::BTreeMap;
use std::time::Duration;

/// A new org. What is left out is as the server's settings say.
#[derive(InputObject)]
pub(super) struct CreateOrgInput {
    /// Its name in URLs and on the command line: lower-case letters, digits, hyphens.
    pub(super) slug: String,
    /// Its name for people; the slug by default.
    pub(super) name: Option<String>,
    #[graphql(flatten)]
    pub(super) limits: OrgLimits,
}

/// What to change of an org. A running builder gets a new size at its next start.
#[derive(InputObject)]
pub(super) struct UpdateOrgInput {
    /// Id or slug; the token's own org if absent.
    pub(super) org: Option<String>,
    /// Its name for people.
    pub(super) name: Option<String>,
    #[graphql(flatten)]
    pub(super) limits: OrgLimits,
}

/// What builders of an org are like.
#[derive(InputObject)]
pub(super) struct OrgLimits {
    /// A builder ends itself after so many milliseconds without activity.
    idle_ms: Option<Long>,
    /// So many ended builds are kept, the newest ones; older ones are deleted with their logs.
    builds_kept: Option<u32>,
    /// Builds that ended longer ago than so many milliseconds are deleted with their logs.
    builds_age_ms: Option<Long>,
    /// Region of builders when a request names none.
    default_region: Option<String>,
    /// Architecture of builders when a request names none: amd64 or arm64.
    default_arch: Option<String>,
    /// How builders must be isolated, from their next start on.
    isolation: Option<Isolation>,
    /// Processor limit of a builder, in thousandths.
    cpu_millis: Option<u32>,
    /// Memory limit of a builder.
    memory_bytes: Option<Long>,
    /// Size of a builder's cache volume; builders that exist keep theirs.
    volume_bytes: Option<Long>,
}

impl OrgLimits {
    /// As a change from `now` and `kept`, what the org has.
    ///
    /// # Errors
    /// [`Code::Invalid`] for what the quotas do not allow.
    pub(super) fn change(
        self,
        name: Option<String>,
        now: BuilderSize,
        kept: BuildRetention,
        most: &Ceilings,
    ) -> Result<OrgChange> {
        let invalid = |error: QuotaError| {
            let problem = Problem::new(Code::Invalid, error.to_string());
            match error.hint() {
                Some(hint) => problem.hint(hint),
                None => problem,
            }
        };
        let idle = self
            .idle_ms
            .map(|Long(millis)| Duration::from_millis(millis));
        if let Some(idle) = idle {
            check_idle(idle).map_err(invalid)?;
        }
        let retention = BuildRetention {
            count: self.builds_kept.unwrap_or(kept.count),
            age: self
                .builds_age_ms
                .map_or(kept.age, |Long(millis)| Duration::from_millis(millis)),
        };
        if retention != kept {
            most.check_build_retention(&retention).map_err(invalid)?;
        }
        let bytes = |Long(bytes): Long| ByteSize(bytes);
        let size = BuilderSize {
            cpu_millis: self.cpu_millis.unwrap_or(now.cpu_millis),
            memory: self.memory_bytes.map_or(now.memory, bytes),
            volume: self.volume_bytes.map_or(now.volume, bytes),
        };
        if size != now {
            most.check_builder_size(&size).map_err(invalid)?;
        }
        let label = |text: Option<String>, what| text.map(|text| label(text, what)).transpose();
        Ok(OrgChange {
            name: name.map(display_name).transpose()?,
            idle,
            builds_kept: self.builds_kept,
            builds_age: self.builds_age_ms.map(|_| retention.age),
            default_region: label(self.default_region, "region")?,
            default_arch: label(self.default_arch, "architecture")?,
            isolation: self.isolation.map(Into::into),
            cpu_millis: self.cpu_millis,
            memory: self.memory_bytes.map(bytes),
            volume: self.volume_bytes.map(bytes),
        })
    }
}

/// A new token.
#[derive(InputObject)]
pub(super) struct CreateTokenInput {
    /// Id or slug of the org; the token's own org if absent.
    pub(super) org: Option<String>,
    /// What it is for.
    pub(super) name: String,
    /// What it may do.
    #[graphql(default_with = "TokenRole::Deploy")]
    pub(super) role: TokenRole,
    /// The one app it is good for, by name; all of the org if absent.
    pub(super) app: Option<String>,
    /// It ends after so many milliseconds; never if absent.
    pub(super) expires_in_ms: Option<Long>,
}

/// A new app.
#[derive(InputObject)]
pub(super) struct CreateAppInput {
    /// Id or slug of the org; the token's own org if absent.
    pub(super) org: Option<String>,
    /// Its name: lower-case letters, digits, hyphens.
    pub(super) name: String,
}

/// Which builder.
#[derive(InputObject)]
pub(super) struct BuilderInput {
    /// Id or slug of the org; the token's own org if absent.
    pub(super) org: Option<String>,
    /// Region; the org's default if absent.
    pub(super) region: Option<String>,
    /// Architecture; the org's default if absent.
    pub(super) arch: Option<String>,
}

/// One attribute of BuildKit's `dockerfile.v0` frontend.
#[derive(InputObject)]
pub(super) struct FrontendAttrInput {
    /// Such as `target` or `build-arg:VERSION`.
    name: String,
    /// Its value.
    value: String,
}

/// A registry credential for one build.
#[derive(InputObject)]
pub(super) struct CredentialInput {
    /// Registry host, with port if any.
    registry: String,
    /// User name; empty if the password is an identity token.
    username: String,
    /// Password or token. Kept nowhere.
    password: String,
}

/// A build to start. A BuildKit session must be open at the builder.
#[derive(InputObject)]
pub(super) struct StartBuildInput {
    /// Id or slug of the org; the token's own org if absent.
    pub(super) org: Option<String>,
    /// The app it is for, by name. It must exist: see `createApp`.
    pub(super) app: String,
    /// Region of the builder; the org's default if absent.
    pub(super) region: Option<String>,
    /// Architecture of the builder; the org's default if absent.
    pub(super) arch: Option<String>,
    /// Name of the image, with a tag or without.
    image: String,
    /// Push it when built.
    #[graphql(default)]
    push: bool,
    /// Attributes of the frontend. They are kept with the build, so they are no place for secrets.
    #[graphql(default)]
    frontend_attrs: Vec<FrontendAttrInput>,
    /// Compression of the pushed layers: `gzip`, `gzip:LEVEL`, `zstd` or `zstd:LEVEL`. gzip, fast, if absent.
    compression: Option<String>,
    /// Id of the BuildKit session that serves the context (`X-Docker-Expose-Session-Uuid` of `POST /session`).
    session: String,
    /// For the push; the org's stored credential for the registry if absent.
    credential: Option<CredentialInput>,
    /// Further names of the image; a push goes to each.
    #[graphql(default)]
    tags: Vec<String>,
    /// For the push to further names, one for each registry; the org's stored credential for the registry if absent.
    #[graphql(default)]
    tag_credentials: Vec<CredentialInput>,
    /// What steps may ask for beyond the usual: `network.host`, `security.insecure`.
    #[graphql(default)]
    entitlements: Vec<String>,
    /// Caches that are looked at, each as `type=registry,ref=registry.example/app:cache`.
    #[graphql(default)]
    cache_from: Vec<String>,
    /// Caches that are written, in the same form.
    #[graphql(default)]
    cache_to: Vec<String>,
    /// The result's files are sent to the session as well, as one archive.
    #[graphql(default)]
    export: bool,
    /// The image is sent to the session as well, as the archive that `docker load` reads. Not together with `export`.
    #[graphql(default)]
    load: bool,
    /// Annotations of manifests and index, each as `index:NAME=VALUE` or `manifest[linux/arm64]:NAME=VALUE`.
    #[graphql(default)]
    annotations: Vec<String>,
}

/// A build as it was asked for, checked.
pub(super) struct AskedBuild {
    pub(super) spec: BuildSpec,
    pub(super) session: String,
    pub(super) credential: Option<RegistryCredential>,
    pub(super) tag_credentials: Vec<RegistryCredential>,
}

impl From<CredentialInput> for RegistryCredential {
    fn from(input: CredentialInput) -> Self {
        let CredentialInput {
            registry,
            username,
            password,
        } = input;
        Self {
            registry,
            username,
            password,
        }
    }
}

impl StartBuildInput {
    /// # Errors
    /// [`Code::Invalid`].
    pub(super) fn asked(self) -> Result<AskedBuild> {
        let is_reference = |text: &str| {
            (1..=REFERENCE_BYTES_MAX).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        for (what, text) in [("image", &self.image), ("session", &self.session)] {
            if !is_reference(text) {
                let message = format!("the {what} is empty, too long, or has spaces");
                return Err(Problem::new(Code::Invalid, message).into());
            }
        }
        self.check_lists()?;
        if self.export && self.load {
            let message = "the session takes one archive: the result's files, or the image";
            return Err(Problem::new(Code::Invalid, message).into());
        }
        let bytes: usize = self
            .frontend_attrs
            .iter()
            .map(|attr| attr.name.len() + attr.value.len())
            .sum();
        if self.frontend_attrs.len() > FRONTEND_ATTRS_MAX || bytes > FRONTEND_ATTRS_BYTES_MAX {
            return Err(Problem::new(Code::Invalid, "the build has too many attributes").into());
        }
        let mut frontend_attrs = BTreeMap::new();
        for FrontendAttrInput { name, value } in self.frontend_attrs {
            if frontend_attrs.insert(name.clone(), value).is_some() {
                let message = format!("the attribute '{name}' is there twice");
                return Err(Problem::new(Code::Invalid, message).into());
            }
        }
        let compression = self
            .compression
            .map(|text| text.parse())
            .transpose()
            .map_err(|error: slipway_core::compression::CompressionError| {
                Problem::new(Code::Invalid, error.to_string())
            })?;
        let spec = BuildSpec {
            image: self.image,
            push: self.push,
            frontend_attrs,
            compression,
            tags: self.tags,
            entitlements: self.entitlements,
            cache_from: self.cache_from,
            cache_to: self.cache_to,
            export: self.export,
            load: self.load,
            annotations: self.annotations,
        };
        Ok(AskedBuild {
            spec,
            session: self.session,
            credential: self.credential.map(Into::into),
            tag_credentials: self.tag_credentials.into_iter().map(Into::into).collect(),
        })
    }

    /// # Errors
    /// [`Code::Invalid`].
    fn check_lists(&self) -> Result<()> {
        let lists = [
            ("further names", &self.tags),
            ("entitlements", &self.entitlements),
            ("caches to look at", &self.cache_from),
            ("caches to write", &self.cache_to),
        ];
        for (what, list) in lists {
            let fits = |text: &String| {
                (1..=REFERENCE_BYTES_MAX).contains(&text.len())
                    && text.bytes().all(|byte| byte.is_ascii_graphic())
            };
            if list.len() > BUILD_LISTED_MAX || !list.iter().all(fits) {
                let message =
                    format!("the {what} are too many, or one is empty, too long or has spaces");
                return Err(Problem::new(Code::Invalid, message).into());
            }
        }
        let fits = |text: &String| {
            (1..=REFERENCE_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
        };
        if self.annotations.len() > BUILD_LISTED_MAX || !self.annotations.iter().all(fits) {
            let message =
                "the annotations are too many, or one is empty, too long or has line breaks";
            return Err(Problem::new(Code::Invalid, message).into());
        }
        if self.tag_credentials.len() > BUILD_LISTED_MAX {
            return Err(Problem::new(Code::Invalid, "there are too many credentials").into());
        }
        Ok(())
    }
}

/// A registry credential to store.
#[derive(InputObject)]
pub(super) struct SetRegistryCredentialInput {
    /// Id or slug of the org; the token's own org if absent.
    pub(super) org: Option<String>,
    /// Registry host, with port if any.
    pub(super) registry: String,
    /// User name; empty if the password is an identity token.
    #[graphql(default)]
    pub(super) username: String,
    /// Password or token; sealed before it is stored.
    pub(super) password: String,
}

/// What is to be pulled with a login that the org has stored.
#[derive(InputObject)]
pub(super) struct LendPullInput {
    /// Id or slug of the org; the token's own org if absent.
    pub(super) org: Option<String>,
    /// Registry host, with port if any.
    pub(super) registry: String,
    /// Its repositories that the token is to be good for; none to learn whether tokens are lent.
    #[graphql(default)]
    pub(super) repositories: Vec<String>,
}

/// A client certificate to issue.
#[derive(InputObject)]
pub(super) struct IssueClientCertificateInput {
    /// Id or slug of the org; the token's own org if absent.
    pub(super) org: Option<String>,
    /// Milliseconds it is good for, from a day to a year; never longer than the token. A year if absent.
    pub(super) expires_in_ms: Option<Long>,
}

/// As Fly's API names it.
#[derive(InputObject)]
pub(super) struct EnsureMachineRemoteBuilderInput {
    /// An app of the org.
    pub(super) app_name: Option<String>,
    /// The org, by id or slug.
    pub(super) organization_id: Option<ID>,
    /// Region; the org's default if absent.
    pub(super) region: Option<String>,
    /// Taken, and without effect.
    pub(super) v2: Option<bool>,
    /// Taken, and given back.
    pub(super) client_mutation_id: Option<String>,
}

/// A text as a slug, an app's name, a region.
///
/// # Errors
/// [`Code::Invalid`].
pub(super) fn label(text: String, what: &str) -> Result<String> {
    if is_label(&text) {
        return Ok(text);
    }
    Err(Problem::new(
        Code::Invalid,
        format!(
            "not valid as a {what}: {:?}",
            text.chars().take(80).collect::<String>()
        ),
    )
    .hint("1 to 63 lower-case letters, digits and hyphens, with none of these at the ends")
    .into())
}

/// A text as a name for people.
///
/// # Errors
/// [`Code::Invalid`].
pub(super) fn display_name(text: String) -> Result<String> {
    let trimmed = text.trim();
    let fits = (1..=NAME_BYTES_MAX).contains(&trimmed.len());
    if fits && !trimmed.chars().any(misleads) {
        return Ok(trimmed.to_owned());
    }
    let message = format!(
        "a name has 1 to {NAME_BYTES_MAX} bytes and no characters that are not seen or change the direction of the text"
    );
    Err(Problem::new(Code::Invalid, message).into())
}
