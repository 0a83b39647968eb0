//! The `lvm` driver: one thin volume of an LVM2 thin pool per volume; snapshots and forks are instants.
//!
//! ```text
//! VG/slipway_vol_ID      a volume; its device exists exactly while it is in use
//! VG/slipway_snp_ID      what one held, read-only
//! POOL/volumes/ID.used   what a volume that is not in use takes on disk: only a device tells that
//! POOL/pool.id           the pool's id, which the volumes of the group that are this pool's are tagged with
//! ```
//! What each is stands in its tags: `slipway.pool=ID` says that it is ours, and nothing without it is ever touched;
//! `slipway.making=short|import` that it is not whole; `slipway.luks` that it is encrypted; `slipway.of=VOLUME`,
//! `slipway.used=BYTES` and `slipway.at=MS` tell of a snapshot. None is activated by the system itself at boot.
//!
//! **A pool that is full** fails every write in it, of every volume. So nothing new is promised from a mark on that lies
//! well before, for data and for metadata, and the operator is told from an earlier one on ([`crate::limits`]).
//!
//! Must not know: file systems, keys, holders.

mod report;

#[cfg(feature = "fuzz")]
pub(crate) use report::fuzz_report;

use crate::backing::{
    Active, Backing, Claim, Device, Inventory, Making, MayGoOn, Origin, State, Stored,
    StoredSnapshot, Traits, Unfinished,
};
use crate::driver::{Encryption, VolumeDriver};
use crate::error::VolumeError;
use crate::limits::{
    CAPACITY_DEFAULT_PERCENT, LVM_DURATION_MAX, THIN_DATA_REFUSE_PERCENT, THIN_DATA_WARN_PERCENT,
    THIN_METADATA_REFUSE_PERCENT, THIN_METADATA_WARN_PERCENT,
};
use crate::luks;
use crate::marker::remove_if_there;
use crate::pool::Pool;
use crate::pool::layout::Layout;
use crate::tool;
use report::{Lv, PoolLv};
use slipway_core::host_api::Cloning;
use slipway_core::id::{SnapshotId, VolumeId};
use slipway_core::units::ByteSize;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Every name of ours begins with it.
const PREFIX: &str = "slipway_";

/// Which thin pool, and how much of it may be promised.
#[derive(Debug, Clone)]
pub struct ThinPool {
    /// The volume group.
    pub volume_group: String,
    /// The thin pool in it.
    pub thin_pool: String,
    /// How much may be promised to volumes in all. Absent: 90% of the pool, times `oversubscription`.
    pub capacity: Option<ByteSize>,
    /// How many times the pool's size may be promised. At 1 every promise can be kept.
    pub oversubscription: f64,
}

/// Opens a thin pool; `pool_dir` has what is not blocks: locks, markers, mount points. Clears what a crash left half made,
/// and adopts what is attached. Several openings, in one process or in several, may work on one pool.
///
/// # Errors
/// [`VolumeError::EncryptionUnavailable`]; [`VolumeError::Unsupported`] if the thin pool is not there, is set up so that one
/// volume could read what another has deleted, or is smaller than what may be promised; [`VolumeError::Tool`];
/// [`VolumeError::Io`].
pub fn open_thin_pool(
    pool_dir: &Path,
    thin_pool: ThinPool,
    encryption: Encryption,
) -> Result<Arc<dyn VolumeDriver>, VolumeError> {
    Ok(Arc::new(open(pool_dir, thin_pool, encryption)?))
}

pub(crate) fn open(
    pool_dir: &Path,
    thin_pool: ThinPool,
    encryption: Encryption,
) -> Result<Pool<ThinVolumes>, VolumeError> {
    luks::check(encryption)?;
    let layout = Layout::make(pool_dir)?;
    let volumes = ThinVolumes::open(&layout, thin_pool)?;
    Pool::open(layout, volumes, encryption)
}

/// The volumes in one thin pool.
#[derive(Debug)]
pub(crate) struct ThinVolumes {
    dir: PathBuf,
    thin_pool: ThinPool,
    /// The tag that says that a volume is ours.
    ours: String,
    extent: u64,
    capacity: u64,
    discard: bool,
}

impl ThinVolumes {
    fn open(layout: &Layout, thin_pool: ThinPool) -> Result<Self, VolumeError> {
        check_name(&thin_pool.volume_group)?;
        check_name(&thin_pool.thin_pool)?;
        let found = report::pool(&thin_pool.volume_group, &thin_pool.thin_pool)?;
        if !found.zeroes {
            return Err(VolumeError::Unsupported(format!(
                "thin pool {}/{} does not zero new blocks, so that a volume could read what another has deleted (hint: lvchange \
                 --zero y)",
                thin_pool.volume_group, thin_pool.thin_pool
            )));
        }
        let most = scaled(found.size, thin_pool.oversubscription);
        let capacity = match thin_pool.capacity {
            Some(capacity) if capacity.0 > most => {
                return Err(VolumeError::Unsupported(format!(
                    "the pool has {}, and may promise {} at an oversubscription of {}, not {capacity} (hint: set another capacity)",
                    ByteSize(found.size),
                    ByteSize(most),
                    thin_pool.oversubscription
                )));
            }
            Some(capacity) => capacity.0,
            None => most / 100 * CAPACITY_DEFAULT_PERCENT,
        };
        Ok(Self {
            dir: layout.volumes_dir(),
            ours: format!("slipway.pool={}", layout.pool_id()?),
            thin_pool,
            extent: found.extent,
            capacity,
            discard: found.discards,
        })
    }

    /// All of ours.
    fn lvs(&self) -> Result<Vec<Lv>, VolumeError> {
        let mut all = report::volumes(&self.thin_pool.volume_group)?;
        all.retain(|lv| lv.has_tag(&self.ours));
        Ok(all)
    }

    fn lv(&self, name: &str) -> Result<Option<Lv>, VolumeError> {
        Ok(self.lvs()?.into_iter().find(|lv| lv.name == name))
    }

    fn whole(&self, id: &VolumeId) -> Result<Option<Lv>, VolumeError> {
        let found = self.lv(&volume_name(id))?;
        Ok(found.filter(|lv| lv.making().is_none()))
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}/{name}", self.thin_pool.volume_group)
    }

    /// The device of a volume, as the kernel has it now.
    fn device(&self, name: &str) -> Result<Option<PathBuf>, VolumeError> {
        report::device(&self.thin_pool.volume_group, name)
            .map_err(VolumeError::io("read", Path::new("/sys/block")))
    }

    fn used_path(&self, id: &VolumeId) -> PathBuf {
        self.dir.join(format!("{id}.used"))
    }

    fn stored(&self, lv: &Lv, mapped: &[(String, u64)]) -> Stored {
        let sealed = lv.has_tag("slipway.luks");
        let header = if sealed { luks::HEADER_BYTES } else { 0 };
        let dm_name = report::dm_name(&self.thin_pool.volume_group, &lv.name);
        let now = mapped.iter().find(|(name, _)| *name == dm_name);
        let remembered = || {
            let id = volume_of(&lv.name)?;
            let text = std::fs::read_to_string(self.used_path(&id)).ok()?;
            text.trim().parse().ok()
        };
        // Nothing known: it may be all of it.
        let used = now
            .map(|(_, bytes)| *bytes)
            .or_else(|| lv.number("slipway.used="))
            .or_else(remembered)
            .unwrap_or(lv.size);
        Stored {
            size: lv.size.saturating_sub(header),
            used,
            sealed,
        }
    }

    fn activate_lv(&self, name: &str) -> Result<PathBuf, VolumeError> {
        if let Some(device) = self.device(name)? {
            return Ok(device);
        }
        // -K: it carries the flag that keeps others from activating it.
        lvm("lvchange", &["-ay", "-K", &self.full_name(name)])?;
        self.device(name)?.ok_or_else(|| VolumeError::Tool {
            program: "lvchange",
            detail: format!("{name} has no device although it was activated"),
        })
    }

    /// Takes the device of a volume away; gives whether it is gone. What it takes on disk is noted first.
    fn deactivate_lv(&self, name: &str) -> Result<bool, VolumeError> {
        if self.device(name)?.is_none() {
            return Ok(true);
        }
        if let Some(id) = volume_of(name) {
            let dm_name = report::dm_name(&self.thin_pool.volume_group, name);
            let mapped = report::mapped()?;
            if let Some((_, bytes)) = mapped.iter().find(|(name, _)| *name == dm_name) {
                let path = self.used_path(&id);
                std::fs::write(&path, format!("{bytes}\n"))
                    .map_err(VolumeError::io("write", &path))?;
            }
        }
        let done = lvm("lvchange", &["-an", &self.full_name(name)]);
        match (done, self.device(name)?) {
            (_, None) => Ok(true),
            // Somebody has it open.
            (Ok(()), Some(_)) | (Err(VolumeError::Tool { .. }), Some(_)) => Ok(false),
            (Err(error), Some(_)) => Err(error),
        }
    }

    /// Removes one that is known to be ours.
    fn remove_lv(&self, lv: &Lv) -> Result<(), VolumeError> {
        // LVM takes its device away as well, and refuses if that is open.
        lvm("lvremove", &["-f", "-y", &self.full_name(&lv.name)])?;
        match volume_of(&lv.name) {
            Some(id) => remove_if_there(&self.used_path(&id)),
            None => Ok(()),
        }
    }

    /// A thin snapshot of `from`, which is an instant whatever its size.
    fn clone_lv(
        &self,
        from: &str,
        name: &str,
        permission: &str,
        tags: &[String],
    ) -> Result<(), VolumeError> {
        let from = self.full_name(from);
        let mut args = vec!["-s", "-n", name, "-ky", "--permission", permission];
        for tag in tags {
            args.extend(["--addtag", tag]);
        }
        args.push(&from);
        lvm("lvcreate", &args)
    }

    fn tags(&self, sealed: bool, making: Making) -> Vec<String> {
        let mut tags = vec![
            "slipway".to_owned(),
            self.ours.clone(),
            format!("slipway.at={}", now_ms()),
            making_tag(making).to_owned(),
        ];
        if sealed {
            tags.push("slipway.luks".to_owned());
        }
        tags
    }

    fn origin(&self, origin: &Origin) -> Result<Lv, VolumeError> {
        let name = match origin {
            Origin::Volume(id) => volume_name(id),
            Origin::Snapshot(id) => snapshot_name(id),
        };
        self.lv(&name)?.ok_or_else(|| match origin {
            Origin::Volume(id) => VolumeError::NotFound { volume: id.clone() },
            Origin::Snapshot(id) => VolumeError::SnapshotNotFound {
                snapshot: id.clone(),
            },
        })
    }

    fn inventory_of(&self, lvs: &[Lv]) -> Result<Inventory, VolumeError> {
        let mapped = report::mapped()?;
        let mut inventory = Inventory::default();
        for lv in lvs.iter().filter(|lv| lv.has_tag(&self.ours)) {
            let stored = self.stored(lv, &mapped);
            match (volume_of(&lv.name), snapshot_of(&lv.name), lv.making()) {
                (Some(id), _, Some(making)) => {
                    inventory.reserved = inventory.reserved.saturating_add(stored.size);
                    let at = lv.number("slipway.at=").unwrap_or(0);
                    inventory.unfinished.push(Unfinished::Volume {
                        id,
                        making,
                        idle_s: now_ms().saturating_sub(at) / 1000,
                    });
                }
                (_, Some(snapshot), Some(_)) => {
                    inventory.reserved = inventory.reserved.saturating_add(stored.used);
                    if let Some(of) = lv.id("slipway.of=") {
                        let unfinished = Unfinished::Snapshot(snapshot, of);
                        inventory.unfinished.push(unfinished);
                    }
                }
                (Some(id), _, None) => inventory.volumes.push((id, stored)),
                (None, Some(snapshot), None) => {
                    if let Some(volume) = lv.id("slipway.of=") {
                        inventory.snapshots.push(StoredSnapshot {
                            snapshot,
                            volume,
                            stored,
                            made_at_ms: lv.number("slipway.at=").unwrap_or(0),
                        });
                    }
                }
                (None, None, _) => {}
            }
        }
        Ok(inventory)
    }
}

impl Backing for ThinVolumes {
    /// The volume's own lock, which the caller has, is all that is needed.
    type Held = Lv;

    fn traits(&self) -> Traits {
        Traits {
            name: "lvm",
            thin: true,
            discard: self.discard,
            cloning: Cloning::Thin,
            // Device-mapper freezes what is mounted while it suspends the device.
            stills_by_itself: true,
        }
    }

    fn round_up(&self, size: u64) -> u64 {
        size.next_multiple_of(self.extent)
    }

    fn inventory(&self) -> Result<Inventory, VolumeError> {
        self.inventory_of(&self.lvs()?)
    }

    fn find(&self, id: &VolumeId) -> Result<Option<Stored>, VolumeError> {
        let Some(lv) = self.whole(id)? else {
            return Ok(None);
        };
        Ok(Some(self.stored(&lv, &report::mapped()?)))
    }

    fn claim(&self, id: &VolumeId) -> Result<Claim<Lv>, VolumeError> {
        let Some(lv) = self.whole(id)? else {
            return Ok(Claim::Absent);
        };
        let stored = self.stored(&lv, &report::mapped()?);
        Ok(match self.active(id)? {
            None => Claim::Free(lv, stored),
            Some(_) => Claim::InUse(stored),
        })
    }

    fn activate(&self, id: &VolumeId, _held: &Lv, _lasting: bool) -> Result<Device, VolumeError> {
        // What is noted is not so any more.
        remove_if_there(&self.used_path(id))?;
        let path = self.activate_lv(&volume_name(id))?;
        Ok(Device { path, _open: None })
    }

    fn active(&self, id: &VolumeId) -> Result<Option<PathBuf>, VolumeError> {
        self.device(&volume_name(id))
    }

    fn all_active(&self) -> Result<Active, VolumeError> {
        let names = report::active(&self.thin_pool.volume_group)
            .map_err(VolumeError::io("read", Path::new("/sys/block")))?;
        Ok(Active {
            volumes: names.iter().filter_map(|name| volume_of(name)).collect(),
            snapshots: names.iter().filter_map(|name| snapshot_of(name)).collect(),
        })
    }

    fn deactivate(&self, id: &VolumeId) -> Result<(), VolumeError> {
        self.deactivate_lv(&volume_name(id)).map(drop)
    }

    fn begin(
        &self,
        id: &VolumeId,
        stored: &Stored,
        making: Making,
        from: Option<&Origin>,
    ) -> Result<(), VolumeError> {
        if from.is_some() {
            return Ok(());
        }
        let header = if stored.sealed { luks::HEADER_BYTES } else { 0 };
        let size = format!("{}b", (stored.size + header).next_multiple_of(self.extent));
        let (name, tags) = (volume_name(id), self.tags(stored.sealed, making));
        let pool = self.full_name(&self.thin_pool.thin_pool);
        let mut args = vec!["-V", &size, "--thinpool", &pool, "-n", &name, "-ky", "-an"];
        for tag in &tags {
            args.extend(["--addtag", tag]);
        }
        lvm("lvcreate", &args)
    }

    fn fill(
        &self,
        id: &VolumeId,
        stored: &Stored,
        from: &Origin,
        _may_go_on: MayGoOn<'_>,
    ) -> Result<(), VolumeError> {
        let (origin, name) = (self.origin(from)?, volume_name(id));
        let tags = self.tags(stored.sealed, Making::Short);
        self.clone_lv(&origin.name, &name, "rw", &tags)?;
        self.extend_lv(&name, origin.size, stored)
    }

    fn is_begun(&self, id: &VolumeId, making: Making) -> Result<bool, VolumeError> {
        let found = self.lv(&volume_name(id))?;
        Ok(found.is_some_and(|lv| lv.making() == Some(making)))
    }

    fn making(&self, id: &VolumeId, _making: Making) -> Result<Device, VolumeError> {
        let path = self.activate_lv(&volume_name(id))?;
        Ok(Device { path, _open: None })
    }

    fn publish(&self, id: &VolumeId, making: Making) -> Result<(), VolumeError> {
        let name = volume_name(id);
        // What takes part in attaching is not active.
        if !self.deactivate_lv(&name)? {
            return Err(VolumeError::Tool {
                program: "lvchange",
                detail: format!("the new {name} is in use"),
            });
        }
        let full = self.full_name(&name);
        lvm("lvchange", &["--deltag", making_tag(making), &full])
    }

    fn settle(&self) -> Result<(), VolumeError> {
        // LVM has made each change durable before its program ended.
        Ok(())
    }

    fn abandon(&self, id: &VolumeId, makings: &[Making]) -> Result<(), VolumeError> {
        match self.lv(&volume_name(id))? {
            Some(lv) if lv.making().is_some_and(|m| makings.contains(&m)) => self.remove_lv(&lv),
            Some(_) | None => Ok(()),
        }
    }

    fn remove(&self, _id: &VolumeId, held: Lv) -> Result<(), VolumeError> {
        self.remove_lv(&held)
    }

    fn grow(&self, id: &VolumeId, size: u64) -> Result<(), VolumeError> {
        let Some(lv) = self.whole(id)? else {
            return Err(VolumeError::NotFound { volume: id.clone() });
        };
        let found = self.stored(&lv, &[]);
        self.extend_lv(&lv.name, lv.size, &Stored { size, ..found })
    }

    fn snapshot_reserve(&self, stored: &Stored) -> u64 {
        stored.used
    }

    fn begin_snapshot(
        &self,
        _volume: &VolumeId,
        _stored: &Stored,
        _snapshot: &SnapshotId,
    ) -> Result<(), VolumeError> {
        Ok(())
    }

    fn fill_snapshot(
        &self,
        volume: &VolumeId,
        stored: &Stored,
        snapshot: &SnapshotId,
        _may_go_on: MayGoOn<'_>,
    ) -> Result<(), VolumeError> {
        let mut tags = self.tags(stored.sealed, Making::Short);
        tags.push(format!("slipway.of={volume}"));
        self.clone_lv(&volume_name(volume), &snapshot_name(snapshot), "r", &tags)
    }

    fn publish_snapshot(
        &self,
        _volume: &VolumeId,
        _stored: &Stored,
        snapshot: &SnapshotId,
    ) -> Result<(), VolumeError> {
        let name = snapshot_name(snapshot);
        // What it takes is known from its device alone, and never changes.
        self.activate_lv(&name)?;
        let dm_name = report::dm_name(&self.thin_pool.volume_group, &name);
        let mapped = report::mapped();
        self.deactivate_lv(&name)?;
        let used = mapped?
            .into_iter()
            .find(|(name, _)| *name == dm_name)
            .map_or(0, |(_, bytes)| bytes);
        let (used, full) = (format!("slipway.used={used}"), self.full_name(&name));
        let making = making_tag(Making::Short);
        lvm("lvchange", &["--deltag", making, "--addtag", &used, &full])
    }

    fn abandon_snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        let name = snapshot_name(snapshot);
        match self.lv(&name)? {
            Some(lv) if lv.making().is_some() => self.remove_lv(&lv),
            Some(_) | None => Ok(()),
        }
    }

    fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        match self.lv(&snapshot_name(snapshot))? {
            Some(lv) => self.remove_lv(&lv),
            None => Ok(()),
        }
    }

    fn open_snapshot(&self, snapshot: &StoredSnapshot) -> Result<Device, VolumeError> {
        let path = self.activate_lv(&snapshot_name(&snapshot.snapshot))?;
        Ok(Device { path, _open: None })
    }

    fn close_snapshot(&self, snapshot: &StoredSnapshot) -> Result<(), VolumeError> {
        self.deactivate_lv(&snapshot_name(&snapshot.snapshot))
            .map(drop)
    }

    fn survey(&self) -> Result<(Inventory, State), VolumeError> {
        let (pool, lvs) = report::group(&self.thin_pool.volume_group, &self.thin_pool.thin_pool)?;
        let mut notices = notices(&pool);
        notices.extend(
            lvs.iter()
                .filter(|lv| lv.name.starts_with(PREFIX) && !lv.has_tag(&self.ours))
                .map(|lv| {
                    format!(
                        "{} looks like a volume of Slipway but is not of this pool; it is left alone (hint: lvs -o +tags; lvremove it if \
                         nobody misses it)",
                        self.full_name(&lv.name)
                    )
                }),
        );
        let state = State {
            capacity: self.capacity,
            used: Some(scaled(pool.size, pool.data_percent / 100.0)),
            refuses_growth: refusal(&pool),
            file_system: None,
            notices,
        };
        Ok((self.inventory_of(&lvs)?, state))
    }

    fn describe(&self, id: &VolumeId) -> PathBuf {
        let name = volume_name(id);
        let device = self.device(&name).ok().flatten();
        device.unwrap_or_else(|| Path::new("/dev").join(self.full_name(&name)))
    }
}

impl ThinVolumes {
    fn extend_lv(&self, name: &str, has: u64, stored: &Stored) -> Result<(), VolumeError> {
        let header = if stored.sealed { luks::HEADER_BYTES } else { 0 };
        let want = (stored.size + header).next_multiple_of(self.extent);
        if has >= want {
            return Ok(());
        }
        let (size, full) = (format!("{want}b"), self.full_name(name));
        lvm("lvextend", &["-L", &size, &full])
    }
}

/// Why the pool takes nothing more.
fn refusal(pool: &PoolLv) -> Option<String> {
    if let Some(trouble) = &pool.trouble {
        return Some(format!("it is not well ({trouble})"));
    }
    if pool.data_percent >= THIN_DATA_REFUSE_PERCENT {
        return Some(format!(
            "{:.0}% of its data is taken (hint: destroy volumes or snapshots, or lvextend the pool)",
            pool.data_percent
        ));
    }
    (pool.metadata_percent >= THIN_METADATA_REFUSE_PERCENT).then(|| {
        format!(
            "{:.0}% of its metadata is taken (hint: lvextend --poolmetadatasize)",
            pool.metadata_percent
        )
    })
}

/// What the operator must see to.
fn notices(pool: &PoolLv) -> Vec<String> {
    let mut notices = Vec::new();
    if let Some(trouble) = &pool.trouble {
        notices.push(format!("the thin pool is not well: {trouble}"));
    }
    for (what, percent, warn, hint) in [
        ("data", pool.data_percent, THIN_DATA_WARN_PERCENT, "-L"),
        (
            "metadata",
            pool.metadata_percent,
            THIN_METADATA_WARN_PERCENT,
            "--poolmetadatasize",
        ),
    ] {
        if percent >= warn {
            notices.push(format!(
                "{percent:.0}% of the thin pool's {what} is taken; when all is, every write to every volume fails (hint: lvextend {hint})"
            ));
        }
    }
    notices
}

fn volume_name(id: &VolumeId) -> String {
    format!("{PREFIX}{id}")
}

fn snapshot_name(id: &SnapshotId) -> String {
    format!("{PREFIX}{id}")
}

fn volume_of(name: &str) -> Option<VolumeId> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

fn snapshot_of(name: &str) -> Option<SnapshotId> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

fn making_tag(making: Making) -> &'static str {
    match making {
        Making::Short => "slipway.making=short",
        Making::Import => "slipway.making=import",
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a share of a size needs no more than 52 bits"
)]
fn scaled(bytes: u64, by: f64) -> u64 {
    (bytes as f64 * by.max(0.0)) as u64
}

/// Names of volume groups and pools come from the settings and go to programs.
fn check_name(name: &str) -> Result<(), VolumeError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"+_.-".contains(&b);
    if !name.is_empty() && !name.starts_with('-') && name.bytes().all(fine) {
        Ok(())
    } else {
        Err(VolumeError::Unsupported(format!(
            "'{name}' is no name of a volume group or thin pool"
        )))
    }
}

fn lvm(program: &'static str, args: &[&str]) -> Result<(), VolumeError> {
    let mut all = vec![OsStr::new("--quiet")];
    all.extend(args.iter().map(OsStr::new));
    tool::run(program, &all, LVM_DURATION_MAX)?.success(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_refused_and_told_before_it_is_too_late() {
        let pool = |data_percent, metadata_percent| PoolLv {
            size: 1 << 30,
            extent: 4 << 20,
            data_percent,
            metadata_percent,
            zeroes: true,
            discards: true,
            trouble: None,
        };
        for (data, metadata, told, refused) in [
            (10.0, 10.0, 0, false),
            (THIN_DATA_WARN_PERCENT, 10.0, 1, false),
            (THIN_DATA_REFUSE_PERCENT, 10.0, 1, true),
            (10.0, THIN_METADATA_WARN_PERCENT, 1, false),
            (10.0, THIN_METADATA_REFUSE_PERCENT, 1, true),
            (100.0, 100.0, 2, true),
        ] {
            let pool = pool(data, metadata);
            assert_eq!(notices(&pool).len(), told, "{pool:?}");
            assert_eq!(refusal(&pool).is_some(), refused, "{pool:?}");
        }
        let ill = PoolLv {
            trouble: Some("needs_check".to_owned()),
            ..pool(0.0, 0.0)
        };
        assert!(refusal(&ill).is_some());
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["", "-f", "a/b", "a b", "../x"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        check_name("vg-0.fast_1+").unwrap();
    }
}
