//! Clearing away a farm: its own, at the end, and that of a run that was killed.

use super::process::wait_for;
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Ends every machine of the farm in `dir`, whose processes have ended or are about to, and removes the directory.
///
/// # Errors
/// Something does not go away; it may be called again.
pub(super) fn clear(binaries: &Path, dir: &Path) -> Result<()> {
    let settings = dir.join("host.toml");
    if settings.exists() {
        // A daemon that is killed with its test may need a moment to be gone.
        wait_for("the purge", Duration::from_secs(20), || {
            let output = Command::new(binaries.join("slipwayd"))
                .args(["host", "--config"])
                .arg(&settings)
                .arg("purge")
                .output()?;
            ensure!(
                output.status.success(),
                "purge failed:\n{}",
                super::show(&output)
            );
            Ok(())
        })?;
    }
    unmount_below(dir)?;
    std::fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))
}

/// Frees the loop devices of files below a directory, once nothing has them mounted any more.
pub(super) fn free_devices_below(dir: &Path) -> Result<()> {
    wait_for("loop devices to be free", Duration::from_secs(60), || {
        let output = Command::new("losetup")
            .args(["--list", "--noheadings", "--output", "NAME,BACK-FILE"])
            .output()?;
        let list = String::from_utf8_lossy(&output.stdout).into_owned();
        let ours = list.lines().filter_map(|line| line.split_once(' '));
        let ours: Vec<_> = ours
            .filter(|(_, file)| Path::new(file.trim_start()).starts_with(dir))
            .map(|(device, _)| device)
            .collect();
        if ours.is_empty() {
            return Ok(());
        }
        // One that is still mounted goes when it no longer is.
        let _ = Command::new("losetup").arg("--detach").args(&ours).output();
        bail!("there are still {ours:?}")
    })
}

/// Unmounts what tests have mounted, the last first; lazily, so that nothing that still looks at it keeps it.
pub(super) fn unmount_below(dir: &Path) -> Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let below: Vec<_> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| Path::new(point).starts_with(dir))
        .collect();
    for point in below.iter().rev() {
        let _private = Command::new("mount")
            .args(["--make-rprivate", point])
            .output();
        let output = Command::new("umount").args(["--lazy", point]).output()?;
        if !output.status.success() {
            bail!("unmount {point}:\n{}", super::show(&output));
        }
    }
    Ok(())
}
