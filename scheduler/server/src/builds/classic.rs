//! Builds of dockerd's classic builder: BuildKit has no record of them, so they are recorded from what their clients are told, while it
//! passes through the gateway.
//!
//! What passes is shared, not copied, and nothing waits for the record: of an answer that comes faster than it can be written down,
//! pieces are left out.
//!
//! Must not know: HTTP, how the answer is read ([`transcript`](super::transcript)).

use super::patience::until_available;
use super::transcript::Transcript;
use super::{Asker, BuildError, BuildService, Inner, Live};
use crate::chain::chain;
use crate::clock::now;
use crate::entropy::entropy;
use crate::farm::{BuilderKey, FarmError};
use crate::limits::{CLASSIC_LAST_MAX, CLASSIC_PIECES_MAX};
use bytes::Bytes;
use slipway_core::build::{BuildSpec, NumberedEvent};
use slipway_core::id::BuildId;
use slipway_store::{Build, BuildState, NewBuild, StoreError};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Takes what the builder tells its client. Dropped before [`Tap::end`], the client is gone.
#[derive(Debug)]
pub(crate) struct Tap {
    pieces: mpsc::Sender<Piece>,
    /// The newest pieces for which there was no room, in order.
    left: VecDeque<Bytes>,
}

#[derive(Debug)]
enum Piece {
    Told(Bytes),
    End,
}

impl Tap {
    /// The next bytes of the answer.
    pub(crate) fn told(&mut self, bytes: &Bytes) {
        self.left.push_back(bytes.clone());
        while let Some(next) = self.left.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(Piece::Told(next))) =
                self.pieces.try_send(Piece::Told(next))
            {
                self.left.push_front(next);
                break;
            }
        }
        if self.left.len() > CLASSIC_LAST_MAX {
            self.left.pop_front();
        }
    }

    /// The answer has come to its end.
    pub(crate) fn end(self) {
        let Self { pieces, left } = self;
        // Its last line says how the build ended.
        tokio::spawn(async move {
            for left in left {
                let _nobody_reads = pieces.send(Piece::Told(left)).await;
            }
            let _nobody_reads = pieces.send(Piece::End).await;
        });
    }
}

impl BuildService {
    /// Records a build whose builder has begun to answer; with a failure of its own, if it is `broken`.
    pub(crate) fn transcribe(
        &self,
        key: &BuilderKey,
        asker: Asker,
        spec: BuildSpec,
        broken: bool,
    ) -> Tap {
        let (pieces, told) = mpsc::channel(CLASSIC_PIECES_MAX);
        let (inner, key) = (Arc::clone(&self.0), key.clone());
        let shared = Arc::clone(inner.farm.shared());
        shared.clone().tasks.spawn(async move {
            let recorded = inner.write_down(&key, asker, (spec, broken), told);
            tokio::select! {
                () = shared.cancel.cancelled() => {}
                recorded = recorded => if let Err(error) = recorded {
                    tracing::debug!(org = %key.org, why = ?chain(&error), "a build is not recorded");
                }
            }
        });
        Tap {
            pieces,
            left: VecDeque::new(),
        }
    }
}

impl Inner {
    async fn write_down(
        self: &Arc<Self>,
        key: &BuilderKey,
        asker: Asker,
        (spec, broken): (BuildSpec, bool),
        mut told: mpsc::Receiver<Piece>,
    ) -> Result<(), BuildError> {
        let began = Instant::now();
        if !self.watches.admit(&key.org, began) {
            return Ok(());
        }
        self.check_room(&key.org).await?;
        let builder = self.farm.builder(key)?;
        let new = NewBuild {
            id: BuildId::from_entropy(entropy().map_err(FarmError::from)?),
            app: asker.app.unwrap_or(builder.app),
            machine: builder.machine,
            spec,
            source: asker.source,
            asked_by: Some(asker.name),
            at: now(),
        };
        let live = self.make_live(&new.id);
        let build = self.store.create_build(&key.org, &new).await?;
        self.accept(&Build {
            state: BuildState::Running,
            ..build.clone()
        })
        .await;
        let mut transcript = Transcript::started(broken);
        let mut is_whole = false;
        let mut kept = Ok(());
        let outcome = loop {
            // Of a build whose events the store does not take, the end is recorded all the same.
            let events = transcript.events();
            if kept.is_ok() && !events.is_empty() {
                kept = self.keep(&build, &live.live, &events).await;
            }
            let piece = told.recv().await;
            let at_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            match piece {
                Some(Piece::Told(bytes)) => transcript.read(&bytes, at_ms),
                Some(Piece::End) => is_whole = true,
                None => break transcript.end(is_whole, at_ms),
            }
        };
        if kept.is_ok() {
            kept = self.keep(&build, &live.live, &transcript.events()).await;
        }
        match kept {
            Ok(()) => self.finish(&build, outcome).await,
            Err(error) => {
                tracing::error!(build = %build.id, why = ?chain(&error), "events lost");
                self.give_up(&build, outcome).await;
            }
        }
        Ok(())
    }

    /// Records events, when the store is back if it is away.
    async fn keep(
        &self,
        build: &Build,
        live: &Live,
        events: &[NumberedEvent],
    ) -> Result<(), StoreError> {
        let append = || {
            self.store
                .append_build_events(&build.org, &build.id, events)
        };
        let last = until_available(
            append,
            |error| tracing::warn!(build = %build.id, why = ?chain(error), "events not recorded"),
        );
        let last = last.await?;
        live.recorded.send_modify(|seq| *seq = last);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_an_answer_is_kept_whatever_is_left_out() {
        let (pieces, mut told) = mpsc::channel(CLASSIC_PIECES_MAX);
        let mut tap = Tap {
            pieces,
            left: VecDeque::new(),
        };
        for n in 0..1000 {
            tap.told(&Bytes::from(format!("{n} ")));
        }
        tap.end();
        let mut text = String::new();
        while let Some(Piece::Told(bytes)) = told.recv().await {
            text += std::str::from_utf8(&bytes).unwrap();
        }
        let all: Vec<usize> = text
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect();
        let (first, last) = all.split_at(CLASSIC_PIECES_MAX);
        assert_eq!(first, (0..CLASSIC_PIECES_MAX).collect::<Vec<_>>());
        assert_eq!(last, (1000 - CLASSIC_LAST_MAX..1000).collect::<Vec<_>>());
    }
}
