//! Thin pools and encryption, on a kernel that has device-mapper. They are ignored since few kernels here have it; run them in the
//! virtual machine of slipway-loadtests (`vm::Vm`, with this program as a file), with `--ignored --test-threads 1` and the disk
//! that `SLIPWAY_VOLUMES_TEST_DISK` names. It is overwritten.
//!
//! Each takes a volume group of its own on that disk, or a directory.

use super::Pool;
use super::steps::{Fault, Step};
use crate::backing::Backing;
use crate::conformance::{CASES, POOL_CAPACITY};
use crate::driver::{AttachAs, Attachment, Encryption, NewVolume, VolumeDriver};
use crate::error::VolumeError;
use crate::file::{self, Images};
use crate::lvm::{self, ThinPool, ThinVolumes};
use slipway_core::host_api::{VolumeReport, VolumeSource};
use slipway_core::id::{MachineId, SnapshotId, VolumeId};
use slipway_core::key::{VOLUME_KEY_BYTES, VolumeKey};
use slipway_core::units::ByteSize;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

const DISK_ENV: &str = "SLIPWAY_VOLUMES_TEST_DISK";
const CHILD_ENV: &str = "SLIPWAY_VOLUMES_TEST_CHILD";
const DIR_ENV: &str = "SLIPWAY_VOLUMES_TEST_DIR";
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
        let disk = std::env::var(DISK_ENV).unwrap();
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
            "for m in {}/mnt/*; do umount -q $m || true; done; \
             for m in /dev/mapper/slipway-*; do [ -e $m ] && cryptsetup close $m || true; done; vgremove -qq -ff -y {GROUP}",
            self.path().display()
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
    file::open(dir, Some(POOL_CAPACITY), Encryption::Required).unwrap()
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

fn mount<B: Backing>(pool: &Pool<B>, n: u8) -> Result<PathBuf, VolumeError> {
    let key = key(n);
    pool.attach(&volume(n), &machine(n), AttachAs::Mount, Some(&key))
        .map(|attachment| match attachment {
            Attachment::Mount(path) | Attachment::Device(path) => path,
        })
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
#[ignore = "elsewhere"]
fn thin_volumes_conform() {
    let group = Group::new(768, 16);
    conform(
        |dir| Arc::new(open_thin(dir, Encryption::Off, 1.0, POOL_CAPACITY)),
        &group.path(),
    );
    assert_eq!(
        sh(&format!("lvs --noheadings -o lv_name {GROUP}")).trim(),
        "pool"
    );
}

#[test]
#[ignore = "elsewhere"]
fn encrypted_thin_volumes_conform() {
    let group = Group::new(768, 16);
    conform(
        |dir| Arc::new(open_thin(dir, Encryption::Required, 1.0, POOL_CAPACITY)),
        &group.path(),
    );
}

#[test]
#[ignore = "elsewhere"]
fn encrypted_images_conform() {
    let dir = on_disk();
    conform(|dir| Arc::new(open_files(dir)), &dir.0);
}

/// The test's disk with a file system.
struct OnDisk(PathBuf);

fn on_disk() -> OnDisk {
    let disk = std::env::var(DISK_ENV).unwrap();
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

/// In the order of [`walk`].
fn all_steps() -> Vec<Step> {
    let others = [Step::Encrypt, Step::OpenClear, Step::Fill, Step::Grow];
    let last = [
        Step::GrowClear,
        Step::GrowFileSystem,
        Step::EraseKeys,
        Step::Remove,
        Step::RemoveNames,
    ];
    let known = [
        &Step::CREATE[..],
        &Step::ATTACH,
        &Step::SNAPSHOT,
        &Step::DETACH,
    ];
    [known.concat(), others.to_vec(), last.to_vec()].concat()
}

/// Everything once, over one pool; a step of it kills the process.
fn walk<B: Backing>(pool: &Pool<B>) {
    ensure(pool, 1, SIZE).unwrap();
    let dir = mount(pool, 1).unwrap();
    fs::write(dir.join("kept"), "contents").unwrap();
    pool.snapshot(&volume(1), &snapshot()).unwrap();
    restore(pool, 2).unwrap();
    pool.extend(&volume(1), ByteSize(2 * SIZE.0), Some(&key(1)))
        .unwrap();
    release(pool, 1);
    pool.delete_snapshot(&snapshot()).unwrap();
    pool.destroy(&volume(1)).unwrap();
    pool.destroy(&volume(2)).unwrap();
}

/// Kills a process at each step, and does all of it again afterwards. `place` gives the pool's directory and what clears it
/// away.
fn die_everywhere<B: Backing, G>(
    test: &str,
    place: impl FnOnce() -> (PathBuf, G),
    open: impl Fn(&Path) -> Pool<B>,
    steps: &[Step],
) {
    let mut steps = steps.iter().copied();
    if let (Ok(job), Ok(dir)) = (std::env::var(CHILD_ENV), std::env::var(DIR_ENV)) {
        let step = steps.find(|step| format!("{step:?}") == job).unwrap();
        let pool = open(Path::new(&dir));
        pool.steps.fail_at(step, Fault::Death);
        walk(&pool);
        panic!("it should have died at {step:?}");
    }
    let (dir, _guard) = place();
    for step in steps {
        let began = std::time::Instant::now();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("pool::machine_tests::{test}")])
            .args(["--ignored", "--nocapture"])
            .env(CHILD_ENV, format!("{step:?}"))
            .env(DIR_ENV, &dir)
            .stdout(Stdio::null())
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), None, "{step:?}: {words}");
        recover(&open(&dir), step);
        println!("died at {step:?}: {} ms", began.elapsed().as_millis());
    }
    walk(&open(&dir));
}

/// Wherever it died: what is there is whole, and everything can be done.
fn recover<B: Backing>(pool: &Pool<B>, step: Step) {
    for report in pool.list().unwrap() {
        let holder = if report.volume == volume(1) { 1 } else { 2 };
        pool.detach(&report.volume, &machine(holder)).unwrap();
    }
    // Once its keys are destroyed, nothing but its end is possible.
    if pool.backing.find(&volume(1)).unwrap().is_some() && step != Step::Remove {
        let dir = mount(pool, 1).unwrap();
        fs::write(dir.join("works"), [1; 8192]).unwrap();
        release(pool, 1);
    }
    for n in [1, 2] {
        pool.destroy(&volume(n)).unwrap();
    }
    pool.delete_snapshot(&snapshot()).unwrap();
    assert_eq!(pool.pool().unwrap().promised, ByteSize(0), "{step:?}");
    let left = sh("dmsetup ls --target crypt; dmsetup ls --target thin");
    assert!(!left.contains("slipway"), "{step:?}: {left}");
}

#[test]
#[ignore = "elsewhere"]
fn deaths_with_encrypted_thin_volumes() {
    die_everywhere(
        "deaths_with_encrypted_thin_volumes",
        || {
            let group = Group::new(768, 16);
            (group.path(), group)
        },
        |dir| open_thin(dir, Encryption::Required, 1.0, POOL_CAPACITY),
        &all_steps(),
    );
}

#[test]
#[ignore = "elsewhere"]
fn deaths_with_encrypted_images() {
    die_everywhere(
        "deaths_with_encrypted_images",
        || {
            let disk = on_disk();
            (disk.0.join("pool"), disk)
        },
        open_files,
        // The others are the same without encryption, and tested anywhere.
        &[
            Step::Encrypt,
            Step::MakeFileSystem,
            Step::OpenClear,
            Step::Mount,
            Step::GrowClear,
            Step::FreeDevice,
            Step::EraseKeys,
            Step::Remove,
        ],
    );
}

/// Every promise twice over, and somebody who writes without end.
#[test]
#[ignore = "elsewhere"]
fn a_full_pool_is_told_of_before_and_survived() {
    let group = Group::new(256, 4);
    let capacity = ByteSize::mib(512);
    let pool = open_thin(&group.path(), Encryption::Off, 2.0, capacity);
    ensure(&pool, 1, ByteSize::mib(320)).unwrap();
    ensure(&pool, 2, SIZE).unwrap();
    let quiet = mount(&pool, 2).unwrap();
    fs::write(quiet.join("kept"), "contents").unwrap();
    sh("sync");
    let dir = mount(&pool, 1).unwrap();
    let mut file = fs::File::create(dir.join("all")).unwrap();
    let (mut told_at, mut refused_at, mut written) = (None, None, 0);
    for _ in 0..320 {
        let more = file
            .write_all(&[0xa5; 1 << 20])
            .and_then(|()| file.sync_data());
        if more.is_err() {
            break;
        }
        written += 1;
        if written >= 160 && written % 8 == 0 {
            if !pool.pool().unwrap().notices.is_empty() {
                told_at.get_or_insert(written);
            }
            if matches!(ensure(&pool, 3, SIZE), Err(VolumeError::PoolFull { .. })) {
                refused_at.get_or_insert(written);
            } else {
                pool.destroy(&volume(3)).unwrap();
            }
        }
    }
    let (told_at, refused_at) = (told_at.unwrap(), refused_at.unwrap());
    println!("told at {told_at} MiB, refused from {refused_at} MiB on, full at {written} MiB");
    assert!(told_at < refused_at && refused_at < written && written < 256);
    drop(file);
    // With more room everything goes on; what was promised to be there is.
    let _ = pool.detach(&volume(1), &machine(1));
    let _ = pool.detach(&volume(2), &machine(2));
    sh(&format!("lvextend -qq -y -L +256M {GROUP}/pool"));
    let dir = mount(&pool, 1).unwrap();
    fs::write(dir.join("again"), [1; 1 << 20]).unwrap();
    fs::remove_file(dir.join("all")).unwrap();
    release(&pool, 1);
    let quiet = mount(&pool, 2).unwrap();
    assert_eq!(fs::read_to_string(quiet.join("kept")).unwrap(), "contents");
    release(&pool, 2);
    ensure(&pool, 3, SIZE).unwrap();
}

/// Snapshots that share nothing any more fill the metadata long before the data.
#[test]
#[ignore = "elsewhere"]
fn full_metadata_is_told_of_and_refused() {
    let group = Group::new(1024, 2);
    let pool = open_thin(&group.path(), Encryption::Off, 64.0, ByteSize::gib(60));
    ensure(&pool, 1, ByteSize::mib(512)).unwrap();
    let refused = (1..=250_u8).find_map(|n| {
        // Scattered writes between snapshots: each has a tree of its own.
        let key = key(1);
        let device = pool
            .attach(&volume(1), &machine(1), AttachAs::Device, Some(&key))
            .unwrap();
        let file = fs::OpenOptions::new()
            .write(true)
            .open(device.path())
            .unwrap();
        // At first all of it, then a chunk of every part of the tree.
        let stride = if n == 1 { 1 } else { 100 };
        for at in (0..3600_u64).step_by(stride) {
            let offset = (256 << 20) + at * (64 << 10);
            file.write_all_at(&[n; 4096], offset).unwrap();
        }
        file.sync_all().unwrap();
        drop(file);
        release(&pool, 1);
        let snapshot = SnapshotId::from_entropy([n; 10]);
        pool.snapshot(&volume(1), &snapshot).err().map(|e| (n, e))
    });
    let (after, error) = refused.unwrap();
    let notices = pool.pool().unwrap().notices;
    println!("refused after {after} snapshots: {error}; {notices:?}");
    assert!(matches!(error, VolumeError::PoolFull { .. }), "{error}");
    assert!(
        notices.iter().any(|n| n.contains("metadata")),
        "{notices:?}"
    );
    let state = sh(&format!(
        "lvs --noheadings -o lv_health_status {GROUP}/pool"
    ));
    assert_eq!(state.trim(), "", "refused in time");
    release(&pool, 1);
}

#[test]
#[ignore = "elsewhere"]
fn keys_open_their_own_volume_and_nothing_without_a_header() {
    let group = Group::new(768, 16);
    let pool = group.open(Encryption::Required);
    let keyless = pool.ensure(&NewVolume::empty(&volume(1), SIZE));
    assert!(
        matches!(keyless, Err(VolumeError::KeyNeeded { .. })),
        "{keyless:?}"
    );
    assert_eq!(pool.list().unwrap(), []);
    ensure(&pool, 1, SIZE).unwrap();
    let attach = |key: Option<&VolumeKey>| {
        pool.attach(&volume(1), &machine(1), AttachAs::Mount, key)
            .map(|attachment| attachment.path().to_owned())
    };
    assert!(matches!(attach(None), Err(VolumeError::KeyNeeded { .. })));
    assert!(matches!(
        attach(Some(&key(9))),
        Err(VolumeError::WrongKey { .. })
    ));
    let dir = attach(Some(&key(1))).unwrap();
    fs::write(dir.join("secret"), "a text that is nowhere in clear").unwrap();
    let table = sh("dmsetup table --target crypt");
    assert!(table.contains("aes-xts-plain64"), "{table}");
    // Neither in the pool's blocks nor in any argument of a program that runs.
    release(&pool, 1);
    let disk = std::env::var(DISK_ENV).unwrap();
    sh("sync; echo 3 > /proc/sys/vm/drop_caches");
    sh(&format!(
        "! head -c 900M {disk} | grep -qa 'a text that is nowhere in clear'"
    ));

    // A damaged header is damage, and told; then destroying works all the same.
    pool.snapshot(&volume(1), &snapshot()).unwrap();
    let full = format!("{GROUP}/slipway_{}", volume(1));
    sh(&format!(
        "lvchange -ay -K {full}; dd if=/dev/urandom of=/dev/{full} bs=4k count=64 conv=fsync status=none; lvchange -an {full}"
    ));
    let damaged = attach(Some(&key(1)));
    assert!(
        matches!(damaged, Err(VolumeError::Damaged { .. })),
        "{damaged:?}"
    );
    pool.destroy(&volume(1)).unwrap();
    // The snapshot has a header of its own, and a fork a key of its own.
    restore(&pool, 2).unwrap();
    let theirs = pool.attach(&volume(2), &machine(2), AttachAs::Mount, Some(&key(1)));
    assert!(
        matches!(theirs, Err(VolumeError::WrongKey { .. })),
        "{theirs:?}"
    );
    let dir = mount(&pool, 2).unwrap();
    assert!(dir.join("secret").exists());
    release(&pool, 2);
}

#[test]
#[ignore = "elsewhere"]
fn what_is_not_ours_is_left_alone_and_told() {
    let group = Group::new(768, 16);
    let other = volume(9);
    let orphan = format!("slipway_{other}");
    sh(&format!(
        "lvcreate -qq -y -V 64M --thinpool {GROUP}/pool -n {orphan} --addtag slipway --addtag slipway.pool=another --addtag          slipway.making=short; lvcreate -qq -y -L 8M -n data {GROUP}"
    ));
    let pool = group.open(Encryption::Off);
    assert_eq!(pool.list().unwrap(), []);
    let notices = pool.pool().unwrap().notices;
    assert!(notices.iter().any(|n| n.contains(&orphan)), "{notices:?}");
    pool.destroy(&other).unwrap();
    let left = sh(&format!("lvs --noheadings -o lv_name {GROUP}"));
    assert!(left.contains(&orphan) && left.contains("data"), "{left}");
    let refused = ThinPool {
        volume_group: GROUP.to_owned(),
        thin_pool: "data".to_owned(),
        capacity: None,
        oversubscription: 1.0,
    };
    let refused = lvm::open(&group.path().join("x"), refused, Encryption::Off);
    assert!(
        matches!(refused, Err(VolumeError::Unsupported(_))),
        "{refused:?}"
    );
}
