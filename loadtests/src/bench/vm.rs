//! Builders as virtual machines: how fast one is there, from nothing and paused, what its process takes on the host beyond its memory, how fast it
//! writes to its volume. On whatever virtual machines run here, which is said.

use super::figures::{Times, Verdict};
use crate::testbed::{DockerClient, Testbed, wait_for};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// An emulated processor on a busy computer may need that long.
const WAIT: Duration = Duration::from_secs(180);

/// All of it, on a farm of its own.
pub(super) fn all(rounds: usize) -> Result<Vec<Verdict>> {
    let bed = Testbed::start_with("isolation = \"vm\"\npause_after_s = 2\n")?;
    bed.registry.seed(&["busybox"])?;
    bed.slipway_ok(&["orgs", "update", "acme", "--memory", "2GiB"])?;
    let emulated = bed.slipway_ok(&["status"])?.contains("emulated");
    let runs_on = if emulated { "emulated, TCG" } else { "KVM" };
    super::outln(&format!("virtual machines ({runs_on}):"));
    let client = DockerClient::of_farm(&bed)?;
    Ok(vec![
        power_on(&bed, rounds, emulated)?,
        resume(&bed, rounds * 3, emulated)?,
        overhead(&bed, emulated)?,
        writes(&bed, &client, emulated)?,
    ])
}

/// From nothing to `/_ping` through the gateway.
fn power_on(bed: &Testbed, rounds: usize, emulated: bool) -> Result<Verdict> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let mut through = super::gateway(bed)?;
        let begin = Instant::now();
        let (status, _) = through.get("/_ping")?;
        times.push(begin.elapsed());
        ensure!(status == 200, "/_ping answered {status}");
        drop(through);
        if times.len() == rounds {
            break;
        }
        bed.slipway_ok(&["builders", "stop", "--org", "acme"])?;
        wait_for("the builder's end", WAIT, || {
            let list = bed.slipway_json(&["builders", "list", "--org", "acme", "--json"])?;
            let state = list[0]["state"].as_str().unwrap_or("").to_lowercase();
            ensure!(state == "stopped", "it is {state}");
            Ok(())
        })?;
    }
    let times = Times::new(times);
    super::outln(&format!("  power-on to /_ping: {times}"));
    let median = times.median();
    let holds = emulated || median <= Duration::from_millis(1500);
    let got = format!("{:.2} s", median.as_secs_f64());
    Ok(super::verdict(
        "virtual machine: power-on to /_ping",
        got,
        bar(emulated, "<= 1.5 s"),
        holds,
    ))
}

/// From paused to `/_ping` through the gateway.
fn resume(bed: &Testbed, rounds: usize, emulated: bool) -> Result<Verdict> {
    let log = bed.dir().join("host.log");
    let pauses = || -> Result<usize> {
        let text = std::fs::read_to_string(&log)?;
        Ok(text.matches("paused: nobody uses it").count())
    };
    let mut times = Vec::new();
    // It was used a moment ago.
    let mut seen = pauses()?;
    for _ in 0..rounds {
        seen = wait_for("a pause", WAIT, || {
            let now = pauses()?;
            ensure!(now > seen, "it runs");
            Ok(now)
        })?;
        let mut through = super::gateway(bed)?;
        let begin = Instant::now();
        let (status, _) = through.get("/_ping")?;
        times.push(begin.elapsed());
        ensure!(status == 200, "/_ping answered {status}");
    }
    let times = Times::new(times);
    super::outln(&format!("  paused to /_ping: {times}"));
    let median = times.median();
    let got = format!("{} ms", median.as_millis());
    Ok(super::verdict(
        "virtual machine: paused to /_ping",
        got,
        bar(emulated, "<= 150 ms"),
        emulated || median <= Duration::from_millis(150),
    ))
}

/// Memory of QEMU that is not the guest's: everything but its largest mapping.
fn overhead(bed: &Testbed, emulated: bool) -> Result<Verdict> {
    let record = machine_dir(bed)?.join("record.json");
    let record: Value = serde_json::from_slice(&std::fs::read(record)?)?;
    let pid = &record["phase"]["process"]["pid"];
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let bytes = |name: &str| {
        let lines = maps.lines().filter_map(|line| line.strip_prefix(name));
        lines
            .filter_map(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .map(|kib| kib << 10)
            .collect::<Vec<_>>()
    };
    let (sizes, resident) = (bytes("Size:"), bytes("Pss:"));
    let mappings = sizes.iter().zip(&resident);
    let guest = mappings.max_by_key(|(size, _)| **size);
    let (_, guest) = guest.context("QEMU has no memory")?;
    let beyond = resident.iter().sum::<u64>() - guest;
    let got = format!("{} MiB (guest: {} MiB of 2048)", beyond / MIB, guest / MIB);
    Ok(super::verdict(
        "virtual machine: memory of QEMU beyond the guest's",
        got,
        bar(emulated, "<= 64 MiB"),
        emulated || beyond <= 64 * MIB,
    ))
}

/// Sequential writes, flushed at the end: in a container on the volume, and on the host where the volumes lie.
fn writes(bed: &Testbed, client: &DockerClient, emulated: bool) -> Result<Verdict> {
    let write = |path: &str| format!("dd if=/dev/zero of={path} bs=1M count=256 conv=fsync");
    let script = format!("{} 2>&1", write("/x"));
    // Once before, so that pulling the image is not measured.
    let guest =
        |script: &str| client.docker_ok(&["run", "--rm", "busybox:latest", "sh", "-c", script]);
    guest("true")?;
    let inside = seconds(&guest(&script)?)?;
    let file = bed.dir().join("pool/bench");
    let output = Command::new("busybox")
        .args(write(&file.display().to_string()).split(' '))
        .output()?;
    std::fs::remove_file(&file)?;
    let outside = seconds(&String::from_utf8_lossy(&output.stderr))?;
    let ratio = outside / inside;
    let rate = |seconds: f64| 256.0 / seconds;
    let got = format!(
        "{:.0} MiB/s, {:.2} of the host's {:.0}",
        rate(inside),
        ratio,
        rate(outside)
    );
    Ok(super::verdict(
        "virtual machine: writes to the volume",
        got,
        bar(emulated, ">= 0.7 of the host's"),
        emulated || ratio >= 0.7,
    ))
}

/// From busybox's `dd`: `268435456 bytes (256.0MB) copied, 1.25 seconds, 204.8MB/s`.
fn seconds(said: &str) -> Result<f64> {
    let after = said.split("copied, ").nth(1).context("no figure of dd")?;
    let number = after.split_whitespace().next().context("no number")?;
    number.parse().with_context(|| said.to_owned())
}

fn machine_dir(bed: &Testbed) -> Result<PathBuf> {
    let machines = bed.dir().join("host/machines");
    let first = std::fs::read_dir(&machines)?.next();
    Ok(first.context("no machine")??.path())
}

/// What is printed as the bar.
fn bar(emulated: bool, bar: &'static str) -> &'static str {
    if emulated { "no bar: emulated" } else { bar }
}
