//! Every verb fails, and then its process dies, at every step, on every driver with device-mapper.

use super::machine::{name, with_device_mapper};
use super::{
    Group, SIZE, ensure, key, machine, mount, on_disk, open_files, open_thin, release, sh,
    snapshot, volume,
};
use crate::backing::Backing;
use crate::conformance::POOL_CAPACITY;
use crate::driver::{Encryption, NewVolume, VolumeDriver};
use crate::error::VolumeError;
use crate::pool::Pool;
use crate::pool::steps::{Fault, Step};
use slipway_core::host_api::{ImportPart, VolumeSource};
use slipway_core::units::ByteSize;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Tells a process that a test starts what to do: `VERB STEP`.
const CHILD_ENV: &str = "SLIPWAY_VOLUMES_TEST_CHILD";
const DIR_ENV: &str = "SLIPWAY_VOLUMES_TEST_DIR";

/// Something that is done to a pool in which volume 1 is.
struct Verb<B> {
    name: &'static str,
    steps: Vec<Step>,
    run: fn(&Pool<B>) -> Result<(), VolumeError>,
    /// Gives back the state before it, wherever it came to.
    reset: fn(&Pool<B>),
    /// When it fails, nothing of it is left.
    undone: bool,
}

/// All of them; `sealed` and `freezes` say which steps there are.
fn verbs<B: Backing>(sealed: bool, freezes: bool) -> Vec<Verb<B>> {
    let mut all = verbs_of_making(sealed, freezes);
    all.extend(verbs_of_use(sealed, freezes));
    all
}

fn verb<B>(
    name: &'static str,
    steps: &[&[Step]],
    run: fn(&Pool<B>) -> Result<(), VolumeError>,
    reset: fn(&Pool<B>),
    undone: bool,
) -> Verb<B> {
    Verb {
        name,
        steps: steps.concat(),
        run,
        reset,
        undone,
    }
}

fn only(when: bool, step: &Step) -> &[Step] {
    if when {
        std::slice::from_ref(step)
    } else {
        &[]
    }
}

fn verbs_of_making<B: Backing>(sealed: bool, freezes: bool) -> Vec<Verb<B>> {
    let encrypt = only(sealed, &Step::Encrypt);
    vec![
        verb(
            "create",
            &[&Step::CREATE, encrypt],
            |pool| ensure(pool, 2, SIZE).map(drop),
            |pool| pool.destroy(&volume(2)).unwrap(),
            true,
        ),
        verb(
            "fork",
            &[&Step::CLONE, encrypt, only(freezes, &Step::Clone)],
            |pool| {
                mount(pool, 1)?;
                fork(pool)
            },
            |pool| pool.destroy(&volume(2)).unwrap(),
            true,
        ),
        verb(
            "import",
            &[&Step::IMPORT, encrypt],
            import,
            |pool| pool.destroy(&volume(2)).unwrap(),
            false,
        ),
        verb(
            "destroy",
            &[&Step::DESTROY, only(sealed, &Step::EraseKeys)],
            |pool| {
                ensure(pool, 2, SIZE)?;
                pool.destroy(&volume(2))
            },
            |pool| pool.destroy(&volume(2)).unwrap(),
            false,
        ),
    ]
}

fn verbs_of_use<B: Backing>(sealed: bool, freezes: bool) -> Vec<Verb<B>> {
    vec![
        verb(
            "attach",
            &[&Step::ATTACH, &[Step::OpenClear]],
            |pool| mount(pool, 1).map(drop),
            |pool| release(pool, 1),
            true,
        ),
        verb(
            "detach",
            &[&Step::DETACH],
            |pool| {
                mount(pool, 1)?;
                pool.detach(&volume(1), &machine(1))
            },
            |pool| release(pool, 1),
            false,
        ),
        verb(
            "snapshot",
            &[&Step::SNAPSHOT, only(freezes, &Step::Clone)],
            |pool| {
                mount(pool, 1)?;
                pool.snapshot(&volume(1), &snapshot()).map(drop)
            },
            |pool| pool.delete_snapshot(&snapshot()).unwrap(),
            true,
        ),
        verb(
            "extend",
            &[&Step::EXTEND, only(sealed, &Step::GrowClear)],
            |pool| {
                mount(pool, 1)?;
                let now = pool.list()?[0].size_bytes;
                let more = ByteSize(now + (8 << 20));
                pool.extend(&volume(1), more, Some(&key(1))).map(drop)
            },
            |pool| release(pool, 1),
            false,
        ),
        verb(
            "export",
            &[&[Step::Send]],
            |pool| {
                pool.snapshot(&volume(1), &snapshot())?;
                pool.export(&snapshot(), 0, Some(&key(1)), &mut std::io::sink())
            },
            |pool| pool.delete_snapshot(&snapshot()).unwrap(),
            false,
        ),
    ]
}

fn fork<B: Backing>(pool: &Pool<B>) -> Result<(), VolumeError> {
    let now = pool.list()?;
    let source = now
        .iter()
        .find(|report| report.volume == volume(1))
        .unwrap();
    pool.ensure(&NewVolume {
        id: &volume(2),
        size: ByteSize(source.size_bytes),
        source: Some(&VolumeSource::Volume { volume: volume(1) }),
        key: Some(&key(2)),
        source_key: Some(&key(1)),
    })
    .map(drop)
}

/// Of an empty snapshot's stream, which is short.
fn import<B: Backing>(pool: &Pool<B>) -> Result<(), VolumeError> {
    let path = pool.layout.root().join("stream");
    if !path.exists() {
        ensure(pool, 3, SIZE)?;
        pool.snapshot(&volume(3), &snapshot())?;
        let mut stream = Vec::new();
        pool.export(&snapshot(), 0, Some(&key(3)), &mut stream)?;
        pool.delete_snapshot(&snapshot())?;
        pool.destroy(&volume(3))?;
        fs::write(&path, stream).unwrap();
    }
    let mut stream = fs::File::open(path).unwrap();
    pool.import(
        &volume(2),
        SIZE,
        Some(&key(2)),
        &ImportPart::Whole,
        &mut stream,
    )
    .map(drop)
}

/// Tries everything over one pool.
struct Trial<'a, B> {
    /// The test, to start its process anew.
    test: &'a str,
    dir: PathBuf,
    open: &'a dyn Fn(&Path) -> Pool<B>,
}

impl<B: Backing> Trial<'_, B> {
    /// The process that is to die.
    fn die(&self, verb: &Verb<B>, step: Step) -> ! {
        let pool = (self.open)(&self.dir);
        let promised = pool.pool().unwrap().promised;
        pool.steps.fail_at(step, Fault::Error);
        let failed = (verb.run)(&pool).unwrap_err().to_string();
        assert!(failed.contains("injected"), "{failed}");
        if verb.undone {
            assert_eq!(pool.pool().unwrap().promised, promised);
        } else {
            (verb.reset)(&pool);
        }
        pool.steps.fail_at(step, Fault::Death);
        let went_on = (verb.run)(&pool);
        panic!("it went on: {went_on:?}");
    }

    fn recover(&self, verb: &Verb<B>, step: Step) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name(self.test), "--nocapture"])
            .env(CHILD_ENV, format!("{} {step:?}", verb.name))
            .env(DIR_ENV, &self.dir)
            .stdout(Stdio::null())
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        let at = format!("{} at {step:?}", verb.name);
        assert_eq!(output.status.signal(), Some(6), "{at}: {words}");

        // Asked again it is done; what was there before is there.
        let pool = (self.open)(&self.dir);
        (verb.run)(&pool).unwrap_or_else(|error| panic!("{at}: {error}"));
        (verb.reset)(&pool);
        let dir = mount(&pool, 1).unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(
            fs::read_to_string(dir.join("kept")).unwrap(),
            "contents",
            "{at}"
        );
        fs::write(dir.join("works"), [1; 8192]).unwrap();
        drop(dir);
        release(&pool, 1);
        let reports = pool.list().unwrap();
        let pool = pool.pool().unwrap();
        assert_eq!(reports.len(), 1, "{at}: {reports:?}");
        assert_eq!(pool.promised.0, reports[0].size_bytes, "{at}");
        let left = sh("dmsetup ls --target crypt; dmsetup ls --target thin; losetup -a");
        assert!(
            !left.contains("slipway") && !left.contains(".img"),
            "{at}: {left}"
        );
    }
}

/// `place` gives the pool's directory and what clears it away.
fn die_everywhere<B: Backing, G>(
    test: &str,
    place: impl FnOnce() -> (PathBuf, G),
    open: impl Fn(&Path) -> Pool<B>,
    verbs: &[Verb<B>],
) {
    let trial = |dir: PathBuf| Trial {
        test,
        dir,
        open: &open,
    };
    if let (Ok(job), Ok(dir)) = (std::env::var(CHILD_ENV), std::env::var(DIR_ENV)) {
        let (verb, step) = job.split_once(' ').unwrap();
        let verb = verbs.iter().find(|v| v.name == verb).unwrap();
        let step = verb
            .steps
            .iter()
            .find(|s| format!("{s:?}") == step)
            .unwrap();
        trial(dir.into()).die(verb, *step);
    }
    let (dir, _guard) = place();
    let pool = open(&dir);
    ensure(&pool, 1, SIZE).unwrap();
    fs::write(mount(&pool, 1).unwrap().join("kept"), "contents").unwrap();
    release(&pool, 1);
    drop(pool);
    let trial = trial(dir);
    for verb in verbs {
        for step in &verb.steps {
            let began = std::time::Instant::now();
            trial.recover(verb, *step);
            println!(
                "{} died at {step:?}: {} ms",
                verb.name,
                began.elapsed().as_millis()
            );
        }
    }
}

fn thin(encryption: Encryption) -> impl Fn(&Path) -> Pool<crate::lvm::ThinVolumes> {
    move |dir| open_thin(dir, encryption, 1.0, POOL_CAPACITY)
}

fn group() -> (PathBuf, Group) {
    let group = Group::new(768, 16);
    (group.path(), group)
}

#[test]
fn deaths_with_thin_volumes() {
    let test = "deaths::deaths_with_thin_volumes";
    with_device_mapper(test, || {
        die_everywhere(test, group, thin(Encryption::Off), &verbs(false, false));
    });
}

// In two, since it takes longest.
#[test]
fn deaths_that_make_encrypted_thin_volumes() {
    let test = "deaths::deaths_that_make_encrypted_thin_volumes";
    with_device_mapper(test, || {
        let verbs = verbs_of_making(true, true);
        die_everywhere(test, group, thin(Encryption::Required), &verbs);
    });
}

#[test]
fn deaths_that_use_encrypted_thin_volumes() {
    let test = "deaths::deaths_that_use_encrypted_thin_volumes";
    with_device_mapper(test, || {
        let verbs = verbs_of_use(true, true);
        die_everywhere(test, group, thin(Encryption::Required), &verbs);
    });
}

#[test]
fn deaths_with_encrypted_images() {
    let test = "deaths::deaths_with_encrypted_images";
    with_device_mapper(test, || {
        let place = || {
            let disk = on_disk();
            (disk.0.join("pool"), disk)
        };
        die_everywhere(test, place, open_files, &verbs(true, true));
    });
}
