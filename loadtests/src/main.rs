//! `slipway-loadtest`: measurements against real alternatives, and the tests' virtual machine by hand.

use clap::{Parser, Subcommand};
use slipway_loadtests::{bench, compare, vm};
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
    Compare(compare::Arguments),
    Vm(vm::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Bench { quick } => bench::run(quick),
        Command::Compare(arguments) => compare::main(&arguments),
        Command::Vm(arguments) => vm::main(&arguments),
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
