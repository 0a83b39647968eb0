//! Snapshots, restores and forks.

use super::{
    POOL_CAPACITY, ROUNDING, SIZE, Verbs, room, snapshot, sync_file_system, volume, wait_for,
};
use crate::VolumeError;
use slipway_core::host_api::{Cloning, VolumeSource};
use slipway_core::units::ByteSize;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

fn of_snapshot(n: u8) -> VolumeSource {
    VolumeSource::Snapshot {
        snapshot: snapshot(n),
    }
}

fn of_volume(n: u8) -> VolumeSource {
    VolumeSource::Volume { volume: volume(n) }
}

pub(super) fn keeps_what_was_there(open: super::Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    let dir = driver.mount(1, 1).unwrap();
    fs::write(dir.join("a"), "then").unwrap();
    // Never synced: it is part of the snapshot all the same, since the file system was made to stand still.
    fs::write(dir.join("big"), vec![7; 8 << 20]).unwrap();
    let made = driver.snapshot(&volume(1), &snapshot(1)).unwrap();
    assert_eq!((made.size_bytes, &made.volume), (SIZE.0, &volume(1)));
    assert!(made.created_at_ms > 1_600_000_000_000);
    fs::write(dir.join("a"), "now").unwrap();
    fs::write(dir.join("b"), "new").unwrap();
    fs::remove_file(dir.join("big")).unwrap();
    sync_file_system(&dir);
    // Asked for once more, it is what it was.
    assert_eq!(
        driver.snapshot(&volume(1), &snapshot(1)).unwrap().snapshot,
        made.snapshot
    );
    assert_eq!(open().snapshots().unwrap().len(), 1);

    let smaller = driver.ensure_from(2, ByteSize(SIZE.0 - ROUNDING.0), &of_snapshot(1), 1);
    assert!(matches!(smaller, Err(VolumeError::InvalidSize { .. })) || SIZE.0 <= 64 << 20);
    for (n, size) in [(2, SIZE), (3, ByteSize(2 * SIZE.0))] {
        for _ in 0..2 {
            let restored = driver.ensure_from(n, size, &of_snapshot(1), 1).unwrap();
            assert_eq!(restored.size_bytes, size.0);
        }
        let restored = driver.mount(n, n).unwrap();
        assert_eq!(fs::read_to_string(restored.join("a")).unwrap(), "then");
        assert_eq!(fs::read(restored.join("big")).unwrap(), vec![7; 8 << 20]);
        assert!(!restored.join("b").exists());
        assert!(room(&restored) > size.0 / 2, "{}", room(&restored));
        fs::write(restored.join("a"), "another's").unwrap();
        drop(restored);
        driver.release(n, n);
    }
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "now");
    drop(dir);
    driver.release(1, 1);
    let absent = driver.ensure_from(4, SIZE, &of_snapshot(9), 1);
    assert!(
        matches!(absent, Err(VolumeError::SnapshotNotFound { .. })),
        "{absent:?}"
    );
    let absent = driver.snapshot(&volume(9), &snapshot(9));
    assert!(
        matches!(absent, Err(VolumeError::NotFound { .. })),
        "{absent:?}"
    );
}

pub(super) fn are_accounted(open: super::Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    let dir = driver.mount(1, 1).unwrap();
    fs::write(dir.join("big"), vec![7; 32 << 20]).unwrap();
    drop(dir);
    driver.release(1, 1);
    let made = driver.snapshot(&volume(1), &snapshot(1)).unwrap();
    assert!(made.stored_bytes >= 32 << 20, "{made:?}");
    let pool = driver.pool().unwrap();
    assert_eq!(pool.promised.0, SIZE.0 + made.stored_bytes);
    // What is promised to it is not there for others.
    let rest = ByteSize(POOL_CAPACITY.0 - SIZE.0);
    let refused = driver.ensure_empty(2, rest);
    assert!(
        matches!(refused, Err(VolumeError::NoSpace { .. })),
        "{refused:?}"
    );
    driver.destroy(&volume(1)).unwrap();
    assert_eq!(driver.snapshots().unwrap(), [made]);
    driver.ensure_from(3, SIZE, &of_snapshot(1), 1).unwrap();
    let dir = driver.mount(3, 1).unwrap();
    assert_eq!(fs::metadata(dir.join("big")).unwrap().len(), 32 << 20);
    drop(dir);
    driver.release(3, 1);
    for _ in 0..2 {
        driver.delete_snapshot(&snapshot(1)).unwrap();
        assert_eq!(driver.snapshots().unwrap(), []);
    }
    // Nothing of the restored one goes with it.
    let dir = driver.mount(3, 1).unwrap();
    assert_eq!(fs::read(dir.join("big")).unwrap(), vec![7; 32 << 20]);
    drop(dir);
    driver.release(3, 1);
    assert_eq!(driver.pool().unwrap().promised, SIZE);
}

/// What the crash left of the last of these is no more than the end of it.
pub(super) fn fork_under_writes(open: super::Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    let dir = driver.mount(1, 1).unwrap();
    let (done, written) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0_u32.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                // Renamed when whole, as careful programs do.
                let fresh = dir.join("fresh");
                fs::write(&fresh, vec![u8::try_from(n % 251).unwrap(); 64 << 10]).unwrap();
                fs::File::open(&fresh).unwrap().sync_all().unwrap();
                fs::rename(fresh, dir.join((n % 100).to_string())).unwrap();
                written.store(n, Ordering::Relaxed);
            }
        });
        wait_for("some writes", || written.load(Ordering::Relaxed) > 20);
        let forked = driver.ensure_from(2, SIZE, &of_volume(1), 1);
        let before = written.load(Ordering::Relaxed);
        wait_for("writes after the fork", || {
            written.load(Ordering::Relaxed) > before + 5
        });
        done.store(true, Ordering::Relaxed);
        forked.unwrap();
    });
    drop(dir);
    driver.release(1, 1);
    let fork = driver.mount(2, 2).unwrap();
    let mut files = 0;
    for n in 0..100 {
        if let Ok(contents) = fs::read(fork.join(n.to_string())) {
            assert_eq!(contents.len(), 64 << 10, "file {n} is torn");
            assert!(contents.iter().all(|b| *b == contents[0]), "file {n}");
            files += 1;
        }
    }
    assert!(files > 15, "{files}");
    fs::write(fork.join("mine"), "").unwrap();
    drop(fork);
    driver.release(2, 2);
    let dir = driver.mount(1, 1).unwrap();
    assert!(!dir.join("mine").exists());
    drop(dir);
    driver.release(1, 1);
    driver.destroy(&volume(1)).unwrap();
    let fork = driver.mount(2, 2).unwrap();
    assert!(fork.join("mine").exists());
    drop(fork);
    driver.release(2, 2);
    if driver.capabilities().cloning == Cloning::FullCopy {
        return;
    }
    // The kernel of a machine cannot be made to stand still; the blocks can.
    driver.device(2, 2).unwrap();
    driver.snapshot(&volume(2), &snapshot(2)).unwrap();
    driver.release(2, 2);
    driver.ensure_from(3, SIZE, &of_snapshot(2), 2).unwrap();
    let restored = driver.look_into(3, 3);
    assert!(restored.join("mine").exists());
    drop(restored);
    driver.release(3, 3);
}
