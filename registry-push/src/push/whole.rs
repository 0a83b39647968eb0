//! The push of all that a digest names: of an index, each of its manifests with its blobs, then the index under each tag.
//!
//! Knows nothing of what an index is for.

use super::{Push, Run, open_index, wanted_of};
use crate::digest::Digest;
use crate::error::PushError;
use crate::report::{Moved, Progress, PushState, Pushed};
use crate::source::{Content, IndexSource};
use std::collections::HashSet;

impl Push {
    /// Pushes an image, or an index with all its images: [`push`](crate::push).
    pub async fn content(
        self,
        content: Content,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<Pushed, PushError> {
        match content {
            Content::Image(image) => self.image(image, progress).await,
            Content::Index(index) => self.index(index, progress).await,
        }
    }

    async fn index(
        self,
        source: IndexSource,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<Pushed, PushError> {
        let Push { base, ahead } = self;
        // Which of several images has a layer is not known ahead; what is on its way holds the layer's turn.
        drop(ahead);
        let base = &*base;
        base.registry.at.settle().await?;
        let wanted: HashSet<Digest> = source.manifests.iter().flat_map(wanted_of).collect();
        let known = open_index(base.options.index.clone(), wanted.clone()).await;
        let run = Run::new(base, known, wanted, &progress);
        let mut all: Vec<Pushed> = Vec::new();
        // One after the other: a blob that several of them have is sent once.
        for image in &source.manifests {
            all.push(Box::pin(run.image(image, image.id(), &[])).await?);
        }
        let manifests: Vec<(Digest, Vec<u8>)> = all
            .iter()
            .map(|pushed| (pushed.digest.clone(), pushed.manifest_bytes.clone()))
            .collect();
        let index = source.with(&manifests);
        let digest = Digest::of(&index.bytes);
        let mut missing = Vec::new();
        for tag in &base.tags {
            if !run.names(tag, &digest, &index).await? {
                missing.push(tag.as_str());
            }
        }
        let length = index.bytes.len() as u64;
        let mut sent_bytes = all.iter().map(|pushed| pushed.sent_bytes).sum();
        if missing.is_empty() {
            run.tell(
                "manifest",
                PushState::Exists,
                Moved::plain(length, 0),
                length,
            );
        } else {
            sent_bytes += run.write(&index, &digest, &missing).await?;
        }
        Ok(Pushed {
            digest,
            size_bytes: length + all.iter().map(|pushed| pushed.size_bytes).sum::<u64>(),
            manifest_bytes: index.bytes,
            layers: all.into_iter().flat_map(|pushed| pushed.layers).collect(),
            sent_bytes,
        })
    }
}
