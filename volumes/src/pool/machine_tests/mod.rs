//! Thin pools and encryption, on a kernel that has device-mapper: [`machine`] finds one.
//!
//! Each takes a volume group of its own on the test's disk, or a directory.

mod deaths;
mod faults;
mod machine;
mod power;

use super::Pool;
use crate::backing::Backing;
use crate::conformance::{CASES, Dir, POOL_CAPACITY};
use crate::driver::{AttachAs, Encryption, NewVolume, VolumeDriver};
use crate::error::VolumeError;
use crate::file::{self, Capacity, Images};
use crate::lvm::{self, ThinPool, ThinVolumes};
use machine::{disk, with_device_mapper};
use slipway_core::host_api::{VolumeReport, VolumeSource};
use slipway_core::id::{MachineId, SnapshotId, VolumeId};
use slipway_core::key::{VOLUME_KEY_BYTES, VolumeKey};
use slipway_core::units::ByteSize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const GROUP: &str = "test-vg";
const SIZE: ByteSize = ByteSize::mib(64);

fn sh(script: &str) -> String {
    let output = Command::new("bash")
        .args(["-euc", script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {text}{words}");
    text
}

/// A volume group on the test's disk, with a thin pool; gone afterwards.
struct Group {
    dir: tempfile::TempDir,
}

impl Group {
    fn new(pool_mib: u64, metadata_mib: u64) -> Self {
        let disk = disk();
        sh(&format!(
            "wipefs -qaf {disk}; vgcreate -qq -y {GROUP} {disk}; \
             lvcreate -qq -y --type thin-pool -L {pool_mib}M --poolmetadatasize {metadata_mib}M --zero y \
             -n pool {GROUP}; lvchange -qq --errorwhenfull y {GROUP}/pool"
        ));
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    fn open(&self, encryption: Encryption) -> Pool<ThinVolumes> {
        open_thin(&self.path(), encryption, 1.0, POOL_CAPACITY)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let script = format!(
            "for m in /dev/mapper/slipway-*; do [ -e $m ] && cryptsetup close $m || true; done; vgremove -qq -ff -y {GROUP}"
        );
        let _ = Command::new("bash").args(["-c", &script]).output();
    }
}

fn open_thin(
    dir: &Path,
    encryption: Encryption,
    oversubscription: f64,
    capacity: ByteSize,
) -> Pool<ThinVolumes> {
    let pool = ThinPool {
        volume_group: GROUP.to_owned(),
        thin_pool: "pool".to_owned(),
        capacity: Some(capacity),
        oversubscription,
    };
    lvm::open(dir, pool, encryption).unwrap()
}

fn open_files(dir: &Path) -> Pool<Images> {
    file::open(dir, Capacity::of(POOL_CAPACITY), Encryption::Required).unwrap()
}

fn volume(n: u8) -> VolumeId {
    VolumeId::from_entropy([n; 10])
}

fn machine(n: u8) -> MachineId {
    MachineId::from_entropy([n; 10])
}

fn snapshot() -> SnapshotId {
    SnapshotId::from_entropy([1; 10])
}

fn key(n: u8) -> VolumeKey {
    VolumeKey::from_entropy(&[n; VOLUME_KEY_BYTES])
}

fn ensure<B: Backing>(pool: &Pool<B>, n: u8, size: ByteSize) -> Result<VolumeReport, VolumeError> {
    pool.ensure(&NewVolume {
        key: Some(&key(n)),
        ..NewVolume::empty(&volume(n), size)
    })
}

fn restore<B: Backing>(pool: &Pool<B>, n: u8) -> Result<VolumeReport, VolumeError> {
    pool.ensure(&NewVolume {
        id: &volume(n),
        size: SIZE,
        source: Some(&VolumeSource::Snapshot {
            snapshot: snapshot(),
        }),
        key: Some(&key(n)),
        source_key: Some(&key(1)),
    })
}

fn mount<B: Backing>(pool: &Pool<B>, n: u8) -> Result<Dir, VolumeError> {
    let key = key(n);
    pool.attach(&volume(n), &machine(n), AttachAs::Mount, Some(&key))
        .map(Dir::of)
}

fn release<B: Backing>(pool: &Pool<B>, n: u8) {
    pool.detach(&volume(n), &machine(n)).unwrap();
}

fn conform(open: impl Fn(&Path) -> Arc<dyn VolumeDriver> + Sync, dir: &Path) {
    for (n, (name, case)) in CASES.iter().enumerate() {
        let began = std::time::Instant::now();
        let dir = dir.join(n.to_string());
        case(&|| open(&dir));
        let pool = open(&dir);
        for volume in pool.list().unwrap() {
            pool.destroy(&volume.volume).unwrap();
        }
        for snapshot in pool.snapshots().unwrap() {
            pool.delete_snapshot(&snapshot.snapshot).unwrap();
        }
        println!("case: {name}: {} ms", began.elapsed().as_millis());
    }
}

#[test]
fn thin_volumes_conform() {
    with_device_mapper("thin_volumes_conform", || {
        let group = Group::new(768, 16);
        conform(
            |dir| Arc::new(open_thin(dir, Encryption::Off, 1.0, POOL_CAPACITY)),
            &group.path(),
        );
        let left = sh(&format!("lvs --noheadings -o lv_name {GROUP}"));
        assert_eq!(left.trim(), "pool");
    });
}

#[test]
fn encrypted_thin_volumes_conform() {
    with_device_mapper("encrypted_thin_volumes_conform", || {
        let group = Group::new(768, 16);
        conform(
            |dir| Arc::new(open_thin(dir, Encryption::Required, 1.0, POOL_CAPACITY)),
            &group.path(),
        );
    });
}

#[test]
fn encrypted_images_conform() {
    with_device_mapper("encrypted_images_conform", || {
        let dir = on_disk();
        conform(|dir| Arc::new(open_files(dir)), &dir.0);
    });
}

/// The test's disk with a file system.
struct OnDisk(PathBuf);

fn on_disk() -> OnDisk {
    let disk = disk();
    let dir = PathBuf::from("/tmp/images");
    sh(&format!(
        "wipefs -qaf {disk}; mkfs.ext4 -qF {disk}; mkdir -p {0}; mount {disk} {0}",
        dir.display()
    ));
    OnDisk(dir)
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        let script = format!("umount -l {}", self.0.display());
        let _ = Command::new("bash").args(["-c", &script]).output();
    }
}
