//! Export and import.

use super::{SIZE, Verbs, key, snapshot, volume};
use crate::VolumeError;
use slipway_core::units::ByteSize;
use std::fs;

pub(super) fn round_trip(open: super::Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    let dir = driver.mount(1, 1).unwrap();
    fs::write(dir.join("big"), vec![7; 20 << 20]).unwrap();
    fs::write(dir.join("small"), "contents").unwrap();
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
        // It can be opened by the key that it was made with, and by no other.
        driver
            .import(&volume(4), SIZE, None, &mut &sealed[..])
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
        let dir = own.unwrap().path().to_owned();
        assert_eq!(fs::read_to_string(dir.join("small")).unwrap(), "contents");
        driver.release(4, 4);
        driver.destroy(&volume(4)).unwrap();
    }

    // Cut off, damaged, and then whole.
    let own_key = driver.key(2);
    let import = |mut from: &[u8]| {
        driver
            .driver()
            .import(&volume(2), SIZE, own_key.as_ref(), &mut from)
    };
    for wrong in [&stream[..20], &stream[..stream.len() / 2], b"no such thing"] {
        let broken = import(wrong);
        assert!(matches!(broken, Err(VolumeError::Stream(_))), "{broken:?}");
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
    let offset = driver.import_offset(&volume(2), SIZE).unwrap();
    let mut rest = Vec::new();
    driver
        .export(&snapshot(1), offset, driver.key(1).as_ref(), &mut rest)
        .unwrap();
    let imported = import(&rest).unwrap();
    assert_eq!(imported.size_bytes, SIZE.0);
    import(b"nothing is read of what is there").unwrap();
    let dir = driver.mount(2, 2).unwrap();
    assert_eq!(fs::read(dir.join("big")).unwrap(), vec![7; 20 << 20]);
    assert_eq!(fs::read_to_string(dir.join("small")).unwrap(), "contents");
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
        &mut &stream[..stream.len() / 2],
    );
    let promised = driver.pool().unwrap().promised;
    driver.destroy(&volume(3)).unwrap();
    assert_eq!(
        driver.pool().unwrap().promised,
        ByteSize(promised.0 - SIZE.0)
    );
}
