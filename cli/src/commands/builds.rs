//! `slipway builds`.

use crate::api::queries;
use crate::api::shapes::Build;
use crate::args::BuildsVerb;
use crate::caller::Caller;
use crate::deploy::{attach, clean_lines, seconds, show_log, shown as platforms_shown, warnings};
use crate::moments::{ago, exact, took};
use serde::Serialize;
use slipway_core::units::ByteSize;
use slipway_terminal::exit::Outcome;
use slipway_terminal::printer::{Format, Printer};

/// Does what the verb says.
///
/// # Errors
/// Whoever's fault it was.
pub(crate) async fn run(verb: BuildsVerb, caller: &Caller, printer: Printer) -> Outcome<()> {
    let client = caller.client()?;
    match verb {
        BuildsVerb::List { org, app, limit } => {
            let org = queries::org_or_own(&client, org.org.as_deref()).await?;
            let builds = queries::builds(&client, &org, app.as_deref(), limit).await?;
            printer.list(
                [
                    "BUILD", "APP", "SOURCE", "BY", "STATE", "CREATED", "TOOK", "CACHED", "IMAGE",
                    "DIGEST",
                ],
                &builds,
                |build| {
                    [
                        build.id.clone(),
                        build.app.clone(),
                        build.source.to_lowercase(),
                        build.asked_by.clone().unwrap_or_default(),
                        build.state.to_lowercase(),
                        ago(&build.created_at),
                        took(&build.created_at, build.ended_at.as_deref()),
                        cached(build).unwrap_or_default(),
                        build.image.clone(),
                        build
                            .digest
                            .as_deref()
                            .map(short_digest)
                            .unwrap_or_default(),
                    ]
                },
            );
        }
        BuildsVerb::Show { id } => {
            let build = queries::build(&client, &id).await?;
            // The record is of use without them.
            let warnings = warnings(&client, &build).await.unwrap_or_else(|failure| {
                printer.warn(&format!(
                    "the build's own warnings could not be read: {}",
                    failure.message()
                ));
                Vec::new()
            });
            show(&Shown { build, warnings }, printer);
        }
        BuildsVerb::Logs { id, follow } => show_log(&client, &id, follow, printer).await?,
        BuildsVerb::Attach { id, progress } => attach(&id, progress, &client, printer).await?,
        BuildsVerb::Cancel { id } => {
            let build = queries::cancel_build(&client, &id).await?;
            // The builder ends it a moment later.
            let state = match build.state.to_lowercase().as_str() {
                "pending" | "running" => "being cancelled".to_owned(),
                ended => ended.to_owned(),
            };
            printer.note(&format!("build {} is {state}", build.id));
        }
    }
    Ok(())
}

/// Steps that came from the cache, of how many.
fn cached(build: &Build) -> Option<String> {
    let (cached, steps) = (build.steps_cached?, build.steps?);
    Some(format!("{cached}/{steps}"))
}

/// Enough of a digest to tell it from others; the whole one is in `builds show` and `--json`.
fn short_digest(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

/// A build, with what it has warned of.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    build: Build,
    warnings: Vec<String>,
}

fn show(shown: &Shown, printer: Printer) {
    let build = &shown.build;
    let mut fields = vec![
        ("build", build.id.clone()),
        ("app", build.app.clone()),
        ("image", build.image.clone()),
        ("source", build.source.to_lowercase()),
        ("asked by", build.asked_by.clone().unwrap_or_default()),
        ("state", build.state.to_lowercase()),
        ("created", exact(&build.created_at)),
    ];
    for name in &build.tags {
        fields.push(("also", name.clone()));
    }
    let mut more = |name, value: Option<String>| fields.extend(value.map(|value| (name, value)));
    more("ended", build.ended_at.as_deref().map(exact));
    more(
        "took",
        Some(took(&build.created_at, build.ended_at.as_deref())),
    );
    more("steps cached", cached(build));
    more("digest", build.digest.clone());
    let platforms = platforms_shown(&build.platforms);
    more("for", Some(platforms).filter(|text| !text.is_empty()));
    for statement in &build.statements {
        let of = statement.platform.as_ref();
        let of = of.map_or_else(String::new, |platform| format!(" of {platform}"));
        more(
            "attests",
            Some(format!(
                "{}{of} ({})",
                statement.predicate_type, statement.digest
            )),
        );
    }
    more(
        "size",
        build.size_bytes.map(|size| ByteSize(size).to_string()),
    );
    more("build time", build.build_ms.map(seconds));
    more(
        "push time",
        build.push_ms.filter(|_| build.push).map(seconds),
    );
    for warning in &shown.warnings {
        more("warning", Some(clean_lines(warning)));
    }
    more("error", build.error.clone());
    more("hint", build.hint.clone());
    printer.record(shown, &fields);
    if let (Some(excerpt), Format::Human) = (&build.excerpt, printer.format()) {
        printer.data(&clean_lines(excerpt));
    }
    for statement in &build.statements {
        if let (Some(text), Format::Human) = (&statement.text, printer.format()) {
            printer.data(&clean_lines(text));
        }
    }
}
