//! Runs other programs (`runc`, `ip`, `nft`, `mount`, `unsquashfs`) within a time limit, and turns their failure into an error that
//! names them and carries their last words.
//!
//! Must not know: what they are run for.

use crate::limits::{PROGRAM_OUTPUT_BYTES_MAX, PROGRAM_WAIT_MAX};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It could not be started or spoken to.
    #[error("run {program} (hint: is it installed?)")]
    Run {
        /// Which.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("{program} failed ({status}): {output}")]
    Failed {
        /// Which.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// It took too long and was killed.
    #[error("{program} took more than {} s", PROGRAM_WAIT_MAX.as_secs())]
    TooLong {
        /// Which.
        program: String,
    },
}

/// Runs `command` to its end, with `input` on its stdin. Its output goes into the error if it fails.
///
/// # Errors
/// [`ProgramError`].
pub(crate) fn run(command: &mut Command, input: &str) -> Result<(), ProgramError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let io = |source| ProgramError::Run {
        program: program.clone(),
        source,
    };
    // A file and not a pipe: a program that leaves a child behind cannot make us wait for the pipe's end.
    let output = scratch_file().map_err(io)?;
    command
        .stdout(output.try_clone().map_err(io)?)
        .stderr(output.try_clone().map_err(io)?);
    let status = run_quiet(command, input, &program)?;
    if status.success() {
        return Ok(());
    }
    Err(ProgramError::Failed {
        program,
        status,
        output: tail(output),
    })
}

/// Runs `command`, whose stdout and stderr the caller has set, to its end.
pub(crate) fn run_status(command: &mut Command) -> Result<ExitStatus, ProgramError> {
    let program = command.get_program().to_string_lossy().into_owned();
    run_quiet(command, "", &program)
}

fn run_quiet(
    command: &mut Command,
    input: &str,
    program: &str,
) -> Result<ExitStatus, ProgramError> {
    let io = |source| ProgramError::Run {
        program: program.to_owned(),
        source,
    };
    command.stdin(if input.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    });
    crate::sys::die_with_parent(command);
    let mut child = command.spawn().map_err(io)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading says why by its status.
        let _ = stdin.write_all(input.as_bytes());
    }
    wait(&mut child, PROGRAM_WAIT_MAX)
        .map_err(io)?
        .ok_or_else(|| ProgramError::TooLong {
            program: program.to_owned(),
        })
}

/// Waits for `child` at most `wait`; then kills it and gives nothing.
fn wait(child: &mut Child, wait: Duration) -> io::Result<Option<ExitStatus>> {
    let ended = i32::try_from(child.id())
        .map_err(io::Error::other)
        .and_then(crate::sys::pidfd_open)?;
    let deadline = Instant::now() + wait;
    if wait_readable(&ended, deadline)? {
        return child.wait().map(Some);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// Waits until `fd` is readable (a pidfd: until its process has ended) or `deadline`; whether it is.
pub(crate) fn wait_readable(fd: &std::os::fd::OwnedFd, deadline: Instant) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

fn scratch_file() -> io::Result<File> {
    let fd =
        nix::sys::memfd::memfd_create("slipway-output", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    Ok(fd.into())
}

/// The end of a file, as one line.
fn tail(mut file: File) -> String {
    let mut bytes = Vec::new();
    let length = file.metadata().map_or(0, |m| m.len());
    let from = length.saturating_sub(PROGRAM_OUTPUT_BYTES_MAX as u64);
    if file.seek(io::SeekFrom::Start(from)).is_ok() {
        // What cannot be read is simply not in the message.
        let _ = file
            .take(PROGRAM_OUTPUT_BYTES_MAX as u64)
            .read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_the_last_words() {
        let error = run(
            Command::new("sh").args(["-c", "cat; echo no luck >&2; exit 3"]),
            "hello\n",
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "sh failed (exit status: 3): hello; no luck"
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("slipway-no-such-program"), "").unwrap_err();
        assert!(error.to_string().contains("slipway-no-such-program"));
    }

    #[test]
    fn a_program_that_goes_on_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(
            wait(&mut child, Duration::from_millis(20))
                .unwrap()
                .is_none()
        );
    }
}
