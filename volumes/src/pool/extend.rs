//! Making a volume larger: its blocks, its device, its file system.
//!
//! The blocks come first; the rest follows where the volume is attached, and otherwise when it is attached next. So a cut
//! anywhere is finished by asking again, or by the next attachment.
//!
//! Must not know: how blocks are found.

use super::steps::Step;
use super::{Pool, clear_name, needed};
use crate::backing::{Backing, Stored};
use crate::error::VolumeError;
use crate::{fs, luks, mounts};
use slipway_core::host_api::VolumeReport;
use slipway_core::id::VolumeId;
use slipway_core::key::VolumeKey;
use slipway_core::units::ByteSize;
use std::fs::File;
use std::path::Path;

impl<B: Backing> Pool<B> {
    pub(super) fn make_larger(
        &self,
        id: &VolumeId,
        size: ByteSize,
        key: Option<&VolumeKey>,
    ) -> Result<VolumeReport, VolumeError> {
        let want = self.rounded(size)?;
        let _volume = self.lock_volume(id)?;
        let stored = self.found_now(id)?;
        if want < stored.size {
            return Err(VolumeError::Shrink {
                volume: id.clone(),
                have: ByteSize(stored.size),
                want: size,
            });
        }
        let active = self.backing.active(id)?;
        if stored.sealed && active.is_some() {
            needed(id, key)?;
        }
        if want > stored.size {
            self.steps.enter(Step::Grow)?;
            let _pool = self.lock_pool(&format!("the extension of {id}"))?;
            self.check_room(want - stored.size)?;
            self.backing.grow(id, want)?;
            self.backing.settle()?;
            tracing::info!(volume = %id, from = stored.size, to = want, "volume extended");
        }
        if let Some(device) = active {
            self.follow(id, &stored, &device, key)?;
        }
        self.report_now(id)?
            .ok_or_else(|| VolumeError::NotFound { volume: id.clone() })
    }

    /// The device in clear and a mounted file system follow the growth of what is below them.
    fn follow(
        &self,
        id: &VolumeId,
        stored: &Stored,
        device: &Path,
        key: Option<&VolumeKey>,
    ) -> Result<(), VolumeError> {
        let top = if stored.sealed {
            self.steps.enter(Step::GrowClear)?;
            let name = clear_name(id);
            luks::resize(&name, needed(id, key)?)?;
            luks::clear_path(&name)
        } else {
            device.to_owned()
        };
        if self.is_held_mounted(id)? {
            self.steps.enter(Step::GrowFileSystem)?;
            let root = mounts::root_of(&top).map_err(VolumeError::io("open", &top))?;
            grow_mounted(&top, &root)?;
        }
        Ok(())
    }
}

/// Grows a file system that is smaller than its device, and mounted nowhere.
pub(super) fn grow_unmounted(device: &Path) -> Result<(), VolumeError> {
    let Some(growth) = Growth::of(device)? else {
        return Ok(());
    };
    fs::grow_unmounted(device)?;
    growth.tell(device);
    Ok(())
}

/// The same for one that is mounted, with a directory of it.
pub(super) fn grow_mounted(device: &Path, dir: &File) -> Result<(), VolumeError> {
    let Some(growth) = Growth::of(device)? else {
        return Ok(());
    };
    if !fs::may_grow_mounted() {
        tracing::warn!(
            device = %device.display(),
            "the file system grows at the next attachment (this process lacks CAP_SYS_RESOURCE)"
        );
        return Ok(());
    }
    fs::grow_mounted(dir, growth.to)
        .map_err(VolumeError::io("extend the file system of", device))?;
    growth.tell(device);
    Ok(())
}

/// Bytes that a file system has, and could have on its device.
struct Growth {
    from: u64,
    to: u64,
}

impl Growth {
    /// None, if the file system has what there is.
    fn of(device: &Path) -> Result<Option<Self>, VolumeError> {
        let failed = || VolumeError::io::<std::io::Error>("read the size of", device);
        let Some(from) = fs::size(device).map_err(failed())? else {
            return Ok(None);
        };
        let to = device_size(device).map_err(failed())?;
        // Less than a block group more is not always of use to it.
        Ok((to.saturating_sub(from) >= fs::GROWTH_MIN).then_some(Self { from, to }))
    }

    fn tell(&self, device: &Path) {
        tracing::info!(device = %device.display(), from = self.from, to = self.to, "file system extended");
    }
}

/// Of a block device or a file.
pub(super) fn device_size(device: &Path) -> std::io::Result<u64> {
    use std::io::Seek;
    std::fs::File::open(device)?.seek(std::io::SeekFrom::End(0))
}
