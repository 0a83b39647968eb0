//! A deploy with the Docker that runs on this computer: the same solve and session as on a builder, straight at its
//! socket, then Docker's own push.
//!
//! Must not know the API of the server.

use super::output::Output;
use super::plan::{Plan, Push};
use super::progress::{View, clean_lines, millis};
use super::session::SessionFactory;
use super::summary::{Summary, Times};
use crate::docker_logins::{DockerLogins, registry_of};
use crate::interrupt::Interrupts;
use crate::limits::{LOCAL_DOCKER_WAIT_MAX, SOLVE_EVENTS_QUEUED_MAX, TREE_PERIOD};
use crate::system::{DOCKER_SOCKET, LocalStream, connect_local};
use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::query_parameters::PushImageOptionsBuilder;
use futures_util::StreamExt;
use slipway_buildkit::{
    CacheEntry, Client, SessionError, SessionStats, SolveEvent, SolveFailure, SolveRequest,
    SolveResult, dial_docker_grpc, dial_docker_session, registry_out_of_reach,
};
use slipway_core::build::{BuildEvent, NumberedEvent, RegistryCredential, Step};
use slipway_terminal::exit::{Failure, Outcome, chain};
use std::path::PathBuf;
use std::time::{Instant, SystemTime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Processor of images whose platform nobody named.
pub(super) const TARGET_ARCH: &str = "amd64";

/// What helps whoever asked for a build with a Docker that is not there.
pub(super) const NO_LOCAL_ONLY: &str = "build remotely: leave --local-only out";

/// A Docker that answers on this computer.
#[derive(Debug)]
pub(super) struct Daemon {
    socket: PathBuf,
    docker: Docker,
    arch: String,
}

impl Daemon {
    /// Asks the socket of `DOCKER_HOST`, or the usual one, who is there. `otherwise` is what helps whoever has none.
    ///
    /// # Errors
    /// The caller's fault: nobody answers, or `DOCKER_HOST` is no local socket.
    pub(super) async fn find(otherwise: &str) -> Outcome<Self> {
        let socket = socket_path(std::env::var("DOCKER_HOST").ok().as_deref(), otherwise)?;
        let nobody = |why: String| {
            Failure::user(format!("no Docker answers at {}: {why}", socket.display()))
                .hint(format!("start it, or {otherwise}"))
        };
        let scheme = if cfg!(windows) { "npipe" } else { "unix" };
        let uri = format!("{scheme}://{}", socket.display());
        let asking = async {
            let docker = Docker::connect_with_host(&uri)?.negotiate_version().await?;
            let version = docker.version().await?;
            Ok::<_, bollard::errors::Error>((docker, version.arch.unwrap_or_default()))
        };
        match tokio::time::timeout(LOCAL_DOCKER_WAIT_MAX, asking).await {
            Ok(Ok((docker, arch))) => Ok(Self {
                socket,
                docker,
                arch,
            }),
            Ok(Err(error)) => Err(nobody(chain(&error))),
            Err(_elapsed) => Err(nobody("no answer in time".to_owned())),
        }
    }

    /// Its API.
    pub(super) fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Its processor, in Docker's words.
    pub(super) fn arch(&self) -> &str {
        &self.arch
    }

    async fn dial(&self) -> Outcome<LocalStream> {
        connect_local(&self.socket).await.map_err(|error| {
            Failure::user_caused(format_args!("connect to {}", self.socket.display()), &error)
        })
    }
}

fn socket_path(host: Option<&str>, otherwise: &str) -> Outcome<PathBuf> {
    match host.filter(|host| !host.is_empty()) {
        None => Ok(PathBuf::from(DOCKER_SOCKET)),
        Some(host) => host
            .strip_prefix(if cfg!(windows) { "npipe://" } else { "unix://" })
            .map(PathBuf::from)
            .ok_or_else(|| {
                Failure::user(format!(
                    "DOCKER_HOST is {host}, which is no socket of this computer"
                ))
                .hint(format!("unset DOCKER_HOST, or {otherwise}"))
            }),
    }
}

/// Builds and pushes here; gives what to print.
///
/// # Errors
/// Whoever's fault it was; interrupted by Ctrl-C, which ends the build with its connection.
pub(super) async fn run(
    plan: &Plan,
    image: &str,
    daemon: &Daemon,
    docker: &DockerLogins,
    view: &mut View,
) -> Outcome<Summary> {
    let mut interrupts = Interrupts::new()?;
    let factory = SessionFactory::new(plan, docker)?;
    view.status("building with the local Docker");
    let (client, serving) = connected(daemon, &factory).await?;
    let wake_ms = view.elapsed_ms();
    let begun = Instant::now();
    let solved = solve(plan, image, &client, factory.id(), view, &mut interrupts).await;
    serving.abort();
    if let Some(warning) = factory.changed_files() {
        view.note(&warning);
    }
    let solved = solved.map_err(|failure| factory.unwritten().unwrap_or(failure))?;
    let build_ms = millis(begun.elapsed());

    let begun = Instant::now();
    let digest = match plan.push {
        Push::No => None,
        Push::Yes => {
            view.status("pushing");
            let mut first = None;
            for name in std::iter::once(image).chain(plan.tags.iter().map(String::as_str)) {
                let credential = docker.login(registry_of(name)).await;
                let digest = push(daemon, name, credential, view, &mut interrupts).await?;
                first.get_or_insert(digest);
            }
            first
        }
    };
    let push_ms = millis(begun.elapsed());
    if let Some(taken) = factory.taken() {
        taken.finish()?;
    }
    let inspected = daemon.docker.inspect_image(&solved.image_id).await;
    let size = inspected.ok().and_then(|found| found.size).unwrap_or(0);
    let (steps_cached, steps) = view.board().cached_steps();
    Ok(Summary {
        app: plan.app.clone(),
        build: None,
        image: image.to_owned(),
        tags: plan.tags.clone(),
        platforms: Vec::new(),
        statements: Vec::new(),
        image_id: solved.image_id,
        digest,
        size_bytes: u64::try_from(size).unwrap_or(0),
        steps_cached,
        steps,
        sent_bytes: Some(factory.stats().bytes),
        time: Times {
            total_ms: view.elapsed_ms(),
            wake_ms: Some(wake_ms),
            queued_ms: 0,
            context_ms: view.board().context_ms(),
            build_ms,
            push_ms,
        },
    })
}

/// BuildKit's API there, and the session that it is offered: that ends with its stream, at the latest when this process does.
///
/// # Errors
/// Ours: they cannot be opened.
pub(super) async fn connected(
    daemon: &Daemon,
    factory: &SessionFactory,
) -> Outcome<(Client, JoinHandle<Result<SessionStats, SessionError>>)> {
    let session = factory.session()?;
    let headers = session.headers();
    let stream = dial_docker_session(daemon.dial().await?, &headers)
        .await
        .map_err(|error| Failure::system_caused("offer the build session", &error))?;
    let serving = tokio::spawn(session.serve(stream));
    let stream = dial_docker_grpc(daemon.dial().await?)
        .await
        .map_err(|error| Failure::system_caused("connect to BuildKit", &error))?;
    let client = Client::connect(stream)
        .await
        .map_err(|error| Failure::system_caused("connect to BuildKit", &error))?;
    Ok((client, serving))
}

async fn solve(
    plan: &Plan,
    image: &str,
    client: &Client,
    session: &str,
    view: &mut View,
    interrupts: &mut Interrupts,
) -> Outcome<SolveResult> {
    let names = std::iter::once(image).chain(plan.tags.iter().map(String::as_str));
    let caches = |entries: &[String]| {
        let entries = entries.iter().map(|entry| entry.parse::<CacheEntry>());
        entries
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Failure::user(error.to_string()))
    };
    let request = SolveRequest {
        build_ref: session.to_owned(),
        session: session.to_owned(),
        frontend_attrs: plan.frontend_attrs.clone(),
        image_name: names.collect::<Vec<_>>().join(","),
        entitlements: plan.entitlements.clone(),
        cache_from: caches(&plan.cache_from)?,
        cache_to: caches(&plan.cache_to)?,
        export: plan.output.as_ref().map(Output::export),
        mirrors: std::collections::BTreeMap::new(),
        exporter_attrs: std::collections::BTreeMap::new(),
        exporter: slipway_buildkit::Exporter::Dockerd,
    };
    let (sender, mut events) = mpsc::channel(SOLVE_EVENTS_QUEUED_MAX);
    let solving = client.solve(request, sender);
    tokio::pin!(solving);
    let mut numbers = Numbers::new();
    let mut ticks = tokio::time::interval(TREE_PERIOD);
    let solved = loop {
        tokio::select! {
            // Events first: those of the end must be shown before the end itself.
            biased;
            Some(event) = events.recv() => view.event(&numbers.number(event)),
            solved = &mut solving => break solved,
            _ = ticks.tick() => view.tick(),
            () = interrupts.wait() => {
                return Err(Failure::interrupted("interrupted; the build was cancelled"));
            }
        }
    };
    while let Ok(event) = events.try_recv() {
        view.event(&numbers.number(event));
    }
    solved.map_err(|failure| explain(&failure))
}

fn explain(failure: &SolveFailure) -> Failure {
    let error = &failure.error;
    let excerpt = failure.excerpt.as_deref().map(clean_lines);
    let (told, otherwise) = if error.is_user_fault() {
        (
            Failure::user(error.to_string()),
            "what the step said is above",
        )
    } else {
        (
            Failure::system_caused("the local Docker failed", error),
            "look at its log, or build remotely with --remote-only",
        )
    };
    told.at(excerpt)
        .maybe_hint(error.hint().map(str::to_owned))
        .hint(otherwise)
}

/// Gives BuildKit's events the form that a builder's events have.
struct Numbers {
    seq: u64,
    began: SystemTime,
}

impl Numbers {
    fn new() -> Self {
        Self {
            seq: 0,
            began: SystemTime::now(),
        }
    }

    fn ms(&self, at: SystemTime) -> u64 {
        at.duration_since(self.began).map_or(0, millis)
    }

    fn number(&mut self, event: SolveEvent) -> NumberedEvent {
        self.seq += 1;
        let event = match event {
            SolveEvent::Step {
                digest,
                name,
                started_at,
                completed_at,
                cached,
                error,
            } => BuildEvent::Step(Step {
                digest,
                name,
                started_ms: started_at.map(|at| self.ms(at)),
                completed_ms: completed_at.map(|at| self.ms(at)),
                cached,
                error,
            }),
            SolveEvent::Log {
                digest,
                stream,
                bytes,
            } => BuildEvent::Log {
                step: digest,
                stream,
                text: String::from_utf8_lossy(&bytes).into_owned(),
            },
            SolveEvent::Progress {
                digest,
                id,
                current,
                total,
                done,
            } => BuildEvent::Progress {
                step: digest,
                id,
                current,
                total,
                done,
            },
            SolveEvent::Warning { message } => BuildEvent::Warning { message },
        };
        NumberedEvent {
            seq: self.seq,
            at_ms: self.ms(SystemTime::now()),
            event,
        }
    }
}

/// Pushes by dockerd; gives the digest.
async fn push(
    daemon: &Daemon,
    image: &str,
    credential: Option<RegistryCredential>,
    view: &mut View,
    interrupts: &mut Interrupts,
) -> Outcome<String> {
    let (name, tag) = match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        Some(_) | None => (image, "latest"),
    };
    let options = PushImageOptionsBuilder::new().tag(tag).build();
    let mut lines = Box::pin(
        daemon
            .docker
            .push_image(name, Some(options), credential.map(login)),
    );
    let mut ticks = tokio::time::interval(TREE_PERIOD);
    let mut digest = None;
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            _ = ticks.tick() => {
                view.tick();
                continue;
            }
            () = interrupts.wait() => return Err(Failure::interrupted("interrupted during the push")),
        };
        match line {
            Some(Ok(info)) => {
                let status = info.status.unwrap_or_default();
                digest = digest.or_else(|| digest_of(&status));
            }
            Some(Err(error)) => return Err(explain_push(image, &error)),
            None => break,
        }
    }
    digest.ok_or_else(|| Failure::system("Docker ended the push without naming a digest"))
}

fn explain_push(image: &str, error: &bollard::errors::Error) -> Failure {
    use bollard::errors::Error;
    let action = format_args!("push {image}");
    let caller_s = if let Error::DockerStreamError { error: said } = error {
        !registry_out_of_reach(said)
    } else if let Error::DockerResponseServerError { status_code, .. } = error {
        (400..500).contains(status_code)
    } else {
        false
    };
    if caller_s {
        Failure::user_caused(action, error)
            .hint("is the registry right, and are you logged in to it? `docker login`")
    } else {
        Failure::system_caused(action, error)
            .hint("does the registry answer this computer's Docker? Try again later")
    }
}

fn login(credential: RegistryCredential) -> DockerCredentials {
    let server = Some(credential.registry);
    if credential.username.is_empty() {
        DockerCredentials {
            identitytoken: Some(credential.password),
            serveraddress: server,
            ..DockerCredentials::default()
        }
    } else {
        DockerCredentials {
            username: Some(credential.username),
            password: Some(credential.password),
            serveraddress: server,
            ..DockerCredentials::default()
        }
    }
}

/// dockerd's last line of a push is `TAG: digest: sha256:... size: N`.
fn digest_of(status: &str) -> Option<String> {
    let (_, rest) = status.split_once("digest: ")?;
    let digest = rest.split_whitespace().next()?;
    digest.starts_with("sha256:").then(|| digest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_digest_in_docker_s_words() {
        let line = "v1: digest: sha256:00ff size: 528";
        assert_eq!(digest_of(line).as_deref(), Some("sha256:00ff"));
        assert_eq!(digest_of("Pushed"), None);
    }

    #[test]
    fn a_registry_that_is_away_is_not_the_caller_s_fault() {
        let push = |said: &str| {
            let error = said.to_owned();
            explain_push(
                "r/a:1",
                &bollard::errors::Error::DockerStreamError { error },
            )
            .code()
        };
        let away = "Get \"https://r/v2/\": dial tcp 127.0.0.1:1: connect: connection refused";
        assert_eq!(push(away), 2);
        assert_eq!(
            push("received unexpected HTTP status: 503 Service Unavailable"),
            2
        );
        assert_eq!(
            push("denied: requested access to the resource is denied"),
            1
        );
        assert_eq!(push("unauthorized: authentication required"), 1);
    }

    #[test]
    fn only_sockets_are_local() {
        assert_eq!(socket_path(None, "").unwrap(), PathBuf::from(DOCKER_SOCKET));
        assert_eq!(
            socket_path(Some("unix:///x"), "").unwrap(),
            PathBuf::from("/x")
        );
        for host in ["tcp://127.0.0.1:2375", "ssh://a"] {
            assert_eq!(socket_path(Some(host), "").unwrap_err().code(), 1);
        }
    }
}
