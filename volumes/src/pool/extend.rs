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
            let _pool = self.lock_pool()?;
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
        let mount_point = self.layout.mount_point(id);
        if mounts::is_mount_point(&mount_point).map_err(VolumeError::io("look up", &mount_point))? {
            self.steps.enter(Step::GrowFileSystem)?;
            grow_if_smaller(&top, true)?;
        }
        Ok(())
    }
}

/// Grows a file system that is smaller than its device. Gives whether it was.
pub(super) fn grow_if_smaller(device: &Path, mounted: bool) -> Result<bool, VolumeError> {
    let failed = || VolumeError::io::<std::io::Error>("read the size of", device);
    let Some(has) = fs::size(device).map_err(failed())? else {
        return Ok(false);
    };
    let room = device_size(device).map_err(failed())?;
    // Less than a block group more is not always of use to it.
    if room.saturating_sub(has) < fs::GROWTH_MIN {
        return Ok(false);
    }
    if mounted && !fs::may_grow_mounted() {
        tracing::warn!(
            device = %device.display(),
            "the file system grows at the next attachment (this process lacks CAP_SYS_RESOURCE)"
        );
        return Ok(false);
    }
    if mounted {
        fs::grow(device)?;
    } else {
        fs::grow_unmounted(device)?;
    }
    tracing::info!(device = %device.display(), from = has, to = room, "file system extended");
    Ok(true)
}

/// Of a block device or a file.
pub(super) fn device_size(device: &Path) -> std::io::Result<u64> {
    use std::io::Seek;
    std::fs::File::open(device)?.seek(std::io::SeekFrom::End(0))
}
