//! The push of an image that the repository has already: a few questions, whatever the number of layers.
//!
//! A registry takes a manifest only when it has all its blobs, and garbage collection keeps what a manifest names. So a manifest that
//! answers by digest, and that an earlier push of ours has proved complete in this repository, is not proved blob by blob again: the config
//! and some layers drawn by lot are asked for. If one of them is gone, everything is asked for, and what is missing is sent.

use super::layer::key;
use super::{AllDone, Done, Run, pushed};
use crate::digest::Digest;
use crate::error::PushError;
use crate::index::{Known, MANIFEST_OF};
use crate::limits::UNCHANGED_CHECKS;
use crate::manifest::Manifest;
use crate::report::{Moved, Progress, PushState, Pushed};
use crate::source::{ImageSource, LayerSource};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

/// What the image became when it was pushed before.
struct Before {
    manifest: Manifest,
    digest: Digest,
    done: AllDone,
}

impl<P: Fn(Progress) + Send + Sync> Run<'_, P> {
    /// `None` when there is more to do.
    pub(super) async fn unchanged(
        &self,
        image: &ImageSource,
        image_id: &Digest,
        different: &[&Arc<dyn LayerSource>],
        tags: &[String],
    ) -> Result<Option<Pushed>, PushError> {
        if self.options.ask_for_every_blob {
            return Ok(None);
        }
        let Some(before) = self.before(image, image_id, different) else {
            return Ok(None);
        };
        let mut missing = Vec::new();
        for tag in tags {
            if !self.names(tag, &before.digest, &before.manifest).await? {
                missing.push(tag.as_str());
            }
        }
        let is_under_no_tag = missing.len() == tags.len();
        let is_there = !is_under_no_tag
            || self
                .names(before.digest.as_str(), &before.digest, &before.manifest)
                .await?;
        if !is_there || !self.some_are_there(image, image_id, &before).await? {
            return Ok(None);
        }
        let (config, length) = (
            image.config.len() as u64,
            before.manifest.bytes.len() as u64,
        );
        for layer in different {
            let total = layer.size_hint().unwrap_or(0);
            let blob = before.done.get(&key(&***layer));
            let moved = Moved {
                raw: total,
                compressed: blob.map_or(0, |done| done.known.size),
                sent: 0,
            };
            self.tell(layer.diff_id().as_str(), PushState::Exists, moved, total);
        }
        self.tell("config", PushState::Exists, Moved::plain(config, 0), config);
        let mut sent = 0;
        if missing.is_empty() {
            let moved = Moved::plain(length, 0);
            self.tell("manifest", PushState::Exists, moved, length);
        } else {
            sent = self
                .write(&before.manifest, &before.digest, &missing)
                .await?;
        }
        Ok(Some(pushed(
            image,
            before.manifest,
            before.digest,
            &before.done,
            sent,
        )))
    }

    /// From the index, if it knows everything.
    fn before(
        &self,
        image: &ImageSource,
        image_id: &Digest,
        different: &[&Arc<dyn LayerSource>],
    ) -> Option<Before> {
        let mut done: AllDone = HashMap::new();
        for layer in different {
            let known = self.known(&***layer)?;
            let state = PushState::Exists;
            done.insert(
                key(&***layer),
                Done {
                    known,
                    state,
                    sent: 0,
                },
            );
        }
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = index.blob(image_id, &format!("{MANIFEST_OF}{}", self.codec_id))?;
        // As it was written the last time: a registry may have taken OCI's form alone.
        let (manifest, digest) = [false, true]
            .into_iter()
            .map(|as_oci| self.manifest(image, image_id, &done, as_oci))
            .map(|manifest| {
                let digest = Digest::of(&manifest.bytes);
                (manifest, digest)
            })
            .find(|(_, digest)| *digest == remembered.digest)?;
        let is_proved = index
            .places(&digest, self.target.registry())
            .any(|place| place == self.target.repository());
        is_proved.then_some(Before {
            manifest,
            digest,
            done,
        })
    }

    /// Asks for the config and some of the layers.
    async fn some_are_there(
        &self,
        image: &ImageSource,
        image_id: &Digest,
        before: &Before,
    ) -> Result<bool, PushError> {
        let mut layers: Vec<&Known> = before.done.values().map(|done| &done.known).collect();
        let config = Known {
            digest: image_id.clone(),
            size: image.config.len() as u64,
        };
        let mut asked = vec![&config];
        while asked.len() < UNCHANGED_CHECKS && !layers.is_empty() {
            let lot = getrandom::u32().unwrap_or(0) as usize % layers.len();
            asked.push(layers.swap_remove(lot));
        }
        let questions = asked.into_iter().map(|known| self.is_there(known));
        let answers = futures_util::future::try_join_all(questions).await?;
        Ok(answers.into_iter().all(|is_there| is_there))
    }
}
