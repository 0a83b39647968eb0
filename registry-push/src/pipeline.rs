//! From a layer source to a stream of compressed pieces, with every stage at work at once and every queue bounded.
//!
//! ```text
//! reader thread ──job──▶ compression threads (shared by the layers of a push)
//!  (diffID)     └─ticket─▶ collector thread (in order; digest) ─▶ pieces, for the upload
//! ```
//! Tickets keep the order. Each holds a permit from before its member is read until its piece is taken, and there are few permits for
//! all layers of a push: when the uploads take no pieces, the readers stop. Knows nothing of registries.

use crate::compress::Codec;
use crate::digest::Digest;
use crate::limits::{MEMBER_BYTES, MEMBERS_AHEAD};
use crate::source::{LayerReader, LayerSource, SourceError};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::sync::{Arc, Mutex, PoisonError, mpsc as blocking};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// One part of a compressed layer, or its end.
#[derive(Debug)]
pub(crate) enum Piece {
    /// The next compressed bytes, and how many uncompressed ones they stand for.
    Data { bytes: Bytes, raw: u64 },
    /// Everything came, and it was the layer that the config names.
    End(Summary),
}

/// What a layer became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) raw_size: u64,
}

struct Job {
    input: Vec<u8>,
    output: oneshot::Sender<Vec<u8>>,
}

enum Ticket {
    Member {
        output: oneshot::Receiver<Vec<u8>>,
        raw: u64,
        permit: OwnedSemaphorePermit,
    },
    End(Result<(), SourceError>),
}

/// Compression threads of one push. They end when the last clone and the last reader are gone.
#[derive(Clone)]
pub(crate) struct Compressors {
    jobs: blocking::SyncSender<Job>,
    permits: Arc<Semaphore>,
    permits_count: usize,
}

impl Compressors {
    /// Starts the threads.
    pub(crate) fn start(codec: Codec, threads: usize) -> Compressors {
        let (jobs, queue) = blocking::sync_channel::<Job>(threads);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let queue = queue.clone();
            tokio::task::spawn_blocking(move || {
                let mut compressor = codec.compressor();
                loop {
                    // The lock is held while waiting: whoever waits takes the next job, the others take turns.
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    // A receiver that is gone belongs to a push that ended.
                    let _ = job.output.send(compressor.member(&job.input));
                }
            });
        }
        let permits_count = threads + MEMBERS_AHEAD;
        let permits = Arc::new(Semaphore::new(permits_count));
        Compressors {
            jobs,
            permits,
            permits_count,
        }
    }

    /// Reads a layer from its start. Dropping the receiver ends the reading.
    pub(crate) fn layer(
        &self,
        source: Arc<dyn LayerSource>,
    ) -> mpsc::Receiver<Result<Piece, SourceError>> {
        let (tickets, queue) = mpsc::channel(self.permits_count);
        let (pieces, output) = mpsc::channel(1);
        let (jobs, permits) = (self.jobs.clone(), self.permits.clone());
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || {
            let permit = || runtime.block_on(permits.clone().acquire_owned()).ok();
            let end = read_layer(&*source, &jobs, &tickets, permit);
            if let Some(end) = end {
                let _ = tickets.blocking_send(Ticket::End(end));
            }
        });
        tokio::task::spawn_blocking(move || collect(queue, &pieces));
        output
    }
}

/// Reads, hashes and hands out members. `None` when nobody waits for the layer any more.
fn read_layer(
    source: &dyn LayerSource,
    jobs: &blocking::SyncSender<Job>,
    tickets: &mpsc::Sender<Ticket>,
    permit: impl Fn() -> Option<OwnedSemaphorePermit>,
) -> Option<Result<(), SourceError>> {
    let mut reader = match source.open() {
        Ok(reader) => reader,
        Err(error) => return Some(Err(error)),
    };
    let mut hasher = Sha256::new();
    let mut is_first = true;
    loop {
        // While others hold the permits, nobody may be left who wants this layer.
        let permit = permit().filter(|_| !tickets.is_closed())?;
        let input = match fill(&mut *reader) {
            Ok(input) => input,
            Err(error) => return Some(Err(error)),
        };
        let is_last = input.len() < MEMBER_BYTES;
        if !input.is_empty() || is_first {
            hasher.update(&input);
            let (output, member) = oneshot::channel();
            let raw = input.len() as u64;
            tickets
                .blocking_send(Ticket::Member {
                    output: member,
                    raw,
                    permit,
                })
                .ok()?;
            jobs.send(Job { input, output }).ok()?;
        }
        is_first = false;
        if is_last {
            break;
        }
    }
    let found = Digest::finish(hasher);
    if &found != source.diff_id() {
        return Some(Err(SourceError::DiffId {
            expected: source.diff_id().clone(),
            found,
        }));
    }
    Some(Ok(()))
}

/// A whole member of input; less only at the end of the layer.
fn fill(reader: &mut dyn LayerReader) -> Result<Vec<u8>, SourceError> {
    let mut input = vec![0; MEMBER_BYTES];
    let mut length = 0;
    while length < MEMBER_BYTES {
        let count = reader.read(&mut input[length..])?;
        if count == 0 {
            break;
        }
        length += count;
    }
    input.truncate(length);
    Ok(input)
}

fn collect(mut tickets: mpsc::Receiver<Ticket>, pieces: &mpsc::Sender<Result<Piece, SourceError>>) {
    let mut hasher = Sha256::new();
    let (mut size, mut raw_size) = (0, 0);
    while let Some(ticket) = tickets.blocking_recv() {
        // The permit is given back when the piece was taken over.
        let (piece, _permit) = match ticket {
            Ticket::Member {
                output,
                raw,
                permit,
            } => {
                // No output means that the compression threads are gone: the receiver sees an early end.
                let Ok(bytes) = output.blocking_recv() else {
                    return;
                };
                hasher.update(&bytes);
                size += bytes.len() as u64;
                raw_size += raw;
                let bytes = Bytes::from(bytes);
                (Ok(Piece::Data { bytes, raw }), Some(permit))
            }
            Ticket::End(Ok(())) => {
                let digest = Digest::finish(std::mem::take(&mut hasher));
                let summary = Summary {
                    digest,
                    size,
                    raw_size,
                };
                (Ok(Piece::End(summary)), None)
            }
            Ticket::End(Err(error)) => (Err(error), None),
        };
        if pieces.blocking_send(piece).is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
