//! The session side: a gRPC server on one stream, through which a builder takes files, secrets and logins.
//!
//! It must not know where the caller's settings come from, nor how the stream was made.

mod auth;
mod export;
mod health;
mod secrets;
mod ssh;
mod upload;

pub use auth::{Lends, LentToken, RegistryLogin, RegistryLogins};
pub(crate) use export::EXPORT_FAILURE;
pub use export::ExportSink;
pub use secrets::SecretSource;

use crate::filesync::FileSync;
pub use crate::filesync::{LocalDir, SessionStats, StatsHandle};
use crate::limits;
use bollard_buildkit_proto::health::health_server::HealthServer;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use bollard_buildkit_proto::moby::filesync::v1::auth_server::AuthServer;
use bollard_buildkit_proto::moby::filesync::v1::file_send_server::FileSendServer;
use bollard_buildkit_proto::moby::sshforward::v1::ssh_server::SshServer;
use bollard_buildkit_proto::moby::upload::v1::upload_server::UploadServer;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tower::Service as _;

/// Methods that the builder may always call.
const METHODS: [&str; 7] = [
    "/grpc.health.v1.Health/Check",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.filesync.v1.Auth/FetchToken",
    "/moby.filesync.v1.Auth/GetTokenAuthority",
    "/moby.filesync.v1.Auth/VerifyTokenAuthority",
    "/moby.filesync.v1.FileSync/DiffCopy",
];

/// Methods that it may call where agents are forwarded: it takes their being announced as a promise.
const SSH_METHODS: [&str; 2] = [
    "/moby.sshforward.v1.SSH/CheckAgent",
    "/moby.sshforward.v1.SSH/ForwardAgent",
];
/// The same where the context is an archive.
const UPLOAD_METHOD: &str = "/moby.upload.v1.Upload/Pull";
/// The same where the result is sent back.
const EXPORT_METHOD: &str = "/moby.filesync.v1.FileSend/DiffCopy";

/// What a session serves. `Debug` shows no secret.
pub struct SessionOptions {
    /// Unique at the builder; the solve names it. Hard to guess, since it gives access to all below.
    pub id: String,
    /// For people, in the builder's log.
    pub name: String,
    /// Equal for sessions that sync the same directories: the builder then sends for changed files only. Empty for
    /// none. Something like a digest of host and directory.
    pub shared_key: String,
    /// Directories by the name the frontend asks for: `context` and `dockerfile`.
    pub locals: Vec<LocalDir>,
    /// Secrets by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// Logins for the registries of base images, and who lends tokens.
    pub credentials: Arc<dyn RegistryLogins>,
    /// Sockets of SSH agents by id; a step that names none gets `default`.
    pub ssh: BTreeMap<String, PathBuf>,
    /// The context as one archive, for a solve whose attribute `context` is `http://buildkit-session/NAME`.
    pub archive: Option<PathBuf>,
    /// Takes what the builder sends of the result ([`crate::SolveRequest::export`]), once.
    pub export: Option<ExportSink>,
    /// Counts as it goes; keep a clone to look at it meanwhile.
    pub stats: StatsHandle,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions {
            id: String::new(),
            name: String::new(),
            shared_key: String::new(),
            locals: Vec::new(),
            secrets: BTreeMap::new(),
            credentials: Arc::new(Vec::new()),
            ssh: BTreeMap::new(),
            archive: None,
            export: None,
            stats: StatsHandle::default(),
        }
    }
}

impl std::fmt::Debug for SessionOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionOptions")
            .field("name", &self.name)
            .field("locals", &self.locals)
            .field("secrets", &self.secrets)
            .field("ssh", &self.ssh)
            .field("archive", &self.archive)
            .finish_non_exhaustive()
    }
}

/// Why a session ended other than by being closed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The stream broke, or what came was not HTTP/2.
    #[error("the connection that serves the build context broke")]
    Connection(#[source] hyper::Error),
}

/// A session, ready to be served once.
#[derive(Debug)]
pub struct Session {
    id: String,
    name: String,
    shared_key: String,
    services: Services,
}

impl Session {
    /// Takes what to serve. Nothing is read yet: directories and secrets are looked at when the builder asks.
    pub fn new(options: SessionOptions) -> Session {
        let SessionOptions {
            id,
            name,
            shared_key,
            locals,
            secrets,
            credentials,
            ssh,
            archive,
            export,
            stats,
        } = options;
        let export = export::Exports::new(export);
        let optional = [
            (!ssh.is_empty(), &SSH_METHODS[..]),
            (archive.is_some(), &[UPLOAD_METHOD]),
            (export.is_wanted(), &[EXPORT_METHOD]),
        ];
        let mut methods = METHODS.to_vec();
        for (is_served, more) in optional {
            if is_served {
                methods.extend(more);
            }
        }
        let services = Services {
            methods: methods.into(),
            files: FileSync::new(locals, stats),
            auth: AuthServer::new(auth::Logins::new(credentials)),
            secrets: SecretsServer::new(secrets::Secrets::new(secrets)),
            ssh: SshServer::new(ssh::Agents::new(ssh)),
            uploads: UploadServer::new(upload::Uploads::new(archive)),
            exports: FileSendServer::new(export),
            health: HealthServer::new(health::Healthy),
        };
        Session {
            id,
            name,
            shared_key,
            services,
        }
    }

    /// Headers that announce the session on `POST /session`: id, name, shared key and one per method.
    pub fn headers(&self) -> Vec<(String, String)> {
        let header =
            |name: &str, value: &str| (format!("X-Docker-Expose-Session-{name}"), value.to_owned());
        let mut headers = vec![
            header("Uuid", &self.id),
            header("Name", &self.name),
            header("Sharedkey", &self.shared_key),
        ];
        headers.extend(
            self.services
                .methods
                .iter()
                .map(|method| header("Grpc-Method", method)),
        );
        headers
    }

    /// Serves the builder on `io` until the stream is closed. Dropping the future ends the session. Gives the final
    /// counts.
    pub async fn serve<IO>(self, io: IO) -> Result<SessionStats, SessionError>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let stats = self.services.files.stats();
        let services = self.services;
        let service = hyper::service::service_fn(move |request| services.clone().call(request));
        let served = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits::SESSION_CALLS_MAX)
            .initial_stream_window_size(limits::SESSION_WINDOW_BYTES)
            .initial_connection_window_size(limits::SESSION_CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(limits::KEEPALIVE_PERIOD)
            .keep_alive_timeout(limits::KEEPALIVE_WAIT_MAX)
            .max_header_list_size(limits::SESSION_HEADERS_BYTES_MAX)
            .max_send_buf_size(limits::SESSION_SEND_BUFFER_BYTES)
            .serve_connection(TokioIo::new(io), service)
            .await;
        match served {
            Ok(()) => Ok(stats.snapshot()),
            // The builder closes the stream without a word when the build is over.
            Err(error) if error.is_closed() || is_plain_close(&error) => Ok(stats.snapshot()),
            Err(error) => Err(SessionError::Connection(error)),
        }
    }
}

fn is_plain_close(error: &hyper::Error) -> bool {
    use std::io::ErrorKind;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return matches!(
                error.kind(),
                ErrorKind::UnexpectedEof
                    | ErrorKind::ConnectionReset
                    | ErrorKind::BrokenPipe
                    | ErrorKind::NotConnected
            );
        }
        cause = error.source();
    }
    false
}

#[derive(Debug, Clone)]
struct Services {
    /// What is announced. Whatever else the builder calls is not served.
    methods: Arc<[&'static str]>,
    files: FileSync,
    auth: AuthServer<auth::Logins>,
    secrets: SecretsServer<secrets::Secrets>,
    ssh: SshServer<ssh::Agents>,
    uploads: UploadServer<upload::Uploads>,
    exports: FileSendServer<export::Exports>,
    health: HealthServer<health::Healthy>,
}

impl Services {
    fn serves(&self, path: &str) -> bool {
        self.methods.contains(&path)
    }

    async fn call(mut self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let path = request.uri().path();
        let service = path
            .get(1..)
            .and_then(|path| path.split_once('/'))
            .map(|(service, _)| service);
        match service {
            Some("moby.filesync.v1.FileSync") => Ok(self.files.call(request).await),
            Some("moby.filesync.v1.Auth") => self.auth.call(request).await,
            Some("moby.buildkit.secrets.v1.Secrets") => self.secrets.call(request).await,
            Some("moby.sshforward.v1.SSH") if self.serves(path) => self.ssh.call(request).await,
            Some("moby.upload.v1.Upload") if self.serves(path) => self.uploads.call(request).await,
            Some("moby.filesync.v1.FileSend") if self.serves(path) => {
                self.exports.call(request).await
            }
            Some("grpc.health.v1.Health") => self.health.call(request).await,
            Some(_) | None => Ok(tonic::Status::unimplemented("not served here").into_http()),
        }
    }
}

#[cfg(test)]
mod tests;
