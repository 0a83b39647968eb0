//! The log of a program, on standard error.

use crate::exit::{Failure, Outcome};
use crate::printer::stderr_has_colours;
use tracing_subscriber::EnvFilter;

/// Names what is logged.
pub const ENV_LOG: &str = "SLIPWAY_LOG";

/// Format of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON document per line
    Json,
}

/// Starts the log. Call it once.
///
/// # Errors
/// The caller's fault: `filter` is no filter.
pub fn start(filter: &str, format: LogFormat) -> Outcome<()> {
    let parsed = EnvFilter::try_new(filter).map_err(|error| {
        Failure::user_caused(format_args!("'{filter}' is not a log filter"), &error)
            .hint("examples: info, debug, info,slipway_scheduler=debug")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(stderr_has_colours()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Starts the log of a command that talks to a server: nothing, unless [`ENV_LOG`] or `-v` asks for it. The variable goes first: it
/// says more.
///
/// # Errors
/// The caller's fault: the variable is no filter.
pub fn start_if_asked(verbose: u8) -> Outcome<()> {
    match (std::env::var(ENV_LOG), verbose) {
        (Ok(filter), _) if !filter.is_empty() => start(&filter, LogFormat::Text),
        (_, 0) => Ok(()),
        // Of the project's own crates: their names all begin so.
        (_, 1) => start("slipway=debug", LogFormat::Text),
        (_, 2..) => start("slipway=trace", LogFormat::Text),
    }
}
