//! What one snapshot has that another has not, as a stream ([`crate::stream`]): a transfer of a volume in use sends all of it first, and at
//! the end only what has changed since.
//!
//! Blocks are compared by what they hold, so it works on whatever they lie; where nothing was ever stored, in neither, nothing is read.
//!
//! Must not know: snapshots, devices.

use crate::stream::{Header, next_data};
use slipway_volume_stream::limits::RECORD_BYTES;
use slipway_volume_stream::{RECORD, Records};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// What is sent where a byte differs: a file system changes some bytes here and there.
const CHUNK_BYTES: usize = 64 << 10;

/// Bytes that one side of a comparison has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Side<'a> {
    /// What to read.
    pub(crate) file: &'a File,
    /// How much of it there is. Beyond it reads as zeros.
    pub(crate) size: u64,
}

impl Side<'_> {
    fn next_data(&self, at: u64) -> io::Result<u64> {
        Ok(next_data(self.file, at, self.size)?.unwrap_or(u64::MAX))
    }

    fn read(&self, contents: &mut [u8], at: u64) -> io::Result<()> {
        let there = self.size.saturating_sub(at).min(contents.len() as u64);
        let there = usize::try_from(there).map_err(io::Error::other)?;
        self.file.read_exact_at(&mut contents[..there], at)?;
        contents[there..].fill(0);
        Ok(())
    }
}

/// Writes what `now` has and `base` has not, so that whoever has `base` gets `now`. `sealed`: both are encrypted, as they are on disk;
/// `foreign`: see [`Header::foreign`].
///
/// # Errors
/// What reading or writing said.
pub(crate) fn write(
    base: Side<'_>,
    now: Side<'_>,
    sealed: bool,
    foreign: bool,
    to: &mut dyn Write,
) -> io::Result<()> {
    let header = Header {
        sealed,
        difference: true,
        foreign,
        size: now.size,
        start: 0,
    };
    let mut records = Records::begin(header, to)?;
    let mut old = vec![0; RECORD_BYTES];
    let mut new = vec![0; RECORD_BYTES];
    let mut at = 0;
    while at < now.size {
        let next = base.next_data(at)?.min(now.next_data(at)?);
        if next >= now.size {
            break;
        }
        at = next - next % RECORD;
        let length = usize::try_from(RECORD.min(now.size - at)).map_err(io::Error::other)?;
        base.read(&mut old[..length], at)?;
        now.read(&mut new[..length], at)?;
        for run in runs(&old[..length], &new[..length]) {
            records.write(&new[run.clone()], at + run.start as u64)?;
        }
        at += length as u64;
    }
    records.end()
}

/// Where two records of the same length differ, in whole chunks.
fn runs(old: &[u8], new: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let chunks = old.chunks(CHUNK_BYTES).zip(new.chunks(CHUNK_BYTES));
    for (number, (old, new)) in chunks.enumerate() {
        let start = number * CHUNK_BYTES;
        match runs.last_mut() {
            _ if old == new => {}
            Some(last) if last.end == start => last.end = start + new.len(),
            Some(_) | None => runs.push(start..start + new.len()),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{Target, read_header, read_records};

    fn file(size: u64, parts: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    fn contents(file: &File, size: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(size).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn blocks(file: &File) -> u64 {
        use std::os::unix::fs::MetadataExt;
        file.metadata().unwrap().blocks()
    }

    /// Takes a difference into a copy of its base.
    fn taken(stream: &[u8], copy: &File) {
        let mut stream = stream;
        let header = read_header(&mut stream).unwrap();
        assert!(header.difference);
        let mut target = Target {
            file: copy,
            zeroed: true,
            sync_every: u64::MAX,
            durable: &mut |_| Ok(()),
        };
        read_records(header, &mut stream, &mut target).unwrap();
    }

    #[test]
    fn the_difference_makes_the_one_of_the_other_and_holds_nothing_else() {
        const SIZE: u64 = 12 << 20;
        let base: [(u64, &[u8]); 3] = [
            (0, b"stays"),
            (3 << 20, &[7; 2 << 20]),
            ((9 << 20) - 10, b"is overwritten"),
        ];
        let (was, copy) = (file(SIZE, &base), file(SIZE, &base));
        let now = file(SIZE, &base);
        now.write_all_at(b"other words!!!", (9 << 20) - 10).unwrap();
        now.write_all_at(&[0; 2 << 20], 3 << 20).unwrap();
        now.write_all_at(b"new", SIZE - 3).unwrap();
        let side = |file| Side { file, size: SIZE };
        let mut stream = Vec::new();
        write(side(&was), side(&now), false, false, &mut stream).unwrap();
        assert!(stream.len() < 2_000, "{}", stream.len());
        let before = blocks(&copy);
        taken(&stream, &copy);
        assert_eq!(contents(&copy, SIZE), contents(&now, SIZE));
        assert!(blocks(&copy) < before, "zeros are stored");
        // Taken once more, and when it broke off before, it comes to the same.
        taken(&stream, &copy);
        assert_eq!(contents(&copy, SIZE), contents(&now, SIZE));

        let mut none = Vec::new();
        write(side(&now), side(&now), false, false, &mut none).unwrap();
        assert_eq!(none.len(), 25 + 48, "nothing has changed");
    }

    #[test]
    fn only_chunks_that_differ_are_sent() {
        let old = vec![0; 5 * CHUNK_BYTES + 10];
        let mut new = old.clone();
        assert_eq!(runs(&old, &new), Vec::new());
        new[0] = 1;
        new[CHUNK_BYTES] = 1;
        new[3 * CHUNK_BYTES - 1] = 1;
        new[5 * CHUNK_BYTES + 9] = 1;
        let all = [0..3 * CHUNK_BYTES, 5 * CHUNK_BYTES..5 * CHUNK_BYTES + 10];
        assert_eq!(runs(&old, &new), all);
    }

    #[test]
    fn what_has_grown_since_is_there() {
        let was = file(1_000_000, &[(999_990, b"the end is")]);
        let now = file(
            3_000_000,
            &[(999_990, b"the end is no more"), (2_999_999, b"x")],
        );
        let copy = file(3_000_000, &[(999_990, b"the end is")]);
        let (old, new) = (
            Side {
                file: &was,
                size: 1_000_000,
            },
            Side {
                file: &now,
                size: 3_000_000,
            },
        );
        let mut stream = Vec::new();
        write(old, new, false, false, &mut stream).unwrap();
        taken(&stream, &copy);
        assert_eq!(contents(&copy, 3_000_000), contents(&now, 3_000_000));
    }
}
