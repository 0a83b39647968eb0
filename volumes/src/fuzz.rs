//! What fuzzing calls: a function for each parser of foreign bytes, which panics when the parser breaks its word.
//! `loadtests/fuzz` runs them.

use crate::stream::{Header, Target, read_header, read_records, write};
use slipway_volume_stream::{Frame, Frames};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;

/// A target: takes any bytes.
pub type Function = fn(&[u8]);

/// Name and function of each target.
pub const TARGETS: &[(&str, Function)] = &[
    ("volume_file_name", crate::file::fuzz_name),
    ("volume_lvm_report", crate::lvm::fuzz_report),
    ("volume_stream", stream),
    ("volume_stream_round", stream_round),
];

/// Largest volume that is tried.
const SIZE_MAX: u64 = 4 << 20;

fn made<T>(result: io::Result<T>) -> T {
    match result {
        Ok(made) => made,
        Err(error) => panic!("cannot be set up: {error}"),
    }
}

fn empty(size: u64) -> File {
    let file = made(tempfile::tempfile());
    made(file.set_len(size));
    file
}

/// A stream: nothing is written outside the volume, and what is told durable only grows. Taken in pieces, it has the same end.
fn stream(bytes: &[u8]) {
    let whole = frames(bytes, 7);
    assert_eq!(whole, frames(bytes, bytes.len().max(1)), "pieces matter");
    let mut from = bytes;
    let Ok(header) = read_header(&mut from) else {
        return;
    };
    if header.size > SIZE_MAX || header.start > header.size {
        return;
    }
    let file = empty(header.size);
    let mut told = 0;
    let mut durable = |at| {
        assert!(at >= told && at <= header.size);
        told = at;
        Ok(())
    };
    let mut target = Target {
        file: &file,
        zeroed: true,
        sync_every: 4096,
        durable: &mut durable,
    };
    let read = read_records(header, &mut from, &mut target);
    assert_eq!(made(file.metadata()).len(), header.size);
    if read.is_ok() {
        assert_eq!(told, header.size);
    }
    assert!(
        !whole || read.is_ok(),
        "what is kept as whole is written down"
    );
}

/// Whether a stream is whole, taken in pieces of this size.
fn frames(bytes: &[u8], piece: usize) -> bool {
    let mut frames = Frames::default();
    let (mut at, mut ended) = (0, false);
    for piece in bytes.chunks(piece) {
        frames.push(piece);
        loop {
            match frames.next_frame() {
                Ok(None) => break,
                Ok(Some(Frame::Header(header))) => at = header.start,
                Ok(Some(Frame::Record(record))) => {
                    assert!(record.offset() >= at && record.end() >= record.offset());
                    at = record.end();
                    if record.check().is_err() {
                        return false;
                    }
                }
                Ok(Some(Frame::End)) => ended = true,
                Err(_) => return false,
            }
        }
    }
    ended
}

/// Pieces of a volume, each after its place and its length: what is written as a stream is read as what it was, from any start.
fn stream_round(bytes: &[u8]) {
    let Some((start, mut rest)) = bytes.split_first() else {
        return;
    };
    let file = empty(SIZE_MAX);
    while let [high, low, length, more @ ..] = rest {
        let at = u64::from(u16::from_be_bytes([*high, *low])) * (SIZE_MAX >> 16);
        let piece = &more[..more.len().min(usize::from(*length))];
        if at + piece.len() as u64 <= SIZE_MAX {
            made(file.write_all_at(piece, at));
        }
        rest = &more[piece.len()..];
    }
    let header = Header {
        difference: false,
        foreign: false,
        sealed: false,
        size: SIZE_MAX,
        start: u64::from(*start) * (SIZE_MAX >> 8),
    };
    let mut written = Vec::new();
    made(write(&file, None, header, &mut written));
    let copy = empty(SIZE_MAX);
    let before = usize::try_from(header.start).unwrap_or(usize::MAX);
    made((&copy).write_all(&contents(&file)[..before]));
    let mut from = &written[..];
    assert!(matches!(read_header(&mut from), Ok(read) if read == header));
    let mut target = Target {
        file: &copy,
        zeroed: true,
        sync_every: SIZE_MAX,
        durable: &mut |_| Ok(()),
    };
    assert!(read_records(header, &mut from, &mut target).is_ok());
    assert!(contents(&file) == contents(&copy));
}

fn contents(mut file: &File) -> Vec<u8> {
    let mut all = Vec::new();
    made(io::Seek::rewind(&mut file));
    made(file.read_to_end(&mut all));
    all
}
