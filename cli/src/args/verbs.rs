//! Flags of every command but `slipway deploy`.

use super::{OrgArg, ProgressMode};
use clap::{Args, Subcommand};
use slipway_core::isolation::Isolation;
use slipway_core::units::ByteSize;
use std::path::PathBuf;
use std::time::Duration;

/// Log in to a server and store its address, authority and your token
///
/// The token is read from standard input with --token-stdin, from SLIPWAY_TOKEN, or typed when asked;
/// never from the command line. It is stored in ~/.config/slipway/config.toml (0600).
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "Examples:
  slipway login --server https://builds.example:7443 --ca ca.pem
  slipway login --server https://builds.example:7443 --token-stdin < token
  slipway login --context work --server https://work.example:7443")]
pub(crate) struct LoginArgs {
    /// Read the token from standard input
    #[arg(long)]
    pub(crate) token_stdin: bool,
}

/// Manage the logins of several servers
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ContextVerb {
    /// List the contexts; `slipway login --context NAME` makes one
    #[command(visible_alias = "ls")]
    List,
    /// Use another context from now on
    #[command(
        after_long_help = "Examples:\n  slipway context use work\n  slipway --context default status"
    )]
    Use {
        /// Name
        name: String,
    },
    /// Forget the login of a context; its token is not revoked
    #[command(visible_aliases = ["remove", "delete"])]
    Rm {
        /// Name
        name: String,
    },
}

/// Write a slipway.toml for a directory, by looking at it
#[derive(Debug, Clone, Args)]
#[command(
    after_long_help = "Examples:\n  slipway init --app shop --registry registry.example/team"
)]
pub(crate) struct InitArgs {
    /// Directory
    #[arg(default_value = ".", value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// Name of the app; the directory's name by default
    #[arg(long, value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Registry that images are pushed to
    #[arg(long, value_name = "REGISTRY")]
    pub(crate) registry: Option<String>,
    /// Replace a slipway.toml that is there
    #[arg(long)]
    pub(crate) force: bool,
}

/// Limits of an org.
#[derive(Debug, Clone, Args)]
pub(crate) struct OrgSettings {
    /// Builders end after this long without activity, as 10m or 30s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) idle: Option<Duration>,
    /// Keep so many ended builds with their logs, the newest ones
    #[arg(long, value_name = "N")]
    pub(crate) keep_builds: Option<u32>,
    /// Delete builds and their logs so long after their end, as 30days
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) keep_builds_for: Option<Duration>,
    /// Processors of a builder, as 2 or 0.5
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    pub(crate) cpus: Option<CpuMillis>,
    /// Memory of a builder, as 4GiB
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<ByteSize>,
    /// Size of cache volumes made from now on, as 50GiB; `slipway volumes extend` grows one that is there
    #[arg(long, value_name = "SIZE")]
    pub(crate) volume_size: Option<ByteSize>,
    /// How builders must be isolated, from their next start on: auto, sandbox or vm
    #[arg(long, value_name = "KIND")]
    pub(crate) isolation: Option<Isolation>,
}

/// Processors in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuMillis(pub(crate) u32);

/// Parses `2`, `0.5`, `1.25` without going through floating point.
pub(crate) fn parse_cpus(text: &str) -> Result<CpuMillis, String> {
    let bad = || format!("'{text}' is not a number of processors (examples: 2, 0.5)");
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |piece: &str| !piece.is_empty() && piece.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 3 {
        return Err(bad());
    }
    let whole: u32 = whole.parse().map_err(|_| bad())?;
    let part: u32 = format!("{part:0<3}").parse().map_err(|_| bad())?;
    match whole
        .checked_mul(1000)
        .and_then(|millis| millis.checked_add(part))
    {
        Some(millis) if millis > 0 => Ok(CpuMillis(millis)),
        Some(_) | None => Err(bad()),
    }
}

/// Manage orgs
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum OrgsVerb {
    /// List the orgs you can see
    #[command(visible_alias = "ls")]
    List,
    /// Make an org (needs the server's own token)
    Create {
        /// Name
        name: String,
        #[command(flatten)]
        settings: OrgSettings,
    },
    /// Change an org's limits; a running builder gets them at its next start
    #[command(
        after_long_help = "Examples:\n  slipway orgs update --idle 10m --cpus 4 --memory 8GiB"
    )]
    Update {
        /// Org, by name or id; your token's own org by default
        name: Option<String>,
        #[command(flatten)]
        settings: OrgSettings,
    },
}

/// What a token may do, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// Look
    Read,
    /// Build, push, and use the builder
    Deploy,
    /// All of it, for its org
    Admin,
}

/// Manage API tokens
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum TokensVerb {
    /// Make a token; its secret is printed once, on standard output
    #[command(
        after_long_help = "Examples:\n  slipway tokens create ci --app shop --expires 30d\n  slipway tokens create watch --role read"
    )]
    Create {
        /// What it is for
        name: String,
        #[command(flatten)]
        org: OrgArg,
        /// Good for this app only
        #[arg(long, value_name = "NAME")]
        app: Option<String>,
        /// What it may do
        #[arg(long, value_enum, default_value_t = Role::Deploy, value_name = "ROLE")]
        role: Role,
        /// It ends after this long, as 30d; never by default
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        expires: Option<Duration>,
    },
    /// List tokens, without their secrets
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        org: OrgArg,
    },
    /// Revoke a token; requests that run end with it
    #[command(visible_aliases = ["delete", "rm"])]
    Revoke {
        /// Id, as tok_...
        id: String,
    },
}

/// Manage apps
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum AppsVerb {
    /// Make an app
    Create {
        /// Name
        name: String,
        #[command(flatten)]
        org: OrgArg,
    },
    /// List apps, builders among them
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        org: OrgArg,
    },
}

/// Which of an org's builders.
#[derive(Debug, Clone, Args)]
pub(crate) struct BuilderChoice {
    #[command(flatten)]
    pub(crate) org: OrgArg,
    /// Region
    #[arg(long, value_name = "REGION")]
    pub(crate) region: Option<String>,
    /// Processor architecture: amd64 or arm64
    #[arg(long, value_name = "ARCH")]
    pub(crate) arch: Option<String>,
}

/// Look after your org's builders
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum BuildersVerb {
    /// List builders
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        org: OrgArg,
    },
    /// Show one builder
    Show(BuilderChoice),
    /// Start the builder if it does not run, and wait until it is ready
    Ensure(BuilderChoice),
    /// End the builder now, with all that runs on it; its cache stays (needs the role admin)
    Stop(BuilderChoice),
    /// End the builder and start its cache anew, empty (needs the role admin)
    #[command(alias = "reset")]
    ResetCache(BuilderChoice),
}

/// Look at builds
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum BuildsVerb {
    /// List builds, newest first
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        org: OrgArg,
        /// Only of this app
        #[arg(long, value_name = "NAME")]
        app: Option<String>,
        /// How many
        #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200))]
        limit: u32,
    },
    /// Show one build
    Show {
        /// Id, as bld_...
        id: String,
    },
    /// Print a build's output so far
    Logs {
        /// Id, as bld_...
        id: String,
        /// Go on until the build ends
        #[arg(short, long)]
        follow: bool,
    },
    /// Show a build's live progress, from any computer, and end as its deploy would
    ///
    /// Ctrl-C ends the showing (exit code 130); the build goes on.
    Attach {
        /// Id, as bld_...
        id: String,
        /// How progress is shown
        #[arg(long, value_enum, default_value_t = ProgressMode::Auto, env = "SLIPWAY_PROGRESS", value_name = "MODE")]
        progress: ProgressMode,
    },
    /// Cancel a build
    Cancel {
        /// Id, as bld_...
        id: String,
    },
}

/// Keep credentials of registries on the server
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum RegistryVerb {
    /// Store a credential; the password is typed unseen, or read from standard input
    #[command(
        after_long_help = "Examples:\n  slipway registry login registry.example --username ci < password"
    )]
    Login {
        /// Registry host, with port if any
        registry: String,
        /// User name; leave it out for an identity token
        #[arg(short, long, default_value = "", value_name = "NAME")]
        username: String,
        /// Read the password from standard input, also from a terminal
        #[arg(long)]
        password_stdin: bool,
        #[command(flatten)]
        org: OrgArg,
    },
    /// List stored credentials, without their secrets
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        org: OrgArg,
    },
    /// Remove a credential
    #[command(visible_aliases = ["delete", "rm"])]
    Logout {
        /// Registry host, with port if any
        registry: String,
        #[command(flatten)]
        org: OrgArg,
    },
}

/// Make your builder a context of the docker command
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum DockerContextVerb {
    Create(DockerContextArgs),
}

/// Make a client certificate and a Docker context that uses it
///
/// Afterwards `docker --context NAME build .` builds on your builder, waking it if need be.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "Examples:
  slipway docker-context create
  docker --context slipway build .")]
pub(crate) struct DockerContextArgs {
    /// Name of the context
    #[arg(default_value = "slipway", value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) org: OrgArg,
    /// Replace a context of this name
    #[arg(long)]
    pub(crate) force: bool,
}

/// Write a client certificate and print the line that makes your builder a builder of docker buildx
#[derive(Debug, Clone, Args)]
#[command(
    after_long_help = "Examples:\n  eval \"$(slipway buildx)\" && docker buildx build --builder slipway-buildx ."
)]
pub(crate) struct BuildxArgs {
    /// Name of the builder in buildx; not the name of a Docker context, which is a builder of its own to buildx
    #[arg(default_value = "slipway-buildx", value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) org: OrgArg,
}
