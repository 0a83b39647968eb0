//! A tree by the system calls of Unix: what is opened is opened from its root's descriptor on, so that nothing that changes
//! meanwhile leads out of it.

use super::{Kind, LookError, Seen, Why, go_mode};
use crate::filesync::packet::Stat;
#[cfg(target_os = "linux")]
use rustix::fs::ResolveFlags;
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, RawMode};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Name of an entry.
pub(in crate::filesync) type Name = CString;

/// How a directory is opened only to go on from it.
#[cfg(target_os = "linux")]
const PASSED: OFlags = OFlags::PATH;
/// How a directory is opened only to go on from it.
#[cfg(not(target_os = "linux"))]
const PASSED: OFlags = OFlags::RDONLY;
/// Longest link target the kernel gives, in bytes.
const LINK_BYTES_MAX: usize = 4096;
/// Longest list of names of extended attributes that the kernel gives, in bytes.
const XATTR_NAMES_BYTES_MAX: usize = 64 << 10;
/// Extended attributes of macOS mean nothing in an image.
const APPLE_XATTR_PREFIX: &str = "com.apple.";

/// The root of a tree.
#[derive(Debug)]
pub(in crate::filesync) struct Tree {
    root: OwnedFd,
}

/// A directory of a tree, open.
#[derive(Debug)]
pub(in crate::filesync) struct OpenDir {
    dir: Dir,
}

impl Tree {
    /// Opens a root. The root itself may be named through symbolic links.
    pub(in crate::filesync) fn open(root: &Path) -> Result<Tree, LookError> {
        let flags = PASSED | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Tree {
            root: fs::open(root, flags, Mode::empty())?,
        })
    }

    /// Opens a directory; the empty path is the root.
    pub(in crate::filesync) fn open_dir(&self, path: &[u8]) -> Result<OpenDir, LookError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = if path.is_empty() { b"." } else { path };
        let dir = Dir::new(self.open_beneath(path, flags)?)?;
        Ok(OpenDir { dir })
    }

    /// Opens a file to read. Never waits, even if the entry has become a pipe meanwhile.
    pub(in crate::filesync) fn open_file(&self, path: &[u8]) -> Result<File, LookError> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(File::from(self.open_beneath(path, flags)?))
    }

    fn open_beneath(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = CString::new(path).map_err(|_| Errno::INVAL)?;
        #[cfg(not(target_os = "linux"))]
        return self.open_by_steps(&path, flags);
        #[cfg(target_os = "linux")]
        self.open_at_once(&path, flags)
    }

    #[cfg(target_os = "linux")]
    fn open_at_once(&self, path: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        let beneath =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match fs::openat2(
            &self.root,
            path,
            flags | OFlags::NOFOLLOW,
            Mode::empty(),
            beneath,
        ) {
            // Kernels before 5.6 lack it, and some sandboxes forbid what they do not know.
            Err(Errno::NOSYS | Errno::PERM) => self.open_by_steps(path, flags),
            opened => opened,
        }
    }

    fn open_by_steps(&self, path: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut steps = path.to_bytes().split(|byte| *byte == b'/').peekable();
        let mut at: Option<OwnedFd> = None;
        while let Some(step) = steps.next() {
            if step == b".." {
                return Err(Errno::XDEV);
            }
            let here: BorrowedFd<'_> = at.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            let flags = match steps.peek() {
                Some(_) => PASSED | OFlags::DIRECTORY | OFlags::CLOEXEC,
                None => flags,
            };
            at = Some(fs::openat(
                here,
                step,
                flags | OFlags::NOFOLLOW,
                Mode::empty(),
            )?);
        }
        at.ok_or(Errno::NOENT)
    }
}

impl OpenDir {
    /// Names and, where the file system tells, types of all entries, in no order.
    pub(in crate::filesync) fn entries(&mut self) -> Result<Vec<(Name, Kind)>, LookError> {
        let mut entries = Vec::new();
        while let Some(entry) = self.dir.read() {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                entries.push((name.to_owned(), kind_of(entry.file_type())));
            }
        }
        Ok(entries)
    }

    fn fd(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.dir.fd()
    }

    /// What kind an entry is of, for file systems that do not tell in the directory.
    pub(in crate::filesync) fn type_of(&self, name: &Name) -> Result<Kind, LookError> {
        let stat = fs::statat(self.fd()?, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(kind_of(FileType::from_raw_mode(stat.st_mode)))
    }

    /// Where a symbolic link points to.
    pub(in crate::filesync) fn link_of(&self, name: &Name) -> Result<Vec<u8>, LookError> {
        let target = Vec::with_capacity(LINK_BYTES_MAX);
        match fs::readlinkat(self.fd()?, name.as_c_str(), target) {
            Ok(target) => Ok(target.into_bytes()),
            // For this call alone it means that the entry is no link.
            Err(Errno::INVAL) => Err(LookError::new(Why::OtherKind, Errno::INVAL.into())),
            Err(errno) => Err(errno.into()),
        }
    }

    /// All about an entry, as the sync tells it. `path` is the entry's path in the tree.
    pub(in crate::filesync) fn look(&self, name: &Name, path: Vec<u8>) -> Result<Seen, LookError> {
        let seen = fs::statat(self.fd()?, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(seen.st_mode);
        let mut stat = Stat {
            path,
            mode: go_mode_of(seen.st_mode),
            modified: nanos(seen.st_mtime, seen.st_mtime_nsec),
            xattrs: self.xattrs(name),
            ..Stat::default()
        };
        if kind != FileType::Directory {
            stat.size = seen.st_size;
        }
        if kind == FileType::Symlink {
            stat.link = self.link_of(name)?;
        }
        if kind == FileType::BlockDevice || kind == FileType::CharacterDevice {
            stat.device_major = i64::from(fs::major(seen.st_rdev));
            stat.device_minor = i64::from(fs::minor(seen.st_rdev));
        }
        let may_share = kind != FileType::Directory && kind != FileType::Symlink;
        let shared_inode =
            (may_share && seen.st_nlink > 1).then(|| (number(seen.st_dev), seen.st_ino));
        Ok(Seen {
            stat,
            shared_inode,
            is_socket: kind == FileType::Socket,
        })
    }

    /// Extended attributes; none where the file system has none or they cannot be read, as BuildKit's own client does.
    fn xattrs(&self, name: &CStr) -> HashMap<String, Vec<u8>> {
        let mut xattrs = HashMap::new();
        // There is no call that takes a directory and a name before Linux 6.13.
        let Ok(fd) = self.fd() else {
            return xattrs;
        };
        let mut path = format!("/proc/self/fd/{}/", fd.as_raw_fd()).into_bytes();
        path.extend_from_slice(name.to_bytes());
        let Ok(path) = CString::new(path) else {
            return xattrs;
        };
        // Nearly all entries have none: asked with an array, they cost one call.
        let mut few = [0_u8; 1024];
        let mut many = Vec::new();
        let listed = match fs::llistxattr(&path, &mut few) {
            Ok(0) => return xattrs,
            Ok(length) => &few[..length],
            Err(Errno::RANGE) => {
                many.resize(XATTR_NAMES_BYTES_MAX, 0);
                match fs::llistxattr(&path, &mut many) {
                    Ok(length) => &many[..length],
                    Err(_) => return xattrs,
                }
            }
            Err(_) => return xattrs,
        };
        for key in listed
            .split(|byte| *byte == 0)
            .filter(|key| !key.is_empty())
        {
            let Ok(key) = std::str::from_utf8(key) else {
                continue;
            };
            if key.starts_with(APPLE_XATTR_PREFIX) {
                continue;
            }
            if let Some(value) = xattr(&path, key) {
                xattrs.insert(key.to_owned(), value);
            }
        }
        xattrs
    }
}

fn xattr(path: &CStr, key: &str) -> Option<Vec<u8>> {
    // A slice of no length would come back with none: the length has a call of its own.
    let length = fs::lgetxattr_query(path, key).ok()?;
    let mut value = vec![0; length];
    let length = match length {
        0 => 0,
        _ => fs::lgetxattr(path, key, &mut value).ok()?,
    };
    value.truncate(length);
    Some(value)
}

impl From<Errno> for LookError {
    fn from(errno: Errno) -> LookError {
        let why = match errno {
            Errno::NOENT => Why::Missing,
            Errno::NOTDIR | Errno::LOOP => Why::OtherKind,
            Errno::ACCESS | Errno::PERM => Why::Denied,
            _ => Why::Other,
        };
        LookError::new(why, errno.into())
    }
}

fn kind_of(kind: FileType) -> Kind {
    match kind {
        FileType::Directory => Kind::Directory,
        FileType::Unknown => Kind::Unknown,
        FileType::Symlink
        | FileType::BlockDevice
        | FileType::CharacterDevice
        | FileType::Fifo
        | FileType::RegularFile
        | FileType::Socket => Kind::Other,
    }
}

fn nanos(seconds: i64, nanos: impl TryInto<i64>) -> i64 {
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(number(nanos))
}

/// Systems have fields of other widths for the same.
fn number<T: Default>(field: impl TryInto<T>) -> T {
    field.try_into().unwrap_or_default()
}

/// Kernel's mode to Go's. A socket becomes a plain file: an archive cannot hold one.
fn go_mode_of(raw: RawMode) -> u32 {
    let kind = match FileType::from_raw_mode(raw) {
        FileType::Directory => go_mode::DIR,
        FileType::Symlink => go_mode::SYMLINK,
        FileType::BlockDevice => go_mode::DEVICE,
        FileType::CharacterDevice => go_mode::DEVICE | go_mode::CHAR_DEVICE,
        FileType::Fifo => go_mode::NAMED_PIPE,
        FileType::RegularFile | FileType::Socket | FileType::Unknown => 0,
    };
    let bits = [
        (Mode::SUID, go_mode::SETUID),
        (Mode::SGID, go_mode::SETGID),
        (Mode::SVTX, go_mode::STICKY),
    ];
    let special = bits
        .iter()
        .filter(|(bit, _)| raw & bit.as_raw_mode() != 0)
        .map(|(_, go)| go);
    special.fold(kind | number::<u32>(raw & 0o777), |mode, bit| mode | bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_gos() {
        assert_eq!(go_mode_of(0o100_644), 0o644);
        assert_eq!(go_mode_of(0o040_755), 1 << 31 | 0o755);
        assert_eq!(go_mode_of(0o120_777), 1 << 27 | 0o777);
        assert_eq!(go_mode_of(0o106_755), 1 << 23 | 1 << 22 | 0o755);
        assert_eq!(go_mode_of(0o041_777), 1 << 31 | 1 << 20 | 0o777);
        assert_eq!(go_mode_of(0o020_666), 1 << 26 | 1 << 21 | 0o666);
        assert_eq!(go_mode_of(0o060_666), 1 << 26 | 0o666);
        assert_eq!(go_mode_of(0o010_600), 1 << 25 | 0o600);
        assert_eq!(go_mode_of(0o140_755), 0o755);
    }

    #[test]
    fn extended_attributes_are_whole_however_many_and_large() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("f");
        std::fs::write(&file, "").unwrap();
        let set = |key: &str, value: &[u8]| {
            fs::setxattr(&file, key, value, fs::XattrFlags::empty()).unwrap();
        };
        let mut wanted = HashMap::new();
        set("user.empty", b"");
        wanted.insert("user.empty".to_owned(), Vec::new());
        for number in 0..20 {
            let key = format!("user.{number}{}", "n".repeat(100));
            let value = vec![number; 1 + usize::from(number)];
            set(&key, &value);
            wanted.insert(key, value);
        }
        let tree = Tree::open(root.path()).unwrap();
        let dir = tree.open_dir(b"").unwrap();
        let seen = dir.look(&c"f".to_owned(), b"f".to_vec()).unwrap();
        let mut had = seen.stat.xattrs;
        had.retain(|key, _| key.starts_with("user."));
        assert_eq!(had, wanted);
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_an_entry_of_another_kind() {
        assert_eq!(LookError::from(Errno::INVAL).why, Why::Other);
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "f").unwrap();
        let dir = Tree::open(root.path()).unwrap().open_dir(b"").unwrap();
        let no_link = dir.link_of(&c"file".to_owned()).unwrap_err();
        assert_eq!(no_link.why, Why::OtherKind);
    }

    #[test]
    fn nothing_outside_the_root_is_opened() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir_all(root.join("dir")).unwrap();
        std::fs::write(outer.path().join("secret"), "s").unwrap();
        std::fs::write(root.join("dir/file"), "f").unwrap();
        std::os::unix::fs::symlink("..", root.join("up")).unwrap();
        std::os::unix::fs::symlink("dir", root.join("in")).unwrap();
        let tree = Tree::open(&root).unwrap();
        for path in [
            &b"../secret"[..],
            b"up/secret",
            b"in/file",
            b"/etc/passwd",
            b"dir/../../secret",
        ] {
            assert!(
                tree.open_file(path).is_err(),
                "{}",
                String::from_utf8_lossy(path)
            );
            let steps = tree.open_by_steps(&CString::new(path).unwrap(), OFlags::RDONLY);
            assert!(steps.is_err(), "{}", String::from_utf8_lossy(path));
        }
        assert!(tree.open_file(b"dir/file").is_ok());
        assert!(tree.open_by_steps(c"dir/file", OFlags::RDONLY).is_ok());
    }
}
