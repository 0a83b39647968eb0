//! The attachment marker: a small file beside the volume that says who holds it.
//!
//! It is on disk before the volume's file system is mounted, and goes after it was unmounted cleanly. So one that is
//! found while nothing is mounted tells of an unclean end.
//!
//! Must not know: mounts, devices.

use crate::driver::AttachAs;
use crate::error::VolumeError;
use crate::limits::MARKER_BYTES_MAX;
use serde::{Deserialize, Serialize};
use slipway_core::id::MachineId;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What the file holds.
#[derive(Serialize, Deserialize)]
struct Content {
    holder: MachineId,
    /// It has the block device, and mounts it by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    device: bool,
}

/// What a look at the marker shows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Marker {
    Absent,
    HeldBy(MachineId, AttachAs),
    /// It is there, but does not say for whom (torn by a crash of the disk below, or not ours).
    Unreadable,
}

impl Marker {
    pub(crate) fn read(path: &Path) -> Result<Self, VolumeError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Absent),
            Err(error) => return Err(VolumeError::io("open", path)(error)),
        };
        let mut text = Vec::new();
        file.take(MARKER_BYTES_MAX + 1)
            .read_to_end(&mut text)
            .map_err(VolumeError::io("read", path))?;
        Ok(match serde_json::from_slice::<Content>(&text) {
            Ok(Content {
                holder,
                device: true,
            }) => Self::HeldBy(holder, AttachAs::Device),
            Ok(Content {
                holder,
                device: false,
            }) => Self::HeldBy(holder, AttachAs::Mount),
            Err(_) => Self::Unreadable,
        })
    }

    /// Writes the marker so that it survives a power cut: contents first, then the name, then the directory.
    pub(crate) fn write(path: &Path, holder: &MachineId, how: AttachAs) -> Result<(), VolumeError> {
        let temporary = temporary(path);
        let mut text = serde_json::to_vec(&Content {
            holder: holder.clone(),
            device: how == AttachAs::Device,
        })
        .map_err(|error| VolumeError::io("encode", path)(io::Error::from(error)))?;
        text.push(b'\n');
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(VolumeError::io("create", &temporary))?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(VolumeError::io("write", &temporary))?;
        std::fs::rename(&temporary, path).map_err(VolumeError::io("rename", path))?;
        sync_parent(path)
    }

    /// Removes the marker; an absent one is fine.
    pub(crate) fn remove(path: &Path) -> Result<(), VolumeError> {
        remove_if_there(path)?;
        sync_parent(path)
    }
}

/// A mark beside a volume or a snapshot: others than this host's kernel have written its blocks, as a virtual machine does that
/// has the device. The kernel never mounts such a file system, for a crafted one is an attack on it. The mark goes with the
/// volume.
#[derive(Debug)]
pub(crate) struct Foreign {
    path: PathBuf,
}

impl Foreign {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn is_set(&self) -> Result<bool, VolumeError> {
        self.path
            .try_exists()
            .map_err(VolumeError::io("look for", &self.path))
    }

    /// Marks it, also through a power cut.
    pub(crate) fn set(&self) -> Result<(), VolumeError> {
        if !self.is_set()? {
            std::fs::File::create(&self.path).map_err(VolumeError::io("make", &self.path))?;
        }
        // Also of one that is there: whoever made it may have been killed before this. It costs nothing where it was done.
        sync_parent(&self.path)
    }

    /// Sets or removes it, for something that is not there yet.
    pub(crate) fn put(&self, set: bool) -> Result<(), VolumeError> {
        if set { self.set() } else { self.remove() }
    }

    pub(crate) fn remove(&self) -> Result<(), VolumeError> {
        remove_if_there(&self.path)
    }
}

fn temporary(path: &Path) -> PathBuf {
    path.with_extension("attached.tmp")
}

/// Removes a file; an absent one is fine.
pub(crate) fn remove_if_there(path: &Path) -> Result<(), VolumeError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(VolumeError::io("remove", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes names in the directory of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), VolumeError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(VolumeError::io("sync", parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_absent_held_and_unreadable_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.attached");
        let holder = MachineId::from_entropy([7; 10]);
        assert_eq!(Marker::read(&path).unwrap(), Marker::Absent);
        for how in [AttachAs::Device, AttachAs::Mount] {
            Marker::write(&path, &holder, how).unwrap();
            assert_eq!(
                Marker::read(&path).unwrap(),
                Marker::HeldBy(holder.clone(), how)
            );
        }
        let text = std::fs::read(&path).unwrap();
        for torn in [&text[..0], &text[..5], &text[..text.len() - 3]] {
            std::fs::write(&path, torn).unwrap();
            assert_eq!(Marker::read(&path).unwrap(), Marker::Unreadable);
        }
        Marker::remove(&path).unwrap();
        Marker::remove(&path).unwrap();
        assert_eq!(Marker::read(&path).unwrap(), Marker::Absent);
    }
}
