//! `slipway volumes`.

use super::context::Caller;
use crate::api::queries;
use crate::args::VolumesVerb;
use crate::exit::Outcome;
use crate::printer::Printer;
use slipway_core::units::ByteSize;

/// Does what the verb says.
///
/// # Errors
/// Whoever's fault it was.
pub(crate) async fn run(verb: VolumesVerb, caller: &Caller, printer: Printer) -> Outcome<()> {
    let client = caller.client()?;
    match verb {
        VolumesVerb::List { org } => {
            let org = queries::org_or_own(&client, org.org.as_deref()).await?;
            let volumes = queries::volumes(&client, &org).await?;
            printer.list(
                ["VOLUME", "STATE", "REGION", "SIZE", "USED", "BUILDER"],
                &volumes,
                |volume| {
                    [
                        volume.id.clone(),
                        volume.state.to_lowercase(),
                        volume.region.clone(),
                        ByteSize(volume.size_bytes).to_string(),
                        volume
                            .used_bytes
                            .map_or_else(|| "?".to_owned(), |used| ByteSize(used).to_string()),
                        volume.attached_to.clone().unwrap_or_default(),
                    ]
                },
            );
        }
    }
    Ok(())
}
