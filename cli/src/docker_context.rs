//! Docker contexts as files: `meta.json` and the certificates, where the docker command looks for them
//! (<https://docs.docker.com/engine/manage-resources/contexts/>: a context's directory is the SHA-256 of its name).
//!
//! Must not know where certificates come from.

use crate::docker_logins::DockerLogins;
use crate::settings::write_private;
use serde_json::json;
use sha2::{Digest, Sha256};
use slipway_terminal::exit::{Failure, Outcome};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A client certificate, all PEM. `Debug` never prints the key.
pub(crate) struct ClientCertificate {
    /// Authority of the server.
    pub(crate) ca_pem: String,
    /// The certificate.
    pub(crate) cert_pem: String,
    /// Its key.
    pub(crate) key_pem: String,
}

impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientCertificate(..)")
    }
}

impl ClientCertificate {
    /// Writes `ca.pem`, `cert.pem` and `key.pem` to a directory that only its owner can enter.
    ///
    /// # Errors
    /// The caller's fault: it cannot be written.
    pub(crate) fn write(&self, dir: &Path) -> Outcome<()> {
        write_private(&dir.join("ca.pem"), self.ca_pem.as_bytes())?;
        write_private(&dir.join("cert.pem"), self.cert_pem.as_bytes())?;
        write_private(&dir.join("key.pem"), self.key_pem.as_bytes())
    }
}

/// Where the docker command keeps its things.
#[derive(Debug, Clone)]
pub(crate) struct DockerConfig {
    dir: PathBuf,
}

impl DockerConfig {
    /// `DOCKER_CONFIG`, else `~/.docker`.
    ///
    /// # Errors
    /// The caller's fault: there is no home directory.
    pub(crate) fn locate() -> Outcome<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let dir = set("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".docker")))
            .ok_or_else(|| {
                Failure::user("there is no home directory").hint("set DOCKER_CONFIG to a directory")
            })?;
        Ok(Self { dir })
    }

    /// Logins of registries.
    pub(crate) fn logins(&self) -> DockerLogins {
        DockerLogins::read(Some(&self.dir), &|name| std::env::var(name).ok())
    }

    /// Whether there is a context of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.meta(name).exists()
    }

    /// Writes a context for a Docker API at `host` (`tcp://HOST:PORT`), replacing one of the same name.
    /// The certificates go first: a context that is listed works.
    ///
    /// # Errors
    /// The caller's fault: a name that docker does not take, or a directory that cannot be written.
    pub(crate) fn write(
        &self,
        name: &str,
        description: &str,
        host: &str,
        certificate: &ClientCertificate,
    ) -> Outcome<()> {
        Self::check_name(name)?;
        let meta = json!({
            "Name": name,
            "Metadata": { "Description": description },
            "Endpoints": { "docker": { "Host": host, "SkipTLSVerify": false } },
        });
        let tls = self
            .dir
            .join("contexts")
            .join("tls")
            .join(id(name))
            .join("docker");
        certificate.write(&tls)?;
        write_private(&self.meta(name), meta.to_string().as_bytes())
    }

    /// Whether docker takes a context of this name.
    ///
    /// # Errors
    /// The caller's fault.
    pub(crate) fn check_name(name: &str) -> Outcome<()> {
        let ok = |b: u8| b.is_ascii_alphanumeric() || b"_.+-".contains(&b);
        let first = name
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        if name == "default" || name.len() < 2 || !first || !name.bytes().all(ok) {
            return Err(
                Failure::user(format!("'{name}' cannot name a docker context"))
                    .hint("letters, digits, and . _ + - after the first; not 'default'"),
            );
        }
        Ok(())
    }

    fn meta(&self, name: &str) -> PathBuf {
        self.dir
            .join("contexts")
            .join("meta")
            .join(id(name))
            .join("meta.json")
    }
}

fn id(name: &str) -> String {
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(name.as_bytes()) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn certificate() -> ClientCertificate {
        ClientCertificate {
            ca_pem: "ca".to_owned(),
            cert_pem: "cert".to_owned(),
            key_pem: "key".to_owned(),
        }
    }

    /// Read back by the docker command itself.
    #[test]
    fn docker_reads_what_we_write() {
        let Some(docker) = find_docker() else {
            assert!(
                std::env::var_os("CI").is_none(),
                "no docker command; install docker-cli"
            );
            eprintln!("skipped: no docker command here");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let config = DockerConfig {
            dir: dir.path().join("docker"),
        };
        for host in ["tcp://old:1", "tcp://builds.example:2376"] {
            config
                .write("slip", "Slipway, org acme", host, &certificate())
                .unwrap();
        }
        assert!(config.has("slip") && !config.has("other"));
        let output = Command::new(docker)
            .args(["context", "inspect", "slip"])
            .env("DOCKER_CONFIG", &config.dir)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let docker = &seen[0]["Endpoints"]["docker"];
        assert_eq!(docker["Host"], "tcp://builds.example:2376");
        assert_eq!(seen[0]["Metadata"]["Description"], "Slipway, org acme");
        let mut files: Vec<&str> = seen[0]["TLSMaterial"]["docker"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(serde_json::Value::as_str)
            .collect();
        files.sort_unstable();
        assert_eq!(files, ["ca.pem", "cert.pem", "key.pem"]);
    }

    #[test]
    fn names_that_docker_refuses_are_refused_here() {
        for name in ["", "a", "default", "-a", "a/b", "../x", "a b"] {
            assert!(DockerConfig::check_name(name).is_err(), "{name}");
        }
        for name in ["slipway", "a1", "A.b_c+d-e"] {
            assert!(DockerConfig::check_name(name).is_ok(), "{name}");
        }
    }

    fn find_docker() -> Option<PathBuf> {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|dir| dir.join("docker"))
            .find(|docker| docker.is_file())
    }
}
