//! What may be typed: every command, flag and environment variable. The doc comments are the help texts.
//!
//! Must not know what any command does.

mod deploy;
mod verbs;
mod volumes;

pub(crate) use deploy::{DeployArgs, Method, ProgressMode};
pub(crate) use verbs::{
    AppsVerb, BuilderChoice, BuildersVerb, BuildsVerb, BuildxArgs, ContextVerb, DockerContextArgs,
    DockerContextVerb, InitArgs, LoginArgs, OrgSettings, OrgsVerb, RegistryVerb, Role, TokensVerb,
};
pub(crate) use volumes::{
    CreateVolumeArgs, ExportArgs, ForkArgs, Growth, ImportArgs, MoveArgs, SnapshotsVerb,
    UpdateVolumeArgs, VolumesVerb,
};

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Builds container images on your org's own warm remote builder and pushes them.
///
/// Everything the tool prints on standard output is data; talk goes to standard error.
/// Exit codes: 0 done, 1 your fault (a hint says what to do), 2 ours or the network's, 130 interrupted.
#[derive(Debug, Parser)]
#[command(
    name = "slipway",
    version,
    propagate_version = false,
    max_term_width = 100,
    arg_required_else_help = true,
    after_long_help = "Examples:
  slipway login --server https://builds.example:7443 --ca ca.pem
  slipway deploy                      build this directory and push it
  slipway deploy --build-only ./api   build without a push
  slipway docker-context create       then: docker --context slipway build ."
)]
pub(crate) struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct GlobalArgs {
    /// Address of the server, as https://HOST:PORT, instead of the one of `slipway login`
    #[arg(
        long,
        global = true,
        env = "SLIPWAY_SERVER",
        value_name = "URL",
        help_heading = "Global options"
    )]
    pub(crate) server: Option<String>,
    /// Certificate authority of the server, a PEM file, instead of the one of `slipway login`
    #[arg(
        long,
        global = true,
        env = "SLIPWAY_CA",
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub(crate) ca: Option<PathBuf>,
    /// Login to use, as `slipway context list` names it, instead of the current one
    #[arg(
        long,
        global = true,
        env = "SLIPWAY_CONTEXT",
        value_name = "NAME",
        help_heading = "Global options"
    )]
    pub(crate) context: Option<String>,
    /// Print data as JSON; an error too, as the last line
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
    /// Answer every question with yes
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(crate) yes: bool,
    /// Print data, warnings and errors only
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(crate) quiet: bool,
    /// Log what the command does, to standard error; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub(crate) verbose: u8,
}

/// Which org; the token's own one if absent.
#[derive(Debug, Clone, Args)]
pub(crate) struct OrgArg {
    /// Org, by name or id; your token's own org by default
    #[arg(long, env = "SLIPWAY_ORG", value_name = "ORG")]
    pub(crate) org: Option<String>,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Deploy(Box<DeployArgs>),
    Login(LoginArgs),
    /// Forget the stored server and token of the current context
    Logout,
    /// Show which server you are logged in to, and as whom
    Whoami,
    /// Manage the logins of several servers
    #[command(subcommand)]
    Context(ContextVerb),
    /// Show the server, who you are and how your builder does
    Status,
    Init(InitArgs),
    /// Manage orgs
    #[command(subcommand)]
    Orgs(OrgsVerb),
    /// Manage API tokens
    #[command(subcommand)]
    Tokens(TokensVerb),
    /// Manage apps
    #[command(subcommand)]
    Apps(AppsVerb),
    /// Look after your org's builders
    #[command(subcommand)]
    Builders(BuildersVerb),
    /// Look at builds
    #[command(subcommand)]
    Builds(BuildsVerb),
    /// Manage volumes and their snapshots
    #[command(subcommand, aliases = ["volume", "vol", "v"])]
    Volumes(VolumesVerb),
    /// Keep credentials of registries on the server, sealed, for pushes
    #[command(subcommand)]
    Registry(RegistryVerb),
    /// Make your builder a context of the docker command
    #[command(subcommand)]
    DockerContext(DockerContextVerb),
    Buildx(BuildxArgs),
    /// Print a completion script for your shell
    #[command(
        after_long_help = "Examples:\n  slipway completions bash > ~/.local/share/bash-completion/completions/slipway"
    )]
    Completions {
        /// Shell
        #[arg(value_enum)]
        shell: CompletionShell,
    },
    /// Print the version
    Version,
    /// Print docs/cli.md
    #[command(hide = true)]
    Docs,
}

/// Shells with a completion script.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum CompletionShell {
    /// Bash
    Bash,
    /// Zsh
    Zsh,
    /// fish
    Fish,
}

#[cfg(test)]
mod tests;
