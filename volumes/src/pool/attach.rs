//! Attaching and detaching: device, key, check, mount, and back.
//!
//! Must not know: sizes and accounts.

use super::extend::{grow_mounted, grow_unmounted};
use super::steps::Step;
use super::{Pool, clear_name, needed};
use crate::backing::{Backing, Claim, Stored};
use crate::driver::{AttachAs, Attachment};
use crate::error::VolumeError;
use crate::limits::{DEVICE_RELEASE_WAIT_MAX, POLL_PAUSE};
use crate::marker::Marker;
use crate::mounts::Mounted;
use crate::undo::Undo;
use crate::{fs, luks, mounts, trim};
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
        match wanted.how {
            // Mounting the same device once more gives the same file system, not a second one on the same blocks.
            AttachAs::Mount => self.mount(id, &top).map(Attachment::Mount),
            AttachAs::Device => Ok(Attachment::Device(top)),
        }
    }

    /// Attaches a volume that nothing uses. Its device keeps the claim, however long it is mounted or open: that it is there at
    /// the detachment tells that no power cut came between.
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
        let foreign = self.layout.foreign(id);
        match wanted.how {
            AttachAs::Device => foreign.set()?,
            AttachAs::Mount if foreign.is_set()? => {
                return Err(VolumeError::Foreign { volume: id.clone() });
            }
            AttachAs::Mount => {}
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
        // An open mapping keeps the device below it.
        let lasting = !stored.sealed;
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
        let attachment = match wanted.how {
            // Its machine checks and grows it by itself: nothing here reads what a machine wrote as blocks.
            AttachAs::Device => Attachment::Device(top),
            AttachAs::Mount => Attachment::Mount(self.mount_whole(wanted, &top)?),
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

    /// Checks the file system after an unclean end, mounts it, and has it fill its device.
    fn mount_whole(&self, wanted: &Wanted<'_>, top: &Path) -> Result<Mounted, VolumeError> {
        let id = wanted.id;
        let failed = fs::has_errors(top).map_err(VolumeError::io("read", top))?;
        if failed || !wanted.was_clean {
            tracing::warn!(volume = %id, failed, "unclean end before, checking the file system");
            fs::check(id, top)?;
        }
        if !fs::may_grow_mounted() {
            grow_unmounted(top)?;
        }
        let mounted = self.mount(id, top)?;
        let root = std::fs::File::open(mounted.path());
        grow_mounted(top, &root.map_err(VolumeError::io("open", top))?)?;
        Ok(mounted)
    }

    fn mount(&self, id: &VolumeId, device: &Path) -> Result<Mounted, VolumeError> {
        self.steps.enter(Step::Mount)?;
        match mounts::mount_ext4(device) {
            Ok(mounted) => Ok(mounted),
            // What the kernel says of a file system that is not one, or not whole.
            Err(error) if fs::is_corruption(&error) => Err(VolumeError::Damaged {
                volume: id.clone(),
                detail: format!("not mounted: {error}"),
            }),
            Err(error) => Err(VolumeError::io("mount", device)(error)),
        }
    }

    pub(super) fn detach_from(&self, id: &VolumeId, holder: &MachineId) -> Result<(), VolumeError> {
        let _volume = self.lock_volume(id)?;
        let marker = self.layout.marker(id);
        let how = match Marker::read(&marker)? {
            Marker::HeldBy(who, how) if who == *holder => how,
            // Not this holder's.
            Marker::HeldBy(..) | Marker::Absent | Marker::Unreadable => return Ok(()),
        };
        let stored = match self.backing.claim(id)? {
            // After an unclean end; the marker stays so that the next attach checks.
            Claim::Absent | Claim::Free(..) => return Ok(()),
            Claim::InUse(stored) => stored,
        };
        self.steps.enter(Step::Unmount)?;
        if let Some(top) = self.active_top(id, &stored)? {
            if how == AttachAs::Mount {
                self.give_back(id, &top);
            }
            self.await_unmounted(id, &top)?;
        }
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
    fn give_back(&self, id: &VolumeId, top: &Path) {
        if !self.backing.traits().discard {
            return;
        }
        if let Err(error) = mounts::root_of(top).and_then(|root| trim::trim(&root)) {
            tracing::warn!(volume = %id, %error, "freed blocks not given back");
        }
    }

    /// Waits until nothing anywhere has the volume mounted: the kernel takes the namespaces of an ended machine down after its
    /// last process is gone.
    fn await_unmounted(&self, id: &VolumeId, top: &Path) -> Result<(), VolumeError> {
        let began = Instant::now();
        // While it is open, the name is no other volume's.
        let opened = std::fs::File::open(top).map_err(VolumeError::io("open", top))?;
        let old = self.layout.old_mount_point(id);
        loop {
            mounts::remove_mount_point(&old).map_err(VolumeError::io("remove", &old))?;
            if mounts::is_unmounted(top).map_err(VolumeError::io("examine", top))? {
                drop(opened);
                return Ok(());
            }
            if began.elapsed() >= DEVICE_RELEASE_WAIT_MAX {
                return Err(still_mounted(id, top));
            }
            std::thread::sleep(POLL_PAUSE);
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
}

fn still_mounted(id: &VolumeId, top: &Path) -> VolumeError {
    let users = mounts::users_of(top);
    let what = if users.is_empty() {
        "files on it are open".to_owned()
    } else {
        format!("it is mounted by {}", users.join(", "))
    };
    VolumeError::Busy {
        volume: id.clone(),
        what,
        waited: DEVICE_RELEASE_WAIT_MAX,
    }
}

fn still_used(id: &VolumeId) -> VolumeError {
    VolumeError::Busy {
        volume: id.clone(),
        what: "a machine has its device".to_owned(),
        waited: DEVICE_RELEASE_WAIT_MAX,
    }
}
