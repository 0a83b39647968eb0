//! Keys in HashiCorp Vault or OpenBao: the KV secrets engine, version 2, by its HTTP API, with an AppRole login.
//!
//! Used of the API (developer.hashicorp.com/vault/api-docs): `auth/approle/login`, `auth/token/renew-self`, `MOUNT/data/PATH` to
//! read and to write with check-and-set, `MOUNT/metadata/PATH` to delete with all versions. The policy that is needed is in
//! docs/operations.md.
//!
//! Must not know: what the keys are for.

use super::{Cause, KeyStore, KeyStoreError, draw};
use crate::limits::{VAULT_ANSWER_BYTES_MAX, VAULT_WAIT_MAX};
use crate::secret_file;
use async_trait::async_trait;
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use slipway_core::id::VolumeId;
use slipway_core::key::VolumeKey;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Where Vault is, and who we are to it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultSettings {
    /// As `https://vault.example:8200`.
    pub address: String,
    /// The certificates (PEM) that its own is checked against. Needed for `https`.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Allows `http` to an address that is not this computer's own: everybody on the way can then read keys and secrets.
    #[serde(default)]
    pub allow_insecure: bool,
    /// Namespace (Vault Enterprise, OpenBao 2.3 and later).
    #[serde(default)]
    pub namespace: Option<String>,
    /// Where the KV engine (version 2) is mounted.
    #[serde(default = "default_mount")]
    pub mount: String,
    /// What the names of our secrets begin with.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// Where AppRole is mounted, below `auth/`.
    #[serde(default = "default_approle")]
    pub approle_mount: String,
    /// File with the role's id.
    pub role_id_file: PathBuf,
    /// File with the role's secret (mode 0600).
    pub secret_id_file: PathBuf,
}

fn default_mount() -> String {
    "secret".to_owned()
}

fn default_prefix() -> String {
    "slipway/volumes".to_owned()
}

fn default_approle() -> String {
    "approle".to_owned()
}

/// A key store in Vault.
#[derive(Debug)]
pub struct VaultKeys {
    settings: VaultSettings,
    client: Client,
    token: tokio::sync::Mutex<Option<Token>>,
}

/// What a login gave.
struct Token {
    secret: Zeroizing<String>,
    renewable: bool,
    /// From here on it is renewed before it is used.
    renew_at: Instant,
    ends_at: Instant,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

#[derive(Deserialize)]
struct Auth {
    client_token: String,
    lease_duration: u64,
    renewable: bool,
}

impl Token {
    fn new(auth: Auth, now: Instant) -> Self {
        let life = Duration::from_secs(auth.lease_duration);
        Self {
            secret: Zeroizing::new(auth.client_token),
            renewable: auth.renewable,
            renew_at: now + life * 2 / 3,
            ends_at: now + life,
        }
    }
}

impl VaultKeys {
    /// Reads what is needed to log in; asks nothing yet.
    ///
    /// # Errors
    /// [`KeyStoreError::Denied`] if a file cannot be read, or the address needs one that is not given.
    pub fn new(settings: VaultSettings) -> Result<Self, KeyStoreError> {
        check_address(&settings).map_err(|why| KeyStoreError::Denied(why.into()))?;
        let builder = Client::builder()
            .timeout(VAULT_WAIT_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured(tls(settings.ca_file.as_deref())?);
        let client = builder.build();
        let client = client.map_err(|error| KeyStoreError::Denied(error.into()))?;
        Ok(Self {
            settings,
            client,
            token: tokio::sync::Mutex::default(),
        })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/v1/{path}", self.settings.address.trim_end_matches('/'));
        let request = self
            .client
            .request(method, url)
            .header("X-Vault-Request", "true");
        match &self.settings.namespace {
            Some(namespace) => request.header("X-Vault-Namespace", namespace),
            None => request,
        }
    }

    /// A token that lives: the one there is, renewed if it is due, or that of a new login.
    async fn token(&self, anew: bool) -> Result<Zeroizing<String>, KeyStoreError> {
        let mut held = self.token.lock().await;
        let now = Instant::now();
        let living = held.take().filter(|token| !anew && token.ends_at > now);
        let token = match living {
            Some(token) if token.renew_at > now => token,
            Some(token) if token.renewable => match self.renew(&token).await {
                Ok(token) => token,
                Err(_) => self.log_in().await?,
            },
            Some(_) | None => self.log_in().await?,
        };
        let secret = token.secret.clone();
        *held = Some(token);
        Ok(secret)
    }

    async fn log_in(&self) -> Result<Token, KeyStoreError> {
        let secret = |file: &Path| {
            let text =
                secret_file::read(file).map_err(|error| KeyStoreError::Denied(error.into()))?;
            let text = Zeroizing::new(text);
            String::from_utf8(text.trim_ascii().to_vec())
                .map(Zeroizing::new)
                .map_err(|_| {
                    KeyStoreError::Denied(format!("{} is not text", file.display()).into())
                })
        };
        let (role, own) = (
            secret(&self.settings.role_id_file)?,
            secret(&self.settings.secret_id_file)?,
        );
        let path = format!("auth/{}/login", self.settings.approle_mount);
        let request = self
            .request(Method::POST, &path)
            .json(&json!({"role_id": *role, "secret_id": *own}));
        self.authenticated(request).await
    }

    async fn renew(&self, token: &Token) -> Result<Token, KeyStoreError> {
        let request = self
            .request(Method::POST, "auth/token/renew-self")
            .header("X-Vault-Token", token.secret.as_str())
            .json(&json!({}));
        self.authenticated(request).await
    }

    async fn authenticated(&self, request: RequestBuilder) -> Result<Token, KeyStoreError> {
        let (status, body) = answer(request).await?;
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        #[derive(Deserialize)]
        struct Login {
            auth: Auth,
        }
        let login: Login = serde_json::from_slice(&body)
            .map_err(|_| KeyStoreError::Unavailable("its answer to a login is none".into()))?;
        Ok(Token::new(login.auth, Instant::now()))
    }

    /// One request with a token; once more with a new one if that was refused (it may have been revoked).
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Zeroizing<Vec<u8>>), KeyStoreError> {
        for anew in [false, true] {
            let token = self.token(anew).await?;
            let mut request = self
                .request(method.clone(), path)
                .header("X-Vault-Token", token.as_str());
            if let Some(body) = body {
                request = request.json(body);
            }
            let (status, body) = answer(request).await?;
            if status != StatusCode::FORBIDDEN || anew {
                return Ok((status, body));
            }
        }
        Err(KeyStoreError::Denied("no token is taken".into()))
    }

    fn path(&self, part: &str, volume: &VolumeId) -> String {
        let VaultSettings { mount, prefix, .. } = &self.settings;
        format!("{mount}/{part}/{prefix}/{volume}")
    }
}

#[async_trait]
impl KeyStore for VaultKeys {
    fn name(&self) -> &'static str {
        "vault"
    }

    async fn ensure(&self, volume: &VolumeId) -> Result<VolumeKey, KeyStoreError> {
        if let Some(key) = self.get(volume).await? {
            return Ok(key);
        }
        let key = draw()?;
        // Check-and-set 0: only where there is none.
        let body = json!({"options": {"cas": 0}, "data": {"key": &key}});
        let (status, answer) = self
            .ask(Method::POST, &self.path("data", volume), Some(&body))
            .await?;
        if status.is_success() {
            return Ok(key);
        }
        // Somebody was faster, so that there is one now; else this is the refusal.
        if status == StatusCode::BAD_REQUEST
            && let Some(key) = self.get(volume).await?
        {
            return Ok(key);
        }
        Err(refusal(status, &answer))
    }

    async fn get(&self, volume: &VolumeId) -> Result<Option<VolumeKey>, KeyStoreError> {
        #[derive(Deserialize)]
        struct Secret {
            data: Data,
        }
        #[derive(Deserialize)]
        struct Data {
            data: Key,
        }
        #[derive(Deserialize)]
        struct Key {
            key: VolumeKey,
        }
        let (status, body) = self
            .ask(Method::GET, &self.path("data", volume), None)
            .await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        serde_json::from_slice(&body)
            .map(|secret: Secret| Some(secret.data.data.key))
            .map_err(|_| KeyStoreError::Unreadable {
                volume: volume.clone(),
                reason: "the secret has no field `key` that is one",
            })
    }

    async fn destroy(&self, volume: &VolumeId) -> Result<(), KeyStoreError> {
        let (status, body) = self
            .ask(Method::DELETE, &self.path("metadata", volume), None)
            .await?;
        if status.is_success() || status == StatusCode::NOT_FOUND {
            Ok(())
        } else {
            Err(refusal(status, &body))
        }
    }
}

/// Keys and the secret to get them go to no address in clear, unless it is this computer's own or the operator says so.
fn check_address(settings: &VaultSettings) -> Result<(), &'static str> {
    let url = Url::parse(&settings.address).map_err(|_| "its address is no URL")?;
    match url.scheme() {
        "https" if settings.ca_file.is_some() => Ok(()),
        "https" => Err("its address is https, so it needs ca_file"),
        "http" if settings.allow_insecure || is_loopback(&url) => Ok(()),
        "http" => Err(
            "its address is http, so that keys would go in clear: it must be https (or set allow_insecure)",
        ),
        _ => Err("its address is neither https nor http"),
    }
}

fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse()
            .is_ok_and(|address: IpAddr| address.to_canonical().is_loopback())
}

async fn answer(
    request: RequestBuilder,
) -> Result<(StatusCode, Zeroizing<Vec<u8>>), KeyStoreError> {
    // The address is in it, and no secret.
    let unavailable = |error: reqwest::Error| KeyStoreError::Unavailable(error.into());
    let mut response = request.send().await.map_err(unavailable)?;
    let mut body = Zeroizing::new(Vec::with_capacity(VAULT_ANSWER_BYTES_MAX));
    while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
        if body.len() + chunk.len() > VAULT_ANSWER_BYTES_MAX {
            return Err(KeyStoreError::Unavailable("its answer is too long".into()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((response.status(), body))
}

/// What an answer that is no success says: `{"errors": [..]}`.
fn refusal(status: StatusCode, body: &[u8]) -> KeyStoreError {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Errors {
        errors: Vec<String>,
    }
    let errors: Errors = serde_json::from_slice(body).unwrap_or_default();
    let text = format!("{status}: {}", errors.errors.join("; "));
    // 429 is a standby, 472 and 473 are others of them, 5xx sealed or ill.
    if status.is_server_error() || [429, 472, 473].contains(&status.as_u16()) {
        KeyStoreError::Unavailable(text.into())
    } else {
        KeyStoreError::Denied(text.into())
    }
}

/// The file with Vault's authority cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("read certificates in {}", path.display())]
struct CaFileError {
    path: PathBuf,
    #[source]
    source: Cause,
}

/// Trusts what is signed by the certificates in `ca_file`, and nothing else.
fn tls(ca_file: Option<&Path>) -> Result<rustls::ClientConfig, KeyStoreError> {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    if let Some(file) = ca_file {
        let denied = |source: Cause| {
            let path = file.to_owned();
            KeyStoreError::Denied(CaFileError { path, source }.into())
        };
        let certificates = CertificateDer::pem_file_iter(file).map_err(|e| denied(e.into()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|e| denied(e.into()))?;
            roots.add(certificate).map_err(|e| denied(e.into()))?;
        }
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| KeyStoreError::Denied(error.into()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
