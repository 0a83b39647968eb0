//! The manifest at the registry: written under each tag, and proved by digest.
//!
//! Knows nothing of layers.

use super::Run;
use crate::digest::Digest;
use crate::error::PushError;
use crate::limits::{PROOF_LOOKS, PROOF_WAIT, TAGS};
use crate::manifest::Manifest;
use crate::options::PushOptions;
use crate::registry::{Ask, check_digest, content_length};
use crate::report::{Moved, Progress, PushState};
use crate::target::{Target, TargetError};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};

/// The target's tag and the further ones, each once.
pub(super) fn all(target: &Target, options: &PushOptions) -> Result<Vec<String>, PushError> {
    let mut tags = vec![target.tag().to_string()];
    for tag in &options.more_tags {
        let tag = target.with_tag(tag)?.tag().to_string();
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    if tags.len() > TAGS {
        return Err(TargetError::Tags { most: TAGS }.into());
    }
    Ok(tags)
}

impl<P: Fn(Progress) + Send + Sync> Run<'_, P> {
    /// Writes every tag and proves the whole; gives the manifest's digest and the bytes sent. Every blob has answered by digest. Without
    /// tags it is written under its digest.
    pub(super) async fn write_tags(
        &self,
        manifest: &Manifest,
        tags: &[String],
    ) -> Result<(Digest, u64), PushError> {
        let digest = Digest::of(&manifest.bytes);
        let mut tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        if tags.is_empty() {
            tags.push(digest.as_str());
        }
        let sent = self.write(manifest, &digest, &tags).await?;
        Ok((digest, sent))
    }

    /// Writes these tags; gives the bytes sent.
    pub(super) async fn write(
        &self,
        manifest: &Manifest,
        digest: &Digest,
        tags: &[&str],
    ) -> Result<u64, PushError> {
        let length = manifest.bytes.len() as u64;
        self.tell("manifest", PushState::Pushing, Moved::default(), length);
        for tag in tags {
            self.put_manifest(manifest, digest, tag).await?;
        }
        let (mut wait, mut looks) = (PROOF_WAIT, 1);
        while !self.names(digest.as_str(), digest, manifest).await? {
            if looks == PROOF_LOOKS {
                return Err(PushError::Incomplete {
                    host: self.registry.at.name().to_string(),
                    item: format!("manifest {digest}"),
                    found: "another manifest or none".to_string(),
                });
            }
            tokio::time::sleep(wait).await;
            (wait, looks) = (wait * 2, looks + 1);
        }
        let sent = length * tags.len() as u64;
        let moved = Moved::plain(length, sent);
        self.tell("manifest", PushState::Pushed, moved, length);
        Ok(sent)
    }

    /// Whether a tag or digest names this very manifest.
    pub(super) async fn names(
        &self,
        reference: &str,
        digest: &Digest,
        manifest: &Manifest,
    ) -> Result<bool, PushError> {
        let url = self.registry.at.url(&format!("manifests/{reference}"));
        let mut ask = Ask::new("the manifest", Method::HEAD, url);
        ask.headers.extend(typed(header::ACCEPT, manifest));
        let answer = self.registry.request(ask).await?;
        let named = answer.headers.get("docker-content-digest");
        let named = named.and_then(|value| value.to_str().ok());
        let length = content_length(&answer.headers);
        // The digest tells everything; a registry that names none is believed only when it was asked by digest.
        let is_same = match named {
            Some(named) => named == digest.as_str(),
            None => reference == digest.as_str(),
        };
        Ok(answer.status == StatusCode::OK
            && is_same
            && length.is_none_or(|length| length == manifest.bytes.len() as u64))
    }

    async fn put_manifest(
        &self,
        manifest: &Manifest,
        digest: &Digest,
        tag: &str,
    ) -> Result<(), PushError> {
        let item = "the manifest";
        let url = self.registry.at.url(&format!("manifests/{tag}"));
        let mut ask = Ask::new(item, Method::PUT, url);
        ask.headers.extend(typed(header::CONTENT_TYPE, manifest));
        ask.body = Bytes::copy_from_slice(&manifest.bytes);
        let answer = self.registry.request(ask).await?;
        if !answer.status.is_success() {
            return Err(self.registry.at.failed(item, &answer, 1));
        }
        check_digest(self.registry, item, &answer, digest)
    }
}

fn typed(
    name: header::HeaderName,
    manifest: &Manifest,
) -> Option<(header::HeaderName, HeaderValue)> {
    Some((name, HeaderValue::from_str(&manifest.media_type).ok()?))
}
