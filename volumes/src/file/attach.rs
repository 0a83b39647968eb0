//! Attaching and detaching: check, loop device, mount, and back.
//!
//! Must not know: sizes and accounts.

use super::steps::Step;
use super::{FileDriver, Image};
use crate::error::VolumeError;
use crate::limits::{DEVICE_RELEASE_WAIT_MAX, FSCK_DURATION_MAX, POLL_PAUSE, UNMOUNT_WAIT_MAX};
use crate::loopdev::LoopDevice;
use crate::marker::Marker;
use crate::undo::Undo;
use crate::{mounts, tool, trim};
use nix::errno::Errno;
use slipway_core::id::{MachineId, VolumeId};
use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

impl FileDriver {
    pub(super) fn attach_to(
        &self,
        id: &VolumeId,
        holder: &MachineId,
    ) -> Result<PathBuf, VolumeError> {
        let _volume = self.lock_volume(id)?;
        let marker = Marker::read(&self.layout.marker(id))?;
        match self.open_image(id)? {
            Image::Absent => Err(VolumeError::NotFound { volume: id.clone() }),
            Image::InUse => self.attach_again(id, holder, marker),
            Image::Free(image) => {
                match marker {
                    Marker::Absent => {}
                    Marker::HeldBy(_) | Marker::Unreadable => {
                        tracing::warn!(volume = %id, "unclean end before, checking the file system");
                        check(id, &self.layout.image(id))?;
                    }
                }
                let was_clean = marker == Marker::Absent;
                self.attach_free(id, holder, &image, was_clean)
            }
        }
    }

    /// The image is in use: right for the holder that has it, and for no other.
    fn attach_again(
        &self,
        id: &VolumeId,
        holder: &MachineId,
        marker: Marker,
    ) -> Result<PathBuf, VolumeError> {
        let in_use = |holder| VolumeError::InUse {
            volume: id.clone(),
            holder,
        };
        match marker {
            Marker::HeldBy(who) if who == *holder => {}
            Marker::HeldBy(who) => return Err(in_use(Some(who))),
            Marker::Absent | Marker::Unreadable => return Err(in_use(None)),
        }
        let mount_point = self.make_mount_point(id)?;
        if mounts::is_mount_point(&mount_point).map_err(VolumeError::io("look up", &mount_point))? {
            return Ok(mount_point);
        }
        // Its device lives (the machine's own mount keeps it), but not our mount of it. Mounting the same device once
        // more gives the same file system, not a second one on the same blocks.
        let image = self.layout.image(id);
        let device = LoopDevice::find(&image)
            .map_err(VolumeError::io("find the device of", &image))?
            .ok_or_else(|| in_use(Some(holder.clone())))?;
        mounts::mount_ext4(&device, &mount_point)
            .map_err(VolumeError::io("mount", &mount_point))?;
        Ok(mount_point)
    }

    /// Attaches an image whose lock we have. The loop device keeps that lock when we let go of it.
    fn attach_free(
        &self,
        id: &VolumeId,
        holder: &MachineId,
        image: &File,
        was_clean: bool,
    ) -> Result<PathBuf, VolumeError> {
        let marker = self.layout.marker(id);
        let mut undo = Undo::new();
        self.steps.enter(Step::WriteMarker)?;
        if was_clean {
            // While a device lives on, the marker says whose it is; one left behind only costs a check.
            undo.push("remove the marker", || {
                await_no_device(&self.layout.image(id))?;
                Marker::remove(&marker).map_err(io::Error::other)
            });
        }
        Marker::write(&marker, holder)?;
        self.steps.enter(Step::MakeDevice)?;
        // Lets go of the device by itself when anything below fails.
        let device = LoopDevice::attach(image).map_err(VolumeError::io(
            "make a loop device of",
            &self.layout.image(id),
        ))?;
        self.steps.enter(Step::MakeMountPoint)?;
        let mount_point = self.make_mount_point(id)?;
        self.steps.enter(Step::Mount)?;
        match mounts::mount_ext4(device.path(), &mount_point) {
            Ok(()) => {}
            // What the kernel says of a file system that is not one, or not whole.
            Err(error) if is_corruption(&error) => {
                let detail = format!("not mounted: {error}");
                return Err(VolumeError::Damaged {
                    volume: id.clone(),
                    detail,
                });
            }
            Err(error) => return Err(VolumeError::io("mount", &mount_point)(error)),
        }
        let mounted = mount_point.clone();
        undo.push("unmount", move || mounts::unmount(&mounted));
        self.steps.enter(Step::FinishAttach)?;
        undo.disarm();
        tracing::info!(volume = %id, %holder, device = %device.path().display(), "volume attached");
        Ok(mount_point)
    }

    pub(super) fn detach_from(&self, id: &VolumeId, holder: &MachineId) -> Result<(), VolumeError> {
        let _volume = self.lock_volume(id)?;
        let marker = self.layout.marker(id);
        match Marker::read(&marker)? {
            Marker::HeldBy(who) if who == *holder => {}
            // Not this holder's.
            Marker::HeldBy(_) | Marker::Absent | Marker::Unreadable => return Ok(()),
        }
        match self.open_image(id)? {
            // After an unclean end; the marker stays so that the next attach checks.
            Image::Absent | Image::Free(_) => return Ok(()),
            Image::InUse => {}
        }
        self.steps.enter(Step::Unmount)?;
        self.give_back(id);
        self.unmount(id)?;
        self.steps.enter(Step::AwaitRelease)?;
        self.await_release(id)?;
        self.steps.enter(Step::RemoveMarker)?;
        Marker::remove(&marker)?;
        tracing::info!(volume = %id, %holder, "volume detached");
        Ok(())
    }

    /// Gives freed blocks back to the pool. Mounted with `discard`, the file system does so by itself, but drops what
    /// it has not come to yet when it is unmounted.
    fn give_back(&self, id: &VolumeId) {
        let mount_point = self.layout.mount_point(id);
        // Otherwise it would be the pool's own file system.
        if !self.discard || !mounts::is_mount_point(&mount_point).unwrap_or(false) {
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

    /// Waits until no mount anywhere uses the image: until then another attach would put a second file system driver
    /// on the same blocks.
    fn await_release(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let began = Instant::now();
        loop {
            match self.open_image(id)? {
                Image::Absent | Image::Free(_) => return Ok(()),
                Image::InUse if began.elapsed() >= DEVICE_RELEASE_WAIT_MAX => {
                    return Err(VolumeError::Busy {
                        volume: id.clone(),
                        what: "another mount of it is alive",
                        waited: DEVICE_RELEASE_WAIT_MAX,
                    });
                }
                Image::InUse => std::thread::sleep(POLL_PAUSE),
            }
        }
    }

    fn make_mount_point(&self, id: &VolumeId) -> Result<PathBuf, VolumeError> {
        let path = self.layout.mount_point(id);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(VolumeError::io("make directory", &path))?;
        Ok(path)
    }
}

/// Waits until no loop device of the image is left. Unmounting frees it at once, unless a namespace that is just being
/// made has a copy of the mount.
fn await_no_device(image: &Path) -> io::Result<()> {
    let deadline = Instant::now() + DEVICE_RELEASE_WAIT_MAX;
    while let Some(device) = LoopDevice::find(image)? {
        if Instant::now() >= deadline {
            let what = format!("{} is still in use", device.display());
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, what));
        }
        std::thread::sleep(POLL_PAUSE);
    }
    Ok(())
}

/// `EUCLEAN` and `EFSBADCRC` (which is `EBADMSG`) come from ext4's own checks, `EINVAL` from a superblock that is none.
fn is_corruption(error: &io::Error) -> bool {
    [Errno::EUCLEAN, Errno::EBADMSG, Errno::EINVAL, Errno::EIO]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// Checks and repairs an image that nothing uses: what is safe at first, everything if that does not do.
fn check(id: &VolumeId, image: &Path) -> Result<(), VolumeError> {
    let run = |mode: &[&str]| {
        let mut args: Vec<&std::ffi::OsStr> = mode.iter().map(std::ffi::OsStr::new).collect();
        args.push(image.as_os_str());
        tool::run("e2fsck", &args, FSCK_DURATION_MAX)
    };
    if is_sound(run(&["-p"])?.code) {
        return Ok(());
    }
    tracing::warn!(volume = %id, "repairing the file system, files may be lost");
    let ended = run(&["-f", "-y"])?;
    if is_sound(ended.code) {
        Ok(())
    } else {
        Err(VolumeError::Damaged {
            volume: id.clone(),
            detail: ended.output,
        })
    }
}

/// Exit codes of e2fsck(8) are bits: 1 is "errors corrected", 2 "and the system should be rebooted", which means
/// nothing for a file system that is not mounted.
fn is_sound(code: Option<i32>) -> bool {
    code.is_some_and(|code| code & !3 == 0)
}

#[cfg(test)]
mod tests {
    use super::is_sound;

    #[test]
    fn exit_codes_of_the_checker() {
        for (code, sound) in [
            (Some(0), true),
            (Some(1), true),
            (Some(2), true),
            (Some(3), true),
            (Some(4), false),
        ]
        .into_iter()
        .chain([
            (Some(8), false),
            (Some(5), false),
            (Some(12), false),
            (None, false),
        ]) {
            assert_eq!(is_sound(code), sound, "{code:?}");
        }
    }
}
