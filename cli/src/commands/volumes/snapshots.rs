//! `slipway volumes snapshots`.

use crate::api::ApiClient;
use crate::api::volumes as ask;
use crate::api::volumes::Snapshot;
use crate::args::SnapshotsVerb;
use crate::commands::confirm::confirm;
use crate::moments::{ago, exact, until};
use slipway_core::units::ByteSize;
use slipway_terminal::exit::Outcome;
use slipway_terminal::printer::Printer;

/// Does what the verb says.
pub(super) async fn run(
    verb: SnapshotsVerb,
    client: &ApiClient,
    yes: bool,
    printer: Printer,
) -> Outcome<()> {
    match verb {
        SnapshotsVerb::List { volume } => {
            let snapshots = ask::snapshots(client, &volume).await?;
            printer.list(
                [
                    "ID",
                    "STATE",
                    "STORED",
                    "VOLUME SIZE",
                    "SCHEDULED",
                    "CREATED",
                    "EXPIRES",
                ],
                &snapshots,
                |snapshot| {
                    [
                        snapshot.id.clone(),
                        snapshot.state.to_lowercase(),
                        ByteSize(snapshot.stored_bytes).to_string(),
                        ByteSize(snapshot.volume_size_bytes).to_string(),
                        snapshot.scheduled.to_string(),
                        ago(&snapshot.created_at),
                        until(&snapshot.expires_at),
                    ]
                },
            );
        }
        SnapshotsVerb::Create { volume } => {
            let snapshot = ask::create_snapshot(client, &volume).await?;
            show(&snapshot, printer);
            if snapshot.state == "CREATING" {
                printer.warn(&format!(
                    "it is recorded and not made yet; `slipway volumes snapshots list {volume}` tells when it is"
                ));
            }
        }
        SnapshotsVerb::Delete { ids } => {
            if !yes {
                let what = "this deletes snapshots permanently";
                confirm(&format!("{what}: {}?", ids.join(", ")), what)?;
            }
            for id in &ids {
                ask::delete_snapshot(client, id).await?;
                printer.note(&format!("{id} is deleted"));
            }
        }
    }
    Ok(())
}

fn show(snapshot: &Snapshot, printer: Printer) {
    printer.record(
        snapshot,
        &[
            ("id", snapshot.id.clone()),
            (
                "volume",
                format!("{} ({})", snapshot.volume, snapshot.volume_name),
            ),
            ("state", snapshot.state.to_lowercase()),
            ("stored", ByteSize(snapshot.stored_bytes).to_string()),
            (
                "volume size",
                ByteSize(snapshot.volume_size_bytes).to_string(),
            ),
            ("created at", exact(&snapshot.created_at)),
            ("expires at", exact(&snapshot.expires_at)),
        ],
    );
}
