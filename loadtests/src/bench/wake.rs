//! From a stopped builder to `/_ping` through the gateway, against a bare dockerd's own start on this machine.

use super::bare::BareDocker;
use super::figures::{Times, Verdict};
use crate::testbed::{Testbed, wait_for};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

/// Interleaved starts: a bare dockerd of the same image, then our builder from stopped.
pub(super) fn stopped_to_ping(bed: &Testbed, rounds: usize) -> Result<Verdict> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let bare = BareDocker::prepare(&bed.dir().join("bare"))?;
    for _ in 0..rounds {
        bed.slipway_ok(&["builders", "stop", "--org", "acme"])?;
        wait_for("the builder's end", Duration::from_secs(60), || {
            let list = bed.slipway_json(&["builders", "list", "--org", "acme", "--json"])?;
            let state = list[0]["state"].as_str().unwrap_or("").to_lowercase();
            ensure!(state == "stopped", "it is {state}");
            Ok(())
        })?;
        a.push(bare.start_to_ping()?);
        let mut through = super::gateway(bed)?;
        let begin = Instant::now();
        let (status, _) = through.get("/_ping")?;
        b.push(begin.elapsed());
        ensure!(status == 200, "/_ping answered {status}");
    }
    let (a, b) = (Times::new(a), Times::new(b));
    super::outln(&format!(
        "  bare dockerd to /_ping:    {a}\n  stopped builder to /_ping: {b}"
    ));
    let ratio = b.median().as_secs_f64() / a.median().as_secs_f64();
    let got = format!("{ratio:.2}x a bare dockerd");
    Ok(super::verdict(
        "stopped builder to /_ping",
        got,
        "<= 1.5x",
        ratio <= 1.5,
    ))
}
