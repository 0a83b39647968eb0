//! Runs the few programs that the drivers need, with a deadline and bounded output.
//!
//! Must not know: what the programs do.

use crate::confine;
use crate::error::VolumeError;
use crate::limits::{
    MODPROBE_DURATION_MAX, POLL_PAUSE, TOOL_OUTPUT_BYTES_MAX, TOOL_REPORT_BYTES_MAX,
};
use slipway_core::fsck::{self, Checked};
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::Path;
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

impl Ended {
    /// For programs that end with 0 when all went well.
    pub(crate) fn success(self, program: &'static str) -> Result<(), VolumeError> {
        match self.code {
            Some(0) => Ok(()),
            Some(_) | None => Err(self.failed(program)),
        }
    }

    /// What the end of `e2fsck` says of the file system.
    pub(crate) fn checked(&self) -> Checked {
        fsck::checked(self.code, &self.output)
    }

    /// For a program that did not do its work.
    pub(crate) fn failed(self, program: &'static str) -> VolumeError {
        let how = self.code.map_or_else(
            || "ended by a signal".to_owned(),
            |code| format!("exit code {code}"),
        );
        VolumeError::Tool {
            program,
            detail: format!("{how}: {}", self.output),
        }
    }
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
    run_with_input(program, args, None, duration_max)
}

/// The same, with something to read: at most what a pipe takes at once (4 KiB).
pub(crate) fn run_with_input(
    program: &'static str,
    args: &[&OsStr],
    input: Option<&[u8]>,
    duration_max: Duration,
) -> Result<Ended, VolumeError> {
    start(program, args, (input, None), None, duration_max)
}

/// Runs `program` on a block device that a tenant may have written, its last argument, with no right but to that device.
pub(crate) fn run_confined(
    program: &'static str,
    args: &[&str],
    device: &Path,
    duration_max: Duration,
) -> Result<Ended, VolumeError> {
    let args = args.iter().chain([&confine::DISK]).map(OsStr::new);
    let args: Vec<&OsStr> = args.collect();
    start(program, &args, (None, Some(device)), None, duration_max)
}

/// Both streams go to [`Ended::output`], but the standard output to `report` if there is one. With a `disk` the program is
/// confined to that.
fn start(
    program: &'static str,
    args: &[&OsStr],
    (input, disk): (Option<&[u8]>, Option<&Path>),
    report: Option<io::PipeWriter>,
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
    if !Path::new("/run/udev/control").exists() {
        // Without a udev daemon device-mapper's programs make their nodes themselves, and wait for nobody.
        command.env("DM_DISABLE_UDEV", "1");
    }
    if let Some(disk) = disk {
        confine::confine(&mut command, disk).map_err(|e| fail(e.to_string()))?;
    }
    let stdin = match input {
        None => Stdio::null(),
        Some(input) => {
            let (read, mut write) = io::pipe().map_err(|e| fail(e.to_string()))?;
            write.write_all(input).map_err(|e| fail(e.to_string()))?;
            Stdio::from(read)
        }
    };
    command
        .stdin(stdin)
        .stdout(report.unwrap_or(writer))
        .stderr(clone);
    let mut child = command.spawn().map_err(|e| {
        fail(if e.kind() == io::ErrorKind::NotFound {
            format!("not installed (hint: apt-get install {})", package(program))
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

/// Runs `program` to its end and gives what it wrote to its standard output.
///
/// # Errors
/// [`VolumeError::Tool`] if it does not end with 0, or writes more than [`TOOL_REPORT_BYTES_MAX`].
pub(crate) fn output(
    program: &'static str,
    args: &[&str],
    duration_max: Duration,
) -> Result<Vec<u8>, VolumeError> {
    let fail = |detail: String| VolumeError::Tool { program, detail };
    let (reader, writer) = io::pipe().map_err(|e| fail(e.to_string()))?;
    let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    let report = std::thread::spawn(move || {
        let mut text = Vec::new();
        let most = TOOL_REPORT_BYTES_MAX as u64 + 1;
        reader.take(most).read_to_end(&mut text).map(|_| text)
    });
    let ended = start(program, &args, (None, None), Some(writer), duration_max);
    let text = report.join().map_err(|_| fail("not read".to_owned()))?;
    ended?.success(program)?;
    let text = text.map_err(|e| fail(e.to_string()))?;
    if text.len() > TOOL_REPORT_BYTES_MAX {
        return Err(fail("it writes too much".to_owned()));
    }
    Ok(text)
}

/// Loads a module of the kernel if the node that it makes is not there. Where udev is, opening a node does that; without it
/// there is no node to open. Gives whether the node is there now.
pub(crate) fn load_module(name: &str, node: &str) -> bool {
    let there = || Path::new(node).exists();
    if !there()
        && let Err(error) = run("modprobe", &[OsStr::new(name)], MODPROBE_DURATION_MAX)
            .and_then(|ended| ended.success("modprobe"))
    {
        tracing::info!(module = name, %error, "a module of the kernel is not loaded");
    }
    there()
}

/// Debian's package of a program.
fn package(program: &str) -> &str {
    match program {
        "mkfs.ext4" | "e2fsck" | "resize2fs" => "e2fsprogs",
        "cryptsetup" => "cryptsetup-bin",
        "lvs" | "lvcreate" | "lvchange" | "lvremove" | "lvextend" => "lvm2",
        "dmsetup" => "dmsetup",
        "fsfreeze" => "util-linux",
        "modprobe" => "kmod",
        other => other,
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
        let long = Duration::from_secs(180);
        let ended = sh("echo out; echo err >&2; exit 4", long).unwrap();
        assert_eq!((ended.code, ended.output.as_str()), (Some(4), "out err"));
        let ended = sh("head -c 1000000 /dev/zero | tr '\\0' x; echo the end", long).unwrap();
        assert!(ended.output.len() <= TOOL_OUTPUT_BYTES_MAX && ended.output.ends_with("xthe end"));
        assert_eq!(sh("kill -9 $$", long).unwrap().code, None);
    }

    #[test]
    fn kills_at_the_deadline_and_tells_what_is_missing() {
        let error = sh("exec sleep 100000", Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("killed after"), "{error}");
        let error = run("slipway-no-such-program", &[], Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("not installed"), "{error}");
    }
}
