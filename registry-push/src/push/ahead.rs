//! Layers that are compressed and sent while dockerd still exports their image.
//!
//! dockerd reads each new layer for its diffID on one thread, and writes a record as it goes or gives containerd the layer's tar. The layer is
//! read, compressed and sent right behind it, into an upload that stays open. What was sent counts only if the image turns out to have this
//! very layer, by directory and record or by the file that it is; else the upload is cancelled and nothing has happened. A layer that is sent so is sent by one push alone, as any other
//! ([`super::turns`]). Knows nothing of who exports, but that it can be asked whether anybody else does.

use super::Base;
use super::turns::{Turn, turn_now};
use crate::digest::Digest;
use crate::error::PushError;
use crate::limits::EXPORT_LOOK;
use crate::pipeline::{Compressors, Summary};
use crate::registry::{Feed, upload_ahead};
use crate::report::Moved;
use crate::source::{Export, Growing, ImageSource, LayerSource, Looker};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::{JoinError, JoinHandle};

type Sent = Result<Option<(Summary, u64)>, PushError>;

/// The key of the turn for a layer that lies here, whatever its diffID will be.
pub(super) fn place_key(base: &Base, place: &str) -> String {
    let (host, codec) = (base.registry.at.name(), base.options.codec.id());
    format!("{host} {place} {codec}")
}

/// One layer on its way. Dropped, it ends and the registry is told to forget it.
pub(super) struct Sending {
    layer: Arc<dyn Growing>,
    /// True lets the upload be closed; dropped, the upload ends.
    wanted: watch::Sender<bool>,
    moved: watch::Receiver<Moved>,
    task: JoinHandle<Sent>,
    /// Nobody else sends the layer meanwhile. Taken by whoever goes on with it.
    pub(super) turn: Option<Turn>,
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.layer.give_up();
    }
}

impl Sending {
    fn start(
        base: Arc<Base>,
        layer: Arc<dyn Growing>,
        turn: Turn,
        place: OwnedSemaphorePermit,
    ) -> Sending {
        let (wanted, is_wanted) = watch::channel(false);
        let (told, moved) = watch::channel(Moved::default());
        let task = tokio::spawn({
            let layer: Arc<dyn LayerSource> = layer.clone();
            async move {
                let _place = place;
                let on_move = |moved: Moved| {
                    told.send_replace(moved);
                };
                let compressors = base.compressors();
                let mut feed = Feed::new(compressors, layer, &on_move);
                let item = "a layer ahead of its image";
                base.registry.at.settle().await?;
                upload_ahead(&base.registry, item, &mut feed, is_wanted).await
            }
        });
        Sending {
            layer,
            wanted,
            moved,
            task,
            turn: Some(turn),
        }
    }

    /// Waits until all is sent and stored. `None` when that failed, which leaves the layer to be sent as if nothing had been.
    pub(super) async fn finish(
        mut self,
        diff_id: &Digest,
        tell: impl Fn(Moved),
    ) -> Option<(Summary, u64)> {
        self.wanted.send_replace(true);
        let sent = loop {
            tokio::select! {
                sent = &mut self.task => break sent,
                // Without a sender the task is about to end.
                Ok(()) = self.moved.changed() => {
                    let moved = *self.moved.borrow_and_update();
                    tell(moved);
                }
            }
        };
        self.take(diff_id, sent)
    }

    fn take(&self, diff_id: &Digest, sent: Result<Sent, JoinError>) -> Option<(Summary, u64)> {
        match sent {
            // A record that goes on behind its end is not the one that was read, and a file may read as another than it was stored as.
            Ok(Ok(Some(sent))) if self.layer.was_read_as(diff_id) => Some(sent),
            Ok(Ok(_)) => None,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a layer that was sent ahead is sent again");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "a layer that was sent ahead is sent again");
                None
            }
        }
    }
}

/// Looks for layers until it is dropped or asked for what it has.
pub(super) struct Ahead {
    task: JoinHandle<()>,
    sending: Arc<Mutex<Vec<Sending>>>,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ahead {
    /// Begins to look. `is_alone` says whether no other build but this export's may be making records at this moment.
    pub(super) fn start<F>(
        base: Arc<Base>,
        export: Export,
        is_alone: impl Fn() -> F + Send + Sync + 'static,
    ) -> Ahead
    where
        F: Future<Output = bool> + Send,
    {
        let sending = Arc::default();
        let task = tokio::spawn({
            let sending = Arc::clone(&sending);
            async move { look(base, export, is_alone, &sending).await }
        });
        Ahead { task, sending }
    }

    /// What belongs to the image, by diffID; the rest is cancelled.
    pub(super) async fn of(self, image: &ImageSource) -> HashMap<Digest, Sending> {
        self.task.abort();
        let all = std::mem::take(&mut *self.sending.lock().unwrap_or_else(PoisonError::into_inner));
        let layers = image.layers.clone();
        let compared = tokio::task::spawn_blocking(move || {
            let of_image = |sending: Sending| {
                let is_it = |layer: &&Arc<dyn LayerSource>| sending.layer.is(&***layer);
                let diff_id = layers.iter().find(is_it)?.diff_id().clone();
                Some((diff_id, sending))
            };
            all.into_iter().filter_map(of_image).collect()
        });
        compared.await.unwrap_or_default()
    }
}

async fn look<F: Future<Output = bool> + Send>(
    base: Arc<Base>,
    export: Export,
    is_alone: impl Fn() -> F + Send + Sync,
    sending: &Mutex<Vec<Sending>>,
) {
    let mut looker = Looker::new(export);
    loop {
        let looked = tokio::task::spawn_blocking(move || {
            let found = looker.look();
            (looker, found)
        });
        let Ok((back, all)) = looked.await else {
            return;
        };
        looker = back;
        for found in all {
            tracing::debug!(?found, "a layer is exported");
            let Ok(place) = base.streams.clone().try_acquire_owned() else {
                continue;
            };
            let searched = tokio::task::spawn_blocking(move || (found.layer(), found));
            let Ok((Some(layer), found)) = searched.await else {
                tracing::debug!(
                    "not sent ahead: dockerd is not seen reading a layer like the record's"
                );
                continue;
            };
            // In this order: who made the record is among those who build now, unless it is gone by the end of the answer.
            if !is_alone().await || !found.is_there() {
                tracing::debug!("not sent ahead: other builds run, or it is done");
                continue;
            }
            if let Some(turn) = turn_now(&place_key(&base, &layer.place_key())) {
                let one = Sending::start(base.clone(), layer, turn, place);
                sending
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(one);
            }
        }
        tokio::time::sleep(EXPORT_LOOK).await;
    }
}

impl Base {
    /// The threads of this push; started when something is compressed for the first time.
    pub(super) fn compressors(&self) -> &Compressors {
        self.compressors
            .get_or_init(|| Compressors::start(self.options.codec, self.options.threads()))
    }
}
