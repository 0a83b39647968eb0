//! Makes a mounted file system stand still for a moment, and go on for certain.
//!
//! Nothing can be written while it stands still, so that a process that died then would block every writer for ever.
//! Therefore a second process waits beside it: when ours is gone, or the time is over, that one lets the file system go on. And a
//! pool that is opened lets all of its file systems go on.
//!
//! Interface: `FIFREEZE` and `FITHAW` of `include/uapi/linux/fs.h`.
//!
//! Must not know: volumes, what is done meanwhile.

use crate::limits::FREEZE_DURATION_MAX;
use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

#[expect(unsafe_code, reason = "freezing is an ioctl alone")]
mod sys {
    use nix::libc::c_int;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    nix::ioctl_readwrite!(fifreeze, b'X', 119, c_int);
    nix::ioctl_readwrite!(fithaw, b'X', 120, c_int);

    pub(super) fn freeze(dir: &File) -> nix::Result<()> {
        let mut unused = 0;
        // SAFETY: the descriptor is open for the call; the kernel ignores the argument.
        unsafe { fifreeze(dir.as_raw_fd(), &mut unused) }.map(drop)
    }

    pub(super) fn thaw(dir: &File) -> nix::Result<()> {
        let mut unused = 0;
        // SAFETY: as above.
        unsafe { fithaw(dir.as_raw_fd(), &mut unused) }.map(drop)
    }
}

/// A file system that stands still. Dropping it lets it go on.
#[derive(Debug)]
pub(crate) struct Frozen {
    dir: Option<File>,
    guard: Child,
    until: Instant,
}

/// The guard: waits until its input ends (we are gone) or the time is over, then thaws. Its output is the directory, which no
/// path leads to.
const GUARD: &str = r#"timeout "$1" cat >/dev/null; exec fsfreeze --unfreeze /proc/self/fd/1"#;

/// Freezes the file system that `dir` is a directory of. All that was written before is on disk then.
pub(crate) fn freeze(dir: File) -> io::Result<Frozen> {
    let guard = Command::new("/bin/sh")
        .args(["-c", GUARD, "freeze-guard"])
        .arg(FREEZE_DURATION_MAX.as_secs().to_string())
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(dir.try_clone()?)
        .stderr(Stdio::null())
        .spawn()?;
    let mut frozen = Frozen {
        dir: None,
        guard,
        until: Instant::now() + FREEZE_DURATION_MAX,
    };
    sys::freeze(&dir)?;
    frozen.dir = Some(dir);
    Ok(frozen)
}

impl Frozen {
    /// Whether there is time left; some is kept for the way back.
    pub(crate) fn may_go_on(&self) -> bool {
        self.until
            .checked_duration_since(Instant::now())
            .is_some_and(|left| left > FREEZE_DURATION_MAX / 10)
    }

    /// Lets it go on. Gives whether it stood still up to now.
    pub(crate) fn thaw(mut self) -> io::Result<bool> {
        self.end()
    }

    fn end(&mut self) -> io::Result<bool> {
        let thawed = match self.dir.take().map(|dir| sys::thaw(&dir)) {
            Some(Ok(())) => Ok(true),
            // The guard was faster.
            None | Some(Err(Errno::EINVAL)) => Ok(false),
            Some(Err(errno)) => Err(errno.into()),
        };
        if thawed.is_ok() {
            // Before anybody freezes it again, for it would let that go on.
            self.guard.kill()?;
        } else {
            drop(self.guard.stdin.take());
        }
        self.guard.wait()?;
        thawed
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "a file system may stand still");
        }
    }
}

/// Lets a file system go on that somebody left frozen. Gives whether it was.
pub(crate) fn thaw_if_frozen(dir: &File) -> io::Result<bool> {
    match sys::thaw(dir) {
        Ok(()) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
