//! `--load`: an image that a builder has sent, into the Docker that runs here.
//!
//! Must not know builds or sessions.

use super::local::Daemon;
use crate::limits::LOCAL_LOAD_WAIT_MAX;
use bollard::body_try_stream;
use bollard::errors::Error;
use bollard::query_parameters::ImportImageOptionsBuilder;
use futures_util::TryStreamExt;
use slipway_terminal::exit::{Failure, Outcome};
use std::fs::File;
use tokio_util::io::ReaderStream;

/// What helps whoever asked for it and has no Docker.
pub(super) const NO_LOAD: &str = "leave --load out, and push the image";
/// What is read at once of the archive.
const PIECE_BYTES: usize = 256 << 10;

/// Loads `archive`, in which the image is called `name`; gives the image's id in that Docker. Dropped, it ends the load.
///
/// # Errors
/// Ours: Docker does not take it, or the archive does not have that image.
pub(super) async fn load(daemon: &Daemon, archive: File, name: &str) -> Outcome<String> {
    let fail = |error: Error| {
        Failure::system_caused("load the image into the local Docker", &error)
            .hint("the build itself went well; look at Docker's log, and whether its disk is full")
    };
    let docker = daemon.docker().clone().with_timeout(LOCAL_LOAD_WAIT_MAX);
    let pieces = ReaderStream::with_capacity(tokio::fs::File::from_std(archive), PIECE_BYTES);
    let options = ImportImageOptionsBuilder::new().quiet(true).build();
    let lines = docker.import_image(options, body_try_stream(pieces), None);
    lines
        .try_for_each(async |_line| Ok(()))
        .await
        .map_err(fail)?;
    let loaded = docker.inspect_image(name).await.map_err(fail)?;
    Ok(loaded.id.unwrap_or_default())
}
