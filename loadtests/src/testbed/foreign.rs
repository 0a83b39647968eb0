//! Programs for other processors, from Debian's packages.

use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::Command;

/// The static busybox of another architecture, as Debian calls that; fetched once.
///
/// # Errors
/// No mirror answers, or mmdebstrap is missing (`make setup`).
pub fn foreign_busybox(arch: &str) -> Result<PathBuf> {
    let dir = super::cache_dir().join("foreign");
    let program = dir.join(format!("busybox-{arch}"));
    if program.exists() {
        return Ok(program);
    }
    std::fs::create_dir_all(&dir)?;
    let scratch = tempfile::tempdir_in(&dir)?;
    let root = scratch.path().join("root");
    let mut command = Command::new("mmdebstrap");
    // Unpacked and not installed: nothing of it is run here.
    command.args(["--quiet", "--variant=extract", "--format=directory"]);
    command.args([
        "--include=busybox-static",
        &format!("--architectures={arch}"),
    ]);
    command.arg("trixie").arg(&root);
    command.args(std::env::var_os("SLIPWAY_MIRROR"));
    let output = command.env("TMPDIR", scratch.path()).output()?;
    ensure!(output.status.success(), "{}", super::show(&output));
    let made = root.join("usr/bin/busybox");
    // In one step: tests run side by side.
    std::fs::rename(&made, &program).with_context(|| made.display().to_string())?;
    Ok(program)
}
