//! What a caller hears of a push: news while it goes on, and the result.
//!
//! Values only.

use crate::digest::Digest;

/// News of one part of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// A layer's diffID, `config` or `manifest`.
    pub item: String,
    /// What happens to it.
    pub state: PushState,
    /// Uncompressed bytes under way or done.
    pub current: u64,
    /// Uncompressed bytes in all, about; 0 when unknown.
    pub total: u64,
    /// Bytes of its blob that were made, or that the registry has; 0 when unknown.
    pub compressed: u64,
    /// Bytes of its blob handed to the network, repetitions included.
    pub sent: u64,
}

/// How far a part of the image has come, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Moved {
    /// Uncompressed.
    pub(crate) raw: u64,
    /// Compressed.
    pub(crate) compressed: u64,
    /// Handed to the network, repetitions included.
    pub(crate) sent: u64,
}

impl Moved {
    /// What is sent as it is: all of it, or nothing of it yet.
    pub(crate) fn plain(length: u64, sent: u64) -> Moved {
        Moved {
            raw: length,
            compressed: length,
            sent,
        }
    }
}

/// What happens to a part of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PushState {
    /// Its turn has not come.
    Waiting,
    /// It is being read, compressed and sent.
    Pushing,
    /// It was sent.
    Pushed,
    /// The repository had it.
    Exists,
    /// The registry took it over from another repository.
    Mounted,
}

/// A push that is complete in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of the manifest.
    pub digest: Digest,
    /// The manifest, byte for byte as the registry has it.
    pub manifest_bytes: Vec<u8>,
    /// Bytes of the image in the registry: manifest, config and each different layer once.
    pub size_bytes: u64,
    /// From the lowest up.
    pub layers: Vec<PushedLayer>,
    /// Bytes of blobs and manifest handed to the network, repetitions included.
    pub sent_bytes: u64,
}

/// A layer of a complete push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedLayer {
    /// SHA-256 of its tar.
    pub diff_id: Digest,
    /// Digest of its blob.
    pub digest: Digest,
    /// Bytes of its blob.
    pub size_bytes: u64,
    /// Exists, Mounted or Pushed.
    pub state: PushState,
    /// Bytes handed to the network for it.
    pub sent_bytes: u64,
}
