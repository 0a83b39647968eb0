//! What LVM and device-mapper say: volumes with their tags, the state of a thin pool, devices and what they have mapped.
//!
//! Must not know: what is done with it.

use crate::backing::Making;
use crate::error::VolumeError;
use crate::limits::{DEVICE_STATUS_TRIES_MAX, LVM_DURATION_MAX, POLL_PAUSE};
use crate::tool;
use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lv {
    pub(super) name: String,
    pub(super) size: u64,
    tags: Vec<String>,
}

impl Lv {
    pub(super) fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|has| has == tag)
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.tags.iter().find_map(|tag| tag.strip_prefix(key))
    }

    /// The number in a tag, as in `slipway.used=4096`.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.value(key)?.parse().ok()
    }

    /// The id in a tag.
    pub(super) fn id<T: FromStr>(&self, key: &str) -> Option<T> {
        self.value(key)?.parse().ok()
    }

    /// It is not whole.
    pub(super) fn making(&self) -> Option<Making> {
        match self.value("slipway.making=")? {
            "import" => Some(Making::Import),
            _ => Some(Making::Short),
        }
    }
}

/// A thin pool.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PoolLv {
    pub(super) size: u64,
    /// Sizes in its group are multiples of this.
    pub(super) extent: u64,
    pub(super) data_percent: f64,
    pub(super) metadata_percent: f64,
    /// New blocks read as zeros.
    pub(super) zeroes: bool,
    /// Freed blocks come back.
    pub(super) discards: bool,
    /// What LVM calls its health, when it is not well.
    pub(super) trouble: Option<String>,
}

/// lvmreport(7), with `--reportformat json`: every value is a text.
#[derive(Deserialize)]
struct Report {
    report: Vec<Section>,
}

#[derive(Deserialize)]
struct Section {
    lv: Vec<Row>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Row {
    lv_name: String,
    lv_size: String,
    lv_tags: String,
    vg_extent_size: String,
    data_percent: String,
    metadata_percent: String,
    zero: String,
    discards: String,
    lv_health_status: String,
}

fn lvs(columns: &str, what: &str) -> Result<Vec<Row>, VolumeError> {
    let args = [
        "--reportformat",
        "json",
        "--units",
        "b",
        "--nosuffix",
        "-o",
        columns,
        what,
    ];
    let text = tool::output("lvs", &args, LVM_DURATION_MAX)?;
    rows(&text).ok_or_else(|| VolumeError::Tool {
        program: "lvs",
        detail: "its report is not understood".to_owned(),
    })
}

fn rows(text: &[u8]) -> Option<Vec<Row>> {
    let report: Report = serde_json::from_slice(text).ok()?;
    Some(report.report.into_iter().flat_map(|s| s.lv).collect())
}

const OF_VOLUMES: &str = "lv_name,lv_size,lv_tags";
const OF_POOLS: &str =
    "vg_extent_size,data_percent,metadata_percent,zero,discards,lv_health_status";

impl From<Row> for Lv {
    fn from(row: Row) -> Self {
        Self {
            name: row.lv_name,
            size: row.lv_size.parse().unwrap_or(0),
            tags: row.lv_tags.split(',').map(str::to_owned).collect(),
        }
    }
}

/// All volumes of a group.
pub(super) fn volumes(group: &str) -> Result<Vec<Lv>, VolumeError> {
    Ok(lvs(OF_VOLUMES, group)?.into_iter().map(Lv::from).collect())
}

/// A thin pool as it is now.
pub(super) fn pool(group: &str, name: &str) -> Result<PoolLv, VolumeError> {
    let columns = format!("{OF_VOLUMES},{OF_POOLS}");
    let rows = lvs(&columns, &format!("{group}/{name}"))?;
    let found = rows.first().and_then(pool_of);
    found.ok_or_else(|| no_pool(group, name))
}

/// The same, and all volumes of its group, of one moment.
pub(super) fn group(group: &str, name: &str) -> Result<(PoolLv, Vec<Lv>), VolumeError> {
    let rows = lvs(&format!("{OF_VOLUMES},{OF_POOLS}"), group)?;
    let found = rows.iter().find(|row| row.lv_name == name);
    let found = found.and_then(pool_of);
    let pool = found.ok_or_else(|| no_pool(group, name))?;
    Ok((pool, rows.into_iter().map(Lv::from).collect()))
}

fn no_pool(group: &str, name: &str) -> VolumeError {
    VolumeError::Unsupported(format!(
        "{group}/{name} is not a thin pool (hint: lvcreate --type thin-pool -L SIZE -n {name} {group})"
    ))
}

fn pool_of(row: &Row) -> Option<PoolLv> {
    Some(PoolLv {
        size: row.lv_size.parse().ok()?,
        extent: row.vg_extent_size.parse().ok()?,
        data_percent: row.data_percent.parse().ok()?,
        metadata_percent: row.metadata_percent.parse().ok()?,
        zeroes: !matches!(row.zero.as_str(), "" | "0" | "unknown"),
        discards: row.discards != "ignore",
        trouble: (!row.lv_health_status.is_empty()).then(|| row.lv_health_status.clone()),
    })
}

/// How device-mapper calls a volume: a hyphen within a name is doubled.
pub(super) fn dm_name(group: &str, name: &str) -> String {
    format!("{}-{}", group.replace('-', "--"), name.replace('-', "--"))
}

/// The device of a volume, if the kernel has one.
pub(super) fn device(group: &str, name: &str) -> io::Result<Option<PathBuf>> {
    let wanted = dm_name(group, name);
    let found = devices()?.into_iter().find(|(name, _)| *name == wanted);
    Ok(found.map(|(_, path)| path))
}

/// The names of the volumes of a group that have a device, without those whose names have a hyphen.
pub(super) fn active(group: &str) -> io::Result<Vec<String>> {
    let prefix = dm_name(group, "");
    let names = devices()?.into_iter().filter_map(|(name, _)| {
        let name = name.strip_prefix(&prefix)?;
        (!name.contains('-')).then(|| name.to_owned())
    });
    Ok(names.collect())
}

/// All that device-mapper has, by its names.
fn devices() -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        let Some(device) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        if !device.starts_with("dm-") {
            continue;
        }
        // It may go as we look.
        if let Ok(name) = std::fs::read_to_string(entry.path().join("dm/name")) {
            found.push((name.trim_end().to_owned(), Path::new("/dev").join(device)));
        }
    }
    Ok(found)
}

/// Bytes that the active thin volumes have mapped, by their device-mapper names.
pub(super) fn mapped() -> Result<Vec<(String, u64)>, VolumeError> {
    let args = ["status", "--target", "thin"];
    let mut tries = 1;
    loop {
        match tool::output("dmsetup", &args, LVM_DURATION_MAX) {
            Ok(text) => return Ok(mapped_in(&String::from_utf8_lossy(&text))),
            // It fails if a device goes between its list and its look at each.
            Err(VolumeError::Tool { .. }) if tries < DEVICE_STATUS_TRIES_MAX => tries += 1,
            Err(error) => return Err(error),
        }
        std::thread::sleep(POLL_PAUSE);
    }
}

/// Lines as `group-name: 0 131072 thin 16384 131071`: start, length, target, mapped sectors, highest of them
/// (Documentation/admin-guide/device-mapper/thin-provisioning.rst of Linux).
fn mapped_in(text: &str) -> Vec<(String, u64)> {
    text.lines()
        .filter_map(|line| {
            let (name, status) = line.split_once(": ")?;
            let sectors: u64 = status.split(' ').nth(3)?.parse().ok()?;
            Some((name.to_owned(), sectors.checked_mul(512)?))
        })
        .collect()
}

/// What LVM or, without JSON, device-mapper says.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_report(bytes: &[u8]) {
    for row in rows(bytes).unwrap_or_default() {
        if let Some(pool) = pool_of(&row) {
            let _ = (pool.data_percent, pool.trouble);
        }
    }
    let _ = mapped_in(&String::from_utf8_lossy(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_lvs_writes() {
        let text = br#"{"report": [{"lv": [
            {"lv_name":"pool", "lv_size":"1073741824", "vg_extent_size":"4194304", "data_percent":"12.50", "metadata_percent":"3.10",
             "zero":"zero", "discards":"passdown", "lv_health_status":"", "lv_tags":""},
            {"lv_name":"slipway_x", "lv_size":"67108864", "data_percent":"", "metadata_percent":"",
             "lv_tags":"slipway,slipway.making=import,slipway.used=4096"}]}], "log": []}"#;
        let rows = rows(text).unwrap();
        let pool = pool_of(&rows[0]).unwrap();
        assert_eq!(pool.extent, 4 << 20);
        assert!(pool.zeroes && pool.discards && pool.trouble.is_none());
        assert_eq!(pool_of(&rows[1]), None, "no pool");
        let tags = rows[1].lv_tags.split(',').map(str::to_owned).collect();
        let lv = Lv {
            name: rows[1].lv_name.clone(),
            size: 0,
            tags,
        };
        assert_eq!(lv.making(), Some(Making::Import));
        assert_eq!(lv.number("slipway.used="), Some(4096));
        assert!(lv.has_tag("slipway") && !lv.has_tag("slipway.luks"));
    }

    #[test]
    fn reads_what_is_mapped() {
        let text = "a--b-slipway_vol: 0 131072 thin 16384 131071\nodd\nother: 0 8 thin - -\n";
        assert_eq!(
            mapped_in(text),
            [("a--b-slipway_vol".to_owned(), 16384 * 512)]
        );
        assert_eq!(dm_name("a-b", "slipway_vol"), "a--b-slipway_vol");
    }
}
