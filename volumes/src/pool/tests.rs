//! The `file` driver over real images, loop devices and mounts.

mod arrival;

use super::steps::{Fault, Step};
use super::{Pool, lock_pool};
use crate::conformance::{CASES, Dir, POOL_CAPACITY, wait_for};
use crate::driver::{AttachAs, Encryption, NewVolume, VolumeDriver};
use crate::error::VolumeError;
use crate::file::{self, Capacity, Images, open_file_pool};
use crate::loopdev;
use slipway_core::host_api::{Cloning, VolumeReport, VolumeSource};
use slipway_core::id::{MachineId, SnapshotId, VolumeId};
use slipway_core::units::ByteSize;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const SIZE: ByteSize = ByteSize::mib(64);
/// Tells a process started by a test what to do: `POOL MACHINE STEP`.
const CHILD_ENV: &str = "SLIPWAY_VOLUMES_TEST_CHILD";

/// A pool for one test; whatever is attached at the end is let go.
struct TestPool {
    dir: tempfile::TempDir,
}

impl TestPool {
    /// Gives nothing, and says why, without root, except in CI, where that is a failure.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "this test needs root, for loop devices and mounts"
            );
            eprintln!("skipped: needs root, for loop devices and mounts");
            return None;
        }
        let dir = tempfile::Builder::new()
            .prefix("slipway-volumes.")
            .tempdir()
            .unwrap();
        Some(Self { dir })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    fn open(&self) -> Pool<Images> {
        open(&self.path())
    }

    /// No device, and in `volumes/` exactly these files besides locks.
    fn assert_world(&self, when: &str, files: &[String]) {
        let pool = self.path();
        wait_for(&format!("{when}: no device"), || {
            let devices = loopdev::in_use().unwrap();
            !devices.iter().any(|(file, _)| file.starts_with(&pool))
        });
        let mut names: Vec<_> = fs::read_dir(pool.join("volumes"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".lock"))
            .collect();
        names.sort();
        assert_eq!(names, files, "{when}");
    }
}

impl Drop for TestPool {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.path().join("mnt"))
            .into_iter()
            .flatten()
            .flatten()
        {
            while nix::mount::umount(&entry.path()).is_ok() {}
        }
        for (image, _) in loopdev::in_use().unwrap() {
            if image.starts_with(self.path()) {
                let _ = loopdev::release(&image);
            }
        }
    }
}

fn open(pool: &Path) -> Pool<Images> {
    file::open(pool, Capacity::of(POOL_CAPACITY), Encryption::Off).unwrap()
}

fn volume() -> VolumeId {
    VolumeId::from_entropy([1; 10])
}

fn machine(n: u8) -> MachineId {
    MachineId::from_entropy([n; 10])
}

fn ensure(driver: &Pool<Images>, size: ByteSize) -> Result<VolumeReport, VolumeError> {
    driver.ensure(&NewVolume::empty(&volume(), size))
}

fn attach(driver: &Pool<Images>, holder: u8) -> Result<Dir, VolumeError> {
    driver
        .attach(&volume(), &machine(holder), AttachAs::Mount, None)
        .map(Dir::of)
}

fn image_name() -> String {
    format!("{}.img", volume())
}

fn marker_name() -> String {
    format!("{}.attached", volume())
}

fn snapshot() -> SnapshotId {
    SnapshotId::from_entropy([1; 10])
}

fn restored() -> VolumeId {
    VolumeId::from_entropy([2; 10])
}

/// Another volume from the snapshot.
fn restore(driver: &Pool<Images>) -> Result<VolumeReport, VolumeError> {
    driver.ensure(&NewVolume {
        source: Some(&VolumeSource::Snapshot {
            snapshot: snapshot(),
        }),
        ..NewVolume::empty(&restored(), SIZE)
    })
}

fn fail_at(driver: &Pool<Images>, step: Step, fault: Fault) {
    driver.steps.fail_at(step, fault);
}

/// Runs this very test once more in a process of its own, with a job.
fn child(test: &str, job: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("pool::tests::{test}"), "--nocapture"]);
    command
        .env(CHILD_ENV, job)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

#[test]
fn conforms() {
    for (name, case) in CASES {
        let Some(pool) = TestPool::new() else { return };
        eprintln!("case: {name}");
        let path = pool.path();
        case(&|| Arc::new(open(&path)));
    }
}

/// Pools on file systems whose files can share blocks.
#[test]
fn conforms_where_blocks_are_shared() {
    for (kind, program, options) in [
        ("xfs", "mkfs.xfs", "-q -s size=4096 -m reflink=1"),
        ("btrfs", "mkfs.btrfs", "-q"),
    ] {
        let Some(outer) = TestPool::new() else { return };
        let image = outer.path().join("disk");
        fs::File::create(&image).unwrap().set_len(2 << 30).unwrap();
        let made = Command::new(program)
            .args(options.split(' '))
            .arg(&image)
            .status();
        assert!(
            made.is_ok_and(|made| made.success()),
            "{program} (hint: scripts/setup.sh)"
        );
        let dir = outer.path().join("mnt").join(kind);
        fs::create_dir_all(&dir).unwrap();
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&image)
            .unwrap();
        let device = loopdev::LoopDevice::attach(&file, false)
            .unwrap()
            .into_device();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some(&device.path), &dir, Some(kind), flags, None::<&str>).unwrap();
        drop(device);
        for (n, (name, case)) in CASES.iter().enumerate() {
            eprintln!("{kind}: {name}");
            let pool = dir.join(n.to_string());
            let first = open(&pool);
            assert_eq!(first.capabilities().cloning, Cloning::Reflink);
            drop(first);
            case(&|| Arc::new(open(&pool)));
        }
    }
}

#[test]
fn a_failed_step_leaves_nothing_behind() {
    let Some(pool) = TestPool::new() else { return };
    let driver = pool.open();
    for step in Step::CREATE {
        fail_at(&driver, step, Fault::Error);
        let error = ensure(&driver, SIZE).unwrap_err();
        assert!(error.to_string().contains("injected"), "{step:?}: {error}");
        pool.assert_world(&format!("{step:?}"), &[]);
        assert_eq!(driver.pool().unwrap().promised, ByteSize(0));
    }
    ensure(&driver, SIZE).unwrap();
    for step in Step::ATTACH {
        fail_at(&driver, step, Fault::Error);
        let error = attach(&driver, 1).unwrap_err();
        assert!(error.to_string().contains("injected"), "{step:?}: {error}");
        pool.assert_world(&format!("{step:?}"), &[image_name()]);
    }
    for step in Step::SNAPSHOT {
        let dir = attach(&driver, 1).unwrap();
        fail_at(&driver, step, Fault::Error);
        let error = driver.snapshot(&volume(), &snapshot()).unwrap_err();
        assert!(error.to_string().contains("injected"), "{step:?}: {error}");
        assert_eq!(driver.snapshots().unwrap(), [], "{step:?}");
        assert_eq!(driver.pool().unwrap().promised, SIZE, "{step:?}");
        // It does not stand still any more.
        fs::write(dir.join("written"), [1; 8192]).unwrap();
        drop(dir);
        driver.detach(&volume(), &machine(1)).unwrap();
        pool.assert_world(&format!("{step:?}"), &[image_name()]);
    }
    driver.snapshot(&volume(), &snapshot()).unwrap();
    let promised = driver.pool().unwrap().promised;
    for step in Step::CLONE {
        fail_at(&driver, step, Fault::Error);
        let error = restore(&driver).unwrap_err();
        assert!(error.to_string().contains("injected"), "{step:?}: {error}");
        assert_eq!(driver.pool().unwrap().promised, promised, "{step:?}");
        pool.assert_world(&format!("{step:?}"), &[image_name()]);
    }
    for step in Step::DETACH {
        attach(&driver, 1).unwrap();
        fail_at(&driver, step, Fault::Error);
        driver.detach(&volume(), &machine(1)).unwrap_err();
        // Called again, it goes on from wherever it stopped; then anybody may have it.
        driver.detach(&volume(), &machine(1)).unwrap();
        attach(&driver, 2).unwrap();
        driver.detach(&volume(), &machine(2)).unwrap();
        pool.assert_world(&format!("{step:?}"), &[image_name()]);
    }
}

#[test]
fn a_process_that_dies_at_any_step_is_recovered_from() {
    if let Ok(job) = std::env::var(CHILD_ENV) {
        let (pool, step) = job.split_once(' ').unwrap();
        let all = Step::CREATE
            .into_iter()
            .chain(Step::ATTACH)
            .chain(Step::DETACH);
        let step = all.into_iter().find(|s| format!("{s:?}") == step).unwrap();
        let driver = open(Path::new(pool));
        fail_at(&driver, step, Fault::Death);
        ensure(&driver, SIZE).unwrap();
        attach(&driver, 1).unwrap();
        driver.detach(&volume(), &machine(1)).unwrap();
        panic!("it should have died before");
    }
    for step in Step::CREATE
        .into_iter()
        .chain(Step::ATTACH)
        .chain(Step::DETACH)
    {
        let Some(pool) = TestPool::new() else { return };
        let job = format!("{} {step:?}", pool.path().display());
        let output = child("a_process_that_dies_at_any_step_is_recovered_from", &job)
            .output()
            .unwrap();
        assert_eq!(
            output.status.code(),
            None,
            "{step:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );

        let driver = pool.open();
        assert!(
            !pool
                .path()
                .join(format!("volumes/{}.{}.img.tmp", volume(), SIZE.0))
                .exists(),
            "{step:?}"
        );
        ensure(&driver, SIZE).unwrap();
        // From its device on to the end of that.
        let attached = matches!(
            step,
            Step::Mount | Step::FinishAttach | Step::Unmount | Step::FreeDevice
        );
        wait_for(&format!("{step:?}: attached is {attached}"), || {
            driver.list().unwrap()[0].attached_to.is_some() == attached
        });
        if attached {
            let refused = attach(&driver, 2);
            assert!(
                matches!(refused, Err(VolumeError::InUse { .. })),
                "{step:?}: {refused:?}"
            );
        }
        driver.detach(&volume(), &machine(1)).unwrap();
        let dir = attach(&driver, 2).unwrap();
        fs::write(dir.join("works"), "").unwrap();
        drop(dir);
        driver.detach(&volume(), &machine(2)).unwrap();
        pool.assert_world(&format!("{step:?}"), &[image_name()]);
        driver.destroy(&volume()).unwrap();
        pool.assert_world(&format!("{step:?}"), &[]);
    }
}

/// The same for what is done to a volume while it is attached.
#[test]
fn a_process_that_dies_at_any_step_of_other_verbs_is_recovered_from() {
    let steps = || {
        Step::SNAPSHOT
            .into_iter()
            .chain(Step::CLONE)
            .chain(Step::EXTEND)
            .chain(Step::DESTROY)
    };
    let larger = ByteSize(2 * SIZE.0);
    if let Ok(job) = std::env::var(CHILD_ENV) {
        let (pool, step) = job.split_once(' ').unwrap();
        let step = steps().find(|s| format!("{s:?}") == step).unwrap();
        let driver = open(Path::new(pool));
        attach(&driver, 1).unwrap();
        if !Step::CLONE.contains(&step) {
            fail_at(&driver, step, Fault::Death);
        }
        driver.snapshot(&volume(), &snapshot()).unwrap();
        fail_at(&driver, step, Fault::Death);
        restore(&driver).unwrap();
        driver.extend(&volume(), larger, None).unwrap();
        driver.detach(&volume(), &machine(1)).unwrap();
        driver.destroy(&volume()).unwrap();
        panic!("it should have died before");
    }
    for step in steps() {
        let Some(pool) = TestPool::new() else { return };
        let driver = pool.open();
        ensure(&driver, SIZE).unwrap();
        let dir = attach(&driver, 1).unwrap();
        fs::write(dir.join("kept"), "contents").unwrap();
        drop(dir);
        driver.detach(&volume(), &machine(1)).unwrap();
        let test = "a_process_that_dies_at_any_step_of_other_verbs_is_recovered_from";
        let job = format!("{} {step:?}", pool.path().display());
        let output = child(test, &job).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), None, "{step:?}: {words}");

        let driver = pool.open();
        let half_made = fs::read_dir(pool.path().join("snapshots"))
            .unwrap()
            .chain(fs::read_dir(pool.path().join("volumes")).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .find(|name| name.ends_with(".tmp"));
        assert_eq!(half_made, None, "{step:?}");
        // Whatever was done, doing all of it again works.
        if step != Step::RemoveNames {
            let dir = attach(&driver, 1).unwrap();
            fs::write(dir.join("works"), [1; 8192]).unwrap();
            assert_eq!(
                fs::read_to_string(dir.join("kept")).unwrap(),
                "contents",
                "{step:?}"
            );
            driver.snapshot(&volume(), &snapshot()).unwrap();
            let report = driver.extend(&volume(), larger, None).unwrap();
            assert_eq!(report.size_bytes, larger.0);
            drop(dir);
            driver.detach(&volume(), &machine(1)).unwrap();
        }
        restore(&driver).unwrap();
        driver.destroy(&volume()).unwrap();
        driver.delete_snapshot(&snapshot()).unwrap();
        driver.destroy(&restored()).unwrap();
        pool.assert_world(&format!("{step:?}"), &[]);
        assert_eq!(driver.pool().unwrap().promised, ByteSize(0), "{step:?}");
    }
}

#[test]
fn of_two_processes_one_gets_the_volume_and_keeps_it_through_its_death() {
    if let Ok(job) = std::env::var(CHILD_ENV) {
        let (pool, n) = job.split_once(' ').unwrap();
        let driver = open(Path::new(pool));
        // Ready; then wait for the start that both get together, and end at once, detaching nothing.
        eprintln!("READY");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        let won = attach(&driver, n.parse().unwrap()).is_ok();
        nix::sys::signal::raise(if won {
            nix::sys::signal::Signal::SIGKILL
        } else {
            nix::sys::signal::Signal::SIGTERM
        })
        .unwrap();
    }
    let Some(pool) = TestPool::new() else { return };
    let driver = pool.open();
    ensure(&driver, SIZE).unwrap();
    for round in 0..3 {
        let mut children: Vec<_> = (1..=2)
            .map(|n| {
                let job = format!("{} {n}", pool.path().display());
                let test = "of_two_processes_one_gets_the_volume_and_keeps_it_through_its_death";
                child(test, &job).stdin(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for child in &mut children {
            let mut words = std::io::BufReader::new(child.stderr.as_mut().unwrap());
            let mut line = String::new();
            while !line.ends_with("READY\n") {
                assert!(
                    std::io::BufRead::read_line(&mut words, &mut line).unwrap() > 0,
                    "{line}"
                );
            }
        }
        for child in &mut children {
            child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        }
        let signals: Vec<_> = children
            .iter_mut()
            .map(|c| std::os::unix::process::ExitStatusExt::signal(&c.wait().unwrap()))
            .collect();
        let winner = match signals[..] {
            [Some(9), Some(15)] => machine(1),
            [Some(15), Some(9)] => machine(2),
            _ => panic!("round {round}: {signals:?}"),
        };
        let driver = pool.open();
        assert_eq!(driver.list().unwrap()[0].attached_to, Some(winner.clone()));
        let refused = attach(&driver, 3);
        assert!(
            matches!(refused, Err(VolumeError::InUse { .. })),
            "{refused:?}"
        );
        driver.detach(&volume(), &winner).unwrap();
    }
}

#[test]
fn an_unclean_end_is_checked_and_repaired() {
    let Some(pool) = TestPool::new() else { return };
    let driver = pool.open();
    ensure(&driver, SIZE).unwrap();
    let image = pool.path().join("volumes").join(image_name());
    let unclean = |n: u8| {
        let dir = attach(&driver, n).unwrap();
        for i in 0..200 {
            fs::write(dir.join(format!("file{i}")), vec![7; 8192]).unwrap();
        }
        drop(dir);
        // What a power cut leaves: a marker, and no device.
        loopdev::release(&image).unwrap();
        wait_for("the device to go", || {
            driver.list().unwrap()[0].attached_to.is_none()
        });
        assert!(pool.path().join("volumes").join(marker_name()).exists());
    };
    unclean(1);
    // Late words of the one that had it change nothing: the check is still due.
    driver.detach(&volume(), &machine(1)).unwrap();
    assert!(pool.path().join("volumes").join(marker_name()).exists());
    let dir = attach(&driver, 2).unwrap();
    assert_eq!(fs::read(dir.join("file199")).unwrap().len(), 8192);
    drop(dir);
    driver.detach(&volume(), &machine(2)).unwrap();

    // Beyond what is safe to repair by itself: block bitmaps and directory blocks are gone.
    unclean(3);
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    for block in 1..64_u64 {
        file.write_all_at(&[0xff; 4096], block * 4096 * 3).unwrap();
    }
    drop(file);
    let checked = Command::new("e2fsck")
        .args(["-n", "-f"])
        .arg(&image)
        .output()
        .unwrap();
    assert_ne!(checked.status.code(), Some(0), "the test did no damage");
    let dir = attach(&driver, 4).unwrap();
    fs::write(dir.join("works"), "again").unwrap();
    drop(dir);
    driver.detach(&volume(), &machine(4)).unwrap();
    let checked = Command::new("e2fsck")
        .args(["-n", "-f"])
        .arg(&image)
        .output()
        .unwrap();
    assert_eq!(
        checked.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );

    // Beyond repair: nothing of it is left.
    unclean(5);
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&vec![0; usize::try_from(SIZE.0).unwrap()], 0)
        .unwrap();
    drop(file);
    let damaged = attach(&driver, 6);
    assert!(
        matches!(damaged, Err(VolumeError::Damaged { .. })),
        "{damaged:?}"
    );
    pool.assert_world("damaged", &[marker_name(), image_name()]);
    driver.destroy(&volume()).unwrap();
    ensure(&driver, SIZE).unwrap();
    attach(&driver, 6).unwrap();
    driver.detach(&volume(), &machine(6)).unwrap();
}

/// A program that another thread starts has a copy of our locked descriptors for a moment.
#[test]
fn programs_being_started_do_not_count_as_holders() {
    let Some(pool) = TestPool::new() else { return };
    let driver = pool.open();
    ensure(&driver, SIZE).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    Command::new("true").status().unwrap();
                }
            });
        }
        let results: Vec<_> = (0..400)
            .map(|_| {
                fail_at(&driver, Step::MakeDevice, Fault::Error);
                attach(&driver, 1).unwrap_err().to_string()
            })
            .collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let other: Vec<_> = results
            .iter()
            .filter(|text| !text.contains("injected"))
            .collect();
        assert!(other.is_empty(), "{other:?}");
    });
}

#[test]
fn open_files_delay_a_detach_and_do_not_lose_the_volume() {
    let Some(pool) = TestPool::new() else { return };
    let driver = pool.open();
    ensure(&driver, SIZE).unwrap();
    let dir = attach(&driver, 1).unwrap();
    let held = fs::File::create(dir.join("held")).unwrap();
    drop(dir);
    let busy = driver.detach(&volume(), &machine(1));
    assert!(matches!(busy, Err(VolumeError::Busy { .. })), "{busy:?}");
    assert_eq!(driver.list().unwrap()[0].attached_to, Some(machine(1)));
    let dir = attach(&driver, 1).unwrap();
    assert!(dir.join("held").exists());
    drop((held, dir));
    driver.detach(&volume(), &machine(1)).unwrap();
}

/// A machine's own mount of the volume outlives ours: a second driver on the same blocks would destroy the data. That is also where
/// earlier versions had it mounted.
#[test]
fn another_mount_keeps_the_volume_attached_and_is_told_of() {
    let Some(pool) = TestPool::new() else { return };
    let driver = pool.open();
    ensure(&driver, SIZE).unwrap();
    let dir = attach(&driver, 1).unwrap();
    let mount = |name: &str| {
        let at = pool.path().join("mnt").join(name);
        fs::create_dir_all(&at).unwrap();
        let device = loopdev::in_use().unwrap();
        let image = pool.path().join("volumes").join(image_name());
        let (_, device) = device.iter().find(|(file, _)| *file == image).unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some(device), &at, Some("ext4"), flags, None::<&str>).unwrap();
        at
    };
    let (elsewhere, old) = (mount("elsewhere"), mount(volume().as_str()));
    drop(dir);
    let busy = driver.detach(&volume(), &machine(1)).unwrap_err();
    assert!(matches!(busy, VolumeError::Busy { .. }), "{busy:?}");
    assert!(busy.to_string().contains("by this host at"), "{busy}");
    assert!(!old.exists());
    assert_eq!(driver.list().unwrap()[0].attached_to, Some(machine(1)));
    let refused = attach(&driver, 2);
    assert!(
        matches!(refused, Err(VolumeError::InUse { .. })),
        "{refused:?}"
    );
    assert!(matches!(
        driver.destroy(&volume()),
        Err(VolumeError::InUse { .. })
    ));
    // Its own holder gets the same file system once more.
    fs::write(elsewhere.join("seen"), "").unwrap();
    let dir = attach(&pool.open(), 1).unwrap();
    assert!(dir.join("seen").exists());
    drop(dir);
    nix::mount::umount(&elsewhere).unwrap();
    driver.detach(&volume(), &machine(1)).unwrap();
    pool.assert_world("after", &[image_name()]);
}

/// A program in a mount namespace of its own, made from ours while volumes were mounted.
fn copies_all_mounts(propagation: &str) -> std::process::Child {
    let mut program = Command::new("unshare");
    program.args(["--mount", "--propagation", propagation, "sleep", "1000"]);
    let child = program.spawn().unwrap();
    let name = format!("/proc/{}/comm", child.id());
    wait_for("a namespace of its own", || {
        fs::read_to_string(&name).unwrap() == "sleep\n"
    });
    child
}

#[test]
fn programs_that_copy_all_mounts_have_no_copy_of_a_volume() {
    let Some(pool) = TestPool::new() else { return };
    let driver = pool.open();
    ensure(&driver, SIZE).unwrap();
    let dir = attach(&driver, 1).unwrap();
    fs::write(dir.join("kept"), "contents").unwrap();
    let mut programs = ["private", "slave", "shared"].map(copies_all_mounts);
    drop(dir);
    driver.detach(&volume(), &machine(1)).unwrap();
    let dir = attach(&driver, 2).unwrap();
    assert_eq!(fs::read_to_string(dir.join("kept")).unwrap(), "contents");
    drop(dir);
    driver.detach(&volume(), &machine(2)).unwrap();

    // What an earlier version mounted at a path, they have; it goes with that path.
    attach(&driver, 1).unwrap();
    let old = pool.path().join("mnt").join(volume().as_str());
    fs::create_dir_all(&old).unwrap();
    let (_, device) = loopdev::in_use()
        .unwrap()
        .into_iter()
        .find(|(image, _)| image.starts_with(pool.path()))
        .unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some(&device), &old, Some("ext4"), flags, None::<&str>).unwrap();
    let more = ["private", "slave", "shared"].map(copies_all_mounts);
    driver.detach(&volume(), &machine(1)).unwrap();
    pool.assert_world("after", &[image_name()]);
    for program in programs.iter_mut().chain(&mut { more }) {
        program.kill().unwrap();
        program.wait().unwrap();
    }
}

/// Nothing on a volume has a meaning for the host before a machine has it.
#[test]
fn nothing_on_a_volume_runs_on_the_host() {
    let Some(pool) = TestPool::new() else { return };
    let driver = pool.open();
    ensure(&driver, SIZE).unwrap();
    let dir = attach(&driver, 1).unwrap();
    let program = dir.join("true");
    fs::copy("/bin/true", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let refused = Command::new(&program).status().unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    let flags = nix::sys::statvfs::statvfs(&*dir).unwrap().flags();
    assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_NOSUID));
    drop(dir);
    driver.detach(&volume(), &machine(1)).unwrap();
}

#[test]
fn leftovers_of_a_crash_are_cleared_and_nothing_else() {
    let Some(pool) = TestPool::new() else { return };
    let driver = pool.open();
    ensure(&driver, SIZE).unwrap();
    let volumes = pool.path().join("volumes");
    let gone = VolumeId::from_entropy([9; 10]);
    for name in [
        format!("{gone}.4096.img.tmp"),
        format!("{gone}.attached"),
        format!("{gone}.lock"),
    ] {
        fs::write(volumes.join(name), "").unwrap();
    }
    fs::write(volumes.join(marker_name()), "torn").unwrap();
    fs::write(volumes.join("notes.txt"), "an operator's").unwrap();
    let driver = pool.open();
    pool.assert_world(
        "reopened",
        &["notes.txt".to_owned(), marker_name(), image_name()],
    );
    assert!(!volumes.join(format!("{gone}.lock")).exists());
    attach(&driver, 1).unwrap();
    driver.detach(&volume(), &machine(1)).unwrap();
}

#[test]
fn a_leftover_that_cannot_be_cleared_away_keeps_no_pool_from_opening() {
    let Some(pool) = TestPool::new() else { return };
    let driver = pool.open();
    ensure(&driver, SIZE).unwrap();
    let volumes = pool.path().join("volumes");
    let [stuck, gone] = [8, 9].map(|n| VolumeId::from_entropy([n; 10]));
    // A directory with something in it, where a file was.
    fs::create_dir_all(volumes.join(format!("{stuck}.4096.img.tmp/x"))).unwrap();
    fs::write(volumes.join(format!("{gone}.4096.img.tmp")), "").unwrap();
    let driver = pool.open();
    assert!(!volumes.join(format!("{gone}.4096.img.tmp")).exists());
    attach(&driver, 1).unwrap();
    driver.detach(&volume(), &machine(1)).unwrap();
    let notices = driver.pool().unwrap().notices;
    assert!(
        notices.len() == 1 && notices[0].contains(stuck.as_str()),
        "{notices:?}"
    );
}

#[test]
fn an_import_that_broke_off_is_listed_and_can_be_destroyed() {
    let Some(pool) = TestPool::new() else { return };
    let driver = pool.open();
    let id = VolumeId::from_entropy([9; 10]);
    let part = pool.path().join(format!("volumes/{id}.4096.img.part"));
    fs::write(&part, "begun").unwrap();
    assert_eq!(pool.open().unfinished().unwrap(), std::slice::from_ref(&id));
    driver.destroy(&id).unwrap();
    assert!(!part.exists());
    assert_eq!(driver.unfinished().unwrap(), []);
}

#[test]
fn only_root_can_enter() {
    let Some(pool) = TestPool::new() else { return };
    let driver = pool.open();
    ensure(&driver, SIZE).unwrap();
    for (path, mode) in [
        ("volumes", 0o700),
        (&format!("volumes/{}", image_name()), 0o600),
    ] {
        let is = fs::metadata(pool.path().join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777;
        assert_eq!(is, mode, "{path}");
    }
}

#[test]
fn a_pool_that_must_encrypt_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let error = open_file_pool(dir.path(), Capacity::default(), Encryption::Required).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("requires encryption") && text.contains("encryption = \"off\""),
        "{text}"
    );
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "it touched the pool"
    );
}

#[test]
fn the_default_capacity_is_what_can_be_kept() {
    let Some(pool) = TestPool::new() else { return };
    let driver = file::open(&pool.path(), Capacity::default(), Encryption::Off).unwrap();
    let statistics = nix::sys::statvfs::statvfs(&pool.path()).unwrap();
    let whole = statistics.blocks() * statistics.fragment_size();
    let capacity = driver.pool().unwrap().capacity;
    assert!(
        capacity.0 > 0 && capacity.0 < whole / 100 * 91,
        "{capacity}"
    );
    assert!(ensure(&driver, ByteSize(capacity.0 + (1 << 20))).is_err());
    assert_eq!(driver.pool().unwrap().notices, [""; 0]);

    // What is promised to others on the same disk does not count.
    let others = Capacity {
        set: None,
        owed_to_others: ByteSize(capacity.0 / 2),
    };
    let beside = file::open(&pool.path(), others, Encryption::Off).unwrap();
    let beside = beside.pool().unwrap().capacity;
    assert!(beside.0 < capacity.0 / 10 * 7, "{beside} of {capacity}");
}

#[test]
fn an_operator_reads_that_more_was_promised_than_the_disk_has_left() {
    let Some(pool) = TestPool::new() else { return };
    let statistics = nix::sys::statvfs::statvfs(&pool.path()).unwrap();
    let whole = statistics.blocks() * statistics.fragment_size();
    let capacity = Capacity::of(ByteSize(whole * 3));
    let driver = file::open(&pool.path(), capacity, Encryption::Off).unwrap();
    let report = ensure(&driver, SIZE).unwrap();
    assert_eq!(driver.pool().unwrap().notices, [""; 0]);
    driver
        .extend(&report.volume, ByteSize(whole * 2), None)
        .unwrap();
    let notices = driver.pool().unwrap().notices;
    assert!(
        notices.len() == 1 && notices[0].contains("less left than volumes"),
        "{notices:?}"
    );
}

#[test]
fn whoever_waits_in_vain_for_the_pool_reads_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool.lock");
    let long = Duration::from_secs(60);
    let first = lock_pool(&path, long, "the making of a large volume").unwrap();
    drop(first);
    let held = lock_pool(&path, long, "the import of vol_x").unwrap();
    let refused = lock_pool(&path, Duration::ZERO, "the extension of vol_y").unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the pool is busy: the import of vol_x (waited 0 s)"
    );
    drop(held);
    lock_pool(&path, Duration::ZERO, "the extension of vol_y").unwrap();
}

/// What exists must be served, and what may be freed must be freed, however full the disk is.
#[test]
fn a_pool_on_a_full_disk_opens_and_destroys() {
    let Some(pool) = TestPool::new() else {
        return;
    };
    let full = pool.path().join("full");
    fs::create_dir(&full).unwrap();
    let (name, data) = (Some("slipway-test"), Some("size=1m,mode=0700"));
    nix::mount::mount(
        name,
        &full,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        data,
    )
    .unwrap();
    let opened = std::panic::catch_unwind(|| {
        let small = SIZE;
        drop(open(&full));
        let image = full.join("volumes").join(image_name());
        fs::File::create(&image).unwrap().set_len(small.0).unwrap();
        let filler = fs::File::create(full.join("filler")).unwrap();
        let mut written = &filler;
        while written.write_all(&[1; 4096]).is_ok() {}
        let driver = open(&full);
        assert_eq!(driver.list().unwrap().len(), 1);
        driver.destroy(&volume()).unwrap();
        assert!(driver.list().unwrap().is_empty());
    });
    nix::mount::umount(&full).unwrap();
    opened.unwrap();
}
