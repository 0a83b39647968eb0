//! `compare gateway`: the same requests to a dockerd through our gateway, through haproxy and nginx as TLS proxies, and through
//! dockerd's own TLS.
//!
//! All but the last end at the same dockerd, that of a builder. dockerd's own TLS is a second dockerd of the same image: a
//! builder's listens on no address. Ours alone looks at who asks and at what is asked.

mod proxies;

use super::farm::{Farm, program_version};
use super::load::{percentile, requests};
use super::{Bar, Case, Contender, Run, Sample, Unit};
use crate::testbed::Connection;
use anyhow::{Result, ensure};
use proxies::Proxies;
use serde_json::json;
use std::time::Instant;

const OURS: &str = "slipway serve";
const PEERS: [&str; 3] = ["haproxy", "nginx", "dockerd's own TLS"];
/// What is asked for as a large answer.
const LARGE: &str = "/containers/large/archive?path=/large";

/// Runs the cases that were asked for.
pub(super) fn run(run: &mut Run) -> Result<()> {
    let small = [
        ("request-p50", 1, 50),
        ("request-p99", 1, 99),
        ("request-16-p50", 16, 50),
        ("request-16-p99", 16, 99),
    ];
    let large = [("stream", 1), ("stream-16", 16)];
    let names = small.iter().map(|(name, ..)| *name);
    let mut names = names.chain(large.iter().map(|(name, _)| *name));
    if !names.any(|name| run.choice.wants(name)) {
        return Ok(());
    }
    let farm = Farm::start(run)?;
    run.version("haproxy", program_version("haproxy", "-v"));
    run.version("nginx", nginx_version());
    let proxies = Proxies::start(&farm.bed.dir().join("proxies"), &farm.bed.machine_socket()?)?;
    let ways = Ways { farm, proxies };
    for (name, connections, percent) in small {
        if run.choice.wants(name) {
            ways.small(run, name, connections, percent)?;
        }
    }
    for (name, connections) in large {
        if run.choice.wants(name) {
            ways.large(run, name, connections)?;
        }
    }
    Ok(())
}

struct Ways {
    // Dropped in this order.
    proxies: Proxies,
    farm: Farm,
}

impl Ways {
    fn open(&self, way: &str, count: usize) -> Result<Vec<Connection>> {
        let one = || match way {
            OURS => self.farm.gateway(),
            peer => self.proxies.connect(peer),
        };
        (0..count).map(|_| one()).collect()
    }

    fn contenders<'a>(
        &'a self,
        connections: usize,
        sample: impl Fn(&mut [Connection]) -> Result<Sample> + Copy + 'a,
    ) -> Vec<Contender<'a>> {
        let names = [OURS].into_iter().chain(PEERS);
        let contender = |name: &'static str| {
            let mut open = None;
            let work = move |_| {
                let kept = match open.take() {
                    Some(kept) => kept,
                    None => self.open(name, connections)?,
                };
                sample(open.insert(kept))
            };
            match self.proxies.absent(name) {
                Some(why) => Contender::absent(name, why),
                None if name == OURS => Contender::ours(name, work),
                None => Contender::peer(name, work),
            }
        };
        names.map(contender).collect()
    }

    fn small(
        &self,
        run: &mut Run,
        name: &'static str,
        connections: usize,
        percent: usize,
    ) -> Result<()> {
        let count = 1600 / connections;
        let rounds = run.choice.size(3, 9);
        run.case(Case {
            name,
            title: format!("Small request, percentile {percent}, {connections} at a time"),
            input: format!("GET /_ping, {count} times on each kept TLS connection a run"),
            unit: Unit::Seconds,
            rounds,
            contenders: self.contenders(connections, move |open| {
                let times = requests(open, "/_ping", count)?;
                Ok(Sample::seconds(percentile(&times, percent)))
            }),
            bars: Vec::new(),
            size_reference: None,
        })
    }

    fn large(&self, run: &mut Run, name: &'static str, connections: usize) -> Result<()> {
        let bytes: u64 = run.choice.size(32 << 20, 256 << 20) / connections as u64;
        make_large(&mut self.farm.direct()?, bytes)?;
        if self.proxies.absent(PEERS[2]).is_none() {
            make_large(&mut self.proxies.connect(PEERS[2])?, bytes)?;
        }
        run.case(Case {
            name,
            title: format!("Large answers, {connections} at a time"),
            input: format!(
                "A file of {} MiB out of a container on each TLS connection",
                bytes >> 20
            ),
            unit: Unit::Seconds,
            rounds: run.choice.size(1, 5),
            contenders: self.contenders(connections, |open| {
                let begin = Instant::now();
                requests(open, LARGE, 1)?;
                Ok(Sample::seconds(begin.elapsed()))
            }),
            bars: vec![Bar::within(OURS, PEERS[2], 1.5)],
            size_reference: None,
        })
    }
}

/// A container, never started, that holds one large file. The image has nothing else.
fn make_large(connection: &mut Connection, bytes: u64) -> Result<()> {
    let name = "large";
    // What an earlier case made.
    connection.delete(&format!("/containers/{name}?force=1"))?;
    let header = super::archive::header("large", bytes);
    let length = 512 + bytes.next_multiple_of(512) + 1024;
    let status = connection.post("/images/create?fromSrc=-&repo=large", length, |out| {
        out.write_all(&header)?;
        super::archive::noise(out, bytes)?;
        out.write_all(&[0; 1024])
    })?;
    ensure!(status == 200, "the image is refused: {status}");
    let wanted = json!({ "Image": "large", "Cmd": ["/large"] });
    let (status, told) =
        connection.post_json(&format!("/containers/create?name={name}"), &wanted)?;
    ensure!(status == 201, "{told}");
    Ok(())
}

/// nginx tells its version on stderr.
fn nginx_version() -> Option<String> {
    let output = std::process::Command::new("nginx")
        .arg("-v")
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(text.rsplit_once('/')?.1.trim().to_owned())
}
