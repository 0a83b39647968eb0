//! Debian's docker-registry on the gateway address of a farm, so that builders reach it.

use super::process::{Process, dies_with_us, wait_for};
use super::tokens::TokenServer;
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// `htpasswd -B`'s line for the user `someone` with the password `secret-word`.
const USERS: &str = "someone:$2b$04$c8VbT1TZioeTyRkSBZRSu.bOvKXw7g2izbeDVAjHyO4Rg04Q2YPE6\n";

/// A real registry over plain HTTP.
#[derive(Debug)]
pub struct Registry {
    address: String,
    dir: PathBuf,
    /// Lines of the settings that say who may come in.
    access: String,
    process: Option<Process>,
}

impl Registry {
    pub(super) fn new(dir: &Path, ip: Ipv4Addr) -> Self {
        Self {
            address: format!("{ip}:5000"),
            dir: dir.to_owned(),
            access: String::new(),
            process: None,
        }
    }

    /// One for the user `someone` with the password `secret-word` alone.
    pub(super) fn private(dir: &Path, address: String) -> Self {
        Self {
            address,
            dir: dir.to_owned(),
            access: format!(
                "auth: {{htpasswd: {{realm: test, path: {}/users}}}}\n",
                dir.display()
            ),
            process: None,
        }
    }

    /// One for whoever shows a token of this server.
    pub(super) fn with_tokens(dir: &Path, address: String, tokens: &TokenServer) -> Self {
        Self {
            address,
            dir: dir.to_owned(),
            access: format!(
                "auth: {{token: {{realm: \"{}\", service: test, issuer: test, rootcertbundle: {}}}}}\n",
                tokens.realm,
                tokens.certificate.display()
            ),
            process: None,
        }
    }

    /// One with TLS, and this certificate and key (PEM files).
    pub(super) fn secure(dir: &Path, address: String, certificate: &Path, key: &Path) -> Self {
        Self {
            address,
            dir: dir.to_owned(),
            access: format!(
                "  tls: {{certificate: {}, key: {}}}\n",
                certificate.display(),
                key.display()
            ),
            process: None,
        }
    }

    /// One below `dir`, at `address` (`ip:port`); not started yet.
    pub fn at(dir: &Path, address: &str) -> Self {
        Self {
            address: address.to_owned(),
            dir: dir.to_owned(),
            access: String::new(),
            process: None,
        }
    }

    /// Ends it, takes away all that it held, and starts it again.
    ///
    /// # Errors
    /// A file stays, or it does not answer.
    pub fn start_empty(&mut self) -> Result<()> {
        self.end();
        let held = self.dir.join("registry");
        if held.exists() {
            std::fs::remove_dir_all(held)?;
        }
        self.start()
    }

    /// Requests it has answered since its first start.
    pub fn requests(&self) -> u64 {
        let log = std::fs::read_to_string(self.dir.join("registry.log")).unwrap_or_default();
        // Apache's format: ... "METHOD /v2/... HTTP/1.1" status ...
        let answered = log.lines().filter(|line| line.contains(" /v2/"));
        answered.filter(|line| line.contains(" HTTP/1.")).count() as u64
    }

    /// Bodies of blobs that it has been asked for since its first start.
    pub fn blobs_given(&self) -> usize {
        let log = std::fs::read_to_string(self.dir.join("registry.log")).unwrap_or_default();
        let is_blob = |line: &&str| line.contains("\"GET /v2/") && line.contains("/blobs/");
        log.lines().filter(is_blob).count()
    }

    /// Starts it as a mirror of another one: what it does not have it fetches there, and keeps.
    ///
    /// # Errors
    /// It does not answer.
    pub fn start_as_mirror_of(&mut self, upstream: &Registry) -> Result<()> {
        self.end();
        self.access = format!("proxy: {{remoteurl: \"http://{}\"}}\n", upstream.address);
        self.start()
    }

    /// `ip:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Starts it (again), with what it held.
    ///
    /// # Errors
    /// It does not answer.
    pub fn start(&mut self) -> Result<()> {
        let config = self.dir.join("registry.yml");
        std::fs::write(self.dir.join("users"), USERS)?;
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}/registry}}, \
                 delete: {{enabled: true}}}}\nhttp:\n  addr: \"{}\"\n{}",
                self.dir.display(),
                self.address,
                self.access
            ),
        )?;
        self.start_by(&config)
    }

    /// Starts it with settings of its own, which are for its address.
    ///
    /// # Errors
    /// It does not answer.
    pub fn start_by(&mut self, config: &Path) -> Result<()> {
        self.end();
        let mut command = dies_with_us(&[]);
        command.args(["docker-registry", "serve"]).arg(config);
        self.process = Some(Process::start(
            "docker-registry",
            command,
            &self.dir.join("registry.log"),
        )?);
        let is_secure = self.access.trim_start().starts_with("tls:");
        let get = || {
            if is_secure {
                TcpStream::connect(&self.address)?;
                return Ok(());
            }
            let (code, _) = self.get("/v2/")?;
            ensure!(code == 200 || code == 401, "{code}");
            Ok(())
        };
        wait_for("the registry", Duration::from_secs(20), get)
    }

    /// Ends it.
    pub fn end(&mut self) {
        self.process = None;
    }

    /// Makes the named base images (`debian`, `busybox`, `python`, `node`, `rust`, `gcc`) available in it.
    ///
    /// # Errors
    /// The script fails.
    pub fn seed(&self, names: &[&str]) -> Result<()> {
        let script = super::checkout_dir().join("builder/image/base-images.sh");
        let output = Command::new(script)
            .arg(super::cache_dir().join("base-images"))
            .arg(&self.address)
            .args(names)
            .output()?;
        ensure!(
            output.status.success(),
            "base images:\n{}",
            super::show(&output)
        );
        Ok(())
    }

    /// Status and body of a GET, manifests of both kinds accepted.
    ///
    /// # Errors
    /// No answer, or not HTTP.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        self.ask("GET", path)
    }

    /// Status of a HEAD.
    ///
    /// # Errors
    /// No answer, or not HTTP.
    pub fn head(&self, path: &str) -> Result<u16> {
        self.ask("HEAD", path).map(|(status, _)| status)
    }

    fn ask(&self, method: &str, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nAccept: application/vnd.docker.distribution.manifest.v2+json, \
             application/vnd.oci.image.manifest.v1+json\r\n\r\n",
            self.address
        )?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        let (head, body) = text.split_once("\r\n\r\n").context("no header end")?;
        let code = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((code, body.to_owned()))
    }
}
