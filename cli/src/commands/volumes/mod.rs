//! `slipway volumes`.

mod export;
mod import;
mod kept;
mod progress;
mod relocate;
mod retry;
mod sent;
mod show;
mod snapshots;

use super::confirm::confirm;
use crate::api::volumes as ask;
use crate::api::volumes::{Fork, NewVolume, Volume, VolumeChange};
use crate::api::{ApiClient, queries};
use crate::args::{CreateVolumeArgs, ForkArgs, Growth, UpdateVolumeArgs, VolumesVerb};
use crate::caller::Caller;
use crate::moments::exact;
use slipway_core::units::ByteSize;
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::{Format, Printer, stdin_is_terminal};

/// Does what the verb says.
///
/// # Errors
/// Whoever's fault it was.
pub(crate) async fn run(verb: VolumesVerb, caller: &Caller, printer: Printer) -> Outcome<()> {
    let client = caller.client()?;
    match verb {
        VolumesVerb::Create(args) => create(&client, &args, caller.yes(), printer).await,
        VolumesVerb::List { org } => {
            let org = queries::org_or_own(&client, org.org.as_deref()).await?;
            show::list(&ask::volumes(&client, &org).await?, printer);
            Ok(())
        }
        VolumesVerb::Show { id } => {
            show::one(&ask::volume(&client, &id).await?, printer);
            Ok(())
        }
        VolumesVerb::Update(args) => update(&client, &args, printer).await,
        VolumesVerb::Extend { id, size } => {
            let bytes = match size {
                Growth::To(size) => size.0,
                Growth::By(more) => {
                    let has = ask::volume(&client, &id).await?.size_bytes;
                    has.saturating_add(more.0)
                }
            };
            done(&ask::extend(&client, &id, bytes).await?, printer);
            Ok(())
        }
        VolumesVerb::Fork(args) => fork(&client, &args, printer).await,
        VolumesVerb::Destroy { ids, now } => {
            destroy(&client, &ids, now, caller.yes(), printer).await
        }
        VolumesVerb::Restore { id } => {
            done(&ask::restore(&client, &id).await?, printer);
            Ok(())
        }
        VolumesVerb::Move(args) => relocate::run(&client, &args, printer).await,
        VolumesVerb::Export(args) => export::run(&client, &args, printer).await,
        VolumesVerb::Import(args) => import::run(&client, &args, printer).await,
        VolumesVerb::Snapshots(verb) => snapshots::run(verb, &client, caller.yes(), printer).await,
    }
}

const ONE_HOST: &str =
    "a volume is on one host, and is lost with its disk: keep two, or export what you cannot lose";

async fn create(
    client: &ApiClient,
    args: &CreateVolumeArgs,
    yes: bool,
    printer: Printer,
) -> Outcome<()> {
    let org = queries::org_or_own(client, args.org.org.as_deref()).await?;
    let new = NewVolume {
        org: &org,
        name: &args.name,
        region: args.region.as_deref(),
        size_bytes: args.size.map(|size| size.0),
        snapshot: args.snapshot_id.as_deref(),
        snapshot_retention_days: args.snapshot_retention,
        scheduled_snapshots: args.scheduled_snapshots,
        encrypted: args.no_encryption.then_some(false),
        require_unique_zone: args.require_unique_zone,
    };
    if !yes {
        let volumes = ask::volumes(client, &org).await?;
        if volumes.iter().all(|volume| volume.name != args.name) {
            printer.warn(ONE_HOST);
            // Making one takes nothing from anybody, so a script is not kept from it.
            if stdin_is_terminal() {
                let question = format!("make the volume '{}' all the same?", args.name);
                confirm(&question, ONE_HOST)?;
            }
        }
    }
    done(&ask::create(client, &new).await?, printer);
    Ok(())
}

async fn update(client: &ApiClient, args: &UpdateVolumeArgs, printer: Printer) -> Outcome<()> {
    let change = VolumeChange {
        snapshot_retention_days: args.snapshot_retention,
        scheduled_snapshots: args.scheduled_snapshots,
        auto_extend_threshold_percent: args.auto_extend_threshold,
        auto_extend_increment_bytes: args.auto_extend_increment.map(|size| size.0),
        auto_extend_limit_bytes: args.auto_extend_limit.map(|size| size.0),
    };
    if change == VolumeChange::default() {
        return Err(Failure::user("nothing to change").hint(
            "say --snapshot-retention, --scheduled-snapshots or --auto-extend-threshold, -increment and -limit",
        ));
    }
    done(&ask::update(client, &args.id, &change).await?, printer);
    Ok(())
}

async fn fork(client: &ApiClient, args: &ForkArgs, printer: Printer) -> Outcome<()> {
    let fork = Fork {
        volume: &args.id,
        name: args.name.as_deref(),
        region: args.region.as_deref(),
        size_bytes: args.size.map(|size| size.0),
    };
    done(&ask::fork(client, &fork).await?, printer);
    Ok(())
}

async fn destroy(
    client: &ApiClient,
    ids: &[String],
    now: bool,
    yes: bool,
    printer: Printer,
) -> Outcome<()> {
    if !yes {
        let what = if now {
            "this destroys volumes permanently"
        } else {
            "this destroys volumes a day from now"
        };
        confirm(&format!("{what}: {}?", ids.join(", ")), what)?;
    }
    let mut destroyed = Vec::new();
    for id in ids {
        let volume = ask::destroy(client, id, now).await?;
        if printer.format() == Format::Human {
            match &volume.destroy_at {
                Some(at) if !now => printer.data(&format!(
                    "{id} is destroyed at {}; `slipway volumes restore {id}` keeps it",
                    exact(at)
                )),
                Some(_) | None => printer.data(&format!("{id} is destroyed")),
            }
        }
        destroyed.push(volume);
    }
    if printer.format() == Format::Json {
        printer.json(&destroyed);
    }
    Ok(())
}

/// Shows a volume after something was done to it, and says what is still to come.
fn done(volume: &Volume, printer: Printer) {
    show::one(volume, printer);
    if matches!(
        volume.state.as_str(),
        "CREATING" | "RESTORING" | "FORKING" | "EXTENDING"
    ) {
        printer.warn(&format!(
            "it is recorded and not done yet ({}); `slipway volumes show {}` tells when it is",
            volume.state.to_lowercase(),
            volume.id
        ));
    }
}

/// Bytes in hexadecimal digits.
fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A size that may not be known.
fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "?".to_owned(), |bytes| ByteSize(bytes).to_string())
}
