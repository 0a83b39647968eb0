//! The examples as a newcomer meets them: each is deployed cold, unchanged, and with one line changed; and the last of these shows
//! that its cache mount was used: nothing is downloaded or compiled that was there.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::{Testbed, checkout_dir, show};
use std::path::{Path, PathBuf};
use std::process::Command;

struct Example {
    name: &'static str,
    bases: &'static [&'static str],
    /// The file of the changed line, what it has, and what then.
    change: [&'static str; 3],
    /// What the build says after the change.
    says: &'static [&'static str],
    /// What it would say if its cache were empty.
    never: &'static [&'static str],
}

fn check(example: &Example) -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(example.bases)?;
    let dir = copy(&bed, example.name)?;
    let deploy = |tag: &str| bed.deploy(&dir, &format!("{}:{tag}", example.name));
    let cold = bed.deployed(&mut deploy("cold"))?;
    let warm = bed.deployed(&mut deploy("warm"))?;
    ensure!(
        warm["steps_cached"] == warm["steps"],
        "not all cached: {warm}"
    );
    ensure!(warm["digest"] == cold["digest"], "{cold} {warm}");

    let [file, from, to] = example.change;
    let path = dir.join(file);
    let text = std::fs::read_to_string(&path)?;
    ensure!(text.contains(from), "{file} has no '{from}'");
    std::fs::write(&path, text.replace(from, to))?;
    let output = deploy("changed").args(["--progress", "plain"]).output()?;
    let said = show(&output);
    ensure!(output.status.success(), "{said}\n{}", bed.logs());
    for part in example.says {
        ensure!(said.contains(part), "does not say '{part}': {said}");
    }
    for part in example.never {
        ensure!(!said.contains(part), "says '{part}': {said}");
    }
    let manifests = format!("/v2/{}/manifests/changed", example.name);
    let (code, _) = bed.registry.get(&manifests)?;
    ensure!(code == 200, "{manifests}: {code}");
    println!(
        "{}: cold {} ms, unchanged {} ms",
        example.name, cold["time"]["total_ms"], warm["time"]["total_ms"]
    );
    Ok(())
}

fn copy(bed: &Testbed, name: &str) -> Result<PathBuf> {
    let from = checkout_dir().join("examples").join(name);
    let output = Command::new("cp")
        .arg("-r")
        .arg(&from)
        .arg(bed.dir())
        .output()?;
    ensure!(output.status.success(), "{}", show(&output));
    let to = bed.dir().join(Path::new(name));
    ensure!(to.join("Dockerfile").exists(), "no {}", to.display());
    to.canonicalize().context("the copy")
}

#[test]
fn c_multistage() -> Result<()> {
    check(&Example {
        name: "c-multistage",
        bases: &["debian", "gcc"],
        change: [
            "src/main.c",
            "struct count total",
            "/* changed */ struct count total",
        ],
        says: &["-o obj/main.o", "all right"],
        never: &["-o obj/count.o"],
    })
}

#[test]
fn node_app() -> Result<()> {
    check(&Example {
        name: "node-app",
        bases: &["node"],
        // Works only if all it wants is in the cache.
        change: ["Dockerfile", "npm install", "npm install --offline"],
        says: &["added 1 package", "all right"],
        never: &["ENOTCACHED"],
    })
}

#[test]
fn python_app() -> Result<()> {
    check(&Example {
        name: "python-app",
        bases: &["python"],
        change: ["requirements.txt", "bottle", "# changed\nbottle"],
        says: &["already downloaded /wheels/bottle", "OK"],
        never: &["Saved /wheels/bottle"],
    })
}

#[test]
fn rust_service() -> Result<()> {
    check(&Example {
        name: "rust-service",
        bases: &["debian", "rust"],
        change: ["src/main.rs", "//! Answers", "//! Changed. Answers"],
        says: &["Compiling rust-service", "test result: ok"],
        never: &["Downloaded itoa", "Compiling itoa"],
    })
}
