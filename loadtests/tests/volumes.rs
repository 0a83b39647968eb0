//! Volumes on a real farm, as people type it: what they hold is what is looked at, and what is cut off is finished.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use slipway_loadtests::testbed::{Testbed, wait_for};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const GIB: u64 = 1 << 30;
const WAIT: Duration = Duration::from_secs(60);

/// `slipway volumes ... --json`, which must end well.
fn volumes(bed: &Testbed, arguments: &[&str]) -> Result<Value> {
    let mut all = vec!["volumes"];
    all.extend(arguments);
    all.push("--json");
    bed.slipway_json(&all)
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| value.to_string())
}

/// The image of a volume that no machine has.
fn image(bed: &Testbed, id: &str) -> Result<PathBuf> {
    let images = bed.volume_images()?;
    let named = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(id))
    };
    images
        .into_iter()
        .find(named)
        .with_context(|| id.to_owned())
}

/// Does something with what a volume holds while it is mounted here.
fn inside<T>(bed: &Testbed, id: &str, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let at = bed.dir().join("look");
    std::fs::create_dir_all(&at)?;
    let mounted = Command::new("mount")
        .args(["-o", "loop"])
        .arg(image(bed, id)?)
        .arg(&at)
        .status()?;
    ensure!(mounted.success(), "{id} cannot be mounted");
    let done = work(&at);
    let unmounted = Command::new("umount").arg(&at).status()?;
    ensure!(unmounted.success(), "{} stays mounted", at.display());
    done
}

fn write(bed: &Testbed, id: &str, word: &str) -> Result<()> {
    inside(bed, id, |at| Ok(std::fs::write(at.join("word"), word)?))
}

fn read(bed: &Testbed, id: &str) -> Result<String> {
    inside(bed, id, |at| Ok(std::fs::read_to_string(at.join("word"))?))
}

/// Waits until a volume is in a state.
fn in_state(bed: &Testbed, id: &str, state: &str) -> Result<Value> {
    wait_for(state, WAIT, || {
        let volume = volumes(bed, &["show", id])?;
        ensure!(volume["state"] == state, "{volume}");
        Ok(volume)
    })
}

/// Makes a volume of a snapshot; gives its id.
fn restored(bed: &Testbed, snapshot: &str) -> Result<String> {
    let back = volumes(
        bed,
        &[
            "create",
            "back",
            "--org",
            "acme",
            "--snapshot-id",
            snapshot,
            "--yes",
        ],
    )?;
    Ok(text(&back["id"])?.to_owned())
}

#[test]
fn a_volume_is_made_listed_extended_kept_forked_destroyed_and_restored() -> Result<()> {
    let mut bed = Testbed::start()?;
    let made = volumes(
        &bed,
        &[
            "create", "data", "--org", "acme", "--region", "local", "--size", "2", "--yes",
        ],
    )?;
    let id = text(&made["id"])?.to_owned();
    ensure!(
        made["state"] == "CREATED" && made["sizeBytes"] == 2 * GIB,
        "{made}"
    );
    write(&bed, &id, "first")?;

    let table = bed.slipway_ok(&["volumes", "list", "--org", "acme"])?;
    let line = table.lines().find(|line| line.starts_with(&id));
    let line = line.with_context(|| table.clone())?;
    ensure!(line.contains("created  data  2 GiB"), "{table}");

    let larger = volumes(&bed, &["extend", &id, "--size", "+1"])?;
    ensure!(
        larger["sizeBytes"] == 3 * GIB && larger["state"] == "CREATED",
        "{larger}"
    );
    ensure!(
        std::fs::metadata(image(&bed, &id)?)?.len() == 3 * GIB,
        "its image has not grown"
    );
    ensure!(read(&bed, &id)? == "first");

    let kept = volumes(&bed, &["snapshots", "create", &id])?;
    let snapshot = text(&kept["id"])?.to_owned();
    ensure!(kept["state"] == "CREATED", "{kept}");
    write(&bed, &id, "second")?;
    let fork = volumes(&bed, &["fork", &id, "--name", "copy"])?;
    let fork = text(&fork["id"])?.to_owned();
    write(&bed, &id, "third")?;
    let back = restored(&bed, &snapshot)?;
    for (volume, word) in [(&back, "first"), (&fork, "second"), (&id, "third")] {
        let holds = read(&bed, volume)?;
        ensure!(holds == word, "{volume} holds {holds}, not {word}");
    }
    let listed = volumes(&bed, &["snapshots", "list", &id])?;
    ensure!(
        listed[0]["id"] == snapshot.as_str() && listed[1].is_null(),
        "{listed}"
    );

    outlives_both_processes_and_is_restored(&mut bed, &id)?;
    for volume in [&id, &fork, &back] {
        bed.slipway_ok(&["volumes", "destroy", volume, "--now", "--yes"])?;
    }
    ensure!(bed.volume_images()?.is_empty(), "images are left");
    bed.refused(
        &mut bed.slipway(&["volumes", "show", &id]),
        1,
        &["no such volume"],
    )?;
    // What it held can be had for as long as the snapshot is there.
    let back = restored(&bed, &snapshot)?;
    ensure!(read(&bed, &back)? == "first");
    bed.slipway_ok(&["volumes", "snapshots", "delete", &snapshot, "--yes"])?;
    ensure!(
        read(&bed, &back)? == "first",
        "a restored volume needs no snapshot"
    );
    Ok(())
}

fn outlives_both_processes_and_is_restored(bed: &mut Testbed, id: &str) -> Result<()> {
    // To be destroyed a day from now, it is there after both processes have died; and it can be restored.
    let shown = ["this destroys volumes a day from now"];
    bed.refused(&mut bed.slipway(&["volumes", "destroy", id]), 1, &shown)?;
    bed.slipway_ok(&["volumes", "destroy", id, "--yes"])?;
    bed.kill_serve();
    bed.kill_host();
    bed.start_host()?;
    bed.start_serve()?;
    let going = volumes(bed, &["show", id])?;
    ensure!(
        going["state"] == "PENDING_DESTROY" && going["destroyAt"].is_string(),
        "{going}"
    );
    let restored = volumes(bed, &["restore", id])?;
    ensure!(
        restored["state"] == "CREATED" && restored["destroyAt"].is_null(),
        "{restored}"
    );
    ensure!(read(bed, id)? == "third");
    Ok(())
}

#[test]
fn what_is_cut_off_is_finished_when_the_host_is_back() -> Result<()> {
    let mut bed = Testbed::start()?;
    let create = |bed: &Testbed, name: &str| -> Result<String> {
        let made = volumes(
            bed,
            &["create", name, "--org", "acme", "--size", "1", "--yes"],
        )?;
        Ok(text(&made["id"])?.to_owned())
    };
    let (grows, goes) = (create(&bed, "grows")?, create(&bed, "goes")?);
    bed.kill_host();
    let growing = volumes(&bed, &["extend", &grows, "--size", "2GiB"])?;
    ensure!(
        growing["state"] == "EXTENDING" && growing["notice"].is_string(),
        "{growing}"
    );
    bed.slipway_ok(&["volumes", "destroy", &goes, "--now", "--yes"])?;
    let away = ["local", "answers"];
    bed.refused(
        &mut bed.slipway(&["volumes", "create", "new", "--org", "acme"]),
        2,
        &away,
    )?;
    bed.kill_serve();
    bed.start_serve()?;
    bed.start_host()?;
    let grown = in_state(&bed, &grows, "CREATED")?;
    ensure!(grown["notice"].is_null(), "{grown}");
    ensure!(
        std::fs::metadata(image(&bed, &grows)?)?.len() == 2 * GIB,
        "its image has not grown"
    );
    wait_for("the other to be gone", WAIT, || {
        ensure!(bed.volume_images()?.len() == 1, "it is there");
        Ok(())
    })?;
    let left = volumes(&bed, &["list", "--org", "acme"])?;
    ensure!(
        left[0]["id"] == grows.as_str() && left[1].is_null(),
        "{left}"
    );
    Ok(())
}

#[test]
fn the_cache_of_a_running_builder_is_kept_forked_and_extended() -> Result<()> {
    let bed = Testbed::start()?;
    let builder = bed.slipway_json(&["builders", "ensure", "--org", "acme", "--json"])?;
    let list = volumes(&bed, &["list", "--org", "acme"])?;
    let cache = text(&list[0]["id"])?.to_owned();
    ensure!(
        list[0]["purpose"] == "CACHE" && list[0]["attachedTo"] == builder["id"],
        "{list}"
    );
    let kept = volumes(&bed, &["snapshots", "create", &cache])?;
    ensure!(kept["state"] == "CREATED", "{kept}");
    let fork = volumes(&bed, &["fork", &cache, "--name", "copy"])?;
    let docker = inside(&bed, text(&fork["id"])?, |at| {
        Ok(at.join("overlay2").is_dir())
    })?;
    ensure!(docker, "the fork is not what dockerd keeps");
    let size = list[0]["sizeBytes"].as_u64().context("no size")? + GIB;
    let larger = volumes(&bed, &["extend", &cache, "--size", "+1"])?;
    ensure!(
        larger["sizeBytes"] == size && larger["state"] == "CREATED",
        "{larger}"
    );
    let after = bed.slipway_json(&["builders", "show", "--org", "acme", "--json"])?;
    ensure!(
        after["volumeBytes"] == size && after["state"] == "RUNNING",
        "{after}"
    );
    bed.refused(
        &mut bed.slipway(&["volumes", "destroy", &cache, "--yes"]),
        1,
        &["builder's cache"],
    )?;
    Ok(())
}
