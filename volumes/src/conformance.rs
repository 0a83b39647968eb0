//! What every volume driver must do, as a suite to run over a real one. Needs root, since it mounts.
//!
//! Each case gets a pool of its own, empty, and may open it any number of times: a driver keeps nothing that
//! matters in memory.
//!
//! Must not know: any one driver.

// A suite says what went wrong by panicking, as tests do.
#![allow(
    clippy::unwrap_used,
    reason = "test support: a panic is the failed check"
)]

mod device;
mod snapshots;
mod transfer;

use crate::{AttachAs, Attachment, NewVolume, VolumeDriver, VolumeError};
use slipway_core::host_api::{VolumeReport, VolumeSource};
use slipway_core::id::{MachineId, SnapshotId, VolumeId};
use slipway_core::key::{VOLUME_KEY_BYTES, VolumeKey};
use slipway_core::units::ByteSize;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Capacity of the pools that the suite wants.
pub const POOL_CAPACITY: ByteSize = ByteSize::mib(512);
/// The size of its volumes: eight fit.
const SIZE: ByteSize = ByteSize::mib(64);
/// How much more than asked for a driver may make, and what encryption may add on disk.
const ROUNDING: ByteSize = ByteSize::mib(4);

/// A driver, opened once more on the pool of the case at hand.
pub type Open<'a> = &'a (dyn Fn() -> Arc<dyn VolumeDriver> + Sync);

/// One thing a driver must do.
pub type Case = (&'static str, fn(Open<'_>));

/// All of them. Run each over a new pool of [`POOL_CAPACITY`].
pub const CASES: [Case; 20] = [
    (
        "ensure is idempotent and holds to the size",
        ensure_is_idempotent,
    ),
    ("sizes out of range are refused", sizes_are_bounded),
    (
        "promises stay within the capacity, whoever races",
        promises_stay_within_capacity,
    ),
    (
        "an attached volume is mounted, and keeps its data",
        attach_keeps_data,
    ),
    ("the size is a hard cap", size_is_a_hard_cap),
    ("one holder at a time", one_holder_at_a_time),
    ("of racing holders exactly one wins", racing_holders),
    ("another opening adopts what is attached", adoption),
    ("deleted data is given back", discard_gives_back),
    (
        "destroy frees the promise, and refuses what is attached",
        destroy_frees,
    ),
    (
        "a snapshot keeps what was there",
        snapshots::keeps_what_was_there,
    ),
    (
        "snapshots are promised room, outlive their volume and go",
        snapshots::are_accounted,
    ),
    (
        "a fork of a volume that is written to is sound and apart",
        snapshots::fork_under_writes,
    ),
    ("a volume grows while it is used, and never shrinks", growth),
    ("growth stays within the capacity", growth_is_bounded),
    (
        "a device is for one holder, and is no mount",
        device::for_one_holder,
    ),
    (
        "what lies on a device is neither checked nor changed",
        device::is_given_unread,
    ),
    (
        "what a device was given is there, and no host mounts it any more",
        device::contents,
    ),
    ("what is exported is imported", transfer::round_trip),
    ("what has changed since comes after", transfer::difference),
];

fn volume(n: u8) -> VolumeId {
    VolumeId::from_entropy([n; 10])
}

fn machine(n: u8) -> MachineId {
    MachineId::from_entropy([n; 10])
}

fn snapshot(n: u8) -> SnapshotId {
    SnapshotId::from_entropy([n; 10])
}

fn key(n: u8) -> VolumeKey {
    VolumeKey::from_entropy(&[n; VOLUME_KEY_BYTES])
}

/// The root directory of a mounted volume, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Dir {
    path: PathBuf,
    _mounted: crate::Mounted,
}

impl Dir {
    pub(crate) fn of(attachment: Attachment) -> Self {
        match attachment {
            Attachment::Mount(mounted) => Self {
                path: mounted.path(),
                _mounted: mounted,
            },
            Attachment::Device(path) => panic!("{}", path.display()),
        }
    }

    /// Whether both are of one file system.
    fn is_same(&self, other: &Self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let device = |dir: &Self| fs::metadata(&dir.path).unwrap().dev();
        device(self) == device(other)
    }
}

impl std::ops::Deref for Dir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

/// The verbs as the cases use them: with a key where the driver wants one.
trait Verbs {
    fn driver(&self) -> &dyn VolumeDriver;

    fn key(&self, n: u8) -> Option<VolumeKey> {
        self.driver().capabilities().encryption.then(|| key(n))
    }

    fn ensure_empty(&self, n: u8, size: ByteSize) -> Result<VolumeReport, VolumeError> {
        self.driver().ensure(&NewVolume {
            key: self.key(n).as_ref(),
            ..NewVolume::empty(&volume(n), size)
        })
    }

    /// Makes volume `n` from `source`, which is `source_n` or a snapshot of it.
    fn ensure_from(
        &self,
        n: u8,
        size: ByteSize,
        source: &VolumeSource,
        source_n: u8,
    ) -> Result<VolumeReport, VolumeError> {
        self.driver().ensure(&NewVolume {
            id: &volume(n),
            size,
            source: Some(source),
            key: self.key(n).as_ref(),
            source_key: self.key(source_n).as_ref(),
        })
    }

    fn mount(&self, n: u8, holder: u8) -> Result<Dir, VolumeError> {
        let (id, holder) = (volume(n), machine(holder));
        let key = self.key(n);
        self.driver()
            .attach(&id, &holder, AttachAs::Mount, key.as_ref())
            .map(Dir::of)
    }

    fn device(&self, n: u8, holder: u8) -> Result<PathBuf, VolumeError> {
        let (id, holder) = (volume(n), machine(holder));
        let key = self.key(n);
        self.driver()
            .attach(&id, &holder, AttachAs::Device, key.as_ref())
            .map(|attachment| match attachment {
                Attachment::Device(path) => path,
                Attachment::Mount(mounted) => panic!("{mounted:?}"),
            })
    }

    /// The same as a machine's kernel sees it that has the device.
    fn look_into(&self, n: u8, holder: u8) -> Dir {
        let device = self.device(n, holder).unwrap();
        let mounted = crate::mounts::mount_ext4(&device).unwrap();
        Dir::of(Attachment::Mount(mounted))
    }

    fn extend_to(&self, n: u8, size: ByteSize) -> Result<VolumeReport, VolumeError> {
        self.driver().extend(&volume(n), size, self.key(n).as_ref())
    }

    fn release(&self, n: u8, holder: u8) {
        self.driver().detach(&volume(n), &machine(holder)).unwrap();
    }
}

impl Verbs for Arc<dyn VolumeDriver> {
    fn driver(&self) -> &dyn VolumeDriver {
        &**self
    }
}

fn report(driver: &dyn VolumeDriver, id: &VolumeId) -> VolumeReport {
    driver
        .list()
        .unwrap()
        .into_iter()
        .find(|r| r.volume == *id)
        .unwrap()
}

/// Looks until `condition` holds.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn sync_file_system(dir: &Path) {
    let file = fs::File::open(dir).unwrap();
    nix::unistd::syncfs(&file).unwrap();
}

/// Writes until the file system is full; gives the bytes that fit.
fn fill(path: &Path) -> u64 {
    let mut file = fs::File::create(path).unwrap();
    let chunk = vec![0xa5; 1 << 20];
    let mut written = 0;
    let full = loop {
        match file.write(&chunk) {
            Ok(n) => written += n as u64,
            Err(error) => break error,
        }
        assert!(written <= POOL_CAPACITY.0, "it never fills");
    };
    assert_eq!(
        full.raw_os_error(),
        Some(nix::errno::Errno::ENOSPC as i32),
        "{full}"
    );
    written
}

fn ensure_is_idempotent(open: Open<'_>) {
    let driver = open();
    let first = driver.ensure_empty(1, SIZE).unwrap();
    assert_eq!((first.size_bytes, &first.attached_to), (SIZE.0, &None));
    let again = driver.ensure_empty(1, SIZE).unwrap();
    assert_eq!(
        (again.volume, again.size_bytes),
        (first.volume, first.size_bytes)
    );
    match driver.ensure_empty(1, ByteSize::mib(68)) {
        Err(VolumeError::SizeDiffers { have, want, .. }) => {
            assert_eq!((have, want), (SIZE, ByteSize::mib(68)));
        }
        other => panic!("{other:?}"),
    }
    // A size that no block divides.
    let odd = ByteSize(SIZE.0 + 4097);
    let rounded = driver.ensure_empty(2, odd).unwrap().size_bytes;
    assert!((odd.0..odd.0 + ROUNDING.0).contains(&rounded), "{rounded}");
    driver.mount(2, 1).unwrap();
    driver.detach(&volume(2), &machine(1)).unwrap();
    let ids: Vec<_> = driver
        .list()
        .unwrap()
        .into_iter()
        .map(|r| r.volume)
        .collect();
    assert_eq!(ids, [volume(1), volume(2)]);
}

fn sizes_are_bounded(open: Open<'_>) {
    let driver = open();
    for size in [
        0,
        1,
        crate::limits::VOLUME_SIZE_MIN.0 - 1,
        crate::limits::VOLUME_SIZE_MAX.0 + 1,
        u64::MAX,
    ] {
        let refused = driver.ensure_empty(1, ByteSize(size));
        assert!(
            matches!(refused, Err(VolumeError::InvalidSize { .. })),
            "{size}: {refused:?}"
        );
    }
    assert_eq!(driver.list().unwrap(), []);
}

fn promises_stay_within_capacity(open: Open<'_>) {
    let results: Vec<_> = std::thread::scope(|scope| {
        let tasks: Vec<_> = (1..=12)
            .map(|n| scope.spawn(move || open().ensure_empty(n, SIZE)))
            .collect();
        tasks.into_iter().map(|task| task.join().unwrap()).collect()
    });
    let fits = POOL_CAPACITY.0 / SIZE.0;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count() as u64, fits);
    for refused in results.iter().filter_map(|r| r.as_ref().err()) {
        assert!(
            matches!(refused, VolumeError::NoSpace { .. }),
            "{refused:?}"
        );
    }
    let pool = open().pool().unwrap();
    assert_eq!(
        (pool.capacity, pool.promised),
        (POOL_CAPACITY, POOL_CAPACITY)
    );
    assert!(
        !open().capabilities().thin || pool.used < POOL_CAPACITY,
        "{pool:?}"
    );
}

fn attach_keeps_data(open: Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    let dir = driver.mount(1, 1).unwrap();
    let again = driver.mount(1, 1).unwrap();
    assert!(again.is_same(&dir), "again, for the same holder");
    drop(again);
    fs::write(dir.join("kept"), "contents").unwrap();
    // What images have in them keeps its meaning; device nodes do not.
    nix::sys::stat::mknod(
        &dir.join("null"),
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::S_IRWXU,
        nix::sys::stat::makedev(1, 3),
    )
    .unwrap();
    let opened = fs::File::open(dir.join("null")).unwrap_err();
    assert_eq!(opened.kind(), std::io::ErrorKind::PermissionDenied);
    assert_eq!(report(&*driver, &volume(1)).attached_to, Some(machine(1)));
    drop(dir);
    for _ in 0..2 {
        driver.detach(&volume(1), &machine(1)).unwrap();
        assert_eq!(report(&*driver, &volume(1)).attached_to, None);
    }
    let dir = driver.mount(1, 2).unwrap();
    assert_eq!(fs::read_to_string(dir.join("kept")).unwrap(), "contents");
    drop(dir);
    driver.detach(&volume(1), &machine(2)).unwrap();
}

fn size_is_a_hard_cap(open: Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    let dir = driver.mount(1, 1).unwrap();
    let written = fill(&dir.join("all"));
    assert!(written < SIZE.0 && written > SIZE.0 / 2, "{written}");
    sync_file_system(&dir);
    // The header of an encrypted one comes on top.
    assert!(report(&*driver, &volume(1)).used_bytes <= SIZE.0 + ROUNDING.0);
    fs::remove_file(dir.join("all")).unwrap();
    fs::write(dir.join("small"), "there is room again").unwrap();
    drop(dir);
    driver.detach(&volume(1), &machine(1)).unwrap();
}

fn one_holder_at_a_time(open: Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    let dir = driver.mount(1, 1).unwrap();
    fs::write(dir.join("mine"), "1").unwrap();
    for driver in [&driver, &open()] {
        match driver.mount(1, 2) {
            Err(VolumeError::InUse { holder, .. }) => assert_eq!(holder, Some(machine(1))),
            other => panic!("{other:?}"),
        }
        // Somebody else's late detach takes nothing away.
        driver.detach(&volume(1), &machine(2)).unwrap();
        assert!(dir.join("mine").exists());
    }
    drop(dir);
    driver.detach(&volume(1), &machine(1)).unwrap();
    let absent = driver.mount(9, 1);
    assert!(
        matches!(absent, Err(VolumeError::NotFound { .. })),
        "{absent:?}"
    );
    driver.detach(&volume(9), &machine(1)).unwrap();
}

fn racing_holders(open: Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    for round in 0..4 {
        let start = std::sync::Barrier::new(8);
        let winners: Vec<_> = std::thread::scope(|scope| {
            let tasks: Vec<_> = (1..=8)
                .map(|n| {
                    let start = &start;
                    scope.spawn(move || {
                        let driver = open();
                        start.wait();
                        (n, driver.mount(1, n))
                    })
                })
                .collect();
            tasks.into_iter().map(|task| task.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = winners.into_iter().partition(|(_, r)| r.is_ok());
        assert_eq!(won.len(), 1, "round {round}: {won:?} {lost:?}");
        let winner = machine(won[0].0);
        drop(won);
        for (_, refused) in lost {
            match refused {
                Err(VolumeError::InUse { holder, .. }) => assert_eq!(holder, Some(winner.clone())),
                other => panic!("round {round}: {other:?}"),
            }
        }
        driver.detach(&volume(1), &winner).unwrap();
    }
}

fn adoption(open: Open<'_>) {
    let first = open();
    first.ensure_empty(1, SIZE).unwrap();
    let dir = first.mount(1, 1).unwrap();
    fs::write(dir.join("kept"), "contents").unwrap();
    drop(first);
    let second = open();
    assert_eq!(report(&*second, &volume(1)).attached_to, Some(machine(1)));
    let again = second.mount(1, 1).unwrap();
    assert!(again.is_same(&dir));
    drop(again);
    assert_eq!(fs::read_to_string(dir.join("kept")).unwrap(), "contents");
    drop(dir);
    second.detach(&volume(1), &machine(1)).unwrap();
    assert_eq!(report(&*open(), &volume(1)).attached_to, None);
}

fn discard_gives_back(open: Open<'_>) {
    let driver = open();
    let capabilities = driver.capabilities();
    driver.ensure_empty(1, SIZE).unwrap();
    let dir = driver.mount(1, 1).unwrap();
    let used = || report(&*driver, &volume(1)).used_bytes;
    let before = used();
    if capabilities.thin {
        assert!(before < SIZE.0 / 4, "a new volume takes {before} bytes");
    }
    fs::write(dir.join("big"), vec![1; 32 << 20]).unwrap();
    sync_file_system(&dir);
    let full = used();
    assert!(full >= 32 << 20, "{full}");
    fs::remove_file(dir.join("big")).unwrap();
    sync_file_system(&dir);
    if capabilities.discard {
        wait_for("the blocks of the deleted file", || {
            sync_file_system(&dir);
            used() < full - (30 << 20)
        });
    }
    // Also what is deleted in the last moment, in many pieces.
    for n in 0..2000 {
        fs::write(dir.join(n.to_string()), [1; 16 << 10]).unwrap();
    }
    sync_file_system(&dir);
    let full = used();
    // In runs of 2 MiB, since thin volumes give back whole chunks only, and lose one at each end of a run.
    for n in (0..2000).filter(|n| n / 128 % 2 == 0) {
        fs::remove_file(dir.join(n.to_string())).unwrap();
    }
    drop(dir);
    driver.detach(&volume(1), &machine(1)).unwrap();
    assert!(
        !capabilities.discard || used() < full - (14 << 20),
        "{} of {full}",
        used()
    );
}

fn destroy_frees(open: Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, POOL_CAPACITY).unwrap();
    let refused = driver.ensure_empty(2, SIZE);
    assert!(
        matches!(refused, Err(VolumeError::NoSpace { .. })),
        "{refused:?}"
    );
    let dir = driver.mount(1, 1).unwrap();
    fs::write(dir.join("kept"), "contents").unwrap();
    match open().destroy(&volume(1)) {
        Err(VolumeError::InUse { holder, .. }) => assert_eq!(holder, Some(machine(1))),
        other => panic!("{other:?}"),
    }
    assert!(dir.join("kept").exists());
    drop(dir);
    driver.detach(&volume(1), &machine(1)).unwrap();
    for _ in 0..2 {
        driver.destroy(&volume(1)).unwrap();
        assert_eq!(driver.list().unwrap(), []);
        assert_eq!(driver.pool().unwrap().promised, ByteSize(0));
    }
    driver.ensure_empty(2, SIZE).unwrap();
    // The same id again is a new volume: nothing of the old one is there.
    driver.ensure_empty(1, SIZE).unwrap();
    let dir = driver.mount(1, 2).unwrap();
    assert!(!dir.join("kept").exists());
    drop(dir);
    driver.detach(&volume(1), &machine(2)).unwrap();
}

/// Bytes that a mounted file system can hold.
fn room(dir: &Path) -> u64 {
    let statistics = nix::sys::statvfs::statvfs(dir).unwrap();
    statistics.blocks() * statistics.fragment_size()
}

fn growth(open: Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    let dir = driver.mount(1, 1).unwrap();
    fs::write(dir.join("kept"), "contents").unwrap();
    let before = room(&dir);
    for _ in 0..2 {
        let larger = driver.extend_to(1, ByteSize(2 * SIZE.0)).unwrap();
        assert_eq!(larger.size_bytes, 2 * SIZE.0);
        let now = room(&dir);
        let grows = driver.capabilities().grows_mounted;
        assert!(now > before + SIZE.0 / 2 || !grows, "{now}");
    }
    assert_eq!(fs::read_to_string(dir.join("kept")).unwrap(), "contents");
    let dir = if driver.capabilities().grows_mounted {
        dir
    } else {
        drop(dir);
        driver.release(1, 1);
        driver.mount(1, 1).unwrap()
    };
    assert!(fill(&dir.join("all")) > SIZE.0);
    fs::remove_file(dir.join("all")).unwrap();
    let shrunk = driver.extend_to(1, SIZE);
    assert!(
        matches!(shrunk, Err(VolumeError::Shrink { .. })),
        "{shrunk:?}"
    );
    drop(dir);
    driver.release(1, 1);
    // One that nobody has grows when it is mounted next.
    let size = ByteSize(3 * SIZE.0);
    driver.extend_to(1, size).unwrap();
    let dir = driver.mount(1, 3).unwrap();
    assert!(room(&dir) > size.0 - SIZE.0 / 2, "{}", room(&dir));
    assert_eq!(fs::read_to_string(dir.join("kept")).unwrap(), "contents");
    drop(dir);
    driver.release(1, 3);
    let absent = driver.extend_to(9, SIZE);
    assert!(
        matches!(absent, Err(VolumeError::NotFound { .. })),
        "{absent:?}"
    );
}

fn growth_is_bounded(open: Open<'_>) {
    let driver = open();
    driver.ensure_empty(1, SIZE).unwrap();
    driver
        .ensure_empty(2, ByteSize(POOL_CAPACITY.0 - 2 * SIZE.0))
        .unwrap();
    let refused = driver.extend_to(1, ByteSize(3 * SIZE.0));
    assert!(
        matches!(refused, Err(VolumeError::NoSpace { .. })),
        "{refused:?}"
    );
    assert_eq!(report(&*driver, &volume(1)).size_bytes, SIZE.0);
    driver.extend_to(1, ByteSize(2 * SIZE.0)).unwrap();
    assert_eq!(driver.pool().unwrap().promised, POOL_CAPACITY);
}
