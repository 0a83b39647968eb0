//! What an import sends: an exported stream, from a file or from standard input.
//!
//! Must not know: the server.

use super::kept::next;
use crate::limits::TRANSFER_PIECE_BYTES;
use bytes::Bytes;
use slipway_terminal::exit::{Failure, Outcome};
use slipway_volume_stream::{Frame, Frames, Record, Sum, TRAILER_BYTES, trailer_digest};
use slipway_volume_stream::{HEADER_BYTES, Header, read_header};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

/// Where it comes from.
#[derive(Debug)]
pub(super) enum Sent {
    /// A file, which can be read as often as it takes.
    File(PathBuf),
    /// Standard input, whose beginning has been read.
    Input([u8; HEADER_BYTES]),
}

/// What it says of itself.
#[derive(Debug, Clone)]
pub(super) struct Said {
    /// Bytes of the contents.
    pub(super) size: u64,
    /// Checksum of the whole, in hexadecimal; of a file alone.
    pub(super) digest: Option<String>,
}

/// How far the sending is.
#[derive(Debug, Default)]
pub(super) struct Counter {
    /// Bytes of the contents.
    pub(super) at: AtomicU64,
    /// Bytes sent.
    pub(super) moved: AtomicU64,
}

impl Sent {
    /// Opens it, and reads what it says of itself. A file is whole, as far as its end shows.
    ///
    /// # Errors
    /// The caller's fault: it is not what `slipway volumes export` has written, or not all of it.
    pub(super) fn open(name: &str) -> Outcome<(Self, Said)> {
        let not_one = |why: &str| {
            Failure::user(format!("{name} is not a whole exported volume: {why}"))
                .hint("it is what `slipway volumes export` writes; one that broke off has FILE.resume beside it, and the same command finishes it")
        };
        let mut head = [0; HEADER_BYTES];
        let (sent, digest) = if name == "-" {
            std::io::stdin()
                .lock()
                .read_exact(&mut head)
                .map_err(|_| not_one("it is too short"))?;
            (Self::Input(head), None)
        } else {
            let path = PathBuf::from(name);
            let cannot = |error: &std::io::Error| {
                Failure::user_caused(format_args!("cannot read {name}"), error)
            };
            let mut file = File::open(&path).map_err(|error| cannot(&error))?;
            if !file.metadata().is_ok_and(|known| known.is_file()) {
                return Err(not_one("it is no regular file (`-` is standard input)"));
            }
            let mut tail = [0; TRAILER_BYTES];
            let from_end = i64::try_from(TRAILER_BYTES).unwrap_or(i64::MAX);
            file.read_exact(&mut head)
                .and_then(|()| file.seek(SeekFrom::End(-from_end)))
                .and_then(|_| file.read_exact(&mut tail))
                .map_err(|_| not_one("it is too short"))?;
            let digest = trailer_digest(&tail).ok_or_else(|| not_one("its end is missing"))?;
            (Self::File(path), Some(super::hexadecimal(&digest)))
        };
        let Header {
            sealed,
            difference,
            size,
            start,
            // Whatever it says, what is imported counts as written by others.
            foreign: _,
        } = read_header(&mut &head[..]).map_err(|error| not_one(&error.to_string()))?;
        if sealed || difference || start != 0 {
            return Err(not_one("it is encrypted, or only a part"));
        }
        Ok((sent, Said { size, digest }))
    }

    /// A reader of it from its beginning. Standard input can be read once.
    pub(super) fn reader(&self) -> std::io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::File(path) => Box::new(File::open(path)?),
            Self::Input(head) => Box::new(std::io::Cursor::new(*head).chain(std::io::stdin())),
        })
    }

    /// It can be read again.
    pub(super) fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

/// Sends what comes from `offset` on, as a stream of its own; blocks. The end is sent only if the whole is what its own end
/// says.
///
/// # Errors
/// The caller's fault: it is damaged. Nobody who takes it any more is none.
pub(super) fn feed(
    mut from: Box<dyn Read + Send>,
    offset: u64,
    to: &mpsc::Sender<Result<Bytes, std::io::Error>>,
    counter: &Counter,
) -> Outcome<()> {
    let mut frames = Frames::default();
    let mut piece = vec![0; TRANSFER_PIECE_BYTES];
    let mut out = Out {
        offset,
        header: None,
        begun: false,
        sum: Sum::default(),
    };
    loop {
        let read = from
            .read(&mut piece)
            .map_err(|error| Failure::user_caused("cannot read what is to be sent", &error))?;
        if read == 0 {
            return Err(damaged("its end is missing"));
        }
        frames.push(&piece[..read]);
        while let Some(frame) = next(&mut frames).map_err(|e| damaged(e.message()))? {
            let ends = frame == Frame::End;
            if ends {
                // Before the end is sent, which makes it a volume.
                nothing_follows(&mut frames, &mut *from, &mut piece)?;
            }
            let bytes = out.pass(frame);
            if !bytes.is_empty() {
                let moved = bytes.len() as u64;
                if to.blocking_send(Ok(bytes.into())).is_err() {
                    return Ok(());
                }
                counter.moved.fetch_add(moved, Ordering::Relaxed);
                counter.at.store(out.offset, Ordering::Relaxed);
            }
            if ends {
                return Ok(());
            }
        }
    }
}

fn nothing_follows(frames: &mut Frames, from: &mut dyn Read, piece: &mut [u8]) -> Outcome<()> {
    next(frames).map_err(|error| damaged(error.message()))?;
    match from.read(piece) {
        Ok(0) => Ok(()),
        Ok(_) => Err(damaged("something comes after its end")),
        Err(error) => Err(Failure::user_caused(
            "cannot read what is to be sent",
            &error,
        )),
    }
}

fn damaged(why: &str) -> Failure {
    Failure::user(format!("what is to be sent is damaged: {why}")).hint("export it anew")
}

/// A stream that begins later than the one it is made of.
struct Out {
    /// Up to here nothing is to be sent, or all was.
    offset: u64,
    header: Option<Header>,
    begun: bool,
    sum: Sum,
}

impl Out {
    /// What is to be sent of a frame.
    fn pass(&mut self, frame: Frame) -> Vec<u8> {
        match frame {
            Frame::Header(header) => {
                self.header = Some(header);
                vec![]
            }
            Frame::Record(record) if record.end() <= self.offset => vec![],
            Frame::Record(record) => {
                let mut bytes = self.begin(&record);
                bytes.extend_from_slice(record.bytes());
                self.sum.add(&record);
                self.offset = record.end();
                bytes
            }
            Frame::End => {
                let mut bytes = self.head(self.offset);
                bytes.extend_from_slice(&self.sum.trailer());
                bytes
            }
        }
    }

    fn begin(&mut self, record: &Record) -> Vec<u8> {
        self.head(self.offset.min(record.offset()))
    }

    fn head(&mut self, start: u64) -> Vec<u8> {
        match self.header {
            Some(header) if !self.begun => {
                self.begun = true;
                Header { start, ..header }.to_bytes().to_vec()
            }
            Some(_) | None => vec![],
        }
    }
}
