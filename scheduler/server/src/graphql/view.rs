//! What is shown, and how it comes from what is known. No secret is in any of these types but the two that are told once.

mod build;
mod builder;

pub(super) use build::Build;
pub(super) use builder::{Builder, host};

use super::Result;
use super::ids::parse_id;
use super::scalar::{DateTime, Long};
use async_graphql::{Enum, ID, SimpleObject};
use slipway_store as store;
use std::time::Duration;

/// What a token may do, least first.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "store::TokenRole")]
pub(super) enum TokenRole {
    /// Look.
    Read,
    /// Build, push, and use the builder.
    Deploy,
    /// All of it.
    Admin,
}

/// What an app is for.
#[derive(Enum, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "store::AppRole")]
pub(super) enum AppRole {
    /// The user's own.
    User,
    /// It holds the org's builders.
    Builder,
}

/// How builders are isolated from their host and from other orgs' builders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "slipway_core::isolation::Isolation")]
pub(super) enum Isolation {
    /// As each host sees fit.
    Auto,
    /// A container in a user namespace of its own is enough.
    Sandbox,
    /// A virtual machine, and never less.
    Vm,
}

/// A tenant.
#[derive(SimpleObject)]
pub(super) struct Org {
    /// Its id.
    id: ID,
    /// Its name in URLs and on the command line.
    slug: String,
    /// Its name for people.
    name: String,
    /// A builder ends itself after so many milliseconds without activity.
    idle_ms: Long,
    /// So many ended builds are kept, the newest ones.
    builds_kept: u32,
    /// An ended build is kept for so many milliseconds.
    builds_age_ms: Long,
    /// Region of builders when a request names none.
    default_region: String,
    /// Architecture of builders when a request names none.
    default_arch: String,
    /// How builders must be isolated.
    isolation: Isolation,
    /// Processor limit of a builder, in thousandths.
    cpu_millis: u32,
    /// Memory limit of a builder.
    memory_bytes: Long,
    /// Size of a builder's cache volume.
    volume_bytes: Long,
    /// When it was made.
    created_at: DateTime,
}

impl From<store::Org> for Org {
    fn from(org: store::Org) -> Self {
        Self {
            id: ID(org.id.into()),
            slug: org.slug,
            name: org.name,
            idle_ms: millis(org.idle),
            builds_kept: org.retention.count,
            builds_age_ms: millis(org.retention.age),
            default_region: org.default_region,
            default_arch: org.default_arch,
            isolation: org.isolation.into(),
            cpu_millis: org.builder_size.cpu_millis,
            memory_bytes: Long(org.builder_size.memory.0),
            volume_bytes: Long(org.builder_size.volume.0),
            created_at: DateTime(org.created_at),
        }
    }
}

/// An application.
#[derive(SimpleObject)]
pub(super) struct App {
    /// Its id.
    id: ID,
    /// Its name, unique within the org.
    name: String,
    /// What it is for.
    role: AppRole,
    /// It is charged for. Builders are not.
    billable: bool,
    /// When it was made.
    created_at: DateTime,
}

impl From<store::App> for App {
    fn from(app: store::App) -> Self {
        Self {
            id: ID(app.id.into()),
            name: app.name,
            role: app.role.into(),
            billable: app.billable,
            created_at: DateTime(app.created_at),
        }
    }
}

/// A token, without its secret.
#[derive(SimpleObject)]
pub(super) struct Token {
    /// Its id.
    id: ID,
    /// What it is for.
    name: String,
    /// What it may do.
    role: TokenRole,
    /// The one app it is good for.
    app: Option<ID>,
    /// When it was made.
    created_at: DateTime,
    /// Not good from then on.
    expires_at: Option<DateTime>,
    /// When it was last used, coarsely.
    last_used_at: Option<DateTime>,
    /// Not good since then.
    revoked_at: Option<DateTime>,
}

impl From<store::Token> for Token {
    fn from(token: store::Token) -> Self {
        Self {
            id: ID(token.id.into()),
            name: token.name,
            role: token.role.into(),
            app: token.app.map(|app| ID(app.into())),
            created_at: DateTime(token.created_at),
            expires_at: token.expires_at.map(DateTime),
            last_used_at: token.last_used_at.map(DateTime),
            revoked_at: token.revoked_at.map(DateTime),
        }
    }
}

/// A new token with its secret, which is told this once.
#[derive(SimpleObject)]
pub(super) struct NewToken {
    /// The secret.
    pub(super) secret: String,
    /// The token.
    pub(super) token: Token,
}

/// A client certificate with its key, which is told this once. All PEM.
#[derive(SimpleObject)]
pub(super) struct ClientCertificate {
    /// The server's certificate authority.
    pub(super) ca: String,
    /// The certificate.
    pub(super) cert: String,
    /// Its key.
    pub(super) key: String,
    /// Not good from then on.
    pub(super) expires_at: DateTime,
}

/// A registry credential, without its password.
#[derive(SimpleObject)]
pub(super) struct RegistryCredential {
    /// Its id.
    id: ID,
    /// Registry host.
    registry: String,
    /// User name.
    username: String,
    /// When it was stored.
    created_at: DateTime,
}

impl From<store::SealedCredential> for RegistryCredential {
    fn from(row: store::SealedCredential) -> Self {
        Self {
            id: ID(row.id.into()),
            registry: row.registry,
            username: row.username,
            created_at: DateTime(row.created_at),
        }
    }
}

/// What is lent to who pulls from a registry.
#[derive(SimpleObject)]
pub(super) struct PullLoan {
    /// What it is.
    kind: PullLoanKind,
    /// A bearer token of the registry's; present if it is of kind TOKEN and repositories were named.
    token: Option<String>,
    /// For how many milliseconds the token is good.
    life_ms: Option<Long>,
}

/// What is lent.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PullLoanKind {
    /// Nothing: the org has no login there, the registry wants none, or the server cannot ask it.
    Nothing,
    /// A token.
    Token,
    /// Nothing: the registry takes the password alone, and that is not lent.
    Password,
}

impl From<crate::lending::PullLoan> for PullLoan {
    fn from(loan: crate::lending::PullLoan) -> Self {
        use crate::lending::PullLoan as Lent;
        let (kind, token) = match loan {
            Lent::Nothing => (PullLoanKind::Nothing, None),
            Lent::Tokens => (PullLoanKind::Token, None),
            Lent::Token(token, lifetime) => (PullLoanKind::Token, Some((token, lifetime))),
            Lent::Password => (PullLoanKind::Password, None),
        };
        let (token, life_ms) = token
            .map(|(token, lifetime)| (token, millis(lifetime)))
            .unzip();
        Self {
            kind,
            token,
            life_ms,
        }
    }
}

/// Where the server is, and what.
#[derive(SimpleObject)]
pub(super) struct Server {
    /// Its version.
    pub(super) version: String,
    /// The API, as `host:port`.
    pub(super) api: String,
    /// The Docker gateway, as `host:port`: `DOCKER_HOST=tcp://...` with TLS.
    pub(super) docker: String,
    /// The BuildKit gateway, as `host:port`: for buildx's `remote` driver, with TLS.
    pub(super) buildkit: String,
    /// What is worth knowing about its hosts, in words.
    pub(super) notices: Vec<String>,
    /// When the packages of what builders boot were last looked up, by region.
    pub(super) images: Vec<BootedImages>,
}

/// What builders of a region boot, on one of its hosts or more.
#[derive(SimpleObject)]
pub(super) struct BootedImages {
    /// The region.
    pub(super) region: String,
    /// Of the builder image.
    pub(super) image_made_at: Option<DateTime>,
    /// Of the kernel of virtual machines; absent where there are none.
    pub(super) kernel_made_at: Option<DateTime>,
}

/// Who asks.
#[derive(SimpleObject)]
pub(super) struct Viewer {
    /// The token of the request.
    pub(super) token: Token,
    /// The org it is good for; absent for the installation's administrator.
    pub(super) org: Option<Org>,
    /// What answers.
    pub(super) server: Server,
}

/// A machine's id as an id that was asked for.
///
/// # Errors
/// The caller's: not an id.
pub(super) fn machine_id(id: &ID) -> Result<slipway_core::id::MachineId> {
    parse_id(id)
}

fn millis(duration: Duration) -> Long {
    Long(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX >> 1))
}
