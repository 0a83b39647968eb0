//! A root directory with the system's programs and what is named, in a mount namespace that has nothing else: for programs that work
//! on what a tenant wrote and must not find the host's files.
//!
//! Must not know: which programs, or what else they give up.

#![expect(
    unsafe_code,
    reason = "a mount namespace of a child is made between fork and exec"
)]

use nix::libc::{self, c_long, c_ulong};
use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where it is put together, in its own mount namespace. Every system has this directory.
const PLACE: &str = "/proc";
/// Directories with programs and libraries.
const SYSTEM: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib64", "opt", "nix"];

/// What lies in such a root directory. Made before a fork, entered after it.
#[derive(Debug, Default)]
pub struct BareRoot {
    entries: Vec<Entry>,
}

#[derive(Debug)]
enum Entry {
    Directory(CString),
    Link {
        to: CString,
        at: CString,
    },
    BoundDirectory {
        from: CString,
        at: CString,
    },
    BoundFile {
        from: CString,
        at: CString,
    },
    Disk {
        number: libc::dev_t,
        owner: u32,
        at: CString,
    },
    Processes(CString),
}

impl BareRoot {
    /// With the directories of the system's programs and libraries, read-only.
    ///
    /// # Errors
    /// They cannot be looked at.
    pub fn with_programs() -> io::Result<Self> {
        let mut root = Self::default();
        for name in SYSTEM {
            let from = Path::new("/").join(name);
            let Ok(found) = std::fs::symlink_metadata(&from) else {
                continue;
            };
            let at = placed(&from)?;
            root.entries.push(if found.is_symlink() {
                let to = c_path(&std::fs::read_link(&from)?)?;
                Entry::Link { to, at }
            } else {
                let from = c_path(&from)?;
                Entry::BoundDirectory { from, at }
            });
        }
        Ok(root)
    }

    /// Adds an empty directory, which must lie in one that is there: `/dev`.
    ///
    /// # Errors
    /// The path cannot be one.
    pub fn add_directory(&mut self, path: &Path) -> io::Result<()> {
        self.entries.push(Entry::Directory(placed(path)?));
        Ok(())
    }

    /// Adds a file or device of the host's under its own path, whose directory must have been added. It can be used as its modes
    /// say, and not executed. One that is not there is passed over.
    ///
    /// # Errors
    /// The path cannot be one.
    pub fn add_file(&mut self, path: &Path) -> io::Result<()> {
        if path.exists() {
            let (from, at) = (c_path(path)?, placed(path)?);
            self.entries.push(Entry::BoundFile { from, at });
        }
        Ok(())
    }

    /// Adds a node of the block device `number` that `owner` may read and write.
    ///
    /// # Errors
    /// The path cannot be one.
    pub fn add_disk(&mut self, path: &Path, number: u64, owner: u32) -> io::Result<()> {
        let at = placed(path)?;
        self.entries.push(Entry::Disk { number, owner, at });
        Ok(())
    }

    /// Adds `/proc` with the program's own process and none of another user.
    ///
    /// # Errors
    /// None in practice.
    pub fn add_processes(&mut self) -> io::Result<()> {
        self.entries
            .push(Entry::Processes(placed(Path::new("/proc"))?));
        Ok(())
    }

    /// Puts it together and makes it the root directory of the calling process, in a mount namespace of its own: nothing else of the
    /// host's mounts is in there any more. Makes system calls only, so that it may be called between fork and exec; by root.
    ///
    /// # Errors
    /// What the system said.
    pub fn enter(&self) -> io::Result<()> {
        // SAFETY: takes an integer.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) }.into())?;
        mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
        let bare = libc::MS_NOSUID | libc::MS_NOEXEC;
        mount(
            Some(c"slipway"),
            c"/proc",
            Some(c"tmpfs"),
            bare,
            Some(c"mode=0755,size=64k"),
        )?;
        for entry in &self.entries {
            entry.make()?;
        }
        // SAFETY: C strings that outlive the calls. The old root is stacked upon the new one, and taken off it.
        unsafe {
            check(libc::chdir(c"/proc".as_ptr()).into())?;
            let here = c".".as_ptr();
            check(libc::syscall(libc::SYS_pivot_root, here, here))?;
            check(libc::umount2(here, libc::MNT_DETACH).into())?;
            check(libc::chdir(c"/".as_ptr()).into())?;
        }
        let read = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
        mount(None, c"/", None, read | bare, None)
    }
}

impl Entry {
    fn make(&self) -> io::Result<()> {
        let read = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | libc::MS_NOSUID;
        match self {
            Self::Directory(at) => make_directory(at),
            Self::Link { to, at } => {
                // SAFETY: C strings that outlive the call.
                check(unsafe { libc::symlink(to.as_ptr(), at.as_ptr()) }.into())
            }
            Self::BoundDirectory { from, at } => {
                make_directory(at)?;
                mount(Some(from), at, None, libc::MS_BIND, None)?;
                mount(None, at, None, read | libc::MS_NODEV, None)
            }
            Self::BoundFile { from, at } => {
                // SAFETY: a C string that outlives the call.
                check(unsafe { libc::mknod(at.as_ptr(), libc::S_IFREG | 0o600, 0) }.into())?;
                mount(Some(from), at, None, libc::MS_BIND, None)?;
                mount(None, at, None, read | libc::MS_NOEXEC, None)
            }
            Self::Disk { number, owner, at } => {
                // SAFETY: as above.
                check(unsafe { libc::mknod(at.as_ptr(), libc::S_IFBLK | 0o600, *number) }.into())?;
                // SAFETY: as above.
                check(unsafe { libc::chown(at.as_ptr(), *owner, *owner) }.into())
            }
            Self::Processes(at) => {
                make_directory(at)?;
                let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
                let only_own = c"subset=pid,hidepid=2";
                mount(Some(c"proc"), at, Some(c"proc"), flags, Some(only_own))
            }
        }
    }
}

fn make_directory(at: &CStr) -> io::Result<()> {
    // SAFETY: a C string that outlives the call.
    check(unsafe { libc::mkdir(at.as_ptr(), 0o755) }.into())
}

fn mount(
    from: Option<&CStr>,
    at: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    data: Option<&CStr>,
) -> io::Result<()> {
    let or_null = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: C strings that outlive the call, or null.
    let done = unsafe {
        libc::mount(
            or_null(from),
            at.as_ptr(),
            or_null(kind),
            flags,
            or_null(data).cast(),
        )
    };
    check(done.into())
}

fn check(result: c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Where an absolute path of the new root is while that is put together.
fn placed(path: &Path) -> io::Result<CString> {
    let below = path.strip_prefix("/").map_err(io::Error::other)?;
    c_path(&Path::new(PLACE).join(below))
}
