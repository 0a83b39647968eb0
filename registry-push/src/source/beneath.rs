//! Opens files of a layer directory without ever leaving it.
//!
//! Layer content is hostile: any path component may be a symbolic link to anywhere. The kernel resolves names as if the
//! layer were the root directory (`openat2`, `RESOLVE_IN_ROOT`), which is also what dockerd did when it unpacked the layer in a
//! chroot, so a name through a link of the same layer finds the file it was unpacked to. No device, pipe or magic link is opened.

use super::SourceError;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Tries for a name while somebody renames directories on the way to it (`EAGAIN` of openat2).
const OPEN_TRIES: u32 = 8;

/// A layer's directory, held open.
#[derive(Debug)]
pub(crate) struct LayerDir {
    directory: OwnedFd,
    path: PathBuf,
}

impl LayerDir {
    /// Opens the directory; its last component must not be a link.
    pub(crate) fn open(path: &Path) -> Result<LayerDir, SourceError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|errno| SourceError::io("open layer directory", path)(errno.into()))?;
        Ok(LayerDir {
            directory,
            path: path.to_path_buf(),
        })
    }

    /// Opens a regular file of exactly `size` bytes by its name in the layer's tar.
    pub(crate) fn open_file(&self, name: &[u8], size: u64) -> Result<File, SourceError> {
        let relative = clean(name).ok_or_else(|| SourceError::Escapes { name: shown(name) })?;
        // A pipe must not block the open, and a terminal must not become ours.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let changed = |reason: String| SourceError::FileChanged {
            name: shown(name),
            reason,
        };
        let mut tries = 0;
        let file = loop {
            tries += 1;
            match rustix::fs::openat2(
                &self.directory,
                relative.as_slice(),
                flags,
                Mode::empty(),
                resolve,
            ) {
                Ok(file) => break file,
                Err(Errno::AGAIN | Errno::INTR) if tries < OPEN_TRIES => {}
                Err(Errno::NOENT | Errno::LOOP | Errno::XDEV | Errno::NXIO | Errno::NOTDIR) => {
                    return Err(changed("it is not there".to_string()));
                }
                Err(errno) => {
                    return Err(SourceError::io("open a file in", &self.path)(errno.into()));
                }
            }
        };
        let stat = rustix::fs::fstat(&file)
            .map_err(|errno| SourceError::io("stat a file in", &self.path)(errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(changed("it is no regular file".to_string()));
        }
        if u64::try_from(stat.st_size) != Ok(size) {
            return Err(changed(format!("{} bytes instead of {size}", stat.st_size)));
        }
        Ok(File::from(file))
    }
}

/// A name of the tar relative to the layer, cleaned lexically as dockerd does before it unpacks; `None` if it climbs out.
fn clean(name: &[u8]) -> Option<Vec<u8>> {
    if name.contains(&0) {
        return None;
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        None
    } else {
        Some(parts.join(&b'/'))
    }
}

/// A name fit for a message.
pub(crate) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name.get(..name.len().min(300)).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn names_are_cleaned_and_never_climb_out() {
        for (name, expected) in [
            ("etc/passwd", Some("etc/passwd")),
            ("./etc//passwd", Some("etc/passwd")),
            ("/etc/passwd", Some("etc/passwd")),
            ("a/../b", Some("b")),
            ("..", None),
            ("../x", None),
            ("a/../../x", None),
            ("", None),
            ("./", None),
            ("a\0b", None),
        ] {
            assert_eq!(
                clean(name.as_bytes()),
                expected.map(|e| e.as_bytes().to_vec()),
                "{name:?}"
            );
        }
        assert_eq!(clean(b"caf\xe9/x"), Some(b"caf\xe9/x".to_vec()));
    }

    #[test]
    fn links_stay_inside_and_only_regular_files_of_the_right_size_open() {
        let base = tempfile::tempdir().expect("tempdir");
        let diff = base.path().join("diff");
        std::fs::create_dir_all(diff.join("usr/lib")).expect("mkdir");
        std::fs::write(base.path().join("secret"), b"secret").expect("write");
        std::fs::write(diff.join("usr/lib/x"), b"inside").expect("write");
        std::os::unix::fs::symlink("/usr/lib", diff.join("lib")).expect("link");
        std::os::unix::fs::symlink("../secret", diff.join("leaf")).expect("link");
        std::os::unix::fs::symlink("..", diff.join("up")).expect("link");
        std::os::unix::fs::symlink(base.path(), diff.join("absolute")).expect("link");
        rustix::fs::mknodat(CWD, diff.join("pipe"), FileType::Fifo, Mode::RWXU, 0).expect("mkfifo");
        let layer = LayerDir::open(&diff).expect("opens");

        let mut text = String::new();
        layer
            .open_file(b"lib/x", 6)
            .expect("through a link of the layer")
            .read_to_string(&mut text)
            .expect("read");
        assert_eq!(text, "inside");
        for name in [
            "leaf",
            "up/secret",
            "absolute/secret",
            "usr/lib/y",
            "usr/lib/x/y",
        ] {
            let found = layer.open_file(name.as_bytes(), 6);
            assert!(
                matches!(found, Err(SourceError::FileChanged { .. })),
                "{name}: {found:?}"
            );
        }
        assert!(matches!(
            layer.open_file(b"../secret", 6),
            Err(SourceError::Escapes { .. })
        ));
        assert!(matches!(
            layer.open_file(b"usr/lib/x", 7),
            Err(SourceError::FileChanged { .. })
        ));
        assert!(matches!(
            layer.open_file(b"pipe", 6),
            Err(SourceError::FileChanged { .. })
        ));
        assert!(matches!(
            layer.open_file(b"usr", 6),
            Err(SourceError::FileChanged { .. })
        ));
        std::os::unix::fs::symlink(&diff, base.path().join("link")).expect("link");
        assert!(LayerDir::open(&base.path().join("link")).is_err());
    }
}
