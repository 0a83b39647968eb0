//! One request of an upload, with as much of the blob as it takes.
//!
//! Knows nothing of what follows its answer.

use super::super::endpoint::{Answer, read_answer};
use super::super::small::OCTETS;
use super::Upload;
use crate::error::PushError;
use crate::limits::{COMMIT_TIMEOUT, IDLE_TIMEOUT};
use bytes::Bytes;
use http::{HeaderValue, Method, header};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// How one stream ended.
pub(super) enum Pass {
    Answered(Answer, Option<HeaderValue>),
    Broke(PushError),
}

impl Upload<'_, '_> {
    /// Streams from `position` until the end of the layer, the most that one request may have, an answer, or a break.
    pub(super) async fn pass(&mut self, position: &mut u64) -> Result<Pass, PushError> {
        let (request, shown) = self.registry.begin(&Method::PATCH, &self.url, None).await?;
        let mut left = self.registry.request_most();
        let (frames, body) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let body = reqwest::Body::wrap_stream(ReceiverStream::new(body));
        let mut response = std::pin::pin!(
            request
                .header(header::CONTENT_TYPE, OCTETS)
                .body(body)
                .send()
        );
        let answered = loop {
            let frame = tokio::select! {
                biased;
                answer = &mut response => break Some(answer),
                frame = self.feed.frame(*position) => frame?,
            };
            let Some(mut frame) = frame.filter(|_| left > 0) else {
                break None;
            };
            frame.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            let length = frame.len() as u64;
            left -= length;
            let taken = tokio::select! {
                biased;
                answer = &mut response => break Some(answer),
                taken = tokio::time::timeout(IDLE_TIMEOUT, frames.send(Ok(frame))) => taken,
            };
            match taken {
                Ok(Ok(())) => {
                    *position += length;
                    self.feed.sent(length);
                }
                // The connection has dropped the body; its answer or error is about to come.
                Ok(Err(_)) => break None,
                Err(_) => {
                    return Ok(Pass::Broke(
                        self.registry.at.timed_out(self.item, IDLE_TIMEOUT),
                    ));
                }
            }
        };
        drop(frames);
        let answered = match answered {
            Some(answered) => answered,
            None => match tokio::time::timeout(COMMIT_TIMEOUT, response).await {
                Ok(answered) => answered,
                Err(_) => {
                    return Ok(Pass::Broke(
                        self.registry.at.timed_out(self.item, COMMIT_TIMEOUT),
                    ));
                }
            },
        };
        Ok(match answered {
            Ok(response) => Pass::Answered(read_answer(response).await, shown),
            Err(source) => Pass::Broke(self.registry.at.transport(
                self.item,
                self.attempts.made() + 1,
                source,
            )),
        })
    }

    /// Sends one chunk on a connection of its own, so that a bound on a connection's bytes counts for it alone.
    pub(super) async fn chunk(
        &mut self,
        position: &mut u64,
        length: usize,
    ) -> Result<Pass, PushError> {
        let chunk = self.feed.chunk(*position, length).await?;
        let count = chunk.len() as u64;
        let (request, shown) = self.registry.begin(&Method::PATCH, &self.url, None).await?;
        let range = format!("{position}-{}", (*position + count).saturating_sub(1));
        let request = request
            .header(header::CONTENT_TYPE, OCTETS)
            .header(header::CONTENT_LENGTH, count)
            .header(header::CONTENT_RANGE, range)
            .header(header::CONNECTION, "close")
            .body(chunk);
        *position += count;
        self.feed.sent(count);
        match tokio::time::timeout(COMMIT_TIMEOUT, request.send()).await {
            Ok(Ok(response)) => Ok(Pass::Answered(read_answer(response).await, shown)),
            Ok(Err(source)) => {
                let attempt = self.attempts.made() + 1;
                Ok(Pass::Broke(
                    self.registry.at.transport(self.item, attempt, source),
                ))
            }
            Err(_) => Ok(Pass::Broke(
                self.registry.at.timed_out(self.item, COMMIT_TIMEOUT),
            )),
        }
    }
}
