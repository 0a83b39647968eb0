//! Blobs that go in one request, and the parts that they share with streamed ones.
//!
//! Knows nothing of layers.

use super::client::{Ask, Registry};
use super::endpoint::Answer;
use super::retry::Attempts;
use crate::digest::Digest;
use crate::error::{ProtocolFault, PushError};
use crate::limits::{CANCEL_TIMEOUT, COMMIT_TIMEOUT};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::Url;

/// Media type of all blobs while they are sent.
pub(super) const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// An upload that the registry has opened.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    /// Where the bytes go.
    pub(crate) url: Url,
    /// Fewest bytes of a chunk that is not the last.
    pub(super) chunk_least: u64,
}

/// Amazon's registry takes no smaller parts, and does not say so before (ECR, `UploadLayerPart`).
const ECR_PART_LEAST: u64 = 5 << 20;

impl Opened {
    /// Reads the answer to an opening request.
    pub(crate) fn of(
        registry: &Registry,
        item: &str,
        answer: &Answer,
    ) -> Result<Opened, PushError> {
        let least = answer.headers.get("oci-chunk-min-length");
        let least = least.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        Ok(Opened {
            url: registry.at.location(item, &answer.url, &answer.headers)?,
            chunk_least: least.unwrap_or(match registry.at.name().ends_with(".amazonaws.com") {
                true => ECR_PART_LEAST,
                false => 0,
            }),
        })
    }
}

/// Opens an upload. An answer that promises nothing (quay.io says 200 to a health check of its own at times) is asked for again.
pub(crate) async fn open(registry: &Registry, item: &str) -> Result<Opened, PushError> {
    let mut attempts = Attempts::default();
    loop {
        let ask = Ask::new(item, Method::POST, registry.at.url("blobs/uploads/"));
        let answer = registry.request(ask).await?;
        let is_opened = answer.status == StatusCode::ACCEPTED
            || (answer.status.is_success() && answer.headers.contains_key(header::LOCATION));
        if is_opened {
            return Opened::of(registry, item, &answer);
        }
        let error = registry.at.failed(item, &answer, 1);
        let wait = match answer.status.is_success() {
            true => attempts.failed(None),
            false => None,
        };
        let Some(wait) = wait else { return Err(error) };
        tokio::time::sleep(wait).await;
    }
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
    mut opened: Option<Opened>,
) -> Result<u64, PushError> {
    let mut sessions = Attempts::default();
    let mut is_in_two = false;
    loop {
        let Opened { url, .. } = match opened.take() {
            Some(opened) => opened,
            None => open(registry, item).await?,
        };
        let answer = match is_in_two {
            true => put_in_two(registry, item, &blob, digest, url).await?,
            false => put(registry, item, blob.clone(), digest, url).await?,
        };
        if answer.status.is_success() {
            check_digest(registry, item, &answer, digest)?;
            return Ok(blob.len() as u64);
        }
        let error = registry.at.failed(item, &answer, 1);
        // A try whose answer was lost may have stored it, or left a part of it in this upload.
        let may_pass = matches!(
            answer.status,
            StatusCode::NOT_FOUND
                | StatusCode::GONE
                | StatusCode::BAD_REQUEST
                | StatusCode::METHOD_NOT_ALLOWED
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
        // Some registries take bytes by PATCH alone.
        is_in_two = !is_in_two;
        tokio::time::sleep(wait).await;
    }
}

/// Sends the blob with the request that closes the upload.
async fn put(
    registry: &Registry,
    item: &str,
    body: Bytes,
    digest: &Digest,
    mut url: Url,
) -> Result<Answer, PushError> {
    url.query_pairs_mut().append_pair("digest", digest.as_str());
    let mut ask = Ask::new(item, Method::PUT, url);
    if !body.is_empty() {
        ask.headers.push((header::CONTENT_TYPE, OCTETS));
    }
    ask.body = body;
    ask.within = COMMIT_TIMEOUT;
    registry.request(ask).await
}

/// Sends the blob in one request and closes the upload in another.
async fn put_in_two(
    registry: &Registry,
    item: &str,
    blob: &Bytes,
    digest: &Digest,
    url: Url,
) -> Result<Answer, PushError> {
    let mut ask = Ask::new(item, Method::PATCH, url.clone());
    ask.headers.push((header::CONTENT_TYPE, OCTETS));
    ask.body = blob.clone();
    ask.within = COMMIT_TIMEOUT;
    let answer = registry.request(ask).await?;
    if !answer.status.is_success() {
        return Ok(answer);
    }
    let url = match answer.headers.contains_key(header::LOCATION) {
        true => registry.at.location(item, &answer.url, &answer.headers)?,
        false => url,
    };
    put(registry, item, Bytes::new(), digest, url).await
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
            Err(registry
                .at
                .protocol(item, ProtocolFault::Digest { found, expected }))
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
