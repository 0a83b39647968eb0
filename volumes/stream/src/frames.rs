//! The frames of an exported stream ([`crate`]), for whoever keeps one or passes it on and has no volume: taken from
//! pieces as they come, each record whole.
//!
//! Must not know: where the pieces come from, volumes.

use crate::limits::{ENCODED_BYTES_MAX, RECORD_BYTES};
use crate::{HEAD_BYTES, HEADER_BYTES, Header, ReadError, read_header};
use crate::{record_head, u32_at, u64_at};
use sha2::{Digest, Sha256};

/// Bytes of a stream's last frame.
pub const TRAILER_BYTES: usize = HEAD_BYTES;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// What the stream says of itself.
    Header(Header),
    /// Some of the contents.
    Record(Record),
    /// The end: every record was there.
    End,
}

/// Some of the contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    bytes: Vec<u8>,
}

impl Record {
    /// Where its contents begin.
    pub fn offset(&self) -> u64 {
        u64_at(&self.bytes, 0)
    }

    /// Where its contents end.
    pub fn end(&self) -> u64 {
        self.offset().saturating_add(u32_at(&self.bytes, 8) as u64)
    }

    /// The whole frame, as it stands in the stream.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Place, lengths and checksum: two records with the same have the same contents.
    pub fn head(&self) -> &[u8] {
        &self.bytes[..HEAD_BYTES]
    }

    /// Unpacks it and holds it against its checksum.
    ///
    /// # Errors
    /// [`ReadError::Malformed`].
    pub fn check(&self) -> Result<(), ReadError> {
        let length = u32_at(&self.bytes, 8);
        let contents = zstd::bulk::decompress(&self.bytes[HEAD_BYTES..], length)
            .map_err(|_| ReadError::Malformed("a record does not unpack"))?;
        if contents.len() != length || self.bytes[16..HEAD_BYTES] != Sha256::digest(&contents)[..] {
            return Err(ReadError::Malformed("a record's checksum is wrong"));
        }
        Ok(())
    }
}

/// The checksum of a stream, in the making.
#[derive(Debug, Clone, Default)]
pub struct Sum(Sha256);

impl Sum {
    /// This record is the next one.
    pub fn add(&mut self, record: &Record) {
        self.0.update(record.head());
    }

    /// The checksum of what was added.
    pub fn digest(&self) -> [u8; 32] {
        self.0.clone().finalize().into()
    }

    /// The frame that ends the stream.
    pub fn trailer(&self) -> [u8; TRAILER_BYTES] {
        record_head(u64::MAX, 0, 0, &self.digest())
    }
}

/// The checksum that a trailer has, if these bytes are one.
pub fn trailer_digest(bytes: &[u8; TRAILER_BYTES]) -> Option<[u8; 32]> {
    let ends = u64_at(bytes, 0) == u64::MAX && u64_at(bytes, 8) == 0;
    ends.then(|| bytes[16..].try_into().ok()).flatten()
}

/// Takes frames out of pieces. Holds one frame and one piece at most.
#[derive(Debug, Default)]
pub struct Frames {
    held: Vec<u8>,
    /// So much of it has been given.
    given: usize,
    header: Option<Header>,
    /// Where the last record ended.
    at: u64,
    sum: Sum,
    ended: bool,
}

impl Frames {
    /// Takes the next piece. Call [`Self::next_frame`] until it gives nothing before the next one.
    pub fn push(&mut self, piece: &[u8]) {
        self.held.drain(..self.given);
        self.given = 0;
        self.held.extend_from_slice(piece);
    }

    /// The next frame, if it is there whole.
    ///
    /// # Errors
    /// [`ReadError::Malformed`]: it is no stream, or not in order, or records are missing, or something comes after its end. The
    /// contents of records are not looked at ([`Record::check`]).
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ReadError> {
        let left = &self.held[self.given..];
        if self.ended {
            return match left {
                [] => Ok(None),
                _ => Err(ReadError::Malformed("something comes after its end")),
            };
        }
        let Some(header) = self.header else {
            let Some(mut head) = left.get(..HEADER_BYTES) else {
                return Ok(None);
            };
            let header = read_header(&mut head)?;
            self.given += HEADER_BYTES;
            (self.header, self.at) = (Some(header), header.start);
            return Ok(Some(Frame::Header(header)));
        };
        let Some(head) = left.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        if let Some(digest) = trailer_digest(head) {
            if digest != self.sum.digest() {
                return Err(ReadError::Malformed("records are missing"));
            }
            self.given += HEAD_BYTES;
            self.ended = true;
            return Ok(Some(Frame::End));
        }
        let (offset, length, encoded) = (u64_at(head, 0), u32_at(head, 8), u32_at(head, 12));
        let end = offset.checked_add(length as u64);
        let fits = offset >= self.at && end.is_some_and(|end| end <= header.size);
        if !fits || length > RECORD_BYTES || encoded > ENCODED_BYTES_MAX {
            return Err(ReadError::Malformed("a record is out of its place"));
        }
        let Some(bytes) = left.get(..HEAD_BYTES + encoded) else {
            return Ok(None);
        };
        let record = Record {
            bytes: bytes.to_vec(),
        };
        self.given += record.bytes.len();
        self.at = record.end();
        self.sum.add(&record);
        Ok(Some(Frame::Record(record)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RECORD, Records};

    const SIZE: u64 = 4 << 20;

    fn exported(start: u64) -> Vec<u8> {
        let header = Header {
            difference: false,
            foreign: false,
            sealed: false,
            size: SIZE,
            start,
        };
        let mut stream = Vec::new();
        let mut records = Records::begin(header, &mut stream).unwrap();
        for (index, at) in [0, 5, 7].into_iter().enumerate() {
            let offset = [0, 1, 3][index] * RECORD;
            if offset >= start {
                let mut contents = vec![0; RECORD_BYTES];
                contents[at..at + 8].copy_from_slice(b"contents");
                records.write(&contents, offset).unwrap();
            }
        }
        records.end().unwrap();
        stream
    }

    fn frames_of(stream: &[u8], piece: usize) -> Result<Vec<Frame>, ReadError> {
        let (mut frames, mut all) = (Frames::default(), Vec::new());
        for piece in stream.chunks(piece) {
            frames.push(piece);
            while let Some(frame) = frames.next_frame()? {
                all.push(frame);
            }
        }
        Ok(all)
    }

    #[test]
    fn pieces_of_any_size_give_the_same_frames() {
        let stream = exported(0);
        let whole = frames_of(&stream, stream.len()).unwrap();
        assert_eq!(whole.len(), 5);
        assert_eq!(whole.last(), Some(&Frame::End));
        for piece in [1, 7, 48, 100] {
            assert_eq!(frames_of(&stream, piece).unwrap(), whole, "{piece}");
        }
    }

    #[test]
    fn one_that_was_continued_is_the_same_as_one_that_was_not() {
        let stream = exported(0);
        let mut glued = Vec::new();
        let mut sum = Sum::default();
        let first = frames_of(&stream, 50).unwrap();
        let rest = frames_of(&exported(1 << 20), 50).unwrap();
        glued.extend_from_slice(&stream[..HEADER_BYTES]);
        for frame in first.iter().take(2).chain(&rest) {
            if let Frame::Record(record) = frame {
                record.check().unwrap();
                sum.add(record);
                glued.extend_from_slice(record.bytes());
            }
        }
        glued.extend_from_slice(&sum.trailer());
        assert_eq!(glued, stream);
        let last = stream.last_chunk().unwrap();
        assert_eq!(trailer_digest(last), Some(sum.digest()));
    }

    #[test]
    fn what_is_lost_added_or_changed_is_seen() {
        let stream = exported(0);
        let lacking = |from: usize, to: usize| [&stream[..from], &stream[to..]].concat();
        let first = HEAD_BYTES + u32_at(&stream, HEADER_BYTES + 12);
        let without_first = lacking(HEADER_BYTES, HEADER_BYTES + first);
        for bad in [
            without_first,
            [&stream[..], b"x"].concat(),
            b"slipvol2 and what follows is no stream".to_vec(),
        ] {
            assert!(frames_of(&bad, 64).is_err());
        }
        for at in 0..stream.len() {
            let mut damaged = stream.clone();
            damaged[at] ^= 1;
            let frames = frames_of(&damaged, damaged.len()).unwrap_or_default();
            let whole = frames.last() == Some(&Frame::End)
                && frames.iter().all(|frame| match frame {
                    Frame::Record(record) => record.check().is_ok(),
                    Frame::Header(header) => {
                        // Another size, start or form is for the caller to compare.
                        (header.size, header.start, header.sealed) == (SIZE, 0, false)
                    }
                    Frame::End => true,
                });
            // Some bits of zstd's own heads mean nothing.
            let in_contents = at > HEADER_BYTES + HEAD_BYTES && at < stream.len() - HEAD_BYTES;
            assert!(!whole || in_contents, "byte {at}");
        }
    }
}
