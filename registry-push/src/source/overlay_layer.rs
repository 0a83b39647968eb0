//! One layer of dockerd's overlay2 store, read as the tar it was made from.
//!
//! Headers and padding come from the layer's tar-split record, contents straight from its directory; nothing is
//! exported or copied first.
//!
//! That the bytes are those of the diffID is proved by the checksums dockerd wrote when it computed the diffID from the same bytes:
//! a CRC-64 for each file's content, and the gzip CRC-32 over the record, which holds everything else. They find what a disk or a slip
//! can do to a layer, for a tenth of the time of a SHA-256, and nobody else can write there: a tenant who forges them in the builder
//! that is his own makes an image of his own that no client accepts.

use super::beneath::{LayerDir, shown};
use super::tar_split::{Entry, TarSplit};
use super::{LayerReader, LayerSource, Place, SourceError};
use crate::digest::Digest;
use crc_fast::CrcAlgorithm::Crc64GoIso;
use flate2::bufread::MultiGzDecoder;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

/// A layer at rest.
#[derive(Debug)]
pub(super) struct OverlayLayer {
    pub(super) diff_id: Digest,
    pub(super) size_hint: Option<u64>,
    /// `overlay2/<cache-id>/diff`.
    pub(super) directory: PathBuf,
    /// `layerdb/sha256/<chain>/tar-split.json.gz`.
    pub(super) record: PathBuf,
}

impl LayerSource for OverlayLayer {
    fn diff_id(&self) -> &Digest {
        &self.diff_id
    }

    fn size_hint(&self) -> Option<u64> {
        self.size_hint
    }

    fn place(&self) -> Option<Place> {
        Some(Place::Overlay {
            directory: self.directory.clone(),
            record: self.record.clone(),
        })
    }

    fn open(&self) -> Result<Box<dyn LayerReader>, SourceError> {
        Ok(Box::new(OverlayReader::open(
            &self.directory,
            &self.record,
        )?))
    }
}

/// Puts a layer's tar together from its record, as uncompressed lines, and its directory.
pub(super) struct OverlayReader<R> {
    record: TarSplit<R>,
    directory: LayerDir,
    current: Current,
}

/// The record of a layer that dockerd has: gzip in a file.
type Lines = BufReader<MultiGzDecoder<BufReader<File>>>;

/// What the next bytes come from.
enum Current {
    Nothing,
    Segment { bytes: Vec<u8>, read: usize },
    Content(Box<Content>),
    End,
}

/// A file under way.
struct Content {
    file: File,
    left: u64,
    name: Vec<u8>,
    found: crc_fast::Digest,
    checksum: u64,
}

impl Content {
    /// The next bytes, at most as many as are left; the last ones only if all of them were right.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let room = room.min(buffer.len());
        let count = loop {
            match self.file.read(&mut buffer[..room]) {
                Ok(count) => break count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SourceError::io("read", shown(&self.name))(error)),
            }
        };
        if count == 0 {
            return Err(self.changed(format!("it ends {} bytes early", self.left)));
        }
        self.found.update(&buffer[..count]);
        self.left -= count as u64;
        if self.left == 0 && self.found.finalize() != self.checksum {
            return Err(self.changed("its content has another checksum".to_string()));
        }
        Ok(count)
    }

    fn changed(&self, reason: String) -> SourceError {
        SourceError::FileChanged {
            name: shown(&self.name),
            reason,
        }
    }
}

impl OverlayReader<Lines> {
    fn open(directory: &Path, record: &Path) -> Result<OverlayReader<Lines>, SourceError> {
        let directory = LayerDir::open(directory)?;
        let file = File::open(record).map_err(SourceError::io("open", record))?;
        let text = BufReader::with_capacity(
            64 << 10,
            MultiGzDecoder::new(BufReader::with_capacity(64 << 10, file)),
        );
        Ok(OverlayReader::new(directory, TarSplit::new(text, record)))
    }
}

impl<R: BufRead> OverlayReader<R> {
    /// Reads nothing yet.
    pub(super) fn new(directory: LayerDir, record: TarSplit<R>) -> OverlayReader<R> {
        OverlayReader {
            record,
            directory,
            current: Current::Nothing,
        }
    }

    /// Where the record's lines come from.
    pub(super) fn lines(&self) -> &R {
        self.record.lines()
    }

    fn advance(&mut self) -> Result<(), SourceError> {
        self.current = match self.record.next_entry()? {
            None => Current::End,
            Some(Entry::Segment(bytes)) => Current::Segment { bytes, read: 0 },
            Some(Entry::File {
                name,
                size,
                checksum,
            }) => Current::Content(Box::new(Content {
                file: self.directory.open_file(&name, size)?,
                left: size,
                name,
                found: crc_fast::Digest::new(Crc64GoIso),
                checksum,
            })),
        };
        Ok(())
    }
}

impl<R: BufRead + Send> LayerReader for OverlayReader<R> {
    fn proves_itself(&self) -> bool {
        true
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.current {
                Current::End => return Ok(0),
                Current::Segment { bytes, read } if *read < bytes.len() => {
                    let count = (bytes.len() - *read).min(buffer.len());
                    buffer[..count].copy_from_slice(&bytes[*read..*read + count]);
                    *read += count;
                    return Ok(count);
                }
                Current::Content(content) if content.left > 0 => return content.read(buffer),
                Current::Nothing | Current::Segment { .. } | Current::Content(_) => {
                    self.advance()?
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "overlay_layer_tests.rs"]
mod tests;
