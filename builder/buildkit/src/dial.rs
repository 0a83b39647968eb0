//! Turns a stream to a Docker endpoint into a raw HTTP/2 stream, by Docker's HTTP/1.1 upgrade to `h2c`.
//!
//! It must not know what is spoken after the upgrade, nor how the stream was made (unix, TCP or TLS).

use crate::limits;
use bytes::{Buf, Bytes, BytesMut};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Why an upgrade did not happen.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The stream broke.
    #[error("send upgrade request for {path}")]
    Io {
        /// What was asked for.
        path: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The other side closed the stream before it answered.
    #[error("the Docker endpoint closed the stream before it answered the upgrade to {path}")]
    Closed {
        /// What was asked for.
        path: &'static str,
    },
    /// No answer within [`limits::UPGRADE_WAIT_MAX`].
    #[error("no answer to the upgrade to {path} within {} s", limits::UPGRADE_WAIT_MAX.as_secs())]
    TimedOut {
        /// What was asked for.
        path: &'static str,
    },
    /// The answer was not HTTP/1.1, or its head was over [`limits::UPGRADE_HEAD_BYTES_MAX`].
    #[error("the answer to the upgrade to {path} is not HTTP: is this a Docker endpoint?")]
    NotHttp {
        /// What was asked for.
        path: &'static str,
    },
    /// The endpoint answered with another status than 101.
    #[error("the Docker endpoint refused the upgrade to {path} with status {status}: {message}")]
    Refused {
        /// What was asked for.
        path: &'static str,
        /// HTTP status.
        status: u16,
        /// The endpoint's own words.
        message: String,
    },
    /// A header cannot be sent: its name or value has a character that HTTP does not allow.
    #[error("header {name} has a character that cannot be sent")]
    Header {
        /// Its name.
        name: String,
    },
}

/// A stream after its upgrade. Bytes that arrived together with the answer are read first.
#[derive(Debug)]
pub struct Upgraded<S> {
    early: Bytes,
    stream: S,
}

/// Asks a Docker endpoint for its BuildKit control API (`POST /grpc`, `Upgrade: h2c`). Takes a stream to the endpoint
/// on which nothing was sent yet; gives the stream for [`crate::Client::connect`].
pub async fn dial_docker_grpc<S>(stream: S) -> Result<Upgraded<S>, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    upgrade(stream, "/grpc", &[]).await
}

/// Offers a BuildKit session to a Docker endpoint (`POST /session`, `Upgrade: h2c`). Takes a stream to the endpoint on
/// which nothing was sent yet, and the session's headers ([`crate::Session::headers`]) with any the endpoint wants
/// besides (`Authorization`); gives the stream for [`crate::Session::serve`].
pub async fn dial_docker_session<S>(
    stream: S,
    headers: &[(String, String)],
) -> Result<Upgraded<S>, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    upgrade(stream, "/session", headers).await
}

async fn upgrade<S>(
    mut stream: S,
    path: &'static str,
    headers: &[(String, String)],
) -> Result<Upgraded<S>, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = request_head(path, headers)?;
    let exchange = async {
        let io = |source| DialError::Io { path, source };
        stream.write_all(&request).await.map_err(io)?;
        stream.flush().await.map_err(io)?;
        read_answer(&mut stream, path).await
    };
    let early = tokio::time::timeout(limits::UPGRADE_WAIT_MAX, exchange)
        .await
        .map_err(|_| DialError::TimedOut { path })??;
    Ok(Upgraded { early, stream })
}

fn request_head(path: &str, headers: &[(String, String)]) -> Result<Vec<u8>, DialError> {
    let mut head = format!(
        "POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n"
    );
    for (name, value) in headers {
        let valid = http::HeaderName::from_bytes(name.as_bytes()).is_ok()
            && http::HeaderValue::from_str(value).is_ok();
        if !valid {
            return Err(DialError::Header {
                name: name.escape_debug().to_string(),
            });
        }
        head.push_str(name);
        head.push_str(": ");
        head.push_str(value);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    Ok(head.into_bytes())
}

/// Reads the answer's head. Gives what came after it.
pub(crate) async fn read_answer<S>(stream: &mut S, path: &'static str) -> Result<Bytes, DialError>
where
    S: AsyncRead + Unpin,
{
    let mut buffer = BytesMut::with_capacity(1024);
    let end = loop {
        if let Some(end) = head_end(&buffer) {
            break end;
        }
        if buffer.len() > limits::UPGRADE_HEAD_BYTES_MAX {
            return Err(DialError::NotHttp { path });
        }
        if read_some(stream, &mut buffer, path).await? == 0 {
            return Err(if buffer.is_empty() {
                DialError::Closed { path }
            } else {
                DialError::NotHttp { path }
            });
        }
    };
    let head = buffer.split_to(end);
    let status = status_of(&head).ok_or(DialError::NotHttp { path })?;
    if status == 101 {
        return Ok(buffer.freeze());
    }
    let length = body_length(&head).unwrap_or(limits::UPGRADE_REFUSAL_BYTES_MAX);
    while buffer.len() < length.min(limits::UPGRADE_REFUSAL_BYTES_MAX) {
        if read_some(stream, &mut buffer, path).await? == 0 {
            break;
        }
    }
    Err(DialError::Refused {
        path,
        status,
        message: refusal_message(&buffer),
    })
}

async fn read_some<S>(
    stream: &mut S,
    buffer: &mut BytesMut,
    path: &'static str,
) -> Result<usize, DialError>
where
    S: AsyncRead + Unpin,
{
    stream
        .read_buf(buffer)
        .await
        .map_err(|source| DialError::Io { path, source })
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .map(|at| at + 4)
}

fn status_of(head: &[u8]) -> Option<u16> {
    let rest = head
        .strip_prefix(b"HTTP/1.")
        .and_then(|rest| rest.get(1..))?;
    let digits = rest.strip_prefix(b" ")?.get(..3)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn body_length(head: &[u8]) -> Option<usize> {
    let head = std::str::from_utf8(head).ok()?;
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
}

/// Docker refuses with `{"message":"..."}`, proxies with plain text. Either becomes one line.
fn refusal_message(body: &[u8]) -> String {
    let body = &body[..body.len().min(limits::UPGRADE_REFUSAL_BYTES_MAX)];
    let text = String::from_utf8_lossy(body);
    let inner = text
        .trim()
        .strip_prefix("{\"message\":\"")
        .and_then(|rest| rest.strip_suffix("\"}"));
    let line = inner.unwrap_or(text.trim()).replace("\\\"", "\"");
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() {
        "no reason given".to_owned()
    } else {
        line
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Upgraded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let taken = self.early.len().min(buffer.remaining());
        buffer.put_slice(&self.early[..taken]);
        self.early.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Upgraded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(
        answer: &'static [u8],
    ) -> (Result<Upgraded<tokio::io::DuplexStream>, DialError>, String) {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let server = async move {
            let mut request = BytesMut::new();
            while head_end(&request).is_none() {
                assert_ne!(far.read_buf(&mut request).await.unwrap(), 0);
            }
            far.write_all(answer).await.unwrap();
            String::from_utf8(request.to_vec()).unwrap()
        };
        let headers = [
            ("X-A".to_owned(), "1".to_owned()),
            ("X-A".to_owned(), "2".to_owned()),
        ];
        let (result, request) = tokio::join!(dial_docker_session(near, &headers), server);
        (result, request)
    }

    #[tokio::test]
    async fn bytes_that_follow_the_answer_are_not_lost() {
        let (upgraded, request) =
            answered(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nearly")
                .await;
        let mut all = String::new();
        upgraded.unwrap().read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "early");
        assert!(
            request.starts_with("POST /session HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(request.contains("X-A: 1\r\nX-A: 2\r\n\r\n"), "{request}");
    }

    #[tokio::test]
    async fn a_refusal_gives_the_endpoints_words() {
        let (refused, _) = answered(
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 26\r\n\r\n{\"message\":\"no \\\"access\\\"\"}",
        )
        .await;
        let message = refused.unwrap_err().to_string();
        assert!(message.ends_with("status 403: no \"access\""), "{message}");
    }

    #[tokio::test]
    async fn what_is_not_http_is_told() {
        let (not_http, _) = answered(b"SSH-2.0-OpenSSH\r\n\r\n").await;
        assert!(matches!(
            not_http,
            Err(DialError::NotHttp { path: "/session" })
        ));
        let (closed, _) = answered(b"").await;
        assert!(matches!(closed, Err(DialError::Closed { .. })));
    }

    #[tokio::test]
    async fn a_header_cannot_smuggle_another() {
        let (near, _far) = tokio::io::duplex(1 << 10);
        let headers = [("X-A".to_owned(), "1\r\nX-B: 2".to_owned())];
        let refused = dial_docker_session(near, &headers).await;
        assert!(matches!(refused, Err(DialError::Header { name }) if name == "X-A"));
    }
}
