//! A machine's root file system: layers that are shared and read-only, a small tmpfs that takes what it writes, and its
//! volume; all of them with the ids of the machine's own range.
//!
//! Must not know: the runtime, the network, or what runs in it.

use crate::driver::{DriverError, Start};
use crate::files::{make_dir, remove_all};
use crate::limits::{
    CONSOLE_BYTES_MAX, CONSOLE_KEPT_BYTES, END_RECORD_BYTES_MAX, MACHINE_IDS, UNMOUNT_WAIT_MAX,
};
use crate::sys::{self, MountFlags};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use slipway_core::units::ByteSize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Most files in the tmpfs that takes what a machine writes outside its volume.
const SCRATCH_INODES_MAX: u32 = 256 << 10;
/// Where the volume is, inside.
const VOLUME: &str = "var/lib/docker";

/// Directories of one machine that do not survive a reboot. The machine's root may pass through `home` (group),
/// nobody else; that is how the runtime, already in the user namespace, finds `root`.
#[derive(Debug)]
pub(super) struct Places {
    home: PathBuf,
    scratch: PathBuf,
    log: PathBuf,
    lower_layer: PathBuf,
    lower_base: PathBuf,
    /// Where the root file system is put together.
    pub(super) root: PathBuf,
}

impl Places {
    /// Below `home`; nothing is made yet.
    pub(super) fn new(home: PathBuf) -> Self {
        Self {
            scratch: home.join("scratch"),
            log: home.join("log"),
            lower_layer: home.join("layer"),
            lower_base: home.join("base"),
            root: home.join("root"),
            home,
        }
    }

    /// The guest's end record.
    pub(super) fn end_record(&self) -> PathBuf {
        self.log.join("end-record")
    }

    /// What PID 1 prints.
    pub(super) fn console(&self) -> PathBuf {
        self.log.join("console.log")
    }

    /// Makes the directories.
    pub(super) fn make(&self, id_base: u32) -> Result<(), DriverError> {
        make_dir(&self.home, 0o710).map_err(DriverError::at("make", &self.home))?;
        chown(&self.home, None, Some(id_base)).map_err(DriverError::at("own", &self.home))?;
        for dir in [
            &self.scratch,
            &self.log,
            &self.lower_layer,
            &self.lower_base,
            &self.root,
        ] {
            make_dir(dir, 0o700).map_err(DriverError::at("make", dir))?;
        }
        Ok(())
    }

    /// Mounts what the machine can write to without its volume. Both count as its memory and are bounded, so that no
    /// machine fills a disk of the host with its console.
    pub(super) fn mount_scratch(&self, size: ByteSize, id_base: u32) -> Result<(), DriverError> {
        tmpfs(
            &self.scratch,
            &format!("size={},nr_inodes={SCRATCH_INODES_MAX},mode=0700", size.0),
        )?;
        for name in ["upper", "work"] {
            let dir = self.scratch.join(name);
            make_dir(&dir, 0o755).map_err(DriverError::at("make", &dir))?;
            chown(&dir, Some(id_base), Some(id_base)).map_err(DriverError::at("own", &dir))?;
        }
        tmpfs(
            &self.log,
            &format!("size={CONSOLE_BYTES_MAX},nr_inodes=16,mode=0700"),
        )
    }

    /// Opens the console and the end record, both for appending.
    pub(super) fn open_log(&self) -> Result<(File, File), DriverError> {
        let open = |path: &Path| {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(path);
            file.map_err(DriverError::at("open", path))
        };
        let (console, end) = (open(&self.console())?, open(&self.end_record())?);
        // Room set aside: a console that is full must not keep the guest from saying that it ended well.
        let (keep, length) = (
            nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE,
            END_RECORD_BYTES_MAX.cast_signed(),
        );
        nix::fcntl::fallocate(&end, keep, 0, length)
            .map_err(DriverError::at("set room aside in", &self.end_record()))?;
        Ok((console, end))
    }

    /// Puts the root file system together at [`Places::root`].
    pub(super) fn mount_root(&self, start: &Start<'_>, ids: &OwnedFd) -> Result<(), DriverError> {
        for (source, target) in [
            (&start.image.layer, &self.lower_layer),
            (&start.image.base, &self.lower_base),
        ] {
            idmapped(
                source,
                target,
                ids,
                MountFlags {
                    set: nix::libc::MOUNT_ATTR_RDONLY,
                    clear: 0,
                },
            )?;
        }
        let options = format!(
            "lowerdir={}:{},upperdir={},workdir={}",
            self.lower_layer.display(),
            self.lower_base.display(),
            self.scratch.join("upper").display(),
            self.scratch.join("work").display(),
        );
        mount(
            Some("slipway"),
            &self.root,
            Some("overlay"),
            MsFlags::MS_NODEV,
            Some(options.as_str()),
        )
        .map_err(DriverError::at("mount an overlay at", &self.root))?;
        // The overlay holds its own references; the mounts were only needed for their paths.
        for lower in [&self.lower_layer, &self.lower_base] {
            umount2(lower, MntFlags::MNT_DETACH).map_err(DriverError::at("unmount", lower))?;
        }
        Ok(())
    }

    /// Mounts the volume into the root file system. On disk its ids are `0..65536` whatever range the machine has.
    pub(super) fn mount_volume(&self, volume: &Path, ids: &OwnedFd) -> Result<(), DriverError> {
        // Programs with the set-user-id bit are a build's right; on the host's own mount they may stay without effect.
        let flags = MountFlags {
            set: nix::libc::MOUNT_ATTR_NODEV,
            clear: nix::libc::MOUNT_ATTR_NOSUID | nix::libc::MOUNT_ATTR_NOEXEC,
        };
        idmapped(volume, &self.root.join(VOLUME), ids, flags)
    }

    /// Whether the guest wrote that it ended well.
    pub(super) fn has_end_record(&self) -> bool {
        let mut text = Vec::new();
        let read = File::open(self.end_record())
            .and_then(|file| file.take(END_RECORD_BYTES_MAX).read_to_end(&mut text));
        read.is_ok()
            && text
                .split(|byte| *byte == b'\n')
                .any(|line| line == b"end 0")
    }

    /// Saves the end of the console as `target`; none is fine.
    pub(super) fn keep_console(&self, target: &Path) -> io::Result<()> {
        let mut console = match File::open(self.console()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            console => console?,
        };
        let length = console.metadata()?.len();
        console.seek(io::SeekFrom::Start(
            length.saturating_sub(CONSOLE_KEPT_BYTES),
        ))?;
        let mut kept = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(target)?;
        io::copy(&mut console.take(CONSOLE_KEPT_BYTES), &mut kept).map(drop)
    }

    /// Unmounts everything below [`Places::new`]'s directory and removes it; absent is fine.
    pub(super) fn remove(&self) -> Result<(), DriverError> {
        let table = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(table).map_err(DriverError::at("read", table))?;
        // Later mounts lie on earlier ones.
        for target in mounts_below(&text, &self.home).into_iter().rev() {
            unmount(&target)?;
        }
        remove_all(&self.home).map_err(DriverError::at("remove", &self.home))
    }
}

fn tmpfs(target: &Path, options: &str) -> Result<(), DriverError> {
    mount(
        Some("slipway"),
        target,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options),
    )
    .map_err(DriverError::at("mount a tmpfs at", target))
}

fn idmapped(
    source: &Path,
    target: &Path,
    ids: &OwnedFd,
    flags: MountFlags,
) -> Result<(), DriverError> {
    let mount = sys::clone_mount(source).map_err(DriverError::at("clone the mount of", source))?;
    sys::idmap_mount(&mount, ids, flags).map_err(DriverError::at("idmap", source))?;
    sys::attach_mount(&mount, target).map_err(DriverError::at("mount at", target))
}

/// A namespace with the ids of a machine.
pub(super) fn ids(id_base: u32) -> Result<OwnedFd, DriverError> {
    sys::user_namespace(id_base, MACHINE_IDS).map_err(DriverError::at(
        "make a user namespace from",
        Path::new("/proc/self/ns/user"),
    ))
}

fn unmount(target: &Path) -> Result<(), DriverError> {
    let deadline = Instant::now() + UNMOUNT_WAIT_MAX;
    loop {
        match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) if Instant::now() < deadline => {
                // The last process of the machine is gone but the kernel is still taking its namespaces down.
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(Errno::EBUSY) => {
                tracing::warn!(target = %target.display(), "still busy, detaching it lazily");
                return umount2(target, MntFlags::MNT_DETACH)
                    .map_err(DriverError::at("detach", target));
            }
            Err(errno) => return Err(DriverError::at("unmount", target)(errno)),
        }
    }
}

/// Mount points at or below `dir`, in the order they were made (proc_pid_mountinfo(5), field 5; blanks are octal).
fn mounts_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    let targets = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let targets = targets.map(|text| PathBuf::from(text.replace("\\040", " ")));
    targets.filter(|target| target.starts_with(dir)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mounts_of_one_machine_only() {
        let text = "36 35 98:0 / /run/s/m/a/root rw - overlay x rw\n37 36 8:1 / /run/s/m/a/root/var\\040x rw - ext4 y rw\n38 35 0:1 / /run/s/m/ab rw - tmpfs z rw\n";
        let found = mounts_below(text, Path::new("/run/s/m/a"));
        assert_eq!(
            found,
            [
                PathBuf::from("/run/s/m/a/root"),
                PathBuf::from("/run/s/m/a/root/var x")
            ]
        );
    }
}
