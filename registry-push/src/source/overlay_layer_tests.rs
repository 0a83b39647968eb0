//! Layers put together from a directory and a record made here, with everything that a tar can hold, and with records that lie.

use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

const TEN_GB: u64 = 10_000_000_000;

/// Their checksum, by squaring the matrix of one zero byte.
const TEN_GB_OF_ZEROS: u64 = 0x10ba_2ffc_4aaf_995c;

struct Layer {
    base: tempfile::TempDir,
    lines: String,
    position: u64,
}

impl Layer {
    fn new() -> Layer {
        let base = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(base.path().join("diff")).expect("mkdir");
        Layer {
            base,
            lines: String::new(),
            position: 0,
        }
    }

    fn line(&mut self, fields: &str) {
        let position = self.position;
        self.lines
            .push_str(&format!("{{{fields},\"position\":{position}}}\n"));
        self.position += 1;
    }

    fn segment(&mut self, bytes: &[u8]) {
        self.line(&format!(
            r#""type":2,"payload":"{}""#,
            STANDARD.encode(bytes)
        ));
    }

    fn content(&mut self, name: &[u8], size: u64, checksum: u64) {
        let name = STANDARD.encode(name);
        let checksum = STANDARD.encode(checksum.to_be_bytes());
        self.line(&format!(
            r#""type":1,"name_raw":"{name}","size":{size},"payload":"{checksum}""#
        ));
    }

    fn file(&self, name: &[u8]) -> std::path::PathBuf {
        let path = self.base.path().join("diff");
        let path = path.join(std::ffi::OsStr::from_bytes(name));
        std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        path
    }

    /// As dockerd records a tar: headers and padding as they are, contents by name, in the directory.
    fn of_tar(tar: &[u8]) -> Layer {
        let mut layer = Layer::new();
        let mut archive = tar::Archive::new(tar);
        let mut at = 0;
        for entry in archive.entries().expect("entries").raw(true) {
            let mut entry = entry.expect("entry");
            let kind = entry.header().entry_type();
            if !kind.is_file() || entry.size() == 0 {
                continue;
            }
            let (start, size) = (entry.raw_file_position(), entry.size());
            let name = entry.path_bytes().into_owned();
            let mut content = Vec::new();
            std::io::copy(&mut entry, &mut content).expect("content");
            std::fs::write(layer.file(&name), &content).expect("write");
            layer.segment(&tar[at..usize::try_from(start).expect("small")]);
            layer.content(&name, size, iso_checksum(&content));
            at = usize::try_from(start + size).expect("small");
        }
        layer.segment(&tar[at..]);
        layer
    }

    fn open(&self) -> Result<OverlayReader<Lines>, SourceError> {
        let record = self.base.path().join("tar-split.json.gz");
        let file = File::create(&record).expect("create");
        let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        gzip.write_all(self.lines.as_bytes()).expect("write");
        gzip.finish().expect("finish");
        OverlayReader::open(&self.base.path().join("diff"), &record)
    }

    fn read(&self) -> Result<Vec<u8>, SourceError> {
        read_all(self.open()?)
    }
}

fn read_all(mut reader: OverlayReader<Lines>) -> Result<Vec<u8>, SourceError> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 7001]);
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            return Ok(all);
        }
        all.extend_from_slice(&buffer[..count]);
    }
}

/// By another implementation than the one under test.
fn iso_checksum(content: &[u8]) -> u64 {
    let by_bit = |sum: u64, _| (sum >> 1) ^ ((sum & 1) * 0xd800_0000_0000_0000);
    !content.iter().fold(u64::MAX, |sum, byte| {
        (0..8).fold(sum ^ u64::from(*byte), by_bit)
    })
}

/// A tar of everything: long names, PAX headers with attributes, links, devices, names that are not UTF-8, an old sparse header.
fn tar_of_everything() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut put = |name: &[u8], kind: tar::EntryType, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o4755);
        let old = header.as_old_mut();
        let length = name.len().min(old.name.len());
        old.name[..length].copy_from_slice(&name[..length]);
        header.set_cksum();
        builder.append(&header, content).expect("append");
    };
    put(b"plain", tar::EntryType::Regular, b"plain");
    put(b"empty", tar::EntryType::Regular, b"");
    put(b"dir/", tar::EntryType::Directory, b"");
    put(b"dir/caf\xe9", tar::EntryType::Regular, b"not utf-8");
    put(b"device", tar::EntryType::Char, b"");
    put(b"pipe", tar::EntryType::Fifo, b"");
    put(b"odd\nname \"\\", tar::EntryType::Regular, &[9; 513]);
    put(b"exactly-a-block", tar::EntryType::Regular, &[8; 512]);
    let attributes = b"30 SCHILY.xattr.user.a=\x00\xff\x01bcdef\n";
    put(b"PaxHeaders/x", tar::EntryType::XHeader, attributes);
    put(b"with-attributes", tar::EntryType::Regular, b"attributed");
    put(
        b"PaxHeaders/g",
        tar::EntryType::XGlobalHeader,
        b"19 comment=a comment\n",
    );
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    builder
        .append_data(&mut header, long, &b"long"[..])
        .expect("append");
    for (kind, name, target) in [
        (tar::EntryType::Symlink, "link", "/etc/passwd"),
        (tar::EntryType::Link, "hard", "plain"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder
            .append_link(&mut header, name, target)
            .expect("append");
    }
    let mut tar = builder.into_inner().expect("finish");
    // Some tools pad the end; dockerd keeps that too.
    tar.extend_from_slice(&[0; 4096]);
    tar
}

#[test]
fn a_tar_of_everything_is_put_together_byte_for_byte() {
    let tar = tar_of_everything();
    let layer = Layer::of_tar(&tar);
    assert!(layer.position > 10);
    assert!(layer.read().expect("reads") == tar);
}

#[test]
fn a_single_file_of_ten_gigabytes_is_read_to_its_end() {
    let mut layer = Layer::new();
    let file = File::create(layer.file(b"sparse")).expect("create");
    file.set_len(TEN_GB).expect("sparse");
    layer.segment(&[1; 512]);
    layer.content(b"sparse", TEN_GB, TEN_GB_OF_ZEROS);
    layer.segment(&[2; 1024]);
    let mut reader = layer.open().expect("opens");
    let (mut total, mut buffer) = (0, vec![0; 4 << 20]);
    loop {
        let count = reader.read(&mut buffer).expect("reads") as u64;
        if count == 0 {
            break;
        }
        total += count;
    }
    assert_eq!(total, 512 + TEN_GB + 1024);
}

#[test]
fn content_that_changed_is_found() {
    for (content, is_right) in [
        (&b"plain"[..], true),
        (b"plaim", false),
        (b"plain more", false),
        (b"", false),
    ] {
        let mut layer = Layer::new();
        std::fs::write(layer.file(b"file"), content).expect("write");
        layer.content(b"file", 5, iso_checksum(b"plain"));
        let read = layer.read();
        let is_changed = matches!(read, Err(SourceError::FileChanged { .. }));
        assert!(
            if is_right { read.is_ok() } else { is_changed },
            "{content:?}: {read:?}"
        );
    }
}

#[test]
fn a_record_that_changed_is_found() {
    let tar = tar_of_everything();
    let layer = Layer::of_tar(&tar);
    drop(layer.open().expect("opens"));
    let record = layer.base.path().join("tar-split.json.gz");
    let whole = std::fs::read(&record).expect("reads");
    // Any bit of the compressed record, its checksum included; the gzip header has fields that mean nothing.
    for at in 10..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 8);
        std::fs::write(&record, &changed).expect("write");
        let read = OverlayReader::open(&layer.base.path().join("diff"), &record).and_then(read_all);
        // Bits that only fill the last byte up mean nothing.
        assert!(
            read.is_err() || read.is_ok_and(|read| read == tar),
            "byte {at}"
        );
    }
}

#[test]
fn a_record_that_lies_gives_an_error() {
    for (name, size, is_escape) in [
        (&b"../../etc/passwd"[..], 1, true),
        (b"none", 1, false),
        (b"plain", 4, false),
        (b"plain", u64::MAX >> 1, false),
        (b"plain/below", 5, false),
        (b"dir", 5, false),
        (b"link", 5, false),
    ] {
        let mut layer = Layer::new();
        std::fs::write(layer.file(b"plain"), b"plain").expect("write");
        std::fs::create_dir(layer.file(b"dir")).expect("mkdir");
        std::os::unix::fs::symlink("/etc/passwd", layer.file(b"link")).expect("link");
        layer.content(name, size, iso_checksum(b"plain"));
        let error = layer.read().expect_err("refused");
        let shown = String::from_utf8_lossy(name);
        let is_right = if is_escape {
            matches!(error, SourceError::Escapes { .. })
        } else {
            matches!(error, SourceError::FileChanged { .. })
        };
        assert!(is_right, "{shown}: {error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_files_are_put_together(files in proptest::collection::btree_map(
        "[^/\u{0}]{1,40}", proptest::collection::vec(any::<u8>(), 0..3000), 0..12,
    )) {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files.iter().filter(|(name, _)| *name != "." && *name != "..") {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content.as_slice()).expect("append");
        }
        let tar = builder.into_inner().expect("finish");
        prop_assert!(Layer::of_tar(&tar).read().expect("reads") == tar);
    }

    #[test]
    fn a_changed_record_ends_in_bytes_or_an_error(position in 0..4000_usize, byte in any::<u8>()) {
        let tar = tar_of_everything();
        let mut layer = Layer::of_tar(&tar);
        let mut lines = std::mem::take(&mut layer.lines).into_bytes();
        let position = position % lines.len();
        lines[position] = byte;
        layer.lines = String::from_utf8_lossy(&lines).into_owned();
        if let Ok(read) = layer.read() {
            prop_assert!(read.len() <= 2 * tar.len());
        }
    }
}
