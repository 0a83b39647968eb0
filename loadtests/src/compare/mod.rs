//! `slipway-loadtest compare`: Slipway against every peer that is installed, interleaved in one run, on the same input.
//!
//! Owns: taking turns, figures, verdicts and reports. A scenario owns its input, its contenders and what must come out; it is a
//! function in a folder of its own, named in [`SCENARIOS`].

mod archive;
mod arguments;
mod case;
mod context;
mod deploy;
mod farm;
mod gateway;
mod load;
mod machine;
mod main_job;
mod outcome;
mod push;
mod relay;
pub mod report;
mod run;
mod vm;

pub use arguments::Arguments;
pub use case::{Bar, Case, Contender, Runner, Sample, Unit};
pub use machine::{Machine, version_of};
pub use outcome::{Outcome, Standing, Verdict};
pub use run::{Choice, Run};

use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// A scenario: its name, what it is about (the title of its page), and what runs its cases.
pub type Scenario = (&'static str, &'static str, fn(&mut Run) -> Result<()>);

/// The scenario with the figures of the main job.
pub const MAIN_JOB: &str = "main-job";

/// All there are, in the order in which they run.
pub const SCENARIOS: &[Scenario] = &[
    (
        MAIN_JOB,
        "The main job: wake, deploy, requests, context and memory, each against the real alternative",
        main_job::run,
    ),
    (
        "gateway",
        "The Docker gateway against haproxy, nginx and dockerd's own TLS",
        gateway::run,
    ),
    (
        "context",
        "Build contexts: slipway deploy's file sync against BuildKit's and the classic tar",
        context::run,
    ),
    ("vm", "Builders as virtual machines", vm::run),
    (
        "push",
        "Pushing an image: slipway-push against docker, skopeo and buildah",
        push::run,
    ),
    (
        "deploy",
        "From solved build to pushed image: slipway deploy against buildx",
        deploy::run,
    ),
];

/// Runs what was asked for. False when `--strict` was given and a required figure is missed or could not be measured.
///
/// # Errors
/// No such scenario or case, one of ours fails, or results cannot be written.
pub fn main(arguments: &Arguments) -> Result<bool> {
    let known = |name: &String| SCENARIOS.iter().any(|(scenario, ..)| scenario == name);
    if let Some(unknown) = arguments.scenarios.iter().find(|name| !known(name)) {
        let names: Vec<&str> = SCENARIOS.iter().map(|(name, ..)| *name).collect();
        bail!(
            "no scenario '{unknown}' (hint: one of {})",
            names.join(", ")
        );
    }
    let dir = match (&arguments.out, arguments.write) {
        (Some(dir), _) => Some(dir.clone()),
        (None, true) => Some(benchmarks_dir()),
        (None, false) => None,
    };
    let mut all_hold = true;
    let mut outcomes_count = 0;
    for (name, about, scenario) in SCENARIOS {
        if !arguments.scenarios.is_empty() && !arguments.scenarios.iter().any(|one| one == name) {
            continue;
        }
        let mut run = Run::new(arguments.choice());
        scenario(&mut run).with_context(|| format!("scenario {name}"))?;
        let outcomes = run.finish();
        outcomes_count += outcomes.len();
        print(&outcomes, arguments.json)?;
        let verdicts = outcomes.iter().flat_map(|outcome| &outcome.verdicts);
        all_hold &= verdicts.into_iter().all(|one| one.holds == Some(true));
        if let Some(dir) = &dir {
            report::write(dir, name, about, outcomes)?;
        }
    }
    if outcomes_count == 0 {
        bail!("no case of that name (hint: run without --only to see them)");
    }
    Ok(all_hold || !arguments.strict)
}

fn print(outcomes: &[Outcome], as_json: bool) -> Result<()> {
    use std::io::Write;
    let mut stdout = std::io::stdout();
    if as_json {
        writeln!(stdout, "{}", serde_json::to_string(outcomes)?)?;
        return Ok(());
    }
    for outcome in outcomes {
        writeln!(stdout, "\n{}", report::table(outcome))?;
    }
    Ok(())
}

fn benchmarks_dir() -> PathBuf {
    crate::testbed::checkout_dir().join("docs/benchmarks")
}
