//! `compare main-job`: what a warm builder, its gateway and its wake cost, each against the real alternative on the same machine.

mod bare;
mod context;
mod deploy;
mod memory;
mod requests;
mod wake;

pub(super) use deploy::{make_tree, timed};

use super::Run;
use super::farm::Farm;
use anyhow::Result;

type Measure = fn(&Farm, &mut Run) -> Result<()>;

/// Runs the cases that were asked for.
pub(super) fn run(run: &mut Run) -> Result<()> {
    // The wake comes last: it stops the builder again and again.
    const CASES: [(&str, Measure); 7] = [
        ("memory-idle", memory::idle),
        // Before anything that leaves free memory behind.
        ("memory-stream", memory::hijacked_stream),
        ("request", requests::one_connection),
        ("request-16", requests::sixteen_connections),
        ("context", context::large),
        ("deploy", deploy::unchanged),
        ("wake", wake::stopped_to_ping),
    ];
    if !CASES.iter().any(|(name, _)| run.choice.wants(name)) {
        return Ok(());
    }
    let farm = Farm::start(run)?;
    for (name, case) in CASES {
        if run.choice.wants(name) {
            case(&farm, run)?;
        }
    }
    Ok(())
}
