//! From a stopped builder to `/_ping` through the gateway, against dockerd's own start on this machine.

use super::super::farm::Farm;
use super::super::{Bar, Case, Contender, Run, Sample, Unit};
use super::bare::{BareDocker, Containerd};
use crate::testbed::wait_for;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

const ALONE: &str = "dockerd alone, which starts its containerd";
const SIDE: &str = "containerd, and dockerd once it listens";
const OURS: &str = "stopped builder, through the gateway";

/// Starts of the same image's dockerd, without a machine around it, and of our builder.
pub(super) fn stopped_to_ping(farm: &Farm, run: &mut Run) -> Result<()> {
    let bare = BareDocker::prepare(&farm.bed.dir().join("bare"))?;
    let start = |containerd| bare.start_to_ping(containerd).map(Sample::seconds);
    run.case(Case {
        name: "wake",
        title: "From stopped to the first answer".to_owned(),
        input: "GET /_ping; the builder has a cache volume and no machine".to_owned(),
        unit: Unit::Seconds,
        rounds: run.choice.size(3, 9),
        contenders: vec![
            Contender::peer(ALONE, |_| start(Containerd::ByDockerd)),
            Contender::peer(SIDE, |_| start(Containerd::First)),
            Contender::ours(OURS, |_| wake(farm).map(Sample::seconds)),
        ],
        bars: vec![Bar::within(OURS, ALONE, 1.5), Bar::within(OURS, SIDE, 1.5)],
        size_reference: None,
    })
}

fn wake(farm: &Farm) -> Result<Duration> {
    let bed = &farm.bed;
    bed.slipway_ok(&["builders", "stop", "--org", "acme"])?;
    wait_for("the builder's end", Duration::from_secs(60), || {
        let list = bed.slipway_json(&["builders", "list", "--org", "acme", "--json"])?;
        let state = list[0]["state"].as_str().unwrap_or("").to_lowercase();
        ensure!(state == "stopped", "it is {state}");
        Ok(())
    })?;
    let mut through = farm.gateway()?;
    let begin = Instant::now();
    let (status, _) = through.get("/_ping")?;
    let took = begin.elapsed();
    ensure!(status == 200, "/_ping answered {status}");
    Ok(took)
}
