//! `slipway volumes export`.

use super::kept::{Kept, Resume, next};
use super::progress::Progress;
use super::retry::Retry;
use crate::api::transfers::Download;
use crate::api::volumes as ask;
use crate::api::{ApiClient, ApiError};
use crate::args::ExportArgs;
use crate::interrupt::Interrupts;
use serde::Serialize;
use slipway_core::units::ByteSize;
use slipway_terminal::exit::{Failure, FailureKind, Outcome};
use slipway_terminal::printer::{Format, Printer};
use slipway_volume_stream::Frames;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use tokio::task::block_in_place;

/// What was done.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Exported<'a> {
    snapshot: &'a str,
    file: String,
    bytes: u64,
    contents_bytes: u64,
    digest: String,
}

/// Writes what a volume or a snapshot holds.
pub(super) async fn run(client: &ApiClient, args: &ExportArgs, printer: Printer) -> Outcome<()> {
    let file = (args.output != "-").then(|| PathBuf::from(&args.output));
    if file.is_none() && (std::io::stdout().is_terminal() || printer.format() == Format::Json) {
        return Err(
            Failure::user("standard output is not the place for an export here")
                .hint("redirect it, or name a file: -o FILE"),
        );
    }
    let mut interrupts = Interrupts::new()?;
    let before = match &file {
        Some(file) => Resume::read(file)?,
        None => None,
    };
    let (plan, mut kept) = match before {
        Some(plan) => go_on(plan, args, file.as_deref(), printer)?,
        None => begin(client, args, file.as_deref()).await?,
    };
    let mut progress = Progress::new("exporting", printer);
    let done = all(client, &plan, &mut kept, &mut interrupts, &mut progress).await;
    progress.clear();
    if let Err(failure) = done {
        return Err(broke_off(client, &plan, &kept, file.as_deref(), failure).await);
    }
    if let Some(file) = &file {
        durable(file)?;
        Resume::remove(file)?;
    }
    if plan.temporary && !args.keep_snapshot {
        forget(client, &plan.snapshot, printer).await;
    }
    let (_, size) = kept.so_far();
    printer.note(&format!(
        "{} is exported: {} of contents in {} bytes, checksum {}",
        plan.snapshot,
        ByteSize(size),
        kept.bytes,
        kept.digest()
    ));
    if printer.format() == Format::Json {
        printer.json(&Exported {
            snapshot: &plan.snapshot,
            file: args.output.clone(),
            bytes: kept.bytes,
            contents_bytes: size,
            digest: kept.digest(),
        });
    }
    Ok(())
}

/// The plan of an export that broke off, and its file.
fn go_on(
    plan: Resume,
    args: &ExportArgs,
    file: Option<&Path>,
    printer: Printer,
) -> Outcome<(Resume, Kept)> {
    let asked = args.snapshot_id.as_ref();
    if plan.of != args.id || asked.is_some_and(|asked| *asked != plan.snapshot) {
        return Err(
            Failure::user(format!("the file was begun with an export of {}", plan.of))
                .hint("name another file, or remove it and its .resume file"),
        );
    }
    let kept = block_in_place(|| Kept::open(file.unwrap_or(Path::new("-"))))?;
    printer.note(&format!(
        "resuming {} after {} bytes",
        plan.snapshot, kept.bytes
    ));
    Ok((plan, kept))
}

async fn begin(
    client: &ApiClient,
    args: &ExportArgs,
    file: Option<&Path>,
) -> Outcome<(Resume, Kept)> {
    // The file first: without it nothing is to be made on the server.
    let kept = match file {
        Some(file) => Kept::create(file)?,
        None => Kept::empty(Box::new(std::io::stdout()), "standard output"),
    };
    let plan = match plan(client, args).await {
        Ok(plan) => plan,
        Err(failure) => {
            remove(file);
            return Err(failure);
        }
    };
    if let Some(file) = file {
        plan.write(file)?;
    }
    Ok((plan, kept))
}

async fn plan(client: &ApiClient, args: &ExportArgs) -> Outcome<Resume> {
    let named = match &args.snapshot_id {
        Some(snapshot) => Some(snapshot),
        None => Some(&args.id).filter(|id| id.starts_with("snp_")),
    };
    let of = args.id.clone();
    if let Some(snapshot) = named {
        let snapshot = snapshot.clone();
        return Ok(Resume {
            of,
            snapshot,
            temporary: false,
        });
    }
    let made = ask::create_snapshot(client, &args.id).await?;
    if made.state != "CREATED" {
        let hint = format!("`slipway volumes export {}` when it is made", made.id);
        return Err(Failure::system("the snapshot for it is not made yet").hint(hint));
    }
    Ok(Resume {
        of,
        snapshot: made.id,
        temporary: true,
    })
}

/// Reads all of it, over as many connections as that takes.
async fn all(
    client: &ApiClient,
    plan: &Resume,
    kept: &mut Kept,
    interrupts: &mut Interrupts,
    progress: &mut Progress,
) -> Outcome<()> {
    let mut retry = Retry::default();
    while !kept.whole {
        let before = kept.bytes;
        let tried = tokio::select! {
            tried = once(client, plan, kept, progress) => tried,
            () = interrupts.wait() => return Err(Failure::interrupted("interrupted")),
        };
        if let Err(error) = tried {
            let moved = kept.bytes > before;
            retry.wait(error, moved, interrupts).await?;
        }
    }
    Ok(())
}

/// Reads what one connection brings.
async fn once(
    client: &ApiClient,
    plan: &Resume,
    kept: &mut Kept,
    progress: &mut Progress,
) -> Result<(), ApiError> {
    let at = kept.resume_at();
    let mut download = Download::open(client, &plan.snapshot, at).await?;
    let mut frames = Frames::default();
    let mut continued = at > 0 || kept.bytes > 0;
    while let Some(piece) = download.next().await? {
        frames.push(&piece);
        while let Some(frame) = next(&mut frames)? {
            block_in_place(|| kept.take(&frame, Some(&mut continued)))?;
        }
        let (at, size) = kept.so_far();
        progress.draw(at, size, kept.bytes);
    }
    if kept.whole {
        Ok(())
    } else {
        Err(Failure::system("the export broke off").into())
    }
}

/// What is left when an export did not come to its end.
async fn broke_off(
    client: &ApiClient,
    plan: &Resume,
    kept: &Kept,
    file: Option<&Path>,
    failure: Failure,
) -> Failure {
    let begun = kept.so_far().0 > 0;
    if file.is_some() && begun && failure.kind() != FailureKind::User {
        return failure.hint("the same command resumes it");
    }
    if file.is_some() && begun {
        // The hint says what to do about it, and the file may still be of use.
        return failure;
    }
    // Nobody can go on with it.
    remove(file);
    if let Some(file) = file {
        let _ = Resume::remove(file);
    }
    if plan.temporary {
        let _ = ask::delete_snapshot(client, &plan.snapshot).await;
    }
    failure
}

fn remove(file: Option<&Path>) {
    if let Some(file) = file {
        let _ = std::fs::remove_file(file);
    }
}

fn durable(file: &Path) -> Outcome<()> {
    let synced = block_in_place(|| std::fs::File::open(file).and_then(|file| file.sync_all()));
    synced.map_err(|error| {
        let action = format!("cannot write the export to {}", file.display());
        Failure::user_caused(action, &error)
    })
}

async fn forget(client: &ApiClient, snapshot: &str, printer: Printer) {
    if let Err(failure) = ask::delete_snapshot(client, snapshot).await {
        printer.warn(&format!(
            "{snapshot}, which was made for this, is not deleted: {}",
            failure.message()
        ));
    }
}
