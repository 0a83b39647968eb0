//! A cache volume that is full, one that is damaged, and a host whose own disk is full.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::{Testbed, check_refusal, wait_for};
use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Far more than a builder takes to end or to start on a busy computer.
const WAIT: Duration = Duration::from_secs(120);

fn dd(name: &str, mebibytes: u32) -> String {
    format!(
        "FROM busybox\nRUN echo {name} && dd if=/dev/urandom of=/large bs=1M count={mebibytes}\n"
    )
}

#[test]
fn a_full_disk_is_collected_once_and_then_told() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    bed.slipway_ok(&["orgs", "update", "acme", "--volume-size", "1GiB"])?;
    let build = |name: &str, mebibytes| -> Result<std::process::Command> {
        let dir = bed.project(name, &[("Dockerfile", &dd(name, mebibytes))])?;
        let mut deploy = bed.deploy(&dir, "room:1");
        deploy.arg("--build-only");
        Ok(deploy)
    };
    // Garbage as soon as the next build takes over the name.
    bed.deployed(&mut build("first", 350)?)?;
    let output = build("second", 500)?
        .args(["--progress", "plain"])
        .output()?;
    let text = slipway_loadtests::testbed::show(&output);
    ensure!(output.status.success(), "{text}\n{}", bed.logs());
    let said = bed.refused(
        &mut build("third", 1500)?,
        1,
        &["disk is full", "slipway volumes extend"],
    )?;
    let tries = said
        .matches("its garbage was collected, and the build is tried again")
        .count();
    ensure!(tries <= 1, "tried {tries} times again: {said}");
    bed.deployed(&mut build("fourth", 5)?)?;
    Ok(())
}

/// Invariant 11: the cache is expendable.
#[test]
fn a_damaged_volume_is_kept_aside_and_the_build_goes_on_with_an_empty_one() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let dir = bed.project("web", &[("Dockerfile", "FROM busybox\nRUN echo 1 > /1\n")])?;
    let before = bed.deployed(&mut bed.deploy(&dir, "web:1"))?;
    bed.slipway_ok(&["builders", "stop", "--org", "acme"])?;
    let [image] = &bed.volume_images()?[..] else {
        anyhow::bail!("not one volume");
    };
    // Superblock, group descriptors, journal, and whatever a checker would restore the first from.
    let mut disk = std::fs::File::options().write(true).open(image)?;
    let length = disk.metadata()?.len();
    for at in (0..length).step_by(16 << 20) {
        disk.seek(SeekFrom::Start(at))?;
        disk.write_all(&[0x5a; 64 << 10])?;
    }
    drop(disk);

    let output = bed.deploy(&dir, "web:2").output()?;
    let text = slipway_loadtests::testbed::show(&output);
    ensure!(output.status.success(), "{text}\n{}", bed.logs());
    ensure!(
        text.contains("the cache was replaced by an empty one"),
        "the user was not told: {text}"
    );
    let after = bed.deployed(&mut bed.deploy(&dir, "web:3"))?;
    ensure!(after["digest"].is_string() && before["digest"].is_string());
    ensure!(bed.volume_images()?.len() == 2, "the old one was not kept");
    let builder = bed.slipway_json(&["builders", "list", "--org", "acme", "--json"])?;
    let notice = builder[0]["notice"].as_str().context("no notice")?;
    ensure!(notice.contains("kept as vol_"), "{notice}");
    let volumes = bed.slipway_json(&["volumes", "list", "--org", "acme", "--json"])?;
    let states: Vec<_> = volumes
        .as_array()
        .into_iter()
        .flatten()
        .map(|volume| volume["state"].to_string().to_lowercase())
        .collect();
    ensure!(
        states.iter().any(|state| state.contains("aside")),
        "{volumes}"
    );
    Ok(())
}

/// Puts a directory of the farm on a small disk of its own. Whoever writes there must be down.
fn move_to_a_small_disk(bed: &Testbed, name: &str) -> Result<()> {
    let (image, state) = (bed.dir().join("small.img"), bed.dir().join(name));
    let new = bed.dir().join("new");
    File::create(&image)?.set_len(512 << 20)?;
    std::fs::create_dir(&new)?;
    let script = "set -e; mkfs.ext4 -q \"$0\"; mount -o loop \"$0\" \"$2\"; cp -a \"$1/.\" \"$2\"; mount --move \"$2\" \"$1\" || \
                  { mount --bind \"$2\" \"$1\"; umount --lazy \"$2\"; }";
    let made = Command::new("sh")
        .args(["-c", script])
        .args([&image, &state, &new])
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    Ok(())
}

/// Gives the farm's host a small disk of its own for what it writes down.
fn on_a_small_disk(bed: &mut Testbed) -> Result<()> {
    bed.kill_host();
    move_to_a_small_disk(bed, "host")?;
    bed.start_host()?;
    wait_for("the host to be heard", WAIT, || {
        let status = bed.slipway_ok(&["status"])?;
        ensure!(!status.contains("does not answer"), "{status}");
        Ok(())
    })
}

/// Takes all that is free where `path` lies.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::options().create(true).append(true).open(path)?;
    for bytes in [1 << 20, 4 << 10, 1] {
        loop {
            match file
                .write_all(&vec![1; bytes])
                .and_then(|()| file.sync_data())
            {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

#[test]
fn a_builder_ends_on_a_full_disk_of_its_host_and_a_wake_says_so_and_goes_on_by_itself() -> Result<()>
{
    let mut bed = Testbed::start()?;
    on_a_small_disk(&mut bed)?;
    bed.registry.seed(&["busybox"])?;
    let dir = bed.project("web", &[("Dockerfile", "FROM busybox\nRUN echo 1 > /1\n")])?;
    bed.deployed(&mut bed.deploy(&dir, "web:1"))?;
    let rubbish = bed.dir().join("host/rubbish");
    fill(&rubbish)?;
    bed.slipway_ok(&["builders", "stop", "--org", "acme"])?;
    let builders =
        |bed: &Testbed| bed.slipway_json(&["builders", "list", "--org", "acme", "--json"]);
    wait_for("the builder to end on a full disk", WAIT, || {
        let builders = builders(&bed)?;
        ensure!(builders[0]["state"] == "STOPPED", "{builders}");
        let left = std::fs::read_dir(bed.dir().join("run/machines"))?.count();
        ensure!(left == 0, "{left} machines are not cleared away");
        Ok(())
    })?;
    // What the builder had is free again.
    fill(&rubbish)?;
    let mut deploy = bed.deploy(&dir, "web:2");
    let mut waiting = bed.start_deploy(&mut deploy)?;
    wait_for("the wait to be explained", WAIT, || {
        let builders = builders(&bed)?;
        let why = builders[0]["waitingFor"].as_str().unwrap_or_default();
        ensure!(why.contains("a disk of its host is full"), "{builders}");
        Ok(())
    })?;
    wait_for("the operator to be told", WAIT, || {
        let status = bed.slipway_ok(&["status"])?;
        ensure!(
            status.contains("a disk of a host in region 'local' is full"),
            "{status}"
        );
        let log = std::fs::read_to_string(bed.dir().join("serve.log"))?;
        let told = format!("the disk of {} is full", bed.dir().join("host").display());
        ensure!(log.contains(&told), "no {told:?} in {log}");
        Ok(())
    })?;
    // Who waits asks now and then, and reads it only while the disk is full.
    waiting.wait_for("a disk of its host is full", WAIT)?;
    std::fs::remove_file(&rubbish)?;
    let (code, text) = waiting.end()?;
    ensure!(code == Some(0), "{code:?}: {text}\n{}", bed.logs());
    Ok(())
}

#[test]
fn a_full_disk_of_the_server_is_told_to_who_asks_and_to_its_operator() -> Result<()> {
    let mut bed = Testbed::start()?;
    bed.kill_serve();
    move_to_a_small_disk(&bed, "serve")?;
    bed.start_serve()?;
    let rubbish = bed.dir().join("serve/rubbish");
    fill(&rubbish)?;
    // The database's log may have room for some more.
    let (mut made, mut refused) = (0, None);
    while refused.is_none() {
        ensure!(made < 500, "a full disk takes {made} apps");
        let output = bed
            .slipway(&["apps", "create", &format!("app{made}")])
            .output()?;
        made += 1;
        refused = (!output.status.success()).then_some(output);
    }
    let refused = refused.context("refused")?;
    let words = ["the disk of the farm's server is full", "data_dir"];
    check_refusal(&refused, 2, &words).with_context(|| bed.logs())?;
    let log = std::fs::read_to_string(bed.dir().join("serve.log"))?;
    ensure!(log.contains("the disk of the database is full"), "{log}");
    // What only reads goes on, and all does once there is space.
    bed.slipway_ok(&["apps", "list"])?;
    std::fs::remove_file(&rubbish)?;
    bed.slipway_ok(&["apps", "create", "later"])?;
    Ok(())
}
