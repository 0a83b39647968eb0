//! What may be typed: the daemons, their flags and environment variables. The doc comments are the help texts.

use clap::{Args, Parser, Subcommand};
use slipway_terminal::log::LogFormat;
use std::path::PathBuf;

/// Runs a farm of remote Docker builders: the control plane, and the host daemon of each computer.
///
/// `slipway` is the client. Exit codes: 0 done, 1 your fault (a hint says what to do), 2 ours, 130 interrupted.
#[derive(Debug, Parser)]
#[command(
    name = "slipwayd",
    version,
    propagate_version = false,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the control plane
    ///
    /// Serves GraphQL, the Docker gateway and the BuildKit gateway. Needs no privilege.
    /// SIGTERM and SIGINT end it cleanly; builds that run go on and are adopted by the next start.
    #[command(
        after_long_help = "Examples:\n  slipwayd serve --config /etc/slipway/serve.toml --log json\n  slipwayd serve --config /etc/slipway/serve.toml backup DIR"
    )]
    Serve(ServeArgs),
    /// Run the host daemon (root): volumes, networks and machines of this computer
    ///
    /// Machines outlive it: its next start adopts them.
    #[command(
        after_long_help = "Examples:\n  slipwayd host --config /etc/slipway/host.toml --log json"
    )]
    Host(HostArgs),
    /// Print the version
    Version,
    /// Print docs/slipwayd.md
    #[command(hide = true)]
    Docs,
}

/// Flags of the long-running processes.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProcessArgs {
    /// Settings file, TOML
    #[arg(long, value_name = "FILE", env = "SLIPWAY_CONFIG", value_hint = clap::ValueHint::FilePath)]
    pub(crate) config: PathBuf,
    /// A setting that goes before the file, as TOML writes it. Repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) set: Vec<String>,
    /// Format of the log on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "SLIPWAY_LOG_FORMAT", value_name = "FORMAT")]
    pub(crate) log: LogFormat,
    /// What is logged, as in `info,slipway_scheduler=debug`
    #[arg(
        long,
        default_value = "info",
        env = "SLIPWAY_LOG",
        value_name = "FILTER"
    )]
    pub(crate) log_filter: String,
}

/// Flags of `slipwayd serve`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    /// What to do instead of running
    #[command(subcommand)]
    pub(crate) verb: Option<ServeVerb>,
}

/// What else can be done with a control plane.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ServeVerb {
    /// Write a backup of the database and the secrets, while the control plane runs
    Backup {
        /// Directory that does not exist yet
        dir: PathBuf,
    },
}

/// Flags of `slipwayd host`.
#[derive(Debug, Clone, Args)]
pub(crate) struct HostArgs {
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    /// What to do instead of running
    #[command(subcommand)]
    pub(crate) verb: Option<HostVerb>,
}

/// What else can be done with a host.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum HostVerb {
    /// End every machine of this host and remove all it made: volumes, networks, state
    Purge,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_takes_backup_after_its_flags() {
        let cli = ["slipwayd", "serve", "--config", "x.toml", "backup", "to"];
        let Command::Serve(args) = Cli::try_parse_from(cli).unwrap().command else {
            panic!("not serve")
        };
        assert!(matches!(args.verb, Some(ServeVerb::Backup { dir }) if dir.as_os_str() == "to"));
    }

    #[test]
    fn host_takes_purge_after_its_flags() {
        let cli = ["slipwayd", "host", "--config", "x.toml", "purge"];
        let Command::Host(args) = Cli::try_parse_from(cli).unwrap().command else {
            panic!("not host")
        };
        assert!(matches!(args.verb, Some(HostVerb::Purge)));
    }

    /// The same as of `slipway`, which has most of them.
    #[test]
    fn every_command_that_a_text_names_can_be_typed() {
        let named = slipway_terminal::texts::check("slipwayd", |words| {
            Cli::try_parse_from(words).map(drop)
        });
        assert!(named.unwrap() > 5);
    }
}
