//! The power goes while volumes are written to and made: what was synced is there afterwards, and everything goes on.

use super::machine::{disk, in_a_machine, is_the_machine};
use super::{GROUP, SIZE, ensure, mount, open_files, open_thin, release, sh, volume};
use crate::backing::Backing;
use crate::conformance::POOL_CAPACITY;
use crate::driver::{Encryption, VolumeDriver};
use crate::pool::Pool;
use std::fs;
use std::path::{Path, PathBuf};

/// What was synced before the cut, as in `thin=25,files=31`; absent before it.
const PROMISED_ENV: &str = "SLIPWAY_VOLUMES_TEST_PROMISED";
/// So many files are synced on the one before the power is cut; they are written over and over.
const FILES: usize = 40;
const BYTES: usize = 64 << 10;

#[test]
fn a_power_cut_under_writes_loses_nothing_that_was_synced() {
    let test = "power::a_power_cut_under_writes_loses_nothing_that_was_synced";
    if is_the_machine() {
        return match std::env::var(PROMISED_ENV) {
            Ok(promised) => check(&promised),
            Err(_) => write(),
        };
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("disk");
    fs::File::create(&path).unwrap().set_len(2 << 30).unwrap();
    let disk = format!("--kept-disk=pool={}", path.display());
    let cut = format!("--cut-power-at=synced thin {}\n", FILES - 1);
    let printed = in_a_machine(test, &[&disk, &cut], "");
    let last = |kind: &str| {
        let lines = printed.lines().filter_map(|line| line.strip_prefix(kind));
        lines.filter_map(|n| n.parse::<usize>().ok()).max()
    };
    let (thin, files) = (last("synced thin "), last("synced files "));
    assert!(thin.is_some() && files.is_some(), "{printed}");
    let promised = format!(
        "{PROMISED_ENV}=thin={},files={}",
        thin.unwrap(),
        files.unwrap()
    );
    in_a_machine(test, &[&disk], &promised);
}

/// The directories of both pools are on a volume of the group that is neither's.
fn place() -> PathBuf {
    let dir = PathBuf::from("/tmp/pools");
    sh(&format!(
        "vgchange -qq -ay {GROUP}; mkdir -p {0}; mount /dev/{GROUP}/data {0}",
        dir.display()
    ));
    dir
}

fn thin(dir: &Path) -> Pool<crate::lvm::ThinVolumes> {
    open_thin(&dir.join("thin"), Encryption::Required, 1.0, POOL_CAPACITY)
}

fn write() {
    sh(&format!(
        "vgcreate -qq -y {GROUP} {}; lvcreate -qq -y -L 768M -n data {GROUP}; mkfs.ext4 -q /dev/{GROUP}/data; \
         lvcreate -qq -y --type thin-pool -L 768M --poolmetadatasize 16M --zero y -n pool {GROUP}",
        disk()
    ));
    let dir = place();
    let (thin, files) = (thin(&dir), open_files(&dir.join("files")));
    std::thread::scope(|scope| {
        scope.spawn(|| fill("thin", &thin, 1));
        scope.spawn(|| fill("files", &files, 2));
        // So that the cut comes while LVM changes something.
        let _all_or_nothing = AllOrNothing;
        for n in (4..6).cycle() {
            ensure(&thin, n, SIZE).unwrap();
            thin.destroy(&volume(n)).unwrap();
        }
    });
}

/// Ends the process when its thread fails, since the others go on for ever.
struct AllOrNothing;

impl Drop for AllOrNothing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::exit(101);
        }
    }
}

/// Writes for ever to volume `n`, and says what is durable.
fn fill<B: Backing>(kind: &str, pool: &Pool<B>, n: u8) {
    let _all_or_nothing = AllOrNothing;
    ensure(pool, n, SIZE).unwrap();
    let dir = mount(pool, n).unwrap();
    for round in 0_u8.. {
        for n in 0..FILES {
            // Renamed when whole, as careful programs do.
            let fresh = dir.join("fresh");
            fs::write(&fresh, [round; BYTES]).unwrap();
            fs::File::open(&fresh).unwrap().sync_all().unwrap();
            fs::rename(&fresh, dir.join(n.to_string())).unwrap();
            fs::File::open(&*dir).unwrap().sync_all().unwrap();
            println!("synced {kind} {n}");
        }
    }
}

fn check(promised: &str) {
    let dir = place();
    for (kind, last) in promised.split(',').map(|one| one.split_once('=').unwrap()) {
        let last = last.parse().unwrap();
        match kind {
            "thin" => check_one(kind, &thin(&dir), 1, last),
            _ => check_one(kind, &open_files(&dir.join("files")), 2, last),
        }
    }
}

fn check_one<B: Backing>(kind: &str, pool: &Pool<B>, id: u8, last: usize) {
    assert_eq!(pool.list().unwrap()[0].attached_to, None, "{kind}");
    let marker = pool.layout.marker(&volume(id));
    assert!(marker.exists(), "{kind}: the unclean end is known");
    let dir = mount(pool, id).unwrap();
    for n in 0..=last {
        let contents = fs::read(dir.join(n.to_string())).unwrap();
        assert_eq!(contents.len(), BYTES, "{kind}: {n}");
        assert!(contents.iter().all(|b| *b == contents[0]), "{kind}: {n}");
    }
    fs::write(dir.join("works"), [1; 8192]).unwrap();
    drop(dir);
    release(pool, id);
    assert!(!marker.exists(), "{kind}");
    // Whatever was in making is whole, or not there.
    for n in [id, 4, 5] {
        ensure(pool, n, SIZE).unwrap();
        mount(pool, n).unwrap();
        release(pool, n);
        pool.destroy(&volume(n)).unwrap();
    }
    assert_eq!(pool.pool().unwrap().promised.0, 0, "{kind}");
    println!("{kind}: {} files were there", last + 1);
}
