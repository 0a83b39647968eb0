//! Named pieces of bytes in a directory or in a tar file, as image layouts keep them.
//!
//! A tar is not unpacked: its entries are found once and read where they lie. Knows nothing of images.

use super::{Place, SourceError};
use crate::limits::{ARCHIVE_ENTRIES, ARCHIVE_HEADER_BYTES, ARCHIVE_LINKS};
use rustix::fs::{CWD, Mode, OFlags};
use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::Seek as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where names are looked up. Names are relative and never climb out.
#[derive(Debug)]
pub(super) enum Blobs {
    /// Files below a directory. Links are followed: layouts are made with them, and every content is checked by digest.
    Directory(PathBuf),
    /// Entries of a tar.
    Tar(Tar),
}

#[derive(Debug)]
pub(super) struct Tar {
    path: PathBuf,
    file: Arc<File>,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    File {
        offset: u64,
        length: u64,
    },
    /// To another name, from the top of the archive.
    Link(String),
}

/// A stretch of a file, read from its start.
#[derive(Debug)]
pub(super) struct Slice {
    file: Arc<File>,
    path: PathBuf,
    offset: u64,
    left: u64,
}

/// What the library reads of a tar: headers, long names and extensions of one entry at a time. It keeps them in memory, as long as the
/// archive says they are, so that they need a bound. Contents are stepped over.
struct Headers<'a> {
    file: &'a File,
    left: &'a Cell<u64>,
}

impl std::io::Read for Headers<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.left.get();
        if left == 0 && !buffer.is_empty() {
            return Err(std::io::Error::other(format!(
                "an entry's headers have more than {ARCHIVE_HEADER_BYTES} bytes"
            )));
        }
        let count = self.file.take(left).read(buffer)?;
        self.left.set(left - count as u64);
        Ok(count)
    }
}

impl std::io::Seek for Headers<'_> {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        self.file.seek(to)
    }
}

impl Blobs {
    /// A directory, or a tar file that can be read at any place.
    pub(super) fn open(path: &Path) -> Result<Blobs, SourceError> {
        let kind = std::fs::metadata(path).map_err(SourceError::io("open", path))?;
        if kind.is_dir() {
            return Ok(Blobs::Directory(path.to_path_buf()));
        }
        let file = File::open(path).map_err(SourceError::io("open", path))?;
        Blobs::tar(file, path).map(Blobs::Tar)
    }

    /// A tar file that is open; `path` is for messages.
    pub(super) fn tar(file: File, path: &Path) -> Result<Tar, SourceError> {
        let damaged = |error: std::io::Error| SourceError::Damaged {
            path: path.to_path_buf(),
            reason: format!("not a tar archive: {error}"),
        };
        let mut entries = HashMap::new();
        (&file).rewind().map_err(SourceError::io("read", path))?;
        let left = Cell::new(ARCHIVE_HEADER_BYTES);
        let mut archive = tar::Archive::new(Headers {
            file: &file,
            left: &left,
        });
        for entry in archive.entries_with_seek().map_err(damaged)? {
            let entry = entry.map_err(damaged)?;
            left.set(ARCHIVE_HEADER_BYTES);
            if entries.len() >= ARCHIVE_ENTRIES {
                return Err(SourceError::Damaged {
                    path: path.to_path_buf(),
                    reason: format!("more than {ARCHIVE_ENTRIES} entries"),
                });
            }
            // Names that are not UTF-8 belong to no image layout.
            let Some(name) = text(&entry.path_bytes()).and_then(|name| clean("", &name)) else {
                continue;
            };
            let kind = entry.header().entry_type();
            let found = if kind.is_file() {
                Entry::File {
                    offset: entry.raw_file_position(),
                    length: entry.size(),
                }
            } else if kind.is_symlink() || kind.is_hard_link() {
                let from = if kind.is_symlink() { name.as_str() } else { "" };
                let target = entry.link_name_bytes().and_then(|name| text(&name));
                match target.and_then(|target| clean(from, &target)) {
                    Some(target) => Entry::Link(target),
                    None => continue,
                }
            } else {
                continue;
            };
            entries.insert(name, found);
        }
        Ok(Tar {
            path: path.to_path_buf(),
            file: Arc::new(file),
            entries,
        })
    }

    /// A whole small piece; `None` when there is none of that name.
    pub(super) fn small(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let Some(mut slice) = self.find(name)? else {
            return Ok(None);
        };
        let length = usize::try_from(slice.left)
            .ok()
            .filter(|_| slice.left <= limit)
            .ok_or_else(|| SourceError::TooLong {
                path: self.place(name),
                limit,
            })?;
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            filled += slice.fill(&mut bytes[filled..])?;
        }
        Ok(Some(bytes))
    }

    /// A piece by its name; `None` when there is none.
    pub(super) fn find(&self, name: &str) -> Result<Option<Slice>, SourceError> {
        let Some(name) = clean("", name) else {
            return Ok(None);
        };
        match self {
            Blobs::Directory(directory) => open_file(&directory.join(name)),
            Blobs::Tar(tar) => Ok(tar.find(&name)),
        }
    }

    /// The file that a piece is, if it is one by itself.
    pub(super) fn place_of(&self, name: &str) -> Option<Place> {
        let Blobs::Directory(directory) = self else {
            return None;
        };
        let kind = std::fs::metadata(directory.join(clean("", name)?)).ok()?;
        Some(Place::of_file(&kind))
    }

    /// For messages.
    pub(super) fn place(&self, name: &str) -> PathBuf {
        match self {
            Blobs::Directory(directory) => directory.join(name),
            Blobs::Tar(tar) => tar.path.join(name),
        }
    }
}

impl Tar {
    /// Of all entries.
    #[cfg(feature = "fuzz")]
    pub(super) fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    fn find(&self, name: &str) -> Option<Slice> {
        let mut name = name;
        for _ in 0..ARCHIVE_LINKS {
            match self.entries.get(name)? {
                Entry::Link(target) => name = target,
                Entry::File { offset, length } => {
                    return Some(Slice {
                        file: self.file.clone(),
                        path: self.path.join(name),
                        offset: *offset,
                        left: *length,
                    });
                }
            }
        }
        None
    }
}

fn open_file(path: &Path) -> Result<Option<Slice>, SourceError> {
    // A pipe must not block the open.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(SourceError::io("open", path)(errno.into())),
    };
    let kind = file.metadata().map_err(SourceError::io("stat", path))?;
    Ok(kind.is_file().then(|| Slice {
        file: Arc::new(file),
        path: path.to_path_buf(),
        offset: 0,
        left: kind.len(),
    }))
}

impl Slice {
    /// Bytes that are left.
    pub(super) fn length(&self) -> u64 {
        self.left
    }

    /// Fills some of `buffer`; 0 at the end. A file that ends early is damaged.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let room = room.min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        loop {
            match self.file.read_at(&mut buffer[..room], self.offset) {
                Ok(0) => {
                    return Err(SourceError::Damaged {
                        path: self.path.clone(),
                        reason: format!("it ends {} bytes early", self.left),
                    });
                }
                Ok(count) => {
                    self.offset += count as u64;
                    self.left -= count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SourceError::io("read", &self.path)(error)),
            }
        }
    }
}

impl std::io::Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.fill(buffer).map_err(std::io::Error::other)
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

/// A name seen from the folder of `from`, without dots; `None` if it climbs out or names nothing.
fn clean(from: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = match name.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => from
            .rsplit_once('/')
            .map_or(Vec::new(), |(folder, _)| folder.split('/').collect()),
    };
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_seen_from_their_folder() {
        for (from, name, expected) in [
            ("", "./a//b", Some("a/b")),
            ("", "../a", None),
            ("x/layer.tar", "../y/layer.tar", Some("y/layer.tar")),
            ("x/layer.tar", "../../y", None),
            ("x/layer.tar", "/y", Some("y")),
            ("", ".", None),
        ] {
            assert_eq!(clean(from, name).as_deref(), expected, "{from} {name}");
        }
    }

    #[test]
    fn entries_and_links_of_a_tar() {
        let base = tempfile::tempdir().expect("tempdir");
        let path = base.path().join("x.tar");
        let mut builder = tar::Builder::new(File::create(&path).expect("create"));
        let mut put = |name: &str, kind: tar::EntryType, link: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            if link.is_empty() {
                builder
                    .append_data(&mut header, name, content)
                    .expect("append");
            } else {
                builder
                    .append_link(&mut header, name, link)
                    .expect("append");
            }
        };
        put("a/layer.tar", tar::EntryType::Regular, "", b"layer");
        put(
            "b/layer.tar",
            tar::EntryType::Symlink,
            "../a/layer.tar",
            b"",
        );
        put("c", tar::EntryType::Link, "a/layer.tar", b"");
        put("loop", tar::EntryType::Symlink, "loop", b"");
        put("out", tar::EntryType::Symlink, "../../etc/passwd", b"");
        let long = "d".repeat(300);
        put(&long, tar::EntryType::Regular, "", b"long");
        builder.finish().expect("finish");
        let blobs = Blobs::open(&path).expect("opens");
        let read = |name: &str| blobs.small(name, 100).expect("reads");
        for name in ["a/layer.tar", "./b/layer.tar", "c"] {
            assert_eq!(read(name).as_deref(), Some(&b"layer"[..]), "{name}");
        }
        assert_eq!(read(&long).as_deref(), Some(&b"long"[..]));
        for name in ["loop", "out", "none", "../a/layer.tar"] {
            assert_eq!(read(name), None, "{name}");
        }
        assert!(matches!(
            blobs.small("c", 4),
            Err(SourceError::TooLong { .. })
        ));
    }

    #[test]
    fn a_name_without_end_is_refused_before_it_is_in_memory() {
        let base = tempfile::tempdir().expect("tempdir");
        let path = base.path().join("x.tar");
        for (kind, size, is_fine) in [
            (tar::EntryType::GNULongName, ARCHIVE_HEADER_BYTES / 2, true),
            (tar::EntryType::GNULongName, 64 << 30, false),
            (tar::EntryType::XHeader, 64 << 30, false),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(size);
            header.set_cksum();
            std::fs::write(&path, header.as_bytes()).expect("write");
            let file = File::options().write(true).open(&path).expect("open");
            file.set_len(512 + size).expect("sparse");
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_cksum();
            file.write_all_at(header.as_bytes(), 512 + size)
                .expect("write");
            let found = Blobs::open(&path).map(drop);
            assert_eq!(found.is_ok(), is_fine, "{kind:?} {size}: {found:?}");
        }
    }

    #[test]
    fn a_tar_cut_anywhere_is_an_error_or_holds_less() {
        let base = tempfile::tempdir().expect("tempdir");
        let path = base.path().join("x.tar");
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1000);
        builder
            .append_data(&mut header, "file", &[7_u8; 1000][..])
            .expect("append");
        let whole = builder.into_inner().expect("finish");
        for length in (0..whole.len()).step_by(100) {
            std::fs::write(&path, &whole[..length]).expect("write");
            let found = Blobs::open(&path).and_then(|blobs| blobs.small("file", 1000));
            if let Ok(Some(content)) = found {
                assert_eq!(content, [7; 1000], "{length}");
            }
        }
    }
}
