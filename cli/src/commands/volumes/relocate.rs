//! `slipway volumes move`.

use super::show;
use crate::api::ApiClient;
use crate::api::volumes as ask;
use crate::api::volumes::Volume;
use crate::args::MoveArgs;
use crate::backoff::Backoff;
use crate::interrupt::Interrupts;
use crate::limits::MOVE_LOOK_EVERY;
use slipway_terminal::exit::{Failure, FailureKind, Outcome};
use slipway_terminal::printer::Printer;
use std::time::Instant;

/// Moves a volume, and waits until it is there.
pub(super) async fn run(client: &ApiClient, args: &MoveArgs, printer: Printer) -> Outcome<()> {
    if args.cancel {
        show::one(&ask::cancel_move(client, &args.id).await?, printer);
        return Ok(());
    }
    if let Some(zone) = &args.keep {
        let kept = ask::keep_copy(client, &args.id, zone, args.forget_other);
        show::one(&kept.await?, printer);
        return Ok(());
    }
    let (zone, region) = (args.zone.as_deref(), args.region.as_deref());
    let begun = ask::relocate(client, &args.id, zone, region).await?;
    let volume = if args.detach {
        begun
    } else {
        let to = begun.moving_to.clone();
        let ended = wait(client, begun, printer).await?;
        if ended.state == "HALTED" {
            let why = ended
                .notice
                .unwrap_or_else(|| "a copy is missing".to_owned());
            return Err(Failure::system(why).hint(format!(
                "look at both hosts' pools; `slipway volumes move {} --keep ZONE` then says which copy is the volume",
                ended.id
            )));
        }
        if ended.zone != to && to.is_some() {
            let why = ended.notice.unwrap_or_else(|| "it was given up".to_owned());
            return Err(
                Failure::system(format!("the volume stays where it is: {why}"))
                    .hint("choose another zone, or try again"),
            );
        }
        ended
    };
    show::one(&volume, printer);
    Ok(())
}

/// The volume, once it does not move any more.
async fn wait(client: &ApiClient, begun: Volume, printer: Printer) -> Outcome<Volume> {
    let mut interrupts = Interrupts::new()?;
    let mut backoff = Backoff::default();
    let (mut volume, mut told) = (begun, None);
    while volume.state == "MOVING" {
        if volume.notice.is_some() && volume.notice != told {
            told.clone_from(&volume.notice);
            printer.warn(told.as_deref().unwrap_or_default());
        }
        tokio::select! {
            () = tokio::time::sleep(MOVE_LOOK_EVERY) => {}
            () = interrupts.wait() => {
                let hint = format!("it moves on; `slipway volumes move {} --cancel` gives it up", volume.id);
                return Err(Failure::interrupted("interrupted").hint(hint));
            }
        }
        volume = match ask::volume(client, &volume.id).await {
            Ok(seen) => {
                backoff.reset();
                seen
            }
            // The move goes on without us.
            Err(failure) if failure.kind() == FailureKind::System => {
                let Some(delay) = backoff.next(Instant::now()) else {
                    return Err(failure);
                };
                tokio::time::sleep(delay).await;
                continue;
            }
            Err(failure) => return Err(failure),
        };
    }
    Ok(volume)
}
