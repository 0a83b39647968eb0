//! Blobs that go in one request, and the parts that they share with streamed ones.
//!
//! Knows nothing of layers.

use super::client::{Answer, Ask, Registry};
use super::retry::Attempts;
use crate::digest::Digest;
use crate::error::{ProtocolFault, PushError};
use crate::limits::{CANCEL_TIMEOUT, COMMIT_TIMEOUT};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::Url;

/// Media type of all blobs while they are sent.
pub(super) const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Opens an upload.
pub(crate) async fn open(registry: &Registry, item: &str) -> Result<Url, PushError> {
    let ask = Ask::new(item, Method::POST, registry.url("blobs/uploads/"));
    let answer = registry.request(ask).await?;
    if answer.status != StatusCode::ACCEPTED {
        return Err(registry.failed(item, &answer, 1));
    }
    registry.location(item, &answer.url, &answer.headers)
}

/// Asks the registry to forget an upload. It does so by itself some day, so a failure is none of the push.
pub(crate) async fn cancel(registry: &Registry, item: &str, opened: Url) {
    let ask = Ask::new(item, Method::DELETE, opened);
    match tokio::time::timeout(CANCEL_TIMEOUT, registry.request(ask)).await {
        Ok(Ok(answer)) => tracing::debug!(item, status = %answer.status, "upload given up"),
        Ok(Err(error)) => tracing::debug!(item, %error, "upload given up"),
        Err(_) => tracing::debug!(item, "upload given up without an answer"),
    }
}

/// Sends a small blob whole, into the upload that is open already if there is one; gives the bytes handed to the network.
pub(crate) async fn upload_bytes(
    registry: &Registry,
    item: &str,
    blob: Bytes,
    digest: &Digest,
    mut opened: Option<Url>,
) -> Result<u64, PushError> {
    let mut sessions = Attempts::default();
    loop {
        let mut url = match opened.take() {
            Some(url) => url,
            None => open(registry, item).await?,
        };
        url.query_pairs_mut().append_pair("digest", digest.as_str());
        let mut ask = Ask::new(item, Method::PUT, url);
        ask.headers.push((header::CONTENT_TYPE, OCTETS));
        ask.body = blob.clone();
        ask.within = COMMIT_TIMEOUT;
        let answer = registry.request(ask).await?;
        if answer.status.is_success() {
            check_digest(registry, item, &answer, digest)?;
            return Ok(blob.len() as u64);
        }
        let error = registry.failed(item, &answer, 1);
        // A try whose answer was lost may have stored it, or left a part of it in this upload.
        let may_pass = matches!(
            answer.status,
            StatusCode::NOT_FOUND
                | StatusCode::GONE
                | StatusCode::BAD_REQUEST
                | StatusCode::RANGE_NOT_SATISFIABLE
        );
        if !may_pass {
            return Err(error);
        }
        if registry.blob_size(item, digest).await?.is_some() {
            return Ok(blob.len() as u64);
        }
        let Some(wait) = sessions.failed(None) else {
            return Err(error);
        };
        tokio::time::sleep(wait).await;
    }
}

/// A registry that names another digest than ours has stored something else.
pub(crate) fn check_digest(
    registry: &Registry,
    item: &str,
    answer: &Answer,
    expected: &Digest,
) -> Result<(), PushError> {
    let named = answer
        .headers
        .get("docker-content-digest")
        .and_then(|value| value.to_str().ok());
    match named {
        Some(found) if found.starts_with("sha256:") && found != expected.as_str() => {
            let (found, expected) = (found.chars().take(100).collect(), expected.clone());
            Err(registry.protocol(item, ProtocolFault::Digest { found, expected }))
        }
        Some(_) | None => Ok(()),
    }
}

/// Bytes an upload has by its `Range: 0-<last>` (distribution-spec). `0-0` is written for none; for one byte it would be the same,
/// but no gzip member has one byte.
pub(super) fn stored_bytes(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::RANGE)?.to_str().ok()?;
    let (from, last) = text.trim().trim_start_matches("bytes=").split_once('-')?;
    let (from, last): (u64, u64) = (from.parse().ok()?, last.parse().ok()?);
    match (from, last) {
        (0, 0) => Some(0),
        (0, last) => last.checked_add(1),
        (_, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_registries() {
        for (text, expected) in [
            ("0-0", Some(0)),
            ("0-99", Some(100)),
            ("bytes=0-99", Some(100)),
            ("5-99", None),
            ("0-18446744073709551615", None),
            ("0-", None),
            ("", None),
            ("x", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, HeaderValue::from_static(text));
            assert_eq!(stored_bytes(&headers), expected, "{text}");
        }
        assert_eq!(stored_bytes(&HeaderMap::new()), None);
    }
}
