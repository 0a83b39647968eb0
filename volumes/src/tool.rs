//! Runs the few programs that the drivers need, with a deadline and bounded output.
//!
//! Must not know: what the programs do.

use crate::error::VolumeError;
use crate::limits::{POLL_PAUSE, TOOL_OUTPUT_BYTES_MAX};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the programs are, whatever the caller's own search path is.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a program ended by itself.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Exit code; absent when a signal ended it.
    pub(crate) code: Option<i32>,
    /// The last of what it wrote, both streams.
    pub(crate) output: String,
}

/// Runs `program` to its end, with nothing of our environment.
///
/// # Errors
/// [`VolumeError::Tool`] if it cannot be started or takes longer than `duration_max` (it is then killed).
pub(crate) fn run(
    program: &'static str,
    args: &[&OsStr],
    duration_max: Duration,
) -> Result<Ended, VolumeError> {
    let fail = |detail: String| VolumeError::Tool { program, detail };
    let (mut reader, writer) = io::pipe().map_err(|e| fail(e.to_string()))?;
    let clone = writer.try_clone().map_err(|e| fail(e.to_string()))?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(writer).stderr(clone);
    let mut child = command.spawn().map_err(|e| {
        fail(if e.kind() == io::ErrorKind::NotFound {
            "not installed (hint: apt-get install e2fsprogs)".to_owned()
        } else {
            format!("cannot be started: {e}")
        })
    })?;
    // The command holds our writing ends; the reader sees the end of the output only without them.
    drop(command);
    let output = std::thread::spawn(move || tail(&mut reader));
    let status = wait(&mut child, duration_max);
    let output = output.join().unwrap_or_default();
    match status.map_err(|e| fail(e.to_string()))? {
        Some(status) => Ok(Ended {
            code: status.code(),
            output,
        }),
        None => Err(fail(format!(
            "killed after {} s: {output}",
            duration_max.as_secs()
        ))),
    }
}

/// Waits for the end; kills it at the deadline and then gives nothing.
fn wait(child: &mut Child, duration_max: Duration) -> io::Result<Option<std::process::ExitStatus>> {
    let deadline = Instant::now() + duration_max;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL_PAUSE);
    }
}

/// Reads all, keeps the last bytes, as one line.
fn tail(reader: &mut impl Read) -> String {
    let mut kept = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = reader.read(&mut chunk) {
        kept.extend_from_slice(&chunk[..n]);
        let excess = kept.len().saturating_sub(TOOL_OUTPUT_BYTES_MAX);
        kept.drain(..excess);
    }
    let text = String::from_utf8_lossy(&kept);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, duration_max: Duration) -> Result<Ended, VolumeError> {
        run("sh", &["-c".as_ref(), script.as_ref()], duration_max)
    }

    #[test]
    fn gives_code_and_the_last_words() {
        let long = Duration::from_secs(30);
        let ended = sh("echo out; echo err >&2; exit 4", long).unwrap();
        assert_eq!((ended.code, ended.output.as_str()), (Some(4), "out err"));
        let ended = sh("head -c 1000000 /dev/zero | tr '\\0' x; echo the end", long).unwrap();
        assert!(ended.output.len() <= TOOL_OUTPUT_BYTES_MAX && ended.output.ends_with("xthe end"));
        assert_eq!(sh("kill -9 $$", long).unwrap().code, None);
    }

    #[test]
    fn kills_at_the_deadline_and_tells_what_is_missing() {
        let began = Instant::now();
        let error = sh("exec sleep 60", Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("killed after"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(20));
        let error = run("slipway-no-such-program", &[], Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("not installed"), "{error}");
    }
}
