//! From a layer source to a stream of compressed pieces, with every stage at work at once and every queue bounded.
//!
//! ```text
//! reader thread ──job──▶ compression threads (shared by the layers of a push)
//!      │  │     └─ticket─▶ collector thread (in order; digest) ─▶ pieces, for the upload
//!      │  └─input─▶ hasher thread (diffID), unless the reader proves what it gives
//!      ▼
//! a layer that is compressed already: pieces, digest checked, nothing else
//! ```
//! Tickets keep the order. Each holds a permit from before its member is read until its piece is taken, and there are few permits for
//! all layers of a push: when the uploads take no pieces, the readers stop. Knows nothing of registries.

use crate::compress::Codec;
use crate::digest::Digest;
use crate::limits::{MEMBER_BYTES, MEMBERS_AHEAD};
use crate::pool::{Buffer, Pool};
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
    input: Bytes,
    output: oneshot::Sender<Bytes>,
}

enum Ticket {
    Member {
        output: oneshot::Receiver<Bytes>,
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
    pool: Pool,
}

/// The next member's worth of input, when it may be read.
type Permit<'a> = &'a dyn Fn() -> Option<OwnedSemaphorePermit>;

impl Compressors {
    /// Starts the threads.
    pub(crate) fn start(codec: Codec, threads: usize) -> Compressors {
        let (jobs, queue) = blocking::sync_channel::<Job>(threads);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let queue = queue.clone();
            tokio::task::spawn_blocking(move || compress(codec, &queue));
        }
        let permits_count = threads + MEMBERS_AHEAD;
        Compressors {
            jobs,
            permits: Arc::new(Semaphore::new(permits_count)),
            permits_count,
            pool: Pool::new(MEMBER_BYTES, permits_count),
        }
    }

    /// Reads a layer from its start. Dropping the receiver ends the reading.
    pub(crate) fn layer(
        &self,
        source: Arc<dyn LayerSource>,
    ) -> mpsc::Receiver<Result<Piece, SourceError>> {
        let (pieces, output) = mpsc::channel(1);
        let (this, runtime) = (self.clone(), Handle::current());
        if source.packed().is_some() {
            tokio::task::spawn_blocking(move || {
                let permit = || this.permit(&runtime);
                if let Err(error) = copy_layer(&*source, &this.pool, &pieces, &permit) {
                    let _ = pieces.blocking_send(Err(error));
                }
            });
            return output;
        }
        let (tickets, queue) = mpsc::channel(self.permits_count);
        tokio::task::spawn_blocking(move || {
            let permit = || this.permit(&runtime);
            if let Some(end) = read_layer(&*source, &this, &tickets, &permit) {
                let _ = tickets.blocking_send(Ticket::End(end));
            }
        });
        tokio::task::spawn_blocking(move || collect(queue, &pieces));
        output
    }

    fn permit(&self, runtime: &Handle) -> Option<OwnedSemaphorePermit> {
        runtime.block_on(self.permits.clone().acquire_owned()).ok()
    }
}

fn compress(codec: Codec, queue: &Mutex<blocking::Receiver<Job>>) {
    // Without a compressor the outputs are dropped with their jobs, and whoever waits for one sees an early end.
    let mut compressor = codec.compressor();
    loop {
        // The lock is held while waiting: whoever waits takes the next job, the others take turns.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { input, output }) = job else {
            return;
        };
        let member = compressor.as_mut().and_then(|one| one.member(&input));
        drop(input);
        if let Some(member) = member {
            // A receiver that is gone belongs to a push that ended.
            let _ = output.send(member);
        }
    }
}

/// Reads, hashes and hands out members. `None` when nobody waits for the layer any more.
fn read_layer(
    source: &dyn LayerSource,
    compressors: &Compressors,
    tickets: &mpsc::Sender<Ticket>,
    permit: Permit<'_>,
) -> Option<Result<(), SourceError>> {
    let mut reader = match source.open() {
        Ok(reader) => reader,
        Err(error) => return Some(Err(error)),
    };
    let hashing = (!reader.proves_itself()).then(|| Hashing::start(compressors.permits_count));
    let mut is_first = true;
    loop {
        // While others hold the permits, nobody may be left who wants this layer.
        let permit = permit().filter(|_| !tickets.is_closed())?;
        let input = match fill(&mut *reader, &compressors.pool) {
            Ok(input) => input,
            Err(error) => return Some(Err(error)),
        };
        let is_last = input.len() < MEMBER_BYTES;
        if !input.is_empty() || is_first {
            let (output, member) = oneshot::channel();
            let raw = input.len() as u64;
            tickets
                .blocking_send(Ticket::Member {
                    output: member,
                    raw,
                    permit,
                })
                .ok()?;
            if let Some(hashing) = &hashing {
                hashing.inputs.send(input.clone()).ok()?;
            }
            compressors.jobs.send(Job { input, output }).ok()?;
        }
        is_first = false;
        if is_last {
            break;
        }
    }
    let Some(Hashing { inputs, result }) = hashing else {
        return Some(Ok(()));
    };
    drop(inputs);
    let found = result.blocking_recv().ok()?;
    if source.is_proved_by(&found) {
        return Some(Ok(()));
    }
    Some(same(source.diff_id(), found))
}

/// The diffID, computed beside the reading.
struct Hashing {
    inputs: blocking::SyncSender<Bytes>,
    result: oneshot::Receiver<Digest>,
}

impl Hashing {
    fn start(ahead: usize) -> Hashing {
        let (inputs, queue) = blocking::sync_channel::<Bytes>(ahead);
        let (sender, result) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let mut hasher = Sha256::new();
            for input in queue {
                hasher.update(&input);
            }
            let _ = sender.send(Digest::finish(hasher));
        });
        Hashing { inputs, result }
    }
}

fn same(expected: &Digest, found: Digest) -> Result<(), SourceError> {
    if *expected == found {
        return Ok(());
    }
    Err(SourceError::DiffId {
        expected: expected.clone(),
        found,
    })
}

/// Hands out a blob as it is.
fn copy_layer(
    source: &dyn LayerSource,
    pool: &Pool,
    pieces: &mpsc::Sender<Result<Piece, SourceError>>,
    permit: Permit<'_>,
) -> Result<(), SourceError> {
    let mut reader = source.open()?;
    let mut hasher = Sha256::new();
    let mut size = 0;
    loop {
        // Given back when the piece was taken over.
        let Some(_permit) = permit().filter(|_| !pieces.is_closed()) else {
            return Ok(());
        };
        let bytes = fill(&mut *reader, pool)?;
        let (raw, is_last) = (bytes.len() as u64, bytes.len() < MEMBER_BYTES);
        hasher.update(&bytes);
        size += raw;
        let is_wanted = raw == 0 || pieces.blocking_send(Ok(Piece::Data { bytes, raw })).is_ok();
        if !is_wanted {
            return Ok(());
        }
        if is_last {
            break;
        }
    }
    let digest = Digest::finish(hasher);
    if let Some(packed) = source.packed() {
        same(&packed.digest, digest.clone())?;
    }
    let summary = Summary {
        digest,
        size,
        raw_size: size,
    };
    let _ = pieces.blocking_send(Ok(Piece::End(summary)));
    Ok(())
}

/// A whole member of input; less only at the end of the layer.
fn fill(reader: &mut dyn LayerReader, pool: &Pool) -> Result<Bytes, SourceError> {
    let mut input: Buffer = pool.take();
    let mut length = 0;
    let room = input.room();
    while length < room.len() {
        let count = reader.read(&mut room[length..])?;
        if count == 0 {
            break;
        }
        length += count;
    }
    Ok(input.freeze(length))
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
