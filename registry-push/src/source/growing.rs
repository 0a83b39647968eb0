//! A layer whose record dockerd is still writing, while it reads the layer for its diffID.
//!
//! What has been read of it is proved like any other layer's, file by file and by the record's own CRC-32; but only when the record has
//! become, byte for byte, that of a layer of an image is the whole known to be that layer. Knows nothing of where records are found.

use super::beneath::LayerDir;
use super::overlay_layer::OverlayReader;
use super::tar_split::{Entry, TarSplit};
use super::{Growing, LayerReader, LayerSource, Place, SourceError};
use crate::digest::Digest;
use crate::limits::{AHEAD_FILES, RECORD_LOOK};
use flate2::bufread::GzDecoder;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes read at once, of the record and of its text.
const BUFFER: usize = 64 << 10;

/// A record that is held open: dockerd removes it when the layer is registered.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    file: File,
    is_given_up: AtomicBool,
    /// Bytes up to the end of its gzip, when somebody has read as far; 0 before.
    whole: AtomicU64,
}

impl Record {
    /// Holds the record open.
    pub(super) fn open(path: &Path) -> io::Result<Record> {
        Ok(Record {
            path: path.to_path_buf(),
            file: File::open(path)?,
            is_given_up: AtomicBool::new(false),
            whole: AtomicU64::new(0),
        })
    }

    /// Files among the first entries that are there already.
    pub(super) fn first_files(self: &Arc<Self>) -> Vec<(Vec<u8>, u64)> {
        let text = BufReader::new(GzDecoder::new(BufReader::new(self.follow(false))));
        let mut record = TarSplit::new(text, &self.path);
        let mut files = Vec::new();
        // Ends with an error where the record does, for now.
        while files.len() < AHEAD_FILES
            && let Ok(Some(entry)) = record.next_entry()
        {
            if let Entry::File { name, size, .. } = entry {
                files.push((name, size));
            }
        }
        files
    }

    fn follow(self: &Arc<Self>, waits: bool) -> Follow {
        Follow {
            record: self.clone(),
            read: 0,
            waits,
        }
    }

    /// Whether the whole of it is what the file holds.
    fn is(&self, path: &Path) -> io::Result<bool> {
        let (mut theirs, mut position) = (File::open(path)?, 0);
        let (mut ours, mut chunk) = (vec![0; BUFFER], vec![0; BUFFER]);
        loop {
            let count = theirs.read(&mut chunk)?;
            if count == 0 {
                return Ok(position > 0 && self.file.metadata()?.len() == position);
            }
            let is_longer = self.file.read_exact_at(&mut ours[..count], position);
            if is_longer.is_err() || ours[..count] != chunk[..count] {
                return Ok(false);
            }
            position += count as u64;
        }
    }
}

/// Reads a record from its start, and waits where it ends so far.
struct Follow {
    record: Arc<Record>,
    read: u64,
    waits: bool,
}

impl Read for Follow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.record.file.read_at(buffer, self.read)?;
            if count > 0 || !self.waits {
                self.read += count as u64;
                return Ok(count);
            }
            if self.record.is_given_up.load(Ordering::Relaxed) {
                return Err(io::Error::other("nobody waits for the layer any more"));
            }
            std::thread::sleep(RECORD_LOOK);
        }
    }
}

/// The layer.
#[derive(Debug)]
pub(super) struct GrowingLayer {
    record: Arc<Record>,
    directory: PathBuf,
    /// In the place of the diffID, which nobody knows yet: the digest of the directory's name.
    name: Digest,
}

impl GrowingLayer {
    /// The layer of this record in this directory.
    pub(super) fn new(record: Arc<Record>, directory: PathBuf) -> GrowingLayer {
        GrowingLayer {
            record,
            name: Digest::of(directory.as_os_str().as_bytes()),
            directory,
        }
    }
}

impl Growing for GrowingLayer {
    fn place_key(&self) -> String {
        self.directory.display().to_string()
    }

    fn is(&self, layer: &dyn LayerSource) -> bool {
        let Some(Place::Overlay { directory, record }) = layer.place() else {
            return false;
        };
        directory == self.directory && self.record.is(&record).unwrap_or(false)
    }

    fn was_read_as(&self, _diff_id: &Digest) -> bool {
        let length = self.record.file.metadata().map_or(0, |kind| kind.len());
        length > 0 && self.record.whole.load(Ordering::Relaxed) == length
    }

    fn give_up(&self) {
        self.record.is_given_up.store(true, Ordering::Relaxed);
    }
}

impl LayerSource for GrowingLayer {
    fn diff_id(&self) -> &Digest {
        &self.name
    }

    fn size_hint(&self) -> Option<u64> {
        None
    }

    fn open(&self) -> Result<Box<dyn LayerReader>, SourceError> {
        let directory = LayerDir::open(&self.directory)?;
        let packed = BufReader::with_capacity(BUFFER, self.record.follow(true));
        let text = BufReader::with_capacity(BUFFER, GzDecoder::new(packed));
        let record = TarSplit::new(text, &self.record.path);
        Ok(Box::new(GrowingReader {
            inner: OverlayReader::new(directory, record),
            record: self.record.clone(),
        }))
    }
}

/// The text of a record that grows. One gzip member and no more: nothing but its own end tells where the record ends.
type Lines = BufReader<GzDecoder<BufReader<Follow>>>;

struct GrowingReader {
    inner: OverlayReader<Lines>,
    record: Arc<Record>,
}

impl LayerReader for GrowingReader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        let count = self.inner.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            let packed = self.inner.lines().get_ref().get_ref();
            let end = packed.get_ref().read - packed.buffer().len() as u64;
            self.record.whole.store(end, Ordering::Relaxed);
        }
        Ok(count)
    }

    fn proves_itself(&self) -> bool {
        true
    }
}

#[cfg(test)]
#[path = "growing_tests.rs"]
mod tests;
