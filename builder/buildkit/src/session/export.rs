//! The result of a solve as one archive, which the builder's exporter `tar` or `docker` sends to the caller's side.
//!
//! It must not know what becomes of the bytes.

use bollard_buildkit_proto::moby::filesync::v1 as proto;
use std::io::{ErrorKind, Write};
use std::sync::{Arc, Mutex, PoisonError};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

/// Takes the bytes of an export, in order. It is flushed when the last one is there; an export that breaks off is only dropped.
pub type ExportSink = Box<dyn Write + Send>;

/// What a failure begins with whose fault is the caller's side.
pub(crate) const EXPORT_FAILURE: &str =
    "the computer that asked for the build cannot write the result: ";

/// The service `moby.filesync.v1.FileSend`: takes one export.
#[derive(Clone)]
pub(super) struct Exports {
    sink: Arc<Mutex<Option<ExportSink>>>,
}

impl std::fmt::Debug for Exports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exports")
    }
}

impl Exports {
    pub(super) fn new(sink: Option<ExportSink>) -> Exports {
        Exports {
            sink: Arc::new(Mutex::new(sink)),
        }
    }

    pub(super) fn is_wanted(&self) -> bool {
        let sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        sink.is_some()
    }
}

type Answers = std::pin::Pin<Box<dyn Stream<Item = Result<proto::BytesMessage, Status>> + Send>>;

#[tonic::async_trait]
impl proto::file_send_server::FileSend for Exports {
    type DiffCopyStream = Answers;

    async fn diff_copy(
        &self,
        request: Request<Streaming<proto::BytesMessage>>,
    ) -> Result<Response<Answers>, Status> {
        let sink = self
            .sink
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let mut sink = sink.ok_or_else(|| Status::failed_precondition("no export is taken"))?;
        let mut pieces = request.into_inner();
        let (ended, end) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            // One without a word is the end, which the builder waits for.
            if let Err(status) = take(&mut pieces, &mut sink).await {
                let _ = ended.send(Err(status)).await;
            }
        });
        let answers = tokio_stream::wrappers::ReceiverStream::new(end);
        Ok(Response::new(Box::pin(answers)))
    }
}

async fn take(
    pieces: &mut Streaming<proto::BytesMessage>,
    sink: &mut ExportSink,
) -> Result<(), Status> {
    while let Some(piece) = pieces.message().await? {
        // Writing may block, as pipes and disks do.
        tokio::task::block_in_place(|| sink.write_all(&piece.data))
            .map_err(|error| unwritten(&error))?;
    }
    tokio::task::block_in_place(|| sink.flush()).map_err(|error| unwritten(&error))
}

/// Said without the words of the system's: whoever reads the builder's error must not look for a full disk there.
fn unwritten(error: &std::io::Error) -> Status {
    let kind = error.kind();
    let why = if matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        "its disk is full".to_owned()
    } else if kind == ErrorKind::BrokenPipe {
        "nobody reads it any more".to_owned()
    } else {
        error.to_string()
    };
    Status::aborted(format!("{EXPORT_FAILURE}{why}"))
}
