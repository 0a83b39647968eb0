//! `slipway volumes import`.

use super::done;
use super::progress::Progress;
use super::retry::Retry;
use super::sent::{Counter, Said, Sent, feed};
use crate::api::transfers;
use crate::api::volumes as ask;
use crate::api::volumes::{ImportedVolume, Volume};
use crate::api::{ApiClient, ApiError, queries};
use crate::args::ImportArgs;
use crate::interrupt::Interrupts;
use crate::limits::{PROGRESS_PERIOD, TRANSFER_PIECES_QUEUED_MAX, TRANSFER_SILENCE_MAX};
use slipway_core::quota::VOLUME_SIZE_MIN;
use slipway_core::units::ByteSize;
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::Printer;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};
use tokio::task::block_in_place;

/// Makes a volume of what was exported.
pub(super) async fn run(client: &ApiClient, args: &ImportArgs, printer: Printer) -> Outcome<()> {
    let (sent, said) = block_in_place(|| Sent::open(&args.file))?;
    if args.volume_id.is_some() && !sent.is_file() {
        return Err(
            Failure::user("an import from standard input cannot be resumed")
                .hint("begin anew without --volume-id, or import a file"),
        );
    }
    let size = args
        .size
        .unwrap_or(ByteSize(said.size).max(VOLUME_SIZE_MIN));
    if size.0 < said.size {
        let message = format!("{} has {} of contents", args.file, ByteSize(said.size));
        return Err(Failure::user(message).hint("ask for that size or a larger one"));
    }
    let mut interrupts = Interrupts::new()?;
    let volume = match &args.volume_id {
        Some(id) => go_on(client, args, id, &said).await?,
        None => begin(client, args, size, &said).await?,
    };
    if sent.is_file() && args.volume_id.is_none() {
        printer.note(&format!("{} waits for its contents", volume.id));
    }
    let mut progress = Progress::new("importing", printer);
    let sent = Arc::new(sent);
    let outcome = all(
        client,
        &volume.id,
        &sent,
        &said,
        &mut interrupts,
        &mut progress,
    )
    .await;
    progress.clear();
    match outcome {
        Ok(()) => {
            done(&ask::volume(client, &volume.id).await?, printer);
            Ok(())
        }
        Err(failure) if sent.is_file() => {
            let (name, file, id) = (&args.name, &args.file, &volume.id);
            // Beside the hint, which says what to do about the file.
            printer.note(&format!(
                "{id} waits for a day; `slipway volumes import {name} {file} --volume-id {id}` resumes it"
            ));
            Err(failure)
        }
        Err(failure) => {
            // Nobody can go on with it.
            match ask::destroy(client, &volume.id, true).await {
                Ok(_) => printer.note("nothing is kept of what came from standard input"),
                Err(left) => {
                    let why = left.message();
                    printer.warn(&format!("{} is left: {why}", volume.id));
                }
            }
            Err(failure)
        }
    }
}

async fn begin(
    client: &ApiClient,
    args: &ImportArgs,
    size: ByteSize,
    said: &Said,
) -> Outcome<Volume> {
    let org = queries::org_or_own(client, args.org.org.as_deref()).await?;
    let new = ImportedVolume {
        org: &org,
        name: &args.name,
        region: args.region.as_deref(),
        size_bytes: size.0,
        digest: said.digest.as_deref(),
    };
    ask::import(client, &new).await
}

/// The volume that an import before has made, if this is the same once more.
async fn go_on(client: &ApiClient, args: &ImportArgs, id: &str, said: &Said) -> Outcome<Volume> {
    let volume = ask::volume(client, id).await?;
    let refused = |message: String| {
        Err(Failure::user(message).hint("`slipway volumes show ID` tells what it waits for; without --volume-id a new one is made"))
    };
    if volume.state != "IMPORTING" {
        return refused(format!(
            "{id} does not wait for contents: it is {}",
            volume.state.to_lowercase()
        ));
    }
    if volume.name != args.name {
        return refused(format!("{id} is called {}", volume.name));
    }
    if volume.import_digest.is_some() && volume.import_digest != said.digest {
        return refused(format!("{id} was begun with another file"));
    }
    if volume.size_bytes < said.size {
        return refused(format!("{id} has {}", ByteSize(volume.size_bytes)));
    }
    Ok(volume)
}

/// Sends all of it, over as many connections as that takes.
async fn all(
    client: &ApiClient,
    volume: &str,
    sent: &Arc<Sent>,
    said: &Said,
    interrupts: &mut Interrupts,
    progress: &mut Progress,
) -> Outcome<()> {
    let mut retry = Retry::default();
    let mut reached = 0;
    loop {
        let mut at = reached;
        let tried = tokio::select! {
            tried = once(client, volume, sent, said, &mut at, progress) => tried,
            () = interrupts.wait() => return Err(Failure::interrupted("interrupted")),
        };
        let Err(error) = tried else {
            return Ok(());
        };
        if !sent.is_file() {
            return Err(error.failure);
        }
        let moved = at > reached;
        reached = reached.max(at);
        retry.wait(error, moved, interrupts).await?;
    }
}

/// Sends what one connection takes. `at` becomes where it began.
async fn once(
    client: &ApiClient,
    volume: &str,
    sent: &Arc<Sent>,
    said: &Said,
    at: &mut u64,
    progress: &mut Progress,
) -> Result<(), ApiError> {
    let so_far = transfers::so_far(client, volume).await?;
    if so_far.whole {
        return Ok(());
    }
    *at = so_far.offset;
    let counter = Arc::new(Counter::default());
    let (to, pieces) = mpsc::channel(TRANSFER_PIECES_QUEUED_MAX);
    let (tell, mut fed) = oneshot::channel();
    // A thread of its own: nobody waits in the end for one that reads from standard input.
    std::thread::spawn({
        let (sent, counter) = (Arc::clone(sent), Arc::clone(&counter));
        move || {
            let done = sent
                .reader()
                .map_err(|error| Failure::user_caused("cannot read what is to be sent", &error))
                .and_then(|from| feed(from, so_far.offset, &to, &counter));
            let damaged = done.is_err();
            let _ = tell.send(done);
            if damaged {
                // The server must not take it for the end.
                let _ = to.blocking_send(Err(std::io::Error::other("it is damaged")));
            }
        }
    });
    let uploaded = transfers::upload(client, volume, pieces);
    let uploaded = watched(uploaded, &counter, said, progress).await;
    // What is wrong with the file says more than that the connection ended for it.
    match fed.try_recv() {
        Ok(Err(failure)) => Err(failure.into()),
        Ok(Ok(())) | Err(_) => uploaded,
    }
}

/// Draws how far it is, and gives up when nothing has moved for too long.
async fn watched(
    upload: impl Future<Output = Result<(), ApiError>>,
    counter: &Counter,
    said: &Said,
    progress: &mut Progress,
) -> Result<(), ApiError> {
    let mut upload = std::pin::pin!(upload);
    let (mut moved_before, mut since) = (0, Instant::now());
    loop {
        tokio::select! {
            uploaded = &mut upload => return uploaded,
            () = tokio::time::sleep(PROGRESS_PERIOD) => {}
        }
        let moved = counter.moved.load(Ordering::Relaxed);
        progress.draw(counter.at.load(Ordering::Relaxed), said.size, moved);
        if moved > moved_before {
            (moved_before, since) = (moved, Instant::now());
        } else if since.elapsed() > TRANSFER_SILENCE_MAX {
            return Err(Failure::system("the import stands still").into());
        }
    }
}
