//! Logins of registries that `docker login` stored on this computer: `config.json` of the docker command, and the
//! credential helpers it names (<https://docs.docker.com/reference/cli/docker/login/#credential-stores>).
//!
//! Must not know what a login is used for. Secrets go over pipes, never into arguments or messages.

use crate::limits::{CONFIG_BYTES_MAX, CREDENTIAL_HELPER_WAIT_MAX};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use slipway_core::build::RegistryCredential;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;

/// Docker Hub's entry in the file, for historical reasons.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// What a helper answers as user name when the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// What the docker command has stored. Absent, unreadable or odd files are as good as empty ones: a login that is
/// needed and missing is told by the registry.
#[derive(Deserialize, Default)]
pub(crate) struct DockerLogins {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
struct Auth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

impl std::fmt::Debug for DockerLogins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DockerLogins")
            .field("registries", &self.auths.keys())
            .finish_non_exhaustive()
    }
}

impl DockerLogins {
    /// Reads `config.json` of a directory.
    pub(crate) fn read(dir: &Path) -> Self {
        let mut text = Vec::new();
        let read = std::fs::File::open(dir.join("config.json"))
            .and_then(|file| file.take(CONFIG_BYTES_MAX).read_to_end(&mut text));
        match read {
            Ok(_) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(_) => Self::default(),
        }
    }

    /// The login of a registry, if there is one.
    pub(crate) async fn find(&self, registry: &str) -> Option<RegistryCredential> {
        let key = if registry == "docker.io" {
            HUB_KEY
        } else {
            registry
        };
        let helper = self.helpers.get(registry).or(self.store.as_ref());
        if let Some(helper) = helper
            && let Some(found) = ask_helper(helper, key).await
        {
            return Some(credential(registry, found.username, found.secret));
        }
        let auth = self
            .auths
            .get(key)
            .or_else(|| self.auths.get(&format!("https://{registry}")))?;
        if !auth.identitytoken.is_empty() {
            return Some(credential(
                registry,
                String::new(),
                auth.identitytoken.clone(),
            ));
        }
        let pair = STANDARD.decode(&auth.auth).ok()?;
        let pair = String::from_utf8(pair).ok()?;
        let (username, password) = pair.split_once(':')?;
        Some(credential(
            registry,
            username.to_owned(),
            password.to_owned(),
        ))
    }

    /// All registries that there may be a login for.
    pub(crate) fn registries(&self) -> impl Iterator<Item = String> {
        self.auths
            .keys()
            .chain(self.helpers.keys())
            .map(|key| host_of(key))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
    }
}

fn credential(registry: &str, username: String, password: String) -> RegistryCredential {
    let username = if username == TOKEN_USER {
        String::new()
    } else {
        username
    };
    RegistryCredential {
        registry: registry.to_owned(),
        username,
        password,
    }
}

/// The registry that a key of the file is for.
fn host_of(key: &str) -> String {
    if key == HUB_KEY {
        return "docker.io".to_owned();
    }
    let bare = key.strip_prefix("https://").unwrap_or(key);
    bare.split('/').next().unwrap_or(bare).to_owned()
}

/// `docker-credential-<helper> get`, with the key on standard input.
async fn ask_helper(helper: &str, key: &str) -> Option<HelperAnswer> {
    if !helper
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    {
        return None;
    }
    let mut child = tokio::process::Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take()?;
    stdin.write_all(key.as_bytes()).await.ok()?;
    drop(stdin);
    let output = tokio::time::timeout(CREDENTIAL_HELPER_WAIT_MAX, child.wait_with_output()).await;
    let output = output.ok()?.ok()?;
    output
        .status
        .success()
        .then(|| serde_json::from_slice(&output.stdout).ok())?
}

/// The registry host of an image name, by Docker's rule: the part before the first slash if it has a dot or a port, or
/// is `localhost`; else Docker Hub.
pub(crate) fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        Some(_) | None => "docker.io",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn finds_what_docker_login_stored() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            r#"{{"auths": {{"r.example:5000": {{"auth": "{}"}}, "https://t.example": {{"identitytoken": "tok"}},
                "https://index.docker.io/v1/": {{"auth": "{}"}}, "odd.example": {{"auth": "!"}}}}}}"#,
            STANDARD.encode("user:pass:word"),
            STANDARD.encode("hub:secret"),
        );
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let logins = DockerLogins::read(dir.path());
        for (registry, want) in [
            ("r.example:5000", Some(("user", "pass:word"))),
            ("t.example", Some(("", "tok"))),
            ("docker.io", Some(("hub", "secret"))),
            ("odd.example", None),
            ("other.example", None),
        ] {
            let found = logins.find(registry).await;
            let found = found
                .as_ref()
                .map(|c| (c.username.as_str(), c.password.as_str()));
            assert_eq!(found, want, "{registry}");
        }
        let all: Vec<String> = logins.registries().collect();
        assert_eq!(
            all,
            ["docker.io", "odd.example", "r.example:5000", "t.example"]
        );
        assert!(!format!("{logins:?}").contains("tok\""));
        assert!(
            DockerLogins::read(Path::new("/does/not/exist"))
                .auths
                .is_empty()
        );
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_no_login() {
        assert!(ask_helper("does-not-exist", "r.example").await.is_none());
        assert!(ask_helper("../evil", "r.example").await.is_none());
    }

    #[test]
    fn registries_of_images() {
        for (image, registry) in [
            ("debian:trixie", "docker.io"),
            ("team/app", "docker.io"),
            ("localhost/app", "localhost"),
            ("r.example/app:1", "r.example"),
            ("10.0.0.1:5000/a/b:1", "10.0.0.1:5000"),
        ] {
            assert_eq!(registry_of(image), registry);
        }
    }
}
