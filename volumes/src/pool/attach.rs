//! Attaching and detaching: device, key, check, mount, and back.
//!
//! Must not know: sizes and accounts.

use super::extend::grow_if_smaller;
use super::layout::make_dir;
use super::steps::Step;
use super::{Pool, clear_name, needed};
use crate::backing::{Backing, Claim, Stored};
use crate::driver::{AttachAs, Attachment};
use crate::error::VolumeError;
use crate::limits::{DEVICE_RELEASE_WAIT_MAX, POLL_PAUSE, UNMOUNT_WAIT_MAX};
use crate::marker::Marker;
use crate::undo::Undo;
use crate::{fs, luks, mounts, trim};
use nix::errno::Errno;
use slipway_core::id::{MachineId, VolumeId};
use slipway_core::key::VolumeKey;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// An attachment as it was asked for.
struct Wanted<'a> {
    id: &'a VolumeId,
    holder: &'a MachineId,
    how: AttachAs,
    key: Option<&'a VolumeKey>,
    was_clean: bool,
}

impl<B: Backing> Pool<B> {
    pub(super) fn attach_to(
        &self,
        id: &VolumeId,
        holder: &MachineId,
        how: AttachAs,
        key: Option<&VolumeKey>,
    ) -> Result<Attachment, VolumeError> {
        let _volume = self.lock_volume(id)?;
        let marker = Marker::read(&self.layout.marker(id))?;
        let mut wanted = Wanted {
            id,
            holder,
            how,
            key,
            was_clean: true,
        };
        match self.backing.claim(id)? {
            Claim::Absent => Err(VolumeError::NotFound { volume: id.clone() }),
            Claim::InUse(stored) => match marker {
                Marker::HeldBy(who, has) if who == *holder && has == how => {
                    self.attach_again(&wanted, &stored)
                }
                Marker::HeldBy(who, _) if who == *holder => Err(VolumeError::Unsupported(format!(
                    "volume {id} is attached to its holder the other way: a file system that is mounted cannot be a machine's \
                         device as well (hint: detach it first)"
                ))),
                Marker::HeldBy(..) | Marker::Absent | Marker::Unreadable => Err(self.in_use(id)?),
            },
            Claim::Free(held, stored) => {
                wanted.was_clean = marker == Marker::Absent;
                self.attach_free(&wanted, &held, &stored)
            }
        }
    }

    /// The volume is in use by the same holder, so it has it already, or nearly.
    fn attach_again(
        &self,
        wanted: &Wanted<'_>,
        stored: &Stored,
    ) -> Result<Attachment, VolumeError> {
        let id = wanted.id;
        let Some(device) = self.backing.active(id)? else {
            return Err(self.in_use(id)?);
        };
        // Open already, unless a start was cut off before.
        let top = self.open_clear(wanted, stored, &device)?;
        let mount_point = self.make_mount_point(id)?;
        let mounted = mounts::is_mount_point(&mount_point)
            .map_err(VolumeError::io("look up", &mount_point))?;
        match wanted.how {
            AttachAs::Mount if mounted => Ok(Attachment::Mount(mount_point)),
            AttachAs::Mount => {
                // Its device lives (the machine's own mount keeps it), but not our mount of it. Mounting the same device
                // once more gives the same file system, not a second one on the same blocks.
                mounts::mount_ext4(&top, &mount_point)
                    .map_err(VolumeError::io("mount", &mount_point))?;
                Ok(Attachment::Mount(mount_point))
            }
            AttachAs::Device => Ok(Attachment::Device(top)),
        }
    }

    /// Attaches a volume that nothing uses. Its device keeps the claim when we let go of it.
    fn attach_free(
        &self,
        wanted: &Wanted<'_>,
        held: &B::Held,
        stored: &Stored,
    ) -> Result<Attachment, VolumeError> {
        let id = wanted.id;
        if stored.sealed {
            needed(id, wanted.key)?;
        }
        let marker = self.layout.marker(id);
        let mut undo = Undo::new();
        self.steps.enter(Step::WriteMarker)?;
        if wanted.was_clean {
            // While a device lives on, the marker says whose it is; one left behind only costs a check.
            undo.push("remove the marker", || {
                self.await_no_device(id)?;
                Marker::remove(&marker).map_err(io::Error::other)
            });
        }
        Marker::write(&marker, wanted.holder, wanted.how)?;
        self.steps.enter(Step::MakeDevice)?;
        // Lets go of the device by itself when anything below fails, where that is enough.
        let lasting = wanted.how == AttachAs::Device && !stored.sealed;
        undo.push("free the device", || {
            self.backing.deactivate(id).map_err(io::Error::other)
        });
        let device = self.backing.activate(id, held, lasting)?;
        self.steps.enter(Step::OpenClear)?;
        undo.push("close the device in clear", || {
            luks::close(&clear_name(id))
                .map(drop)
                .map_err(io::Error::other)
        });
        let top = self.open_clear(wanted, stored, &device.path)?;
        let failed = fs::has_errors(&top).map_err(VolumeError::io("read", &top))?;
        if failed || !wanted.was_clean {
            tracing::warn!(volume = %id, failed, "unclean end before, checking the file system");
            fs::check(id, &top)?;
        }
        let attachment = match wanted.how {
            AttachAs::Device => {
                grow_if_smaller(&top, false)?;
                Attachment::Device(top)
            }
            AttachAs::Mount => {
                if !fs::may_grow_mounted() {
                    grow_if_smaller(&top, false)?;
                }
                let mount_point = self.mount(id, &top)?;
                let mounted = mount_point.clone();
                undo.push("unmount", move || mounts::unmount(&mounted));
                grow_if_smaller(&top, true)?;
                Attachment::Mount(mount_point)
            }
        };
        self.steps.enter(Step::FinishAttach)?;
        undo.disarm();
        tracing::info!(volume = %id, holder = %wanted.holder, device = %device.path.display(), "volume attached");
        Ok(attachment)
    }

    /// The device with the contents in clear.
    fn open_clear(
        &self,
        wanted: &Wanted<'_>,
        stored: &Stored,
        device: &Path,
    ) -> Result<PathBuf, VolumeError> {
        if !stored.sealed {
            return Ok(device.to_owned());
        }
        let name = clear_name(wanted.id);
        let clear = luks::clear_path(&name);
        if clear.exists() {
            return Ok(clear);
        }
        luks::open(
            wanted.id,
            device,
            &name,
            needed(wanted.id, wanted.key)?,
            true,
        )
    }

    fn mount(&self, id: &VolumeId, device: &Path) -> Result<PathBuf, VolumeError> {
        self.steps.enter(Step::MakeMountPoint)?;
        let mount_point = self.make_mount_point(id)?;
        self.steps.enter(Step::Mount)?;
        match mounts::mount_ext4(device, &mount_point) {
            Ok(()) => Ok(mount_point),
            // What the kernel says of a file system that is not one, or not whole.
            Err(error) if fs::is_corruption(&error) => Err(VolumeError::Damaged {
                volume: id.clone(),
                detail: format!("not mounted: {error}"),
            }),
            Err(error) => Err(VolumeError::io("mount", &mount_point)(error)),
        }
    }

    pub(super) fn detach_from(&self, id: &VolumeId, holder: &MachineId) -> Result<(), VolumeError> {
        let _volume = self.lock_volume(id)?;
        let marker = self.layout.marker(id);
        match Marker::read(&marker)? {
            Marker::HeldBy(who, _) if who == *holder => {}
            // Not this holder's.
            Marker::HeldBy(..) | Marker::Absent | Marker::Unreadable => return Ok(()),
        }
        match self.backing.claim(id)? {
            // After an unclean end; the marker stays so that the next attach checks.
            Claim::Absent | Claim::Free(..) => return Ok(()),
            Claim::InUse(_) => {}
        }
        self.steps.enter(Step::Unmount)?;
        self.give_back(id);
        self.unmount(id)?;
        self.steps.enter(Step::FreeDevice)?;
        self.free_device(id)?;
        self.steps.enter(Step::AwaitRelease)?;
        self.await_release(id)?;
        self.steps.enter(Step::RemoveMarker)?;
        Marker::remove(&marker)?;
        tracing::info!(volume = %id, %holder, "volume detached");
        Ok(())
    }

    /// Closes the device in clear, then lets go of the one below.
    fn free_device(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let began = Instant::now();
        while !luks::close(&clear_name(id))? {
            if began.elapsed() >= DEVICE_RELEASE_WAIT_MAX {
                return Err(still_used(id));
            }
            std::thread::sleep(POLL_PAUSE);
        }
        self.backing.deactivate(id)
    }

    /// Gives freed blocks back to the pool. Mounted with `discard`, the file system does so by itself, but drops what
    /// it has not come to yet when it is unmounted.
    fn give_back(&self, id: &VolumeId) {
        let mount_point = self.layout.mount_point(id);
        // Otherwise it would be the pool's own file system.
        if !self.backing.traits().discard || !mounts::is_mount_point(&mount_point).unwrap_or(false)
        {
            return;
        }
        if let Err(error) = trim::trim(&mount_point) {
            tracing::warn!(volume = %id, %error, "freed blocks not given back");
        }
    }

    /// Unmounts, as often as it is mounted here, and waits for open files to be closed.
    fn unmount(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let mount_point = self.layout.mount_point(id);
        let began = Instant::now();
        loop {
            match mounts::unmount(&mount_point).map_err(|error| error.raw_os_error()) {
                Ok(()) => {}
                // Not a mount point, or not there: nothing is mounted any more.
                Err(Some(code)) if code == Errno::EINVAL as i32 || code == Errno::ENOENT as i32 => {
                    return Ok(());
                }
                Err(Some(code)) if code == Errno::EBUSY as i32 => {
                    if began.elapsed() >= UNMOUNT_WAIT_MAX {
                        return Err(VolumeError::Busy {
                            volume: id.clone(),
                            what: "files on it are open",
                            waited: UNMOUNT_WAIT_MAX,
                        });
                    }
                    std::thread::sleep(POLL_PAUSE);
                }
                Err(code) => {
                    let error =
                        code.map_or(io::ErrorKind::Other.into(), io::Error::from_raw_os_error);
                    return Err(VolumeError::io("unmount", &mount_point)(error));
                }
            }
        }
    }

    /// Waits until nothing anywhere uses the volume: until then another attachment would put a second file system driver
    /// on the same blocks.
    fn await_release(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let began = Instant::now();
        loop {
            match self.backing.claim(id)? {
                Claim::Absent | Claim::Free(..) => return Ok(()),
                Claim::InUse(_) if began.elapsed() >= DEVICE_RELEASE_WAIT_MAX => {
                    return Err(still_used(id));
                }
                Claim::InUse(_) => {
                    std::thread::sleep(POLL_PAUSE);
                    self.backing.deactivate(id)?;
                }
            }
        }
    }

    /// Waits until no device of the volume is left. Unmounting frees it at once, unless a namespace that is just being
    /// made has a copy of the mount.
    fn await_no_device(&self, id: &VolumeId) -> io::Result<()> {
        let deadline = Instant::now() + DEVICE_RELEASE_WAIT_MAX;
        while let Some(device) = self.backing.active(id).map_err(io::Error::other)? {
            if Instant::now() >= deadline {
                let what = format!("{} is still in use", device.display());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, what));
            }
            std::thread::sleep(POLL_PAUSE);
        }
        Ok(())
    }

    fn make_mount_point(&self, id: &VolumeId) -> Result<PathBuf, VolumeError> {
        let path = self.layout.mount_point(id);
        make_dir(&path)?;
        Ok(path)
    }
}

fn still_used(id: &VolumeId) -> VolumeError {
    VolumeError::Busy {
        volume: id.clone(),
        what: "another mount of it is alive, or a machine has its device",
        waited: DEVICE_RELEASE_WAIT_MAX,
    }
}
