//! `slipway deploy` as people run it, and what they may expect when it fails.

use super::{Testbed, show, wait_for};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// How long a deploy in the background may take to end.
const END_WAIT: Duration = Duration::from_secs(120);

impl Testbed {
    /// Writes a directory of files below the farm's own; gives its path.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn project(&self, name: &str, files: &[(&str, &str)]) -> Result<PathBuf> {
        let dir = self.dir().join(name);
        std::fs::create_dir_all(&dir)?;
        for (path, text) in files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(&dir))?;
            std::fs::write(path, text)?;
        }
        Ok(dir)
    }

    /// `slipway deploy DIR` for the org `acme`, remotely, as `image` in the farm's registry; the app is called after the
    /// directory.
    pub fn deploy(&self, dir: &Path, image: &str) -> Command {
        let image = format!("{}/{image}", self.registry.address());
        self.deploy_as(dir, &image)
    }

    /// The same, with the image's whole name.
    pub fn deploy_as(&self, dir: &Path, image: &str) -> Command {
        let app = dir.file_name().unwrap_or_default();
        let mut command = self.slipway(&["deploy"]);
        command.arg(dir).arg("--app").arg(app);
        command.args(["--org", "acme", "--image", image, "--remote-only"]);
        command
    }

    /// Runs a deploy that must end well; gives its result.
    ///
    /// # Errors
    /// It does not; the error has all it printed, and what the farm said.
    pub fn deployed(&self, deploy: &mut Command) -> Result<Value> {
        let output = deploy.arg("--json").output()?;
        ensure!(
            output.status.success(),
            "{}\n{}",
            show(&output),
            self.logs()
        );
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().context("no output")?;
        let value: Value = serde_json::from_str(last).with_context(|| last.to_owned())?;
        ensure!(
            value["type"] == "result",
            "the last line is not the result: {last}"
        );
        Ok(value)
    }

    /// Runs a command that must fail with `code`, say all of `says`, and end with a hint. Gives what it said.
    ///
    /// # Errors
    /// It does otherwise.
    pub fn refused(&self, command: &mut Command, code: i32, says: &[&str]) -> Result<String> {
        let output = command.output()?;
        check_refusal(&output, code, says).with_context(|| self.logs())
    }

    /// Starts a deploy in the background.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_deploy(&self, deploy: &mut Command) -> Result<RunningDeploy> {
        let log = tempfile::NamedTempFile::new_in(self.dir())?.into_temp_path();
        let out = std::fs::File::create(&log)?;
        let child = deploy
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        Ok(RunningDeploy { child, log })
    }
}

/// A deploy in the background; dropping it kills it.
#[derive(Debug)]
pub struct RunningDeploy {
    child: Child,
    log: tempfile::TempPath,
}

impl RunningDeploy {
    /// All it has said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has said something.
    ///
    /// # Errors
    /// It does not, or ends before.
    pub fn wait_for(&mut self, says: &str, within: Duration) -> Result<()> {
        wait_for(says, within, || {
            let said = self.said();
            ensure!(said.contains(says), "so far: {said}");
            Ok(())
        })
    }

    /// Sends it a signal: SIGINT is what Ctrl-C does.
    ///
    /// # Errors
    /// The system refuses.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        Ok(nix::sys::signal::kill(pid, signal)?)
    }

    /// Waits for its end; gives the exit code and all it said.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(mut self) -> Result<(Option<i32>, String)> {
        let status = wait_for("the deploy's end", END_WAIT, || {
            self.child
                .try_wait()?
                .with_context(|| format!("it runs on, so far: {}", self.said()))
        })?;
        Ok((status.code(), self.said()))
    }
}

impl Drop for RunningDeploy {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Checks how a command was refused: exit code, what is said, and that the last line is the hint.
///
/// # Errors
/// Something of that is missing.
pub fn check_refusal(output: &Output, code: i32, says: &[&str]) -> Result<String> {
    let shown = show(output);
    ensure!(
        output.status.code() == Some(code),
        "not exit code {code}: {shown}"
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in says {
        ensure!(said.contains(part), "does not say '{part}': {shown}");
    }
    ensure!(said.contains("error: "), "no error: {shown}");
    let last = said.trim_end().lines().last().unwrap_or_default();
    ensure!(
        last.starts_with("hint: "),
        "the last line is no hint: {shown}"
    );
    Ok(said)
}
