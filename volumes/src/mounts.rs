//! Mounts of volumes, in no mount namespace of the host.
//!
//! A program that makes a mount namespace copies every mount of the one it comes from, and keeps the copies until it ends. So a
//! volume is never mounted at a path of the host: [`mount_ext4`] gives a detached mount, which only its descriptor reaches. Its
//! holder moves it into a namespace of its own. Whatever the pool itself has to do to a mounted file system it does
//! through a second detached mount of the same device ([`root_of`]), which is the same file system to the kernel.
//!
//! Interface: fsopen(2), fsconfig(2), fsmount(2) of Linux 5.2 and newer.
//!
//! Must not know: volumes.

use nix::libc::{MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID};
use nix::mount::{MntFlags, umount2};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[expect(
    unsafe_code,
    reason = "fsopen, fsconfig and fsmount have no safe wrapper"
)]
mod sys {
    use nix::libc::{self, c_long};
    use std::ffi::CStr;
    use std::io;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

    // include/uapi/linux/mount.h
    const FSOPEN_CLOEXEC: u32 = 1;
    const FSMOUNT_CLOEXEC: u32 = 1;
    const FSCONFIG_SET_FLAG: u32 = 0;
    const FSCONFIG_SET_STRING: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;

    fn check(result: c_long) -> io::Result<c_long> {
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(result)
        }
    }

    fn owned(result: c_long) -> io::Result<OwnedFd> {
        let raw = RawFd::try_from(check(result)?).map_err(io::Error::other)?;
        // SAFETY: the kernel just returned this descriptor to us, and nobody else has seen its number.
        Ok(unsafe { OwnedFd::from_raw_fd(raw) })
    }

    pub(super) fn fsopen(kind: &CStr) -> io::Result<OwnedFd> {
        // SAFETY: `kind` is a C string that outlives the call.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })
    }

    /// Sets an option, with a value or as a flag.
    pub(super) fn set(context: &OwnedFd, name: &CStr, value: Option<&CStr>) -> io::Result<()> {
        let command = match value {
            Some(_) => FSCONFIG_SET_STRING,
            None => FSCONFIG_SET_FLAG,
        };
        let value = value.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: both are C strings that outlive the call, or null where the command takes no value.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                command,
                name.as_ptr(),
                value,
                0,
            )
        })
        .map(drop)
    }

    pub(super) fn create(context: &OwnedFd) -> io::Result<()> {
        let none = std::ptr::null::<libc::c_char>();
        // SAFETY: the command takes neither a name nor a value.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                FSCONFIG_CMD_CREATE,
                none,
                none,
                0,
            )
        })
        .map(drop)
    }

    pub(super) fn fsmount(context: &OwnedFd, attributes: u64) -> io::Result<OwnedFd> {
        // SAFETY: takes a descriptor and two integers.
        owned(unsafe {
            libc::syscall(
                libc::SYS_fsmount,
                context.as_raw_fd(),
                FSMOUNT_CLOEXEC,
                attributes,
            )
        })
    }
}

/// What a mount of a volume allows on the host: nothing on it is a device, runs, or gives other rights.
const HARMLESS: u64 = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOATIME;

/// A mounted file system that no path of the host leads to. It is unmounted when this is dropped, unless it was moved into
/// a mount namespace (move_mount(2) of [`AsFd::as_fd`]) that is still alive; also then this must be dropped for the
/// file system to become free.
///
/// It is mounted `nodev,nosuid,noexec`: whoever moves it where programs run changes that.
#[derive(Debug)]
pub struct Mounted {
    tree: OwnedFd,
}

impl Mounted {
    /// A path to its root that works for root in this process and its children for as long as this lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.tree.as_raw_fd()
        ))
    }
}

impl AsFd for Mounted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }
}

/// Mounts an ext4 device, detached. Freed blocks are given back (`discard`).
pub(crate) fn mount_ext4(device: &Path) -> io::Result<Mounted> {
    mount_with(device, false)
}

fn mount_with(device: &Path, read_only: bool) -> io::Result<Mounted> {
    let source = std::ffi::CString::new(device.as_os_str().as_encoded_bytes())?;
    let context = sys::fsopen(c"ext4")?;
    sys::set(&context, c"source", Some(&source))?;
    sys::set(&context, c"discard", None)?;
    sys::set(&context, c"errors", Some(c"remount-ro"))?;
    if read_only {
        sys::set(&context, c"ro", None)?;
    }
    sys::create(&context)?;
    let tree = sys::fsmount(&context, HARMLESS)?;
    Ok(Mounted { tree })
}

/// The root directory of the file system on `device`, open, wherever else it is mounted. The file system stays mounted as
/// long as this is open.
pub(crate) fn root_of(device: &Path) -> io::Result<File> {
    let mounted = match mount_with(device, false) {
        // The kernel has made it read-only after an error.
        Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => mount_with(device, true)?,
        mounted => mounted?,
    };
    File::open(mounted.path())
}

/// Whether nothing has `device` mounted, in any namespace, and no other device is made of it.
pub(crate) fn is_unmounted(device: &Path) -> io::Result<bool> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(device);
    match opened {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes away a mount point of a daemon that still mounted volumes at paths, with what is mounted there, unless files are
/// open on it. Removing the directory also takes the copies away that other namespaces have of the mount.
pub(crate) fn remove_mount_point(dir: &Path) -> io::Result<()> {
    while umount2(dir, MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
    match std::fs::remove_dir(dir) {
        Err(error)
            if [io::ErrorKind::NotFound, io::ErrorKind::ResourceBusy].contains(&error.kind()) =>
        {
            Ok(())
        }
        removed => removed,
    }
}

/// Who has `device` mounted: a process of each mount namespace, with its name; for messages.
pub(crate) fn users_of(device: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let Ok(node) = std::fs::metadata(device) else {
        return Vec::new();
    };
    let (major, minor) = (
        nix::sys::stat::major(node.rdev()),
        nix::sys::stat::minor(node.rdev()),
    );
    let number = format!("{major}:{minor}");
    let own = std::fs::read_link("/proc/self/ns/mnt").ok();
    let mut namespaces = std::collections::BTreeSet::new();
    let mut users = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let dir = entry.path();
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        // A process that ends while we look is none.
        let Ok(namespace) = std::fs::read_link(dir.join("ns/mnt")) else {
            continue;
        };
        let table = std::fs::read_to_string(dir.join("mountinfo")).unwrap_or_default();
        if !has_device(&table, &number) || !namespaces.insert(namespace.clone()) {
            continue;
        }
        if Some(&namespace) == own.as_ref() {
            users.push("this host at a path".to_owned());
        } else {
            let name = std::fs::read_to_string(dir.join("comm")).unwrap_or_default();
            users.push(format!("{} (process {pid})", name.trim_end()));
        }
    }
    users
}

/// Whether a `mountinfo` text has a mount of the device `major:minor` (third field, see proc_pid_mountinfo(5)).
fn has_device(mountinfo: &str, number: &str) -> bool {
    mountinfo
        .lines()
        .any(|line| line.split(' ').nth(2) == Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_devices_in_mount_tables() {
        let table = "22 1 0:21 / /proc rw - proc proc rw\n\
                     31 1 7:10 / /var/lib/a rw,nodev shared:1 - ext4 /dev/loop10 rw\n";
        assert!(has_device(table, "7:10"));
        assert!(!has_device(table, "7:1"));
        assert!(!has_device(table, "1:7"));
    }
}
