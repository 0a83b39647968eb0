//! `slipwayd serve`: opens everything in the data directory, binds the listeners, and ends it all in order.
//!
//! Must not know: what is asked of the listeners.

use crate::api::Api;
use crate::auth::{Authenticator, Secret};
use crate::bounds::DRAIN_WAIT_MAX;
use crate::builds::{BuildError, BuildService};
use crate::ca::{CaError, CertificateAuthority};
use crate::clock::now;
use crate::credentials::Credentials;
pub use crate::data_dir::DataDirError;
use crate::data_dir::{self, DataDirLock};
use crate::entropy::entropy;
use crate::farm::{Farm, FarmError, FarmSettings, FarmTasks};
use crate::gateway::{self, Builders, Gateway};
use crate::keys::{
    EmbeddedKeys, KeyBroker, KeyStore, KeyStoreError, MasterKeyError, MasterKeys, VaultKeys,
};
use crate::lending::{Lending, LendingError};
use crate::listener::{Listener, serve_http};
use crate::parts::{Parts, PublicAddresses};
use crate::seal::{SealError, Sealer};
use crate::secret_file::{self, SecretFileError};
use crate::settings::{InvalidSettings, KeySettings, ServeSettings};
use crate::tls::{ClientCertificates, ServerIdentity, TlsError};
use slipway_core::ceilings::PoolShare;
use slipway_core::id::TokenId;
use slipway_store::{SqliteStore, Store, StoreError, Token, TokenRole};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The administrator's token, in the data directory.
pub const ADMIN_TOKEN_FILE: &str = "admin.token";
/// Where the listeners are, in the data directory: written when all of them take connections.
pub const ADDRESSES_FILE: &str = "addresses.json";
pub(crate) const DATABASE_FILE: &str = "slipway.db";

/// Why the control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The settings are not good.
    #[error("settings")]
    Settings(#[from] InvalidSettings),
    /// The data directory cannot be used.
    #[error("open the data directory")]
    DataDir(#[from] DataDirError),
    /// The master key of the volumes' keys.
    #[error("open the key store")]
    MasterKey(#[from] MasterKeyError),
    /// The key store.
    #[error("open the key store")]
    KeyStore(#[from] KeyStoreError),
    /// A secret or the addresses cannot be kept.
    #[error("keep a file in the data directory")]
    File(#[from] SecretFileError),
    /// The database.
    #[error("open the store")]
    Store(#[from] StoreError),
    /// The certificate authority.
    #[error("open the certificate authority")]
    Authority(#[from] CaError),
    /// How registries are asked.
    #[error("settings")]
    Lending(#[from] LendingError),
    /// The master key.
    #[error("open the master key")]
    Seal(#[from] SealError),
    /// TLS.
    #[error("set up TLS")]
    Tls(#[from] TlsError),
    /// A listener.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The farm.
    #[error("start the farm")]
    Farm(#[from] FarmError),
    /// The builds.
    #[error("adopt the builds")]
    Builds(#[from] BuildError),
    /// The administrator's token in its file is none.
    #[error("{ADMIN_TOKEN_FILE} holds no token (remove it, and a new one is made)")]
    AdminToken,
}

/// What is open before anybody is served.
struct Opened {
    store: Arc<SqliteStore>,
    authority: Arc<CertificateAuthority>,
    sealer: Sealer,
}

struct Listeners {
    api: Listener,
    docker: Listener,
    buildkit: Listener,
}

/// Runs the control plane until `shutdown` is ready. Builders and builds outlive it; the next start adopts them.
///
/// # Errors
/// [`ServeError`], before anything is served. Once it serves, it does so until `shutdown`.
pub async fn run(
    settings: ServeSettings,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let running = start(settings, |farm| Arc::new(farm.clone())).await?;
    shutdown.await;
    tracing::info!("shutting down");
    running.end().await;
    Ok(())
}

/// A control plane that serves.
pub(crate) struct Running {
    cancel: CancellationToken,
    tasks: TaskTracker,
    farm_tasks: FarmTasks,
    store: Arc<SqliteStore>,
    _lock: DataDirLock,
}

/// Opens everything and begins to serve. `way` chooses the way to builders; it is the farm, but for tests of odd builders.
///
/// # Errors
/// [`ServeError`].
pub(crate) async fn start(
    settings: ServeSettings,
    way: impl FnOnce(&Farm) -> Arc<dyn Builders>,
) -> Result<Running, ServeError> {
    settings.check()?;
    // Before anything in it is read or made: a second control plane would drive the same machines, and make keys of its own.
    let lock = data_dir::take(&settings.data_dir)?;
    let ceilings = settings.ceilings();
    let opened = open(&settings.data_dir, ceilings.pool).await?;
    let cancel = CancellationToken::new();
    let identity = Arc::new(ServerIdentity::new(
        Arc::clone(&opened.authority),
        certificate_names(&settings),
    )?);
    let listeners = Listeners::bind(&settings, &identity).await?;
    let store: Arc<dyn Store> = Arc::clone(&opened.store) as Arc<dyn Store>;
    let hosts = settings.host_settings();
    let keys = Some(key_broker(&settings, &store).await?);
    let (farm, farm_tasks) = Farm::start(
        Arc::clone(&store),
        FarmSettings {
            hosts,
            keys,
            ceilings,
        },
    )
    .await?;
    let tasks = TaskTracker::new();
    let authenticator = Authenticator::new(Arc::clone(&store));
    let watched = authenticator.clone();
    let credentials = Credentials::new(Arc::clone(&store), opened.sealer);
    let lending = Lending::new(credentials.clone(), &settings.registries)?;
    let builds = BuildService::start(&farm, Some(lending.clone())).await?;
    let gateway = Gateway::new(
        authenticator.clone(),
        lending.clone(),
        way(&farm),
        builds.clone(),
        tasks.clone(),
    );
    let api = Api::new(Parts {
        addresses: listeners.public_addresses(&settings),
        authority: opened.authority,
        settings: Arc::new(settings.clone()),
        store,
        farm,
        builds,
        authenticator,
        credentials,
        lending,
        cancel: cancel.clone(),
        tasks: tasks.clone(),
    });
    tasks.spawn(identity.keep_fresh(cancel.clone()));
    tasks.spawn(watched.watch(cancel.clone()));
    let addresses = listeners.addresses();
    listeners.spawn(&tasks, &cancel, gateway, api);
    let path = settings.data_dir.join(ADDRESSES_FILE);
    // For tools beside this process. On a full disk they find what was there before.
    if let Err(error) = secret_file::write_public(&path, addresses.to_string().as_bytes()) {
        let why = crate::chain::chain(&error);
        tracing::warn!(?why, "the addresses are not written");
    }
    tracing::info!(%addresses, "serving");
    let store = opened.store;
    Ok(Running {
        cancel,
        tasks,
        farm_tasks,
        store,
        _lock: lock,
    })
}

impl Running {
    /// Ends in the order of dependence: listeners and requests, then the farm's tasks, then the store.
    pub(crate) async fn end(self) {
        self.cancel.cancel();
        self.tasks.close();
        let drained = tokio::time::timeout(DRAIN_WAIT_MAX, self.tasks.wait()).await;
        if drained.is_err() {
            tracing::info!(streams = self.tasks.len(), "streams cut");
        }
        self.farm_tasks.shutdown().await;
        self.store.close().await;
    }
}

/// Opens the key store, and seals anew what an older master key sealed.
async fn key_broker(
    settings: &ServeSettings,
    store: &Arc<dyn Store>,
) -> Result<Arc<KeyBroker>, ServeError> {
    let keys: Arc<dyn KeyStore> = match &settings.keys {
        KeySettings::Embedded {
            master_key_file,
            previous_master_key_files,
        } => {
            let master = MasterKeys::open(
                &settings.data_dir,
                master_key_file.as_deref(),
                previous_master_key_files,
            )?;
            let keys = EmbeddedKeys::new(Arc::clone(store), master);
            let renewed = keys.rotate().await?;
            if renewed > 0 {
                tracing::info!(renewed, "keys of volumes sealed under the new master key");
            }
            Arc::new(keys)
        }
        KeySettings::Vault(vault) => Arc::new(VaultKeys::new(vault.clone())?),
    };
    tracing::info!(store = keys.name(), "keys of volumes");
    Ok(Arc::new(KeyBroker::new(Arc::clone(store), keys)))
}

async fn open(data_dir: &Path, share: PoolShare) -> Result<Opened, ServeError> {
    let authority = Arc::new(CertificateAuthority::open(data_dir, now())?);
    let sealer = Sealer::open(data_dir)?;
    let store = SqliteStore::open(&data_dir.join(DATABASE_FILE)).await?;
    let store = Arc::new(store.sharing_pools(share));
    admin_token(data_dir, &*store).await?;
    Ok(Opened {
        store,
        authority,
        sealer,
    })
}

/// Makes the administrator's token if there is none. The file comes first, so that a kill between the two leaves a file
/// whose token is then recorded.
async fn admin_token(data_dir: &Path, store: &dyn Store) -> Result<(), ServeError> {
    let path = data_dir.join(ADMIN_TOKEN_FILE);
    let content = secret_file::read_or_make(&path, || {
        Secret::draw().map(|secret| format!("{}\n", secret.expose()).into_bytes())
    })?;
    let text = String::from_utf8(content).map_err(|_| ServeError::AdminToken)?;
    let hash = Secret::parse(text.trim())
        .ok_or(ServeError::AdminToken)?
        .hash();
    if store.token_by_hash(&hash).await?.is_some() {
        return Ok(());
    }
    let token = Token {
        id: TokenId::from_entropy(entropy().map_err(FarmError::from)?),
        org: None,
        app: None,
        name: "administrator".to_owned(),
        role: TokenRole::Admin,
        created_at: now(),
        expires_at: None,
        revoked_at: None,
        last_used_at: None,
    };
    store.create_token(&token, &hash).await?;
    tracing::info!(token = %token.id, path = %path.display(), "administrator's token made");
    Ok(())
}

/// Everything a client may know this server by.
fn certificate_names(settings: &ServeSettings) -> Vec<String> {
    let mut names = settings.public_names.clone();
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    for address in [
        settings.listen_api,
        settings.listen_docker,
        settings.listen_buildkit,
    ] {
        if !address.ip().is_unspecified() {
            names.push(address.ip().to_string());
        }
    }
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

impl Listeners {
    async fn bind(
        settings: &ServeSettings,
        identity: &Arc<ServerIdentity>,
    ) -> Result<Self, ServeError> {
        let bind = async |address, clients, alpn: &[u8]| {
            let acceptor = identity.acceptor(clients, alpn)?;
            Listener::bind(address, acceptor)
                .await
                .map_err(|source| ServeError::Listen { address, source })
        };
        Ok(Self {
            api: bind(
                settings.listen_api,
                ClientCertificates::Ignored,
                b"http/1.1",
            )
            .await?,
            docker: bind(
                settings.listen_docker,
                ClientCertificates::Optional,
                b"http/1.1",
            )
            .await?,
            buildkit: bind(
                settings.listen_buildkit,
                ClientCertificates::Required,
                b"h2",
            )
            .await?,
        })
    }

    fn addresses(&self) -> serde_json::Value {
        serde_json::json!({
            "api": self.api.address().to_string(),
            "docker": self.docker.address().to_string(),
            "buildkit": self.buildkit.address().to_string(),
        })
    }

    fn public_addresses(&self, settings: &ServeSettings) -> PublicAddresses {
        let public = |address: SocketAddr| match settings.public_names.first() {
            Some(name) if name.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) => {
                format!("[{name}]:{}", address.port())
            }
            Some(name) => format!("{name}:{}", address.port()),
            None if address.ip().is_unspecified() => format!("localhost:{}", address.port()),
            None => address.to_string(),
        };
        PublicAddresses {
            api: public(self.api.address()),
            docker: public(self.docker.address()),
            buildkit: public(self.buildkit.address()),
        }
    }

    fn spawn(self, tasks: &TaskTracker, cancel: &CancellationToken, gateway: Gateway, api: Api) {
        let docker = gateway.clone();
        tasks.spawn(self.docker.run(
            tasks.clone(),
            cancel.clone(),
            move |tls, connection, cancel| {
                let gateway = docker.clone();
                serve_http(tls, Arc::clone(&connection), cancel, move |request| {
                    let (gateway, connection) = (gateway.clone(), Arc::clone(&connection));
                    async move { gateway.serve(&connection, request).await }
                })
            },
        ));
        tasks.spawn(self.buildkit.run(
            tasks.clone(),
            cancel.clone(),
            move |tls, connection, cancel| {
                let gateway = gateway.clone();
                async move {
                    tokio::select! {
                        () = cancel.cancelled() => {}
                        () = gateway::serve_buildkit(&gateway, &connection, tls) => {}
                    }
                }
            },
        ));
        tasks.spawn(self.api.run(
            tasks.clone(),
            cancel.clone(),
            move |tls, connection, cancel| {
                let (api, cut) = (api.clone(), connection.cut().clone());
                let served = serve_http(tls, Arc::clone(&connection), cancel, move |request| {
                    let (api, connection) = (api.clone(), Arc::clone(&connection));
                    async move { api.serve(&connection, request).await }
                });
                async move {
                    tokio::select! {
                        () = cut.cancelled() => tracing::debug!("a client that does not read is cut off"),
                        () = served => {}
                    }
                }
            },
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, Who, request};

    #[tokio::test]
    async fn a_second_control_plane_on_the_same_data_is_refused_and_changes_nothing() {
        let mut bench = Bench::start().await;
        let addresses = bench.file(ADDRESSES_FILE);
        let second = start(bench.settings(), |farm| Arc::new(farm.clone())).await;
        let Err(ServeError::DataDir(refused)) = second else {
            panic!("it started");
        };
        let own = format!("process {}", std::process::id());
        assert!(refused.to_string().contains(&own), "{refused}");
        assert_eq!(bench.file(ADDRESSES_FILE), addresses);
        let health = request("GET", "/healthz", crate::http::empty());
        let answer = bench.ask("api", &Who::default(), health).await;
        assert_eq!(answer.status, 200);
        bench.end().await;
        bench.resume().await;
        bench.end().await;
    }
}
