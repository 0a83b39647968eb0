//! `slipway builders`.

use super::confirm::confirm;
use super::orgs::cpus;
use crate::api::queries;
use crate::api::shapes::Builder;
use crate::args::{BuilderChoice, BuildersVerb};
use crate::caller::Caller;
use crate::deploy::seconds;
use crate::moments::ago;
use slipway_core::units::ByteSize;
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::Printer;

/// Does what the verb says.
///
/// # Errors
/// Whoever's fault it was.
pub(crate) async fn run(verb: BuildersVerb, caller: &Caller, printer: Printer) -> Outcome<()> {
    let client = caller.client()?;
    let own = async |choice: &BuilderChoice| {
        queries::org_or_own(&client, choice.org.org.as_deref()).await
    };
    match verb {
        BuildersVerb::List { org } => {
            let org = queries::org_or_own(&client, org.org.as_deref()).await?;
            let builders = queries::builders(&client, &org).await?;
            printer.list(
                ["BUILDER", "REGION", "ARCH", "STATE", "CACHE"],
                &builders,
                |builder| {
                    [
                        builder.id.clone(),
                        builder.region.clone(),
                        builder.arch.clone(),
                        state(builder),
                        cache(builder),
                    ]
                },
            );
        }
        BuildersVerb::Show(choice) => {
            let org = own(&choice).await?;
            let builders = queries::builders(&client, &org).await?;
            show(&pick(builders, &choice, &org)?, printer);
        }
        BuildersVerb::Ensure(choice) => {
            let org = own(&choice).await?;
            let (region, arch) = (choice.region.as_deref(), choice.arch.as_deref());
            show(
                &queries::ensure_builder(&client, &org, region, arch).await?,
                printer,
            );
        }
        BuildersVerb::Stop(choice) => {
            let org = own(&choice).await?;
            let (region, arch) = (choice.region.as_deref(), choice.arch.as_deref());
            show(
                &queries::stop_builder(&client, &org, region, arch).await?,
                printer,
            );
        }
        BuildersVerb::ResetCache(choice) => {
            let org = own(&choice).await?;
            if !caller.yes() {
                confirm(
                    &format!("empty the cache of the builder of org {org}?"),
                    "this empties the builder's cache",
                )?;
            }
            let (region, arch) = (choice.region.as_deref(), choice.arch.as_deref());
            show(
                &queries::reset_cache(&client, &org, region, arch).await?,
                printer,
            );
        }
    }
    Ok(())
}

/// The one builder that is meant.
fn pick(builders: Vec<Builder>, choice: &BuilderChoice, org: &str) -> Outcome<Builder> {
    let fits = |wanted: &Option<String>, has: &str| wanted.as_ref().is_none_or(|it| it == has);
    let mut found = builders
        .into_iter()
        .filter(|it| fits(&choice.region, &it.region) && fits(&choice.arch, &it.arch));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(
            Failure::user(format!("org {org} has several such builders"))
                .hint("say --region and --arch; `slipway builders list` shows them"),
        ),
        (None, _) => Err(Failure::user(format!("org {org} has no such builder yet"))
            .hint("the first deploy makes one, or `slipway builders ensure`")),
    }
}

/// What it does, and what is in the way if something is.
fn state(builder: &Builder) -> String {
    let state = builder.state.to_lowercase();
    match &builder.waiting_for {
        Some(why) => format!("{state}: {why}"),
        None => state,
    }
}

fn memory(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// What it has, and what it gets at its next start if that is something else.
fn now_and_next(now: String, next: Option<String>) -> String {
    match next {
        Some(next) => format!("{now} ({next} from its next start on)"),
        None => now,
    }
}

fn cache(builder: &Builder) -> String {
    let size = ByteSize(builder.volume_bytes);
    match builder.volume_used_bytes {
        Some(used) => format!("{} of {size}", ByteSize(used)),
        None => size.to_string(),
    }
}

fn show(builder: &Builder, printer: Printer) {
    let mut fields = vec![
        ("builder", builder.id.clone()),
        ("region", builder.region.clone()),
        ("arch", builder.arch.clone()),
        ("state", state(builder)),
        (
            "cpus",
            now_and_next(cpus(builder.cpu_millis), builder.next_cpu_millis.map(cpus)),
        ),
        (
            "memory",
            now_and_next(
                memory(builder.memory_bytes),
                builder.next_memory_bytes.map(memory),
            ),
        ),
        ("cache", cache(builder)),
        ("connections", builder.connections.to_string()),
    ];
    let engine = builder.engine.as_ref();
    fields.extend(engine.map(|engine| ("docker", engine.describe())));
    let image = engine.and_then(|engine| engine.image_made_at.as_deref());
    fields.extend(image.map(|at| ("image", format!("of {}", ago(at)))));
    fields.extend(builder.idle_ms.map(|ms| ("idle", seconds(ms))));
    fields.extend(builder.last_error.clone().map(|error| ("error", error)));
    fields.extend(builder.notice.clone().map(|notice| ("notice", notice)));
    printer.record(builder, &fields);
}
