//! Many connections at once through the gateway: small requests, answers that go on, hijacked streams. Nothing fails, and the
//! control plane's memory stays as it was once all of them are there.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use slipway_loadtests::testbed::{Connection, Testbed, wait_for};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

const SMALL: usize = 120;
const FOLLOWED: usize = 40;
const HIJACKED: usize = 40;
/// What each connection has got on average when all are there and every buffer has grown to what it needs.
const SETTLED: u64 = 100;
/// What each has got on average at the end.
const LASTS: u64 = 180;
/// Noise of an allocator.
const GROWTH_MAX: u64 = 4 << 20;

/// Where the gateway is, and the way in.
struct Gateway {
    address: String,
    ca: PathBuf,
    token: String,
    container: String,
    over: AtomicBool,
    /// Connections that have got something.
    there: AtomicUsize,
    small: AtomicU64,
    chunks: AtomicU64,
    echoes: AtomicU64,
}

impl Gateway {
    fn connect(&self) -> Result<Connection> {
        Connection::tls(&self.address, &self.ca, Some(&self.token))
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Counts what one connection has got, which is its `nth`.
    fn count(&self, what: &AtomicU64, nth: u64) {
        what.fetch_add(1, Ordering::Relaxed);
        if nth == 0 {
            self.there.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until every connection has got something, and each so much on average. Ends early when `gone` says that one has
    /// failed.
    fn wait(&self, each: u64, gone: impl Fn() -> bool) -> Result<()> {
        wait_for("all connections to go on", Duration::from_secs(60), || {
            let kinds = [
                ("small requests", &self.small, SMALL),
                ("chunks", &self.chunks, FOLLOWED),
                ("echoes", &self.echoes, HIJACKED),
            ];
            let there = self.there.load(Ordering::Relaxed);
            if gone() {
                return Ok(());
            }
            ensure!(there == SMALL + FOLLOWED + HIJACKED, "{there} are there");
            for (what, count, connections) in kinds {
                let count = count.load(Ordering::Relaxed);
                ensure!(count >= connections as u64 * each, "only {count} {what}");
            }
            Ok(())
        })
    }

    fn small_requests(&self, nth: usize) -> Result<()> {
        let mut connection = self.connect()?;
        let paths = ["/_ping", "/v1.45/version", "/v1.45/containers/json"];
        for (got, path) in (0..).zip(paths.iter().cycle().skip(nth)) {
            if self.is_over() {
                return Ok(());
            }
            let (status, _) = connection.get(path)?;
            ensure!(status == 200, "{path}: {status}");
            self.count(&self.small, got);
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn followed(&self) -> Result<()> {
        let mut connection = self.connect()?;
        let container = &self.container;
        connection.follow(&format!(
            "/v1.45/containers/{container}/logs?follow=1&stdout=1&tail=1"
        ))?;
        for got in 0.. {
            if self.is_over() {
                break;
            }
            ensure!(connection.next_chunk()? > 0, "the log has ended");
            self.count(&self.chunks, got);
        }
        Ok(())
    }

    fn hijacked(&self) -> Result<()> {
        let container = &self.container;
        let cat = json!({ "Cmd": ["cat"], "AttachStdin": true, "AttachStdout": true, "Tty": true });
        let path = format!("/v1.45/containers/{container}/exec");
        let (status, made) = self.connect()?.post_json(&path, &cat)?;
        ensure!(status == 201, "{made}");
        let made: Value = serde_json::from_str(&made)?;
        let mut stream = self.connect()?;
        stream.start_exec(made["Id"].as_str().context("no id")?)?;
        for number in 0_u64.. {
            if self.is_over() {
                break;
            }
            // The terminal echoes the line, and cat writes it once more.
            let line = format!("line {number}\n");
            stream.write_all(line.as_bytes())?;
            stream.flush()?;
            let expected = format!("line {number}\r\n").repeat(2);
            let mut got = vec![0; expected.len()];
            stream.read_exact(&mut got)?;
            ensure!(
                got == expected.as_bytes(),
                "{}",
                String::from_utf8_lossy(&got)
            );
            self.count(&self.echoes, number);
            std::thread::sleep(Duration::from_millis(100));
        }
        // The end of a terminal's input: cat ends, and with it the stream.
        stream.write_all(&[4])?;
        stream.flush()?;
        stream
            .read_to_end(&mut Vec::new())
            .map(drop)
            .or_else(|error| {
                // A connection may end without TLS's goodbye; it may not end in any other way.
                ensure!(error.kind() == std::io::ErrorKind::UnexpectedEof, "{error}");
                Ok(())
            })
    }
}

#[test]
fn two_hundred_connections_and_a_flat_memory() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["debian"])?;
    let mut gateway = Gateway {
        address: bed.address("docker")?,
        ca: bed.ca(),
        token: bed.org_token("acme")?,
        container: String::new(),
        over: AtomicBool::new(false),
        there: AtomicUsize::new(0),
        small: AtomicU64::new(0),
        chunks: AtomicU64::new(0),
        echoes: AtomicU64::new(0),
    };
    gateway.container = talker(&gateway)?;
    let gateway = gateway;
    let (settled, end) = std::thread::scope(|scope| {
        let mut all = Vec::new();
        for nth in 0..SMALL.max(FOLLOWED).max(HIJACKED) {
            let one = &gateway;
            if nth < SMALL {
                all.push(scope.spawn(move || one.small_requests(nth)));
            }
            if nth < FOLLOWED {
                all.push(scope.spawn(move || one.followed()));
            }
            if nth < HIJACKED {
                all.push(scope.spawn(move || one.hijacked()));
            }
        }
        // One that has ended before its time has failed.
        let one_failed = || all.iter().any(ScopedJoinHandle::is_finished);
        let settled = gateway
            .wait(SETTLED, one_failed)
            .and_then(|()| bed.serve_memory());
        let end = gateway
            .wait(LASTS, one_failed)
            .and_then(|()| bed.serve_memory());
        gateway.over.store(true, Ordering::Relaxed);
        for one in all {
            match one.join() {
                Ok(done) => done?,
                Err(_) => anyhow::bail!("a client panicked"),
            }
        }
        Ok((settled?, end?))
    })?;
    ensure!(
        end < settled + GROWTH_MAX,
        "memory grew: {settled} to {end}"
    );
    println!("memory: {settled} bytes when settled, {end} at the end");
    wait_for("no connection is left", Duration::from_secs(10), || {
        let list = bed.slipway_json(&["builders", "list", "--org", "acme", "--json"])?;
        ensure!(list[0]["connections"] == 0, "{}", list[0]["connections"]);
        Ok(())
    })
}

/// A container that says something now and then, and has a `cat`. Gives its id.
fn talker(gateway: &Gateway) -> Result<String> {
    let mut connection = gateway.connect()?;
    let (status, told) = connection.post_json(
        "/v1.45/images/create?fromImage=debian&tag=trixie",
        &json!({}),
    )?;
    ensure!(status == 200, "{told}");
    let talk = "while :; do echo talk; sleep 0.1; done";
    let wanted = json!({ "Image": "debian:trixie", "Cmd": ["sh", "-c", talk] });
    let (status, made) = connection.post_json("/v1.45/containers/create", &wanted)?;
    ensure!(status == 201, "{made}");
    let made: Value = serde_json::from_str(&made)?;
    let id = made["Id"].as_str().context("no id")?.to_owned();
    let (status, told) =
        connection.post_json(&format!("/v1.45/containers/{id}/start"), &json!({}))?;
    ensure!(status == 204, "{told}");
    Ok(id)
}
