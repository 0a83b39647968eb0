//! Debian's docker-registry on a free port with a storage of its own.

use crate::{program, skip};
use slipway_registry_push::Digest;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const READY_WAIT_MAX: Duration = Duration::from_secs(180);

/// User of the registry with passwords.
pub(crate) const USER: &str = "someone";
/// Its password.
pub(crate) const PASSWORD: &str = "secret-word";
/// bcrypt of it, as `htpasswd -B` writes it.
const PASSWORD_HASH: &str = "$2b$04$c8VbT1TZioeTyRkSBZRSu.bOvKXw7g2izbeDVAjHyO4Rg04Q2YPE6";

/// What the registry asks for.
pub(crate) enum Access {
    Open,
    Password,
    /// Tokens signed with a certificate, from a token server.
    Token {
        realm: String,
        certificate: PathBuf,
    },
}

/// A running registry. Ends when dropped.
pub(crate) struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    pub(crate) address: SocketAddr,
}

impl Registry {
    /// Starts one; `None` when docker-registry is not installed.
    pub(crate) fn start(access: &Access) -> Option<Registry> {
        Registry::start_with(access, "")
    }

    /// The same with more lines in the `http` section.
    pub(crate) fn start_with(access: &Access, http: &str) -> Option<Registry> {
        let Some(binary) = program("docker-registry") else {
            skip("needs docker-registry");
            return None;
        };
        // Between choosing a port and listening on it, somebody else may take it: try again then.
        for _ in 0..5 {
            if let Some(registry) = Registry::try_start(&binary, access, http) {
                return Some(registry);
            }
        }
        panic!("docker-registry does not start");
    }

    fn try_start(binary: &PathBuf, access: &Access, http: &str) -> Option<Registry> {
        let dir = tempfile::Builder::new()
            .prefix("slipway-push-registry-")
            .tempdir()
            .unwrap();
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let users = dir.path().join("users");
        std::fs::write(&users, format!("{USER}:{PASSWORD_HASH}\n")).unwrap();
        let auth = match access {
            Access::Open => String::new(),
            Access::Password => format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                users.display()
            ),
            Access::Token { realm, certificate } => format!(
                "auth: {{token: {{realm: \"{realm}\", service: test, issuer: test, rootcertbundle: {}}}}}\n",
                certificate.display()
            ),
        };
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp:\n  addr: {address}\n{http}{auth}",
            dir.path().join("data").display()
        );
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut child = Command::new(binary)
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + READY_WAIT_MAX;
        while TcpStream::connect(address).is_err() {
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Registry {
            child,
            dir,
            address,
        })
    }

    /// `address/repository:tag`.
    pub(crate) fn target(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// The tag's link in the registry's storage: its digest, if the tag was ever written.
    pub(crate) fn tag(&self, repository: &str, tag: &str) -> Option<Digest> {
        let path = self.dir.path().join(format!(
            "data/docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}/current/link"
        ));
        Digest::parse(std::fs::read_to_string(path).ok()?.trim()).ok()
    }

    /// A file that goes with the registry.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A blob as the registry stores it.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        std::fs::read(self.blob_path(digest)).ok()
    }

    /// Where it stores it.
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.path().join(format!(
            "data/docker/registry/v2/blobs/sha256/{}/{hex}/data",
            &hex[..2]
        ))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
