//! Memory of `slipway serve`: idle, and for each idle hijacked stream.

use super::figures::Verdict;
use crate::testbed::Testbed;
use anyhow::{Context, Result};

/// Resident memory of the control plane with nothing to do.
pub(super) fn idle(bed: &mut Testbed) -> Result<Verdict> {
    let bytes = resident(bed)?;
    let got = format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    Ok(super::verdict(
        "memory of an idle `slipway serve`",
        got,
        "< 40 MiB",
        bytes < 40 << 20,
    ))
}

/// `n` streams of `POST /session`, opened and left alone.
pub(super) fn hijacked_stream(bed: &mut Testbed, n: u64) -> Result<Verdict> {
    let before = resident(bed)?;
    let mut streams = Vec::new();
    for _ in 0..n {
        let mut stream = super::gateway(bed)?;
        stream.upgrade("/session")?;
        streams.push(stream);
    }
    let each = resident(bed)?.saturating_sub(before) / n;
    drop(streams);
    let got = format!("{:.1} KiB", each as f64 / 1024.0);
    Ok(super::verdict(
        "memory of an idle hijacked stream",
        got,
        "< 64 KiB",
        each < 64 << 10,
    ))
}

fn resident(bed: &mut Testbed) -> Result<u64> {
    let pid = bed.serve().context("no control plane")?.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .context("no VmRSS")?;
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .context("no number")?
        .parse()?;
    Ok(kib * 1024)
}
