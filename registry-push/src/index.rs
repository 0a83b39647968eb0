//! Remembers which blob a layer became and which repositories have it, so that an unchanged layer is neither read nor sent.
//!
//! An append-only file of JSON lines, each with its own checksum; a torn or foreign line is skipped. What it says is a hint:
//! the registry is asked before anything is left out, and a wrong digest shows when the layer is next read. Losing the file costs time only.
//! An image's manifest is remembered in the same way, under the image's id and [`MANIFEST_OF`] before the codec.

use crate::digest::Digest;
use crate::limits::{INDEX_BYTES, INDEX_PLACES, INDEX_RECORDS};
use rustix::fs::{FlockOperation, flock};
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// The index could not be read or written. The push goes on without it.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The operating system refused.
    #[error("cannot {action} the digest index {path:?}")]
    Io {
        /// Verb.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Before the codec of a record whose blob is a manifest and whose diffID is the image's id.
pub(crate) const MANIFEST_OF: &str = "manifest-";

/// The blob of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Record {
    diff_id: String,
    codec: String,
    digest: String,
    size: u64,
    registry: String,
    repository: String,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Line {
    /// First 16 digits of the SHA-256 of the record's JSON.
    sum: String,
    record: Record,
}

/// How each line begins, but for the sum between the two.
const LINE_HEAD: (&[u8], &[u8]) = (br#"{"sum":""#, br#"","record":{"diff_id":""#);
const SUM_DIGITS: usize = 16;

/// What the index said of some layers when it was opened, plus what was added since.
#[derive(Debug, Default)]
pub(crate) struct Index {
    path: Option<PathBuf>,
    /// Lines of the file, those of other layers included.
    lines: usize,
    blobs: HashMap<(Digest, String), Known>,
    places: HashMap<(Digest, String), Vec<String>>,
    records: Vec<Record>,
}

impl Index {
    /// Reads what the file says of these diffIDs and image ids; of all, when none are named. A file that is absent, or too long to be ours,
    /// is an empty index. Blocks.
    pub(crate) fn open(path: &Path, wanted: &HashSet<Digest>) -> Result<Index, IndexError> {
        let mut index = Index {
            path: Some(path.to_path_buf()),
            ..Index::default()
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(index),
            Err(source) => return Err(io("open", path)(source)),
        };
        let mut text = Vec::new();
        file.take(INDEX_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(io("read", path))?;
        if text.len() as u64 > INDEX_BYTES {
            tracing::warn!(path = %path.display(), "digest index too long, started anew");
            std::fs::remove_file(path).map_err(io("remove", path))?;
            return Ok(index);
        }
        for line in text.split(|&byte| byte == b'\n') {
            index.lines += usize::from(!line.is_empty());
            let is_other = !wanted.is_empty()
                && diff_id_of(line).is_some_and(|diff_id| !wanted.contains(&diff_id));
            if let Some(record) = (!is_other).then(|| parse(line)).flatten() {
                index.take(record);
            }
        }
        Ok(index)
    }

    /// Takes in what other pushes have added to the file since. Blocks.
    pub(crate) fn refresh(&mut self, wanted: &HashSet<Digest>) -> Result<(), IndexError> {
        if let Some(path) = self.path.clone() {
            *self = Index::open(&path, wanted)?;
        }
        Ok(())
    }

    /// The blob that a layer becomes under a codec.
    pub(crate) fn blob(&self, diff_id: &Digest, codec: &str) -> Option<&Known> {
        self.blobs.get(&(diff_id.clone(), codec.to_string()))
    }

    /// Repositories of a registry that had a blob, the latest first.
    pub(crate) fn places(&self, digest: &Digest, registry: &str) -> impl Iterator<Item = &str> {
        let places = self.places.get(&(digest.clone(), registry.to_string()));
        places.into_iter().flatten().rev().map(String::as_str)
    }

    /// Adds what was proved by a push, in memory and in the file. Blocks.
    pub(crate) fn add(
        &mut self,
        found: impl IntoIterator<Item = (Digest, Known)>,
        codec: &str,
        registry: &str,
        repository: &str,
    ) -> Result<(), IndexError> {
        let mut lines = Vec::new();
        for (diff_id, known) in found {
            let is_known = self.blob(&diff_id, codec) == Some(&known)
                && self
                    .places(&known.digest, registry)
                    .any(|place| place == repository);
            if is_known {
                continue;
            }
            let record = Record {
                diff_id: diff_id.to_string(),
                codec: codec.to_string(),
                digest: known.digest.to_string(),
                size: known.size,
                registry: registry.to_string(),
                repository: repository.to_string(),
            };
            lines.extend(line(&record));
            self.lines += 1;
            self.take(record);
        }
        let Some(path) = self.path.clone() else {
            return Ok(());
        };
        if lines.is_empty() {
            return Ok(());
        }
        append(&path, &lines)?;
        if self.lines > INDEX_RECORDS {
            self.lines = Index::open(&path, &HashSet::new())?.rewrite(&path)?;
        }
        Ok(())
    }

    fn take(&mut self, record: Record) {
        let (Ok(diff_id), Ok(digest)) = (
            Digest::parse(&record.diff_id),
            Digest::parse(&record.digest),
        ) else {
            return;
        };
        let known = Known {
            digest: digest.clone(),
            size: record.size,
        };
        self.blobs.insert((diff_id, record.codec.clone()), known);
        let places = self
            .places
            .entry((digest, record.registry.clone()))
            .or_default();
        places.retain(|place| place != &record.repository);
        places.push(record.repository.clone());
        if places.len() > INDEX_PLACES {
            places.remove(0);
        }
        self.records.push(record);
    }

    /// Replaces the file by its newer half, in one step; says how many lines that leaves. What another process adds meanwhile is lost, which
    /// costs time only.
    fn rewrite(mut self, path: &Path) -> Result<usize, IndexError> {
        let keep = self.records.split_off(self.records.len() / 2);
        let text: Vec<u8> = keep.iter().flat_map(line).collect();
        let new = path.with_extension(format!("new-{}", std::process::id()));
        let mut file = File::create(&new).map_err(io("create", &new))?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(io("write", &new))?;
        std::fs::rename(&new, path).map_err(io("replace", path))?;
        Ok(keep.len())
    }
}

/// The diffID of a line, without reading the rest; `None` for a line of another shape.
fn diff_id_of(line: &[u8]) -> Option<Digest> {
    let rest = line.strip_prefix(LINE_HEAD.0)?.get(SUM_DIGITS..)?;
    let text = rest.strip_prefix(LINE_HEAD.1)?.get(..71)?;
    Digest::parse(std::str::from_utf8(text).ok()?).ok()
}

/// One write of whole lines at the end of the file. A line torn by a crash is closed by a line feed first.
fn append(path: &Path, lines: &[u8]) -> Result<(), IndexError> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(io("open", path))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|errno| io("lock", path)(errno.into()))?;
    let mut text = Vec::with_capacity(lines.len() + 1);
    text.push(b'\n');
    text.extend_from_slice(lines);
    (&file).write_all(&text).map_err(io("write", path))
}

fn line(record: &Record) -> Vec<u8> {
    // A record of strings and a number always has a JSON form.
    let Ok(json) = serde_json::to_string(record) else {
        return Vec::new();
    };
    format!("{{\"sum\":\"{}\",\"record\":{json}}}\n", sum(&json)).into_bytes()
}

fn parse(line: &[u8]) -> Option<Record> {
    let parsed: Line = serde_json::from_slice(line).ok()?;
    let json = serde_json::to_string(&parsed.record).ok()?;
    (sum(&json) == parsed.sum).then_some(parsed.record)
}

/// What is taken for a line's layer without reading it is what the line says, and a line that is taken is written the same.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_line(bytes: &[u8]) {
    let seen = diff_id_of(bytes);
    if let Some(record) = parse(bytes) {
        let again = line(&record);
        assert!(parse(&again).is_some_and(|same| line(&same) == again));
        if again.trim_ascii_end() == bytes.trim_ascii_end() {
            assert_eq!(seen, diff_id_of(&again));
        }
    }
}

fn sum(json: &str) -> String {
    let digest = Digest::of(json.as_bytes());
    digest.hex().chars().take(SUM_DIGITS).collect()
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> IndexError {
    let path = path.to_path_buf();
    move |source| IndexError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: &str) -> Known {
        Known {
            digest: Digest::of(text.as_bytes()),
            size: text.len() as u64,
        }
    }

    #[test]
    fn what_was_added_is_there_after_a_restart() {
        let base = tempfile::tempdir().expect("tempdir");
        let path = base.path().join("index");
        let layer = Digest::of(b"layer");
        let mut index = Index::open(&path, &HashSet::new()).expect("opens");
        for repository in ["a", "b", "a", "c"] {
            index
                .add(
                    [(layer.clone(), known("blob"))],
                    "gzip",
                    "host:1",
                    repository,
                )
                .expect("adds");
        }
        let again = Index::open(&path, &HashSet::new()).expect("opens");
        assert_eq!(again.blob(&layer, "gzip"), Some(&known("blob")));
        assert_eq!(again.blob(&layer, "zstd"), None);
        assert_eq!(
            again
                .places(&known("blob").digest, "host:1")
                .collect::<Vec<_>>(),
            ["c", "b", "a"]
        );
        assert_eq!(again.places(&known("blob").digest, "host:2").count(), 0);
    }

    #[test]
    fn a_file_cut_or_changed_at_any_byte_gives_no_wrong_answer() {
        let base = tempfile::tempdir().expect("tempdir");
        let path = base.path().join("index");
        let (first, second) = (Digest::of(b"1"), Digest::of(b"2"));
        let mut index = Index::open(&path, &HashSet::new()).expect("opens");
        index
            .add([(first.clone(), known("one"))], "gzip", "h", "r")
            .expect("adds");
        index
            .add([(second.clone(), known("two"))], "gzip", "h", "r")
            .expect("adds");
        let whole = std::fs::read(&path).expect("reads");
        for position in 0..whole.len() {
            let mut broken = whole.clone();
            if position % 2 == 0 {
                broken.truncate(position)
            } else {
                broken[position] ^= 1
            }
            std::fs::write(&path, broken).expect("writes");
            let mut found = Index::open(&path, &HashSet::new()).expect("opens");
            for (layer, right) in [(&first, known("one")), (&second, known("two"))] {
                assert!(
                    found
                        .blob(layer, "gzip")
                        .is_none_or(|known| known == &right),
                    "byte {position}"
                );
            }
            found
                .add([(Digest::of(b"3"), known("three"))], "gzip", "h", "r")
                .expect("adds");
            let after = Index::open(&path, &HashSet::new()).expect("opens");
            assert_eq!(
                after.blob(&Digest::of(b"3"), "gzip"),
                Some(&known("three")),
                "byte {position}"
            );
        }
    }

    #[test]
    fn of_other_layers_nothing_is_read() {
        let base = tempfile::tempdir().expect("tempdir");
        let path = base.path().join("index");
        let layers: Vec<Digest> = (0..9_u8).map(|n| Digest::of(&[n])).collect();
        let mut index = Index::open(&path, &HashSet::new()).expect("opens");
        for layer in &layers {
            index
                .add([(layer.clone(), known("blob"))], "gzip", "h", "r")
                .expect("adds");
        }
        let wanted = HashSet::from([layers[3].clone()]);
        let mut index = Index::open(&path, &wanted).expect("opens");
        assert_eq!((index.records.len(), index.lines), (1, layers.len()));
        assert_eq!(index.blob(&layers[3], "gzip"), Some(&known("blob")));
        // Another process has found out something.
        let mut other = Index::open(&path, &HashSet::new()).expect("opens");
        other
            .add([(layers[3].clone(), known("smaller"))], "zstd", "h", "r")
            .expect("adds");
        index.refresh(&wanted).expect("refreshes");
        assert_eq!(index.blob(&layers[3], "zstd"), Some(&known("smaller")));
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let base = tempfile::tempdir().expect("tempdir");
        let path = base.path().join("index");
        let mut index = Index::open(&path, &HashSet::new()).expect("opens");
        let many = (0..=INDEX_RECORDS).map(|n| (Digest::of(&n.to_le_bytes()), known("blob")));
        index.add(many, "gzip", "h", "r").expect("adds");
        let again = Index::open(&path, &HashSet::new()).expect("opens");
        assert!(
            again.records.len() <= INDEX_RECORDS / 2 + 1,
            "{}",
            again.records.len()
        );
        assert!(
            again
                .blob(&Digest::of(&INDEX_RECORDS.to_le_bytes()), "gzip")
                .is_some()
        );
    }
}
