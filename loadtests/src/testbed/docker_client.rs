//! Docker clients that no one here wrote: docker, buildx and compose of the builder image, run in a root of their own.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A writable root with Debian's docker clients, and the certificates of one org at `/certs`.
#[derive(Debug)]
pub struct DockerClient {
    dir: PathBuf,
    host: String,
}

impl DockerClient {
    /// A client of the farm's Docker gateway, for the org `acme`.
    ///
    /// # Errors
    /// As [`Self::mount`], or `slipway docker-context` fails.
    pub fn of_farm(bed: &super::Testbed) -> Result<Self> {
        bed.slipway_ok(&["docker-context", "create", "farm", "--org", "acme"])?;
        let tls = bed.dir().join("docker-config/contexts/tls");
        let context = std::fs::read_dir(&tls)?
            .next()
            .context("no context was written")??
            .path();
        let certificates = context.join("docker");
        Self::mount(
            &bed.dir().join("client"),
            &certificates,
            &bed.address("docker")?,
        )
    }

    /// Mounts the builder image as the client's root. `certificates` holds `ca.pem`, `cert.pem`, `key.pem`; `address` is
    /// the gateway's `ip:port`.
    ///
    /// # Errors
    /// Not root, no image, or a mount fails.
    pub fn mount(dir: &Path, certificates: &Path, address: &str) -> Result<Self> {
        for name in ["base", "upper", "work", "root"] {
            std::fs::create_dir_all(dir.join(name))?;
        }
        let client = Self {
            dir: dir.to_owned(),
            host: format!("tcp://{address}"),
        };
        let image = super::cache_dir().join("image/base.squashfs");
        mount(
            &["-t", "squashfs", "-o", "loop,ro"],
            &image,
            &dir.join("base"),
        )?;
        let overlay = format!(
            "lowerdir={0}/base,upperdir={0}/upper,workdir={0}/work",
            dir.display()
        );
        mount(
            &["-t", "overlay", "-o", &overlay],
            Path::new("overlay"),
            &client.root(),
        )?;
        mount(
            &["-t", "proc"],
            Path::new("proc"),
            &client.root().join("proc"),
        )?;
        mount(&["--bind"], Path::new("/dev"), &client.root().join("dev"))?;
        std::fs::create_dir_all(client.root().join("certs"))?;
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            std::fs::copy(
                certificates.join(name),
                client.root().join("certs").join(name),
            )
            .with_context(|| format!("copy {name}"))?;
        }
        Ok(client)
    }

    /// The same, for a dockerd whose socket is on this machine.
    ///
    /// # Errors
    /// As [`Self::mount`].
    pub fn mount_for_socket(dir: &Path, socket: &Path) -> Result<Self> {
        let none = dir.join("none");
        std::fs::create_dir_all(&none)?;
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            std::fs::write(none.join(name), "")?;
        }
        let mut client = Self::mount(dir, &none, "")?;
        let inside = client.root().join("docker.sock");
        std::fs::write(&inside, "")?;
        mount(&["--bind"], socket, &inside)?;
        client.host = "unix:///docker.sock".into();
        Ok(client)
    }

    /// The client's root; what lies below it, the commands see below `/`.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// A program of the root, with the environment of a `docker` that is to use the gateway.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, program: &str, arguments: &[S]) -> Command {
        let mut command = Command::new("chroot");
        command
            .arg(self.root())
            .arg(program)
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin")
            .env("HOME", "/root")
            .env("DOCKER_HOST", &self.host)
            .stdin(Stdio::null());
        if self.host.starts_with("tcp:") {
            command
                .env("DOCKER_TLS_VERIFY", "1")
                .env("DOCKER_CERT_PATH", "/certs");
        }
        command
    }

    /// Runs `docker`, and demands that it ends well.
    ///
    /// # Errors
    /// It does not; the error has all it printed.
    pub fn docker_ok<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<String> {
        let output = self.command("docker", arguments).output()?;
        ensure!(
            output.status.success(),
            "docker failed: {}",
            super::show(&output)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for DockerClient {
    fn drop(&mut self) {
        if self.host.starts_with("unix:") {
            let _done = Command::new("umount")
                .arg(self.root().join("docker.sock"))
                .output();
        }
        for name in ["root/dev", "root/proc", "root", "base"] {
            let done = Command::new("umount").arg(self.dir.join(name)).output();
            if !done.is_ok_and(|output| output.status.success()) {
                eprintln!("{} stays mounted", self.dir.join(name).display());
            }
        }
    }
}

fn mount(options: &[&str], what: &Path, at: &Path) -> Result<()> {
    let output = Command::new("mount")
        .args(options)
        .arg(what)
        .arg(at)
        .output()?;
    ensure!(
        output.status.success(),
        "mount {}: {}",
        at.display(),
        super::show(&output)
    );
    Ok(())
}
