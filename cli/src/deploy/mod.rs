//! `slipway deploy`: from a directory to a pushed image.
//!
//! Owns the order of things; [`plan`] checks, [`remote`] and [`local`] build, [`progress`] and [`summary`] show.

mod attach;
mod call;
mod csv;
mod detach;
mod env;
mod follow;
mod load;
mod local;
mod org_logins;
mod output;
mod plan;
mod progress;
mod remote;
mod secret;
mod session;
mod ssh;
mod summary;

use crate::api::ApiClient;
use crate::args::{DeployArgs, ProgressMode};
use crate::caller::Caller;
use crate::config::ProjectConfig;
use crate::docker_context::DockerConfig;
use crate::docker_logins::DockerLogins;
pub(crate) use attach::{show_log, warnings};
use detach::HandOver;
use output::Output;
use plan::{Place, Plan};
use progress::View;
pub(crate) use progress::{clean_lines, seconds};
use serde::Serialize;
use slipway_core::platform::Platform;
use slipway_terminal::exit::{Failure, FailureKind, Outcome};
use slipway_terminal::printer::{Format, Printer};
use summary::Summary;
pub(crate) use summary::shown;

/// The last line of `--json` after a success; a failure's is the printer's.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum LastLine<'a> {
    Result(&'a Summary),
}

/// Builds, pushes, and prints what came of it.
///
/// # Errors
/// Whoever's fault it was, with a hint.
pub(crate) async fn run(args: &DeployArgs, caller: &Caller, printer: Printer) -> Outcome<()> {
    let mut view = View::new(printer, args.progress);
    if let Some(method) = args.question() {
        let asked = call::run(args, method, caller, printer, &mut view).await;
        view.finish();
        let nothing_built = asked.map(|()| None);
        return conclude(
            nothing_built,
            args.progress,
            printer,
            false,
            Summary::reference,
        );
    }
    if !args.detach {
        let done = build(args, caller, None, &mut view).await;
        let to_stdout = args.output.as_deref().map(Output::parse);
        let to_stdout = matches!(to_stdout, Some(Ok(Output::Stdout)));
        return conclude(done, args.progress, printer, to_stdout, Summary::reference);
    }
    let Some(hand_over) = HandOver::of_this_process() else {
        return detach::supervise().await;
    };
    let done = build(args, caller, Some(hand_over), &mut view).await;
    // Whether or not the build was quicker than the detach, the caller's script gets the same.
    let id = |summary: &Summary| summary.build.clone().unwrap_or_default();
    conclude(done, args.progress, printer, false, id)
}

/// Shows the live progress of a build that somebody else started, to its end, and prints what came of it.
///
/// # Errors
/// Whoever's fault the build's failure was; interrupted, after which the build goes on.
pub(crate) async fn attach(
    id: &str,
    progress: ProgressMode,
    client: &ApiClient,
    printer: Printer,
) -> Outcome<()> {
    let mut view = View::new(printer, progress);
    let result = attach::attach(client, id, &mut view).await.map(Some);
    end_view(&mut view, &result);
    conclude(result, progress, printer, false, Summary::reference)
}

/// Prints how it ended; `name` is what a script gets of a success.
fn conclude(
    result: Outcome<Option<Summary>>,
    progress: ProgressMode,
    printer: Printer,
    to_stdout: bool,
    name: impl Fn(&Summary) -> String,
) -> Outcome<()> {
    match (&result, printer.format()) {
        (Ok(None), _) => {}
        // Somebody reads an archive there.
        (Ok(Some(_)), _) if to_stdout => {}
        (Ok(Some(summary)), Format::Json) => printer.json(&LastLine::Result(summary)),
        (Ok(Some(summary)), Format::Human) => {
            if progress != ProgressMode::Quiet {
                for line in summary.lines() {
                    printer.note(&line);
                }
            }
            printer.data(&name(summary));
        }
        (Err(_), _) => {}
    }
    result.map(drop)
}

/// Takes the live part off the terminal; what a failed step said is shown last.
fn end_view(view: &mut View, result: &Outcome<Option<Summary>>) {
    view.finish();
    if let Err(failure) = result
        && failure.kind() != FailureKind::Interrupted
    {
        view.show_failed_step();
    }
}

/// What is to be built, and the caller's logins; what is odd about either is told.
fn prepared(args: &DeployArgs, view: &mut View) -> Outcome<(Plan, DockerLogins)> {
    let config = ProjectConfig::load(&args.dir, args.config.as_deref())?;
    let env = |name: &str| std::env::var(name).ok();
    let plan = Plan::new(args, &config, &env)?;
    for warning in &plan.warnings {
        view.note(&format!("warning: {warning}"));
    }
    let docker = match DockerConfig::locate() {
        Ok(config) => config.logins(),
        Err(_) => DockerLogins::read(None, &env),
    };
    for complaint in docker.complaints() {
        view.note(&format!("warning: {complaint}"));
    }
    Ok((plan, docker))
}

async fn build(
    args: &DeployArgs,
    caller: &Caller,
    hand_over: Option<HandOver>,
    view: &mut View,
) -> Outcome<Option<Summary>> {
    let (mut plan, docker) = prepared(args, view)?;
    let image = plan.image_for(&fresh_tag()?)?;
    let result = match choose(&plan).await? {
        Chosen::Local(daemon) => {
            // There the image is made where it is to be.
            plan.output.take_if(|output| *output == Output::Docker);
            local::run(&plan, &image, &daemon, &docker, view)
                .await
                .map(Some)
        }
        Chosen::Remote(loading) => {
            let client: ApiClient = caller.client()?;
            let loading = loading.as_ref();
            remote::run(&plan, &image, &client, &docker, loading, hand_over, view).await
        }
    };
    // Those of helpers, which are asked while it builds.
    for complaint in docker.complaints() {
        view.note(&format!("warning: {complaint}"));
    }
    end_view(view, &result);
    let result = result?;
    if let Some(summary) = &result {
        let names = std::iter::once(&image).chain(&plan.tags);
        let names: Vec<&str> = names.map(String::as_str).collect();
        output::write_files(args, summary, &names)?;
    }
    Ok(result)
}

/// Where the build runs.
enum Chosen {
    /// With this Docker.
    Local(local::Daemon),
    /// On a builder; this Docker gets the image.
    Remote(Option<local::Daemon>),
}

/// A local Docker is used when it was asked for, or when it may be, answers, and need not emulate anything.
async fn choose(plan: &Plan) -> Outcome<Chosen> {
    let loads = plan.output == Some(Output::Docker);
    match plan.place {
        Place::Local => local::Daemon::find(local::NO_LOCAL_ONLY)
            .await
            .map(Chosen::Local),
        Place::Remote if loads => local::Daemon::find(load::NO_LOAD)
            .await
            .map(|daemon| Chosen::Remote(Some(daemon))),
        Place::Remote => Ok(Chosen::Remote(None)),
        Place::Auto if plan.needs_builder => Ok(Chosen::Remote(None)),
        Place::Auto => match local::Daemon::find(load::NO_LOAD).await {
            Ok(daemon) if is_native(&plan.platforms, daemon.arch()) => Ok(Chosen::Local(daemon)),
            Ok(daemon) => Ok(Chosen::Remote(loads.then_some(daemon))),
            Err(failure) if loads => Err(failure),
            Err(_) => Ok(Chosen::Remote(None)),
        },
    }
}

/// Whether a processor runs what is built for all of these platforms; if none was named, for the usual one.
fn is_native(platforms: &[Platform], arch: &str) -> bool {
    match platforms {
        [] => arch == local::TARGET_ARCH,
        named => named.iter().all(|it| it.is_native_to(arch)),
    }
}

/// A tag that no other deploy has: milliseconds since 1970 and random bits, in an order that sorts by time (a ULID,
/// in lower case).
fn fresh_tag() -> Outcome<String> {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::system(format!("no random numbers: {error}")))?;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, progress::millis);
    bytes[..6].copy_from_slice(&now.to_be_bytes()[2..]);
    let number = u128::from_be_bytes(bytes);
    let digits = (0..26u32).rev().map(|digit| {
        let index = usize::try_from(number >> (5 * digit) & 31).unwrap_or(0);
        char::from(ALPHABET[index])
    });
    Ok(format!("deployment-{}", digits.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_docker_builds_only_what_its_processor_runs() {
        for (platforms, arch, want) in [
            ("", "amd64", true),
            ("", "arm64", false),
            ("linux/amd64", "amd64", true),
            ("linux/386", "amd64", true),
            ("linux/arm64", "arm64", true),
            ("linux/arm64", "amd64", false),
            ("linux/riscv64", "amd64", false),
            ("linux/s390x", "amd64", false),
            ("linux/arm/v7", "amd64", false),
            ("linux/amd64,linux/arm64", "amd64", false),
        ] {
            let named = match platforms {
                "" => Vec::new(),
                text => slipway_core::platform::parse_list(text).unwrap(),
            };
            assert_eq!(is_native(&named, arch), want, "{platforms} on {arch}");
        }
    }

    #[test]
    fn tags_differ_and_sort_by_time() {
        let first = fresh_tag().unwrap();
        let begun = std::time::Instant::now();
        while begun.elapsed().as_millis() < 3 {
            std::hint::spin_loop();
        }
        let second = fresh_tag().unwrap();
        assert!(first < second, "{first} {second}");
        assert_eq!(first.len(), "deployment-".len() + 26);
    }
}
