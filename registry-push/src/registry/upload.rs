//! Sends one blob: open an upload, stream into it, close it with the digest (distribution-spec, "Pushing a blob in chunks").
//!
//! The stream is one `PATCH` without a length, as Docker's own push does, since size and digest are known only at its end.
//! When it breaks, the registry is asked how much it has, and the stream goes on from there: from memory if it is still there,
//! else by reading the layer again, which gives the same bytes. A registry that has lost the upload (Docker's own loses each one whose
//! request was cut) gets a new one, in chunks that become smaller each time; one that takes no chunks of that size (ECR: 5 MiB at least)
//! gets the whole stream again. A proxy that refuses a request as too large gets shorter streams. What ends the push and what is tried
//! again: [`Step`].

mod stream;

use super::client::{Ask, Registry};
use super::endpoint::Answer;
use super::feed::Feed;
use super::retry::{Attempts, is_rate_limit, is_transient, retry_after};
use super::small::{Opened, cancel, check_digest, open, stored_bytes};
use crate::error::{ProtocolFault, PushError, Said};
use crate::limits::{
    CHUNK_FIRST, CHUNK_LEAST, CHUNK_STEP, COMMIT_TIMEOUT, RATE_STREAM_WAIT, REDIRECTS, REREADS,
    STREAM_FIRST, STREAM_STEP,
};
use crate::pipeline::Summary;
use http::{Method, StatusCode, header};
use reqwest::Url;
use std::time::Duration;
use stream::Pass;
use tokio::sync::watch;

/// One upload of one layer.
struct Upload<'a, 'f> {
    registry: &'a Registry,
    item: &'a str,
    feed: &'a mut Feed<'f>,
    url: Url,
    /// Bytes that the registry is known to have.
    stored: u64,
    attempts: Attempts,
    /// Uploads lost so far.
    lost: Attempts,
    /// Bytes per request; `None` streams.
    chunk: Option<usize>,
    /// Fewest bytes of a chunk that is not the last.
    chunk_least: u64,
    redirects: u32,
    rereads: u32,
}

/// What follows an answer or a break.
enum Step {
    /// Everything is there; close the upload.
    Commit(Summary),
    /// Ask how much is there, after a wait, then go on.
    Resume {
        error: PushError,
        wait: Option<Duration>,
    },
    /// Send on from what the registry has.
    GoOn,
    /// The upload is gone; open another.
    Reopen(PushError),
    /// The request was too large; open another upload for shorter ones.
    Shorten(PushError),
}

/// Sends a layer. `opened` is the upload that a refused mount has left open. Gives what the layer became and the bytes handed to the network.
pub(crate) async fn upload_blob(
    registry: &Registry,
    item: &str,
    feed: &mut Feed<'_>,
    opened: Option<Opened>,
) -> Result<(Summary, u64), PushError> {
    let mut upload = Upload::open(registry, item, feed, opened).await?;
    upload.run(None).await
}

/// The same ahead of the decision whether the layer is wanted: the blob is stored when `wanted` has become true, and not before. When
/// the other end of `wanted` is dropped, the upload is cancelled, as well as that can be done, and gives `None`.
pub(crate) async fn upload_ahead(
    registry: &Registry,
    item: &str,
    feed: &mut Feed<'_>,
    wanted: watch::Receiver<bool>,
) -> Result<Option<(Summary, u64)>, PushError> {
    let mut upload = Upload::open(registry, item, feed, None).await?;
    let mut given_up = wanted.clone();
    let done = tokio::select! {
        done = upload.run(Some(wanted)) => Some(done),
        // Nothing is true of this but the error of a sender that is gone.
        _ = given_up.wait_for(|_| false) => None,
    };
    match done {
        Some(Ok(done)) => Ok(Some(done)),
        Some(Err(error)) => {
            cancel(registry, item, upload.url).await;
            Err(error)
        }
        None => {
            cancel(registry, item, upload.url).await;
            Ok(None)
        }
    }
}

impl<'a, 'f> Upload<'a, 'f> {
    async fn open(
        registry: &'a Registry,
        item: &'a str,
        feed: &'a mut Feed<'f>,
        opened: Option<Opened>,
    ) -> Result<Upload<'a, 'f>, PushError> {
        let Opened { url, chunk_least } = match opened {
            Some(opened) => opened,
            None => open(registry, item).await?,
        };
        Ok(Upload {
            registry,
            item,
            feed,
            url,
            stored: 0,
            attempts: Attempts::default(),
            lost: Attempts::default(),
            chunk: None,
            chunk_least,
            redirects: 0,
            rereads: 0,
        })
    }

    /// Until the blob is stored. `wanted` holds the last request back.
    async fn run(
        &mut self,
        mut wanted: Option<watch::Receiver<bool>>,
    ) -> Result<(Summary, u64), PushError> {
        let mut step = Step::GoOn;
        loop {
            step = match step {
                Step::GoOn => self.stream().await?,
                Step::Resume { error, wait } => self.resume(error, wait).await?,
                Step::Reopen(error) => self.reopen(error).await?,
                Step::Shorten(error) => self.shorten(error).await?,
                Step::Commit(summary) => {
                    if let Some(wanted) = &mut wanted
                        && wanted.wait_for(|wanted| *wanted).await.is_err()
                    {
                        // Whoever waits for this sees the same, and gives it up.
                        std::future::pending::<()>().await;
                    }
                    match self.commit(&summary).await? {
                        None => return Ok((summary, self.feed.sent_bytes())),
                        Some(step) => step,
                    }
                }
            };
        }
    }
}

impl Upload<'_, '_> {
    async fn stream(&mut self) -> Result<Step, PushError> {
        let mut position = self.stored;
        let pass = match self.chunk {
            None => self.pass(&mut position).await?,
            Some(length) => self.chunk(&mut position, length).await?,
        };
        let (answer, shown) = match pass {
            Pass::Broke(error) => return Ok(Step::Resume { error, wait: None }),
            Pass::Answered(answer, shown) => (answer, shown),
        };
        let registry = self.registry;
        let failed = || {
            registry
                .at
                .failed(self.item, &answer, self.attempts.made() + 1)
        };
        match answer.status {
            status if status.is_success() => self.taken(&answer, position),
            StatusCode::UNAUTHORIZED if registry.at.is_own(&self.url) => {
                registry.refused(&answer, shown.as_ref()).await?;
                Ok(Step::Resume {
                    error: failed(),
                    wait: None,
                })
            }
            status if status.is_redirection() && answer.headers.contains_key(header::LOCATION) => {
                self.redirects += 1;
                if self.redirects > REDIRECTS {
                    return Err(registry.at.protocol(self.item, ProtocolFault::Redirects));
                }
                self.url = registry
                    .at
                    .location(self.item, &self.url, &answer.headers)?;
                self.rewind()
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(Step::Reopen(failed())),
            StatusCode::PAYLOAD_TOO_LARGE if self.chunk.is_none() => Ok(Step::Shorten(failed())),
            // A chunk below the least that this registry takes without having named it.
            StatusCode::BAD_REQUEST if self.chunk.is_some() => {
                self.chunk_least = u64::MAX;
                Ok(Step::Reopen(failed()))
            }
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(Step::Resume {
                error: failed(),
                wait: None,
            }),
            status if is_rate_limit(status, &answer.headers, &Said::from_body(&answer.body)) => {
                Ok(Step::Resume {
                    error: failed(),
                    wait: Some(retry_after(&answer.headers).unwrap_or(RATE_STREAM_WAIT)),
                })
            }
            status if is_transient(status) => Ok(Step::Resume {
                error: failed(),
                wait: retry_after(&answer.headers),
            }),
            _ => Err(failed()),
        }
    }

    /// The registry took a stream: all of it, or the part that its `Range` names.
    fn taken(&mut self, answer: &Answer, position: u64) -> Result<Step, PushError> {
        // Without a new location the old one stays, as for Docker.
        if answer.headers.contains_key(header::LOCATION) {
            self.url = self
                .registry
                .at
                .location(self.item, &answer.url, &answer.headers)?;
        }
        let stored = stored_bytes(&answer.headers).unwrap_or(position);
        let stored = self.checked_offset(stored, position)?;
        if let Some(summary) = self
            .feed
            .end
            .clone()
            .filter(|summary| summary.size == stored)
        {
            self.stored = stored;
            return Ok(Step::Commit(summary));
        }
        if stored > self.stored {
            self.attempts.progressed();
        } else {
            let error = self.registry.at.protocol(
                self.item,
                ProtocolFault::Offset {
                    claimed: stored,
                    sent: position,
                },
            );
            return Ok(Step::Resume { error, wait: None });
        }
        self.stored = stored;
        self.rewind()
    }

    /// What the registry has by its own account. Some name the offset after the last byte instead of the last byte's.
    fn checked_offset(&self, claimed: u64, sent: u64) -> Result<u64, PushError> {
        if claimed > sent.saturating_add(1) {
            return Err(self
                .registry
                .at
                .protocol(self.item, ProtocolFault::Offset { claimed, sent }));
        }
        Ok(claimed.min(sent))
    }

    /// Whether the registry takes chunks of the sizes that are kept in memory for another try.
    fn takes_chunks(&self) -> bool {
        self.chunk_least <= CHUNK_FIRST as u64
    }

    /// Makes the feed able to give what the registry needs next, by reading the layer again if need be.
    fn rewind(&mut self) -> Result<Step, PushError> {
        if self.must_reread()? {
            // More than is kept in memory was on its way when the stream broke; chunks keep that from happening again.
            if self.takes_chunks() {
                self.chunk.get_or_insert(CHUNK_FIRST);
            }
        }
        Ok(Step::GoOn)
    }

    /// Starts to read the layer again if what the registry needs next is no longer in memory.
    fn must_reread(&mut self) -> Result<bool, PushError> {
        if self.stored >= self.feed.kept_from {
            return Ok(false);
        }
        self.rereads += 1;
        if self.rereads > REREADS {
            return Err(self
                .registry
                .at
                .protocol(self.item, ProtocolFault::LostUpload));
        }
        tracing::debug!(
            item = self.item,
            stored = self.stored,
            "layer is read again"
        );
        self.feed.restart();
        Ok(true)
    }

    /// Waits, then asks the registry how much it has.
    async fn resume(
        &mut self,
        error: PushError,
        wait: Option<Duration>,
    ) -> Result<Step, PushError> {
        let Some(wait) = self.attempts.failed(wait) else {
            return Err(error);
        };
        tracing::debug!(item = self.item, %error, wait_ms = wait.as_millis(), "upload will go on");
        tokio::time::sleep(wait).await;
        let answer = self
            .registry
            .request(Ask::new(self.item, Method::GET, self.url.clone()))
            .await?;
        if !answer.status.is_success() {
            // Gone, or a registry that cannot say: start over.
            return Ok(Step::Reopen(error));
        }
        let Some(stored) = stored_bytes(&answer.headers) else {
            return Ok(Step::Reopen(error));
        };
        if answer.headers.contains_key(header::LOCATION) {
            self.url = self
                .registry
                .at
                .location(self.item, &answer.url, &answer.headers)?;
        }
        let most = self.feed.kept_to.max(self.stored);
        let stored = self.checked_offset(stored, most)?;
        if stored > self.stored {
            self.attempts.progressed();
        }
        self.stored = stored;
        if let Some(summary) = self
            .feed
            .end
            .clone()
            .filter(|summary| summary.size == stored)
        {
            return Ok(Step::Commit(summary));
        }
        self.rewind()
    }

    /// Opens another upload and sends from the start, more carefully.
    async fn reopen(&mut self, error: PushError) -> Result<Step, PushError> {
        let Some(wait) = self.lost.failed(None) else {
            return Err(error);
        };
        tokio::time::sleep(wait).await;
        let least = usize::try_from(self.chunk_least).unwrap_or(usize::MAX);
        self.chunk = match self.chunk {
            _ if !self.takes_chunks() => None,
            None => Some(CHUNK_FIRST),
            Some(length) => Some((length / CHUNK_STEP).max(CHUNK_LEAST).max(least)),
        };
        tracing::debug!(item = self.item, %error, chunk = self.chunk, "upload starts anew");
        self.open_another().await
    }

    /// Opens another upload after a request was refused as too large, and sends less with each.
    async fn shorten(&mut self, error: PushError) -> Result<Step, PushError> {
        let most = match self.registry.request_most() {
            u64::MAX => STREAM_FIRST,
            most if most > CHUNK_FIRST as u64 => (most / STREAM_STEP).max(CHUNK_FIRST as u64),
            _ => return Err(error),
        };
        self.registry.bound_requests(most);
        tracing::debug!(item = self.item, %error, most, "upload starts anew with shorter requests");
        cancel(self.registry, self.item, self.url.clone()).await;
        self.open_another().await
    }

    async fn open_another(&mut self) -> Result<Step, PushError> {
        let opened = open(self.registry, self.item).await?;
        self.url = opened.url;
        self.chunk_least = self.chunk_least.max(opened.chunk_least);
        self.stored = 0;
        self.must_reread()?;
        Ok(Step::GoOn)
    }

    /// Closes the upload. `None` when the blob is stored.
    async fn commit(&mut self, summary: &Summary) -> Result<Option<Step>, PushError> {
        let mut url = self.url.clone();
        url.query_pairs_mut()
            .append_pair("digest", summary.digest.as_str());
        let mut ask = Ask::new(self.item, Method::PUT, url);
        ask.within = COMMIT_TIMEOUT;
        let answer = self.registry.request(ask).await?;
        if answer.status.is_success() {
            check_digest(self.registry, self.item, &answer, &summary.digest)?;
            return Ok(None);
        }
        // An earlier try whose answer was lost may have stored it.
        let is_gone = matches!(answer.status, StatusCode::NOT_FOUND | StatusCode::GONE);
        if is_gone
            && self
                .registry
                .blob_size(self.item, &summary.digest)
                .await?
                .is_some()
        {
            return Ok(None);
        }
        let error = self.registry.at.failed(self.item, &answer, 1);
        // 400 is how registries say that the digest does not fit: bytes were lost on the way. 416: some are missing.
        let may_pass = is_gone
            || matches!(
                answer.status,
                StatusCode::BAD_REQUEST | StatusCode::RANGE_NOT_SATISFIABLE
            );
        if may_pass {
            Ok(Some(Step::Reopen(error)))
        } else {
            Err(error)
        }
    }
}
