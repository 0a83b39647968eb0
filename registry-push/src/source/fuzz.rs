//! The layer sources' part of [`crate::fuzz`].

use super::blobs::Blobs;
use super::overlay_layer::OverlayLayer;
use super::tar_split::{Entry, TarSplit};
use super::{ImageSource, LayerReader, LayerSource, Layout, Platform, SourceError};
use crate::digest::Digest;
use crate::limits::{ARCHIVE_ENTRIES, CONFIG_BYTES, LAYERS};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm::Crc64GoIso;
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::Path;

/// As much of a layer is read.
const READ_BYTES: usize = 1 << 20;
const TAR_BLOCK: usize = 512;

/// Contents of the layer's files.
const SHORT: [u8; 5] = *b"hello";
static LONG: [u8; 70_000] = [7; 70_000];

fn made<T>(result: io::Result<T>) -> T {
    match result {
        Ok(made) => made,
        Err(error) => panic!("cannot be set up: {error}"),
    }
}

fn read(reader: &mut dyn LayerReader) -> Result<Vec<u8>, SourceError> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 4096]);
    while all.len() < READ_BYTES {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        all.extend_from_slice(&buffer[..count]);
    }
    Ok(all)
}

/// A tar-split record. A line `F name=size` stands for a file with the checksum of the layer's file of that size, `S bytes` for a segment; others are taken as they are. The first byte `z`
/// says that it is in gzip already.
pub(crate) fn layer_record(bytes: &[u8]) {
    thread_local! {
        static ROOT: (tempfile::TempDir, [u8; 16]) = made(layer());
    }
    let outside = ROOT.with(|(_, outside)| *outside);
    let (record, packed) = match bytes.strip_prefix(b"z") {
        Some(packed) => (Vec::new(), Some(packed)),
        None => (record_of(bytes, &outside), None),
    };
    let mut split = TarSplit::new(&record[..], Path::new("record"));
    let mut segments = 0;
    while let Ok(Some(entry)) = split.next_entry() {
        match entry {
            Entry::Segment(bytes) => segments += bytes.len(),
            Entry::File { size, .. } => assert!(size > 0),
        }
    }
    assert!(segments <= record.len());
    ROOT.with(|(root, _)| {
        let path = root.path().join("record.gz");
        let mut file = made(File::create(&path));
        match packed {
            Some(packed) => made(file.write_all(packed)),
            None => {
                let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::none());
                made(gzip.write_all(&record));
                made(gzip.finish());
            }
        }
        let layer = OverlayLayer {
            diff_id: Digest::of(b""),
            size_hint: None,
            directory: root.path().join("diff"),
            record: path,
        };
        let Ok(mut reader) = layer.open() else {
            panic!("the layer is not there");
        };
        let Ok(all) = read(&mut *reader) else {
            return;
        };
        let leaked = all.windows(outside.len()).any(|part| part == &outside[..]);
        assert!(!leaked, "a file outside the layer was read");
    });
}

fn record_of(bytes: &[u8], outside: &[u8]) -> Vec<u8> {
    let checksum = |size: &str| {
        let contents = [&SHORT[..], &LONG[..], outside];
        let content = contents
            .into_iter()
            .find(|content| size == content.len().to_string());
        let sum = content.map_or(0, |content| crc_fast::checksum(Crc64GoIso, content));
        STANDARD.encode(sum.to_be_bytes())
    };
    let mut record = Vec::new();
    for (position, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let text = match line {
            [b'F', b' ', rest @ ..] => {
                let at = rest.iter().rposition(|byte| *byte == b'=');
                let (name, size) = rest.split_at(at.unwrap_or(rest.len()));
                let size = String::from_utf8_lossy(size.get(1..).unwrap_or(b"1"));
                let name = STANDARD.encode(name);
                let checksum = checksum(&size);
                format!(
                    r#"{{"type":1,"name_raw":"{name}","size":{size},"payload":"{checksum}","position":{position}}}"#
                )
            }
            [b'S', b' ', rest @ ..] => {
                let payload = STANDARD.encode(rest);
                format!(r#"{{"type":2,"payload":"{payload}","position":{position}}}"#)
            }
            other => String::from_utf8_lossy(other).into_owned(),
        };
        record.extend_from_slice(text.as_bytes());
        record.push(b'\n');
    }
    record
}

/// A directory with a layer in it, and what is in the file beside the layer: nothing that a record could say by itself.
fn layer() -> io::Result<(tempfile::TempDir, [u8; 16])> {
    let root = tempfile::tempdir()?;
    let mut outside = [0; 16];
    getrandom::fill(&mut outside).map_err(io::Error::other)?;
    let at = |path: &str| root.path().join(path);
    std::fs::create_dir_all(at("diff/d/e"))?;
    std::fs::write(at("outside"), outside)?;
    std::fs::write(at("diff/f"), SHORT)?;
    std::fs::write(at("diff/d/e/g"), LONG)?;
    File::create(at("diff/sparse"))?.set_len(10_000_000_000)?;
    std::fs::hard_link(at("diff/f"), at("diff/hard"))?;
    for (target, name) in [
        ("../outside", "diff/up"),
        ("..", "diff/parent"),
        ("/d/e", "diff/inside"),
        ("loop", "diff/loop"),
        ("/proc/self/root", "diff/root"),
        ("/dev/zero", "diff/zero"),
    ] {
        std::os::unix::fs::symlink(target, at(name))?;
    }
    let pipe = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("diff/pipe"),
        pipe,
        rustix::fs::Mode::RWXU,
        0,
    )?;
    Ok((root, outside))
}

/// A tar, whose checksums are put right: every entry lies in it and is read or refused.
pub(crate) fn archive_tar(bytes: &[u8]) {
    let mut tar = bytes.to_vec();
    for block in tar.chunks_exact_mut(TAR_BLOCK) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let file = file_of(&tar);
    if let Ok(found) = Blobs::tar(made(file.try_clone()), Path::new("a.tar")) {
        let names = found.names();
        assert!(names.len() <= ARCHIVE_ENTRIES.min(tar.len() / TAR_BLOCK));
        let blobs = Blobs::Tar(found);
        for name in names {
            assert!(name.split('/').all(|part| !matches!(part, "" | "." | "..")));
            if let Ok(Some(content)) = blobs.small(&name, CONFIG_BYTES) {
                assert!(content.len() <= tar.len(), "{name}");
            }
        }
    }
    look_into(Layout::from_file(file, Path::new("a.tar")));
}

/// Files of a layout, separated by NUL, the last one being its list: `manifest.json` if it begins with `[`, else `index.json`.
/// `@0` in one stands for the digest of the first, and so on; the digit alone after `#` for its hexadecimal digits.
pub(crate) fn archive_json(bytes: &[u8]) {
    let mut digests: Vec<Digest> = Vec::new();
    let mut archive = tar::Builder::new(Vec::new());
    let mut put = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        made(archive.append_data(&mut header, name, content));
    };
    let parts: Vec<&[u8]> = bytes.split(|byte| *byte == 0).take(10).collect();
    for (at, part) in parts.iter().enumerate() {
        let mut text = String::from_utf8_lossy(part).into_owned();
        for (n, digest) in digests.iter().enumerate() {
            text = text
                .replace(&format!("@{n}"), digest.as_str())
                .replace(&format!("#{n}"), digest.hex());
        }
        let digest = Digest::of(text.as_bytes());
        if at + 1 == parts.len() {
            let is_list = text.starts_with('[');
            put(
                if is_list {
                    "manifest.json"
                } else {
                    "index.json"
                },
                text.as_bytes(),
            );
        } else {
            put(&format!("blobs/sha256/{}", digest.hex()), text.as_bytes());
        }
        digests.push(digest);
    }
    let tar = made(archive.into_inner());
    look_into(Layout::from_file(file_of(&tar), Path::new("a.tar")));
}

fn file_of(bytes: &[u8]) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(made(
        rustix::fs::memfd_create("fuzz", flags).map_err(io::Error::from),
    ));
    made(file.write_all(bytes));
    made(file.rewind());
    file
}

fn look_into(layout: Result<Layout, SourceError>) {
    let Ok(layout) = layout else { return };
    for name in [None, Some("app:v1")] {
        if let Ok(image) = layout.image(name, &Platform::default()) {
            is_sound(&image);
        }
    }
}

fn is_sound(image: &ImageSource) {
    assert!(image.layers.len() <= LAYERS);
    assert_eq!(image.diff_ids().count(), image.layers.len());
    for layer in &image.layers {
        let _ = (layer.size_hint(), layer.packed());
        if let Ok(mut reader) = layer.open() {
            let _ = read(&mut *reader);
        }
    }
}
