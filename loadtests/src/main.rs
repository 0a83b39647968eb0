//! `slipway-loadtest`: measurements against real alternatives.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Measure Slipway against real alternatives. Needs root and what `make setup` installs.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the figures of the main job.
    Bench {
        /// Fewer and smaller runs.
        #[arg(long)]
        quick: bool,
    },
    Compare(slipway_loadtests::compare::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Bench { quick } => slipway_loadtests::bench::run(quick),
        Command::Compare(arguments) => slipway_loadtests::compare::main(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:?}");
            ExitCode::from(2)
        }
    }
}
