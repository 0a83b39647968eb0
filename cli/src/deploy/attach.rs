//! A build seen from elsewhere than where it was started: its log, or its live progress. Neither ends it.

use super::follow::{Follower, Heard};
use super::progress::{View, clean_lines};
use super::summary::Summary;
use crate::api::queries;
use crate::api::{ApiClient, shapes::Build};
use crate::interrupt::Interrupts;
use crate::limits::TREE_PERIOD;
use slipway_core::build::{BuildEvent, BuildOutcome};
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::{Format, Printer};

/// Shows a build from its first event to its last, as its own deploy would.
///
/// # Errors
/// Whoever's fault the build's failure is; interrupted by Ctrl-C, after which the build goes on.
pub(super) async fn attach(client: &ApiClient, id: &str, view: &mut View) -> Outcome<Summary> {
    let mut interrupts = Interrupts::new()?;
    let build = queries::build(client, id).await?;
    view.status("building");
    let mut follower = Follower::new(client, id);
    let mut ticks = tokio::time::interval(TREE_PERIOD);
    let mut broken_told = false;
    loop {
        let hearing = follower.hear(view.board().last_seq());
        tokio::pin!(hearing);
        let heard = loop {
            tokio::select! {
                heard = &mut hearing => break heard?,
                _ = ticks.tick() => view.tick(),
                () = interrupts.wait() => return Err(detached(&build)),
            }
        };
        show(heard, &mut broken_told, view);
        if let Some(outcome) = view.board().outcome() {
            return Summary::of_build(&build, outcome.clone(), view.board(), None);
        }
    }
}

/// What a build has warned of so far, each once, in its order.
///
/// # Errors
/// Whoever's fault it was.
pub(crate) async fn warnings(client: &ApiClient, build: &Build) -> Outcome<Vec<String>> {
    let mut follower = Follower::new(client, &build.id);
    let (mut after, mut found) = (0, Vec::new());
    while after < build.last_seq {
        let Heard::Event(event) = follower.hear(after).await? else {
            continue;
        };
        after = event.seq;
        if let BuildEvent::Warning { message } = event.event
            && !found.contains(&message)
        {
            found.push(message);
        }
    }
    Ok(found)
}

/// Shows what was heard. That the connection broke is said once for each time, not for each try.
pub(super) fn show(heard: Heard, broken_told: &mut bool, view: &mut View) {
    match heard {
        Heard::Event(event) => {
            if std::mem::take(broken_told) {
                view.note("connected again; the build went on meanwhile");
            }
            view.event(&event);
        }
        Heard::Broken(why) => {
            if !std::mem::replace(broken_told, true) {
                view.note(&format!("{why}; connecting again"));
            }
        }
    }
}

fn detached(build: &Build) -> Failure {
    let id = &build.id;
    Failure::interrupted(format!("interrupted; build {id} goes on")).hint(format!(
        "`slipway builds attach {id}` shows it again, `slipway builds cancel {id}` ends it"
    ))
}

/// Prints what a build has said so far; `follow` goes on to its end.
///
/// # Errors
/// Whoever's fault it is that the log cannot be read.
pub(crate) async fn show_log(
    client: &ApiClient,
    id: &str,
    follow: bool,
    printer: Printer,
) -> Outcome<()> {
    let build = queries::build(client, id).await?;
    let mut view = View::for_log(printer);
    let mut follower = Follower::new(client, id);
    let mut broken_told = false;
    while view.board().outcome().is_none() && (follow || view.board().last_seq() < build.last_seq) {
        let heard = follower.hear(view.board().last_seq()).await?;
        show(heard, &mut broken_told, &mut view);
    }
    view.finish();
    if let (
        Some(BuildOutcome::Failed {
            message, excerpt, ..
        }),
        Format::Human,
    ) = (view.board().outcome(), printer.format())
    {
        for text in excerpt.iter().chain([&format!("error: {message}")]) {
            printer.data(&clean_lines(text));
        }
    }
    Ok(())
}
