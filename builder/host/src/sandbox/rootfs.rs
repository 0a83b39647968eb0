//! A machine's root file system: layers that are shared and read-only, a small tmpfs that takes what it writes, and its
//! volume; all of them with the ids of the machine's own range.
//!
//! Must not know: the runtime, the network, or what runs in it.

use crate::driver::{DriverError, Start};
use crate::files::{make_dir, remove_all};
use crate::limits::MACHINE_IDS;
use crate::machine_log::MachineLog;
use crate::mounts::{tmpfs, unmount_below};
use crate::sys::{self, MountFlags};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use slipway_core::units::ByteSize;
use slipway_volumes::Attachment;
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

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
    /// Console and end record.
    pub(super) log: MachineLog,
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
            log: MachineLog::new(home.join("log")),
            lower_layer: home.join("layer"),
            lower_base: home.join("base"),
            root: home.join("root"),
            home,
        }
    }

    /// Makes the directories, and mounts the bounded room for the log.
    pub(super) fn make(&self, id_base: u32) -> Result<(), DriverError> {
        make_dir(&self.home, 0o710).map_err(DriverError::at("make", &self.home))?;
        chown(&self.home, None, Some(id_base)).map_err(DriverError::at("own", &self.home))?;
        for dir in [
            self.scratch.as_path(),
            self.log.dir(),
            &self.lower_layer,
            &self.lower_base,
            &self.root,
        ] {
            make_dir(dir, 0o700).map_err(DriverError::at("make", dir))?;
        }
        // The one mount that the host's namespace has, for what is written there is read when the machine is gone.
        self.log.mount()
    }

    /// Mounts what the machine can write to without its volume. It counts as its memory and is bounded.
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
        Ok(())
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
    pub(super) fn mount_volume(
        &self,
        volume: &Attachment,
        ids: &OwnedFd,
    ) -> Result<(), DriverError> {
        let target = self.root.join(VOLUME);
        let Attachment::Mount(mounted) = volume else {
            let error = std::io::Error::other("a sandbox wants its volume mounted");
            return Err(DriverError::at("mount at", &target)(error));
        };
        // Programs with the set-user-id bit are a build's right. Until now, nothing on it had an effect on the host.
        let flags = MountFlags {
            set: nix::libc::MOUNT_ATTR_NODEV,
            clear: nix::libc::MOUNT_ATTR_NOSUID | nix::libc::MOUNT_ATTR_NOEXEC,
        };
        sys::idmap_mount(mounted, ids, flags).map_err(DriverError::at("idmap for", &target))?;
        sys::attach_mount(mounted, &target).map_err(DriverError::at("mount at", &target))
    }

    /// Unmounts everything below [`Places::new`]'s directory and removes it; absent is fine.
    pub(super) fn remove(&self) -> Result<(), DriverError> {
        unmount_below(&self.home)?;
        remove_all(&self.home).map_err(DriverError::at("remove", &self.home))
    }
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
