//! Arrows go down only: each crate uses only the crates of the house that docs/ARCHITECTURE.md allows it, and the pure and
//! the knowing-one crates name no library that they must not know.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::checkout_dir;

/// Folder, crates of the house it may use, libraries it must not.
const TABLE: &[(&str, &[&str], &[&str])] = &[
    ("scheduler/core", &[], &["tokio", "sqlx", "http", "hyper"]),
    (
        "scheduler/store",
        &["slipway-core"],
        &["hyper", "async-graphql"],
    ),
    (
        "scheduler/server",
        &["slipway-core", "slipway-store", "slipway-registry-push"],
        &["sqlx", "bollard"],
    ),
    (
        "volumes",
        &["slipway-core", "slipway-volume-stream"],
        &["sqlx", "hyper"],
    ),
    ("volumes/stream", &["slipway-core"], &["tokio", "nix"]),
    (
        "cli",
        &[
            "slipway-core",
            "slipway-buildkit",
            "slipway-terminal",
            "slipway-volume-stream",
        ],
        &["sqlx", "async-graphql"],
    ),
    (
        "cli/terminal",
        &["slipway-core"],
        &["tokio", "hyper", "nix"],
    ),
    (
        "daemon",
        &["slipway-scheduler", "slipway-host", "slipway-terminal"],
        &["sqlx", "async-graphql", "nix"],
    ),
    (
        "builder/host",
        &["slipway-core", "slipway-volumes"],
        &["sqlx", "async-graphql"],
    ),
    (
        "builder/guest",
        &["slipway-core", "slipway-buildkit", "slipway-registry-push"],
        &["sqlx", "async-graphql"],
    ),
    ("builder/buildkit", &[], &["sqlx", "async-graphql"]),
    ("registry-push", &[], &["sqlx", "async-graphql", "tonic"]),
];

#[test]
fn crates_know_only_what_they_may() -> Result<()> {
    for (folder, may, must_not) in TABLE {
        let path = checkout_dir().join(folder).join("Cargo.toml");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let used: Vec<&str> = text
            .split("[dependencies]")
            .nth(1)
            .and_then(|rest| rest.split("\n[").next())
            .with_context(|| format!("{folder} has no dependencies"))?
            .lines()
            .filter_map(|line| line.split(['.', ' ', '=']).next())
            .collect();
        for name in used {
            let ours = name.starts_with("slipway-");
            ensure!(!ours || may.contains(&name), "{folder} must not use {name}");
            ensure!(!must_not.contains(&name), "{folder} must not know {name}");
        }
    }
    Ok(())
}

/// Libraries that only some systems have, and the crates of the house that only a farm needs: the client of a computer names none
/// of another.
#[test]
fn the_client_of_each_system_holds_no_crate_of_another() -> Result<()> {
    const UNIX: [&str; 2] = ["nix", "rustix"];
    const WINDOWS: [&str; 3] = ["windows-sys", "winapi", "schannel"];
    const FARM: [&str; 6] = [
        "slipway-scheduler",
        "slipway-store",
        "slipway-host",
        "slipway-guest",
        "slipway-volumes",
        "slipway-registry-push",
    ];
    for (target, others) in [
        ("x86_64-pc-windows-msvc", &UNIX[..]),
        ("aarch64-apple-darwin", &WINDOWS[..]),
        ("aarch64-unknown-linux-musl", &WINDOWS[..]),
        ("x86_64-unknown-linux-gnu", &WINDOWS[..]),
    ] {
        let tree = std::process::Command::new(env!("CARGO"))
            .args(["tree", "--locked", "-p", "slipway", "-e", "normal"])
            .args(["--prefix", "none", "--target", target])
            // What a caller's shell says of features is not what is asked here.
            .env_remove("CARGO_RESOLVER_FEATURE_UNIFICATION")
            .current_dir(checkout_dir())
            .output()?;
        let said = String::from_utf8_lossy(&tree.stderr);
        ensure!(tree.status.success(), "cargo tree: {said}");
        let text = String::from_utf8(tree.stdout)?;
        let crates: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        ensure!(crates.contains(&"tokio"), "{target}: {text}");
        for other in others.iter().chain(&FARM) {
            ensure!(
                !crates.contains(other),
                "the client for {target} has {other}"
            );
        }
    }
    Ok(())
}
