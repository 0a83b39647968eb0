//! One layer: asked for, mounted or sent, and proved.
//!
//! Knows nothing of manifests and tags.

use super::ahead::{Sending, place_key};
use super::turns::{Turns, turn};
use super::{Done, Run};
use crate::digest::Digest;
use crate::error::PushError;
use crate::index::Known;
use crate::limits::{MOUNTS_TRIED, PROOF_LOOKS, PROOF_WAIT, SMALL_LAYER_BYTES};
use crate::pipeline::Summary;
use crate::registry::{Ask, Feed, Opened, cancel, open, upload_blob, upload_bytes};
use crate::report::{Moved, Progress, PushState};
use crate::source::LayerSource;
use http::{Method, StatusCode};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// How a try to mount ended.
enum Mount {
    Mounted,
    /// Not mounted, but an upload is open.
    Opened(Opened),
    Nothing,
}

/// What two layers share when they become one blob: the blob that a packed layer is, or the diffID of one that we pack.
pub(super) fn key(layer: &dyn LayerSource) -> Digest {
    match layer.packed() {
        Some(packed) => packed.digest.clone(),
        None => layer.diff_id().clone(),
    }
}

impl<P: Fn(Progress) + Send + Sync> Run<'_, P> {
    /// Brings one layer into the repository.
    pub(super) async fn layer(
        &self,
        layer: &Arc<dyn LayerSource>,
    ) -> Result<(Digest, Done), PushError> {
        let (key, diff_id) = (key(&**layer), layer.diff_id().clone());
        let mut ahead = self.ahead_of(&diff_id);
        if let Some(known) = self.known(&**layer)
            && self.is_there(&known).await?
        {
            return Ok((key, self.spared(layer, known, PushState::Exists)));
        }
        let mut turns = self.turns(layer, ahead.as_mut()).await;
        if turns.have_waited() {
            self.refresh_index().await;
        }
        let done = self.bring(layer, &turns, ahead).await?;
        self.remember(&diff_id, &done.known, self.codec_of(&**layer))
            .await;
        turns.found(&done.known, self.target.repository());
        Ok((key, done))
    }

    /// The layer, if it is on its way already.
    fn ahead_of(&self, diff_id: &Digest) -> Option<Sending> {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.remove(diff_id)
    }

    /// First the turn for the layer's place, which who sends ahead has; then the one for the layer.
    async fn turns(&self, layer: &Arc<dyn LayerSource>, ahead: Option<&mut Sending>) -> Turns {
        let place = match (ahead, layer.place()) {
            (Some(ahead), _) => ahead.turn.take(),
            (None, Some(place)) => turn(&place_key(self.base, &place.key()), None).await,
            (None, None) => None,
        };
        let key = format!(
            "{} {} {}",
            self.registry.at.name(),
            layer.diff_id(),
            self.codec_of(&**layer)
        );
        Turns {
            place,
            layer: turn(&key, self.folder.as_deref()).await,
        }
    }

    /// Mounts or sends.
    async fn bring(
        &self,
        layer: &Arc<dyn LayerSource>,
        turns: &Turns,
        ahead: Option<Sending>,
    ) -> Result<Done, PushError> {
        let item = format!("layer {}", layer.diff_id());
        let before = turns.before();
        let known = before.as_ref().map(|(known, _)| known.clone());
        let known = known.or_else(|| self.known(&**layer));
        let mut opened = None;
        if let Some(known) = known {
            // Who held the turn before may have sent it to this very repository.
            if turns.have_waited() && self.is_there(&known).await? {
                return Ok(self.spared(layer, known, PushState::Exists));
            }
            let origin = before.as_ref().map(|(_, repository)| repository.as_str());
            match self.mount(&item, &known, origin).await? {
                // A registry that says so and has nothing gets the layer after all.
                Mount::Mounted if self.is_there(&known).await? => {
                    return Ok(self.spared(layer, known, PushState::Mounted));
                }
                Mount::Opened(upload) => opened = Some(upload),
                Mount::Mounted | Mount::Nothing => {}
            }
        }
        if let Some(ahead) = ahead
            && let Some(done) = self.finish(layer, ahead).await?
        {
            if let Some(opened) = opened {
                cancel(self.registry, &item, opened.url).await;
            }
            return Ok(done);
        }
        self.send(layer, &item, opened).await
    }

    /// Waits for what is on its way. `None` when nothing has come of it.
    async fn finish(
        &self,
        layer: &Arc<dyn LayerSource>,
        ahead: Sending,
    ) -> Result<Option<Done>, PushError> {
        let (name, total) = (layer.diff_id().as_str(), layer.size_hint().unwrap_or(0));
        let told = |moved: Moved| self.tell(name, PushState::Pushing, moved, total.max(moved.raw));
        let Some((summary, sent)) = ahead.finish(layer.diff_id(), told).await else {
            return Ok(None);
        };
        self.sent(layer, summary, sent).await.map(Some)
    }

    /// Reads, compresses and uploads.
    async fn send(
        &self,
        layer: &Arc<dyn LayerSource>,
        item: &str,
        mut opened: Option<Opened>,
    ) -> Result<Done, PushError> {
        let (name, total) = (layer.diff_id().as_str(), layer.size_hint().unwrap_or(0));
        let compressors = self.base.compressors();
        let on_move =
            |moved: Moved| self.tell(name, PushState::Pushing, moved, total.max(moved.raw));
        let is_small = layer
            .size_hint()
            .is_some_and(|size| size <= SMALL_LAYER_BYTES as u64);
        let mut sent = None;
        if is_small {
            let _place = self.small.acquire().await.ok();
            self.tell(name, PushState::Pushing, Moved::default(), total);
            let mut feed = Feed::new(compressors, layer.clone(), &on_move);
            let upload = async {
                match opened.take() {
                    Some(opened) => Ok(opened),
                    None => open(self.registry, item).await,
                }
            };
            let (upload, whole) = tokio::try_join!(upload, feed.whole())?;
            match whole {
                Some((blob, summary)) => {
                    let digest = summary.digest.clone();
                    let count =
                        upload_bytes(self.registry, item, blob, &digest, Some(upload)).await?;
                    sent = Some((summary, count));
                }
                // Larger than its store said.
                None => opened = Some(upload),
            }
        }
        let (summary, sent) = match sent {
            Some(sent) => sent,
            None => {
                let _place = self.base.streams.acquire().await.ok();
                self.tell(name, PushState::Pushing, Moved::default(), total);
                let mut feed = Feed::new(compressors, layer.clone(), &on_move);
                Box::pin(upload_blob(self.registry, item, &mut feed, opened)).await?
            }
        };
        self.sent(layer, summary, sent).await
    }

    /// What was sent is proved and told.
    async fn sent(
        &self,
        layer: &Arc<dyn LayerSource>,
        summary: Summary,
        sent: u64,
    ) -> Result<Done, PushError> {
        let Summary {
            digest,
            size,
            raw_size,
        } = summary;
        let known = Known { digest, size };
        self.prove(&known).await?;
        let moved = Moved {
            raw: raw_size,
            compressed: known.size,
            sent,
        };
        let name = layer.diff_id().as_str();
        self.tell(name, PushState::Pushed, moved, raw_size);
        Ok(Done {
            known,
            state: PushState::Pushed,
            sent,
        })
    }

    fn spared(&self, layer: &Arc<dyn LayerSource>, known: Known, state: PushState) -> Done {
        let total = layer.size_hint().unwrap_or(0);
        let moved = Moved {
            raw: total,
            compressed: known.size,
            sent: 0,
        };
        self.tell(layer.diff_id().as_str(), state, moved, total);
        Done {
            known,
            state,
            sent: 0,
        }
    }

    /// The blob that this layer is, or is known to become.
    pub(super) fn known(&self, layer: &dyn LayerSource) -> Option<Known> {
        if let Some(packed) = layer.packed() {
            return Some(Known {
                digest: packed.digest.clone(),
                size: packed.size,
            });
        }
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        index.blob(layer.diff_id(), &self.codec_id).cloned()
    }

    /// What decides the layer's bytes in the registry.
    fn codec_of(&self, layer: &dyn LayerSource) -> String {
        match layer.packed() {
            Some(packed) => packed.digest.to_string(),
            None => self.codec_id.clone(),
        }
    }

    async fn refresh_index(&self) {
        let (index, wanted) = (self.index.clone(), self.wanted.clone());
        let read = tokio::task::spawn_blocking(move || {
            let mut index = index.lock().unwrap_or_else(PoisonError::into_inner);
            index.refresh(&wanted)
        });
        if let Ok(Err(error)) = read.await {
            tracing::warn!(%error, "digest index not read");
        }
    }

    /// Whether the repository has this blob.
    pub(super) async fn is_there(&self, known: &Known) -> Result<bool, PushError> {
        let _place = self.checks.acquire().await.ok();
        let item = format!("blob {}", known.digest);
        if self.is_doubted.load(Ordering::Relaxed) {
            return self.registry.gives_blob(&item, &known.digest).await;
        }
        let size = self.registry.blob_size(&item, &known.digest).await?;
        Ok(size.is_some_and(|size| size.is_none_or(|size| size == known.size)))
    }

    /// Fails when the repository does not have this blob, or has another of its name. A cache before the registry may remember that it
    /// was not there, so it is looked for more than once.
    pub(super) async fn prove(&self, known: &Known) -> Result<(), PushError> {
        let _place = self.checks.acquire().await.ok();
        let item = format!("blob {}", known.digest);
        let (mut wait, mut looks) = (PROOF_WAIT, 0);
        let found = loop {
            looks += 1;
            match self.registry.blob_size(&item, &known.digest).await? {
                None if looks == PROOF_LOOKS => break "nothing".to_string(),
                None => {
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                Some(Some(found)) if found != known.size => {
                    break format!("{found} bytes instead of {}", known.size);
                }
                Some(_) => return Ok(()),
            }
        };
        Err(PushError::Incomplete {
            host: self.registry.at.name().to_string(),
            item,
            found,
        })
    }

    /// Asks the registry, once, to take a blob over from another of its repositories. Nothing that goes wrong with it is a failure.
    async fn mount(
        &self,
        item: &str,
        known: &Known,
        origin: Option<&str>,
    ) -> Result<Mount, PushError> {
        let own = self.registry.at.repository();
        let remembered: Vec<String> = {
            let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            let places = index.places(&known.digest, self.target.registry());
            places.map(str::to_string).collect()
        };
        let remembered = remembered.iter().map(String::as_str);
        let named = self.options.mount_from.iter().map(String::as_str);
        let mut origins: Vec<&str> = Vec::new();
        let all = origin.into_iter().chain(remembered).chain(named);
        for origin in all.filter(|origin| *origin != own) {
            if origins.len() < MOUNTS_TRIED && !origins.contains(&origin) {
                origins.push(origin);
            }
        }
        let mut opened = Mount::Nothing;
        for origin in origins {
            let mut url = self.registry.at.url("blobs/uploads/");
            url.query_pairs_mut()
                .append_pair("mount", known.digest.as_str())
                .append_pair("from", origin);
            let mut ask = Ask::new(item, Method::POST, url);
            ask.mount_from = Some(origin);
            ask.is_retried = false;
            let _place = self.checks.acquire().await.ok();
            match self.registry.request(ask).await {
                Ok(answer) if answer.status == StatusCode::CREATED => return Ok(Mount::Mounted),
                Ok(answer) if answer.status == StatusCode::ACCEPTED => {
                    let upload = Opened::of(self.registry, item, &answer)?;
                    if let Mount::Opened(before) =
                        std::mem::replace(&mut opened, Mount::Opened(upload))
                    {
                        cancel(self.registry, item, before.url).await;
                    }
                }
                Ok(answer) => tracing::debug!(item, origin, status = %answer.status, "not mounted"),
                // The token server may refuse a token for the other repository, or two scopes at once; the plain one still serves. What
                // is wrong with the registry itself shows at the upload.
                Err(error) => tracing::debug!(item, origin, %error, "not mounted"),
            }
        }
        Ok(opened)
    }
}
