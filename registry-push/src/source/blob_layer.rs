//! One layer of an image layout: a blob that is sent as it is, or a tar that is still to be compressed.

use super::blobs::{Blobs, Slice};
use super::{LayerReader, LayerSource, Packed, Place, SourceError};
use crate::digest::Digest;
use flate2::read::MultiGzDecoder;
use std::io::Read as _;
use std::sync::Arc;

/// A layer at rest.
#[derive(Debug)]
pub(super) struct BlobLayer {
    pub(super) diff_id: Digest,
    pub(super) blobs: Arc<Blobs>,
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// What the blob is.
#[derive(Debug)]
pub(super) enum Kind {
    /// Fit for a registry.
    Packed(Packed),
    /// An uncompressed tar.
    Tar,
    /// Compressed, under a name that is no digest: what it is worth shows only when it is unpacked.
    Gzip,
}

impl BlobLayer {
    fn slice(&self) -> Result<Slice, SourceError> {
        self.blobs
            .find(&self.name)?
            .ok_or_else(|| SourceError::NoLayer {
                layer: self.diff_id.clone(),
                missing: self.blobs.place(&self.name),
            })
    }
}

impl LayerSource for BlobLayer {
    fn diff_id(&self) -> &Digest {
        &self.diff_id
    }

    fn size_hint(&self) -> Option<u64> {
        match &self.kind {
            Kind::Packed(packed) => Some(packed.size),
            Kind::Tar => Some(self.slice().ok()?.length()),
            Kind::Gzip => None,
        }
    }

    fn packed(&self) -> Option<&Packed> {
        match &self.kind {
            Kind::Packed(packed) => Some(packed),
            Kind::Tar | Kind::Gzip => None,
        }
    }

    fn place(&self) -> Option<Place> {
        match &self.kind {
            Kind::Tar => self.blobs.place_of(&self.name),
            Kind::Packed(_) | Kind::Gzip => None,
        }
    }

    fn open(&self) -> Result<Box<dyn LayerReader>, SourceError> {
        let slice = self.slice()?;
        Ok(match self.kind {
            Kind::Packed(_) | Kind::Tar => Box::new(slice),
            Kind::Gzip => Box::new(Unpacking {
                reader: MultiGzDecoder::new(slice),
                path: self.blobs.place(&self.name),
            }),
        })
    }
}

impl LayerReader for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        self.fill(buffer)
    }
}

struct Unpacking {
    reader: MultiGzDecoder<Slice>,
    path: std::path::PathBuf,
}

impl LayerReader for Unpacking {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        self.reader
            .read(buffer)
            .map_err(|error| SourceError::Damaged {
                path: self.path.clone(),
                reason: error.to_string(),
            })
    }
}
