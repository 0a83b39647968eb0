//! A build context that is one archive: the builder takes its bytes under a name that the solve's `context` attribute has.
//!
//! It must not know what is in the archive.

use crate::limits;
use bollard_buildkit_proto::moby::upload::v1 as proto;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// What the builder asks for by `http://buildkit-session/NAME`. Any name is answered with the one archive there is.
#[derive(Debug, Clone)]
pub(super) struct Uploads {
    archive: Option<Arc<PathBuf>>,
}

impl Uploads {
    pub(super) fn new(archive: Option<PathBuf>) -> Uploads {
        Uploads {
            archive: archive.map(Arc::new),
        }
    }
}

#[tonic::async_trait]
impl proto::upload_server::Upload for Uploads {
    type PullStream = ReceiverStream<Result<proto::BytesMessage, Status>>;

    async fn pull(
        &self,
        _request: Request<Streaming<proto::BytesMessage>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let archive = self.archive.as_deref();
        let archive = archive.ok_or_else(|| Status::not_found("no archive is served"))?;
        let fail = |error: std::io::Error| Status::internal(format!("read the archive: {error}"));
        let mut file = tokio::fs::File::open(archive).await.map_err(fail)?;
        let (pieces, stream) = mpsc::channel(limits::ARCHIVE_PIECES_QUEUED_MAX);
        tokio::spawn(async move {
            loop {
                let mut data = Vec::with_capacity(limits::ARCHIVE_PIECE_BYTES);
                let piece = match file.read_buf(&mut data).await {
                    Ok(0) => return,
                    Ok(_) => Ok(proto::BytesMessage { data }),
                    Err(error) => Err(fail(error)),
                };
                let last = piece.is_err();
                if pieces.send(piece).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
