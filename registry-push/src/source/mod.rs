//! Where images and their layers come from: one trait, one module per kind of store.
//!
//! Knows nothing of compression or registries.

mod beneath;
mod docker_store;
mod overlay_layer;
mod tar_split;

use crate::digest::Digest;
use crate::error::Blame;
use std::path::PathBuf;
use std::sync::Arc;

pub use docker_store::DockerStore;

/// An image ready to be pushed: its config, byte for byte, and its layers from the lowest up.
#[derive(Debug, Clone)]
pub struct ImageSource {
    /// The config blob; its digest is the image's id.
    pub(crate) config: Vec<u8>,
    /// One per diffID of the config, in its order.
    pub(crate) layers: Vec<Arc<dyn LayerSource>>,
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
        Ok(ImageSource { config, layers })
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
    /// SHA-256 of the uncompressed tar. The pipeline checks it; a source need not.
    fn diff_id(&self) -> &Digest;

    /// About how many bytes it has, for progress only.
    fn size_hint(&self) -> Option<u64>;

    /// Starts reading. Called on a thread that may block.
    fn open(&self) -> Result<Box<dyn LayerReader>, SourceError>;
}

/// A layer being read.
pub trait LayerReader: Send {
    /// Fills some of `buffer` and says how much; 0 at the end of the layer. May block.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError>;
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
    /// The store has no such image.
    #[error("no image {name:?} in the store")]
    NoImage {
        /// As asked for.
        name: String,
    },
    /// An id prefix that several images share.
    #[error("{name:?} is the beginning of several image ids")]
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
            SourceError::NoImage { .. } | SourceError::Ambiguous { .. } => Blame::User,
            SourceError::NoStore { .. }
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
            SourceError::NoImage { .. } => Some("build it, or look at `docker image ls`"),
            SourceError::Ambiguous { .. } => Some("give more digits of the id"),
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
