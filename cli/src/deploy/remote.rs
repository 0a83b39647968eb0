//! A deploy on the org's own builder: session, build, events, end.
//!
//! Must not know how a session is served or progress is drawn.

use super::attach::show;
use super::detach::HandOver;
use super::follow::Follower;
use super::load::load;
use super::local::Daemon;
use super::output::Output;
use super::plan::{Plan, Push};
use super::progress::View;
use super::session::{Gateway, OpenSession, SessionFactory, StreamState};
use super::summary::{Sender, Summary};
use crate::api::queries;
use crate::api::shapes::{Build, Builder, NewBuild};
use crate::api::{ApiClient, ApiError};
use crate::docker_logins::{DockerLogins, registry_of};
use crate::interrupt::{Interrupts, exit_now};
use crate::limits::{CANCEL_WAIT_MAX, CONTEXT_WARN_BYTES, TREE_PERIOD, WAIT_REASON_PERIOD};
use slipway_buildkit::Export;
use slipway_core::build::{BuildOutcome, RegistryCredential};
use slipway_terminal::exit::{Failure, Outcome};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Builds remotely; gives what to print. With `hand_over`, the caller is let go once the directory is sent, and then there
/// is nothing to print. `loading` is the Docker that gets the image, if the plan says so.
///
/// # Errors
/// Whoever's fault it was, with a hint; interrupted after the build was cancelled.
pub(super) async fn run(
    plan: &Plan,
    image: &str,
    client: &ApiClient,
    docker: &DockerLogins,
    loading: Option<&Daemon>,
    hand_over: Option<HandOver>,
    view: &mut View,
) -> Outcome<Option<Summary>> {
    let mut interrupts = Interrupts::new()?;
    let factory = Arc::new(SessionFactory::new(plan, docker)?);
    let Opened {
        mut session,
        org,
        region,
        arch,
        ..
    } = opened(plan, client, &factory, view, &mut interrupts).await?;
    let wake_ms = view.elapsed_ms();

    view.status("starting the build");
    let mut credentials = match plan.push {
        Push::Yes => {
            let looking = logins(docker, image, &plan.tags);
            watched(view, &mut interrupts, looking).await?
        }
        Push::No => Vec::new(),
    };
    let is_first = |it: &RegistryCredential| it.registry == registry_of(image);
    let first = credentials.iter().position(is_first);
    let credential = first.map(|first| credentials.swap_remove(first));
    let build = start(
        plan,
        image,
        client,
        (&org, region.as_deref(), arch.as_deref()),
        &factory,
        (credential, credentials),
        view,
        &mut interrupts,
    )
    .await?;
    view.status("building");
    let followed = follow(
        client,
        &build,
        &mut session,
        &factory,
        hand_over,
        view,
        &mut interrupts,
    )
    .await?;
    drop(session);
    if let Some(warning) = factory.changed_files() {
        view.note(&warning);
    }
    let Some(outcome) = followed else {
        return Ok(None);
    };
    let sender = Sender {
        total_ms: view.elapsed_ms(),
        wake_ms,
        sent_bytes: factory.stats().bytes,
    };
    let summary = Summary::of_build(&build, outcome, view.board(), Some(sender));
    let mut summary = summary.map_err(|failure| factory.unwritten().unwrap_or(failure))?;
    if let Some(taken) = factory.taken() {
        if let Some(daemon) = loading {
            view.status("loading the image into the local Docker");
            let loaded = load(daemon, taken.sent()?, image);
            summary.image_id = watched(view, &mut interrupts, loaded).await??;
            summary.time.total_ms = view.elapsed_ms();
        }
        taken.finish()?;
    }
    Ok(Some(summary))
}

/// The logins of all registries that are pushed to, looked for side by side.
pub(super) async fn logins(
    docker: &DockerLogins,
    image: &str,
    tags: &[String],
) -> Vec<RegistryCredential> {
    let names = std::iter::once(image).chain(tags.iter().map(String::as_str));
    let registries: BTreeSet<&str> = names.map(registry_of).collect();
    let looking = registries.into_iter().map(|it| docker.login(it));
    let found = futures_util::future::join_all(looking).await;
    found.into_iter().flatten().collect()
}

/// Opens the session at a builder that runs, and shows what is waited for.
///
/// # Errors
/// Whoever's fault it is; interrupted.
pub(super) async fn opened(
    plan: &Plan,
    client: &ApiClient,
    factory: &Arc<SessionFactory>,
    view: &mut View,
    interrupts: &mut Interrupts,
) -> Outcome<Opened> {
    view.status("connecting");
    let opening = open(plan, client, factory);
    let mut opened = waited_for(plan, client, view, interrupts, opening).await??;
    for notice in &opened.notice {
        view.note(&format!("warning: {notice}"));
    }
    view.status("waiting for the builder");
    watched(view, interrupts, opened.session.opened()).await??;
    Ok(opened)
}

/// What there is before the build.
pub(super) struct Opened {
    session: OpenSession,
    /// Where the builder's API is.
    pub(super) gateway: Gateway,
    org: String,
    /// Region of the builder; the org's default if absent.
    region: Option<String>,
    /// Architecture of the builder; the org's default if absent.
    arch: Option<String>,
    /// What the builder's owner or the caller should know.
    notice: Vec<String>,
}

/// Finds the org and the gateway, and starts to open the session there.
async fn open(plan: &Plan, client: &ApiClient, factory: &Arc<SessionFactory>) -> Outcome<Opened> {
    let place = queries::locate(client, plan.org.as_deref()).await?;
    factory.lend(client, &place.org)?;
    let mut arch = plan.arch.as_deref();
    let mut notice = Vec::new();
    let mut region = plan.region.clone();
    if let Some(wish) = &plan.region_wish {
        // Asked for first: the session must go to the builder that is taken in the end.
        match ensure(client, &place.org, Some(wish), &mut arch, &mut notice).await {
            Ok(_) => region = Some(wish.clone()),
            Err(refused) if queries::is_invalid(&refused) => notice.push(format!(
                "primary_region '{wish}' is none of this farm's, so the build goes where the org's builds go; --region chooses"
            )),
            Err(error) => return Err(error.into()),
        }
    }
    let region_name = region.as_deref();
    let opening = |arch| {
        let gateway = Gateway {
            address: place.docker.clone(),
            transport: client.transport().clone(),
            token: client.token().clone(),
            headers: queries::builder_headers(&place.org, region_name, arch),
        };
        let session = OpenSession::start(Arc::clone(factory), gateway.clone());
        (session, gateway)
    };
    let (mut session, mut gateway) = opening(arch);
    // Asked for by name as well: the gateway alone could not tell region and architecture.
    let asked = arch;
    let builder = ensure(client, &place.org, region_name, &mut arch, &mut notice).await?;
    if arch != asked {
        (session, gateway) = opening(arch);
    }
    notice.extend(builder.notice);
    Ok(Opened {
        session,
        gateway,
        region,
        arch: arch.map(str::to_owned),
        notice,
        org: place.org,
    })
}

/// Has a builder running. Where there is none to be had of that architecture, it is one of another, which emulates it.
async fn ensure(
    client: &ApiClient,
    org: &str,
    region: Option<&str>,
    arch: &mut Option<&str>,
    notice: &mut Vec<String>,
) -> Result<Builder, ApiError> {
    let refused = match queries::ensure_builder(client, org, region, *arch).await {
        Err(error) if queries::is_invalid(&error) => error,
        other => return other,
    };
    let Some(wanted) = *arch else {
        return Err(refused);
    };
    match queries::ensure_builder(client, org, region, None).await {
        // So it was not for the architecture's sake.
        Err(error) if queries::is_invalid(&error) => Err(refused),
        Err(error) => Err(error),
        Ok(builder) => {
            *arch = None;
            notice.push(format!(
                "{}: the builder has {}, and emulates {wanted}",
                refused.failure.message(),
                builder.arch
            ));
            Ok(builder)
        }
    }
}

/// As [`watched`], and shows what the org's builder waits for.
async fn waited_for<T>(
    plan: &Plan,
    client: &ApiClient,
    view: &mut View,
    interrupts: &mut Interrupts,
    future: impl Future<Output = T>,
) -> Outcome<T> {
    tokio::pin!(future);
    loop {
        let look = async {
            tokio::time::sleep(WAIT_REASON_PERIOD).await;
            reason(plan, client).await
        };
        tokio::pin!(look);
        let either = async {
            tokio::select! {
                done = &mut future => Ok(done),
                why = &mut look => Err(why),
            }
        };
        match watched(view, interrupts, either).await? {
            Ok(done) => return Ok(done),
            Err(Some(why)) => view.status(&format!("waiting for the builder: {why}")),
            Err(None) => {}
        }
    }
}

/// What the builder waits for, if there is something to say. Whoever waits for the builder itself hears of other errors.
async fn reason(plan: &Plan, client: &ApiClient) -> Option<String> {
    let place = queries::locate(client, plan.org.as_deref()).await.ok()?;
    let builders = queries::builders(client, &place.org).await.ok()?;
    let fits = |wanted: &Option<String>, has: &str| wanted.as_ref().is_none_or(|it| it == has);
    let near: Vec<Builder> = builders
        .into_iter()
        .filter(|it| fits(&plan.region, &it.region))
        .collect();
    // Where none has the architecture, one of another is taken.
    let is_had = near.iter().any(|it| fits(&plan.arch, &it.arch));
    near.into_iter()
        .filter(|it| !is_had || fits(&plan.arch, &it.arch))
        .find_map(|builder| builder.waiting_for)
}

/// Runs `future` while the view lives; Ctrl-C ends it.
pub(super) async fn watched<T>(
    view: &mut View,
    interrupts: &mut Interrupts,
    future: impl Future<Output = T>,
) -> Outcome<T> {
    let mut ticks = tokio::time::interval(TREE_PERIOD);
    tokio::pin!(future);
    loop {
        tokio::select! {
            done = &mut future => return Ok(done),
            () = interrupts.wait() => return Err(Failure::interrupted("interrupted")),
            _ = ticks.tick() => view.tick(),
        }
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "one call site; a struct would only name them twice"
)]
async fn start(
    plan: &Plan,
    image: &str,
    client: &ApiClient,
    (org, region, arch): (&str, Option<&str>, Option<&str>),
    factory: &SessionFactory,
    (credential, tag_credentials): (Option<RegistryCredential>, Vec<RegistryCredential>),
    view: &mut View,
    interrupts: &mut Interrupts,
) -> Outcome<Build> {
    let export = plan.output.as_ref().map(Output::export);
    let new = NewBuild {
        org,
        app: &plan.app,
        image,
        push: plan.push == Push::Yes,
        frontend_attrs: &plan.frontend_attrs,
        compression: plan.compression,
        session: factory.id(),
        credential: credential.as_ref(),
        tags: &plan.tags,
        tag_credentials: &tag_credentials,
        entitlements: &plan.entitlements,
        cache_from: &plan.cache_from,
        cache_to: &plan.cache_to,
        export: export == Some(Export::Files),
        load: export == Some(Export::Image),
        region,
        arch,
        annotations: &plan.annotations,
    };
    let starting = async {
        match queries::start_build(client, &new).await {
            Err(error) if queries::is_unknown_app(&error) => {
                queries::ensure_app(client, org, &plan.app).await?;
                let build = queries::start_build(client, &new).await?;
                Ok((build, true))
            }
            other => other.map(|build| (build, false)),
        }
    };
    tokio::pin!(starting);
    // Ctrl-C must not lose the answer: the build may have been accepted already, and then has to be cancelled.
    let (started, interrupted) = tokio::select! {
        started = &mut starting => (Some(started), false),
        () = interrupts.wait() => tokio::select! {
            late = tokio::time::timeout(CANCEL_WAIT_MAX, &mut starting) => (late.ok(), true),
            () = interrupts.wait() => exit_now(),
        },
    };
    match started {
        Some(Ok((build, _))) if interrupted => Err(cancel(client, &build, view, interrupts).await),
        Some(Ok((build, app_is_new))) => {
            if app_is_new {
                view.note(&format!("app {} is new and was made", plan.app));
            }
            Ok(build)
        }
        Some(Err(error)) if !interrupted => Err(error.into()),
        Some(Err(_)) | None => Err(Failure::interrupted("interrupted")),
    }
}

/// Cancels the build and waits for the server to say so.
async fn cancel(
    client: &ApiClient,
    build: &Build,
    view: &mut View,
    interrupts: &mut Interrupts,
) -> Failure {
    view.status("cancelling the build");
    view.tick();
    let asked = tokio::time::timeout(CANCEL_WAIT_MAX, queries::cancel_build(client, &build.id));
    let asked = tokio::select! {
        asked = asked => asked,
        () = interrupts.wait() => exit_now(),
    };
    match asked {
        Ok(Ok(_)) => Failure::interrupted("interrupted; the build was cancelled"),
        Ok(Err(_)) | Err(_) => Failure::interrupted(
            "interrupted, but the server did not confirm that the build was cancelled",
        )
        .hint(format!("`slipway builds cancel {}` tries again", build.id)),
    }
}

/// Shows events until the last one; Ctrl-C cancels the build. Once the caller was let go, to the last one that matters for
/// the session, and a signal ends this process alone: then there is no outcome.
async fn follow(
    client: &ApiClient,
    build: &Build,
    session: &mut OpenSession,
    factory: &SessionFactory,
    mut hand_over: Option<HandOver>,
    view: &mut View,
    interrupts: &mut Interrupts,
) -> Outcome<Option<BuildOutcome>> {
    let mut follower = Follower::new(client, &build.id);
    let mut ticks = tokio::time::interval(TREE_PERIOD);
    let mut large_context_told = false;
    let mut broken_told = false;
    let mut detached = false;
    loop {
        let hearing = follower.hear(view.board().last_seq());
        tokio::pin!(hearing);
        let heard = loop {
            tokio::select! {
                heard = &mut hearing => break heard?,
                state = session.changed() => tell_session(&state, view),
                _ = ticks.tick() => view.tick(),
                () = interrupts.wait() => {
                    if detached {
                        return Ok(None);
                    }
                    return Err(cancel(client, build, view, interrupts).await);
                }
            }
        };
        show(heard, &mut broken_told, view);
        if detached {
            if view.board().is_solved() {
                return Ok(None);
            }
            continue;
        }
        if let Some(outcome) = view.board().outcome() {
            return Ok(Some(outcome.clone()));
        }
        if !large_context_told && factory.stats().bytes > CONTEXT_WARN_BYTES {
            large_context_told = true;
            view.note(&large_context_warning());
        }
        if let Some(hand_over) = hand_over.take_if(|_| view.board().context_is_sent()) {
            hand_over.done(build, view.silence())?;
            detached = true;
        }
    }
}

fn large_context_warning() -> String {
    format!(
        "warning: more than {} sent to the builder so far; does .dockerignore leave out what no step needs?",
        super::progress::bytes(CONTEXT_WARN_BYTES)
    )
}

fn tell_session(state: &StreamState, view: &mut View) {
    match state {
        // That the connection broke is told by those who follow the events.
        StreamState::Opening | StreamState::Open => {}
        StreamState::Broken(why) => tracing::debug!(why, "build session broke"),
        // The build itself will say what it lacks, if it still lacks anything.
        StreamState::Failed(failure) => view.note(&format!("warning: {}", failure.message())),
    }
}
