//! The log of a program, on standard error.

use crate::exit::{Failure, Outcome};
use crate::printer::stderr_is_terminal;
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
        LogFormat::Text => builder.with_ansi(stderr_is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Starts the log of a command that talks to a server: nothing, unless [`ENV_LOG`] asks for it.
///
/// # Errors
/// The caller's fault: the variable is no filter.
pub fn start_if_asked() -> Outcome<()> {
    match std::env::var(ENV_LOG) {
        Ok(filter) if !filter.is_empty() => start(&filter, LogFormat::Text),
        Ok(_) | Err(_) => Ok(()),
    }
}
