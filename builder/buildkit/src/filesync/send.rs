//! One run of the sync, from the sender's side: announce every entry, give the content of those that are asked for,
//! and end when the receiver says that it has all.
//!
//! Three kinds of workers share a [`Run`]: the walk (one thread), readers of files (threads that begin when something
//! is asked for and end when nothing is), and a task that takes the receiver's packets. All of them end when the
//! receiver goes away, since the queue they send to is then closed.
//!
//! It must not know what the files are for.

use super::filter::Filter;
use super::packet::{Kind, Packet};
use super::tree::{LookError, Seen, Tree};
use super::walk::{Visit, walk};
use super::{ReadFailure, StatsHandle, Stop, go_mode};
use crate::limits;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::Read;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::Stream;
use tonic::{Status, Streaming};

type Batch = Result<Vec<Packet>, Status>;

/// The packets of a run, for the connection to take.
#[derive(Debug)]
pub(crate) struct Packets {
    queue: mpsc::Receiver<Batch>,
    batch: std::vec::IntoIter<Packet>,
}

impl Stream for Packets {
    type Item = Result<Packet, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(packet) = self.batch.next() {
                return Poll::Ready(Some(Ok(packet)));
            }
            match std::task::ready!(self.queue.poll_recv(context)) {
                Some(Ok(batch)) => self.batch = batch.into_iter(),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// Begins a run. `permit` is held until it has ended.
pub(super) fn start(
    tree: Tree,
    filter: Filter,
    requests: Streaming<Packet>,
    stats: StatsHandle,
    permit: OwnedSemaphorePermit,
) -> Packets {
    let (sender, queue) = mpsc::channel(limits::SYNC_BATCHES_QUEUED_MAX);
    let run = Arc::new(Run {
        tree,
        sender,
        stats,
        wanted: Mutex::default(),
    });
    let walker = Arc::clone(&run);
    tokio::task::spawn_blocking(move || walker.walk(&filter));
    tokio::spawn(async move {
        run.take_requests(requests).await;
        drop(permit);
    });
    Packets {
        queue,
        batch: Vec::new().into_iter(),
    }
}

struct Run {
    tree: Tree,
    sender: mpsc::Sender<Batch>,
    stats: StatsHandle,
    wanted: Mutex<Wanted>,
}

/// What may be asked for and what has been. Bounded by the number of entries announced: each is taken once.
#[derive(Default)]
struct Wanted {
    /// By number: the files that may be asked for, until they are.
    files: Vec<Option<Offer>>,
    asked: VecDeque<(u32, Offer)>,
    readers: usize,
}

struct Offer {
    path: Vec<u8>,
    size: u64,
    /// It has no content to read: a socket.
    is_hollow: bool,
}

impl Run {
    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        // Nothing can panic while it is held and leave it half changed.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From a thread that may block.
    fn send(&self, packets: Vec<Packet>) -> Result<(), Stop> {
        self.sender
            .blocking_send(Ok(packets))
            .map_err(|_| Stop::ReceiverGone)
    }

    /// Tells the receiver why there will be nothing more, and ends the run.
    fn fail(&self, failure: &ReadFailure) {
        let message = failure.to_string();
        tracing::debug!(%message, "file sync failed");
        let told = self.send(vec![Packet::error(message.clone())]);
        if told.is_ok() {
            // The queue being closed now only means that the receiver was quicker.
            let _ = self
                .sender
                .blocking_send(Err(Status::failed_precondition(message)));
        }
    }

    fn settle(&self, result: Result<(), Stop>) {
        match result {
            Ok(()) | Err(Stop::ReceiverGone) => {}
            Err(Stop::Failed(failure)) => self.fail(&failure),
        }
    }

    fn walk(&self, filter: &Filter) {
        let mut announcer = Announcer {
            run: self,
            batch: Vec::new(),
            offers: Vec::new(),
        };
        let walked = walk(&self.tree, filter, &mut announcer).and_then(|()| announcer.finish());
        self.settle(walked);
    }

    async fn take_requests(self: &Arc<Self>, mut requests: Streaming<Packet>) {
        loop {
            let message = tokio::select! {
                () = self.sender.closed() => return,
                message = requests.message() => message,
            };
            let Ok(Some(packet)) = message else { return };
            let kind = Kind::try_from(packet.kind);
            let answered = match kind {
                Ok(Kind::Request) => self.ask(packet.id),
                Ok(Kind::Finish) => {
                    // The receiver waits for this echo, and takes the end of the stream after it for success.
                    let _ = self.sender.send(Ok(vec![Packet::finish()])).await;
                    return;
                }
                Ok(Kind::Error) => {
                    let message = String::from_utf8_lossy(&packet.data).into_owned();
                    Err(Status::aborted(format!("error from receiver: {message}")))
                }
                Ok(Kind::Stat | Kind::Data) | Err(_) => Err(Status::invalid_argument(format!(
                    "unexpected packet of kind {}",
                    packet.kind
                ))),
            };
            if let Err(status) = answered {
                let _ = self.sender.send(Err(status)).await;
                return;
            }
        }
    }

    /// Puts a file in the queue, and starts a reader if there may be one more.
    fn ask(self: &Arc<Self>, id: u32) -> Result<(), Status> {
        let mut wanted = self.wanted();
        let offer = usize::try_from(id)
            .ok()
            .and_then(|at| wanted.files.get_mut(at)?.take());
        let offer =
            offer.ok_or_else(|| Status::invalid_argument(format!("invalid file id {id}")))?;
        wanted.asked.push_back((id, offer));
        if wanted.readers < limits::SYNC_READERS {
            wanted.readers += 1;
            let run = Arc::clone(self);
            tokio::task::spawn_blocking(move || {
                let read = run.read_files();
                run.settle(read);
            });
        }
        Ok(())
    }

    /// Reads what is asked for until nothing is.
    fn read_files(&self) -> Result<(), Stop> {
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        loop {
            let next = {
                let mut wanted = self.wanted();
                let next = wanted.asked.pop_front();
                if next.is_none() {
                    // Under the same lock, so that whoever asks next sees that a reader is missing.
                    wanted.readers -= 1;
                }
                next
            };
            let Some((id, offer)) = next else {
                return if batch.is_empty() {
                    Ok(())
                } else {
                    self.send(batch)
                };
            };
            if let Err(stop) = self.read_file(id, &offer, &mut batch, &mut batch_bytes) {
                self.wanted().readers -= 1;
                return Err(stop);
            }
        }
    }

    /// Reads one file. Small files share a batch.
    fn read_file(
        &self,
        id: u32,
        offer: &Offer,
        batch: &mut Vec<Packet>,
        batch_bytes: &mut usize,
    ) -> Result<(), Stop> {
        let mut sent = 0_u64;
        let mut has_changed = false;
        if !offer.is_hollow {
            let mut file = self.open(offer)?;
            // A size of 0 may mean that the file system does not tell it, as for the files of the kernel.
            let most = match offer.size {
                0 => limits::SYNC_UNANNOUNCED_BYTES_MAX,
                announced => announced,
            };
            while sent < most {
                let chunk = read_chunk(&mut file, most - sent)
                    .map_err(|error| ReadFailure::of_io("read", &offer.path, &error))?;
                if chunk.is_empty() {
                    break;
                }
                sent += chunk.len() as u64;
                *batch_bytes += chunk.len();
                batch.push(Packet::data(id, chunk));
                if *batch_bytes >= limits::SYNC_CHUNK_BYTES {
                    self.send(std::mem::take(batch))?;
                    *batch_bytes = 0;
                }
            }
            has_changed = sent != offer.size || file.metadata().is_ok_and(|now| now.len() > sent);
        }
        batch.push(Packet::end_of_data(id));
        if batch.len() >= limits::SYNC_BATCH_ENTRIES {
            self.send(std::mem::take(batch))?;
            *batch_bytes = 0;
        }
        self.stats.file_sent(sent, has_changed);
        Ok(())
    }

    fn open(&self, offer: &Offer) -> Result<std::fs::File, Stop> {
        let file = self
            .tree
            .open_file(&offer.path)
            .map_err(|error| ReadFailure::of("open", &offer.path, &error))?;
        let metadata = file
            .metadata()
            .map_err(|error| ReadFailure::of_io("look at", &offer.path, &error))?;
        if !metadata.is_file() {
            return Err(ReadFailure::of("open", &offer.path, &LookError::missing()).into());
        }
        Ok(file)
    }
}

/// Reads up to a chunk, until the chunk or the file ends, and no more than `left`: a small file takes small memory, and one
/// that grows as fast as it is read has an end.
fn read_chunk(file: &mut std::fs::File, left: u64) -> std::io::Result<Bytes> {
    let room = usize::try_from(left).unwrap_or(usize::MAX);
    let mut chunk = vec![0; room.min(limits::SYNC_CHUNK_BYTES)];
    let mut filled = 0;
    while filled < chunk.len() {
        match file.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    chunk.truncate(filled);
    Ok(chunk.into())
}

struct Announcer<'a> {
    run: &'a Run,
    batch: Vec<Packet>,
    offers: Vec<Option<Offer>>,
}

impl Announcer<'_> {
    /// The offers are registered first: the receiver may ask as soon as it has seen the entry.
    fn flush(&mut self) -> Result<(), Stop> {
        let mut wanted = self.run.wanted();
        wanted.files.append(&mut self.offers);
        let total = wanted.files.len();
        drop(wanted);
        if total > limits::SYNC_ENTRIES_MAX {
            return Err(
                ReadFailure::new("walk", b".", "the build context has too many files").into(),
            );
        }
        self.run.stats.entries_walked(self.batch.len() as u64);
        self.run.send(std::mem::take(&mut self.batch))
    }

    fn finish(mut self) -> Result<(), Stop> {
        self.flush()?;
        self.run.send(vec![Packet::end_of_stats()])
    }
}

impl Visit for Announcer<'_> {
    fn visit(&mut self, seen: Seen) -> Result<(), Stop> {
        let Seen {
            stat, is_socket, ..
        } = seen;
        let offer = (stat.mode & go_mode::TYPE == 0).then(|| Offer {
            path: stat.path.clone(),
            size: u64::try_from(stat.size).unwrap_or(0),
            is_hollow: is_socket,
        });
        self.offers.push(offer);
        self.batch.push(Packet::stat(stat));
        if self.batch.len() >= limits::SYNC_BATCH_ENTRIES {
            self.flush()
        } else {
            Ok(())
        }
    }
}
