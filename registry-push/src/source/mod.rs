//! Where images and their layers come from: one trait, one module per kind of store.
//!
//! Knows nothing of compression or registries.

mod beneath;
mod blob_layer;
mod blobs;
mod docker_save;
mod docker_store;
mod export;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod growing;
mod ingest;
mod layout;
mod overlay_layer;
mod tar_split;

use crate::blame::Blame;
use crate::digest::Digest;
use crate::manifest::{Manifest, Packing};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

pub use docker_store::DockerStore;
pub use export::Export;
pub(crate) use export::Looker;
pub use layout::{Content, IndexSource, Layout, Platform, Statement};

/// An image ready to be pushed: its config, byte for byte, and its layers from the lowest up.
#[derive(Debug, Clone)]
pub struct ImageSource {
    /// The config blob; its digest is the image's id.
    pub(crate) config: Vec<u8>,
    /// One per diffID of the config, in its order.
    pub(crate) layers: Vec<Arc<dyn LayerSource>>,
    /// The manifest that came with it, if each layer is the blob that it names.
    pub(crate) manifest: Option<Manifest>,
    /// Of a manifest that is made anew: the annotations of the one that came with it.
    pub(crate) annotations: BTreeMap<String, String>,
    /// A manifest that is made anew is OCI's, as an OCI index wants its manifests.
    pub(crate) as_oci: bool,
}

impl ImageSource {
    /// Joins a config with its layers. Fails when their diffIDs are not those of the config.
    pub fn new(
        config: Vec<u8>,
        layers: Vec<Arc<dyn LayerSource>>,
    ) -> Result<ImageSource, SourceError> {
        let wanted = config_diff_ids(&config)?;
        if wanted.len() != layers.len()
            || !wanted
                .iter()
                .zip(&layers)
                .all(|(id, layer)| id == layer.diff_id())
        {
            return Err(SourceError::Config {
                reason: "its layers are not the ones given".to_string(),
            });
        }
        Ok(ImageSource {
            config,
            layers,
            manifest: None,
            annotations: BTreeMap::new(),
            as_oci: false,
        })
    }

    /// Digest of the config.
    pub fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    /// The config blob.
    pub fn config(&self) -> &[u8] {
        &self.config
    }

    /// diffIDs from the lowest layer up.
    pub fn diff_ids(&self) -> impl Iterator<Item = &Digest> {
        self.layers.iter().map(|layer| layer.diff_id())
    }
}

/// One layer that can be read as an uncompressed tar, any number of times, giving the same bytes each time.
pub trait LayerSource: Send + Sync + std::fmt::Debug {
    /// SHA-256 of the uncompressed tar. The pipeline checks it, unless the reader [proves itself](LayerReader::proves_itself).
    fn diff_id(&self) -> &Digest;

    /// About how many bytes it has, for progress only.
    fn size_hint(&self) -> Option<u64>;

    /// The blob that the layer is already, if its store keeps it so. Then [`LayerSource::open`] gives the blob's bytes, and they
    /// are sent as they are.
    fn packed(&self) -> Option<&Packed> {
        None
    }

    /// Where it lies, if in a store that can be seen making it: what was sent of it before the store had it is known by this. May block on
    /// a look at one file.
    fn place(&self) -> Option<Place> {
        None
    }

    /// Whether this is the digest that its tar must have. Whoever cannot know it beforehand keeps it for later.
    fn is_proved_by(&self, found: &Digest) -> bool {
        found == self.diff_id()
    }

    /// Starts reading. Called on a thread that may block.
    fn open(&self) -> Result<Box<dyn LayerReader>, SourceError>;
}

/// A layer that is read while its store still makes it.
pub(crate) trait Growing: LayerSource {
    /// [`Place::key`] of the layer that it will be.
    fn place_key(&self) -> String;

    /// Whether it has become this layer of the store. May block.
    fn is(&self, layer: &dyn LayerSource) -> bool;

    /// Whether it was read to its very end, and what was read has this digest if the reader does not prove it.
    fn was_read_as(&self, diff_id: &Digest) -> bool;

    /// Ends whoever waits for more of it.
    fn give_up(&self);
}

/// A layer's place in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In an overlay2 store of dockerd's.
    Overlay {
        /// `overlay2/<cache-id>/diff`.
        directory: PathBuf,
        /// `layerdb/sha256/<chain>/tar-split.json.gz`.
        record: PathBuf,
    },
    /// In a file of its own, as an uncompressed tar.
    File {
        /// Of the file system.
        device: u64,
        /// Of the file, which keeps it when it is renamed.
        inode: u64,
    },
}

impl Place {
    /// What whoever sends the layer before its store has it, and whoever sends it afterwards, both call it by.
    pub(crate) fn key(&self) -> String {
        match self {
            Place::Overlay { directory, .. } => directory.display().to_string(),
            Place::File { device, inode } => format!("inode {device}:{inode}"),
        }
    }

    fn of_file(file: &std::fs::Metadata) -> Place {
        use std::os::unix::fs::MetadataExt as _;
        Place::File {
            device: file.dev(),
            inode: file.ino(),
        }
    }
}

/// A layer that its store keeps as a blob fit for a registry. The pipeline checks the digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Digest of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// How it is compressed.
    pub packing: Packing,
}

/// A layer being read.
pub trait LayerReader: Send {
    /// Fills some of `buffer` and says how much; 0 at the end of the layer. May block.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError>;

    /// Whether the reader itself checks every byte against what was recorded when the diffID was computed, and fails if one is
    /// another. Then the pipeline computes no diffID.
    fn proves_itself(&self) -> bool {
        false
    }
}

/// An image or layer that cannot be read as it should be.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No overlay2 image store in the directory.
    #[error("{root:?} has no overlay2 image store")]
    NoStore {
        /// Data root that was given.
        root: PathBuf,
    },
    /// No content store of containerd's in the directory.
    #[error("{root:?} has no content store of containerd's")]
    NoContent {
        /// Root that was given.
        root: PathBuf,
    },
    /// Neither an OCI layout nor the output of `docker save`.
    #[error("{path:?} is neither an OCI layout nor a docker-save archive")]
    NoLayout {
        /// Which.
        path: PathBuf,
    },
    /// The text names no platform.
    #[error("{text:?} is no platform")]
    Platform {
        /// As given.
        text: String,
    },
    /// An image for other platforms only.
    #[error("the image is not for {wanted}, but for {}", found.join(", "))]
    NoPlatform {
        /// As asked for.
        wanted: String,
        /// What there is.
        found: Vec<String>,
    },
    /// A kind of content that is no part of an image, or that cannot be sent.
    #[error("{media_type:?} cannot be pushed as part of an image")]
    Unsupported {
        /// Its media type.
        media_type: String,
    },
    /// The store has no such image.
    #[error("no image {name:?} in the store")]
    NoImage {
        /// As asked for.
        name: String,
    },
    /// An id prefix that several images share, or no name where there are several images.
    #[error("{name:?} is not the name of one image alone")]
    Ambiguous {
        /// As asked for.
        name: String,
    },
    /// A part of the store is not there.
    #[error("layer {layer} is not complete in the store: {missing:?} is missing")]
    NoLayer {
        /// diffID.
        layer: Digest,
        /// What was looked for.
        missing: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {path:?}")]
    Io {
        /// Verb.
        action: &'static str,
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of the store is larger than its kind can be.
    #[error("{path:?} has more than {limit} bytes")]
    TooLong {
        /// Which.
        path: PathBuf,
        /// Bound.
        limit: u64,
    },
    /// A file of the store does not hold what it should.
    #[error("{path:?} is damaged: {reason}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How.
        reason: String,
    },
    /// The image config is not usable.
    #[error("the image's config is not usable: {reason}")]
    Config {
        /// How.
        reason: String,
    },
    /// A name in the layer's description that leads out of the layer.
    #[error("file name {name:?} leads out of its layer")]
    Escapes {
        /// As recorded.
        name: String,
    },
    /// A file that is not what it was when the layer was made.
    #[error("file {name:?} is not the one that was recorded: {reason}")]
    FileChanged {
        /// As recorded.
        name: String,
        /// How it differs.
        reason: String,
    },
    /// The whole layer is not what it was when the image was made.
    #[error("layer {expected} was changed in the store: it now reads as {found}")]
    DiffId {
        /// From the image's config.
        expected: Digest,
        /// Hash of what was read.
        found: Digest,
    },
}

impl SourceError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> SourceError {
        let path = path.into();
        move |source| SourceError::Io {
            action,
            path,
            source,
        }
    }

    /// Who can mend it.
    pub fn blame(&self) -> Blame {
        match self {
            SourceError::NoImage { .. }
            | SourceError::Ambiguous { .. }
            | SourceError::NoLayout { .. }
            | SourceError::Platform { .. }
            | SourceError::NoPlatform { .. }
            | SourceError::Unsupported { .. } => Blame::User,
            SourceError::NoStore { .. }
            | SourceError::NoContent { .. }
            | SourceError::NoLayer { .. }
            | SourceError::Io { .. }
            | SourceError::TooLong { .. }
            | SourceError::Damaged { .. }
            | SourceError::Config { .. }
            | SourceError::Escapes { .. }
            | SourceError::FileChanged { .. }
            | SourceError::DiffId { .. } => Blame::Local,
        }
    }

    /// What the caller may do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            SourceError::NoStore { .. } => {
                Some("give dockerd's data root; dockerd must use the overlay2 storage driver")
            }
            SourceError::NoContent { .. } => {
                Some("give containerd's root, such as /var/lib/containerd")
            }
            SourceError::NoLayout { .. } => {
                Some("make it with `docker save` or `buildx build --output type=oci`")
            }
            SourceError::Platform { .. } => {
                Some("write it as os/architecture, such as linux/arm64")
            }
            SourceError::NoPlatform { .. } => Some("choose one of them with the platform option"),
            SourceError::Unsupported { .. } => None,
            SourceError::NoImage { .. } => Some("build it, or look at `docker image ls`"),
            SourceError::Ambiguous { .. } => Some("give the whole name, or more digits of the id"),
            SourceError::NoLayer { .. }
            | SourceError::Damaged { .. }
            | SourceError::FileChanged { .. }
            | SourceError::DiffId { .. } => Some("build again without the cache"),
            SourceError::Io { .. }
            | SourceError::TooLong { .. }
            | SourceError::Config { .. }
            | SourceError::Escapes { .. } => None,
        }
    }
}

/// diffIDs of a config (image-spec, config.md: `rootfs.diff_ids`). None at all is an image without layers.
pub(crate) fn config_diff_ids(config: &[u8]) -> Result<Vec<Digest>, SourceError> {
    #[derive(serde::Deserialize)]
    struct Config {
        rootfs: Option<RootFs>,
    }
    #[derive(serde::Deserialize)]
    struct RootFs {
        diff_ids: Option<Vec<String>>,
    }
    let bad = |reason: String| SourceError::Config { reason };
    let parsed: Config = serde_json::from_slice(config).map_err(|error| bad(error.to_string()))?;
    let ids = parsed
        .rootfs
        .and_then(|rootfs| rootfs.diff_ids)
        .unwrap_or_default();
    if ids.len() > crate::limits::LAYERS {
        return Err(bad(format!("more than {} layers", crate::limits::LAYERS)));
    }
    ids.iter()
        .map(|id| Digest::parse(id).map_err(|error| bad(error.to_string())))
        .collect()
}
