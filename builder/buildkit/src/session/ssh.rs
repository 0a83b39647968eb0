//! SSH agents, as steps with `RUN --mount=type=ssh` and `ADD git@...` ask for them. A step may list keys and have something signed;
//! every other request to an agent is refused here, so that no build changes or locks the caller's agent.
//!
//! It must not know what a key is, nor which step asks.

use crate::limits;
use bollard_buildkit_proto::moby::sshforward::v1 as proto;
use bytes::{Buf, BytesMut};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Metadata of a call that says which agent is meant.
const ID_KEY: &str = "buildkit.ssh.id";
/// The agent of a step that names none.
const DEFAULT_ID: &str = "default";
/// `SSH_AGENTC_REQUEST_IDENTITIES` and `SSH_AGENTC_SIGN_REQUEST` of the agent protocol.
const ALLOWED: [u8; 2] = [11, 13];
/// `SSH_AGENT_FAILURE`, as a whole message.
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];
/// Bytes of the length before each message.
const LENGTH_BYTES: usize = 4;

/// The service `moby.sshforward.v1.SSH`.
#[derive(Debug, Clone)]
pub(super) struct Agents {
    sockets: Arc<BTreeMap<String, PathBuf>>,
}

impl Agents {
    /// Takes the sockets of agents by id.
    pub(super) fn new(sockets: BTreeMap<String, PathBuf>) -> Agents {
        Agents {
            sockets: Arc::new(sockets),
        }
    }

    fn of(&self, id: &str) -> Result<&PathBuf, Status> {
        let id = if id.is_empty() { DEFAULT_ID } else { id };
        self.sockets
            .get(id)
            .ok_or_else(|| Status::not_found(format!("no SSH agent '{id}' is forwarded")))
    }
}

#[tonic::async_trait]
impl proto::ssh_server::Ssh for Agents {
    async fn check_agent(
        &self,
        request: Request<proto::CheckAgentRequest>,
    ) -> Result<Response<proto::CheckAgentResponse>, Status> {
        self.of(&request.get_ref().id)?;
        Ok(Response::new(proto::CheckAgentResponse {}))
    }

    type ForwardAgentStream = ReceiverStream<Result<proto::BytesMessage, Status>>;

    async fn forward_agent(
        &self,
        request: Request<Streaming<proto::BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = request.metadata().get(ID_KEY);
        let id = id.and_then(|id| id.to_str().ok()).unwrap_or_default();
        let socket = self.of(id)?;
        let agent = connect(socket).await.map_err(|error| {
            Status::unavailable(format!("SSH agent at {}: {error}", socket.display()))
        })?;
        let (answers, to_builder) = mpsc::channel(limits::SSH_PIECES_QUEUED_MAX);
        let (from_agent, to_agent) = tokio::io::split(agent);
        let asked = request.into_inner();
        tokio::spawn(async move {
            let failures = answers.clone();
            // Whichever side ends, the other one has nobody to talk to.
            tokio::select! {
                () = pass_answers(from_agent, answers) => {}
                () = pass_requests(asked, to_agent, failures) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(to_builder)))
    }
}

/// An agent listens on a socket; on Windows, on a named pipe.
#[cfg(unix)]
async fn connect(socket: &std::path::Path) -> std::io::Result<tokio::net::UnixStream> {
    tokio::net::UnixStream::connect(socket).await
}

/// An agent listens on a named pipe.
#[cfg(windows)]
#[allow(clippy::unused_async, reason = "as on Unix")]
async fn connect(
    pipe: &std::path::Path,
) -> std::io::Result<tokio::net::windows::named_pipe::NamedPipeClient> {
    tokio::net::windows::named_pipe::ClientOptions::new().open(pipe)
}

type Answers = mpsc::Sender<Result<proto::BytesMessage, Status>>;

async fn pass_answers(mut agent: impl AsyncRead + Unpin, answers: Answers) {
    loop {
        let mut data = Vec::with_capacity(limits::SSH_PIECE_BYTES);
        match agent.read_buf(&mut data).await {
            Ok(1..) if answers.send(Ok(proto::BytesMessage { data })).await.is_ok() => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Passes whole messages on. One that is not allowed is answered here.
async fn pass_requests(
    mut asked: Streaming<proto::BytesMessage>,
    mut agent: impl AsyncWrite + Unpin,
    answers: Answers,
) {
    let mut buffer = BytesMut::new();
    while let Ok(Some(piece)) = asked.message().await {
        buffer.extend_from_slice(&piece.data);
        loop {
            let message = match next_message(&mut buffer) {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(TooLong) => return,
            };
            let allowed = message
                .get(LENGTH_BYTES)
                .is_some_and(|kind| ALLOWED.contains(kind));
            let passed = if allowed {
                agent.write_all(&message).await.is_ok()
            } else {
                let data = FAILURE.to_vec();
                answers.send(Ok(proto::BytesMessage { data })).await.is_ok()
            };
            if !passed {
                return;
            }
        }
    }
}

/// A message longer than any agent takes.
struct TooLong;

/// Takes the first whole message off the buffer, with its length before it.
fn next_message(buffer: &mut BytesMut) -> Result<Option<BytesMut>, TooLong> {
    let Some(length) = buffer.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| TooLong)?;
    if length > limits::SSH_MESSAGE_BYTES_MAX {
        return Err(TooLong);
    }
    let whole = LENGTH_BYTES + length;
    Ok((buffer.remaining() >= whole).then(|| buffer.split_to(whole)))
}
