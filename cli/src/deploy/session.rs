//! The BuildKit session of a deploy: what the builder may ask this computer for, kept open for as long as the build.
//!
//! Owns what is served (context, Dockerfile, secrets, logins of registries) and that a broken stream is opened again
//! under the same id. Must not know the build's events or progress.

use super::org_logins::OrgLogins;
use super::output::Taking;
use super::plan::{Context, Plan};
use super::ssh::SshAgents;
use crate::api::{ApiClient, ServerAddress, Transport, open_upgraded};
use crate::backoff::Backoff;
use crate::docker_logins::DockerLogins;
use crate::limits::WAKE_WAIT_MAX;
use crate::token::Token;
use sha2::{Digest, Sha256};
use slipway_buildkit::{
    LocalDir, RegistryLogins, SecretSource, Session, SessionOptions, SessionStats, StatsHandle,
};
use slipway_terminal::exit::{Failure, FailureKind, Outcome};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Random bytes of a session's id: whoever knows it can ask for the secrets.
const ID_ENTROPY_BYTES: usize = 16;

/// Makes sessions for one build, each with the same id and the same counters.
#[derive(Debug)]
pub(super) struct SessionFactory {
    id: String,
    shared_key: String,
    plan: Plan,
    logins: DockerLogins,
    /// The same and what an org's server lends, once it is known which.
    org_logins: OnceLock<Arc<OrgLogins>>,
    stats: StatsHandle,
    ssh: SshAgents,
    export: Mutex<Option<Taking>>,
    /// Dockerfile and chosen ignore file side by side, where BuildKit looks for them.
    staged: Option<TempDir>,
}

impl SessionFactory {
    /// Takes what to serve.
    ///
    /// # Errors
    /// Ours: no randomness. The caller's: a key that no agent takes, a result that cannot be written.
    pub(super) fn new(plan: &Plan, docker: &DockerLogins) -> Outcome<Self> {
        let mut entropy = [0u8; ID_ENTROPY_BYTES];
        getrandom::fill(&mut entropy)
            .map_err(|error| Failure::system(format!("no random numbers: {error}")))?;
        Ok(Self {
            id: hex(&entropy),
            shared_key: shared_key(plan),
            plan: plan.clone(),
            logins: docker.clone(),
            org_logins: OnceLock::new(),
            stats: StatsHandle::default(),
            ssh: SshAgents::start(&plan.ssh)?,
            export: Mutex::new(plan.output.as_ref().map(Taking::start).transpose()?),
            staged: stage(plan)?,
        })
    }

    fn locals(&self) -> Vec<LocalDir> {
        let local = |name: &str, root: &Path| LocalDir {
            name: name.to_owned(),
            root: root.to_owned(),
        };
        let plan = &self.plan;
        let staged = self.staged.as_ref().map(TempDir::path);
        let dockerfile = staged.or(plan.source.dockerfile_dir.as_deref());
        let context = match &plan.source.context {
            Context::Dir(dir) => Some(local("context", dir)),
            Context::Url(_) | Context::Archive(_) => None,
        };
        let more = plan.contexts.iter().map(|(name, dir)| local(name, dir));
        context
            .into_iter()
            .chain(dockerfile.map(|dir| local("dockerfile", dir)))
            .chain(more)
            .collect()
    }

    fn archive(&self) -> Option<PathBuf> {
        match &self.plan.source.context {
            Context::Archive(file) => Some(file.path().to_owned()),
            Context::Dir(_) | Context::Url(_) => None,
        }
    }

    /// Id that the build names.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// What was sent so far, over all streams.
    pub(super) fn stats(&self) -> SessionStats {
        self.stats.snapshot()
    }

    /// What to tell of files that were written to while they were sent.
    pub(super) fn changed_files(&self) -> Option<String> {
        let (files, was) = match self.stats().changed {
            0 => return None,
            1 => ("1 file".to_owned(), "it was"),
            count => (format!("{count} files"), "they were"),
        };
        Some(format!(
            "warning: {files} changed while {was} sent: the build has at most what the size said before; \
             deploy again once nobody writes there, or leave it out with .dockerignore"
        ))
    }

    /// A session that can be served once.
    ///
    /// # Errors
    /// Ours: no descriptor is left.
    pub(super) fn session(&self) -> Outcome<Session> {
        let plan = &self.plan;
        Ok(Session::new(SessionOptions {
            id: self.id.clone(),
            name: plan.app.clone(),
            shared_key: self.shared_key.clone(),
            locals: self.locals(),
            secrets: plan
                .secrets
                .iter()
                .map(|secret| (secret.id.clone(), SecretSource::Bytes(secret.value.clone())))
                .collect(),
            credentials: self.credentials(),
            ssh: self.ssh.sockets(),
            archive: self.archive(),
            export: self.export().as_ref().map(Taking::sink).transpose()?,
            stats: self.stats.clone(),
        }))
    }

    /// From now on registries that this computer has no login for are pulled from with what the server lends of this org's logins.
    ///
    /// # Errors
    /// Ours: no randomness.
    pub(super) fn lend(&self, client: &ApiClient, org: &str) -> Outcome<()> {
        let logins = OrgLogins::new(&self.logins, client, org)?;
        self.org_logins.get_or_init(|| Arc::new(logins));
        Ok(())
    }

    fn credentials(&self) -> Arc<dyn RegistryLogins> {
        match self.org_logins.get() {
            Some(logins) => Arc::<OrgLogins>::clone(logins),
            None => Arc::new(self.logins.clone()),
        }
    }

    /// What the session took of the result, once the build has ended well.
    pub(super) fn taken(&self) -> Option<Taking> {
        self.export().take()
    }

    /// Why the result could not be written here, if that is so. Then the builder's own error says less.
    pub(super) fn unwritten(&self) -> Option<Failure> {
        self.export().as_ref().and_then(Taking::refused)
    }

    fn export(&self) -> std::sync::MutexGuard<'_, Option<Taking>> {
        self.export.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// BuildKit's frontend asks for `NAME.dockerignore` beside the Dockerfile, then for `.dockerignore` in the context. An
/// ignore file that has another name is given to it under the first one. So is a Dockerfile that is a link out of its directory,
/// which no file sync follows.
fn stage(plan: &Plan) -> Outcome<Option<TempDir>> {
    let name = &plan.source.dockerfile_name;
    let Some(from) = &plan.source.dockerfile_dir else {
        return Ok(None);
    };
    let dockerfile = from.join(name);
    let leads_out = std::fs::canonicalize(&dockerfile).is_ok_and(|real| !real.starts_with(from));
    let beside = from.join(format!("{name}.dockerignore"));
    let ignorefile = match &plan.ignorefile {
        Some(named) => Some(named.clone()),
        None if !leads_out => return Ok(None),
        None => beside.is_file().then_some(beside),
    };
    let fail = |error: std::io::Error| Failure::user_caused("copy the Dockerfile aside", &error);
    let dir = tempfile::Builder::new()
        .prefix("slipway-")
        .tempdir()
        .map_err(fail)?;
    std::fs::copy(&dockerfile, dir.path().join(name)).map_err(fail)?;
    if let Some(ignorefile) = ignorefile {
        let beside = dir.path().join(format!("{name}.dockerignore"));
        std::fs::copy(ignorefile, beside).map_err(fail)?;
    }
    Ok(Some(dir))
}

/// Equal for builds of one app from one directory on one computer: the builder keeps what it got, and asks for changed files only.
fn shared_key(plan: &Plan) -> String {
    let context = match &plan.source.context {
        Context::Dir(dir) => dir.as_os_str(),
        Context::Url(url) => OsStr::new(url),
        Context::Archive(_) => OsStr::new("-"),
    };
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let mut hash = Sha256::new();
    for part in [
        machine.trim().as_bytes(),
        // Containers of a CI have no machine-id, and all check out to the same path.
        plan.app.as_bytes(),
        context.as_encoded_bytes(),
    ] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// How the stream does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StreamState {
    /// It is being opened; a stopped builder takes its time.
    Opening,
    /// The builder can ask.
    Open,
    /// It broke and is being opened again.
    Broken(String),
    /// It will not be opened again.
    Failed(Failure),
}

/// Where sessions are offered.
#[derive(Debug, Clone)]
pub(super) struct Gateway {
    /// Its listener.
    pub(super) address: ServerAddress,
    /// How to connect.
    pub(super) transport: Transport,
    /// As whom.
    pub(super) token: Token,
    /// Which builder, where the token alone does not tell.
    pub(super) headers: Vec<(String, String)>,
}

/// A session that is held open until this is dropped.
#[derive(Debug)]
pub(super) struct OpenSession {
    state: watch::Receiver<StreamState>,
    task: JoinHandle<()>,
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl OpenSession {
    /// Starts to open it.
    pub(super) fn start(factory: Arc<SessionFactory>, gateway: Gateway) -> Self {
        let (report, state) = watch::channel(StreamState::Opening);
        let task = tokio::spawn(async move { keep_open(&factory, &gateway, &report).await });
        Self { state, task }
    }

    /// Waits until it is open for the first time.
    ///
    /// # Errors
    /// Why it could not be opened: at first, nothing is tried again.
    pub(super) async fn opened(&mut self) -> Outcome<()> {
        let state = self
            .state
            .wait_for(|state| !matches!(state, StreamState::Opening))
            .await
            .map(|state| state.clone());
        match state {
            Ok(StreamState::Failed(failure)) => Err(failure),
            Ok(StreamState::Open | StreamState::Opening | StreamState::Broken(_)) => Ok(()),
            Err(_closed) => Err(Failure::system("the build session ended by itself")),
        }
    }

    /// Waits for the next change. Cancel-safe; never ends when there is none to come.
    pub(super) async fn changed(&mut self) -> StreamState {
        match self.state.changed().await {
            Ok(()) => self.state.borrow_and_update().clone(),
            Err(_closed) => std::future::pending().await,
        }
    }
}

async fn keep_open(
    factory: &SessionFactory,
    gateway: &Gateway,
    report: &watch::Sender<StreamState>,
) {
    let mut backoff = Backoff::default();
    let mut was_open = false;
    loop {
        let why = match serve_once(factory, gateway, report).await {
            Ok(()) => {
                was_open = true;
                backoff.reset();
                "the builder closed it".to_owned()
            }
            // What was open once may be opened again, unless the server says that it will never be.
            Err(failure) if was_open && failure.kind() == FailureKind::System => {
                failure.message().to_owned()
            }
            Err(failure) => {
                report.send_replace(StreamState::Failed(failure));
                return;
            }
        };
        report.send_replace(StreamState::Broken(why.clone()));
        match backoff.next(Instant::now()) {
            Some(delay) => tokio::time::sleep(delay).await,
            None => {
                let failure = Failure::system(format!("the build session broke: {why}"));
                report.send_replace(StreamState::Failed(failure));
                return;
            }
        }
    }
}

/// Opens the stream and serves it to its end.
async fn serve_once(
    factory: &SessionFactory,
    gateway: &Gateway,
    report: &watch::Sender<StreamState>,
) -> Outcome<()> {
    let session = factory.session()?;
    let mut headers = session.headers();
    headers.extend(gateway.headers.iter().cloned());
    let stream = open_upgraded(
        &gateway.transport,
        &gateway.address,
        &gateway.token,
        "/session",
        &headers,
        WAKE_WAIT_MAX,
    )
    .await?;
    report.send_replace(StreamState::Open);
    // Whatever ends it, it was open: the caller tries again.
    if let Err(error) = session.serve(stream).await {
        tracing::debug!(
            error = slipway_terminal::exit::chain(&error),
            "build session"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::config::ProjectConfig;
    use clap::Parser;

    fn plan(dir: &Path) -> Plan {
        let words = ["slipway", "deploy", dir.to_str().unwrap(), "--app", "a"];
        let Command::Deploy(args) = Cli::try_parse_from(words).unwrap().command else {
            panic!("not deploy")
        };
        let config = ProjectConfig::load(&args.dir, None).unwrap();
        Plan::new(&args, &config, &|_| None).unwrap()
    }

    #[test]
    fn a_dockerfile_that_is_a_link_out_of_its_directory_is_served() {
        let root = tempfile::tempdir().unwrap();
        let service = root.path().join("service");
        std::fs::create_dir_all(&service).unwrap();
        std::fs::write(root.path().join("common"), "FROM scratch\n").unwrap();
        std::os::unix::fs::symlink("../common", service.join("Dockerfile")).unwrap();
        std::fs::write(service.join("Dockerfile.dockerignore"), "x\n").unwrap();
        let staged = stage(&plan(&service)).unwrap().unwrap();
        let read = |name: &str| std::fs::read_to_string(staged.path().join(name)).unwrap();
        assert_eq!(read("Dockerfile"), "FROM scratch\n");
        assert_eq!(read("Dockerfile.dockerignore"), "x\n");
        assert!(!staged.path().join("Dockerfile").is_symlink());

        std::fs::remove_file(service.join("Dockerfile")).unwrap();
        std::fs::write(service.join("real"), "FROM scratch\n").unwrap();
        std::os::unix::fs::symlink("real", service.join("Dockerfile")).unwrap();
        assert!(stage(&plan(&service)).unwrap().is_none());
    }
}
