//! HTTP/1.1 requests, and what becomes of their connections.

use super::tls::Stream;
use super::{ServerAddress, Transport};
use crate::limits::API_ANSWER_BYTES_MAX;
use crate::token::Token;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use slipway_terminal::exit::{Failure, Outcome};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is sent as `User-Agent`.
const USER_AGENT: &str = concat!("slipway/", env!("CARGO_PKG_VERSION"));

/// The sending half of a connection that can carry one request at a time.
type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

/// Connections to one address. A request takes the one that is idle, if there is one, and else makes its own; so a
/// command's requests go over one connection, and a stream that goes on keeps none from others.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections {
    idle: Arc<Mutex<Option<Sender>>>,
}

/// An answer whose body is still to be read, and the connection it comes by.
pub(super) struct Answer {
    /// Head and body.
    pub(super) response: Response<Incoming>,
    sender: Sender,
}

impl Answer {
    /// The server's version, if it is a slipway server that says so.
    pub(super) fn server_version(&self) -> Option<String> {
        let server = self.response.headers().get(header::SERVER)?.to_str().ok()?;
        let version = server.strip_prefix("slipway/")?;
        let known = version.len() < 32 && version.bytes().all(|b| b.is_ascii_graphic());
        known.then(|| version.to_owned())
    }
}

impl Connections {
    /// Sends `request` and waits for the head of the answer, at most `wait`.
    ///
    /// # Errors
    /// The network's fault.
    pub(super) async fn send(
        &self,
        transport: &Transport,
        address: &ServerAddress,
        mut request: Request<Full<Bytes>>,
        wait: Duration,
    ) -> Outcome<Answer> {
        let idle = self.slot().take();
        if let Some(mut sender) = idle.filter(Sender::is_ready) {
            match within(wait, address, sender.try_send_request(request)).await? {
                Ok(response) => return Ok(Answer { response, sender }),
                // The server has closed it meanwhile: what comes back was never sent.
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(broken(address, failed.error())),
                },
            }
        }
        let mut sender = open(transport, address).await?;
        let response = within(wait, address, sender.send_request(request))
            .await?
            .map_err(|error| broken(address, &error))?;
        Ok(Answer { response, sender })
    }

    /// Reads the body of an answer whole, and keeps the connection for the next request.
    ///
    /// # Errors
    /// The network's fault, or an answer over the limit.
    pub(super) async fn read(
        &self,
        answer: Answer,
        wait: Duration,
    ) -> Outcome<(StatusCode, Bytes)> {
        let status = answer.response.status();
        let body = read_body(answer.response.into_body(), wait).await?;
        if !answer.sender.is_closed() {
            *self.slot() = Some(answer.sender);
        }
        Ok((status, body))
    }

    fn slot(&self) -> MutexGuard<'_, Option<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a request on a connection of its own, which ends with the answer, and waits for its head. How long that may take is
/// the caller's to bound: the body may be long.
///
/// # Errors
/// The network's fault.
pub(super) async fn send_alone<B>(
    transport: &Transport,
    address: &ServerAddress,
    request: Request<B>,
) -> Outcome<Response<Incoming>>
where
    B: hyper::body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut sender = open(transport, address).await?;
    let sent = sender.send_request(request).await;
    sent.map_err(|error| broken(address, &error))
}

async fn open<B>(
    transport: &Transport,
    address: &ServerAddress,
) -> Outcome<hyper::client::conn::http1::SendRequest<B>>
where
    B: hyper::body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let io: TokioIo<Box<dyn Stream>> = transport.connect(address).await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(|error| broken(address, &error))?;
    // Ends with the connection, which ends with its last sender, or with the upgraded stream. An error there is told
    // by the request that meets it.
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

fn broken(address: &ServerAddress, error: &hyper::Error) -> Failure {
    Failure::system_caused(format_args!("the connection to {address} broke"), error)
}

pub(super) async fn within<T>(
    wait: Duration,
    address: &ServerAddress,
    answer: impl Future<Output = T>,
) -> Outcome<T> {
    tokio::time::timeout(wait, answer)
        .await
        .map_err(|_elapsed| {
            Failure::system(format!(
                "{address} did not answer within {} s",
                wait.as_secs()
            ))
        })
}

/// The start of a request: address, agent, token.
pub(super) fn request(
    method: Method,
    address: &ServerAddress,
    path: &str,
    token: &Token,
) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, address.authority())
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::AUTHORIZATION, format!("Bearer {}", token.expose()))
}

/// A request could not be put together: a header has a character that none may have.
pub(super) fn unsendable(error: &http::Error) -> Failure {
    Failure::user_caused("cannot make the request", error)
}

/// Reads a body whole, within [`API_ANSWER_BYTES_MAX`] and `wait`.
///
/// # Errors
/// The network's fault, or an answer over the limit.
pub(super) async fn read_body(body: Incoming, wait: Duration) -> Outcome<Bytes> {
    let limited = Limited::new(body, API_ANSWER_BYTES_MAX);
    match tokio::time::timeout(wait, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) => Err(Failure::system_caused(
            "the server's answer broke off",
            error.as_ref(),
        )),
        Err(_elapsed) => Err(Failure::system("the server's answer did not end in time")),
    }
}

/// Asks a gateway to make of this connection something else (`POST /session`, `POST /grpc`), and gives the raw stream.
/// Waits at most `wait` for the answer: a stopped builder is woken by this.
///
/// # Errors
/// Whoever's fault the gateway says it is, with its own message.
pub(crate) async fn open_upgraded(
    transport: &Transport,
    address: &ServerAddress,
    token: &Token,
    path: &str,
    headers: &[(String, String)],
    wait: Duration,
) -> Outcome<TokioIo<hyper::upgrade::Upgraded>> {
    let mut builder = request(Method::POST, address, path, token)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "h2c");
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    let request = builder
        .body(Full::<Bytes>::default())
        .map_err(|error| unsendable(&error))?;
    let mut sender = open(transport, address).await?;
    let answer = within(wait, address, sender.send_request(request))
        .await?
        .map_err(|error| broken(address, &error))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status();
        let body = read_body(answer.into_body(), wait).await?;
        return Err(refused(status, &body));
    }
    hyper::upgrade::on(answer)
        .await
        .map(TokioIo::new)
        .map_err(|error| Failure::system_caused("open the build session", &error))
}

/// A refusal in Docker's form (`{"message": ...}`), or any other.
pub(super) fn refused(status: StatusCode, body: &[u8]) -> Failure {
    #[derive(serde::Deserialize)]
    struct Message {
        message: String,
    }
    let message = match serde_json::from_slice::<Message>(body) {
        Ok(parsed) => parsed.message,
        Err(_) => format!("the server answered {status}"),
    };
    if status == StatusCode::UNAUTHORIZED {
        Failure::user(message).hint(crate::settings::LOG_IN_AGAIN)
    } else if status.is_client_error() {
        Failure::user(message)
    } else {
        Failure::system(message)
    }
}
