//! Logins of registries that `docker login` stored on this computer: `config.json` of the docker command, `DOCKER_AUTH_CONFIG`, and the
//! credential helpers they name (<https://docs.docker.com/reference/cli/docker/login/#credential-stores>).
//!
//! A helper is asked when a registry's login is needed and for that registry alone, once. Must not know what a login is used for.
//! Secrets go over pipes, never into arguments or messages.

use crate::limits::CREDENTIAL_HELPER_WAIT_MAX;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use slipway_buildkit::{RegistryLogin, RegistryLogins};
use slipway_core::build::RegistryCredential;
use slipway_terminal::limits::CONFIG_BYTES_MAX;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OnceCell;

/// Docker Hub, as images name it.
const HUB: &str = "docker.io";
/// Docker Hub's entry in the file, for historical reasons.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// What a helper answers as user name when the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// A configuration of logins alone, which goes before the file.
const AUTH_VARIABLE: &str = "DOCKER_AUTH_CONFIG";
/// What helpers say of a registry that they have no login for.
const NOT_FOUND: &str = "credentials not found";

#[derive(Deserialize, Default)]
struct File {
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
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// What the docker command has stored. Clones share what was found.
#[derive(Clone, Default)]
pub(crate) struct DockerLogins(Arc<Inner>);

#[derive(Default)]
struct Inner {
    env: File,
    file: File,
    /// Where helpers are looked for.
    path: String,
    found: Mutex<HashMap<String, Found>>,
    complaints: Mutex<Vec<String>>,
}

/// A registry's login, once it was looked for.
type Found = Arc<OnceCell<Option<RegistryCredential>>>;

impl std::fmt::Debug for DockerLogins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DockerLogins")
            .field("registries", &self.0.file.auths.keys())
            .finish_non_exhaustive()
    }
}

#[slipway_buildkit::async_trait]
impl RegistryLogins for DockerLogins {
    async fn find(&self, registry: &str) -> Option<RegistryLogin> {
        let found = self.login(registry).await?;
        Some(RegistryLogin {
            registry: found.registry,
            username: found.username,
            secret: found.password,
        })
    }
}

impl DockerLogins {
    /// Reads `config.json` of a directory, and the environment. Absent is as good as empty; what is there and cannot be read is reported by
    /// [`DockerLogins::complaints`].
    pub(crate) fn read(dir: Option<&Path>, env: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut complaints = Vec::new();
        let mut parse = |text: &[u8], place: &str| {
            serde_json::from_slice(text).unwrap_or_else(|error| {
                complaints.push(format!("no login is read from {place}: {error}"));
                File::default()
            })
        };
        let text = env(AUTH_VARIABLE).filter(|text| !text.is_empty());
        let own = text.map(|text| parse(text.as_bytes(), AUTH_VARIABLE));
        let path = dir.map(|dir| dir.join("config.json"));
        let text = path.as_ref().map(|path| {
            let mut text = Vec::new();
            std::fs::File::open(path)
                .and_then(|file| file.take(CONFIG_BYTES_MAX).read_to_end(&mut text))
                .map(|_| text)
        });
        let file = match (&path, text) {
            (Some(path), Some(Ok(text))) => parse(&text, &path.display().to_string()),
            (Some(path), Some(Err(error))) if error.kind() != std::io::ErrorKind::NotFound => {
                complaints.push(format!("no login is read from {}: {error}", path.display()));
                File::default()
            }
            _ => File::default(),
        };
        Self(Arc::new(Inner {
            env: own.unwrap_or_default(),
            file,
            path: env("PATH").unwrap_or_default(),
            found: Mutex::default(),
            complaints: Mutex::new(complaints),
        }))
    }

    /// What went wrong since this was last asked, one line each: which file or helper, and why.
    pub(crate) fn complaints(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.0.complaints))
    }

    /// The login of a registry host, if there is one.
    pub(crate) async fn login(&self, registry: &str) -> Option<RegistryCredential> {
        let registry = host_of(registry);
        let found = lock(&self.0.found)
            .entry(registry.clone())
            .or_default()
            .clone();
        let look = || self.look_for(&registry);
        found.get_or_init(look).await.clone()
    }

    async fn look_for(&self, registry: &str) -> Option<RegistryCredential> {
        let (env, file) = (&self.0.env, &self.0.file);
        if let Some(found) = self.stored(env, registry) {
            return Some(found);
        }
        let key = if registry == HUB { HUB_KEY } else { registry };
        let own = file
            .helpers
            .iter()
            .find(|(key, _)| host_of(key) == registry);
        let helper = own.map(|(_, helper)| helper).or(file.store.as_ref());
        if let Some(helper) = helper.filter(|it| !it.is_empty()) {
            match ask_helper(&self.0.path, helper, key).await {
                Ok(Some(found)) => {
                    return Some(credential(registry, found.username, found.secret));
                }
                Ok(None) => {}
                Err(why) => self.complain(format!(
                    "docker-credential-{helper} gave no login of {registry}: {why}"
                )),
            }
        }
        self.stored(file, registry)
    }

    fn stored(&self, file: &File, registry: &str) -> Option<RegistryCredential> {
        let exact = file.auths.get(registry);
        let of_host = || {
            let mut entries = file.auths.iter();
            entries.find(|(key, _)| host_of(key) == registry)
        };
        let auth = exact.or_else(|| of_host().map(|(_, auth)| auth))?;
        if !auth.identitytoken.is_empty() {
            return Some(credential(
                registry,
                String::new(),
                auth.identitytoken.clone(),
            ));
        }
        if !auth.registrytoken.is_empty() {
            self.complain(format!(
                "the login of {registry} is a registrytoken, which is not used: log in with `docker login`"
            ));
            return None;
        }
        if !auth.auth.is_empty() {
            let pair = STANDARD.decode(&auth.auth).ok();
            let pair = pair.and_then(|pair| String::from_utf8(pair).ok());
            let Some((username, password)) = pair.as_ref().and_then(|it| it.split_once(':')) else {
                self.complain(format!("the login of {registry} cannot be read"));
                return None;
            };
            let password = password.trim_matches('\0').to_owned();
            return Some(credential(registry, username.to_owned(), password));
        }
        let has_login = !auth.username.is_empty() && !auth.password.is_empty();
        has_login.then(|| credential(registry, auth.username.clone(), auth.password.clone()))
    }

    fn complain(&self, line: String) {
        lock(&self.0.complaints).push(line);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The registry that a key of the file is for: without scheme and path, and Docker Hub's names as one.
fn host_of(key: &str) -> String {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let host = bare.split('/').next().unwrap_or(bare).to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => HUB.to_owned(),
        _ => host,
    }
}

/// `docker-credential-<helper> get`, with the key on standard input. None: it has no such login. Dropping it ends the helper.
async fn ask_helper(path: &str, helper: &str, key: &str) -> Result<Option<HelperAnswer>, String> {
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if !helper.bytes().all(is_name) {
        return Err("that is not the name of a helper".to_owned());
    }
    let asked =
        tokio::time::timeout(CREDENTIAL_HELPER_WAIT_MAX, run_helper(path, helper, key)).await;
    let (succeeded, answer) = asked
        .map_err(|_| {
            format!(
                "no answer within {} s",
                CREDENTIAL_HELPER_WAIT_MAX.as_secs()
            )
        })?
        .map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                "it is not installed".to_owned()
            } else {
                error.to_string()
            }
        })?;
    if !succeeded {
        // Helpers say why on standard output, where a login would stand.
        let why = String::from_utf8_lossy(&answer);
        let why = why.lines().next().unwrap_or_default().trim();
        return match why.contains(NOT_FOUND) {
            true => Ok(None),
            false => Err(format!("it failed: {why}")),
        };
    }
    match serde_json::from_slice::<HelperAnswer>(&answer) {
        Ok(answer) if answer.secret.is_empty() => Ok(None),
        Ok(answer) => Ok(Some(answer)),
        Err(_) => Err("its answer cannot be read".to_owned()),
    }
}

/// Whether it succeeded, and what it wrote.
async fn run_helper(path: &str, helper: &str, key: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = tokio::process::Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input may know the answer all the same.
        let _unread = stdin.write_all(key.as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(CONFIG_BYTES_MAX)
            .read_to_end(&mut answer)
            .await?;
    }
    Ok((child.wait().await?.success(), answer))
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
#[path = "docker_logins_tests.rs"]
mod tests;
