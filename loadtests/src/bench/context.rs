//! A large build context sent the classic way (`POST /build` with a tar), straight and through the gateway.

use super::figures::{Times, Verdict};
use super::http::Connection;
use crate::testbed::Testbed;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

const ROUNDS: usize = 3;

/// One file of `bytes`, three times each way, interleaved.
pub(super) fn large(bed: &Testbed, bytes: u64) -> Result<Verdict> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        a.push(send(
            &mut Connection::direct(&super::machine_socket(bed)?)?,
            bytes,
        )?);
        b.push(send(&mut super::gateway(bed)?, bytes)?);
    }
    let (a, b) = (Times::new(a), Times::new(b));
    super::outln(&format!("  context direct:  {a}\n  context gateway: {b}"));
    let share = a.median().as_secs_f64() / b.median().as_secs_f64();
    let got = format!("{:.0}% of direct", share * 100.0);
    Ok(super::verdict(
        "1 GiB build context through the gateway",
        got,
        ">= 80%",
        share >= 0.8,
    ))
}

fn send(connection: &mut Connection, bytes: u64) -> Result<Duration> {
    let dockerfile = b"FROM scratch\nCOPY Dockerfile /\n";
    let length = 512 + 512 + 512 + bytes + 1024;
    let block: Vec<u8> = (0..1u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let begin = Instant::now();
    let (status, _) = connection.post("/v1.41/build?version=1&rm=1&q=1", length, |out| {
        out.write_all(&tar_header("Dockerfile", dockerfile.len() as u64))?;
        let mut padded = [0u8; 512];
        padded[..dockerfile.len()].copy_from_slice(dockerfile);
        out.write_all(&padded)?;
        out.write_all(&tar_header("large", bytes))?;
        let mut left = bytes;
        while left > 0 {
            let part = left.min(block.len() as u64);
            out.write_all(&block[..usize::try_from(part).unwrap_or(block.len())])?;
            left -= part;
        }
        out.write_all(&[0; 1024])
    })?;
    let took = begin.elapsed();
    ensure!(status == 200, "POST /build answered {status}");
    Ok(took)
}

/// A ustar header (POSIX.1-1988) of a regular file.
fn tar_header(name: &str, size: u64) -> [u8; 512] {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    let size = format!("{size:011o}\0");
    header[124..136].copy_from_slice(size.as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    header[148..156].copy_from_slice(sum.as_bytes());
    header
}
