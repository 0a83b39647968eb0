//! Layers that containerd is still being given, read as they grow.
//!
//! containerd's content store keeps what comes in a directory of its own below `ingest`, and renames the file into its place when it has all of
//! it, has synced it and knows its digest (containerd: `plugins/content/local`). The file stays the same one, so a layer of an image is
//! known by it. BuildKit names what it exports by the cache record, which is an id of its own making; what is pulled or loaded has other names.

use super::{Growing, LayerReader, LayerSource, Place, SourceError};
use crate::digest::Digest;
use crate::limits::{AHEAD_BLOB_BYTES, INGEST_NAME_BYTES, RECORD_LOOK};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

const INGESTS: &str = "io.containerd.content.v1.content/ingest";
const DATA: &str = "data";
const NAME: &str = "ref";
/// Where a tar's first header says that it is one, and what.
const MAGIC: (u64, &[u8]) = (257, b"ustar");
/// Letters and digits of BuildKit's ids.
const ID_LENGTH: usize = 25;

/// What containerd is being given.
pub(super) fn all(root: &Path) -> Vec<OsString> {
    let entries = std::fs::read_dir(root.join(INGESTS)).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .collect()
}

/// This one, if it is an uncompressed layer that BuildKit exports and there is enough of it.
pub(super) fn found(root: &Path, name: &OsStr) -> Option<Arc<GrowingBlob>> {
    let directory = root.join(INGESTS).join(name);
    let path = directory.join(DATA);
    let is_long = std::fs::symlink_metadata(&path)
        .is_ok_and(|kind| kind.is_file() && kind.len() >= AHEAD_BLOB_BYTES);
    if !is_long || !is_export(&named(&directory.join(NAME))?) {
        return None;
    }
    let file = File::open(&path).ok()?;
    let mut magic = [0; MAGIC.1.len()];
    file.read_exact_at(&mut magic, MAGIC.0).ok()?;
    let place = Place::of_file(&file.metadata().ok()?);
    (magic == MAGIC.1).then(|| {
        Arc::new(GrowingBlob {
            name: Digest::of(path.as_os_str().as_bytes()),
            growth: Arc::new(Growth {
                path,
                file,
                place,
                is_given_up: AtomicBool::new(false),
            }),
            read_as: OnceLock::new(),
        })
    })
}

fn named(path: &Path) -> Option<String> {
    let mut name = String::new();
    let file = File::open(path).ok()?;
    file.take(INGEST_NAME_BYTES)
        .read_to_string(&mut name)
        .ok()?;
    Some(name)
}

/// By its name there: the namespace, a number, and what BuildKit calls it.
fn is_export(name: &str) -> bool {
    let id = name.rsplit('/').next().unwrap_or_default();
    id.len() == ID_LENGTH
        && id
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// A layer on its way into the store.
#[derive(Debug)]
pub(crate) struct GrowingBlob {
    growth: Arc<Growth>,
    /// In the place of the diffID, which nobody knows yet: the digest of the file's first name.
    name: Digest,
    /// SHA-256 of the whole, when it was read.
    read_as: OnceLock<Digest>,
}

#[derive(Debug)]
struct Growth {
    path: PathBuf,
    file: File,
    place: Place,
    is_given_up: AtomicBool,
}

/// How far a file has come.
enum State {
    /// More may come.
    Growing,
    /// The store has all of it.
    Stored,
    /// It was thrown away, or is thrown away because the store has the same already.
    Gone,
}

impl Growth {
    fn state(&self) -> std::io::Result<State> {
        let is_there = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|kind| Place::of_file(&kind) == self.place);
        Ok(match (is_there, self.file.metadata()?.nlink()) {
            (true, _) => State::Growing,
            (false, 0) => State::Gone,
            (false, _) => State::Stored,
        })
    }
}

impl GrowingBlob {
    /// Whether the store does not have it yet.
    pub(super) fn is_growing(&self) -> bool {
        matches!(self.growth.state(), Ok(State::Growing))
    }
}

impl Growing for GrowingBlob {
    fn place_key(&self) -> String {
        self.growth.place.key()
    }

    fn is(&self, layer: &dyn LayerSource) -> bool {
        layer.place().as_ref() == Some(&self.growth.place)
    }

    fn was_read_as(&self, diff_id: &Digest) -> bool {
        self.read_as.get() == Some(diff_id)
    }

    fn give_up(&self) {
        self.growth.is_given_up.store(true, Ordering::Relaxed);
    }
}

impl LayerSource for GrowingBlob {
    fn diff_id(&self) -> &Digest {
        &self.name
    }

    fn size_hint(&self) -> Option<u64> {
        None
    }

    fn is_proved_by(&self, found: &Digest) -> bool {
        self.read_as.get_or_init(|| found.clone()) == found
    }

    fn open(&self) -> Result<Box<dyn LayerReader>, SourceError> {
        Ok(Box::new(Reader {
            growth: self.growth.clone(),
            read: 0,
            is_whole: false,
        }))
    }
}

struct Reader {
    growth: Arc<Growth>,
    read: u64,
    /// Nothing more is written to it.
    is_whole: bool,
}

impl LayerReader for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        let failed = |error| SourceError::io("read", &self.growth.path)(error);
        loop {
            let count = match self.growth.file.read_at(buffer, self.read) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                count => count.map_err(failed)?,
            };
            if count > 0 || buffer.is_empty() || self.is_whole {
                self.read += count as u64;
                return Ok(count);
            }
            if self.growth.is_given_up.load(Ordering::Relaxed) {
                let given_up = "nobody waits for the layer any more";
                return Err(failed(std::io::Error::other(given_up)));
            }
            match self.growth.state().map_err(failed)? {
                State::Growing => std::thread::sleep(RECORD_LOOK),
                // What came before it was stored may not have been read yet.
                State::Stored => self.is_whole = true,
                State::Gone => {
                    let gone = "containerd has thrown it away";
                    return Err(failed(std::io::Error::other(gone)));
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "ingest_tests.rs"]
mod tests;
