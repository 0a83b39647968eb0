//! Memory of `slipwayd serve`: idle, and for each idle hijacked stream.

use super::super::farm::Farm;
use super::super::{Bar, Case, Contender, Run, Sample, Unit};
use anyhow::Result;

const SERVE: &str = "slipway serve";

/// Resident memory of the control plane with nothing to do.
pub(super) fn idle(farm: &Farm, run: &mut Run) -> Result<()> {
    let sample = |_| {
        Ok(Sample {
            value: farm.bed.serve_memory()? as f64,
            ..Sample::default()
        })
    };
    case(
        run,
        "memory-idle",
        "Memory of an idle control plane",
        "One org, one builder that runs",
        1,
        f64::from(40 << 20),
        &sample,
    )
}

/// Streams of `POST /session`, opened and left alone.
pub(super) fn hijacked_stream(farm: &Farm, run: &mut Run) -> Result<()> {
    let count = run.choice.size(100, 400);
    let sample = |_| {
        let before = farm.bed.serve_memory()?;
        let mut streams = Vec::new();
        for _ in 0..count {
            let mut stream = farm.gateway()?;
            stream.session()?;
            streams.push(stream);
        }
        let grown = farm.bed.serve_memory()?.saturating_sub(before);
        Ok(Sample {
            value: grown as f64 / f64::from(count),
            ..Sample::default()
        })
    };
    let input =
        format!("{count} sessions opened and left alone, in a process that has just started");
    case(
        run,
        "memory-stream",
        "Memory of an idle hijacked stream",
        &input,
        1,
        f64::from(64 << 10),
        &sample,
    )
}

fn case(
    run: &mut Run,
    name: &'static str,
    title: &str,
    input: &str,
    rounds: usize,
    most: f64,
    sample: &dyn Fn(usize) -> Result<Sample>,
) -> Result<()> {
    run.case(Case {
        name,
        title: title.to_owned(),
        input: input.to_owned(),
        unit: Unit::Bytes,
        rounds,
        contenders: vec![Contender::ours(SERVE, sample)],
        bars: vec![Bar::most(SERVE, most)],
        size_reference: None,
    })
}
