//! Makes what comes through a pipe readable at any place.
//!
//! An archive's list of contents comes last in what Docker and BuildKit write, and a layer may have to be read twice, so a pipe is kept in
//! a file without a name until the push ends. A file that is given as standard input is read where it lies.

use crate::source::SourceError;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use std::fs::File;
use std::os::fd::BorrowedFd;

/// The file itself if it is one, read from its start; else a copy in the folder for temporary files, which nobody else can open and which
/// goes away with it. Blocks until the pipe ends.
pub fn readable_anywhere(input: BorrowedFd<'_>) -> Result<File, SourceError> {
    let given = std::path::Path::new("standard input");
    let own = input
        .try_clone_to_owned()
        .map_err(SourceError::io("open", given))?;
    let mut own = File::from(own);
    let kind =
        rustix::fs::fstat(&own).map_err(|errno| SourceError::io("stat", given)(errno.into()))?;
    if FileType::from_raw_mode(kind.st_mode) == FileType::RegularFile {
        return Ok(own);
    }
    let folder = std::env::temp_dir();
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    let copy = rustix::fs::openat(CWD, &folder, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| SourceError::io("keep the archive in", &folder)(errno.into()))?;
    let mut copy = File::from(copy);
    std::io::copy(&mut own, &mut copy).map_err(SourceError::io("keep the archive in", &folder))?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    #[test]
    fn a_pipe_is_kept_and_a_file_is_not() {
        let (reader, mut writer) = std::io::pipe().expect("pipe");
        let content: Vec<u8> = (0..=255_u8).cycle().take(300_000).collect();
        let told = content.clone();
        let thread = std::thread::spawn(move || writer.write_all(&told).expect("write"));
        let kept = readable_anywhere(reader.as_fd()).expect("keeps");
        thread.join().expect("thread");
        let mut tail = [0; 256];
        kept.read_exact_at(&mut tail, 256).expect("reads");
        assert_eq!(tail, content[256..512]);
        let kind = kept.metadata().expect("stat");
        assert_eq!((kind.len(), kind.nlink()), (300_000, 0));

        let again = readable_anywhere(kept.as_fd()).expect("opens");
        let (own, other) = (
            kept.metadata().expect("stat"),
            again.metadata().expect("stat"),
        );
        assert_eq!((own.dev(), own.ino()), (other.dev(), other.ino()));
    }
}
