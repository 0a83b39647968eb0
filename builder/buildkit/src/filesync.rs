//! The service `moby.filesync.v1.FileSync`: gives a builder the files of named directories, by fsutil's protocol.
//!
//! Only directories that the session names can be asked for, and nothing outside them is ever opened. It must not
//! know of builds.

mod filter;
mod follow;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod packet;
mod send;
mod tree;
mod walk;

use crate::ignore::BadPattern;
use crate::limits;
use filter::Filter;
use http::{Request, Response};
use hyper::body::Incoming;
use packet::{Packet, PacketCodec};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};
use tree::{LookError, Tree, go_mode};

/// Every failure to read the context begins with this; a failed solve is known by it.
pub(crate) const READ_FAILURE: &str = "read build context: ";

/// A directory that a session serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalDir {
    /// What the builder calls it: `context` or `dockerfile`.
    pub name: String,
    /// Where it is.
    pub root: PathBuf,
}

/// What a session's file syncs did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionStats {
    /// Syncs begun.
    pub syncs: u64,
    /// Entries announced, over all syncs.
    pub entries: u64,
    /// Files whose content was sent.
    pub files: u64,
    /// Bytes of content sent.
    pub bytes: u64,
    /// Of these files, those whose size changed between the announcement and the end of the read. What was sent of them has at most
    /// the announced size.
    pub changed: u64,
}

/// Counters that a running session adds to. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct StatsHandle {
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    syncs: AtomicU64,
    entries: AtomicU64,
    files: AtomicU64,
    bytes: AtomicU64,
    changed: AtomicU64,
}

impl StatsHandle {
    /// The counts now.
    pub fn snapshot(&self) -> SessionStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SessionStats {
            syncs: read(&self.counters.syncs),
            entries: read(&self.counters.entries),
            files: read(&self.counters.files),
            bytes: read(&self.counters.bytes),
            changed: read(&self.counters.changed),
        }
    }

    fn sync_begun(&self) {
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
    }

    fn entries_walked(&self, count: u64) {
        self.counters.entries.fetch_add(count, Ordering::Relaxed);
    }

    fn file_sent(&self, bytes: u64, changed: bool) {
        self.counters.files.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.counters
            .changed
            .fetch_add(changed.into(), Ordering::Relaxed);
    }
}

/// An entry of a served directory that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{READ_FAILURE}{action} {path}: {reason}")]
struct ReadFailure {
    action: &'static str,
    path: String,
    reason: String,
}

impl ReadFailure {
    fn new(action: &'static str, path: &[u8], reason: &str) -> ReadFailure {
        let path = if path.is_empty() { b"." } else { path };
        let path = String::from_utf8_lossy(path).into_owned();
        ReadFailure {
            action,
            path,
            reason: reason.to_owned(),
        }
    }

    fn of(action: &'static str, path: &[u8], error: &LookError) -> ReadFailure {
        ReadFailure::of_io(action, path, error.error())
    }

    fn of_io(action: &'static str, path: &[u8], error: &std::io::Error) -> ReadFailure {
        if error.kind() == std::io::ErrorKind::NotFound {
            return ReadFailure::new(
                action,
                path,
                "it went away while the build context was sent",
            );
        }
        let text = error.to_string();
        let reason = text
            .split(" (os error")
            .next()
            .unwrap_or(&text)
            .to_lowercase();
        ReadFailure::new(action, path, &reason)
    }
}

/// Why a walk or a read ended early.
#[derive(Debug, thiserror::Error)]
enum Stop {
    /// The receiver went away; nobody is left to be told.
    #[error("the receiver of the build context is gone")]
    ReceiverGone,
    /// Something could not be read.
    #[error(transparent)]
    Failed(#[from] ReadFailure),
}

/// The service. Clones serve the same directories.
#[derive(Debug, Clone)]
pub(crate) struct FileSync {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    locals: BTreeMap<String, PathBuf>,
    stats: StatsHandle,
    running: Arc<Semaphore>,
}

impl FileSync {
    pub(crate) fn new(locals: Vec<LocalDir>, stats: StatsHandle) -> FileSync {
        let locals = locals
            .into_iter()
            .map(|local| (local.name, local.root))
            .collect();
        let running = Arc::new(Semaphore::new(limits::SYNCS_RUNNING_MAX));
        FileSync {
            shared: Arc::new(Shared {
                locals,
                stats,
                running,
            }),
        }
    }

    pub(crate) fn stats(&self) -> StatsHandle {
        self.shared.stats.clone()
    }

    /// Answers one call of the service.
    pub(crate) async fn call(self, request: Request<Incoming>) -> Response<Body> {
        if !request.uri().path().ends_with("/DiffCopy") {
            return Status::unimplemented("only DiffCopy is served").into_http();
        }
        tonic::server::Grpc::new(PacketCodec)
            .max_decoding_message_size(limits::SYNC_PACKET_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX)
            .streaming(DiffCopy(self.shared), request)
            .await
    }
}

struct DiffCopy(Arc<Shared>);

impl tonic::server::StreamingService<Packet> for DiffCopy {
    type Response = Packet;
    type ResponseStream = send::Packets;
    type Future = std::pin::Pin<
        Box<dyn Future<Output = Result<tonic::Response<send::Packets>, Status>> + Send>,
    >;

    fn call(&mut self, request: tonic::Request<Streaming<Packet>>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move { shared.diff_copy(request).await.map(tonic::Response::new) })
    }
}

impl Shared {
    async fn diff_copy(
        &self,
        request: tonic::Request<Streaming<Packet>>,
    ) -> Result<send::Packets, Status> {
        let wish = Wish::of(request.metadata())?;
        let root =
            self.locals.get(&wish.dir).cloned().ok_or_else(|| {
                Status::not_found(format!("no access allowed to dir {:?}", wish.dir))
            })?;
        let permit = Arc::clone(&self.running)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many file syncs at once"))?;
        self.stats.sync_begun();
        let opened = tokio::task::spawn_blocking(move || wish.open(root)).await;
        let (tree, filter) = opened.map_err(|_| Status::internal("the file sync broke"))??;
        Ok(send::start(
            tree,
            filter,
            request.into_inner(),
            self.stats.clone(),
            permit,
        ))
    }
}

/// What the builder asks for, from the metadata of its call.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    dir: String,
    include: Vec<String>,
    exclude: Vec<String>,
    follow: Vec<String>,
}

impl Wish {
    fn of(metadata: &MetadataMap) -> Result<Wish, Status> {
        let dir = values(metadata, "dir-name")?
            .into_iter()
            .next()
            .unwrap_or_default();
        Ok(Wish {
            dir,
            include: values(metadata, "include-patterns")?,
            exclude: values(metadata, "exclude-patterns")?,
            follow: values(metadata, "followpaths")?,
        })
    }

    fn open(self, root: PathBuf) -> Result<(Tree, Filter), Status> {
        let failed = |error: LookError| {
            let path = root.display().to_string();
            Status::failed_precondition(
                ReadFailure::of("open", path.as_bytes(), &error).to_string(),
            )
        };
        let tree = Tree::open(&root).map_err(failed)?;
        let include = follow::with_followed(&tree, self.include, &self.follow).map_err(failed)?;
        let bad = |error: BadPattern| Status::invalid_argument(format!("{READ_FAILURE}{error}"));
        let filter = Filter::new(&include, &self.exclude).map_err(bad)?;
        Ok((tree, filter))
    }
}

/// All values of a key. When any of them is not ASCII, the builder encodes them all as in a query string and says so.
fn values(metadata: &MetadataMap, key: &'static str) -> Result<Vec<String>, Status> {
    let marker = metadata.get(format!("{key}-encoded").as_str());
    let encoded = marker.is_some_and(|value| {
        matches!(
            value.as_bytes(),
            b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True"
        )
    });
    let mut all = Vec::new();
    for value in metadata.get_all(key) {
        if all.len() >= limits::SYNC_PATTERNS_MAX {
            return Err(Status::invalid_argument(format!(
                "{READ_FAILURE}too many {key}"
            )));
        }
        let text = String::from_utf8_lossy(value.as_bytes());
        all.push(if encoded {
            unescaped(&text)
        } else {
            text.into_owned()
        });
    }
    Ok(all)
}

/// Undoes the encoding of a query string.
fn unescaped(text: &str) -> String {
    let spaced = text.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced)
        .decode_utf8_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_come_plain_or_encoded() {
        let mut metadata = MetadataMap::new();
        metadata.append("dir-name", "context".parse().unwrap());
        metadata.append("exclude-patterns", "a%2Ab+c".parse().unwrap());
        metadata.append("exclude-patterns", "!%C3%BC".parse().unwrap());
        metadata.append("exclude-patterns-encoded", "1".parse().unwrap());
        metadata.append("followpaths", "a+b%20".parse().unwrap());
        assert_eq!(
            Wish::of(&metadata).unwrap(),
            Wish {
                dir: "context".into(),
                include: vec![],
                exclude: vec!["a*b c".into(), "!ü".into()],
                follow: vec!["a+b%20".into()],
            }
        );
    }
}
