//! The engine: containerd and dockerd, started one after the other and ended the other way round.
//!
//! containerd is the guest's own child. dockerd could start one for itself, but it looks for it at intervals of half a
//! second and a whole one at its start and end: measured in one run, 1,390 ms to the first ping against 460, and
//! 1,010 ms to the end against 20. dockerd is started only when containerd listens: started side by side they are some
//! 50 ms faster, except when dockerd is there first, and then it tries again only after a second.
//!
//! It must not know what is built, nor who asks for the end.

use crate::complaint;
use crate::config::{self, GuestConfig};
use crate::descriptors::{Descriptors, Inherited, inherit};
pub(crate) use crate::disk::DATA_ROOT;
use crate::init::{Child, Children, Exit};
use crate::inventory;
use crate::limits;
use crate::output::Output;
use crate::phase::Manner;
use crate::progress::{self, GivenUp, Progress};
use crate::runtime::{self, PROGRAMS_DIR};
use crate::store::ImageStore;
use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::Signal;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::net::UnixStream;

/// dockerd's socket inside the machine.
pub(crate) const ENGINE_SOCKET: &str = "/run/docker.sock";
/// Where dockerd writes its process id.
pub(crate) const ENGINE_PID_FILE: &str = "/run/docker.pid";
/// BuildKit's directory of steps that run, one directory for each.
pub(crate) const STEPS_DIR: &str = "/var/lib/docker/buildkit/executor";

const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const CONTAINERD_DIR: &str = "/run/containerd";
/// Where containerd keeps everything, where it keeps images: on the cache volume.
pub(crate) const CONTAINERD_ROOT: &str = "/var/lib/docker/containerd";
const CONFIG_DIR: &str = "/run/slipway";
const IMAGE_CONFIG: &str = "/etc/docker/daemon.json";
/// Where Debian's programs look for certificates.
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
const GUEST_CONFIG: &str = "/etc/slipway/guest.json";
/// What a machine that was not ended cleanly may have left, and what would keep a daemon from starting or would be
/// taken for something that runs.
const STALE: [&str; 5] = [
    ENGINE_PID_FILE,
    "/run/docker.sock",
    "/run/docker",
    CONTAINERD_DIR,
    STEPS_DIR,
];

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The daemons.
#[derive(Debug)]
pub(crate) struct Engine {
    dockerd: Child,
    containerd: Child,
    dockerd_output: Output,
    containerd_output: Output,
    store: ImageStore,
}

/// Which daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// dockerd, in this manner.
    Dockerd(Manner),
    /// containerd.
    Containerd,
}

impl Engine {
    /// Starts both daemons; waits for containerd, as long as it makes progress, but not for dockerd. dockerd gets the host's
    /// socket as its descriptor 3; no other child does.
    pub(crate) async fn start(
        children: &Children,
        descriptors: &Descriptors,
        host: &GuestConfig,
        store: ImageStore,
        progress: &mut Progress,
    ) -> Result<Engine> {
        for path in STALE {
            remove(Path::new(path)).with_context(|| format!("remove stale {path}"))?;
        }
        write_configs(host, store)?;
        trust(&host.ca_pem).context("add the host's certificates to those that are trusted")?;
        runtime::install()?;
        let path = search_path();
        let mut containerd = children
            .start(
                Command::new("containerd")
                    .env("PATH", &path)
                    .args(["--config", &format!("{CONFIG_DIR}/containerd.toml")])
                    // It tells of every plugin otherwise, and nothing else that anybody would look for.
                    .args(["--log-level", "warn"])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped()),
            )
            .context("start containerd")?;
        let containerd_output = Output::follow("containerd", containerd.stderr.take())?;
        if let Err(error) = listens(&mut containerd, &containerd_output, progress).await {
            containerd_output.log_last();
            return Err(error);
        }
        inherit(&descriptors.engine, Inherited::Yes)?;
        let dockerd = children.start(dockerd_command().env("PATH", &path));
        inherit(&descriptors.engine, Inherited::No)?;
        let mut dockerd = dockerd.context("start dockerd")?;
        Ok(Engine {
            dockerd_output: Output::follow("dockerd", dockerd.stderr.take())?,
            containerd_output,
            dockerd,
            containerd,
            store,
        })
    }

    /// Waits for the first daemon to end. Cancel-safe.
    pub(crate) async fn ended(&mut self) -> Ended {
        tokio::select! {
            exit = self.dockerd.wait() => Ended::Dockerd(manner(exit)),
            _ = self.containerd.wait() => Ended::Containerd,
        }
    }

    /// Watches the start of dockerd until it has to be given up. Gives why.
    pub(crate) fn start_given_up<'p>(
        &self,
        progress: &'p mut Progress,
    ) -> impl Future<Output = GivenUp> + use<'p> {
        let outputs = [self.dockerd_output.clone(), self.containerd_output.clone()];
        progress::watch(progress, move || outputs.iter().map(Output::lines).sum())
    }

    /// Ends dockerd and then containerd, each within its bound; tells how dockerd ended.
    pub(crate) async fn stop(&mut self) -> Manner {
        let exit = stop(&mut self.dockerd, limits::ENGINE_STOP_WAIT_MAX).await;
        tracing::info!(?exit, "dockerd ended");
        stop(&mut self.containerd, limits::CONTAINERD_STOP_WAIT_MAX).await;
        manner(exit)
    }

    /// Whether dockerd's last words speak of damage in its data, or containerd's in what it keeps for dockerd. For a dockerd that ended by
    /// itself.
    pub(crate) fn complains_of_damage(&self) -> bool {
        let of_dockerd = self.dockerd_output.last();
        let of_containerd = match self.store {
            ImageStore::Classic => Vec::new(),
            ImageStore::Containerd => self.containerd_output.last(),
        };
        complaint::of_damage(of_dockerd.iter().map(String::as_str))
            || complaint::of_damaged_images(of_containerd.iter().map(String::as_str))
    }

    /// Why a dockerd does not work that ended by itself while it started, whatever is on the volume.
    pub(crate) async fn why_it_does_not_start(&self, children: &Children) -> String {
        let old = installed_version(children).await;
        let old = old
            .inspect_err(|error| tracing::warn!(%error, "dockerd does not say its version"))
            .ok();
        let told = || {
            let (first, then) = (self.containerd_output.last(), self.dockerd_output.last());
            inventory::reason(first.iter().chain(&then).map(String::as_str))
        };
        old.and_then(|answer| inventory::too_old(&answer))
            .unwrap_or_else(told)
    }

    /// Logs the last lines of both daemons' output, for whoever has to find out why they ended.
    pub(crate) fn log_last_output(&self) {
        self.containerd_output.log_last();
        // Last, for it is what those who wait for the machine read of it.
        self.dockerd_output.log_last();
    }
}

async fn listens(containerd: &mut Child, output: &Output, progress: &mut Progress) -> Result<()> {
    let listens = async {
        while UnixStream::connect(CONTAINERD_SOCKET).await.is_err() {
            tokio::time::sleep(limits::START_RETRY_PERIOD).await;
        }
    };
    tokio::select! {
        () = listens => Ok(()),
        given_up = progress::watch(progress, || output.lines()) => {
            Err(anyhow!(given_up).context("containerd does not start"))
        }
        exit = containerd.wait() => bail!("containerd ended by itself: {exit:?}"),
    }
}

/// What `dockerd --version` says.
async fn installed_version(children: &Children) -> Result<String> {
    let mut asked = children.start(
        Command::new("/bin/sh")
            // Only this stream of a child is read here.
            .args(["-c", "exec dockerd --version >&2"])
            .env("PATH", search_path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped()),
    )?;
    let output = Output::follow("dockerd --version", asked.stderr.take())?;
    let answered = async {
        while output.lines() == 0 {
            tokio::time::sleep(limits::START_RETRY_PERIOD).await;
        }
    };
    let wait = limits::ENGINE_REQUEST_WAIT_MAX;
    if tokio::time::timeout(wait, answered).await.is_err() {
        asked.signal(Signal::SIGKILL);
        bail!("no answer within {wait:?}");
    }
    Ok(output.last().join(" "))
}

/// Why the engine cannot start in this machine, as far as that can be seen beforehand.
pub(crate) fn is_impossible() -> Result<Option<String>> {
    let filesystems = read_or_empty("/proc/filesystems")?;
    let path = std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
    Ok(inventory::missing(Path::new("/"), &path, &filesystems))
}

/// Where the daemons look for programs.
fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
    format!("{PROGRAMS_DIR}:{path}")
}

fn dockerd_command() -> Command {
    let mut command = Command::new("/bin/sh");
    // systemd's protocol wants the receiver's own pid, which nobody knows before it runs.
    let script = "LISTEN_PID=$$; export LISTEN_PID; exec dockerd \"$@\"";
    command
        .args(["-c", script, "dockerd"])
        .args(["--host", "fd://"])
        .args(["--host", &format!("unix://{ENGINE_SOCKET}")])
        .args(["--containerd", CONTAINERD_SOCKET])
        .args(["--data-root", DATA_ROOT])
        .args(["--config-file", &format!("{CONFIG_DIR}/daemon.json")])
        .env("LISTEN_FDS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// What the host says about registries; the defaults if it says nothing.
pub(crate) fn host_config() -> Result<GuestConfig> {
    Ok(config::parse_guest(&read_or_empty(GUEST_CONFIG)?)?)
}

fn write_configs(host: &GuestConfig, store: ImageStore) -> Result<()> {
    let disk = crate::disk::measure(Path::new(DATA_ROOT)).context("look at the cache volume")?;
    let image = read_or_empty(IMAGE_CONFIG)?;
    let engine = config::engine_config(&image, host, store, disk.total_bytes)?;
    let root = match store {
        // It holds the tasks that run and nothing else, so a crash leaves nothing stale behind.
        ImageStore::Classic => format!("{CONTAINERD_DIR}/root"),
        ImageStore::Containerd => CONTAINERD_ROOT.to_owned(),
    };
    let containerd = config::containerd_config(&root, CONTAINERD_DIR, CONTAINERD_SOCKET);
    std::fs::create_dir_all(CONFIG_DIR).context("make the directory for settings")?;
    std::fs::create_dir_all(CONTAINERD_DIR).context("make containerd's directory")?;
    std::fs::write(format!("{CONFIG_DIR}/daemon.json"), engine)
        .context("write dockerd's settings")?;
    std::fs::write(format!("{CONFIG_DIR}/containerd.toml"), containerd)
        .context("write containerd's settings")
}

/// Adds certificates to the bundle that dockerd, BuildKit and git read.
fn trust(more: &str) -> Result<()> {
    let Some(bundle) = config::trusted(&read_or_empty(CA_BUNDLE)?, more) else {
        return Ok(());
    };
    std::fs::write(CA_BUNDLE, bundle).with_context(|| format!("write {CA_BUNDLE}"))
}

fn read_or_empty(path: &str) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("read {path}")),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

async fn stop(child: &mut Child, wait: Duration) -> Exit {
    child.signal(Signal::SIGTERM);
    match tokio::time::timeout(wait, child.wait()).await {
        Ok(exit) => exit,
        Err(_elapsed) => {
            tracing::warn!(
                pid = child.pid.as_raw(),
                "daemon did not end in time and is killed"
            );
            child.signal(Signal::SIGKILL);
            child.wait().await
        }
    }
}

fn manner(exit: Exit) -> Manner {
    match exit {
        Exit::Code(0) => Manner::Clean,
        Exit::Signal(Signal::SIGTERM) => Manner::Terminated,
        Exit::Code(_) | Exit::Signal(_) => Manner::Failed,
    }
}
