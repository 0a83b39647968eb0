//! Small requests: what the gateway adds to one on a kept connection.

use super::super::farm::Farm;
use super::super::load::{percentile, requests};
use super::super::{Bar, Case, Contender, Run, Sample, Unit};
use crate::testbed::Connection;
use anyhow::Result;

const DIRECT: &str = "the builder's own socket";
const GATEWAY: &str = "through the gateway";

/// One after the other.
pub(super) fn one_connection(farm: &Farm, run: &mut Run) -> Result<()> {
    let bar = Bar::added(GATEWAY, DIRECT, 0.001);
    case(farm, run, "request", 1, 500, vec![bar])
}

/// Sixteen at a time; clients, gateway and dockerd share the processors.
pub(super) fn sixteen_connections(farm: &Farm, run: &mut Run) -> Result<()> {
    case(farm, run, "request-16", 16, 100, Vec::new())
}

fn case(
    farm: &Farm,
    run: &mut Run,
    name: &'static str,
    connections: usize,
    count: usize,
    bars: Vec<Bar>,
) -> Result<()> {
    let open = |through: fn(&Farm) -> Result<Connection>| {
        (0..connections)
            .map(|_| through(farm))
            .collect::<Result<Vec<_>>>()
    };
    let (mut direct, mut gateway) = (open(Farm::direct)?, open(Farm::gateway)?);
    for one in [&mut direct, &mut gateway] {
        requests(one, "/_ping", 20)?;
    }
    let p99 = |connections: &mut Vec<Connection>| {
        let times = requests(connections, "/_ping", count)?;
        Ok(Sample::seconds(percentile(&times, 99)))
    };
    run.case(Case {
        name,
        title: format!("Small request, 99th percentile, {connections} at a time"),
        input: format!("GET /_ping, {count} times on each kept connection a run"),
        unit: Unit::Seconds,
        rounds: run.choice.size(3, 9),
        contenders: vec![
            Contender::peer(DIRECT, |_| p99(&mut direct)),
            Contender::ours(GATEWAY, |_| p99(&mut gateway)),
        ],
        bars,
        size_reference: None,
    })
}
