//! Images in OCI layouts and `docker save` archives, as a directory or a tar, and in containerd's content store, which is such a
//! directory without its index (image-spec 1.1: image-layout.md, image-index.md, manifest.md).
//!
//! Compressed layers are sent as they are, and if all are, the manifest too, so that digests stay what they were. Uncompressed ones,
//! as `docker save` writes them, are compressed on the way.

mod whole;

use super::blob_layer::{BlobLayer, Kind};
use super::blobs::Blobs;
use super::docker_save;
use super::{ImageSource, LayerSource, Packed, SourceError, config_diff_ids};
use crate::digest::Digest;
use crate::limits::{CONFIG_BYTES, INDEX_DEPTH, LAYERS, MANIFEST_BYTES};
use crate::manifest::{DOCKER_TYPE, Manifest, OCI_TYPE, Packing};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
pub use whole::{Content, IndexSource, Statement};

/// containerd's content below its root (containerd, plugins/content/local).
const CONTAINERD_CONTENT: &str = "io.containerd.content.v1.content";

/// A directory or tar with images in it.
#[derive(Debug, Clone)]
pub struct Layout {
    blobs: Arc<Blobs>,
    path: PathBuf,
}

/// Operating system and processor of an image, as Go names them: `linux/arm64`, `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, ...
    pub architecture: String,
    /// `v7`, where it matters.
    pub variant: Option<String>,
}

impl Default for Platform {
    /// This machine's.
    fn default() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Platform {
            os: "linux".to_string(),
            architecture: architecture.to_string(),
            variant: None,
        }
    }
}

impl std::str::FromStr for Platform {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Platform, SourceError> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_string())),
            _ => ("", "", None),
        };
        if os.is_empty() || architecture.is_empty() {
            let text = text.chars().take(100).collect();
            return Err(SourceError::Platform { text });
        }
        Ok(Platform {
            os: os.to_string(),
            architecture: architecture.to_string(),
            variant,
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    platform: Option<PlatformOf>,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

#[derive(serde::Deserialize)]
struct PlatformOf {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

/// An index or a manifest.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// What becomes of a manifest on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Kept if all layers are compressed, else made anew in whatever form fits.
    Any,
    /// The same, in OCI's form.
    Oci,
    /// Kept, byte for byte: something names it by its digest.
    Kept,
}

impl Layout {
    /// Opens an OCI layout or the output of `docker save`, as a directory or a tar file. Blocks: a tar's headers are read once.
    pub fn open(path: &Path) -> Result<Layout, SourceError> {
        Ok(Layout {
            blobs: Arc::new(Blobs::open(path)?),
            path: path.to_path_buf(),
        })
    }

    /// The same from an open tar file that can be read at any place; `name` is for messages.
    pub fn from_file(file: File, name: &Path) -> Result<Layout, SourceError> {
        Ok(Layout {
            blobs: Arc::new(Blobs::Tar(Blobs::tar(file, name)?)),
            path: name.to_path_buf(),
        })
    }

    /// Opens containerd's content store below its root (`/var/lib/containerd`). Its images have no names there: [`Layout::by_digest`].
    pub fn containerd(root: &Path) -> Result<Layout, SourceError> {
        let content = root.join(CONTAINERD_CONTENT);
        if !content.join("blobs").is_dir() {
            return Err(SourceError::NoContent {
                root: root.to_path_buf(),
            });
        }
        Layout::open(&content)
    }

    /// The image of this name, or the only one there is. Blocks on a few small files.
    pub fn image(
        &self,
        name: Option<&str>,
        platform: &Platform,
    ) -> Result<ImageSource, SourceError> {
        if let Some(digest) = name.and_then(|name| Digest::parse(name).ok()) {
            return self.by_digest(&digest, platform);
        }
        // `docker save` writes both since Docker 25; its own list knows all names.
        if let Some(image) = docker_save::image(&self.blobs, name)? {
            return Ok(image);
        }
        let index = self.blobs.small("index.json", MANIFEST_BYTES)?;
        let index = index.ok_or_else(|| SourceError::NoLayout {
            path: self.path.clone(),
        })?;
        let index = self.parse("index.json", &index)?;
        let all = index.manifests.unwrap_or_default();
        let fitting: Vec<&Descriptor> = all
            .iter()
            .filter(|entry| name.is_none_or(|name| entry.is_named(name)))
            .collect();
        match fitting[..] {
            [] => Err(SourceError::NoImage {
                name: name.unwrap_or("").to_string(),
            }),
            [one] => self.descend(one, platform, INDEX_DEPTH),
            // Several platforms of one image, written without an index around them.
            _ if name.is_some() || fitting.iter().all(|entry| entry.platform.is_some()) => {
                self.choose(&fitting, platform, INDEX_DEPTH)
            }
            _ => Err(SourceError::Ambiguous {
                name: name.unwrap_or("").to_string(),
            }),
        }
    }

    /// The image whose manifest or index has this digest. Blocks on a few small files.
    pub fn by_digest(
        &self,
        digest: &Digest,
        platform: &Platform,
    ) -> Result<ImageSource, SourceError> {
        self.descend(&Descriptor::of(digest), platform, INDEX_DEPTH)
    }

    fn choose(
        &self,
        entries: &[&Descriptor],
        platform: &Platform,
        depth: u32,
    ) -> Result<ImageSource, SourceError> {
        let chosen = entries.iter().find(|entry| entry.is_for(platform));
        // Attestations are for the platform `unknown/unknown`.
        let images = || entries.iter().filter(|entry| !entry.is_attestation());
        let chosen = chosen.or_else(|| match images().collect::<Vec<_>>()[..] {
            [one] if one.platform.is_none() => Some(one),
            _ => None,
        });
        match chosen {
            Some(entry) => self.descend(entry, platform, depth),
            None => Err(SourceError::NoPlatform {
                wanted: platform.to_string(),
                found: images().filter_map(|entry| entry.shown()).collect(),
            }),
        }
    }

    fn descend(
        &self,
        entry: &Descriptor,
        platform: &Platform,
        depth: u32,
    ) -> Result<ImageSource, SourceError> {
        let digest = self.digest("index", &entry.digest)?;
        let name = blob_name(&digest);
        let bytes = self.checked(&digest, MANIFEST_BYTES)?;
        let document = self.parse(&name, &bytes)?;
        if let Some(entries) = document.manifests {
            if depth == 0 {
                return Err(self.damaged(&name, "indexes within indexes".to_string()));
            }
            let entries: Vec<&Descriptor> = entries.iter().collect();
            return self.choose(&entries, platform, depth - 1);
        }
        self.of_manifest(entry, bytes, document, Form::Any)
    }

    fn of_manifest(
        &self,
        entry: &Descriptor,
        bytes: Vec<u8>,
        document: Document,
        form: Form,
    ) -> Result<ImageSource, SourceError> {
        let name = blob_name(&Digest::of(&bytes));
        let Some(config) = document.config else {
            return Err(self.damaged(&name, "neither an index nor a manifest".to_string()));
        };
        // BuildKit writes null for the layers of an image that has none. The specification wants a list, so that manifest is made anew.
        let is_lawful = document.layers.is_some();
        let layers = document.layers.unwrap_or_default();
        let media_type = match document.media_type {
            Some(named) if !named.is_empty() => named,
            _ if !entry.media_type.is_empty() => entry.media_type.clone(),
            _ => OCI_TYPE.to_string(),
        };
        if media_type != OCI_TYPE && media_type != DOCKER_TYPE {
            return Err(SourceError::Unsupported { media_type });
        }
        let mut image = self.assemble(&name, &config, &layers, form)?;
        image.annotations = document.annotations.unwrap_or_default();
        image.as_oci = form == Form::Oci;
        let is_kept = is_lawful || form == Form::Kept;
        if is_kept && image.layers.iter().all(|layer| layer.packed().is_some()) {
            image.manifest = Some(Manifest { media_type, bytes });
        }
        Ok(image)
    }

    fn assemble(
        &self,
        name: &str,
        config: &Descriptor,
        layers: &[Descriptor],
        form: Form,
    ) -> Result<ImageSource, SourceError> {
        let config = self.checked(&self.digest(name, &config.digest)?, CONFIG_BYTES)?;
        let diff_ids = config_diff_ids(&config)?;
        if layers.len() != diff_ids.len() || layers.len() > LAYERS {
            let reason = format!("{} layers for {} diffIDs", layers.len(), diff_ids.len());
            return Err(self.damaged(name, reason));
        }
        let layers = layers.iter().zip(diff_ids).map(|(layer, diff_id)| {
            let packing = packing(&layer.media_type)?;
            self.layer(name, layer, diff_id, packing, form)
        });
        let layers = layers.collect::<Result<Vec<_>, SourceError>>()?;
        ImageSource::new(config, layers)
    }

    fn layer(
        &self,
        name: &str,
        layer: &Descriptor,
        diff_id: Digest,
        packing: Packing,
        form: Form,
    ) -> Result<Arc<dyn LayerSource>, SourceError> {
        let digest = self.digest(name, &layer.digest)?;
        let kind = match (packing, form) {
            (Packing::Tar, Form::Any | Form::Oci) => Kind::Tar,
            (Packing::Tar, Form::Kept)
            | (Packing::Gzip | Packing::Zstd | Packing::Statement, _) => Kind::Packed(Packed {
                digest: digest.clone(),
                size: layer.size,
                packing,
            }),
        };
        Ok(Arc::new(BlobLayer {
            diff_id,
            blobs: self.blobs.clone(),
            name: blob_name(&digest),
            kind,
        }))
    }

    /// A small blob that is what its name says.
    fn checked(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, SourceError> {
        let name = blob_name(digest);
        let bytes = self.blobs.small(&name, limit)?;
        let bytes = bytes.ok_or_else(|| SourceError::NoImage {
            name: digest.to_string(),
        })?;
        if Digest::of(&bytes) != *digest {
            return Err(self.damaged(&name, "its content is not what its name says".to_string()));
        }
        Ok(bytes)
    }

    fn digest(&self, name: &str, text: &str) -> Result<Digest, SourceError> {
        Digest::parse(text).map_err(|error| self.damaged(name, error.to_string()))
    }

    fn parse(&self, name: &str, bytes: &[u8]) -> Result<Document, SourceError> {
        serde_json::from_slice(bytes).map_err(|error| self.damaged(name, error.to_string()))
    }

    fn damaged(&self, name: &str, reason: String) -> SourceError {
        SourceError::Damaged {
            path: self.blobs.place(name),
            reason,
        }
    }
}

impl Descriptor {
    /// Of whatever has this digest.
    fn of(digest: &Digest) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: digest.to_string(),
            size: 0,
            platform: None,
            annotations: None,
        }
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        let value = self.annotations.as_ref()?.get(name)?;
        Some(value.as_str())
    }

    /// By the annotations of containerd (whole name) and of the image-spec (tag or name).
    fn is_named(&self, name: &str) -> bool {
        let annotations = self.annotations.iter().flatten();
        let names = annotations.filter(|(key, _)| {
            matches!(
                key.as_str(),
                "io.containerd.image.name" | "org.opencontainers.image.ref.name"
            )
        });
        let wanted = super::docker_store::familiar(name);
        names
            .into_iter()
            .any(|(_, value)| value == name || super::docker_store::familiar(value) == wanted)
    }

    fn is_for(&self, platform: &Platform) -> bool {
        self.platform.as_ref().is_some_and(|own| {
            own.os == platform.os
                && own.architecture == platform.architecture
                && platform
                    .variant
                    .as_ref()
                    .is_none_or(|variant| own.variant.as_ref() == Some(variant))
        })
    }

    fn is_attestation(&self) -> bool {
        self.platform
            .as_ref()
            .is_some_and(|platform| platform.os == "unknown")
    }

    fn shown(&self) -> Option<String> {
        let platform = self.platform.as_ref()?;
        let shown = Platform {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
        };
        Some(
            shown
                .to_string()
                .chars()
                .filter(|c| !c.is_control())
                .collect(),
        )
    }
}

/// `blobs/sha256/<hex>`.
fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn packing(media_type: &str) -> Result<Packing, SourceError> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Packing::Tar),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Packing::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd" => Ok(Packing::Zstd),
        other => Err(SourceError::Unsupported {
            media_type: other.chars().take(200).collect(),
        }),
    }
}
