//! `compare deploy`: from a build whose steps are all solved to an image that is whole in the registry, export included on both sides.
//!
//! Each run has a layer of its own, made before by a build without output (`type=cacheonly`): what is measured is the same command
//! as a person's, with every step cached and nothing exported, compressed or pushed yet.

mod bench;
mod ways;

use super::push::images;
use super::{Bar, Case, Contender, Run, Unit};
use anyhow::Result;
use bench::Bench;
use ways::{PEERS, Way};

const OURS: [Way; 2] = [Way::Slipway, Way::SlipwayZstd];

/// Runs the cases that were asked for.
pub(super) fn run(run: &mut Run) -> Result<()> {
    if !run.choice.wants("solved-to-pushed") {
        return Ok(());
    }
    let bench = Bench::start(images::root_bytes(run.choice.quick))?;
    bench.note_versions(run);
    let bench = &bench;
    let contender = |way: Way| {
        let work = move |round| bench.run(way, round);
        if way.is_ours() {
            Contender::ours(way.name(), work)
        } else {
            Contender::peer(way.name(), work)
        }
    };
    run.case(Case {
        name: "solved-to-pushed",
        title: "From solved build to pushed image".to_owned(),
        input: format!(
            "A new layer of {:.0} MB in {} files of a Debian root, made by RUN; every step cached, nothing exported; empty registry",
            bench.bytes as f64 / 1e6,
            bench.files
        ),
        unit: Unit::Seconds,
        rounds: run.choice.size(1, 3),
        contenders: OURS.into_iter().chain(PEERS).map(contender).collect(),
        bars: vec![
            Bar::times(Way::Slipway.name(), Way::BuildxGzip.name(), 4.0),
            Bar::times(Way::SlipwayZstd.name(), Way::BuildxZstd.name(), 2.0),
        ],
        size_reference: Some(Way::BuildxGzip.name()),
    })
}
