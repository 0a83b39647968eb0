//! `slipway orgs`.

use crate::api::queries;
use crate::api::shapes::{Org, OrgChange};
use crate::args::{OrgSettings, OrgsVerb};
use crate::caller::Caller;
use slipway_core::isolation::Isolation;
use slipway_core::units::ByteSize;
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::Printer;
use std::time::Duration;

/// Does what the verb says.
///
/// # Errors
/// Whoever's fault it was.
pub(crate) async fn run(verb: OrgsVerb, caller: &Caller, printer: Printer) -> Outcome<()> {
    let client = caller.client()?;
    match verb {
        OrgsVerb::List => {
            let orgs = queries::orgs(&client).await?;
            printer.list(
                ["ORG", "IDLE", "CPUS", "MEMORY", "CACHE", "REGION", "ARCH"],
                &orgs,
                |org| {
                    [
                        org.slug.clone(),
                        time(org.idle_ms),
                        cpus(org.cpu_millis),
                        ByteSize(org.memory_bytes).to_string(),
                        ByteSize(org.volume_bytes).to_string(),
                        org.default_region.clone(),
                        org.default_arch.clone(),
                    ]
                },
            );
        }
        OrgsVerb::Create { name, settings } => {
            let org = queries::create_org(&client, &name, &change(&settings)).await?;
            show(&org, printer);
        }
        OrgsVerb::Update { name, settings } => {
            let change = change(&settings);
            if change.is_empty() {
                return Err(Failure::user("nothing to change")
                    .hint("say --idle, --cpus, --memory, --volume-size, --isolation, --keep-builds or --keep-builds-for"));
            }
            let name = queries::org_or_own(&client, name.as_deref()).await?;
            let org = queries::update_org(&client, &name, &change).await?;
            show(&org, printer);
        }
    }
    Ok(())
}

fn change(settings: &OrgSettings) -> OrgChange {
    OrgChange {
        idle_ms: settings.idle.map(millis),
        builds_kept: settings.keep_builds,
        builds_age_ms: settings.keep_builds_for.map(millis),
        cpu_millis: settings.cpus.map(|cpus| cpus.0),
        memory_bytes: settings.memory.map(|size| size.0),
        volume_bytes: settings.volume_size.map(|size| size.0),
        isolation: settings.isolation.map(|isolation| match isolation {
            Isolation::Auto => "AUTO",
            Isolation::Sandbox => "SANDBOX",
            Isolation::Vm => "VM",
        }),
    }
}

fn show(org: &Org, printer: Printer) {
    printer.record(
        org,
        &[
            ("org", org.slug.clone()),
            ("id", org.id.clone()),
            ("idle", time(org.idle_ms)),
            (
                "builds kept",
                format!("{}, for {}", org.builds_kept, time(org.builds_age_ms)),
            ),
            ("cpus", cpus(org.cpu_millis)),
            ("memory", ByteSize(org.memory_bytes).to_string()),
            ("cache", ByteSize(org.volume_bytes).to_string()),
            ("region", org.default_region.clone()),
            ("arch", org.default_arch.clone()),
            ("isolation", org.isolation.to_lowercase()),
        ],
    );
}

fn time(millis: u64) -> String {
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Thousandths of processors as people write them.
pub(super) fn cpus(millis: u32) -> String {
    match millis % 1000 {
        0 => (millis / 1000).to_string(),
        part => format!(
            "{}.{}",
            millis / 1000,
            format!("{part:03}").trim_end_matches('0')
        ),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn processors_are_printed_as_they_are_typed() {
        for (millis, text) in [(2000, "2"), (500, "0.5"), (1250, "1.25"), (1, "0.001")] {
            assert_eq!(super::cpus(millis), text);
        }
    }
}
