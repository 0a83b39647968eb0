//! Where a pool keeps what is not blocks: locks, markers, mount points. Ids are validated types, so that no path leaves it.
//!
//! ```text
//! POOL/pool.lock              held while the sum of the promises may change
//! POOL/volumes/ID.attached    who holds it (see `marker`)
//! POOL/volumes/ID.foreign     its blocks are not of this host's kernel (see `marker`)
//! POOL/volumes/ID.lock        held during any operation on the one volume
//! POOL/mnt/ID                 where earlier versions mounted it
//! ```
//!
//! Must not know: what volumes are made of.

use crate::error::VolumeError;
use crate::marker::Foreign;
use slipway_core::id::{SnapshotId, VolumeId};
use std::io;
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

/// For root alone.
pub(crate) fn make_dir(path: &Path) -> Result<(), VolumeError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(VolumeError::io("make directory", path))
}
