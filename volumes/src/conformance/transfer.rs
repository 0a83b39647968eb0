//! Export and import.

use super::{Dir, SIZE, Verbs, key, snapshot, volume};
use crate::{VolumeDriver, VolumeError};
use slipway_core::host_api::{ImportPart, StreamFault};
use slipway_core::units::ByteSize;
use std::fs;
use std::sync::Arc;

pub(super) fn round_trip(open: super::Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    let dir = driver.mount(1, 1).unwrap();
    fs::write(dir.join("big"), vec![7; 20 << 20]).unwrap();
    fs::write(dir.join("small"), "contents").unwrap();
    drop(dir);
    driver.release(1, 1);
    driver.snapshot(&volume(1), &snapshot(1)).unwrap();
    let mut stream = Vec::new();
    driver
        .export(&snapshot(1), 0, driver.key(1).as_ref(), &mut stream)
        .unwrap();
    assert!(stream.len() < 16 << 20, "{}", stream.len());
    if driver.capabilities().encryption {
        let mut sealed = Vec::new();
        driver.export(&snapshot(1), 0, None, &mut sealed).unwrap();
        only_its_own_key_opens(&driver, &sealed);
    }

    // Cut off, damaged, and then whole.
    let own_key = driver.key(2);
    let import = |mut from: &[u8]| {
        driver.driver().import(
            &volume(2),
            SIZE,
            own_key.as_ref(),
            &ImportPart::Whole,
            &mut from,
        )
    };
    let cut = StreamFault::BrokenOff;
    for (wrong, fault) in [
        (&stream[..20], cut),
        (&stream[..stream.len() / 2], cut),
        (b"no such thing, however long it is", StreamFault::Malformed),
    ] {
        match import(wrong) {
            Err(VolumeError::Stream(error)) => assert_eq!(error.fault, fault, "{error:?}"),
            other => panic!("{other:?}"),
        }
    }
    let mut damaged = stream.clone();
    let middle = stream.len() / 2;
    // More than one bit: it may be one of the encoding that means nothing.
    damaged[middle..middle + 64]
        .iter_mut()
        .for_each(|byte| *byte ^= 0xff);
    let refused = import(&damaged);
    assert!(
        matches!(refused, Err(VolumeError::Stream(_))),
        "{refused:?}"
    );
    assert_eq!(driver.list().unwrap().len(), 1, "half of it is there");
    let offset = driver
        .import_offset(&volume(2), SIZE, &ImportPart::Whole)
        .unwrap();
    let mut rest = Vec::new();
    driver
        .export(&snapshot(1), offset, driver.key(1).as_ref(), &mut rest)
        .unwrap();
    let imported = import(&rest).unwrap().unwrap();
    assert_eq!(imported.size_bytes, SIZE.0);
    import(b"nothing is read of what is there").unwrap();
    let dir = driver.mount(2, 2).unwrap();
    assert_eq!(fs::read(dir.join("big")).unwrap(), vec![7; 20 << 20]);
    assert_eq!(fs::read_to_string(dir.join("small")).unwrap(), "contents");
    drop(dir);
    driver.release(2, 2);

    let absent = driver.export(&snapshot(9), 0, None, &mut Vec::new());
    assert!(
        matches!(absent, Err(VolumeError::SnapshotNotFound { .. })),
        "{absent:?}"
    );
    // A part that is not wanted any more goes with its volume.
    let _ = driver.driver().import(
        &volume(3),
        SIZE,
        driver.key(3).as_ref(),
        &ImportPart::Whole,
        &mut &stream[..stream.len() / 2],
    );
    let promised = driver.pool().unwrap().promised;
    driver.destroy(&volume(3)).unwrap();
    assert_eq!(
        driver.pool().unwrap().promised,
        ByteSize(promised.0 - SIZE.0)
    );
}

/// It can be opened by the key that it was made with, and by no other.
fn only_its_own_key_opens(driver: &Arc<dyn VolumeDriver>, sealed: &[u8]) {
    driver
        .import(&volume(4), SIZE, None, &ImportPart::Whole, &mut &*sealed)
        .unwrap();
    let other = driver.mount(4, 4);
    assert!(
        matches!(other, Err(VolumeError::WrongKey { .. })),
        "{other:?}"
    );
    let own = driver.driver().attach(
        &volume(4),
        &super::machine(4),
        crate::AttachAs::Mount,
        Some(&key(1)),
    );
    let dir = Dir::of(own.unwrap());
    assert_eq!(fs::read_to_string(dir.join("small")).unwrap(), "contents");
    drop(dir);
    driver.release(4, 4);
    driver.destroy(&volume(4)).unwrap();
}

/// All of a snapshot first, and at the end what has changed since.
pub(super) fn difference(open: super::Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    let dir = driver.mount(1, 1).unwrap();
    fs::write(dir.join("stays"), vec![7; 20 << 20]).unwrap();
    fs::write(dir.join("goes"), vec![8; 4 << 20]).unwrap();
    fs::write(dir.join("changes"), "before").unwrap();
    driver.snapshot(&volume(1), &snapshot(1)).unwrap();
    fs::remove_file(dir.join("goes")).unwrap();
    fs::write(dir.join("changes"), "after").unwrap();
    drop(dir);
    driver.release(1, 1);
    driver.snapshot(&volume(1), &snapshot(2)).unwrap();
    let (mut base, mut difference) = (Vec::new(), Vec::new());
    driver.export(&snapshot(1), 0, None, &mut base).unwrap();
    driver
        .export_difference(&snapshot(1), &snapshot(2), &mut difference)
        .unwrap();

    let arrives = |part: &ImportPart, mut from: &[u8]| {
        driver
            .driver()
            .import(&volume(2), SIZE, None, part, &mut from)
    };
    let refused = |part: &ImportPart, from: &[u8]| {
        let done = arrives(part, from);
        assert!(matches!(done, Err(VolumeError::Stream(_))), "{done:?}");
    };
    let whole = ImportPart::Base {
        snapshot: snapshot(1),
    };
    let rest = ImportPart::Difference {
        base: snapshot(1),
        snapshot: snapshot(2),
    };
    refused(&rest, &difference);
    refused(&whole, &difference);
    refused(&whole, &base[..base.len() / 2]);
    refused(&rest, &difference);
    // Of another snapshot nothing is there.
    let elsewhere = ImportPart::Base {
        snapshot: snapshot(3),
    };
    assert_eq!(
        driver.import_offset(&volume(2), SIZE, &elsewhere).unwrap(),
        0
    );
    assert_eq!(arrives(&whole, &base).unwrap(), None);
    assert_eq!(driver.list().unwrap().len(), 1, "half of it is there");
    refused(&rest, &base);
    refused(&rest, &difference[..difference.len() / 2]);
    // It is no longer the one and not yet the other.
    refused(
        &ImportPart::Difference {
            base: snapshot(1),
            snapshot: snapshot(3),
        },
        &difference,
    );
    let made = arrives(&rest, &difference).unwrap().unwrap();
    assert_eq!((made.volume, made.size_bytes), (volume(2), SIZE.0));

    let own = driver.key(1);
    let attached = driver.driver().attach(
        &volume(2),
        &super::machine(2),
        crate::AttachAs::Mount,
        own.as_ref(),
    );
    let dir = Dir::of(attached.unwrap());
    assert_eq!(fs::read(dir.join("stays")).unwrap(), vec![7; 20 << 20]);
    assert_eq!(fs::read_to_string(dir.join("changes")).unwrap(), "after");
    assert!(!dir.join("goes").exists());
    drop(dir);
    driver.release(2, 2);
    let absent = driver.export_difference(&snapshot(1), &snapshot(9), &mut Vec::new());
    assert!(
        matches!(absent, Err(VolumeError::SnapshotNotFound { .. })),
        "{absent:?}"
    );
}
