//! What a machine's memory belongs to: all that must be the same when it goes on from it. Anything else, and it boots.
//!
//! Must not know: how memory is kept.

use crate::process::boot_id;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use slipway_core::id::VolumeId;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes at the head of a volume that tell its state: ext4's superblock lies in them. Whoever mounts, checks, grows or restores
/// a file system writes there.
const HEAD_BYTES: u64 = 4096;

/// Where memory comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Origin {
    /// The host's boot: its processor, its clocks.
    pub(super) boot: String,
    /// The volume.
    pub(super) volume: VolumeId,
    /// QEMU's command line: every device, the memory, the address.
    pub(super) arguments: Vec<String>,
    /// QEMU and what was booted.
    pub(super) files: Vec<FileMark>,
}

impl Origin {
    /// Of a machine that is started now on `volume`, with these arguments and files.
    ///
    /// # Errors
    /// A file cannot be looked at.
    pub(super) fn now(
        volume: &VolumeId,
        arguments: &[String],
        files: &[&File],
    ) -> io::Result<Self> {
        Ok(Self {
            boot: boot_id()?,
            volume: volume.clone(),
            arguments: arguments.to_vec(),
            files: files
                .iter()
                .map(|file| FileMark::of(file))
                .collect::<Result<_, _>>()?,
        })
    }

    /// What differs in the other; nothing if they are the same.
    pub(super) fn differs(&self, other: &Self) -> Option<&'static str> {
        if self.boot != other.boot {
            Some("the host was started anew")
        } else if self.volume != other.volume {
            Some("it has another volume")
        } else if self.arguments != other.arguments {
            Some("it is another machine by QEMU's command line")
        } else if self.files != other.files {
            Some("QEMU or what is booted was replaced")
        } else {
            None
        }
    }
}

/// Which file it is, unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileMark {
    device: u64,
    inode: u64,
    bytes: u64,
    written_s: i64,
    written_ns: i64,
}

impl FileMark {
    fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.len(),
            written_s: found.mtime(),
            written_ns: found.mtime_nsec(),
        })
    }
}

/// The state of a volume that nobody writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VolumeMark {
    bytes: u64,
    head: String,
}

impl VolumeMark {
    /// Of an open device.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn of(device: &File) -> io::Result<Self> {
        let mut device = device;
        let bytes = device.seek(io::SeekFrom::End(0))?;
        device.seek(io::SeekFrom::Start(0))?;
        let mut head = Vec::new();
        device.take(HEAD_BYTES).read_to_end(&mut head)?;
        let head = Sha256::digest(&head);
        Ok(Self {
            bytes,
            head: head.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

/// Whether what is on a block device is encrypted on disk. What cannot be told counts as encrypted.
pub(super) fn is_encrypted(device: &Path) -> bool {
    let Ok(device) = fs::canonicalize(device) else {
        return true;
    };
    let Some(name) = device.file_name().filter(|_| device.starts_with("/dev")) else {
        return true;
    };
    let mapped = Path::new("/sys/class/block").join(name).join("dm/uuid");
    match fs::read_to_string(mapped) {
        Ok(uuid) => uuid.starts_with("CRYPT-"),
        // Not the device mapper's.
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Opens the program that a name stands for.
///
/// # Errors
/// There is none in `PATH`.
pub(super) fn open_program(name: &Path) -> io::Result<File> {
    if name.components().count() > 1 {
        return File::open(name);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found: Option<PathBuf> = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    File::open(found.ok_or(io::ErrorKind::NotFound)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn anything_else_is_another_origin() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let volume = VolumeId::from_entropy([1; 10]);
        let arguments = ["-m".to_owned(), "size=1k".to_owned()];
        let origin = |volume: &VolumeId, arguments: &[String], file: &File| {
            Origin::now(volume, arguments, &[file]).unwrap()
        };
        let one = origin(&volume, &arguments, file.as_file());
        assert_eq!(
            one.differs(&origin(&volume, &arguments, file.as_file())),
            None
        );
        let other = VolumeId::from_entropy([2; 10]);
        let others = [
            origin(&other, &arguments, file.as_file()),
            origin(&volume, &arguments[..1], file.as_file()),
            origin(&volume, &arguments, &tempfile::tempfile().unwrap()),
            Origin {
                boot: "another".into(),
                ..one.clone()
            },
        ];
        for other in others {
            assert!(one.differs(&other).is_some(), "{other:?}");
        }
        file.write_all(b"x").unwrap();
        let written = origin(&volume, &arguments, file.as_file());
        assert!(one.differs(&written).is_some());
    }

    #[test]
    fn a_volume_that_was_written_or_grown_is_not_the_same() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let mark = VolumeMark::of(&file).unwrap();
        assert_eq!(VolumeMark::of(&file).unwrap(), mark);
        std::os::unix::fs::FileExt::write_at(&file, b"x", 1100).unwrap();
        assert_ne!(VolumeMark::of(&file).unwrap(), mark);
        let mark = VolumeMark::of(&file).unwrap();
        file.set_len(2 << 20).unwrap();
        assert_ne!(VolumeMark::of(&file).unwrap(), mark);
    }

    #[test]
    fn what_cannot_be_told_counts_as_encrypted() {
        assert!(is_encrypted(Path::new("/dev/no-such-device")));
        assert!(is_encrypted(Path::new("/etc/passwd")));
        assert!(!is_encrypted(Path::new("/dev/null")));
    }

    #[test]
    fn a_program_is_found_as_the_shell_finds_it() {
        assert!(open_program(Path::new("sh")).is_ok());
        assert!(open_program(Path::new("/bin/sh")).is_ok());
        assert!(open_program(Path::new("no-such-program")).is_err());
    }
}
