//! A child process that ends with its owner: its output goes to a file, and it is ended by its own id.

use anyhow::{Context, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running child. Dropping it ends it: first asked, then killed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// How long a child gets to end when asked.
const END_WAIT: Duration = Duration::from_secs(60);

impl Process {
    /// Starts `command` with both outputs in `log`.
    ///
    /// # Errors
    /// The log cannot be made, or the program cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .context("open log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Everything it has printed.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }

    /// SIGTERM, waits, and kills what did not end in time.
    pub fn end(&mut self) {
        if !self.is_running() {
            return;
        }
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _sent = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGTERM,
            );
        }
        let until = Instant::now() + END_WAIT;
        while Instant::now() < until {
            if !self.is_running() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} did not end when asked; killed", self.name);
        self.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// The start of a command whose process is killed when the thread that starts it ends, however that is. What follows are the
/// program and its arguments; `options` are more of setpriv(1).
pub(super) fn dies_with_us(options: &[String]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).args(options);
    command
}

/// How many times as long as on a computer with nothing else to do anything may take that must come.
const PATIENCE: u32 = 5;

/// Waits until `ready` gives a value, asking every 10 ms. `within` is how long that may take on a computer with nothing else to
/// do; it is waited for [`PATIENCE`] times as long.
///
/// # Errors
/// The time is over; the error carries `what` and the last thing `ready` said.
pub fn wait_for<T>(
    what: &str,
    within: Duration,
    mut ready: impl FnMut() -> Result<T>,
) -> Result<T> {
    let within = within * PATIENCE;
    let until = Instant::now() + within;
    loop {
        match ready() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= until => {
                return Err(error.context(format!("waited {within:?} for {what}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// How many processes of this computer, in whichever machine, run `command` (words with a space between them).
pub fn running(command: &str) -> usize {
    let ours = command.replace(' ', "\0");
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|line| line.starts_with(&ours))
        .count()
}
