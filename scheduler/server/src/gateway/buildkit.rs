//! The BuildKit gateway: what buildx's `remote` driver dials. TLS with a client certificate, and inside it, from the first
//! byte on, gRPC; so the connection becomes one stream to the `/grpc` of the caller's builder.
//!
//! Must not know: gRPC beyond how a refusal is told in HTTP/2.

use super::endpoints::RegistryHeaders;
use super::proxy::{Answered, stream};
use super::{Caller, Gateway, headers, solves};
use crate::bounds::UPGRADE_WAIT_MAX;
use crate::connection::Connection;
use crate::http::empty;
use crate::problem::{Code, Problem};
use crate::rate::LogLimit;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use slipway_core::build::BuildSource;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// HTTP/2 (RFC 9113, section 7): the peer shall not send so much, or was refused.
const ENHANCE_YOUR_CALM: u32 = 0xb;
/// HTTP/2: not good enough credentials.
const INADEQUATE_SECURITY: u32 = 0xc;
/// HTTP/2: our fault.
const INTERNAL_ERROR: u32 = 0x2;

/// Serves one connection until it ends.
pub(crate) async fn serve<S>(gateway: &Gateway, connection: &Connection, mut client: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // The handshake has shown the credential: there is nothing to wait for.
    connection.asked();
    let opened = async {
        let caller = gateway.caller(connection, &HeaderMap::new()).await?;
        tracing::debug!(org = %caller.entered.org.id, "buildkit connection");
        let opened = caller.while_good(gateway.open_grpc(&caller)).await;
        opened.map(|(builder, held)| (caller, builder, held))
    };
    match opened.await {
        Ok((caller, builder, _held)) => {
            let carried = gateway.carry(&caller, BuildSource::Buildkit);
            let client = solves::Read::new(client, |named: solves::Named| {
                carried.named(&named.reference, named.spec);
            });
            stream(&caller, client, builder).await;
        }
        Err(problem) => {
            // The client may have gone already.
            let _ = client.write_all(&refusal(&problem)).await;
            let _ = client.shutdown().await;
        }
    }
}

/// A builder's owner can have as many of these as it likes.
static REFUSED: LogLimit = LogLimit::new();

impl Gateway {
    async fn open_grpc(
        &self,
        caller: &Caller,
    ) -> Result<(TokioIo<Upgraded>, super::Activity), Problem> {
        let refused = |why: String| {
            if let Some(left_out) = REFUSED.admit(tokio::time::Instant::now()) {
                tracing::warn!(why, left_out, "builder did not open a buildkit stream");
            }
            Problem::new(
                Code::Unavailable,
                "the builder did not open a BuildKit stream",
            )
        };
        let mut request = Request::new(empty());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static("/grpc");
        let mut fields = headers::to_builder(HeaderMap::new(), RegistryHeaders::None);
        fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        fields.insert(UPGRADE, HeaderValue::from_static("h2c"));
        *request.headers_mut() = fields;
        let Answered {
            mut response,
            sender: _sender,
            activity,
        } = self.ask(&caller.key, request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refused(response.status().to_string()));
        }
        match timeout(UPGRADE_WAIT_MAX, hyper::upgrade::on(&mut response)).await {
            Ok(Ok(builder)) => Ok((TokioIo::new(builder), activity)),
            Ok(Err(error)) => Err(refused(error.to_string())),
            Err(elapsed) => Err(refused(elapsed.to_string())),
        }
    }
}

/// A server's preface and its farewell, with the reason: gRPC clients print it.
fn refusal(problem: &Problem) -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: [u8; 6] = [7, 0, 0, 0, 0, 0];
    let code = match problem.code {
        Code::Unauthenticated | Code::Forbidden => INADEQUATE_SECURITY,
        Code::Limit => ENHANCE_YOUR_CALM,
        Code::NotFound
        | Code::AppNotFound
        | Code::Invalid
        | Code::Conflict
        | Code::NoSpace
        | Code::Unavailable
        | Code::Internal => INTERNAL_ERROR,
    };
    let mut line = problem.line();
    // A frame that every peer takes is at most 16 KiB.
    line.truncate(line.floor_char_boundary(1024));
    let length = u32::try_from(line.len()).unwrap_or(0) + 8;
    let mut bytes = SETTINGS.to_vec();
    bytes.extend_from_slice(&length.to_be_bytes()[1..]);
    bytes.extend_from_slice(&GOAWAY);
    bytes.extend_from_slice(&0_u32.to_be_bytes());
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(line.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_two_whole_frames() {
        let bytes = refusal(&Problem::new(Code::Limit, "busy").hint("wait"));
        let (settings, goaway) = bytes.split_at(9);
        assert_eq!(settings, [0, 0, 0, 4, 0, 0, 0, 0, 0]);
        let length = usize::from(goaway[1]) << 8 | usize::from(goaway[2]);
        assert_eq!(goaway.len(), 9 + length);
        assert_eq!(goaway[3], 7);
        assert_eq!(&goaway[13..17], [0, 0, 0, 0xb]);
        assert_eq!(&goaway[17..], b"busy (wait)");
    }
}
