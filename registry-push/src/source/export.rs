//! Finds layers that dockerd's BuildKit is exporting into an image store at this moment.
//!
//! Into containerd's: [`ingest`](super::ingest). Into dockerd's own: for each new layer it makes a record in a directory of its own (moby: `builder-next/adapters/snapshot/layer.go`, `docker-tarsplit*` in
//! the daemon's folder for temporary files) and reads the layer's directory, one file after the other. Which directory that is, its open
//! descriptors tell; the record's first files must be there.

use super::Growing;
use super::beneath::LayerDir;
use super::growing::{GrowingLayer, Record};
use super::ingest;
use crate::limits::{
    AHEAD_DESCRIPTORS, AHEAD_RECORD_BYTES, AHEAD_RECORDS, AHEAD_TRIES, RECORD_LOOK,
};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const RECORDS: &str = "docker-tarsplit";
const RECORD: &str = "tar-split";

/// A dockerd that is about to export an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Export {
    /// Into its own store.
    Dockerd {
        /// Its data root, such as `/var/lib/docker`.
        root: PathBuf,
        /// Its process id.
        process: u32,
    },
    /// Into containerd's store.
    Containerd {
        /// Root of containerd, such as `/var/lib/containerd`.
        root: PathBuf,
    },
}

impl Export {
    /// What is in the making.
    fn all(&self) -> Vec<OsString> {
        match self {
            Export::Dockerd { root, .. } => records(&root.join("tmp")).collect(),
            Export::Containerd { root } => ingest::all(root),
        }
    }

    /// This one, if there is enough of it.
    fn found(&self, name: &OsStr) -> Option<Found> {
        match self {
            Export::Dockerd { root, process } => {
                let path = root.join("tmp").join(name).join(RECORD);
                let is_long = std::fs::symlink_metadata(&path)
                    .is_ok_and(|kind| kind.is_file() && kind.len() >= AHEAD_RECORD_BYTES);
                is_long.then(|| Found::Record {
                    path,
                    root: root.clone(),
                    process: *process,
                })
            }
            Export::Containerd { root } => ingest::found(root, name).map(Found::Ingest),
        }
    }
}

/// What is looked at, and what was seen.
#[derive(Debug)]
pub(crate) struct Looker {
    export: Export,
    seen: HashSet<OsString>,
}

impl Looker {
    /// Passes over what is there already: another export has made it.
    pub(crate) fn new(export: Export) -> Looker {
        let seen = export.all().into_iter().collect();
        Looker { export, seen }
    }

    /// Layers of which there has come to be enough since the last look, each of them once. Blocks on a small directory.
    pub(crate) fn look(&mut self) -> Vec<Found> {
        let mut found = Vec::new();
        for name in self.export.all() {
            if self.seen.len() >= AHEAD_RECORDS || self.seen.contains(&name) {
                continue;
            }
            if let Some(one) = self.export.found(&name) {
                self.seen.insert(name);
                found.push(one);
            }
        }
        found
    }
}

fn records(folder: &Path) -> impl Iterator<Item = OsString> {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| name.as_bytes().starts_with(RECORDS.as_bytes()))
}

/// A layer in the making.
#[derive(Debug)]
pub(crate) enum Found {
    /// dockerd writes this record of it.
    Record {
        path: PathBuf,
        root: PathBuf,
        process: u32,
    },
    /// containerd is given it.
    Ingest(Arc<ingest::GrowingBlob>),
}

impl Found {
    /// The layer, if dockerd is seen reading one that fits. Blocks on some small files.
    pub(crate) fn layer(&self) -> Option<Arc<dyn Growing>> {
        let (path, root, process) = match self {
            Found::Ingest(blob) => return Some(blob.clone()),
            Found::Record {
                path,
                root,
                process,
            } => (path, root, *process),
        };
        let record = Arc::new(Record::open(path).ok()?);
        let files = record.first_files();
        if files.is_empty() {
            return None;
        }
        for _ in 0..AHEAD_TRIES {
            let mut fitting = being_read(root, process).into_iter().filter(|directory| {
                LayerDir::open(directory).is_ok_and(|layer| has_all(&layer, &files))
            });
            match (fitting.next(), fitting.next()) {
                (Some(directory), None) => {
                    return Some(Arc::new(GrowingLayer::new(record, directory)));
                }
                // Two layers that begin alike: which of them it is, cannot be told yet. None: dockerd is between two files.
                (Some(_), Some(_)) | (None, _) => std::thread::sleep(RECORD_LOOK),
            }
        }
        None
    }

    /// Whether it is still being made: whoever makes it is not done.
    pub(crate) fn is_there(&self) -> bool {
        match self {
            Found::Record { path, .. } => path.exists(),
            Found::Ingest(blob) => blob.is_growing(),
        }
    }
}

/// Layer directories in which dockerd has something open.
fn being_read(root: &Path, process: u32) -> HashSet<PathBuf> {
    let descriptors = PathBuf::from(format!("/proc/{process}/fd"));
    let overlays = root.join("overlay2");
    std::fs::read_dir(descriptors)
        .into_iter()
        .flatten()
        .take(AHEAD_DESCRIPTORS)
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|path| Some(overlays.join(cache_id(&path)?).join("diff")))
        .collect()
}

fn has_all(layer: &LayerDir, files: &[(Vec<u8>, u64)]) -> bool {
    files
        .iter()
        .all(|(name, size)| layer.open_file(name, *size).is_ok())
}

/// The layer that an open path of dockerd's is in: `.../overlay2/<cache-id>/diff/...`, or `merged`, where it mounts the layer for the
/// comparison that it makes when it runs in a user namespace. Where the data root is in its own view of the file system, does not matter.
fn cache_id(path: &Path) -> Option<&str> {
    let mut parts = path.iter().skip_while(|part| *part != "overlay2").skip(1);
    let id = parts.next()?.to_str()?;
    let part = parts.next()?;
    let is_layer =
        (part == "diff" || part == "merged") && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_layer.then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_by_what_is_open() {
        for (path, id) in [
            ("/var/lib/docker/overlay2/k2jh/diff/usr/bin/x", Some("k2jh")),
            ("/data/overlay2/k2jh/diff", Some("k2jh")),
            ("/data/overlay2/k2jh/merged/x", Some("k2jh")),
            ("/data/overlay2/k2jh/lower/x", None),
            ("/data/overlay2/k2jh", None),
            ("/data/overlay2/../diff/x", None),
            ("socket:[1]", None),
        ] {
            assert_eq!(cache_id(Path::new(path)), id, "{path}");
        }
    }
}
