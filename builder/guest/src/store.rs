//! Where dockerd keeps the images of this machine: in its own store or in containerd's.
//!
//! The two cannot read each other. So a volume keeps the one it was begun with, whatever the host's setting says later: a cache is never lost
//! by a setting. It must not know how the daemons are started.

use serde::Deserialize;
use std::io;
use std::path::Path;

/// Which store a volume was begun with, on the volume.
const MARK: &str = "slipway-image-store";
/// What dockerd's own store makes of a volume, also before there was a mark.
const CLASSIC_DIR: &str = "overlay2";

/// Where images are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ImageStore {
    /// dockerd's own, on overlay2.
    #[default]
    Classic,
    /// containerd's content store and snapshots.
    Containerd,
}

impl ImageStore {
    /// As settings and people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ImageStore::Classic => "classic",
            ImageStore::Containerd => "containerd",
        }
    }

    /// What dockerd calls the way it keeps layers.
    pub(crate) fn driver(self) -> &'static str {
        match self {
            ImageStore::Classic => "overlay2",
            ImageStore::Containerd => "overlayfs",
        }
    }

    fn of_name(name: &str) -> Option<ImageStore> {
        let all = [ImageStore::Classic, ImageStore::Containerd];
        all.into_iter().find(|store| store.name() == name.trim())
    }
}

/// The store of the volume that is mounted at `root`; an empty one is begun as `wanted`.
pub(crate) fn of_volume(root: &Path, wanted: ImageStore) -> io::Result<ImageStore> {
    let mark = root.join(MARK);
    let marked = match std::fs::read_to_string(&mark) {
        Ok(text) => ImageStore::of_name(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(store) = marked {
        return Ok(store);
    }
    let store = if root.join(CLASSIC_DIR).try_exists()? {
        ImageStore::Classic
    } else {
        wanted
    };
    std::fs::write(&mark, store.name())?;
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_keeps_the_store_it_was_begun_with() {
        use ImageStore::{Classic, Containerd};
        for (old, first, later, want) in [
            (false, Containerd, Classic, Containerd),
            (false, Classic, Containerd, Classic),
            (true, Containerd, Containerd, Classic),
        ] {
            let volume = tempfile::tempdir().expect("a directory");
            if old {
                std::fs::create_dir(volume.path().join(CLASSIC_DIR)).expect("made");
            }
            for wanted in [first, later] {
                let found = of_volume(volume.path(), wanted).expect("read");
                assert_eq!(found, want, "{old} {first:?} {later:?}");
            }
        }
    }

    #[test]
    fn a_mark_that_says_nothing_is_made_anew() {
        let volume = tempfile::tempdir().expect("a directory");
        std::fs::write(volume.path().join(MARK), "").expect("written");
        let found = of_volume(volume.path(), ImageStore::Containerd).expect("read");
        assert_eq!(found, ImageStore::Containerd);
        let found = of_volume(volume.path(), ImageStore::Classic).expect("read");
        assert_eq!(found, ImageStore::Containerd);
    }
}
