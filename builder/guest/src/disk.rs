//! Space on the cache volume. It must not know what is done about a full one.

use slipway_core::guest_api::DiskUse;
use std::path::Path;

/// Where dockerd keeps everything: the cache volume.
pub(crate) const DATA_ROOT: &str = "/var/lib/docker";

/// What the file system of `path` has and how much of it is in use. Fails as `statvfs` fails.
pub(crate) fn measure(path: &Path) -> nix::Result<DiskUse> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    let unit = stat.fragment_size();
    // Blocks that only root may take are no use to anybody here (root of a user namespace does not count): with them
    // left out of both figures, full means full.
    let reserved = stat.blocks_free().saturating_sub(stat.blocks_available());
    let total = stat.blocks().saturating_sub(reserved);
    Ok(DiskUse {
        total_bytes: total.saturating_mul(unit),
        used_bytes: total
            .saturating_sub(stat.blocks_available())
            .saturating_mul(unit),
    })
}
