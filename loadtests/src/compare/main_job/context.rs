//! A large build context sent the classic way (`POST /build` with a tar), straight and through the gateway.

use super::super::archive;
use super::super::farm::Farm;
use super::super::{Bar, Case, Contender, Run, Sample, Unit};
use crate::testbed::Connection;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

const DIRECT: &str = "the builder's own socket";
const GATEWAY: &str = "through the gateway";

/// One large file.
pub(super) fn large(farm: &Farm, run: &mut Run) -> Result<()> {
    let bytes: u64 = run.choice.size(128 << 20, 1 << 30);
    run.case(Case {
        name: "context",
        title: "Large build context".to_owned(),
        input: format!("POST /build with a tar of one file of {} MiB", bytes >> 20),
        unit: Unit::Seconds,
        rounds: 3,
        contenders: vec![
            Contender::peer(DIRECT, |_| {
                send(&mut farm.direct()?, bytes).map(Sample::seconds)
            }),
            Contender::ours(GATEWAY, |_| {
                send(&mut farm.gateway()?, bytes).map(Sample::seconds)
            }),
        ],
        // At least 80 % of the speed.
        bars: vec![Bar::within(GATEWAY, DIRECT, 1.25)],
        size_reference: None,
    })
}

fn send(connection: &mut Connection, bytes: u64) -> Result<Duration> {
    let dockerfile = b"FROM scratch\nCOPY Dockerfile /\n";
    let mut padded = [0u8; 512];
    padded[..dockerfile.len()].copy_from_slice(dockerfile);
    let length = 512 + 512 + 512 + bytes + 1024;
    let begin = Instant::now();
    let status = connection.post("/v1.41/build?version=1&rm=1&q=1", length, |out| {
        out.write_all(&archive::header("Dockerfile", dockerfile.len() as u64))?;
        out.write_all(&padded)?;
        out.write_all(&archive::header("large", bytes))?;
        archive::noise(out, bytes)?;
        out.write_all(&[0; 1024])
    })?;
    let took = begin.elapsed();
    ensure!(status == 200, "POST /build answered {status}");
    Ok(took)
}
