//! The life of the machine, from the start of the daemons to the end record: one loop over everything that can move it.
//!
//! It must not know how any of it is done.

use crate::books::Books;
use crate::boot::{self, Given, Machine};
use crate::capture::Capture;
use crate::descriptors::Descriptors;
use crate::engine::{self, DATA_ROOT, ENGINE_SOCKET, Ended, Engine};
use crate::guest::Guest;
use crate::init::{self, Children};
use crate::phase::{Event, Phase};
use crate::progress::{GivenUp, Progress};
use crate::{api, limits, store, watcher};
use anyhow::{Context as _, Result};
use slipway_core::end_record;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long the last lines of a daemon that crashed may be on their way.
const LAST_WORDS_WAIT: Duration = Duration::from_millis(50);

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Everything ended well, and the record says so.
    Clean,
    /// A daemon crashed; there is no record.
    Crashed,
}

/// Starts everything and lives until the end. Fails if it cannot begin.
pub(crate) async fn live(started: Instant, given: Given) -> Result<End> {
    let Given {
        descriptors,
        machine,
    } = given;
    let children = Children::reap().context("listen for the end of children")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let books = Books::new(started);
    let capture = Capture::new(DATA_ROOT);
    let (volume, patience, offers_memory) = serve_host(machine, &books, &capture);
    let config = engine::host_config()?;
    let mut progress = Progress::new(Instant::now(), limits::START_STALL_MAX * patience);
    let store = store::of_volume(Path::new(DATA_ROOT), config.image_store)
        .context("find out how the cache volume keeps images")?;
    if let Some(why) = engine::is_impossible()? {
        tracing::error!(why, "the engine cannot start here");
        refuse(&descriptors.record, &why)?;
        return Ok(End::Crashed);
    }
    let started = Engine::start(&children, &descriptors, &config, store, &mut progress).await;
    let Descriptors {
        engine: engine_socket,
        guest: guest_socket,
        mut record,
    } = descriptors;
    let mut engine = match started {
        Ok(engine) => engine,
        Err(error) => {
            refuse(&record, &format!("Docker does not start: {error:#}"))?;
            return Err(error);
        }
    };
    // dockerd has its own copy; ours would keep the socket open after dockerd is gone.
    drop(engine_socket);

    let guest = Guest::new(books.clone(), config, store);
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let server = api::serve(guest_socket, guest.clone(), stop.clone(), tasks.clone())?;
    // Not among the tasks that the end waits for: who asks while the machine ends still gets an answer.
    let _server = tokio::spawn(server);
    tasks.spawn(watcher::watch(guest.clone(), stop.clone()));
    tasks.spawn(emulate(guest.clone(), stop.clone()));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "started");

    let mut until = until_end(&books, &guest, &mut engine, &mut terminate, Some(progress)).await;
    // A step that runs though its build was cancelled is ended, as always: it may hold anything.
    while until == Until::Idle && offers_memory && books.activity().is_quiet() {
        let hurry = async { terminate.recv().await.unwrap_or_default() };
        if !capture.offer(&books, hurry).await {
            break;
        }
        tracing::info!("goes on from kept memory");
        until = until_end(&books, &guest, &mut engine, &mut terminate, None).await;
    }
    let phase = match until {
        Until::Idle => Phase::Ending,
        Until::Phase(phase) => phase,
        Until::StartFailed => Phase::Crashed,
    };
    stop.cancel();
    tasks.close();
    guest.builds.end_all();
    let drained = tokio::time::timeout(limits::DRAIN_WAIT_MAX, tasks.wait());
    match phase {
        Phase::Ending => {
            let (manner, _drained) = tokio::join!(engine.stop(), drained);
            match books.on(Event::EngineEnded(manner)) {
                Phase::Ended => {
                    finish(record, volume)?;
                    return Ok(End::Clean);
                }
                Phase::Starting | Phase::Ready | Phase::Ending | Phase::Crashed => {}
            }
        }
        Phase::Starting | Phase::Ready | Phase::Ended | Phase::Crashed => {
            // The pipes are read to their ends meanwhile, before the last words are shown.
            let _ = tokio::join!(drained, tokio::time::sleep(LAST_WORDS_WAIT));
        }
    }
    engine.log_last_output();
    if until == Until::StartFailed {
        if engine.complains_of_damage() {
            tracing::error!("dockerd finds its data damaged");
            record
                .write_all(end_record::DAMAGED)
                .context("write the end record")?;
        } else {
            let why = engine.why_it_does_not_start(&children).await;
            refuse(&record, &why)?;
        }
    }
    init::kill_all();
    Ok(End::Crashed)
}

/// Begins what a virtual machine does for its host besides. Gives who mounted the cache volume, how many times as long the start of the
/// daemons may take, and whether memory is offered at the end.
fn serve_host(machine: Machine, books: &Books, capture: &Capture) -> (Volume, u32, bool) {
    match machine {
        Machine::Sandbox => (Volume::OfHost, 1, false),
        Machine::Virtual {
            channel,
            volume,
            emulated,
            offers_memory,
        } => {
            tokio::spawn(volume.keep_filled());
            tokio::spawn(channel.serve(books.clone(), capture.clone()));
            let factor = if emulated {
                limits::EMULATED_PATIENCE
            } else {
                1
            };
            (Volume::Own, factor, offers_memory)
        }
    }
}

/// Writes down why the engine cannot start.
fn refuse(mut record: &File, why: &str) -> Result<()> {
    record
        .write_all(&end_record::refusal(why))
        .context("write the end record")
}

/// Sets the emulators up once dockerd has answered, for whoever comes through a gateway.
async fn emulate(guest: Arc<Guest>, stop: CancellationToken) {
    let ready = guest
        .books
        .wait_phase(Duration::MAX, |phase| phase != Phase::Starting);
    if stop.run_until_cancelled(ready).await == Some(Phase::Ready) {
        // What is wrong with it is logged, and told to builds that need it.
        let _ = guest.emulation.ready().await;
    }
}

/// Why a machine is no longer to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// The end was asked for over the API, which takes it only when nothing is in flight.
    Idle,
    /// dockerd ended by itself before its first answer.
    StartFailed,
    /// Anything else; the phase then.
    Phase(Phase),
}

/// Moves the machine on until it is no longer to run. `starting` watches the start of its daemons, unless that is over.
async fn until_end(
    books: &Books,
    guest: &Guest,
    engine: &mut Engine,
    terminate: &mut Signal,
    mut starting: Option<Progress>,
) -> Until {
    let mut starts = starting.is_some();
    let watched = starting
        .as_mut()
        .map(|progress| engine.start_given_up(progress));
    let answered = answer(guest, watched);
    tokio::pin!(answered);
    loop {
        let asked = books.wait_phase(Duration::MAX, |phase| phase == Phase::Ending);
        // Each branch only waits; what it gave up is taken up again in the next round.
        let event = tokio::select! {
            ended = engine.ended() => match ended {
                Ended::Dockerd(manner) => {
                    tracing::error!(?manner, "dockerd ended by itself");
                    if starts && books.on(Event::EngineEnded(manner)) == Phase::Crashed {
                        return Until::StartFailed;
                    }
                    Event::EngineEnded(manner)
                }
                Ended::Containerd => {
                    tracing::error!("containerd ended by itself");
                    Event::ContainerdEnded
                }
            },
            event = &mut answered, if starts => {
                starts = false;
                event
            }
            _ = terminate.recv() => Event::EndAsked,
            _ending = asked => return Until::Idle,
        };
        match books.on(event) {
            Phase::Starting | Phase::Ready => {}
            phase @ (Phase::Ending | Phase::Ended | Phase::Crashed) => return Until::Phase(phase),
        }
    }
}

/// Waits for dockerd's first answer, until its start is given up. Never comes to an end if that is over.
async fn answer(guest: &Guest, given_up: Option<impl Future<Output = GivenUp>>) -> Event {
    let Some(given_up) = given_up else {
        return std::future::pending().await;
    };
    let pinged = async {
        // Until its socket is there the connection is refused; from then on the request waits in the backlog.
        while guest.docker.ping(limits::START_WAIT_MAX).await.is_err() {
            tokio::time::sleep(limits::START_RETRY_PERIOD).await;
        }
    };
    tokio::select! {
        () = pinged => Event::Answered,
        why = given_up => {
            tracing::error!(socket = ENGINE_SOCKET, %why, "dockerd does not start");
            Event::StartGivenUp
        }
    }
}

/// Who mounted the cache volume.
#[derive(Debug, Clone, Copy)]
enum Volume {
    OfHost,
    Own,
}

/// The last acts of a clean end: nobody writes any more, everything is on the disk, the record says so.
fn finish(mut record: File, volume: Volume) -> Result<()> {
    init::kill_all();
    let root = File::open(DATA_ROOT).context("open the cache volume")?;
    nix::unistd::syncfs(&root).context("write the cache volume out")?;
    drop(root);
    match volume {
        Volume::OfHost => {}
        // What is written out is safe; unmounted, it also needs no recovery at the next start.
        Volume::Own => {
            if let Err(error) = boot::release_volume() {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the cache volume stays mounted"
                );
            }
        }
    }
    record
        .write_all(end_record::CLEAN)
        .context("write the end record")?;
    Ok(())
}
