//! One layer of dockerd's overlay2 store, read as the tar it was made from.
//!
//! Headers and padding come from the layer's tar-split record, contents straight from its directory; nothing is
//! exported or copied first. Checksums of single files in the record are not computed: the diffID, which the pipeline checks,
//! covers every byte.

use super::beneath::{LayerDir, shown};
use super::tar_split::{Entry, TarSplit};
use super::{LayerReader, LayerSource, SourceError};
use crate::digest::Digest;
use flate2::bufread::MultiGzDecoder;
use std::fs::File;
use std::io::{BufReader, Read as _};
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

    fn open(&self) -> Result<Box<dyn LayerReader>, SourceError> {
        Ok(Box::new(OverlayReader::open(
            &self.directory,
            &self.record,
        )?))
    }
}

type Record = TarSplit<BufReader<MultiGzDecoder<BufReader<File>>>>;

struct OverlayReader {
    record: Record,
    directory: LayerDir,
    current: Current,
}

/// What the next bytes come from.
enum Current {
    Nothing,
    Segment {
        bytes: Vec<u8>,
        read: usize,
    },
    Content {
        file: File,
        left: u64,
        name: Vec<u8>,
    },
    End,
}

impl OverlayReader {
    fn open(directory: &Path, record: &Path) -> Result<OverlayReader, SourceError> {
        let directory = LayerDir::open(directory)?;
        let file = File::open(record).map_err(SourceError::io("open", record))?;
        let text = BufReader::with_capacity(
            64 << 10,
            MultiGzDecoder::new(BufReader::with_capacity(64 << 10, file)),
        );
        Ok(OverlayReader {
            record: TarSplit::new(text, record),
            directory,
            current: Current::Nothing,
        })
    }

    fn advance(&mut self) -> Result<(), SourceError> {
        self.current = match self.record.next_entry()? {
            None => Current::End,
            Some(Entry::Segment(bytes)) => Current::Segment { bytes, read: 0 },
            Some(Entry::File { name, size }) => Current::Content {
                file: self.directory.open_file(&name, size)?,
                left: size,
                name,
            },
        };
        Ok(())
    }
}

impl LayerReader for OverlayReader {
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
                Current::Content { file, left, name } if *left > 0 => {
                    let room = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(buffer.len());
                    let count = match file.read(&mut buffer[..room]) {
                        Ok(count) => count,
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                        Err(error) => return Err(SourceError::io("read", shown(name))(error)),
                    };
                    if count == 0 {
                        let reason = format!("it ends {left} bytes early");
                        return Err(SourceError::FileChanged {
                            name: shown(name),
                            reason,
                        });
                    }
                    *left -= count as u64;
                    return Ok(count);
                }
                Current::Nothing | Current::Segment { .. } | Current::Content { .. } => {
                    self.advance()?
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "overlay_layer_tests.rs"]
mod tests;
