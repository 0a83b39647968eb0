//! What goes wrong on a thin pool or with encryption: full pools, wrong keys, damaged headers, what is not ours.

use super::machine::{disk, with_device_mapper};
use super::{
    GROUP, Group, SIZE, ensure, key, machine, mount, on_disk, open_files, open_thin, release,
    restore, sh, snapshot, volume,
};
use crate::conformance::{Dir, POOL_CAPACITY};
use crate::driver::{AttachAs, Encryption, NewVolume, VolumeDriver};
use crate::error::VolumeError;
use crate::lvm::{self, ThinPool};
use slipway_core::id::SnapshotId;
use slipway_core::key::VolumeKey;
use slipway_core::units::ByteSize;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;

/// Every promise twice over, and somebody who writes without end.
#[test]
fn a_full_pool_is_told_of_before_and_survived() {
    with_device_mapper("faults::a_full_pool_is_told_of_before_and_survived", || {
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
        drop(dir);
        let _ = pool.detach(&volume(1), &machine(1));
        drop(quiet);
        let _ = pool.detach(&volume(2), &machine(2));
        sh(&format!("lvextend -qq -y -L +256M {GROUP}/pool"));
        let dir = mount(&pool, 1).unwrap();
        fs::write(dir.join("again"), [1; 1 << 20]).unwrap();
        fs::remove_file(dir.join("all")).unwrap();
        drop(dir);
        release(&pool, 1);
        let quiet = mount(&pool, 2).unwrap();
        assert_eq!(fs::read_to_string(quiet.join("kept")).unwrap(), "contents");
        drop(quiet);
        release(&pool, 2);
        ensure(&pool, 3, SIZE).unwrap();
    });
}

/// Snapshots that share nothing any more fill the metadata long before the data.
#[test]
fn full_metadata_is_told_of_and_refused() {
    with_device_mapper("faults::full_metadata_is_told_of_and_refused", || {
        let group = Group::new(1024, 2);
        let pool = open_thin(&group.path(), Encryption::Off, 64.0, ByteSize::gib(60));
        ensure(&pool, 1, ByteSize::mib(512)).unwrap();
        let device = pool
            .attach(&volume(1), &machine(1), AttachAs::Device, None)
            .unwrap();
        let file = fs::OpenOptions::new()
            .write(true)
            .open(device.path())
            .unwrap();
        let refused = (1..=250_u8).find_map(|n| {
            // Scattered writes between snapshots: each has a tree of its own.
            // At first all of it, then a chunk of every part of the tree.
            let stride = if n == 1 { 1 } else { 100 };
            for at in (0..3600_u64).step_by(stride) {
                let offset = (256 << 20) + at * (64 << 10);
                file.write_all_at(&[n; 4096], offset).unwrap();
            }
            file.sync_all().unwrap();
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
        drop(file);
        release(&pool, 1);
    });
}

#[test]
fn keys_open_their_own_volume_and_nothing_without_a_header() {
    with_device_mapper(
        "faults::keys_open_their_own_volume_and_nothing_without_a_header",
        || {
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
                    .map(Dir::of)
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
            drop(dir);
            release(&pool, 1);
            let disk = disk();
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
            drop(dir);
            release(&pool, 2);
        },
    );
}

#[test]
fn what_is_not_ours_is_left_alone_and_told() {
    with_device_mapper("faults::what_is_not_ours_is_left_alone_and_told", || {
        let group = Group::new(768, 16);
        let other = volume(9);
        let orphan = format!("slipway_{other}");
        sh(&format!(
            "lvcreate -qq -y -V 64M --thinpool {GROUP}/pool -n {orphan} --addtag slipway --addtag slipway.pool=another --addtag slipway.making=short; lvcreate -qq -y -L 8M -n data {GROUP}"
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
    });
}

/// What a disk that lost its end, or the beginning of a file, does to an encrypted image.
#[test]
fn encrypted_images_that_were_cut_or_overwritten_are_told_of() {
    with_device_mapper(
        "faults::encrypted_images_that_were_cut_or_overwritten_are_told_of",
        || {
            let disk = on_disk();
            let pool = open_files(&disk.0.join("pool"));
            let image = |n: u8| disk.0.join(format!("pool/volumes/{}.luks", volume(n)));
            for n in [1, 2, 3] {
                ensure(&pool, n, SIZE).unwrap();
                fs::write(mount(&pool, n).unwrap().join("kept"), "contents").unwrap();
                release(&pool, n);
            }
            let file = |n| fs::OpenOptions::new().write(true).open(image(n)).unwrap();
            file(1).set_len(SIZE.0 / 2).unwrap();
            file(2).write_all_at(&[0x55; 256 << 10], 0).unwrap();
            for n in [1, 2] {
                let damaged = mount(&pool, n);
                assert!(
                    matches!(damaged, Err(VolumeError::Damaged { .. })),
                    "{n}: {damaged:?}"
                );
                assert_eq!(pool.list().unwrap()[0].attached_to, None, "{n}");
                pool.destroy(&volume(n)).unwrap();
                ensure(&pool, n, SIZE).unwrap();
                mount(&pool, n).unwrap();
                release(&pool, n);
            }
            let dir = mount(&pool, 3).unwrap();
            assert_eq!(fs::read_to_string(dir.join("kept")).unwrap(), "contents");
            drop(dir);
            release(&pool, 3);
        },
    );
}

/// As when two hosts see one disk, or two daemons are set to one pool.
#[test]
fn of_two_hosts_on_one_thin_pool_neither_takes_what_is_the_others() {
    with_device_mapper(
        "faults::of_two_hosts_on_one_thin_pool_neither_takes_what_is_the_others",
        || {
            let group = Group::new(768, 16);
            let other_dir = tempfile::tempdir().unwrap();
            let pool = group.open(Encryption::Required);
            ensure(&pool, 1, SIZE).unwrap();
            let dir = mount(&pool, 1).unwrap();
            fs::write(dir.join("kept"), "contents").unwrap();
            pool.snapshot(&volume(1), &snapshot()).unwrap();

            let other = || open_thin(other_dir.path(), Encryption::Required, 1.0, POOL_CAPACITY);
            let (reports, snapshots) = (other().list().unwrap(), other().snapshots().unwrap());
            assert!(reports.is_empty() && snapshots.is_empty(), "{reports:?}");
            let notices = other().pool().unwrap().notices;
            assert_eq!(notices.len(), 2, "{notices:?}");
            let attached = mount(&other(), 1);
            assert!(
                matches!(attached, Err(VolumeError::NotFound { .. })),
                "{attached:?}"
            );
            let made = ensure(&other(), 1, SIZE).unwrap_err().to_string();
            assert!(made.contains("already exists"), "{made}");
            other().destroy(&volume(1)).unwrap();
            other().delete_snapshot(&snapshot()).unwrap();
            assert_eq!(fs::read_to_string(dir.join("kept")).unwrap(), "contents");
            assert_eq!(pool.list().unwrap()[0].attached_to, Some(machine(1)));
            drop(dir);
            release(&pool, 1);
            let attached = mount(&other(), 1);
            assert!(
                matches!(attached, Err(VolumeError::NotFound { .. })),
                "{attached:?}"
            );
            restore(&pool, 2).unwrap();
        },
    );
}
