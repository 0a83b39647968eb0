//! Records that grow in steps, are cut, go on behind their end, or become another layer's.

use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::write::GzEncoder;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::thread::JoinHandle;

const CONTENT: &[u8] = b"what is in the file";

struct World {
    base: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let base = tempfile::tempdir().expect("tempdir");
        for directory in ["diff", "other"] {
            std::fs::create_dir(base.path().join(directory)).expect("mkdir");
        }
        std::fs::write(base.path().join("diff/a"), CONTENT).expect("write");
        std::fs::write(base.path().join("other/a"), b"something else, it is").expect("write");
        std::fs::write(base.path().join("growing"), b"").expect("write");
        World { base }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn layer(&self) -> Arc<GrowingLayer> {
        let record = Record::open(&self.path("growing")).expect("opens");
        Arc::new(GrowingLayer::new(Arc::new(record), self.path("diff")))
    }

    fn grow(&self, bytes: &[u8]) {
        let mut options = OpenOptions::new();
        let mut file = options
            .append(true)
            .open(self.path("growing"))
            .expect("opens");
        file.write_all(bytes).expect("write");
    }

    /// The layer as dockerd has it in the end.
    fn finished(&self, directory: &str, record: &[u8]) -> Finished {
        let path = self.path("record");
        std::fs::write(&path, record).expect("write");
        Finished {
            directory: self.path(directory),
            record: path,
            diff_id: Digest::of(b""),
        }
    }
}

#[derive(Debug)]
struct Finished {
    directory: PathBuf,
    record: PathBuf,
    diff_id: Digest,
}

impl LayerSource for Finished {
    fn diff_id(&self) -> &Digest {
        &self.diff_id
    }

    fn size_hint(&self) -> Option<u64> {
        None
    }

    fn place(&self) -> Option<Place> {
        Some(Place::Overlay {
            directory: self.directory.clone(),
            record: self.record.clone(),
        })
    }

    fn open(&self) -> Result<Box<dyn LayerReader>, SourceError> {
        unreachable!("it is compared only")
    }
}

/// The record of one file `a`, in one gzip member.
fn record(content: &[u8]) -> Vec<u8> {
    let mut sum = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64GoIso);
    sum.update(content);
    let sum = STANDARD.encode(sum.finalize().to_be_bytes());
    let (head, length) = (STANDARD.encode(b"head "), content.len());
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    write!(
        gzip,
        "{{\"type\":2,\"payload\":\"{head}\",\"position\":0}}\n{{\"type\":1,\"name\":\"a\",\"size\":{length},\"payload\":\"{sum}\",\"position\":1}}\n"
    )
    .expect("write");
    gzip.finish().expect("finish")
}

fn read(layer: &Arc<GrowingLayer>) -> JoinHandle<Result<Vec<u8>, SourceError>> {
    let layer = layer.clone();
    std::thread::spawn(move || {
        let (mut reader, mut all, mut buffer) = (layer.open()?, Vec::new(), [0; 7]);
        assert!(reader.proves_itself());
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(all),
                count => all.extend_from_slice(&buffer[..count]),
            }
        }
    })
}

#[test]
fn a_record_is_read_as_it_grows_and_any_number_of_times() {
    let (world, bytes) = (World::new(), record(CONTENT));
    let layer = world.layer();
    let reading = read(&layer);
    for byte in &bytes {
        assert!(!layer.was_read_as(layer.diff_id()));
        world.grow(&[*byte]);
        std::thread::sleep(RECORD_LOOK / 4);
    }
    let tar = reading.join().expect("thread").expect("reads");
    assert_eq!(tar, [b"head ", CONTENT].concat());
    // dockerd removes it when the layer is registered.
    std::fs::remove_file(world.path("growing")).expect("remove");
    assert_eq!(read(&layer).join().expect("thread").expect("reads"), tar);
    assert!(layer.was_read_as(layer.diff_id()));
    assert!(layer.is(&world.finished("diff", &bytes)));
}

#[test]
fn only_the_same_record_in_the_same_directory_is_the_layer() {
    let (world, bytes) = (World::new(), record(CONTENT));
    let layer = world.layer();
    world.grow(&bytes);
    read(&layer).join().expect("thread").expect("reads");
    assert!(layer.is(&world.finished("diff", &bytes)));
    assert!(!layer.is(&world.finished("other", &bytes)));
    let mut other = bytes.clone();
    other[4] ^= 1;
    for other in [
        &other[..],
        &bytes[..bytes.len() - 1],
        &[&bytes[..], b"x"].concat(),
        b"",
    ] {
        assert!(!layer.is(&world.finished("diff", other)), "{other:?}");
    }
    // A second member was never read.
    world.grow(&bytes);
    assert!(!layer.was_read_as(layer.diff_id()));
    assert!(!layer.is(&world.finished("diff", &bytes)));
}

#[test]
fn a_record_that_stays_cut_ends_when_it_is_given_up() {
    let (world, bytes) = (World::new(), record(CONTENT));
    let layer = world.layer();
    world.grow(&bytes[..bytes.len() - 3]);
    let reading = read(&layer);
    layer.give_up();
    let error = reading.join().expect("thread").expect_err("never whole");
    assert!(matches!(error, SourceError::Io { .. }), "{error:?}");
    assert!(!layer.was_read_as(layer.diff_id()));
}

#[test]
fn a_directory_that_is_not_the_records_is_found_out() {
    let (world, bytes) = (World::new(), record(b"another content"));
    let layer = world.layer();
    world.grow(&bytes);
    let error = read(&layer).join().expect("thread").expect_err("size");
    assert!(
        matches!(error, SourceError::FileChanged { .. }),
        "{error:?}"
    );
    // The same size and another content.
    let changed: Vec<u8> = CONTENT.iter().rev().copied().collect();
    std::fs::write(world.path("diff/a"), changed).expect("write");
    std::fs::write(world.path("growing"), record(CONTENT)).expect("write");
    let error = read(&world.layer())
        .join()
        .expect("thread")
        .expect_err("checksum");
    assert!(
        matches!(error, SourceError::FileChanged { .. }),
        "{error:?}"
    );
}

#[test]
fn the_first_files_of_what_is_there() {
    let (world, bytes) = (World::new(), record(CONTENT));
    let record = Arc::new(Record::open(&world.path("growing")).expect("opens"));
    assert_eq!(record.first_files(), []);
    world.grow(&bytes[..bytes.len() / 3]);
    assert!(record.first_files().len() <= 1);
    world.grow(&bytes[bytes.len() / 3..]);
    assert_eq!(
        record.first_files(),
        [(b"a".to_vec(), CONTENT.len() as u64)]
    );
}
