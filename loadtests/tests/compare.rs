//! The comparison itself: a small run, in which ours and every peer that `make setup` installs push an image whole.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::show;
use std::process::Command;

#[test]
fn a_quick_comparison_of_pushes_has_everybody_in_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_slipway-loadtest"));
    command.args(["compare", "push", "--quick", "--json", "--only", "first"]);
    command
        .args(["--only", "small-layers", "--out"])
        .arg(dir.path());
    let output = command.output()?;
    ensure!(output.status.success(), "{}", show(&output));
    let outcomes: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let outcomes = outcomes.as_array().context("no list")?;
    ensure!(outcomes.len() == 2, "{outcomes:?}");
    for outcome in outcomes {
        let contenders = outcome["contenders"].as_array().context("no contenders")?;
        ensure!(contenders.len() >= 4, "{contenders:?}");
        for one in contenders {
            ensure!(one["absent"].is_null(), "{one}");
            ensure!(one["samples"][0].as_f64() > Some(0.0), "{one}");
            ensure!(one["size_bytes"].as_u64() > Some(0), "{one}");
        }
    }
    for name in ["push.json", "push.md", "push.svg"] {
        ensure!(dir.path().join(name).is_file(), "{name} was not written");
    }
    Ok(())
}
