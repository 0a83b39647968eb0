//! The file that an export is written to, or any other output: always whole records, so that what broke off goes on behind the
//! last of them.
//!
//! Beside a file that is not whole lies another, `FILE.resume`, that says of which snapshot it is. It goes last.
//!
//! Must not know: the server.

use crate::limits::{RESUME_BYTES_MAX, TRANSFER_PIECE_BYTES};
use serde::{Deserialize, Serialize};
use slipway_terminal::exit::{Failure, Outcome};
use slipway_volume_stream::{Frame, Frames, Record, Sum};
use slipway_volume_stream::{HEADER_BYTES, Header};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What an export that is under way is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Resume {
    /// What was asked to be exported: a volume or a snapshot.
    pub(super) of: String,
    /// The snapshot.
    pub(super) snapshot: String,
    /// It was made for this export, and goes with its end.
    pub(super) temporary: bool,
}

impl Resume {
    /// Where it lies beside a file.
    pub(super) fn path(file: &Path) -> PathBuf {
        let mut name = file.as_os_str().to_owned();
        name.push(".resume");
        name.into()
    }

    /// What lies beside a file, if anything does.
    ///
    /// # Errors
    /// It is not one.
    pub(super) fn read(file: &Path) -> Outcome<Option<Self>> {
        let path = Self::path(file);
        let mut text = String::new();
        match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened
                .and_then(|opened| opened.take(RESUME_BYTES_MAX).read_to_string(&mut text))
                .map_err(|error| unusable(&path, "read", &error))?,
        };
        let known = serde_json::from_str(&text).map_err(|_| {
            let path = path.display();
            Failure::user(format!("{path} does not say what the export is of"))
                .hint("remove it and the file beside it, and begin anew")
        })?;
        Ok(Some(known))
    }

    /// Lays it beside a file.
    ///
    /// # Errors
    /// The caller's fault: there is no room, or no right.
    pub(super) fn write(&self, file: &Path) -> Outcome<()> {
        let path = Self::path(file);
        let text = serde_json::to_string(self).unwrap_or_default();
        std::fs::write(&path, text).map_err(|error| unusable(&path, "write", &error))
    }

    /// Takes it away: the file is whole.
    ///
    /// # Errors
    /// The caller's fault.
    pub(super) fn remove(file: &Path) -> Outcome<()> {
        let path = Self::path(file);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(unusable(&path, "remove", &error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn unusable(path: &Path, what: &str, error: &std::io::Error) -> Failure {
    Failure::user_caused(format_args!("cannot {what} {}", path.display()), error)
        .hint("look at its directory: is there room, and may you write there?")
}

/// Where an export goes.
pub(super) struct Kept {
    to: Box<dyn Write + Send>,
    /// What `to` is called in an error.
    place: String,
    header: Option<Header>,
    sum: Sum,
    last: Option<(u64, Vec<u8>)>,
    at: u64,
    /// Bytes that are in it.
    pub(super) bytes: u64,
    /// Its end is in it, too.
    pub(super) whole: bool,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("at", &self.at).finish()
    }
}

impl Kept {
    /// An output that has nothing yet.
    pub(super) fn empty(to: Box<dyn Write + Send>, place: impl Into<String>) -> Self {
        Self {
            to,
            place: place.into(),
            header: None,
            sum: Sum::default(),
            last: None,
            at: 0,
            bytes: 0,
            whole: false,
        }
    }

    /// A file that is not there yet.
    ///
    /// # Errors
    /// The caller's fault: it is there, or cannot be.
    pub(super) fn create(path: &Path) -> Outcome<Self> {
        match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => Ok(Self::empty(Box::new(file), path.display().to_string())),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(Failure::user(format!("{} is there already", path.display())).hint(
                    "name another file, or remove it; an export that broke off has FILE.resume beside it",
                ))
            }
            Err(error) => Err(unusable(path, "write", &error)),
        }
    }

    /// A file that broke off. Every record in it is proved; what is not a whole one is cut off.
    ///
    /// # Errors
    /// The caller's fault: it is no export, or damaged.
    pub(super) fn open(path: &Path) -> Outcome<Self> {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let mut file = opened.map_err(|error| unusable(path, "open", &error))?;
        let mut kept = Self::empty(Box::new(std::io::sink()), path.display().to_string());
        kept.read(&mut file).map_err(|failure| {
            Failure::user(format!(
                "cannot go on with {}: {}",
                path.display(),
                failure.message()
            ))
            .hint("remove it and its .resume file, and begin anew")
        })?;
        file.set_len(kept.bytes)
            .and_then(|()| file.seek(SeekFrom::Start(kept.bytes)))
            .map_err(|error| unusable(path, "write", &error))?;
        kept.to = Box::new(file);
        Ok(kept)
    }

    fn read(&mut self, file: &mut File) -> Outcome<()> {
        let mut frames = Frames::default();
        let mut piece = vec![0; TRANSFER_PIECE_BYTES];
        loop {
            let read = file
                .read(&mut piece)
                .map_err(|e| Failure::user_caused("read it", &e))?;
            if read == 0 {
                return Ok(());
            }
            frames.push(&piece[..read]);
            while let Some(frame) = next(&mut frames)? {
                self.take(&frame, None)?;
            }
        }
    }

    /// Where to go on: the last record comes once more, so that it can be compared.
    pub(super) fn resume_at(&self) -> u64 {
        self.last.as_ref().map_or(0, |(offset, _)| *offset)
    }

    /// How far it is, and the size of the contents.
    pub(super) fn so_far(&self) -> (u64, u64) {
        (self.at, self.header.map_or(0, |header| header.size))
    }

    /// The checksum of all that is in it, in hexadecimal.
    pub(super) fn digest(&self) -> String {
        super::hexadecimal(&self.sum.digest())
    }

    /// Takes the next frame. `continued` is the header of a stream that goes on here, until its first record has come.
    ///
    /// # Errors
    /// The caller's fault: it is not of the same snapshot, or cannot be written; ours: it is damaged.
    pub(super) fn take(&mut self, frame: &Frame, continued: Option<&mut bool>) -> Outcome<()> {
        match frame {
            Frame::Header(header) => self.begin(header),
            Frame::Record(record) => {
                if let Some(first) = continued.filter(|first| **first) {
                    *first = false;
                    if self.is_last(record)? {
                        return Ok(());
                    }
                }
                self.add(record)
            }
            Frame::End => {
                if continued.is_some_and(|first| *first) && self.last.is_some() {
                    return Err(another());
                }
                let trailer = self.sum.trailer();
                self.put(&trailer)?;
                let flushed = self.to.flush();
                flushed.map_err(|error| unwritten(&self.place, &error))?;
                self.whole = true;
                Ok(())
            }
        }
    }

    fn begin(&mut self, header: &Header) -> Outcome<()> {
        if header.sealed || header.difference || header.start != self.resume_at() {
            return Err(Failure::system(
                "the server sends something else than was asked for",
            ));
        }
        match self.header {
            None => {
                self.header = Some(*header);
                self.put(&header.to_bytes())
            }
            Some(known) if known.size == header.size => Ok(()),
            Some(_) => Err(another()),
        }
    }

    /// Whether this is the last record once more.
    fn is_last(&self, record: &Record) -> Outcome<bool> {
        match &self.last {
            None => Ok(false),
            Some((_, head)) if head == record.head() => Ok(true),
            Some(_) => Err(another()),
        }
    }

    fn add(&mut self, record: &Record) -> Outcome<()> {
        record
            .check()
            .map_err(|error| Failure::system_caused("a part of the contents is damaged", &error))?;
        self.put(record.bytes())?;
        self.sum.add(record);
        self.last = Some((record.offset(), record.head().to_vec()));
        self.at = record.end();
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Outcome<()> {
        let written = self.to.write_all(bytes);
        written.map_err(|error| unwritten(&self.place, &error))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn unwritten(place: &str, error: &std::io::Error) -> Failure {
    let kind = error.kind();
    let hint = if matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        "make room on that disk; into a file, the same command resumes where it stopped"
    } else if kind == ErrorKind::BrokenPipe {
        "the program that reads it has ended; name a file with -o FILE, which can be resumed"
    } else {
        "into a file, the same command resumes where it stopped"
    };
    // Built anew, as the first hint stays.
    let told = Failure::user_caused(format_args!("cannot write the export to {place}"), error);
    Failure::user(told.message()).hint(hint)
}

fn another() -> Failure {
    Failure::user("what was written before is of another snapshot")
        .hint("remove the file and its .resume file, and begin anew")
}

/// The next frame of a stream.
///
/// # Errors
/// It is damaged.
pub(super) fn next(frames: &mut Frames) -> Outcome<Option<Frame>> {
    frames
        .next_frame()
        .map_err(|error| Failure::system(error.to_string()))
}

const _: () = assert!(HEADER_BYTES < TRANSFER_PIECE_BYTES);

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
