//! A client of the guest API ([`slipway_core::guest_api`]) on one stream to a machine's guest endpoint.
//!
//! Owns: HTTP/1.1 to the guest, bounds on what it may answer (a guest is a tenant's own and not trusted), time bounds.
//! Must not know: which machine it talks to, or why.

use crate::machine_stream::MachineStream;
use crate::text::bounded;
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use slipway_core::build::{BuildEvent, BuildOutcome, NumberedEvent};
use slipway_core::guest_api::{
    Activity, BuildSummary, DiskUse, GuestStatus, LoanTurn, LoanWish, SeenSolve, StartBuild,
    StartPush,
};
use slipway_core::id::BuildId;
use slipway_core::limits::BUILD_EVENTS_BYTES_MAX;
use std::time::Duration;

/// Largest answer of a guest that is kept in memory; a larger one is an error.
pub const GUEST_ANSWER_BYTES_MAX: usize = 4 << 20;
/// Longest single event line; a longer one is an error.
pub const GUEST_EVENT_BYTES_MAX: usize = 1 << 20;
/// Longest message of a guest's that is kept, as in a refusal or in how a build ended; the rest is cut off.
pub const GUEST_MESSAGE_BYTES_MAX: usize = 4 << 10;
/// Longest a guest may take to begin its answer, beyond what the request asks it to wait.
pub const GUEST_ANSWER_WAIT_MAX: Duration = Duration::from_secs(15);

/// How a guest begins to say that it cannot read a body. It never repeats what stands there.
const UNREADABLE: &str = "the body is not what it should be";

/// What to do about a builder that is older than the server.
pub(crate) const OLDER_HINT: &str = "`slipway builders stop` ends it, once nobody builds on it: it is of the server's version when it starts again";

/// Why a guest could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The stream broke.
    #[error("talk to the builder's guest")]
    Transport(#[source] hyper::Error),
    /// It did not answer in time.
    #[error("the builder's guest did not answer within {0:?}")]
    TimedOut(Duration),
    /// It refused, with its own words.
    #[error("{message}")]
    Refused {
        /// What it answered.
        status: StatusCode,
        /// Its message.
        message: String,
    },
    /// It does not know what is asked of it: it was started by an older version.
    #[error("the builder runs an older version, which does not know all that is asked of it")]
    Older,
    /// It answered something that is not an answer.
    #[error("the builder's guest speaks another protocol: {0}")]
    Protocol(&'static str),
}

/// What a machine said to being asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndAnswer {
    /// It ends.
    Ending,
    /// Something is in flight.
    Busy(Activity),
}

/// One connection to a guest.
#[derive(Debug)]
pub struct GuestClient {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
}

impl GuestClient {
    /// Begins to speak HTTP on `stream`.
    ///
    /// # Errors
    /// [`GuestError::Transport`].
    pub async fn new(stream: MachineStream) -> Result<Self, GuestError> {
        let io = hyper_util::rt::TokioIo::new(stream);
        let (sender, connection) = hyper::client::conn::http1::handshake(io)
            .await
            .map_err(GuestError::Transport)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "guest connection ended");
            }
        });
        Ok(Self { sender })
    }

    /// How the guest does; waits up to `wait_ready` for dockerd to be ready.
    ///
    /// # Errors
    /// [`GuestError`], as with every call.
    pub async fn status(&mut self, wait_ready: Duration) -> Result<GuestStatus, GuestError> {
        let path = format!("/v1/status?wait_ready_ms={}", wait_ready.as_millis());
        let wait = wait_ready + GUEST_ANSWER_WAIT_MAX;
        let answer = accept(self.ask(Method::GET, &path, Bytes::new(), wait).await?).await?;
        let mut status: GuestStatus = json(answer).await?;
        if let Some(engine) = &mut status.engine {
            let texts = [&mut engine.version, &mut engine.image_store];
            for text in texts.into_iter().chain(&mut engine.buildkit) {
                text.retain(|c| !c.is_control());
                *text = bounded(std::mem::take(text), GUEST_MESSAGE_BYTES_MAX);
            }
        }
        Ok(status)
    }

    /// Asks the machine to end.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn end(&mut self) -> Result<EndAnswer, GuestError> {
        let answer = self
            .ask(Method::POST, "/v1/end", Bytes::new(), GUEST_ANSWER_WAIT_MAX)
            .await?;
        if answer.status() == StatusCode::CONFLICT {
            return json(answer).await.map(EndAnswer::Busy);
        }
        accept(answer).await.map(|_| EndAnswer::Ending)
    }

    /// Starts a build.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn start_build(&mut self, start: &StartBuild) -> Result<(), GuestError> {
        self.post("/v1/builds", start).await.map(drop)
    }

    /// The builds the guest knows of.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn builds(&mut self) -> Result<Vec<BuildSummary>, GuestError> {
        let wait = GUEST_ANSWER_WAIT_MAX;
        json(
            accept(
                self.ask(Method::GET, "/v1/builds", Bytes::new(), wait)
                    .await?,
            )
            .await?,
        )
        .await
    }

    /// Cancels a build.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn cancel_build(&mut self, id: &BuildId) -> Result<(), GuestError> {
        let path = format!("/v1/builds/{id}");
        let answer = self
            .ask(Method::DELETE, &path, Bytes::new(), GUEST_ANSWER_WAIT_MAX)
            .await?;
        accept(answer).await.map(drop)
    }

    /// The events of a build after `after`, until the build ends. Consumes the connection.
    ///
    /// # Errors
    /// [`GuestError`], here and in the stream.
    pub async fn events(
        mut self,
        id: &BuildId,
        after: u64,
    ) -> Result<impl Stream<Item = Result<NumberedEvent, GuestError>> + Send + use<>, GuestError>
    {
        let path = format!("/v1/builds/{id}/events?after={after}");
        let answer = self
            .ask(Method::GET, &path, Bytes::new(), GUEST_ANSWER_WAIT_MAX)
            .await?;
        let lines = Lines::of(accept(answer).await?, BUILD_EVENTS_BYTES_MAX * 2);
        Ok(futures_util::stream::try_unfold(
            (lines, self),
            |(mut lines, client)| async move {
                let event = lines.next().await?.map(with_bounded_end);
                Ok(event.map(|event| (event, (lines, client))))
            },
        ))
    }

    /// Builds that Docker clients ask BuildKit for by themselves, until the guest tells no more. Consumes the connection.
    ///
    /// # Errors
    /// [`GuestError`], here and in the stream.
    pub async fn solves(
        mut self,
    ) -> Result<impl Stream<Item = Result<SeenSolve, GuestError>> + Send + use<>, GuestError> {
        let wait = GUEST_ANSWER_WAIT_MAX;
        let answer = self
            .ask(Method::GET, "/v1/solves", Bytes::new(), wait)
            .await?;
        // It has no end of its own; each line is bounded, and how many are recorded.
        let lines = Lines::of(accept(answer).await?, usize::MAX);
        Ok(futures_util::stream::try_unfold(
            (lines, self),
            |(mut lines, client)| async move {
                Ok(lines.next().await?.map(|solve| (solve, (lines, client))))
            },
        ))
    }

    /// Pushes an image; the body is Docker's own progress lines. Consumes the connection.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn push(mut self, start: &StartPush) -> Result<Response<Incoming>, GuestError> {
        self.post("/v1/push", start).await
    }

    /// Answers a wish for a token, if there is an answer, and waits a while for the next one.
    ///
    /// # Errors
    /// [`GuestError`]; refused with 404 when there will be none.
    pub async fn loan(
        &mut self,
        id: &str,
        turn: &LoanTurn,
    ) -> Result<Option<LoanWish>, GuestError> {
        let answer = self.post(&format!("/v1/loans/{id}"), turn).await?;
        if answer.status() == StatusCode::NO_CONTENT {
            read(answer).await?;
            return Ok(None);
        }
        json(answer).await.map(Some)
    }

    /// Collects garbage now.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn collect(&mut self) -> Result<DiskUse, GuestError> {
        let wait = GUEST_ANSWER_WAIT_MAX * 20;
        json(
            accept(
                self.ask(Method::POST, "/v1/collect", Bytes::new(), wait)
                    .await?,
            )
            .await?,
        )
        .await
    }

    async fn post<T: Serialize + Sync>(
        &mut self,
        path: &str,
        body: &T,
    ) -> Result<Response<Incoming>, GuestError> {
        let body = serde_json::to_vec(body)
            .map_err(|_| GuestError::Protocol("request cannot be written"))?;
        accept(
            self.ask(Method::POST, path, body.into(), GUEST_ANSWER_WAIT_MAX)
                .await?,
        )
        .await
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        wait: Duration,
    ) -> Result<Response<Incoming>, GuestError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "guest")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|_| GuestError::Protocol("request cannot be written"))?;
        let sent = async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        };
        tokio::time::timeout(wait, sent)
            .await
            .map_err(|_| GuestError::TimedOut(wait))?
            .map_err(GuestError::Transport)
    }
}

async fn read(answer: Response<Incoming>) -> Result<Bytes, GuestError> {
    let body = Limited::new(answer.into_body(), GUEST_ANSWER_BYTES_MAX);
    let read = tokio::time::timeout(GUEST_ANSWER_WAIT_MAX, body.collect())
        .await
        .map_err(|_| GuestError::TimedOut(GUEST_ANSWER_WAIT_MAX))?;
    read.map(|whole| whole.to_bytes())
        .map_err(|_| GuestError::Protocol("answer broke or too large"))
}

async fn json<T: DeserializeOwned>(answer: Response<Incoming>) -> Result<T, GuestError> {
    serde_json::from_slice(&read(answer).await?)
        .map_err(|_| GuestError::Protocol("answer is not the JSON it should be"))
}

/// The answer if it is a good one, else the guest's own message.
async fn accept(answer: Response<Incoming>) -> Result<Response<Incoming>, GuestError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = read(answer).await?;
    let message = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|value| Some(value.get("message")?.as_str()?.to_owned()))
        .map_or_else(
            || format!("the builder's guest answered {status}"),
            |message| bounded(message, GUEST_MESSAGE_BYTES_MAX),
        );
    // What is sent is well-formed, so a guest that cannot read it does not know all of its fields.
    if status == StatusCode::BAD_REQUEST && message.starts_with(UNREADABLE) {
        return Err(GuestError::Older);
    }
    Err(GuestError::Refused { status, message })
}

/// How a build ended is kept twice, in its events and in its own row, and told in lists.
fn with_bounded_end(mut event: NumberedEvent) -> NumberedEvent {
    let bound = |text: &mut String| {
        *text = bounded(std::mem::take(text), GUEST_MESSAGE_BYTES_MAX);
    };
    if let BuildEvent::Ended(outcome) = &mut event.event {
        outcome.bound_statements();
        match outcome {
            BuildOutcome::Succeeded {
                image_id,
                digest,
                platforms,
                statements,
                ..
            } => {
                bound(image_id);
                digest.iter_mut().for_each(bound);
                for platform in platforms {
                    bound(&mut platform.platform);
                }
                for statement in statements {
                    statement.platform.iter_mut().for_each(bound);
                    bound(&mut statement.predicate_type);
                    bound(&mut statement.digest);
                }
            }
            BuildOutcome::Failed {
                message,
                hint,
                excerpt,
                ..
            } => {
                bound(message);
                hint.iter_mut().for_each(bound);
                excerpt.iter_mut().for_each(bound);
            }
            BuildOutcome::Cancelled => {}
        }
    }
    event
}

/// JSON lines of a body.
struct Lines {
    body: Incoming,
    held: Held,
    read: usize,
    read_max: usize,
}

impl Lines {
    fn of(answer: Response<Incoming>, read_max: usize) -> Self {
        Self {
            body: answer.into_body(),
            held: Held::default(),
            read: 0,
            read_max,
        }
    }

    async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, GuestError> {
        loop {
            if let Some(line) = self.held.line()? {
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|_| GuestError::Protocol("event is not one"));
            }
            if self.read > self.read_max {
                return Err(TOO_LARGE);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(GuestError::Transport(error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read = self.read.saturating_add(data.len());
                        self.held.bytes.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

const TOO_LARGE: GuestError = GuestError::Protocol("events are too large");

/// What has come of the next lines.
#[derive(Default)]
struct Held {
    bytes: BytesMut,
    /// So many of them end no line: a guest may send each byte by itself.
    searched: usize,
}

impl Held {
    /// The next line with its end, if it is there.
    fn line(&mut self) -> Result<Option<BytesMut>, GuestError> {
        let rest = self.bytes.get(self.searched..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(self.bytes.len(), |end| self.searched + end);
        if length > GUEST_EVENT_BYTES_MAX {
            return Err(TOO_LARGE);
        }
        if end.is_none() {
            self.searched = length;
            return Ok(None);
        }
        self.searched = 0;
        Ok(Some(self.bytes.split_to(length + 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a search from the beginning for each byte this test would not end.
    #[test]
    fn a_line_that_comes_byte_by_byte_is_searched_once_and_bounded() {
        let mut held = Held::default();
        for _ in 0..GUEST_EVENT_BYTES_MAX {
            held.bytes.extend_from_slice(b"a");
            assert!(held.line().expect("not too long").is_none());
        }
        held.bytes.extend_from_slice(b"\nbc\nd");
        let lengths: Vec<usize> =
            std::iter::from_fn(|| held.line().expect("not too long").map(|it| it.len())).collect();
        assert_eq!(lengths, [GUEST_EVENT_BYTES_MAX + 1, 3]);
        held.bytes.extend_from_slice(b"e\n");
        let last = held.line().expect("not too long");
        assert_eq!(last.as_deref(), Some(&b"de\n"[..]));

        for end in ["", "\n"] {
            let mut held = Held::default();
            held.bytes
                .extend_from_slice(&vec![b'a'; GUEST_EVENT_BYTES_MAX + 1]);
            held.bytes.extend_from_slice(end.as_bytes());
            held.line().expect_err("too long");
        }
    }
}
