//! The list of images in the output of `docker save`: `manifest.json` (moby, image/tarexport).
//!
//! Layers are plain tars in Docker's own output; other tools write them compressed.

use super::blob_layer::{BlobLayer, Kind};
use super::blobs::Blobs;
use super::docker_store::familiar;
use super::{ImageSource, LayerSource, Packed, SourceError, config_diff_ids};
use crate::digest::Digest;
use crate::limits::{CONFIG_BYTES, LAYERS, MANIFEST_BYTES};
use crate::manifest::Packing;
use std::sync::Arc;

const LIST: &str = "manifest.json";
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// The image of this name, or the only one there is; `None` when there is no such list.
pub(super) fn image(
    blobs: &Arc<Blobs>,
    name: Option<&str>,
) -> Result<Option<ImageSource>, SourceError> {
    let Some(list) = blobs.small(LIST, MANIFEST_BYTES)? else {
        return Ok(None);
    };
    let entries: Vec<Entry> =
        serde_json::from_slice(&list).map_err(|error| SourceError::Damaged {
            path: blobs.place(LIST),
            reason: error.to_string(),
        })?;
    let fitting: Vec<&Entry> = entries
        .iter()
        .filter(|entry| name.is_none_or(|name| entry.is_named(name)))
        .collect();
    let name = || name.unwrap_or("").to_string();
    match fitting[..] {
        [] => Err(SourceError::NoImage { name: name() }),
        [one] => assemble(blobs, one).map(Some),
        _ => Err(SourceError::Ambiguous { name: name() }),
    }
}

fn assemble(blobs: &Arc<Blobs>, entry: &Entry) -> Result<ImageSource, SourceError> {
    let damaged = |reason: String| SourceError::Damaged {
        path: blobs.place(LIST),
        reason,
    };
    let config = blobs
        .small(&entry.config, CONFIG_BYTES)?
        .ok_or_else(|| damaged(format!("{:?} is not there", entry.config)))?;
    let diff_ids = config_diff_ids(&config)?;
    let names = entry.layers.as_deref().unwrap_or_default();
    if names.len() != diff_ids.len() || names.len() > LAYERS {
        let reason = format!("{} layers for {} diffIDs", names.len(), diff_ids.len());
        return Err(damaged(reason));
    }
    let layers = names.iter().zip(diff_ids).map(|(name, diff_id)| {
        let kind = kind(blobs, name, &diff_id)?;
        let layer = BlobLayer {
            diff_id,
            blobs: blobs.clone(),
            name: name.clone(),
            kind,
        };
        Ok(Arc::new(layer) as Arc<dyn LayerSource>)
    });
    let layers = layers.collect::<Result<Vec<_>, SourceError>>()?;
    ImageSource::new(config, layers)
}

/// By the first bytes, and by a name that is a digest.
fn kind(blobs: &Blobs, name: &str, diff_id: &Digest) -> Result<Kind, SourceError> {
    let missing = || SourceError::NoLayer {
        layer: diff_id.clone(),
        missing: blobs.place(name),
    };
    let mut slice = blobs.find(name)?.ok_or_else(missing)?;
    let size = slice.length();
    let mut magic = [0; 4];
    let length = slice.fill(&mut magic)?;
    let magic = &magic[..length];
    let digest = name
        .strip_prefix("blobs/sha256/")
        .and_then(|hex| Digest::parse(&format!("sha256:{hex}")).ok());
    let packed = |digest, packing| {
        Kind::Packed(Packed {
            digest,
            size,
            packing,
        })
    };
    Ok(match digest {
        _ if !magic.starts_with(&GZIP_MAGIC) && magic != ZSTD_MAGIC => Kind::Tar,
        Some(digest) if magic == ZSTD_MAGIC => packed(digest, Packing::Zstd),
        Some(digest) => packed(digest, Packing::Gzip),
        None if magic == ZSTD_MAGIC => {
            let media_type = format!("zstd in {name:?}");
            return Err(SourceError::Unsupported { media_type });
        }
        None => Kind::Gzip,
    })
}

impl Entry {
    fn is_named(&self, name: &str) -> bool {
        let wanted = familiar(name);
        self.repo_tags
            .iter()
            .flatten()
            .any(|tag| tag == name || familiar(tag) == wanted)
    }
}
