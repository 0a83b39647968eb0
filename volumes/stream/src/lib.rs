//! The format of an exported volume: a stream that leaves holes out, is compressed, and proves itself.
//!
//! ```text
//! header   "slipvol1", flags u8 (1: encrypted as on disk, 2: a difference, 4: no host's kernel may mount it), size u64 of the contents, start u64
//! record   offset u64, length u32 of the contents, encoded u32, SHA-256 of the contents, that many bytes of zstd
//! trailer  offset u64::MAX, length 0, encoded 0, SHA-256 over the heads of all records since the header
//! ```
//! Numbers are big-endian; records come in the order of their offsets; what no record has reads as zeros, and in a difference as
//! in what it is a difference from. A stream that begins at `start` leaves out what lies before it, so that one that broke off is
//! taken up again.
//!
//! Owns the format alone, for every computer: a client that keeps a stream and a host that makes one read it here.
//! Must not know: volumes, devices, files.

mod frames;
pub mod limits;

pub use frames::{Frame, Frames, Record, Sum, TRAILER_BYTES, trailer_digest};

use crate::limits::RECORD_BYTES;
use sha2::{Digest, Sha256};
use slipway_core::host_api::StreamFault;
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"slipvol1";
const FLAG_SEALED: u8 = 1;
const FLAG_DIFFERENCE: u8 = 2;
const FLAG_FOREIGN: u8 = 4;
/// Bytes of what a stream says of itself.
pub const HEADER_BYTES: usize = 25;
/// Bytes before each record.
pub const HEAD_BYTES: usize = 16 + 32;
/// Fast: the network is slower than any more would be worth.
const ZSTD_LEVEL: i32 = 1;

/// What a stream says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The contents are encrypted, as they are on disk.
    pub sealed: bool,
    /// Only what differs from something that the taker has.
    pub difference: bool,
    /// Others than a host's kernel have written the blocks. Whoever takes a stream from elsewhere than a host sets this, whatever it
    /// says.
    pub foreign: bool,
    /// Bytes of the contents.
    pub size: u64,
    /// Where the stream begins.
    pub start: u64,
}

impl Header {
    /// As it stands at the beginning of a stream.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut head = [0; HEADER_BYTES];
        head[..8].copy_from_slice(MAGIC);
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        head[8] = flag(self.sealed, FLAG_SEALED)
            | flag(self.difference, FLAG_DIFFERENCE)
            | flag(self.foreign, FLAG_FOREIGN);
        head[9..17].copy_from_slice(&self.size.to_be_bytes());
        head[17..].copy_from_slice(&self.start.to_be_bytes());
        head
    }
}

/// Bytes of a record.
pub const RECORD: u64 = RECORD_BYTES as u64;
/// A record of zeros.
pub static ZEROS: [u8; RECORD_BYTES] = [0; RECORD_BYTES];

/// A stream that is being written.
pub struct Records<'a> {
    to: &'a mut dyn Write,
    whole: Sha256,
}

impl std::fmt::Debug for Records<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

impl<'a> Records<'a> {
    /// Writes the header.
    pub fn begin(header: Header, to: &'a mut dyn Write) -> io::Result<Self> {
        to.write_all(&header.to_bytes())?;
        Ok(Self {
            to,
            whole: Sha256::new(),
        })
    }

    /// Writes one record, behind all before.
    pub fn write(&mut self, contents: &[u8], offset: u64) -> io::Result<()> {
        let encoded = zstd::bulk::compress(contents, ZSTD_LEVEL)?;
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
        let head = record_head(
            offset,
            length(contents)?,
            length(&encoded)?,
            &Sha256::digest(contents).into(),
        );
        self.whole.update(head);
        self.to.write_all(&head)?;
        self.to.write_all(&encoded)
    }

    /// Writes the trailer.
    pub fn end(self) -> io::Result<()> {
        let digest = self.whole.finalize().into();
        self.to.write_all(&record_head(u64::MAX, 0, 0, &digest))?;
        self.to.flush()
    }
}

pub fn record_head(offset: u64, length: u32, encoded: u32, digest: &[u8; 32]) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&offset.to_be_bytes());
    head[8..12].copy_from_slice(&length.to_be_bytes());
    head[12..16].copy_from_slice(&encoded.to_be_bytes());
    head[16..].copy_from_slice(digest);
    head
}

/// Why a stream was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is no stream of this version, or not in order.
    #[error("it is not an exported volume, or damaged: {0}")]
    Malformed(&'static str),
    /// It ended before its end, or could not be read.
    #[error("it broke off: {0}")]
    BrokenOff(#[source] io::Error),
    /// It could not be written down.
    #[error("it could not be written down: {0}")]
    Write(#[source] io::Error),
}

impl ReadError {
    /// For whoever sends it.
    pub fn fault(&self) -> StreamFault {
        match self {
            Self::Malformed(_) => StreamFault::Malformed,
            Self::BrokenOff(_) => StreamFault::BrokenOff,
            Self::Write(_) => StreamFault::Io,
        }
    }
}

/// Reads the beginning of a stream.
///
/// # Errors
/// [`ReadError`].
pub fn read_header(from: &mut dyn Read) -> Result<Header, ReadError> {
    let mut head = [0; HEADER_BYTES];
    from.read_exact(&mut head).map_err(ReadError::BrokenOff)?;
    if head[..8] != MAGIC[..] || head[8] & !(FLAG_SEALED | FLAG_DIFFERENCE | FLAG_FOREIGN) != 0 {
        return Err(ReadError::Malformed("its beginning is unknown"));
    }
    Ok(Header {
        sealed: head[8] & FLAG_SEALED != 0,
        difference: head[8] & FLAG_DIFFERENCE != 0,
        foreign: head[8] & FLAG_FOREIGN != 0,
        size: u64_at(&head, 9),
        start: u64_at(&head, 17),
    })
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_be_bytes)
}

pub fn u32_at(bytes: &[u8], at: usize) -> usize {
    let number = bytes[at..at + 4].try_into().map_or(0, u32::from_be_bytes);
    usize::try_from(number).unwrap_or(usize::MAX)
}
