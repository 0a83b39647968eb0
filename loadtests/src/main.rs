//! `slipway-loadtest`: measurements against real alternatives, and the tests' virtual machine by hand.

use clap::{Args, Parser, Subcommand};
use slipway_loadtests::{compare, vm};
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure Slipway against real alternatives. Needs root and what `make setup` installs.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the figures of the main job; the same as `compare main-job --strict`.
    Bench(Bench),
    Compare(compare::Arguments),
    Vm(vm::Arguments),
}

#[derive(Debug, Args)]
struct Bench {
    /// Fewer and smaller runs: to see that everything works, not to be quoted.
    #[arg(long)]
    quick: bool,
    /// Only this figure: memory-idle, request, request-16, memory-stream, context, deploy or wake; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Write main-job.json, .md and .svg into this directory.
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
}

impl Bench {
    fn arguments(self) -> compare::Arguments {
        compare::Arguments {
            scenarios: vec![compare::MAIN_JOB.to_owned()],
            quick: self.quick,
            only: self.only,
            rounds: None,
            write: false,
            out: self.write,
            json: false,
            strict: true,
        }
    }
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Bench(bench) => compare::main(&bench.arguments()),
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
