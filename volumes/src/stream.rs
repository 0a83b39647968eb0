//! Volumes as streams: what has data is written in the format of [`slipway_volume_stream`], and read back into a volume.
//!
//! Must not know: pools, drivers.

use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use nix::unistd::Whence;
use sha2::{Digest, Sha256};
use slipway_volume_stream::limits::{ENCODED_BYTES_MAX, RECORD_BYTES};
use slipway_volume_stream::{HEAD_BYTES, RECORD, Records, ZEROS, u32_at, u64_at};
pub use slipway_volume_stream::{HEADER_BYTES, Header, ReadError, read_header};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

/// What lies below a device that shows it decrypted: that and how far its contents are shifted in it. Where nothing was
/// ever written, it reads as zeros, and the device as noise.
#[derive(Debug, Clone, Copy)]
pub struct Below<'a> {
    /// The encrypted device or image.
    pub file: &'a File,
    /// Where the contents begin in it.
    pub shift: u64,
}

/// Writes the contents of `from` as a stream.
///
/// # Errors
/// What reading or writing said.
pub fn write(
    from: &File,
    below: Option<Below<'_>>,
    header: Header,
    to: &mut dyn Write,
) -> io::Result<()> {
    let mut records = Records::begin(header, to)?;
    let mut contents = vec![0; RECORD_BYTES];
    let mut at = header.start;
    let shift = below.map_or(0, |below| below.shift);
    let holes = below.map_or(from, |below| below.file);
    while let Some(offset) = next_data(holes, at + shift, header.size + shift)? {
        let offset = offset - shift;
        // Records begin at multiples of their size: the same data gives the same records wherever a stream begins.
        let offset = (offset - offset % RECORD).max(at);
        let end = (offset - offset % RECORD + RECORD).min(header.size);
        let length = usize::try_from(end - offset).map_err(io::Error::other)?;
        let contents = &mut contents[..length];
        holes.read_exact_at(contents, offset + shift)?;
        if contents != &ZEROS[..length] {
            if below.is_some() {
                from.read_exact_at(contents, offset)?;
            }
            records.write(contents, offset)?;
        }
        at = end;
    }
    records.end()
}

/// Where data is next, at or after `at`; nothing if there is none before `size`. A block device has data everywhere.
pub(crate) fn next_data(from: &File, at: u64, size: u64) -> io::Result<Option<u64>> {
    if at >= size {
        return Ok(None);
    }
    let start = i64::try_from(at).map_err(io::Error::other)?;
    match nix::unistd::lseek(from, start, Whence::SeekData) {
        Ok(offset) => {
            let offset = u64::try_from(offset).map_err(io::Error::other)?;
            Ok((offset < size).then_some(offset))
        }
        Err(Errno::ENXIO) => Ok(None),
        // It cannot tell.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Some(at)),
        Err(errno) => Err(errno.into()),
    }
}

/// Where a stream's contents go.
pub struct Target<'a> {
    /// The volume.
    pub file: &'a File,
    /// It reads already as it is to read where there is no record: as zeros, or as what a difference is from. If not, zeros are
    /// written.
    pub zeroed: bool,
    /// After so many bytes `durable` is called.
    pub sync_every: u64,
    /// Told how far all is written; it is to make that durable.
    pub durable: &'a mut dyn FnMut(u64) -> io::Result<()>,
}

impl std::fmt::Debug for Target<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").finish_non_exhaustive()
    }
}

impl Target<'_> {
    /// Zeros come in differences alone. They give blocks back, where that can be.
    fn put(&self, contents: &[u8], at: u64) -> io::Result<()> {
        let punched = contents == &ZEROS[..contents.len()] && punch(self.file, at, contents.len());
        if punched {
            return Ok(());
        }
        self.file.write_all_at(contents, at)
    }

    fn zero(&self, from: u64, to: u64) -> io::Result<()> {
        let mut at = from;
        while !self.zeroed && at < to {
            let length = usize::try_from(to - at).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            self.file.write_all_at(&ZEROS[..length], at)?;
            at += length as u64;
        }
        Ok(())
    }
}

/// Reads the rest of a stream into its target.
///
/// # Errors
/// [`ReadError`]; what was told durable is right all the same.
pub fn read_records(
    header: Header,
    from: &mut dyn Read,
    to: &mut Target<'_>,
) -> Result<(), ReadError> {
    let mut whole = Sha256::new();
    let (mut at, mut since) = (header.start, 0_u64);
    let mut encoded = Vec::new();
    loop {
        let mut head = [0; HEAD_BYTES];
        from.read_exact(&mut head).map_err(ReadError::BrokenOff)?;
        let offset = u64_at(&head, 0);
        let (length, encoded_length) = (u32_at(&head, 8), u32_at(&head, 12));
        if offset == u64::MAX {
            if head[16..] != whole.finalize()[..] {
                return Err(ReadError::Malformed("records are missing"));
            }
            return to
                .zero(at, header.size)
                .and_then(|()| (to.durable)(header.size))
                .map_err(ReadError::Write);
        }
        let end = offset.checked_add(length as u64);
        let fits = offset >= at && end.is_some_and(|end| end <= header.size);
        if !fits || length > RECORD_BYTES || encoded_length > ENCODED_BYTES_MAX {
            return Err(ReadError::Malformed("a record is out of its place"));
        }
        encoded.resize(encoded_length, 0);
        from.read_exact(&mut encoded)
            .map_err(ReadError::BrokenOff)?;
        let contents = zstd::bulk::decompress(&encoded, length)
            .map_err(|_| ReadError::Malformed("a record does not unpack"))?;
        if contents.len() != length || head[16..] != Sha256::digest(&contents)[..] {
            return Err(ReadError::Malformed("a record's checksum is wrong"));
        }
        whole.update(head);
        to.zero(at, offset)
            .and_then(|()| to.put(&contents, offset))
            .map_err(ReadError::Write)?;
        at = offset + length as u64;
        since += length as u64;
        if since >= to.sync_every {
            (to.durable)(at).map_err(ReadError::Write)?;
            since = 0;
        }
    }
}

/// Makes a range read as zeros without storing it; false if this file cannot.
fn punch(file: &File, at: u64, length: usize) -> bool {
    let (Ok(at), Ok(length)) = (i64::try_from(at), i64::try_from(length)) else {
        return false;
    };
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    nix::fcntl::fallocate(file, how, at, length).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 8 << 20;

    fn sparse() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(b"beginning", 0).unwrap();
        file.write_all_at(&[7; 100_000], (3 << 20) - 50_000)
            .unwrap();
        file.write_all_at(b"end", SIZE - 3).unwrap();
        file
    }

    fn exported(file: &File, start: u64) -> Vec<u8> {
        let mut stream = Vec::new();
        let header = Header {
            sealed: false,
            difference: false,
            foreign: false,
            size: SIZE,
            start,
        };
        write(file, None, header, &mut stream).unwrap();
        stream
    }

    fn taken(mut stream: &[u8], to: &File) -> (Result<(), ReadError>, u64) {
        let mut durable = 0;
        let header = read_header(&mut stream).unwrap();
        let mut target = Target {
            file: to,
            zeroed: true,
            sync_every: 1 << 20,
            durable: &mut |at| {
                durable = at;
                Ok(())
            },
        };
        let done = read_records(header, &mut stream, &mut target);
        (done, durable)
    }

    fn contents(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn empty() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        file
    }

    #[test]
    fn contents_arrive_and_holes_cost_nothing() {
        let (file, copy) = (sparse(), empty());
        let stream = exported(&file, 0);
        assert!(stream.len() < 10_000, "{}", stream.len());
        let (done, durable) = taken(&stream, &copy);
        done.unwrap();
        assert_eq!(durable, SIZE);
        assert_eq!(contents(&copy), contents(&file));
    }

    #[test]
    fn one_that_broke_off_goes_on_where_it_was() {
        let (file, copy) = (sparse(), empty());
        let stream = exported(&file, 0);
        for cut in (0..stream.len()).step_by(97) {
            if cut < 25 {
                assert!(read_header(&mut &stream[..cut]).is_err());
                continue;
            }
            let (done, durable) = taken(&stream[..cut], &copy);
            assert!(matches!(done, Err(ReadError::BrokenOff(_))), "{cut}");
            let (done, _) = taken(&exported(&file, durable), &copy);
            done.unwrap();
            assert_eq!(contents(&copy), contents(&file), "{cut}");
        }
    }

    #[test]
    fn no_flipped_bit_and_no_lost_record_passes() {
        let whole = sparse();
        let stream = exported(&whole, 0);
        for at in 0..stream.len() {
            let mut damaged = stream.clone();
            damaged[at] ^= 1;
            let (mut rest, copy) = (&damaged[..], empty());
            let passed = read_header(&mut rest).is_ok_and(|header| {
                let mut target = Target {
                    file: &copy,
                    zeroed: true,
                    sync_every: SIZE,
                    durable: &mut |_| Ok(()),
                };
                // A size or a start that is another is for the caller to compare.
                header.size == SIZE
                    && header.start == 0
                    && !header.sealed
                    && !header.difference
                    && read_records(header, &mut rest, &mut target).is_ok()
            });
            // Some bits of zstd's own heads mean nothing.
            assert!(!passed || contents(&copy) == contents(&whole), "byte {at}");
        }
        // Without its first record it is in order, but not whole.
        let first = HEAD_BYTES + u32_at(&stream, 25 + 12);
        let lacking = [&stream[..25], &stream[25 + first..]].concat();
        let (done, _) = taken(&lacking, &empty());
        assert!(matches!(done, Err(ReadError::Malformed(_))), "{done:?}");
    }
}
