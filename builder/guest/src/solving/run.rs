//! Runs one build: waits for a place, solves, pushes, and tells everything in the build's record.
//!
//! It must not know how events are kept or read.

use super::convert::{Converter, Throttle};
use super::wishes::Wishes;
use super::{outcome, reach};
use crate::builds::{Build, Held, NotAccepted, Stop};
use crate::docker::{Docker, DockerError};
use crate::garbage::{Pressure, Reason, pressure};
use crate::guest::Guest;
use crate::limits;
use crate::loans::Borrower;
use crate::phase::Phase;
use crate::push::{self, Logins, Prepared};
use crate::share::memory_bytes;
use crate::share::ooms::LastOom;
use crate::store::ImageStore;
use slipway_buildkit::{
    BadCacheEntry, CacheEntry, Client, ConnectError, DialError, Export, Exporter, SolveError,
    SolveFailure, SolveRequest, SolveResult, dial_docker_grpc,
};
use slipway_core::build::{BuildEvent, BuildOutcome, Fault, PushProgress, PushState};
use slipway_core::guest_api::StartBuild;
use slipway_core::limits::BUILD_DURATION_MAX;
use slipway_registry_push::Target;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;

/// Time between two looks at the disk and the memory, see [`settle`] and [`watch`].
const WATCH_PERIOD: Duration = Duration::from_millis(50);

/// Accepts a build and lets it run when there is a place. The id of a build that is known already changes nothing.
///
/// # Errors
/// [`NotAccepted`].
pub(crate) fn start(guest: &Arc<Guest>, request: StartBuild) -> Result<(), NotAccepted> {
    let accepted = guest.builds.accept(&request, &guest.books, &guest.loans)?;
    if let Some((build, held)) = accepted {
        // Owned by the build itself: it always ends, by its own bound if by nothing else.
        tokio::spawn(run(guest.clone(), build, request, held));
    }
    Ok(())
}

/// Runs the build to its end, whatever that is. Its last event is always sent.
async fn run(guest: Arc<Guest>, build: Arc<Build>, request: StartBuild, held: Held) {
    tracing::info!(build = %build.id(), "build was accepted");
    let in_flight = held.in_flight;
    let work = tokio::spawn({
        let (guest, build) = (guest.clone(), build.clone());
        async move { Box::pin(wait_and_work(&guest, &build, request, held.borrower)).await }
    });
    let abort = work.abort_handle();
    let ended = tokio::select! {
        ended = work => ended.unwrap_or_else(|error| {
            tracing::error!(build = %build.id(), %error, "build broke off");
            outcome::of_system("the builder failed inside; its log says more")
        }),
        why = build.stopped() => {
            // Dropping the work cancels the solve at BuildKit and ends the push.
            abort.abort();
            match why {
                Stop::BuilderEnds => outcome::of_system("the builder ended while the build ran"),
                Stop::Cancelled => BuildOutcome::Cancelled,
            }
        }
    };
    tracing::info!(build = %build.id(), outcome = kind(&ended), "build ended");
    build.end(ended);
    drop(in_flight);
}

fn kind(outcome: &BuildOutcome) -> &'static str {
    match outcome {
        BuildOutcome::Succeeded { .. } => "succeeded",
        BuildOutcome::Failed {
            fault: Fault::User, ..
        } => "failed by the user's fault",
        BuildOutcome::Failed {
            fault: Fault::System,
            ..
        } => "failed by ours",
        BuildOutcome::Cancelled => "cancelled",
    }
}

async fn wait_and_work(
    guest: &Guest,
    build: &Arc<Build>,
    request: StartBuild,
    borrower: Option<Borrower>,
) -> BuildOutcome {
    let Some(_place) = guest.builds.place(build).await else {
        return outcome::of_system("the builder takes no builds");
    };
    build.append(BuildEvent::Started);
    let work = Box::pin(work(guest, build, request, borrower.as_ref()));
    match tokio::time::timeout(BUILD_DURATION_MAX, work).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => outcome::failed(
            Fault::User,
            &format!(
                "the build ran longer than {} minutes",
                BUILD_DURATION_MAX.as_secs() / 60
            ),
            Some("split it, or find the step that hangs"),
        ),
    }
}

async fn work(
    guest: &Guest,
    build: &Arc<Build>,
    request: StartBuild,
    borrower: Option<&Borrower>,
) -> BuildOutcome {
    let began = Instant::now();
    let phase = guest
        .books
        .wait_phase(limits::START_WAIT_MAX, |phase| phase != Phase::Starting)
        .await;
    if phase != Phase::Ready {
        return outcome::of_system("dockerd does not run");
    }
    let wishes = Wishes::of(
        &request.spec,
        guest.store,
        guest.config.sbom_scanner.as_deref(),
    );
    let wishes = match wishes {
        Ok(wishes) => wishes,
        Err(outcome) => return outcome,
    };
    let unemulated = guest.emulation.lacks(&wishes.platforms).await;
    if let Some(why) = &unemulated {
        let message = format!("steps that run programs of another processor may fail: {why}");
        build.append(BuildEvent::Warning { message });
    }
    let pushes = match prepared(guest, build, &request, borrower, &wishes) {
        Ok(pushes) => pushes,
        Err(outcome) => return outcome,
    };
    let solved = tokio::select! {
        solved = solve(guest, build, &request, &wishes, unemulated.as_deref()) => solved,
        closed = reach::closed(guest, &request) => Err(closed),
        refused = reach::refused(&pushes) => Err(refused),
    };
    let solved = match solved {
        Ok(solved) => solved,
        Err(outcome) => return outcome,
    };
    let image_id = solved.image_id;
    *build.image() = Some(image_id.clone());
    let build_ms = elapsed_ms(began);
    let began = Instant::now();
    let pushed = async {
        let mut first = None;
        // One after the other: the first one's blobs are all there for the others.
        for push in pushes {
            let digest = pushed(guest, build, &image_id, push).await?;
            first.get_or_insert(digest);
        }
        Ok(first)
    };
    let (image, pushed) = tokio::join!(guest.docker.image(&image_id), pushed);
    let size_bytes = match image {
        Ok(image) => image.size,
        Err(error) => return outcome::of_system(&outcome::chain(&error)),
    };
    let digest = match pushed {
        Ok(digest) => digest,
        Err(outcome) => return outcome,
    };
    let statements = match wishes.attests {
        true => push::statements(image_id.clone()).await,
        false => Vec::new(),
    };
    let (steps, steps_cached) = build.steps_seen().count();
    let mut outcome = BuildOutcome::Succeeded {
        image_id,
        push_ms: if digest.is_some() {
            elapsed_ms(began)
        } else {
            0
        },
        digest,
        size_bytes,
        build_ms,
        steps,
        steps_cached,
        platforms: wishes.built(),
        statements,
    };
    outcome.bound_statements();
    outcome
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// How the names of the build's solves begin.
fn names_of(build: &Build) -> String {
    format!("{}-", build.id())
}

/// Why there is no solve.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoSolve {
    #[error("connect to BuildKit")]
    Docker(#[from] DockerError),
    #[error("connect to BuildKit")]
    Dial(#[from] DialError),
    #[error("connect to BuildKit")]
    Connect(#[from] ConnectError),
    #[error("solve")]
    Solve(#[from] SolveFailure),
    #[error("ask BuildKit")]
    Ask(#[from] SolveError),
    #[error("read what the build wants of caches")]
    Cache(#[from] BadCacheEntry),
}

/// Solves, and tries again in one case only: the disk was full but garbage could be collected. A failure of the user's
/// is never tried again; for a session that is not there yet BuildKit waits by itself.
async fn solve(
    guest: &Guest,
    build: &Build,
    request: &StartBuild,
    wishes: &Wishes,
    unemulated: Option<&str>,
) -> Result<SolveResult, BuildOutcome> {
    let mut converter = Converter::new(build.accepted_at());
    let was_full = AtomicBool::new(false);
    let memory = Mutex::new(LastOom::from(guest.ooms.count()));
    let mut attempt = 0;
    let mut full = 0;
    let mut mirrors = guest.config.mirrors();
    loop {
        attempt += 1;
        let by = (attempt, &mirrors);
        let solving = solve_once(guest, build, request, wishes, by, &mut converter);
        let solved = tokio::select! {
            solved = solving => solved,
            never = watch(guest, &was_full, &memory) => match never {},
        };
        let failure = match solved {
            Ok(solved) => return Ok(solved),
            Err(NoSolve::Solve(failure)) => failure,
            Err(error @ NoSolve::Cache(_)) => {
                return Err(outcome::failed(Fault::User, &outcome::chain(&error), None));
            }
            Err(
                error @ (NoSolve::Docker(_)
                | NoSolve::Dial(_)
                | NoSolve::Connect(_)
                | NoSolve::Ask(_)),
            ) => {
                return Err(outcome::of_system(&outcome::chain(&error)));
            }
        };
        if !mirrors.is_empty() && cannot_be_had(&failure.error) {
            // A mirror may be away, and knows nobody's login: the registry itself has the last word.
            tracing::info!(error = %failure.error, "not by way of the mirrors");
            mirrors.clear();
            continue;
        }
        let said_so = converter.saw_disk_full() && was_full.load(Ordering::Relaxed);
        if !filled_the_disk(&failure.error, said_so) {
            let foreign = unemulated.filter(|_| converter.saw_foreign_program());
            let is_step = matches!(failure.error, SolveError::StepFailed { .. });
            return Err(match foreign {
                Some(why) => outcome::unemulated(&failure, why),
                None if is_step && ran_out(guest, &memory, &converter) => {
                    outcome::out_of_memory(&failure, memory_bytes())
                }
                None => outcome::of_solve(&failure),
            });
        }
        settle(guest).await;
        full += 1;
        if full > limits::NO_SPACE_RETRIES || guest.collect(Reason::DiskFull).await == 0 {
            return Err(outcome::disk_full(&failure));
        }
        build.append(BuildEvent::Warning {
            message: "the builder's disk was full: its garbage was collected, and the build is tried again".to_owned(),
        });
    }
}

/// Waits a moment for BuildKit to give back what the failed step had written: with it, the volume looks fuller than it
/// is, and more would be collected than has to.
async fn settle(guest: &Guest) {
    let began = Instant::now();
    while began.elapsed() < limits::SETTLE_WAIT_MAX {
        if guest
            .disk()
            .is_some_and(|disk| pressure(disk) == Pressure::Low)
        {
            return;
        }
        tokio::time::sleep(WATCH_PERIOD).await;
    }
}

/// Looks out for a full disk and for memory that runs out while a build runs. A full disk must be seen: the words alone may be any
/// program's.
async fn watch(guest: &Guest, was_full: &AtomicBool, memory: &Mutex<LastOom>) -> Infallible {
    loop {
        if guest
            .disk()
            .is_some_and(|disk| pressure(disk) == Pressure::High)
        {
            was_full.store(true, Ordering::Relaxed);
        }
        look_at_memory(guest, memory);
        tokio::time::sleep(WATCH_PERIOD).await;
    }
}

fn look_at_memory(guest: &Guest, memory: &Mutex<LastOom>) {
    let (count, now) = (guest.ooms.count(), SystemTime::now());
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    memory.see(count, now);
}

/// Whether memory ran out since the step that failed began.
fn ran_out(guest: &Guest, memory: &Mutex<LastOom>, converter: &Converter) -> bool {
    look_at_memory(guest, memory);
    let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    memory.ran_out_since(converter.failed_step_started_at())
}

/// It was a base image or a frontend that could not be fetched.
fn cannot_be_had(error: &SolveError) -> bool {
    matches!(
        error,
        SolveError::ImageUnavailable { .. }
            | SolveError::RegistryUnreachable { .. }
            | SolveError::FrontendUnavailable { .. }
    )
}

/// BuildKit says so, or a step failed after its output said so.
fn filled_the_disk(error: &SolveError, output_said_so: bool) -> bool {
    match error {
        SolveError::NoSpace { .. } => true,
        SolveError::StepFailed { .. } => output_said_so,
        SolveError::Dockerfile { .. }
        | SolveError::MissingFile { .. }
        | SolveError::Instruction { .. }
        | SolveError::UnknownTarget { .. }
        | SolveError::ImageUnavailable { .. }
        | SolveError::RegistryUnreachable { .. }
        | SolveError::SourceUnreachable { .. }
        | SolveError::FrontendUnavailable { .. }
        | SolveError::Device { .. }
        | SolveError::MissingSecret { .. }
        | SolveError::Context { .. }
        | SolveError::Export { .. }
        | SolveError::InvalidRequest { .. }
        | SolveError::SessionLost { .. }
        | SolveError::Cancelled
        | SolveError::Transport(_)
        | SolveError::NoImage
        | SolveError::Other { .. } => false,
    }
}

async fn solve_once(
    guest: &Guest,
    build: &Build,
    request: &StartBuild,
    wishes: &Wishes,
    (attempt, mirrors): (u32, &BTreeMap<String, String>),
    converter: &mut Converter,
) -> Result<SolveResult, NoSolve> {
    let stream = dial_docker_grpc(guest.docker.connect().await?).await?;
    let client = Client::connect(stream).await?;
    let spec = &request.spec;
    let names = std::iter::once(&spec.image).chain(&spec.tags);
    let names: Vec<&str> = names.map(String::as_str).collect();
    let (events, mut told) = mpsc::channel(limits::EVENTS_QUEUED_MAX);
    let solving = client.solve(
        SolveRequest {
            build_ref: format!("{}{attempt}", names_of(build)),
            session: request.session.clone(),
            frontend_attrs: wishes.frontend_attrs.clone(),
            image_name: names
                .iter()
                .map(|name| image_name(guest.store, name))
                .collect::<Vec<_>>()
                .join(","),
            entitlements: spec.entitlements.clone(),
            cache_from: caches(&spec.cache_from)?,
            cache_to: caches(&spec.cache_to)?,
            export: match (spec.load, spec.export) {
                (true, _) => Some(Export::Image),
                (false, true) => Some(Export::Files),
                (false, false) => None,
            },
            exporter: match guest.store {
                ImageStore::Classic => Exporter::Dockerd,
                ImageStore::Containerd => Exporter::Containerd,
            },
            mirrors: mirrors.clone(),
            exporter_attrs: wishes.exporter_attrs.clone(),
        },
        events,
    );
    let telling = async {
        // Ends with the solve, which holds the sender.
        while let Some(event) = told.recv().await {
            for event in converter.convert(event, Instant::now()) {
                build.append(event);
            }
        }
    };
    let (solved, ()) = tokio::join!(solving, telling);
    Ok(solved?)
}

fn caches(entries: &[String]) -> Result<Vec<CacheEntry>, BadCacheEntry> {
    entries.iter().map(|entry| entry.parse()).collect()
}

/// What the exporter is to name the image. dockerd's own makes whole names of short ones; BuildKit's does not.
fn image_name(store: ImageStore, image: &str) -> String {
    let target = Target::parse(image).ok();
    match (store, target) {
        (ImageStore::Containerd, Some(target)) => format!(
            "{}/{}:{}",
            target.registry(),
            target.repository(),
            target.tag()
        ),
        (ImageStore::Containerd, None) | (ImageStore::Classic, _) => image.to_owned(),
    }
}

/// The pushes that the build wants, if it wants any, one for each name: the first begins with the export.
fn prepared(
    guest: &Guest,
    build: &Build,
    request: &StartBuild,
    borrower: Option<&Borrower>,
    wishes: &Wishes,
) -> Result<Vec<Prepared>, BuildOutcome> {
    if !request.spec.push {
        return Ok(Vec::new());
    }
    let given = request.credential.iter().chain(&request.tag_credentials);
    let logins = Logins {
        given: given.collect(),
        borrower,
    };
    let prepare = |name: &str| {
        let push = push::prepare(guest, name, &logins, request.spec.compression)
            .map_err(|error| outcome::of_push(&error))?;
        // What was built here is pushed as it is told, or not at all.
        Ok(if wishes.is_plain() {
            push
        } else {
            push.whole()
        })
    };
    let mut push = prepare(&request.spec.image)?;
    let others = request.spec.tags.iter().map(|name| prepare(name));
    if !wishes.is_plain() {
        return std::iter::once(Ok(push)).chain(others).collect();
    }
    let (docker, ours) = (guest.docker.clone(), names_of(build));
    push.send_ahead(guest.store, move || {
        let (docker, ours) = (docker.clone(), ours.clone());
        async move {
            is_alone(&docker, &ours)
                .await
                .inspect_err(|error| {
                    tracing::debug!(error = outcome::chain(error), "nothing is sent ahead")
                })
                .unwrap_or(false)
        }
    });
    std::iter::once(Ok(push)).chain(others).collect()
}

/// Whether nobody else's solve is under way, in whatever way it came to BuildKit: what is exported then can only be ours, and nothing of
/// another's image goes to our registry.
async fn is_alone(docker: &Docker, ours: &str) -> Result<bool, NoSolve> {
    let client = Client::connect(dial_docker_grpc(docker.connect().await?).await?).await?;
    Ok(client.is_alone(|name| name.starts_with(ours)).await?)
}

/// Pushes by the image's id, not its name: another build may have taken the name over meanwhile.
async fn pushed(
    guest: &Guest,
    build: &Arc<Build>,
    image_id: &str,
    push: Prepared,
) -> Result<String, BuildOutcome> {
    let throttle = Mutex::new(Throttle::default());
    let told = build.clone();
    let progress = move |progress: PushProgress| {
        // Only bytes on their way are told now and then; every change of state is told.
        let changed = progress.state != PushState::Pushing;
        let mut throttle = throttle.lock().unwrap_or_else(PoisonError::into_inner);
        if throttle.admit(progress.item.clone(), changed, Instant::now()) {
            told.append(BuildEvent::Push(progress));
        }
    };
    match push.image(guest, image_id, progress).await {
        Ok(pushed) => Ok(pushed.digest.to_string()),
        Err(error) => Err(outcome::of_push(&error)),
    }
}
