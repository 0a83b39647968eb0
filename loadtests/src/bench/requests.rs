//! Small requests: what the gateway adds to one on a kept connection.

use super::figures::{Times, Verdict};
use super::http::Connection;
use crate::testbed::Testbed;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

const BATCH: usize = 50;

/// `GET /_ping`, `n` times each way, in alternating batches.
pub(super) fn small(bed: &Testbed, n: usize) -> Result<Verdict> {
    let mut direct = Connection::direct(&super::machine_socket(bed)?)?;
    let mut through = super::gateway(bed)?;
    batch(&mut direct)?;
    batch(&mut through)?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    while a.len() < n {
        a.extend(batch(&mut direct)?);
        b.extend(batch(&mut through)?);
    }
    let (a, b) = (Times::new(a), Times::new(b));
    super::outln(&format!("  /_ping direct:  {a}\n  /_ping gateway: {b}"));
    let added = b.percentile(99).saturating_sub(a.percentile(99));
    Ok(super::verdict(
        "small request, added p99",
        format!("{:.3} ms", added.as_secs_f64() * 1000.0),
        "<= 1 ms",
        added <= Duration::from_millis(1),
    ))
}

fn batch(connection: &mut Connection) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(BATCH);
    for _ in 0..BATCH {
        let begin = Instant::now();
        let (status, _) = connection.get("/_ping")?;
        times.push(begin.elapsed());
        ensure!(status == 200, "/_ping answered {status}");
    }
    Ok(times)
}
