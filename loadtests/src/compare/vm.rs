//! `compare vm`: builders as virtual machines: how fast one is there, from nothing and paused, what its process takes on the host beyond its
//! memory, how fast it writes to its volume. On whatever virtual machines run here, which is said; an emulated processor has no bars.

use super::{Bar, Case, Contender, Run, Sample, Unit};
use crate::testbed::{Connection, DockerClient, Testbed, show, wait_for};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// An emulated processor on a busy computer may need that long.
const WAIT: Duration = Duration::from_secs(180);
const OURS: &str = "builder, a virtual machine";
const HOST: &str = "the host, where volumes lie";

type Measure = fn(&Farm, &mut Run) -> Result<()>;

/// Runs the cases that were asked for, on a farm of its own.
pub(super) fn run(run: &mut Run) -> Result<()> {
    const CASES: [(&str, Measure); 4] = [
        ("vm-power-on", power_on),
        ("vm-resume", resume),
        ("vm-memory", memory),
        ("vm-writes", writes),
    ];
    if !CASES.iter().any(|(name, _)| run.choice.wants(name)) {
        return Ok(());
    }
    let bed = Testbed::start_with("isolation = \"vm\"\npause_after_s = 2\n")?;
    bed.registry.seed(&["busybox"])?;
    bed.slipway_ok(&["orgs", "update", "acme", "--memory", "2GiB"])?;
    let emulated = bed.slipway_ok(&["status"])?.contains("emulated");
    let token = bed.org_token("acme")?;
    run.version("Slipway", Some(env!("CARGO_PKG_VERSION").to_owned()));
    let farm = Farm {
        bed,
        token,
        emulated,
    };
    for (name, case) in CASES {
        if run.choice.wants(name) {
            case(&farm, run)?;
        }
    }
    Ok(())
}

struct Farm {
    bed: Testbed,
    token: String,
    emulated: bool,
}

impl Farm {
    fn ping(&self) -> Result<Duration> {
        let address = self.bed.address("docker")?;
        let mut through = Connection::tls(&address, &self.bed.ca(), Some(&self.token))?;
        let begin = Instant::now();
        let (status, _) = through.get("/_ping")?;
        let took = begin.elapsed();
        ensure!(status == 200, "/_ping answered {status}");
        Ok(took)
    }

    /// A case of ours alone, with a bar unless the processor is emulated.
    fn case(
        &self,
        run: &mut Run,
        (name, title, unit): (&'static str, &str, Unit),
        rounds: usize,
        bar: Bar,
        contenders: Vec<Contender<'_>>,
    ) -> Result<()> {
        let runs_on = if self.emulated {
            "Emulated, TCG"
        } else {
            "KVM"
        };
        run.case(Case {
            name,
            title: format!("Virtual machine: {title}"),
            input: runs_on.to_owned(),
            unit,
            rounds,
            contenders,
            bars: if self.emulated { Vec::new() } else { vec![bar] },
            size_reference: None,
        })
    }
}

/// From nothing to `/_ping` through the gateway.
fn power_on(farm: &Farm, run: &mut Run) -> Result<()> {
    let bed = &farm.bed;
    let sample = |_| {
        bed.slipway_ok(&["builders", "ensure", "--org", "acme"])?;
        bed.slipway_ok(&["builders", "stop", "--org", "acme"])?;
        wait_for("the builder's end", WAIT, || {
            let list = bed.slipway_json(&["builders", "list", "--org", "acme", "--json"])?;
            let state = list[0]["state"].as_str().unwrap_or("").to_lowercase();
            ensure!(state == "stopped", "it is {state}");
            Ok(())
        })?;
        farm.ping().map(Sample::seconds)
    };
    let what = ("vm-power-on", "power-on to /_ping", Unit::Seconds);
    let rounds = run.choice.size(1, 3);
    let ours = vec![Contender::ours(OURS, sample)];
    farm.case(run, what, rounds, Bar::most(OURS, 1.5), ours)
}

/// From paused to `/_ping` through the gateway.
fn resume(farm: &Farm, run: &mut Run) -> Result<()> {
    let log = farm.bed.dir().join("host.log");
    let pauses = || -> Result<usize> {
        let text = std::fs::read_to_string(&log)?;
        Ok(text.matches("paused: nobody uses it").count())
    };
    farm.ping()?;
    // It was used a moment ago.
    let mut seen = pauses()?;
    let sample = |_| {
        seen = wait_for("a pause", WAIT, || {
            let now = pauses()?;
            ensure!(now > seen, "it runs");
            Ok(now)
        })?;
        farm.ping().map(Sample::seconds)
    };
    let what = ("vm-resume", "paused to /_ping", Unit::Seconds);
    let rounds = run.choice.size(3, 9);
    let ours = vec![Contender::ours(OURS, sample)];
    farm.case(run, what, rounds, Bar::most(OURS, 0.15), ours)
}

/// Memory of QEMU that is not the guest's: everything but its largest mapping.
fn memory(farm: &Farm, run: &mut Run) -> Result<()> {
    farm.ping()?;
    let sample = |_| {
        Ok(Sample {
            value: overhead(&farm.bed)? as f64,
            ..Sample::default()
        })
    };
    let what = (
        "vm-memory",
        "memory of QEMU beyond the guest's",
        Unit::Bytes,
    );
    let ours = vec![Contender::ours(OURS, sample)];
    farm.case(run, what, 1, Bar::most(OURS, (64 * MIB) as f64), ours)
}

fn overhead(bed: &Testbed) -> Result<u64> {
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
    Ok(resident.iter().sum::<u64>() - guest)
}

/// Sequential writes, flushed at the end: in a container on the volume, and on the host where the volumes lie. By the same shell, which
/// tells the time, since Debian's busybox says nothing of it with `dd`.
fn writes(farm: &Farm, run: &mut Run) -> Result<()> {
    let client = DockerClient::of_farm(&farm.bed)?;
    let script = |path: &str| {
        format!("time busybox dd if=/dev/zero of={path} bs=1M count=256 conv=fsync 2>&1")
    };
    let guest = |script: &str| {
        let run = ["run", "--rm", "busybox:latest", "busybox", "sh", "-c"];
        let mut command = client.command("docker", &run);
        said(command.arg(script))
    };
    // Once before, so that pulling the image is not measured.
    guest("true")?;
    let file = farm.bed.dir().join("pool/bench");
    let sample = |value| {
        Ok(Sample {
            value,
            ..Sample::default()
        })
    };
    let inside = |_| sample(seconds(&guest(&script("/x"))?)?);
    let outside = |_| {
        let script = script(&file.display().to_string());
        let told = said(Command::new("busybox").args(["sh", "-c", &script]));
        std::fs::remove_file(&file)?;
        sample(seconds(&told?)?)
    };
    let what = ("vm-writes", "256 MiB written to the volume", Unit::Seconds);
    // At least 0.7 of the host's speed.
    let bar = Bar::within(OURS, HOST, 1.0 / 0.7);
    let both = vec![
        Contender::ours(OURS, inside),
        Contender::peer(HOST, outside),
    ];
    farm.case(run, what, 1, bar, both)
}

/// Both outputs of a command that must end well: shells tell times on the second.
fn said(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{}", show(&output));
    let both = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&both).into_owned())
}

/// From busybox's `time`: `real\t0m 1.25s`.
fn seconds(said: &str) -> Result<f64> {
    let line = said.lines().find_map(|line| line.strip_prefix("real"));
    let told = line.with_context(|| format!("no time in: {said}"))?;
    let (minutes, seconds) = told.split_once('m').context("no minutes")?;
    let seconds = seconds.trim().trim_end_matches('s');
    Ok(minutes.trim().parse::<f64>()? * 60.0 + seconds.parse::<f64>()?)
}

fn machine_dir(bed: &Testbed) -> Result<PathBuf> {
    let machines = bed.dir().join("host/machines");
    let first = std::fs::read_dir(&machines)?.next();
    Ok(first.context("no machine")??.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_busybox_tells_of_time() {
        let mut shell = Command::new("busybox");
        let told = said(shell.args(["sh", "-c", "time busybox sleep 0.1"])).unwrap();
        assert!((0.1..10.0).contains(&seconds(&told).unwrap()), "{told}");
        assert_eq!(seconds("real\t2m 3.25s\nuser\t0m 0.00s\n").unwrap(), 123.25);
        assert!(seconds("1+0 records out\n").is_err());
    }
}
