//! `make bench`: the figures of the main job, each against the real alternative, paired in one run.

mod bare;
mod context;
mod deploy;
mod figures;
mod http;
mod memory;
mod requests;
mod vm;
mod wake;

use crate::testbed::Testbed;
use anyhow::{Context, Result};
use figures::Verdict;
use std::path::PathBuf;

/// Runs everything and prints a table; `quick` takes fewer and smaller runs.
///
/// # Errors
/// A farm does not start, or a measured thing fails. A missed figure is printed, and told by the result.
pub fn run(quick: bool) -> Result<bool> {
    let mut bed = Testbed::start()?;
    bed.registry.seed(&["debian"])?;
    bed.slipway_ok(&["builders", "ensure", "--org", "acme"])?;
    let mut verdicts = vec![
        memory::idle(&mut bed)?,
        requests::small(&bed, if quick { 500 } else { 4000 })?,
        memory::hijacked_stream(&mut bed, if quick { 100 } else { 400 })?,
        context::large(&bed, if quick { 128 << 20 } else { 1 << 30 })?,
        deploy::unchanged(
            &bed,
            if quick { 1000 } else { 7000 },
            if quick { 3 } else { 9 },
        )?,
        wake::stopped_to_ping(&bed, if quick { 3 } else { 9 })?,
    ];
    drop(bed);
    verdicts.extend(vm::all(if quick { 1 } else { 3 })?);
    for verdict in &verdicts {
        outln(&verdict.to_string());
    }
    Ok(verdicts.iter().all(|verdict| verdict.holds))
}

fn outln(line: &str) {
    use std::io::Write;
    let _closed = writeln!(std::io::stdout(), "{line}");
}

/// dockerd's own socket of the one machine that runs.
pub(crate) fn machine_socket(bed: &Testbed) -> Result<PathBuf> {
    let machines = bed.dir().join("host/machines");
    for entry in std::fs::read_dir(&machines)? {
        let socket = entry?.path().join("docker.sock");
        if socket.exists() {
            return Ok(socket);
        }
    }
    Err(anyhow::anyhow!("no machine below {}", machines.display()))
}

fn gateway(bed: &Testbed) -> Result<http::Connection> {
    let token = bed.org_token("acme").context("token")?;
    http::Connection::gateway(&bed.address("docker")?, &bed.ca(), &token)
}

fn verdict(what: &'static str, got: String, must: &'static str, holds: bool) -> Verdict {
    outln(&format!("  {what}: {got}"));
    Verdict {
        what,
        got,
        must,
        holds,
    }
}
