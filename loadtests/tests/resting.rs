//! A builder that is a virtual machine rests in a whole farm: paused while nobody uses it, there again for the next request, and ended when its
//! idle time is over, which goes on meanwhile. Where the host keeps memory, the next request finds it as it was.

use anyhow::{Result, ensure};
use slipway_loadtests::testbed::{Connection, Testbed, wait_for};
use std::time::Duration;

/// An emulated processor on a busy computer may need that long.
const WAIT: Duration = Duration::from_secs(180);

/// How often a process of the farm has said something. (`slipway builders list` would wake the builder.)
fn said(bed: &Testbed, log: &str, words: &str) -> Result<usize> {
    let log = std::fs::read_to_string(bed.dir().join(log))?;
    Ok(log.matches(words).count())
}

fn ping(bed: &Testbed, token: &str) -> Result<()> {
    let mut through = Connection::tls(&bed.address("docker")?, &bed.ca(), Some(token))?;
    let (status, _) = through.get("/_ping")?;
    ensure!(status == 200, "/_ping answered {status}");
    Ok(())
}

fn paused(bed: &Testbed, times: usize) -> Result<()> {
    wait_for("a pause", WAIT, || {
        let pauses = said(bed, "host.log", "paused: nobody uses it")?;
        ensure!(pauses == times, "paused {pauses} times");
        Ok(())
    })
}

#[test]
fn a_builder_that_nobody_uses_is_paused_resumed_and_at_last_ended() -> Result<()> {
    let bed = Testbed::start_with("isolation = \"vm\"\npause_after_s = 2\n")?;
    bed.slipway_ok(&["orgs", "update", "acme", "--memory", "2GiB"])?;
    let token = bed.org_token("acme")?;
    bed.slipway_ok(&["builders", "ensure", "--org", "acme"])?;
    ping(&bed, &token)?;
    // The gateway keeps the connection for a while in case that somebody comes, but not for good.
    paused(&bed, 1)?;
    ping(&bed, &token)?;
    ensure!(
        said(&bed, "host.log", ": resumed")? == 1,
        "nothing was to be resumed"
    );
    paused(&bed, 2)?;

    // It is woken once more, to be asked whether it is idle, and has been so for all of its pause.
    bed.slipway_ok(&["orgs", "update", "acme", "--idle", "40s"])?;
    wait_for("its end", WAIT, || {
        let ends = said(&bed, "serve.log", "builder ends itself: idle")?;
        ensure!(ends == 1, "it has not ended");
        Ok(())
    })?;
    let resumed = said(&bed, "host.log", ": resumed")?;
    ensure!(resumed == 2, "resumed {resumed} times: {}", bed.logs());
    Ok(())
}

#[test]
fn a_builder_that_ended_for_want_of_use_goes_on_from_kept_memory() -> Result<()> {
    let bed = Testbed::start_with("isolation = \"vm\"\nkept_memory = \"4GiB\"\n")?;
    // Memory is kept in what was promised to no volume, and the computer's disk may be small.
    let small = ["--memory", "1GiB", "--volume-size", "5GiB"];
    bed.slipway_ok(&[&["orgs", "update", "acme", "--idle", "22s"], &small[..]].concat())?;
    let token = bed.org_token("acme")?;
    bed.slipway_ok(&["builders", "ensure", "--org", "acme"])?;
    for kept in 1..=2 {
        ping(&bed, &token)?;
        wait_for("its memory", WAIT, || {
            let now = said(&bed, "host.log", ": memory kept")?;
            ensure!(now == kept, "kept {now} times\n{}", bed.logs());
            Ok(())
        })?;
        // Its builder is not taken for one that crashed.
        wait_for("its end", WAIT, || {
            let list = bed.slipway_json(&["builders", "list", "--org", "acme", "--json"])?;
            let state = list[0]["state"].as_str().unwrap_or_default().to_lowercase();
            ensure!(state == "stopped", "it is {state}");
            Ok(())
        })?;
        let began = std::time::Instant::now();
        ping(&bed, &token)?;
        println!("/_ping from kept memory after {:?}", began.elapsed());
        let log = std::fs::read_to_string(bed.dir().join("host.log"))?;
        let kept_as = log.lines().rfind(|line| line.contains(": memory kept"));
        println!("{}", kept_as.unwrap_or_default());
        let gone_on = said(&bed, "host.log", "kept_memory=true")?;
        ensure!(gone_on == kept, "gone on {gone_on} times: {}", bed.logs());
    }
    Ok(())
}
