//! Files that grow in steps, are stored, are thrown away, or are no layer of an export.

use super::*;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::thread::JoinHandle;

const EXPORT: &str = "moby/7/5ujlhqsk0bvr5hqzv4sxd1hv6";

struct World {
    root: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let world = World {
            root: tempfile::tempdir().expect("tempdir"),
        };
        std::fs::create_dir_all(world.ingest().join("one")).expect("mkdir");
        world.name(EXPORT);
        world
    }

    fn ingest(&self) -> PathBuf {
        self.root.path().join(INGESTS)
    }

    fn data(&self) -> PathBuf {
        self.ingest().join("one").join(DATA)
    }

    fn name(&self, name: &str) {
        std::fs::write(self.ingest().join("one").join(NAME), name).expect("write");
    }

    fn grow(&self, bytes: &[u8]) {
        let mut options = OpenOptions::new();
        let mut file = options
            .create(true)
            .append(true)
            .open(self.data())
            .expect("open");
        file.write_all(bytes).expect("write");
    }

    /// As containerd does when it has everything.
    fn store(&self) -> PathBuf {
        let blob = self.root.path().join("blob");
        std::fs::rename(self.data(), &blob).expect("rename");
        std::fs::remove_dir_all(self.ingest().join("one")).expect("remove");
        blob
    }

    fn found(&self) -> Option<Arc<GrowingBlob>> {
        assert_eq!(all(self.root.path()), ["one"]);
        found(self.root.path(), OsStr::new("one"))
    }
}

/// The beginning of a tar, long enough.
fn beginning() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..AHEAD_BLOB_BYTES).map(|n| n.to_le_bytes()[0]).collect();
    bytes[257..262].copy_from_slice(b"ustar");
    bytes
}

fn read(blob: &Arc<GrowingBlob>) -> JoinHandle<Result<Vec<u8>, SourceError>> {
    let mut reader = blob.open().expect("opens");
    std::thread::spawn(move || {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 100_000]);
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(all),
                count => all.extend_from_slice(&buffer[..count]),
            }
        }
    })
}

#[test]
fn a_layer_is_read_while_it_grows_and_is_the_one_that_is_stored() {
    let world = World::new();
    world.grow(&beginning());
    let blob = world.found().expect("a layer");
    let reading = read(&blob);
    world.grow(b"more");
    assert!(blob.is_growing());
    world.grow(b"and more");
    let stored = world.store();
    let all = reading.join().expect("no panic").expect("read");
    assert_eq!(all, std::fs::read(&stored).expect("read"));
    assert!(!blob.is_growing());

    let digest = Digest::of(&all);
    assert!(!blob.was_read_as(&digest), "nobody has computed it");
    assert!(blob.is_proved_by(&digest));
    assert!(blob.was_read_as(&digest));
    // Read again, it must be the same.
    let other = Digest::of(b"other");
    assert!(!blob.is_proved_by(&other) && !blob.was_read_as(&other));

    // By the file and not by what is in it.
    let place = Place::of_file(&std::fs::metadata(&stored).expect("stat"));
    assert_eq!(blob.place_key(), place.key());
    let copy = world.root.path().join("copy");
    std::fs::copy(&stored, &copy).expect("copy");
    let place = Place::of_file(&std::fs::metadata(&copy).expect("stat"));
    assert_ne!(blob.place_key(), place.key());
}

#[test]
fn what_is_thrown_away_or_given_up_is_no_layer() {
    let world = World::new();
    world.grow(&beginning());
    let thrown_away = world.found().expect("a layer");
    let reading = read(&thrown_away);
    std::fs::remove_file(world.data()).expect("remove");
    let error = reading.join().expect("no panic").expect_err("is gone");
    assert!(matches!(error, SourceError::Io { .. }), "{error}");

    // Another file of the same name is not it.
    world.grow(&beginning());
    assert!(!thrown_away.is_growing());
    let given_up = world.found().expect("a layer");
    let reading = read(&given_up);
    given_up.give_up();
    reading.join().expect("no panic").expect_err("is given up");
}

#[test]
fn only_uncompressed_layers_of_exports_are_found() {
    let world = World::new();
    world.grow(&beginning()[1..]);
    assert!(world.found().is_none(), "too short");
    world.grow(b"x");
    assert!(world.found().is_none(), "not a tar where one begins");
    std::fs::remove_file(world.data()).expect("remove");
    world.grow(&beginning());
    assert!(world.found().is_some());
    for other in [
        "moby/7/layer-sha256:9fc61961e71a23ab",
        "moby/7/5UJLHQSK0BVR5HQZV4SXD1HV6",
        "moby/7/",
        "",
    ] {
        world.name(other);
        assert!(world.found().is_none(), "{other}");
    }
}
