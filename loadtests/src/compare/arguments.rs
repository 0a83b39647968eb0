//! Arguments of `slipway-loadtest compare`.

use super::run::Choice;
use clap::Args;
use std::path::PathBuf;

/// Compare Slipway with its peers, interleaved in one run on the same input.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Scenarios to run; none for all.
    #[arg(value_name = "SCENARIO")]
    pub scenarios: Vec<String>,
    /// Small inputs and few rounds: to see that everything works, not to be quoted.
    #[arg(long)]
    pub quick: bool,
    /// Only this case; may be given several times.
    #[arg(long, value_name = "CASE")]
    pub only: Vec<String>,
    /// Runs of each contender, in place of each case's own number.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub rounds: Option<u16>,
    /// Write JSON, a Markdown table and a plot of each scenario into the checkout's docs/benchmarks.
    #[arg(long)]
    pub write: bool,
    /// Write them into this directory instead.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print the results as JSON instead of tables.
    #[arg(long)]
    pub json: bool,
    /// Fail when a required figure is missed or could not be measured.
    #[arg(long)]
    pub strict: bool,
}

impl Arguments {
    /// What scenarios need to know of it.
    pub fn choice(&self) -> Choice {
        Choice {
            quick: self.quick,
            only: self.only.clone(),
            rounds: self.rounds.map(usize::from),
        }
    }
}
