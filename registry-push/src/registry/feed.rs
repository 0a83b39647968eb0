//! The compressed bytes of a layer by offset, for uploads that must be able to go back.
//!
//! Knows the pipeline and nothing of HTTP.

use crate::error::PushError;
use crate::limits::{CHUNK_FIRST, FRAME_BYTES, MEMBER_BYTES, REPLAY_BYTES, SMALL_LAYER_BYTES};
use crate::pipeline::{Compressors, Piece, Summary};
use crate::report::Moved;
use crate::source::{LayerSource, SourceError};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::mpsc;

// A chunk that was sent must still be in memory when it has to be sent again.
const _: () = assert!(CHUNK_FIRST + 2 * MEMBER_BYTES <= REPLAY_BYTES);
// A small layer is held whole, however badly it compresses.
const _: () = assert!(SMALL_LAYER_BYTES + MEMBER_BYTES <= REPLAY_BYTES);

/// The compressed bytes of a layer, by offset, with the last of them kept for another try.
pub(crate) struct Feed<'a> {
    compressors: &'a Compressors,
    source: Arc<dyn LayerSource>,
    pieces: mpsc::Receiver<Result<Piece, SourceError>>,
    kept: VecDeque<Bytes>,
    /// Offset of the first byte still in memory.
    pub(super) kept_from: u64,
    /// Offset after the last byte that was made.
    pub(super) kept_to: u64,
    raw: u64,
    /// The most that was told.
    told: Moved,
    /// Set when everything was made.
    pub(super) end: Option<Summary>,
    on_move: &'a (dyn Fn(Moved) + Send + Sync),
}

impl<'a> Feed<'a> {
    /// Starts reading the layer. `on_move` hears how far it has come; reading again tells nothing new.
    pub(crate) fn new(
        compressors: &'a Compressors,
        source: Arc<dyn LayerSource>,
        on_move: &'a (dyn Fn(Moved) + Send + Sync),
    ) -> Feed<'a> {
        let pieces = compressors.layer(source.clone());
        Feed {
            compressors,
            source,
            pieces,
            kept: VecDeque::new(),
            kept_from: 0,
            kept_to: 0,
            raw: 0,
            told: Moved::default(),
            end: None,
            on_move,
        }
    }

    /// Reads the layer from its start again.
    pub(super) fn restart(&mut self) {
        self.pieces = self.compressors.layer(self.source.clone());
        self.kept.clear();
        (self.kept_from, self.kept_to, self.raw, self.end) = (0, 0, 0, None);
    }

    /// At most [`FRAME_BYTES`] from an offset on; `None` at the end. Cancel safe. Needs `kept_from <= offset`.
    pub(super) async fn frame(&mut self, offset: u64) -> Result<Option<Bytes>, PushError> {
        loop {
            if offset < self.kept_to {
                return Ok(self.kept_frame(offset));
            }
            if self.end.is_some() {
                return Ok(None);
            }
            match self.pieces.recv().await {
                Some(Ok(Piece::Data { bytes, raw })) => {
                    self.kept_to += bytes.len() as u64;
                    self.kept.push_back(bytes);
                    self.raw += raw;
                    self.trim();
                    if self.raw > self.told.raw {
                        self.told.raw = self.raw;
                        self.told.compressed = self.kept_to;
                        (self.on_move)(self.told);
                    }
                }
                Some(Ok(Piece::End(summary))) => self.end = Some(summary),
                Some(Err(error)) => return Err(error.into()),
                None => {
                    return Err(PushError::Pipeline {
                        layer: self.source.diff_id().clone(),
                    });
                }
            }
        }
    }

    /// Takes note of bytes that were handed to the network.
    pub(super) fn sent(&mut self, count: u64) {
        self.told.sent += count;
        (self.on_move)(self.told);
    }

    /// Bytes handed to the network so far, repetitions included.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.told.sent
    }

    /// The whole blob of a layer of at most [`SMALL_LAYER_BYTES`]; `None` when it is larger.
    pub(crate) async fn whole(&mut self) -> Result<Option<(Bytes, Summary)>, PushError> {
        while self.raw <= SMALL_LAYER_BYTES as u64 {
            if self.frame(self.kept_to).await?.is_some() {
                continue;
            }
            let Some(summary) = self.end.clone() else {
                break;
            };
            let blob = match self.kept.make_contiguous() {
                [piece] => piece.clone(),
                pieces => Bytes::from(pieces.concat()),
            };
            return Ok(Some((blob, summary)));
        }
        Ok(None)
    }

    /// Exactly `length` bytes from an offset on, less only at the end of the layer. `length` is at most [`CHUNK_FIRST`].
    pub(super) async fn chunk(&mut self, offset: u64, length: usize) -> Result<Bytes, PushError> {
        let mut chunk = BytesMut::with_capacity(length);
        while chunk.len() < length {
            let Some(mut frame) = self.frame(offset + chunk.len() as u64).await? else {
                break;
            };
            frame.truncate(length - chunk.len());
            chunk.extend_from_slice(&frame);
        }
        Ok(chunk.freeze())
    }

    fn kept_frame(&self, offset: u64) -> Option<Bytes> {
        let mut start = self.kept_from;
        for piece in &self.kept {
            let end = start + piece.len() as u64;
            if offset < end {
                let skip = usize::try_from(offset.saturating_sub(start)).ok()?;
                return Some(piece.slice(skip..piece.len().min(skip + FRAME_BYTES)));
            }
            start = end;
        }
        None
    }

    /// Forgets the oldest pieces beyond the bound; the newest always stays.
    fn trim(&mut self) {
        while self.kept.len() > 1 && self.kept_to - self.kept_from > REPLAY_BYTES as u64 {
            let oldest = self.kept.pop_front().map_or(0, |piece| piece.len() as u64);
            self.kept_from += oldest;
        }
    }
}
