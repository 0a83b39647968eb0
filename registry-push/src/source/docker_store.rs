//! Finds images in dockerd's classic image store with the overlay2 driver.
//!
//! The layout (moby: `image/fs.go`, `layer/filestore.go`, `reference/store.go`):
//! `image/overlay2/repositories.json`, `imagedb/content/sha256/<id>`, `layerdb/sha256/<chain id>/{cache-id,size,tar-split.json.gz}`
//! and `overlay2/<cache-id>/diff`. Reads only; takes no lock, as dockerd writes each file by rename. An image that is deleted
//! while it is read ends in an error, never in a wrong image, because every digest is checked.

use super::overlay_layer::OverlayLayer;
use super::{ImageSource, LayerSource, SourceError, config_diff_ids};
use crate::digest::Digest;
use crate::limits::{CONFIG_BYTES, REPOSITORIES_BYTES, SMALL_FILE_BYTES};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// dockerd's data root with an overlay2 image store in it.
#[derive(Debug, Clone)]
pub struct DockerStore {
    images: PathBuf,
    overlays: PathBuf,
}

#[derive(serde::Deserialize)]
struct Repositories {
    #[serde(rename = "Repositories", default)]
    repositories: HashMap<String, HashMap<String, String>>,
}

impl DockerStore {
    /// Opens the store below dockerd's data root (`/var/lib/docker`). Fails when there is none of this kind.
    pub fn open(docker_root: &Path) -> Result<DockerStore, SourceError> {
        let images = docker_root.join("image/overlay2");
        let overlays = docker_root.join("overlay2");
        if !images.join("imagedb").is_dir() || !overlays.is_dir() {
            return Err(SourceError::NoStore {
                root: docker_root.to_path_buf(),
            });
        }
        Ok(DockerStore { images, overlays })
    }

    /// Finds an image by reference (`name`, `name:tag`, `host/name:tag`, `name@sha256:…`), id, or unique start of an id, and
    /// checks that its layers are there. Blocks on a few small files.
    pub fn image(&self, name_or_id: &str) -> Result<ImageSource, SourceError> {
        let id = self.resolve(name_or_id)?;
        let path = self.images.join("imagedb/content/sha256").join(id.hex());
        let missing = || SourceError::NoImage {
            name: name_or_id.to_string(),
        };
        let config = read_bounded(&path, CONFIG_BYTES)?.ok_or_else(missing)?;
        if Digest::of(&config) != id {
            return Err(SourceError::Damaged {
                path,
                reason: "its content is not what its name says".to_string(),
            });
        }
        let mut layers: Vec<Arc<dyn LayerSource>> = Vec::new();
        let mut chain: Option<Digest> = None;
        for diff_id in config_diff_ids(&config)? {
            let this = match chain {
                None => diff_id.clone(),
                // image-spec, config.md: ChainID(L0|...|Ln) = Digest(ChainID(L0|...|Ln-1) + " " + DiffID(Ln)).
                Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
            };
            layers.push(Arc::new(self.layer(&this, diff_id)?));
            chain = Some(this);
        }
        ImageSource::new(config, layers)
    }

    fn layer(&self, chain: &Digest, diff_id: Digest) -> Result<OverlayLayer, SourceError> {
        let entry = self.images.join("layerdb/sha256").join(chain.hex());
        let missing = |path: PathBuf| SourceError::NoLayer {
            layer: diff_id.clone(),
            missing: path,
        };
        let path = entry.join("cache-id");
        let cache_id =
            read_bounded(&path, SMALL_FILE_BYTES)?.ok_or_else(|| missing(path.clone()))?;
        let cache_id = String::from_utf8_lossy(&cache_id).trim().to_string();
        let safe = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if cache_id.is_empty() || !cache_id.chars().all(safe) {
            return Err(SourceError::Damaged {
                path,
                reason: "not a cache id".to_string(),
            });
        }
        let size = read_bounded(&entry.join("size"), SMALL_FILE_BYTES)?;
        let size_hint = size.and_then(|text| String::from_utf8_lossy(&text).trim().parse().ok());
        let directory = self.overlays.join(cache_id).join("diff");
        let record = entry.join("tar-split.json.gz");
        for part in [&directory, &record] {
            if !part.exists() {
                return Err(missing(part.clone()));
            }
        }
        Ok(OverlayLayer {
            diff_id,
            size_hint,
            directory,
            record,
        })
    }

    fn resolve(&self, name: &str) -> Result<Digest, SourceError> {
        if let Ok(id) = Digest::parse(name) {
            return Ok(id);
        }
        let is_hex =
            !name.is_empty() && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if is_hex && name.len() == 64 {
            return Digest::parse(&format!("sha256:{name}")).map_err(|_| SourceError::NoImage {
                name: name.to_string(),
            });
        }
        if let Some(id) = self.by_name(name)? {
            return Ok(id);
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        let is_prefix = !prefix.is_empty()
            && prefix
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if is_prefix && let Some(id) = self.by_prefix(prefix, name)? {
            return Ok(id);
        }
        Err(SourceError::NoImage {
            name: name.to_string(),
        })
    }

    fn by_name(&self, name: &str) -> Result<Option<Digest>, SourceError> {
        let path = self.images.join("repositories.json");
        let Some(text) = read_bounded(&path, REPOSITORIES_BYTES)? else {
            return Ok(None);
        };
        let damaged = |reason: String| SourceError::Damaged {
            path: path.clone(),
            reason,
        };
        let known: Repositories =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let (repository, reference) = familiar(name);
        let Some(id) = known
            .repositories
            .get(&repository)
            .and_then(|tags| tags.get(&reference))
        else {
            return Ok(None);
        };
        Digest::parse(id)
            .map(Some)
            .map_err(|error| damaged(error.to_string()))
    }

    fn by_prefix(&self, prefix: &str, name: &str) -> Result<Option<Digest>, SourceError> {
        let path = self.images.join("imagedb/content/sha256");
        let mut found = None;
        for entry in std::fs::read_dir(&path).map_err(SourceError::io("list", &path))? {
            let entry = entry.map_err(SourceError::io("list", &path))?;
            let file = entry.file_name();
            let Some(id) = file
                .to_str()
                .and_then(|hex| Digest::parse(&format!("sha256:{hex}")).ok())
            else {
                continue;
            };
            if id.hex().starts_with(prefix) && found.replace(id).is_some() {
                return Err(SourceError::Ambiguous {
                    name: name.to_string(),
                });
            }
        }
        Ok(found)
    }
}

/// Docker's familiar form of a reference, by which `repositories.json` is keyed: repository, and reference with tag or digest.
pub(super) fn familiar(name: &str) -> (String, String) {
    let short = [
        "docker.io/library/",
        "index.docker.io/library/",
        "docker.io/",
        "index.docker.io/",
    ]
    .iter()
    .find_map(|prefix| name.strip_prefix(prefix))
    .or_else(|| name.strip_prefix("library/"))
    .unwrap_or(name);
    if let Some((repository, digest)) = short.split_once('@') {
        let repository = split_tag(repository).0;
        return (repository.to_string(), format!("{repository}@{digest}"));
    }
    let (repository, tag) = split_tag(short);
    (
        repository.to_string(),
        format!("{repository}:{}", tag.unwrap_or("latest")),
    )
}

/// Repository and tag; the colon of a port is no tag's.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        Some(_) | None => (name, None),
    }
}

/// A whole small file; `None` when it does not exist.
fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, SourceError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SourceError::io("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(SourceError::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(SourceError::TooLong {
            path: path.to_path_buf(),
            limit,
        });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
#[path = "docker_store_tests.rs"]
mod tests;
