//! A dockerd of the builder image outside of any machine: the yardstick's engine, and a store to push from.

use super::image_root::ImageRoot;
use super::process::{Process, wait_for};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// How an engine keeps its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageStore {
    /// dockerd's own store on overlay2.
    Classic,
    /// containerd's content store and snapshots.
    Containerd,
}

/// A running dockerd on this machine's network (loopback registries are its own), without a bridge. Ended when dropped.
#[derive(Debug)]
pub struct Engine {
    // Dropped in this order.
    dockerd: Process,
    root: ImageRoot,
    dir: PathBuf,
}

const SOCKET: &str = "/run/docker.sock";

impl Engine {
    /// Starts one with everything it makes below `dir`, which must be empty or absent. `insecure`: registries (`ip:port`) besides loopback's
    /// that it is to speak to in clear.
    ///
    /// # Errors
    /// Not root, no builder image, or dockerd does not come up.
    pub fn start(dir: &Path, store: ImageStore, insecure: &[String]) -> Result<Engine> {
        Self::start_with(dir, store, insecure, &[])
    }

    /// The same with `more` arguments for dockerd.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(
        dir: &Path,
        store: ImageStore,
        insecure: &[String],
        more: &[&str],
    ) -> Result<Engine> {
        let data = dir.join("data");
        std::fs::create_dir_all(&data)?;
        let root = ImageRoot::mount(dir, &[(&data, "/var/lib/docker")])?;
        let features = store == ImageStore::Containerd;
        let settings = serde_json::json!({
            "features": {"containerd-snapshotter": features},
            "insecure-registries": insecure,
        });
        std::fs::write(
            root.path().join("etc/docker/daemon.json"),
            settings.to_string(),
        )?;
        let socket = format!("unix://{SOCKET}");
        let mut arguments = vec![
            "-H",
            &socket,
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
        ];
        arguments.extend(more);
        let command = root.daemon("dockerd", &arguments);
        let dockerd = Process::start("dockerd", command, &dir.join("dockerd.log"))?;
        let mut engine = Engine {
            dockerd,
            root,
            dir: dir.to_owned(),
        };
        wait_for("dockerd", Duration::from_secs(60), || {
            ensure!(engine.dockerd.is_running(), "{}", engine.dockerd.output());
            engine.docker_ok(&["version"]).map(drop)
        })?;
        Ok(engine)
    }

    /// Its data root, on this machine.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Its root; what lies below it, its client sees below `/`.
    pub fn root(&self) -> &ImageRoot {
        &self.root
    }

    /// Its socket, on this machine.
    pub fn socket(&self) -> PathBuf {
        self.root.path().join(&SOCKET[1..])
    }

    /// A `docker` of the same image, speaking to it.
    pub fn docker<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = self.root.command("docker", arguments);
        command.env("DOCKER_HOST", format!("unix://{SOCKET}"));
        command
    }

    /// Runs `docker`, and demands that it ends well.
    ///
    /// # Errors
    /// It does not; the error has all it printed.
    pub fn docker_ok<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<Output> {
        let output = self.docker(arguments).output()?;
        ensure!(
            output.status.success(),
            "docker failed: {}",
            super::show(&output)
        );
        Ok(output)
    }

    /// Asks dockerd to end, which its parent (`unshare`) would not pass on.
    fn end(&mut self) -> Result<()> {
        let pid = self.dockerd.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let child = children.split_whitespace().next().context("no child")?;
        let child = nix::unistd::Pid::from_raw(child.parse()?);
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGTERM)?;
        wait_for("dockerd's end", Duration::from_secs(30), || {
            ensure!(!self.dockerd.is_running(), "it still runs");
            Ok(())
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("dockerd is killed: {error:#}");
            self.dockerd.kill();
        }
    }
}
