//! A volume that arrives in two parts, and a process that dies in between.

use super::*;
use slipway_core::host_api::ImportPart;

const TEST: &str = "arrival::a_volume_that_arrives_in_two_parts_survives_a_death_at_each_step";

fn later() -> SnapshotId {
    SnapshotId::from_entropy([7; 10])
}

/// A volume with two snapshots, as the streams of the first and of what differs.
fn streams(driver: &Pool<Images>) -> (Vec<u8>, Vec<u8>) {
    ensure(driver, SIZE).unwrap();
    for (snapshot, word) in [(snapshot(), "first"), (later(), "second")] {
        let dir = attach(driver, 1).unwrap();
        fs::write(dir.join("word"), word).unwrap();
        drop(dir);
        driver.detach(&volume(), &machine(1)).unwrap();
        driver.snapshot(&volume(), &snapshot).unwrap();
    }
    let (mut base, mut difference) = (Vec::new(), Vec::new());
    driver.export(&snapshot(), 0, None, &mut base).unwrap();
    driver
        .export_difference(&snapshot(), &later(), &mut difference)
        .unwrap();
    (base, difference)
}

fn import(
    driver: &Pool<Images>,
    (base, difference): (&[u8], &[u8]),
    between: impl FnOnce(&Pool<Images>),
) -> Result<VolumeReport, VolumeError> {
    let part =
        |arrival, mut from: &[u8]| driver.import(&restored(), SIZE, None, &arrival, &mut from);
    let begun = part(
        ImportPart::Base {
            snapshot: snapshot(),
        },
        base,
    )?;
    if let Some(report) = begun {
        return Ok(report);
    }
    between(driver);
    let whole = ImportPart::Difference {
        base: snapshot(),
        snapshot: later(),
    };
    Ok(part(whole, difference)?.unwrap())
}

#[test]
fn a_volume_that_arrives_in_two_parts_survives_a_death_at_each_step() {
    let file = |pool: &Path, name: &str| pool.join(name);
    if let Ok(job) = std::env::var(CHILD_ENV) {
        let [pool, part, step] = job.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{job}")
        };
        let pool = Path::new(pool);
        let read = |name| fs::read(file(pool, name)).unwrap();
        let step = Step::IMPORT.into_iter().find(|s| format!("{s:?}") == step);
        let driver = open(pool);
        let die = |driver: &Pool<Images>| fail_at(driver, step.unwrap(), Fault::Death);
        if part == "base" {
            die(&driver);
        }
        let streams = (&read("base")[..], &read("difference")[..]);
        let went_on = import(&driver, streams, die);
        panic!("it should have died before: {went_on:?}");
    }
    let base = [Step::Reserve, Step::Receive];
    let difference = [Step::Receive, Step::Publish, Step::Settle];
    let places = base.map(|step| ("base", step)).into_iter();
    for (part, step) in places.chain(difference.map(|step| ("difference", step))) {
        let Some(pool) = TestPool::new() else { return };
        let driver = pool.open();
        let streams = streams(&driver);
        drop(driver);
        for (name, stream) in [("base", &streams.0), ("difference", &streams.1)] {
            fs::write(file(&pool.path(), name), stream).unwrap();
        }
        let job = format!("{} {part} {step:?}", pool.path().display());
        let output = child(TEST, &job).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), None, "{part} {step:?}: {words}");

        let driver = pool.open();
        import(&driver, (&streams.0, &streams.1), |_| {}).unwrap();
        let dir = driver
            .attach(&restored(), &machine(2), AttachAs::Mount, None)
            .unwrap();
        let word = fs::read_to_string(dir.path().join("word")).unwrap();
        assert_eq!(word, "second", "{part} {step:?}");
        drop(dir);
        driver.detach(&restored(), &machine(2)).unwrap();
        driver.destroy(&restored()).unwrap();
        driver.destroy(&volume()).unwrap();
        for snapshot in [snapshot(), later()] {
            driver.delete_snapshot(&snapshot).unwrap();
        }
        assert_eq!(driver.pool().unwrap().promised, ByteSize(0), "{step:?}");
    }
}
