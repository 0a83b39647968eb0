//! What a machine leaves in writing: its console and its end record, in a small tmpfs of its own, so that no machine fills a
//! disk of the host.
//!
//! Must not know: who writes them, or how they are handed over.

use crate::driver::DriverError;
use crate::limits::{
    CONSOLE_BYTES_MAX, CONSOLE_KEPT_BYTES, END_RECORD_BYTES_MAX, LAST_WORDS_READ_BYTES,
};
use crate::mounts::tmpfs;
use slipway_core::end_record::{self, Ending};
use slipway_core::last_words::last_words;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The directory of one machine's log.
#[derive(Debug)]
pub(crate) struct MachineLog {
    dir: PathBuf,
}

impl MachineLog {
    /// At `dir`; nothing is made yet.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Where it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the machine prints.
    pub(crate) fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    fn end_record(&self) -> PathBuf {
        self.dir.join("end-record")
    }

    /// Mounts the bounded room over the directory, which must be there.
    pub(crate) fn mount(&self) -> Result<(), DriverError> {
        tmpfs(
            &self.dir,
            &format!("size={CONSOLE_BYTES_MAX},nr_inodes=16,mode=0700"),
        )
    }

    /// Opens the console and the end record, both for appending.
    pub(crate) fn open(&self) -> Result<(File, File), DriverError> {
        let open = |path: &Path| {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(path);
            file.map_err(DriverError::at("open", path))
        };
        let (console, end) = (open(&self.console())?, open(&self.end_record())?);
        // Room set aside: a console that is full must not keep the guest from saying that it ended well.
        let (keep, length) = (
            nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE,
            END_RECORD_BYTES_MAX.cast_signed(),
        );
        nix::fcntl::fallocate(&end, keep, 0, length)
            .map_err(DriverError::at("set room aside in", &self.end_record()))?;
        Ok((console, end))
    }

    /// How the guest wrote that it ended.
    pub(crate) fn ending(&self) -> Ending {
        self.record()
            .map_or(Ending::Crashed, |text| Ending::of(&text))
    }

    /// Why the guest wrote that its engine could not start, if it did.
    pub(crate) fn refused(&self) -> Option<String> {
        end_record::refused(&self.record().ok()?)
    }

    fn record(&self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        File::open(self.end_record())?
            .take(END_RECORD_BYTES_MAX)
            .read_to_end(&mut text)?;
        Ok(text)
    }

    /// What the machine printed last; nothing if it printed nothing, or that cannot be read.
    pub(crate) fn last_words(&self) -> Option<String> {
        let mut tail = Vec::new();
        let mut console = File::open(self.console()).ok()?;
        let length = console.metadata().ok()?.len();
        let from = length.saturating_sub(LAST_WORDS_READ_BYTES);
        console.seek(io::SeekFrom::Start(from)).ok()?;
        console
            .take(LAST_WORDS_READ_BYTES)
            .read_to_end(&mut tail)
            .ok()?;
        last_words(&tail)
    }

    /// Saves the end of the console as `target`; none is fine.
    pub(crate) fn keep_console(&self, target: &Path) -> io::Result<()> {
        let mut console = match File::open(self.console()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            console => console?,
        };
        let length = console.metadata()?.len();
        console.seek(io::SeekFrom::Start(
            length.saturating_sub(CONSOLE_KEPT_BYTES),
        ))?;
        let mut kept = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(target)?;
        io::copy(&mut console.take(CONSOLE_KEPT_BYTES), &mut kept).map(drop)
    }
}
