//! One push, from the first question to the proof.
//!
//! Order: ask for what is known; mount or send what is missing, [`LAYERS_AT_ONCE`] layers together; send the manifest; ask for
//! everything by digest. The tag is written last, so a push that fails leaves no tag on an incomplete image.

use crate::digest::Digest;
use crate::error::PushError;
use crate::index::{Index, Known};
use crate::limits::{CHECKS_AT_ONCE, LAYERS_AT_ONCE, MOUNTS_TRIED};
use crate::manifest::{MANIFEST_TYPE, manifest};
use crate::options::PushOptions;
use crate::pipeline::Compressors;
use crate::registry::{Answer, Ask, Feed, Registry, check_digest, upload_blob, upload_bytes};
use crate::report::{Progress, PushState, Pushed, PushedLayer};
use crate::source::{ImageSource, LayerSource};
use crate::target::{Credential, Target};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderValue, Method, StatusCode, header};
use reqwest::Url;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

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
    let registry = Registry::new(target, credential, options)?;
    let mut index = open_index(options).await;
    let run = Run {
        registry: &registry,
        options,
        codec_id: options.codec.id(),
        compressors: OnceLock::new(),
        progress: &progress,
    };
    let pushed = Box::pin(run.image(&image, target, &index)).await?;
    let found = pushed.layers.iter().map(|layer| {
        (
            layer.diff_id.clone(),
            Known {
                digest: layer.digest.clone(),
                size: layer.size_bytes,
            },
        )
    });
    let found: Vec<_> = found.collect();
    let (codec, host, repository) = (
        run.codec_id,
        target.registry().to_string(),
        target.repository().to_string(),
    );
    // The push is complete, whatever becomes of the index.
    let written =
        tokio::task::spawn_blocking(move || index.add(found, &codec, &host, &repository)).await;
    if let Ok(Err(error)) = written {
        tracing::warn!(%error, "digest index not written");
    }
    Ok(pushed)
}

async fn open_index(options: &PushOptions) -> Index {
    let Some(path) = options.index.clone() else {
        return Index::default();
    };
    match tokio::task::spawn_blocking(move || Index::open(&path)).await {
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
    registry: &'a Registry,
    options: &'a PushOptions,
    codec_id: String,
    /// Started when the first layer has to be read.
    compressors: OnceLock<Compressors>,
    progress: &'a P,
}

/// What became of one different layer.
struct Done {
    known: Known,
    state: PushState,
    sent: u64,
}

impl<P: Fn(Progress) + Send + Sync> Run<'_, P> {
    async fn image(
        &self,
        image: &ImageSource,
        target: &Target,
        index: &Index,
    ) -> Result<Pushed, PushError> {
        // A diffID that occurs twice is one blob and is sent once.
        let mut different: Vec<&Arc<dyn LayerSource>> = Vec::new();
        for layer in &image.layers {
            if !different
                .iter()
                .any(|other| other.diff_id() == layer.diff_id())
            {
                different.push(layer);
                self.tell(
                    layer.diff_id().as_str(),
                    PushState::Waiting,
                    0,
                    layer.size_hint().unwrap_or(0),
                );
            }
        }
        let config = Bytes::copy_from_slice(&image.config);
        let config_id = image.id();
        // The first request alone learns how to authenticate; the others then go with the credential at once.
        let has_config = self
            .registry
            .blob_size("the config", &config_id)
            .await?
            .is_some();
        if has_config {
            self.tell(
                "config",
                PushState::Exists,
                config.len() as u64,
                config.len() as u64,
            );
        }
        // The futures are made before the streams: closures inside of them would keep this future on one thread.
        let questions: Vec<_> = different
            .iter()
            .map(|layer| self.is_there(layer, index))
            .collect();
        let asked: HashMap<&Digest, bool> = stream::iter(questions)
            .buffer_unordered(CHECKS_AT_ONCE)
            .try_collect()
            .await?;
        let is_there =
            |layer: &Arc<dyn LayerSource>| asked.get(layer.diff_id()).copied() == Some(true);
        let pushes: Vec<_> = different
            .iter()
            .map(|layer| self.layer(layer, index, is_there(layer)))
            .collect();
        let done: HashMap<&Digest, Done> = stream::iter(pushes)
            .buffer_unordered(LAYERS_AT_ONCE)
            .try_collect()
            .await?;
        let mut config_sent = 0;
        if !has_config {
            self.tell("config", PushState::Pushing, 0, config.len() as u64);
            config_sent =
                upload_bytes(self.registry, "the config", config.clone(), &config_id).await?;
            self.tell(
                "config",
                PushState::Pushed,
                config.len() as u64,
                config.len() as u64,
            );
        }
        let blobs: Vec<(&Digest, u64)> = done
            .values()
            .map(|done| (&done.known.digest, done.known.size))
            .chain([(&config_id, config.len() as u64)])
            .collect();
        let layers: Vec<PushedLayer> = image
            .layers
            .iter()
            .filter_map(|layer| pushed_layer(layer, &done))
            .collect();
        let manifest = manifest(&config_id, config.len(), &layers, self.options.codec);
        let is_known = has_config && done.values().all(|done| done.state == PushState::Exists);
        let (digest, manifest_sent) = self.finish(target, &manifest, &blobs, is_known).await?;
        let size_bytes = manifest.len() as u64 + blobs.iter().map(|(_, size)| size).sum::<u64>();
        let sent_bytes =
            config_sent + manifest_sent + done.values().map(|done| done.sent).sum::<u64>();
        Ok(Pushed {
            digest,
            manifest_bytes: manifest,
            size_bytes,
            layers,
            sent_bytes,
        })
    }

    /// Writes the tag and proves the whole; gives the manifest's digest and the bytes sent. When every blob answered by digest a
    /// moment ago (`is_known`) and the tag already names this manifest, there is nothing to write or prove.
    async fn finish(
        &self,
        target: &Target,
        manifest: &[u8],
        blobs: &[(&Digest, u64)],
        is_known: bool,
    ) -> Result<(Digest, u64), PushError> {
        let (digest, length) = (Digest::of(manifest), manifest.len() as u64);
        if is_known && self.tag_is(target, &digest).await? {
            self.tell("manifest", PushState::Exists, length, length);
            return Ok((digest, 0));
        }
        self.put_manifest(target, manifest, &digest).await?;
        self.verify(blobs, &digest, length).await?;
        self.tell("manifest", PushState::Pushed, length, length);
        Ok((digest, length))
    }

    /// Whether the repository has the blob that this layer is known to become.
    async fn is_there<'l>(
        &self,
        layer: &'l Arc<dyn LayerSource>,
        index: &Index,
    ) -> Result<(&'l Digest, bool), PushError> {
        let Some(known) = index.blob(layer.diff_id(), &self.codec_id) else {
            return Ok((layer.diff_id(), false));
        };
        let item = format!("layer {}", layer.diff_id());
        let size = self.registry.blob_size(&item, &known.digest).await?;
        Ok((
            layer.diff_id(),
            size.is_some_and(|size| size.is_none_or(|size| size == known.size)),
        ))
    }

    async fn layer<'l>(
        &self,
        layer: &'l Arc<dyn LayerSource>,
        index: &Index,
        is_there: bool,
    ) -> Result<(&'l Digest, Done), PushError> {
        let diff_id = layer.diff_id();
        let (name, total) = (diff_id.as_str(), layer.size_hint().unwrap_or(0));
        let known = index.blob(diff_id, &self.codec_id);
        if let (true, Some(known)) = (is_there, known) {
            self.tell(name, PushState::Exists, total, total);
            return Ok((
                diff_id,
                Done {
                    known: known.clone(),
                    state: PushState::Exists,
                    sent: 0,
                },
            ));
        }
        let item = format!("layer {diff_id}");
        let mut opened = None;
        if let Some(known) = known {
            match self.mount(&item, known, index).await? {
                Mount::Mounted => {
                    self.tell(name, PushState::Mounted, total, total);
                    return Ok((
                        diff_id,
                        Done {
                            known: known.clone(),
                            state: PushState::Mounted,
                            sent: 0,
                        },
                    ));
                }
                Mount::Opened(url) => opened = Some(url),
                Mount::Nothing => {}
            }
        }
        self.tell(name, PushState::Pushing, 0, total);
        let compressors = self
            .compressors
            .get_or_init(|| Compressors::start(self.options.codec, self.options.threads()));
        let on_raw = |raw: u64| self.tell(name, PushState::Pushing, raw, total.max(raw));
        let mut feed = Feed::new(compressors, layer.clone(), &on_raw);
        let (summary, sent) =
            Box::pin(upload_blob(self.registry, &item, &mut feed, opened)).await?;
        self.tell(name, PushState::Pushed, summary.raw_size, summary.raw_size);
        let known = Known {
            digest: summary.digest,
            size: summary.size,
        };
        Ok((
            diff_id,
            Done {
                known,
                state: PushState::Pushed,
                sent,
            },
        ))
    }

    /// Asks the registry to take a blob over from another of its repositories. A registry that will not is no failure.
    async fn mount(&self, item: &str, known: &Known, index: &Index) -> Result<Mount, PushError> {
        let own = self.registry.repository();
        let remembered = index.places(&known.digest, self.registry.name());
        let named = self.options.mount_from.iter().map(String::as_str);
        let mut origins: Vec<&str> = Vec::new();
        for origin in remembered.chain(named).filter(|origin| *origin != own) {
            if origins.len() < MOUNTS_TRIED && !origins.contains(&origin) {
                origins.push(origin);
            }
        }
        let mut opened = Mount::Nothing;
        for origin in origins {
            let mut url = self.registry.url("blobs/uploads/");
            url.query_pairs_mut()
                .append_pair("mount", known.digest.as_str())
                .append_pair("from", origin);
            let mut ask = Ask::new(item, Method::POST, url);
            ask.mount_from = Some(origin);
            match self.registry.request(ask).await {
                Ok(answer) if answer.status == StatusCode::CREATED => return Ok(Mount::Mounted),
                Ok(answer) if answer.status == StatusCode::ACCEPTED => {
                    opened = Mount::Opened(self.registry.location(
                        item,
                        &answer.url,
                        &answer.headers,
                    )?);
                }
                Ok(answer) => tracing::debug!(item, origin, status = %answer.status, "not mounted"),
                // The token server may refuse a token for the other repository; the plain one still serves.
                Err(error @ PushError::Unauthorized { .. }) => {
                    tracing::debug!(item, origin, %error, "not mounted")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(opened)
    }

    async fn tag_is(&self, target: &Target, digest: &Digest) -> Result<bool, PushError> {
        let url = self.registry.url(&format!("manifests/{}", target.tag()));
        let ask = Ask::new("the manifest", Method::HEAD, url).header(header::ACCEPT, MANIFEST_TYPE);
        let answer = self.registry.request(ask).await?;
        Ok(answer.status == StatusCode::OK && named_digest(&answer) == Some(digest.as_str()))
    }

    async fn put_manifest(
        &self,
        target: &Target,
        manifest: &[u8],
        digest: &Digest,
    ) -> Result<(), PushError> {
        let item = "the manifest";
        self.tell("manifest", PushState::Pushing, 0, manifest.len() as u64);
        let url = self.registry.url(&format!("manifests/{}", target.tag()));
        let mut ask = Ask::new(item, Method::PUT, url);
        ask.headers.push((
            header::CONTENT_TYPE,
            HeaderValue::from_static(MANIFEST_TYPE),
        ));
        ask.body = Bytes::copy_from_slice(manifest);
        let answer = self.registry.request(ask).await?;
        if !answer.status.is_success() {
            return Err(self.registry.failed(item, &answer, 1));
        }
        check_digest(self.registry, item, &answer, digest)
    }

    /// Asks for the manifest and every blob by digest.
    async fn verify(
        &self,
        blobs: &[(&Digest, u64)],
        digest: &Digest,
        length: u64,
    ) -> Result<(), PushError> {
        let missing = |item: String, found: String| PushError::Incomplete {
            host: self.registry.name().to_string(),
            item,
            found,
        };
        let url = self.registry.url(&format!("manifests/{digest}"));
        let ask = Ask::new("the manifest", Method::HEAD, url).header(header::ACCEPT, MANIFEST_TYPE);
        let answer = self.registry.request(ask).await?;
        let is_same = named_digest(&answer).is_none_or(|found| found == digest.as_str());
        let size = answer
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if answer.status != StatusCode::OK || !is_same || size.is_some_and(|size| size != length) {
            let found = format!("status {} and another manifest or none", answer.status);
            return Err(missing(format!("manifest {digest}"), found));
        }
        let questions: Vec<_> = blobs
            .iter()
            .map(|(blob, size)| async move {
                let item = format!("blob {blob}");
                match self.registry.blob_size(&item, blob).await? {
                    None => Err(missing(item, "nothing".to_string())),
                    Some(Some(found)) if found != *size => {
                        Err(missing(item, format!("{found} bytes instead of {size}")))
                    }
                    Some(_) => Ok(()),
                }
            })
            .collect();
        stream::iter(questions)
            .buffer_unordered(CHECKS_AT_ONCE)
            .try_collect()
            .await
    }

    fn tell(&self, item: &str, state: PushState, current: u64, total: u64) {
        (self.progress)(Progress {
            item: item.to_string(),
            state,
            current,
            total,
        });
    }
}

/// How a try to mount ended.
enum Mount {
    Mounted,
    /// Not mounted, but an upload is open.
    Opened(Url),
    Nothing,
}

fn named_digest(answer: &Answer) -> Option<&str> {
    answer
        .headers
        .get("docker-content-digest")
        .and_then(|value| value.to_str().ok())
}

fn pushed_layer(
    layer: &Arc<dyn LayerSource>,
    done: &HashMap<&Digest, Done>,
) -> Option<PushedLayer> {
    let done = done.get(layer.diff_id())?;
    Some(PushedLayer {
        diff_id: layer.diff_id().clone(),
        digest: done.known.digest.clone(),
        size_bytes: done.known.size,
        state: done.state,
        sent_bytes: done.sent,
    })
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
