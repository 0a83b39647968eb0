//! One push, from the first question to the proof.
//!
//! Order: nothing but a few questions when the repository has this very image ([`unchanged`]); else each layer by itself ([`layer`]): ask,
//! mount or send, prove; then the manifest, under each tag ([`tags`]). The tag is written last, when every blob has answered by
//! digest, so a push that fails leaves no tag on an incomplete image.

mod ahead;
mod layer;
mod tags;
mod turns;
mod unchanged;
mod whole;

use crate::digest::Digest;
use crate::error::PushError;
use crate::index::{Index, Known, MANIFEST_OF};
use crate::limits::{CHECKS_AT_ONCE, LAYERS_AT_ONCE, SMALL_LAYERS_AT_ONCE};
use crate::manifest::{Blob, DOCKER_TYPE, Manifest};
use crate::options::PushOptions;
use crate::pipeline::Compressors;
use crate::registry::{Registry, cancel, open, upload_bytes};
use crate::report::{Moved, Progress, PushState, Pushed, PushedLayer};
use crate::source::{Export, ImageSource, LayerSource};
use crate::target::{Credential, Target};
use ahead::{Ahead, Sending};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::StatusCode;
use layer::key;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::sync::Semaphore;

/// Pushes an image. Returns when the registry has answered for every blob and the manifest by digest. Dropping the future ends the push.
///
/// `progress` is called often and must not block. Errors: [`PushError::blame`] and [`PushError::hint`] say whose turn it is.
pub async fn push(
    image: ImageSource,
    target: &Target,
    credential: Option<&Credential>,
    options: &PushOptions,
    progress: impl Fn(Progress) + Send + Sync,
) -> Result<Pushed, PushError> {
    Push::new(target, credential, options)?
        .image(image, progress)
        .await
}

/// A push whose image may not be there yet. Dropped, it leaves nothing behind.
pub struct Push {
    base: Arc<Base>,
    ahead: Option<Ahead>,
}

/// What a push has before its image.
struct Base {
    registry: Registry,
    target: Target,
    tags: Vec<String>,
    options: PushOptions,
    /// Started when the first layer has to be read.
    compressors: OnceLock<Compressors>,
    streams: Arc<Semaphore>,
}

impl std::fmt::Debug for Push {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Push").finish_non_exhaustive()
    }
}

impl Push {
    /// Prepares a push; asks the registry nothing yet.
    pub fn new(
        target: &Target,
        credential: Option<&Credential>,
        options: &PushOptions,
    ) -> Result<Push, PushError> {
        let base = Base {
            registry: Registry::new(target, credential, options)?,
            target: target.clone(),
            tags: tags::all(target, options)?,
            options: options.clone(),
            compressors: OnceLock::new(),
            streams: Arc::new(Semaphore::new(LAYERS_AT_ONCE)),
        };
        Ok(Push {
            base: Arc::new(base),
            ahead: None,
        })
    }

    /// Asks the registry whether it would take this push.
    pub fn checker(&self) -> Checker {
        Checker {
            base: self.base.clone(),
        }
    }

    /// Begins to send the layers that dockerd exports from now on, without knowing yet whether the image will be made of them. Must be
    /// called within a tokio runtime with threads, and before the export begins. `is_alone` is asked before anything of a layer is
    /// sent: whether, of all builds of this dockerd, the one that this push is for is the only one at this moment. What the image does
    /// not have in the end was sent into an upload that is cancelled: no blob comes of it.
    pub fn send_ahead<F>(
        &mut self,
        export: Export,
        is_alone: impl Fn() -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = bool> + Send,
    {
        self.ahead = Some(Ahead::start(self.base.clone(), export, is_alone));
    }

    /// Pushes the image: [`push`].
    pub async fn image(
        self,
        image: ImageSource,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<Pushed, PushError> {
        let wanted = wanted_of(&image);
        let base = &*self.base;
        base.registry.at.settle().await?;
        let index = open_index(base.options.index.clone(), wanted.clone()).await;
        let ahead = match self.ahead {
            Some(ahead) => ahead.of(&image).await,
            None => HashMap::new(),
        };
        let run = Run::new(base, index, wanted, &progress);
        *run.ahead.lock().unwrap_or_else(PoisonError::into_inner) = ahead;
        Box::pin(run.image(&image, image.id(), &base.tags)).await
    }
}

/// Asks beforehand what a push would find out. What it learns of the registry the push knows too.
pub struct Checker {
    base: Arc<Base>,
}

impl std::fmt::Debug for Checker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checker").finish_non_exhaustive()
    }
}

impl Checker {
    /// Opens an upload in the repository and gives it up.
    pub async fn check(&self) -> Result<(), PushError> {
        let registry = &self.base.registry;
        registry.at.settle().await?;
        let item = "an upload";
        let opened = open(registry, item).await?;
        cancel(registry, item, opened.url).await;
        Ok(())
    }
}

/// What the digest index is asked about for an image.
fn wanted_of(image: &ImageSource) -> HashSet<Digest> {
    let own = std::iter::once(image.id());
    image.diff_ids().cloned().chain(own).collect()
}

async fn open_index(path: Option<PathBuf>, wanted: HashSet<Digest>) -> Index {
    let Some(path) = path else {
        return Index::default();
    };
    match tokio::task::spawn_blocking(move || Index::open(&path, &wanted)).await {
        Ok(Ok(index)) => index,
        Ok(Err(error)) => {
            tracing::warn!(%error, "digest index not read");
            Index::default()
        }
        Err(_) => Index::default(),
    }
}

/// What all parts of one push share.
struct Run<'a, P> {
    base: &'a Base,
    registry: &'a Registry,
    target: &'a Target,
    options: &'a PushOptions,
    codec_id: String,
    index: Arc<Mutex<Index>>,
    /// What the index is asked about.
    wanted: HashSet<Digest>,
    /// Where processes take turns.
    folder: Option<PathBuf>,
    checks: Semaphore,
    small: Semaphore,
    /// Layers that are on their way already.
    ahead: Mutex<HashMap<Digest, Sending>>,
    /// The registry has said that it lacks blobs that it had said it has: it is asked to give them.
    is_doubted: AtomicBool,
    progress: &'a P,
}

/// What became of one different layer.
struct Done {
    known: Known,
    state: PushState,
    sent: u64,
}

/// Different layers by their [`key`].
type AllDone = HashMap<Digest, Done>;

impl<'a, P: Fn(Progress) + Send + Sync> Run<'a, P> {
    fn new(base: &'a Base, index: Index, wanted: HashSet<Digest>, progress: &'a P) -> Run<'a, P> {
        let folder = base.options.index.as_ref();
        Run {
            base,
            registry: &base.registry,
            target: &base.target,
            options: &base.options,
            codec_id: base.options.codec.id(),
            index: Arc::new(Mutex::new(index)),
            wanted,
            folder: folder.map(|path| path.with_extension("turns")),
            checks: Semaphore::new(CHECKS_AT_ONCE),
            small: Semaphore::new(SMALL_LAYERS_AT_ONCE),
            ahead: Mutex::default(),
            is_doubted: AtomicBool::new(false),
            progress,
        }
    }

    /// Without tags the manifest is written under its digest alone.
    async fn image(
        &self,
        image: &ImageSource,
        image_id: Digest,
        tags: &[String],
    ) -> Result<Pushed, PushError> {
        // A blob that occurs twice is sent once.
        let mut different: Vec<&Arc<dyn LayerSource>> = Vec::new();
        for layer in &image.layers {
            let is_new = |other: &&Arc<dyn LayerSource>| key(&***other) != key(&**layer);
            if different.iter().all(is_new) {
                different.push(layer);
                let total = layer.size_hint().unwrap_or(0);
                let (name, moved) = (layer.diff_id().as_str(), Moved::default());
                self.tell(name, PushState::Waiting, moved, total);
            }
        }
        let unchanged = self.unchanged(image, &image_id, &different, tags);
        if let Some(pushed) = Box::pin(unchanged).await? {
            return Ok(pushed);
        }
        let config = Bytes::copy_from_slice(&image.config);
        // With a credential the first request alone learns how to authenticate; the others then go with it at once.
        let has_config = match self.registry.at.has_credential() {
            true => Some(self.has_config(&image_id).await?),
            false => None,
        };
        let (mut done, config_sent): (AllDone, u64) = tokio::try_join!(
            self.layers(&different),
            self.config(config.clone(), &image_id, has_config)
        )?;
        let mut sent = config_sent + sent_of(&done);
        let mut as_oci = false;
        let (manifest, digest) = loop {
            let manifest = self.manifest(image, &image_id, &done, as_oci);
            let error = match self.write_tags(&manifest, tags).await {
                Ok((digest, manifest_sent)) => {
                    sent += manifest_sent;
                    break (manifest, digest);
                }
                Err(error) => error,
            };
            match self.after_refusal(&error, &manifest, image.manifest.is_none()) {
                Mend::Doubt => {
                    tracing::debug!(%error, "the registry is asked to give every blob");
                    self.is_doubted.store(true, Ordering::Relaxed);
                    let (layers, config_sent) = tokio::try_join!(
                        self.layers(&different),
                        self.config(config.clone(), &image_id, None)
                    )?;
                    sent += config_sent + sent_of(&layers);
                    done = layers;
                }
                Mend::AsOci => {
                    tracing::debug!(%error, "the manifest is written in OCI's form");
                    as_oci = true;
                }
                Mend::None => return Err(error),
            }
        };
        self.remember_manifest(&image_id, &digest, manifest.bytes.len())
            .await;
        Ok(pushed(image, manifest, digest, &done, sent))
    }

    /// Brings all these layers into the repository.
    async fn layers(&self, different: &[&Arc<dyn LayerSource>]) -> Result<AllDone, PushError> {
        // The futures are made before the streams: closures inside of them would keep this future on one thread.
        let pushes: Vec<_> = different
            .iter()
            .map(|layer| Box::pin(self.layer(layer)))
            .collect();
        stream::iter(pushes)
            .buffer_unordered(crate::limits::LAYERS)
            .try_collect()
            .await
    }

    /// What may make the registry take a manifest that it has refused; each is tried once.
    fn after_refusal(&self, error: &PushError, manifest: &Manifest, is_ours: bool) -> Mend {
        let status = if let PushError::Rejected { status, .. } = error {
            *status
        } else if let PushError::NotFound { .. } = error {
            StatusCode::NOT_FOUND
        } else {
            return Mend::None;
        };
        // Blobs that are unknown after all: Artifactory says so by 400, others by 404.
        let may_lack_blobs = matches!(status, StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND);
        if may_lack_blobs && !self.is_doubted.load(Ordering::Relaxed) {
            return Mend::Doubt;
        }
        let may_be_its_type = status != StatusCode::NOT_FOUND;
        if may_be_its_type && manifest.media_type == DOCKER_TYPE && is_ours {
            return Mend::AsOci;
        }
        Mend::None
    }

    /// Sends the config if the repository has none; gives the bytes sent. It has answered by digest then.
    async fn config(
        &self,
        config: Bytes,
        id: &Digest,
        has: Option<bool>,
    ) -> Result<u64, PushError> {
        let length = config.len() as u64;
        let has = match has {
            Some(has) => has,
            None => self.has_config(id).await?,
        };
        if has {
            self.tell("config", PushState::Exists, Moved::plain(length, 0), length);
            return Ok(0);
        }
        self.tell("config", PushState::Pushing, Moved::default(), length);
        let sent = upload_bytes(self.registry, "the config", config, id, None).await?;
        self.prove(&Known {
            digest: id.clone(),
            size: length,
        })
        .await?;
        self.tell(
            "config",
            PushState::Pushed,
            Moved::plain(length, sent),
            length,
        );
        Ok(sent)
    }

    async fn has_config(&self, id: &Digest) -> Result<bool, PushError> {
        if self.is_doubted.load(Ordering::Relaxed) {
            return self.registry.gives_blob("the config", id).await;
        }
        Ok(self.registry.blob_size("the config", id).await?.is_some())
    }

    /// The manifest that came with the image if all its blobs are the ones it names, else one of our making.
    fn manifest(
        &self,
        image: &ImageSource,
        image_id: &Digest,
        done: &AllDone,
        as_oci: bool,
    ) -> Manifest {
        if let Some(manifest) = &image.manifest {
            return manifest.clone();
        }
        let blobs: Vec<Blob<'_>> = image
            .layers
            .iter()
            .filter_map(|layer| {
                let known = &done.get(&key(&**layer))?.known;
                Some(self.blob(&**layer, known))
            })
            .collect();
        let (length, as_oci) = (image.config.len() as u64, as_oci || image.as_oci);
        Manifest::of(image_id, length, &blobs, &image.annotations, as_oci)
    }

    fn blob<'k>(&self, layer: &dyn LayerSource, known: &'k Known) -> Blob<'k> {
        let packing = layer
            .packed()
            .map_or(self.options.codec.packing(), |packed| packed.packing);
        Blob {
            digest: &known.digest,
            size: known.size,
            packing,
        }
    }

    /// Writes into the index what was proved. Without a file it is remembered for this push alone.
    async fn remember(&self, diff_id: &Digest, known: &Known, codec: String) {
        let (index, found) = (self.index.clone(), [(diff_id.clone(), known.clone())]);
        let host = self.target.registry().to_string();
        let repository = self.target.repository().to_string();
        let written = tokio::task::spawn_blocking(move || {
            let mut index = index.lock().unwrap_or_else(PoisonError::into_inner);
            index.add(found, &codec, &host, &repository)
        });
        // The blob is there, whatever becomes of the index.
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, "digest index not written");
        }
    }

    async fn remember_manifest(&self, image_id: &Digest, digest: &Digest, length: usize) {
        let known = Known {
            digest: digest.clone(),
            size: length as u64,
        };
        let codec = format!("{MANIFEST_OF}{}", self.codec_id);
        self.remember(image_id, &known, codec).await;
    }

    fn tell(&self, item: &str, state: PushState, moved: Moved, total: u64) {
        (self.progress)(Progress {
            item: item.to_string(),
            state,
            current: moved.raw,
            total,
            compressed: moved.compressed,
            sent: moved.sent,
        });
    }
}

/// What a refused manifest is tried again with.
enum Mend {
    /// Every blob is asked for anew, and sent where it is not given.
    Doubt,
    /// OCI's form of the same manifest.
    AsOci,
    /// Nothing.
    None,
}

fn sent_of(done: &AllDone) -> u64 {
    done.values().map(|done| done.sent).sum()
}

fn pushed(
    image: &ImageSource,
    manifest: Manifest,
    digest: Digest,
    done: &AllDone,
    sent_bytes: u64,
) -> Pushed {
    let layers = image.layers.iter().filter_map(|layer| {
        let done = done.get(&key(&**layer))?;
        Some(PushedLayer {
            diff_id: layer.diff_id().clone(),
            digest: done.known.digest.clone(),
            size_bytes: done.known.size,
            state: done.state,
            sent_bytes: done.sent,
        })
    });
    let blobs: u64 = done.values().map(|done| done.known.size).sum();
    Pushed {
        digest,
        size_bytes: manifest.bytes.len() as u64 + image.config.len() as u64 + blobs,
        manifest_bytes: manifest.bytes,
        layers: layers.collect(),
        sent_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_can_move_between_threads() {
        fn check<T: Send>(_: impl Fn(ImageSource) -> T) {}
        let (target, options) = (
            Target::parse("host/app:1").expect("parses"),
            PushOptions::default(),
        );
        check(|image| push(image, &target, None, &options, |_| ()));
    }
}
