//! Where a pool keeps what is not blocks: locks, markers, mount points. Ids are validated types, so that no path leaves it.
//!
//! ```text
//! POOL/pool.id                which pool it is, whatever its host is called
//! POOL/pool.lock              held while the sum of the promises may change
//! POOL/volumes/ID.attached    who holds it (see `marker`)
//! POOL/volumes/ID.foreign     its blocks are not of this host's kernel (see `marker`)
//! POOL/volumes/ID.lock        held during any operation on the one volume
//! POOL/mnt/ID                 where earlier versions mounted it
//! ```
//!
//! Must not know: what volumes are made of.

use crate::error::VolumeError;
use crate::marker::{Foreign, remove_if_there, sync_parent};
use slipway_core::id::{SnapshotId, VolumeId};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The directories of one pool.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Makes what is not there.
    pub(crate) fn make(pool_dir: &Path) -> Result<Self, VolumeError> {
        make_dir(pool_dir)?;
        // Device and mount tables show canonical paths.
        let root = pool_dir
            .canonicalize()
            .map_err(VolumeError::io("resolve", pool_dir))?;
        let layout = Self { root };
        // What is inside volumes must be out of reach of the host's users.
        let dir = layout.volumes_dir();
        make_dir(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700))
            .map_err(VolumeError::io("restrict", &dir))?;
        Ok(layout)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Which pool this is. Drawn once.
    pub(crate) fn pool_id(&self) -> Result<String, VolumeError> {
        let path = self.root.join("pool.id");
        let read = || std::fs::read_to_string(&path).map(|text| text.trim().to_owned());
        match read() {
            Ok(id) if !id.is_empty() => return Ok(id),
            // An empty one is of a disk that was full.
            Ok(_) => remove_if_there(&path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(VolumeError::io("read", &path)(error)),
        }
        let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
            .map_err(VolumeError::io("draw an id for", &path))?;
        // Two that open it at once agree, since only one can make the file.
        let fresh = path.with_extension(format!("{}.tmp", id.trim()));
        let written = write_synced(&fresh, &id);
        let linked = written.and_then(|()| std::fs::hard_link(&fresh, &path));
        remove_if_there(&fresh)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(VolumeError::io("write", &path)(error));
            }
            Ok(()) | Err(_) => sync_parent(&path)?,
        }
        read().map_err(VolumeError::io("read", &path))
    }

    pub(crate) fn pool_lock(&self) -> PathBuf {
        self.root.join("pool.lock")
    }

    pub(crate) fn volumes_dir(&self) -> PathBuf {
        self.root.join("volumes")
    }

    pub(crate) fn marker(&self, id: &VolumeId) -> PathBuf {
        self.volumes_dir().join(format!("{id}.attached"))
    }

    /// See [`crate::marker::Foreign`].
    pub(crate) fn foreign(&self, id: &VolumeId) -> Foreign {
        Foreign::at(self.volumes_dir().join(format!("{id}.foreign")))
    }

    /// The same of a snapshot.
    pub(crate) fn foreign_snapshot(&self, id: &SnapshotId) -> Foreign {
        Foreign::at(self.volumes_dir().join(format!("{id}.foreign")))
    }

    pub(crate) fn lock(&self, id: &VolumeId) -> PathBuf {
        self.volumes_dir().join(format!("{id}.lock"))
    }

    pub(crate) fn snapshot_lock(&self, id: &SnapshotId) -> PathBuf {
        self.volumes_dir().join(format!("{id}.lock"))
    }

    pub(crate) fn old_mount_point(&self, id: &VolumeId) -> PathBuf {
        self.root.join("mnt").join(id.as_str())
    }

    /// The names of all files in `dir`; one that is not UTF-8 is not ours.
    pub(crate) fn file_names(dir: &Path) -> Result<Vec<String>, VolumeError> {
        let fail = || VolumeError::io::<io::Error>("list", dir);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(fail())? {
            if let Ok(name) = entry.map_err(fail())?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }
}

fn write_synced(path: &Path, text: &str) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// For root alone.
pub(crate) fn make_dir(path: &Path) -> Result<(), VolumeError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(VolumeError::io("make directory", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_the_same_at_each_opening_and_no_two_are_alike() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str| {
            let layout = Layout::make(&dir.path().join(name)).unwrap();
            layout.pool_id().unwrap()
        };
        let first = of("a");
        assert!(!first.is_empty());
        assert_eq!(of("a"), first);
        assert_ne!(of("b"), first);
        // What a full disk has left.
        std::fs::write(dir.path().join("c"), "").unwrap_or_default();
        std::fs::remove_file(dir.path().join("c")).unwrap();
        std::fs::create_dir(dir.path().join("c")).unwrap();
        std::fs::write(dir.path().join("c/pool.id"), "").unwrap();
        let third = of("c");
        assert!(!third.is_empty() && of("c") == third);
    }
}
