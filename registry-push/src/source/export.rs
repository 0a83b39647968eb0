//! Finds layers that dockerd's BuildKit is exporting into its image store at this moment.
//!
//! For each new layer it makes a record in a directory of its own (moby: `builder-next/adapters/snapshot/layer.go`, `docker-tarsplit*` in
//! the daemon's folder for temporary files) and reads the layer's directory, one file after the other. Which directory that is, its open
//! descriptors tell; the record's first files must be there.

use super::beneath::LayerDir;
use super::growing::{Growing, GrowingLayer};
use crate::limits::{
    AHEAD_DESCRIPTORS, AHEAD_RECORD_BYTES, AHEAD_RECORDS, AHEAD_TRIES, RECORD_LOOK,
};
use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const RECORDS: &str = "docker-tarsplit";
const RECORD: &str = "tar-split";

/// A dockerd that is about to export an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its data root, such as `/var/lib/docker`.
    pub root: PathBuf,
    /// Its process id.
    pub process: u32,
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
        let seen = records(&export.root.join("tmp")).collect();
        Looker { export, seen }
    }

    /// Records that have become long enough since the last look, each of them once. Blocks on a small directory.
    pub(crate) fn look(&mut self) -> Vec<Found> {
        let folder = self.export.root.join("tmp");
        let mut found = Vec::new();
        for name in records(&folder) {
            if self.seen.len() >= AHEAD_RECORDS || self.seen.contains(&name) {
                continue;
            }
            let path = folder.join(&name).join(RECORD);
            let is_long = std::fs::symlink_metadata(&path)
                .is_ok_and(|kind| kind.is_file() && kind.len() >= AHEAD_RECORD_BYTES);
            if is_long {
                self.seen.insert(name);
                found.push(Found {
                    path,
                    export: self.export.clone(),
                });
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

/// A record under way.
#[derive(Debug)]
pub(crate) struct Found {
    path: PathBuf,
    export: Export,
}

impl Found {
    /// Its layer, if dockerd is seen reading one that fits. Blocks on some small files.
    pub(crate) fn layer(&self) -> Option<GrowingLayer> {
        let record = Arc::new(Growing::open(&self.path).ok()?);
        let files = record.first_files();
        if files.is_empty() {
            return None;
        }
        for _ in 0..AHEAD_TRIES {
            let mut fitting = self.being_read().into_iter().filter(|directory| {
                LayerDir::open(directory).is_ok_and(|layer| has_all(&layer, &files))
            });
            match (fitting.next(), fitting.next()) {
                (Some(directory), None) => return Some(GrowingLayer::new(record, directory)),
                // Two layers that begin alike: which of them it is, cannot be told yet. None: dockerd is between two files.
                (Some(_), Some(_)) | (None, _) => std::thread::sleep(RECORD_LOOK),
            }
        }
        None
    }

    /// Whether dockerd has not removed it: whoever made it is not done.
    pub(crate) fn is_there(&self) -> bool {
        self.path.exists()
    }

    /// Layer directories in which dockerd has something open.
    fn being_read(&self) -> HashSet<PathBuf> {
        let descriptors = PathBuf::from(format!("/proc/{}/fd", self.export.process));
        let overlays = self.export.root.join("overlay2");
        std::fs::read_dir(descriptors)
            .into_iter()
            .flatten()
            .take(AHEAD_DESCRIPTORS)
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter_map(|path| Some(overlays.join(cache_id(&path)?).join("diff")))
            .collect()
    }
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
