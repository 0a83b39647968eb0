//! Programs of PyPI, in virtual environments that are kept beside the other things made once.

use super::{cache_dir, show};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A virtual environment.
#[derive(Debug)]
pub struct Python {
    dir: PathBuf,
}

impl Python {
    /// The environment `name` with these requirements and no others; made if it is not there.
    ///
    /// # Errors
    /// pip cannot install them.
    pub fn with(name: &str, requirements: &[&str]) -> Result<Python> {
        let dir = cache_dir().join("python").join(name);
        let python = Python { dir };
        let list = requirements.join("\n");
        let ready = python.dir.join("ready");
        if std::fs::read_to_string(&ready).is_ok_and(|made| made == list) {
            return Ok(python);
        }
        if python.dir.exists() {
            std::fs::remove_dir_all(&python.dir)?;
        }
        let mut venv = Command::new("python3");
        succeed(venv.args(["-m", "venv"]).arg(&python.dir))?;
        let mut install = python.command();
        install.args(["-m", "pip", "install", "--quiet"]);
        succeed(install.args(requirements))?;
        std::fs::write(ready, list)?;
        Ok(python)
    }

    /// `python`, without this machine's own bundle of authorities, which `requests` would take instead of the one it is told.
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.dir.join("bin/python"));
        command
            .env_remove("REQUESTS_CA_BUNDLE")
            .env_remove("CURL_CA_BUNDLE");
        command
    }

    /// The unpacked source of a package in the version that `requirement` pins; fetched if it is not there.
    ///
    /// # Errors
    /// pip cannot fetch it, or there is no such archive.
    pub fn source(&self, package: &str, version: &str) -> Result<PathBuf> {
        let name = format!("{package}-{version}");
        let sources = self.dir.join("sources");
        let unpacked = sources.join(&name);
        if unpacked.exists() {
            return Ok(unpacked);
        }
        let fetched = self.dir.join("fetched");
        let mut fetch = self.command();
        fetch.args(["-m", "pip", "download", "--quiet", "--no-deps"]);
        fetch.args(["--no-binary", package, "--dest"]);
        succeed(fetch.arg(&fetched).arg(format!("{package}=={version}")))?;
        unpack(&fetched.join(format!("{name}.tar.gz")), &sources)?;
        ensure!(unpacked.exists(), "no {name} in its archive");
        Ok(unpacked)
    }
}

/// In a directory of its own first: what is at its place is whole.
fn unpack(archive: &Path, sources: &Path) -> Result<()> {
    let half = sources.with_extension("half");
    if half.exists() {
        std::fs::remove_dir_all(&half)?;
    }
    std::fs::create_dir_all(&half)?;
    succeed(
        Command::new("tar")
            .arg("-C")
            .arg(&half)
            .arg("-xzf")
            .arg(archive),
    )?;
    std::fs::rename(&half, sources).context("keep the sources")
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", show(&output));
    Ok(())
}
