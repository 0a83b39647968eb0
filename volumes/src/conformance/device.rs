//! Volumes as block devices, for machines with a kernel of their own.

use super::{SIZE, Verbs, machine, report, snapshot, volume};
use crate::VolumeError;
use slipway_core::host_api::{Cloning, VolumeSource};
use slipway_core::units::ByteSize;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};

pub(super) fn for_one_holder(open: super::Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    let device = driver.device(1, 1).unwrap();
    assert_eq!(driver.device(1, 1).unwrap(), device, "again");
    assert_eq!(
        fs::File::open(&device)
            .unwrap()
            .seek(SeekFrom::End(0))
            .unwrap(),
        SIZE.0
    );
    let other = driver.device(1, 2);
    assert!(matches!(other, Err(VolumeError::InUse { .. })), "{other:?}");
    let mounted = driver.mount(1, 1);
    assert!(
        matches!(mounted, Err(VolumeError::Unsupported(_))),
        "{mounted:?}"
    );
    // It lasts while nobody has it open, and whoever opened the pool may be gone.
    drop(driver);
    let driver = open();
    assert_eq!(report(&*driver, &volume(1)).attached_to, Some(machine(1)));
    assert_eq!(driver.device(1, 1).unwrap(), device);
    assert!(matches!(
        driver.destroy(&volume(1)),
        Err(VolumeError::InUse { .. })
    ));
    if driver.capabilities().cloning == Cloning::FullCopy {
        let refused = driver.snapshot(&volume(1), &snapshot(1));
        assert!(
            matches!(refused, Err(VolumeError::Unsupported(_))),
            "{refused:?}"
        );
        assert_eq!(driver.snapshots().unwrap(), []);
    }
    // A machine that still has it open keeps it.
    let held = fs::File::open(&device).unwrap();
    let busy = driver.detach(&volume(1), &machine(1));
    assert!(matches!(busy, Err(VolumeError::Busy { .. })), "{busy:?}");
    let other = driver.device(1, 2);
    assert!(matches!(other, Err(VolumeError::InUse { .. })), "{other:?}");
    drop(held);
    driver.release(1, 1);
    assert_eq!(report(&*driver, &volume(1)).attached_to, None);
    driver.ensure_empty(2, SIZE).unwrap();
    driver.mount(2, 2).unwrap();
    let (id, holder) = (volume(2), machine(2));
    let key = driver.key(2);
    let as_device = driver.attach(&id, &holder, crate::AttachAs::Device, key.as_ref());
    assert!(
        matches!(as_device, Err(VolumeError::Unsupported(_))),
        "{as_device:?}"
    );
    driver.release(2, 2);
}

/// What lies on the device is its machine's affair: nobody here checks it, repairs it or makes it larger.
pub(super) fn is_given_unread(open: super::Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    let larger = ByteSize(2 * SIZE.0);
    driver.extend_to(1, larger).unwrap();
    let device = driver.device(1, 1).unwrap();
    let mut file = fs::OpenOptions::new();
    let mut file = file.read(true).write(true).open(&device).unwrap();
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), larger.0);
    // A superblock that says that errors were found, of a file system that is smaller than the device.
    let mut block = [0; 1024];
    file.seek(SeekFrom::Start(1024)).unwrap();
    file.read_exact(&mut block).unwrap();
    block[0x3a] |= 2;
    file.seek(SeekFrom::Start(1024)).unwrap();
    file.write_all(&block).unwrap();
    file.sync_all().unwrap();
    drop(file);
    driver.release(1, 1);
    let device = driver.device(1, 2).unwrap();
    let mut now = [0; 1024];
    let mut file = fs::File::open(&device).unwrap();
    file.seek(SeekFrom::Start(1024)).unwrap();
    file.read_exact(&mut now).unwrap();
    drop(file);
    assert_eq!(now, block);
    driver.release(1, 2);
}

pub(super) fn contents(open: super::Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    let dir = driver.mount(1, 1).unwrap();
    fs::write(dir.join("marked"), "find this text on the device").unwrap();
    drop(dir);
    driver.release(1, 1);
    let device = driver.device(1, 1).unwrap();
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&device)
        .unwrap();
    let mut all = Vec::new();
    file.read_to_end(&mut all).unwrap();
    let text = b"find this text on the device";
    let block = all.chunks(4096).position(|block| block.starts_with(text));
    let at = block.unwrap() as u64 * 4096;
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(b"FOUND").unwrap();
    file.sync_all().unwrap();
    drop(file);
    driver.release(1, 1);
    let dir = driver.look_into(1, 2);
    assert_eq!(
        fs::read_to_string(dir.join("marked")).unwrap(),
        "FOUNDthis text on the device"
    );
    drop(dir);
    driver.release(1, 2);
    // The host's kernel mounts neither it nor what was made of it, whoever opens the pool.
    driver.snapshot(&volume(1), &snapshot(1)).unwrap();
    let of_snapshot = VolumeSource::Snapshot {
        snapshot: snapshot(1),
    };
    driver.ensure_from(2, SIZE, &of_snapshot, 1).unwrap();
    let of_volume = VolumeSource::Volume { volume: volume(1) };
    driver.ensure_from(3, SIZE, &of_volume, 1).unwrap();
    for n in 1..=3 {
        let refused = open().mount(n, n);
        assert!(
            matches!(refused, Err(VolumeError::Foreign { .. })),
            "{n}: {refused:?}"
        );
        drop(driver.look_into(n, n));
        driver.release(n, n);
    }
    // A new volume of the same name is another.
    driver.destroy(&volume(1)).unwrap();
    driver.ensure_empty(1, SIZE).unwrap();
    driver.mount(1, 1).unwrap();
    driver.release(1, 1);
}
