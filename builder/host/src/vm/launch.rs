//! Starts QEMU, confined, and looks whether it runs.
//!
//! Must not know: what is on its command line.

use crate::driver::DriverError;
use crate::limits::PROBE_WAIT_MAX;
use crate::process::ProcessId;
use crate::sys::{self, Confinement};
use slipway_volumes::BareRoot;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// The device that QEMU needs for KVM.
pub(super) const KVM: &str = "/dev/kvm";
/// Bits that let a file's group read and write it.
const GROUP_READ_WRITE: u32 = 0o060;

/// The group that may use KVM, as distributions set it up; none if it is root's alone or everybody's.
pub(super) fn kvm_group() -> Option<u32> {
    let found = fs::metadata(KVM).ok()?;
    let open = found.mode() & GROUP_READ_WRITE == GROUP_READ_WRITE;
    (open && found.gid() != 0).then(|| found.gid())
}

/// What QEMU sees of the host's files: programs, libraries and firmware, itself in `/proc` (it opens what it was passed anew by
/// that way), and a device or two. Nothing of a machine, and no settings.
///
/// # Errors
/// What the system said.
pub(super) fn root() -> io::Result<BareRoot> {
    let mut root = BareRoot::with_programs()?;
    root.add_processes()?;
    root.add_directory(Path::new("/dev"))?;
    for device in [KVM, "/dev/null", "/dev/urandom"] {
        root.add_file(Path::new(device))?;
    }
    root.add_directory(Path::new("/etc"))?;
    // Where libraries outside the usual directories are.
    root.add_file(Path::new("/etc/ld.so.cache"))?;
    Ok(root)
}

/// Starts `qemu` with `fds` as its descriptors from 3 on; what it says goes to `words`.
///
/// # Errors
/// What the system said.
pub(super) fn start(
    qemu: &Path,
    arguments: &[String],
    fds: &[&OwnedFd],
    confinement: Confinement,
    words: Stdio,
) -> io::Result<Child> {
    let mut command = Command::new(qemu);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(words);
    sys::pass_fds(&mut command, fds)?;
    sys::confine(&mut command, confinement);
    command.spawn()
}

/// The identity of a child.
///
/// # Errors
/// [`DriverError::System`] when it has gone.
pub(super) fn identify(child: &Child) -> Result<ProcessId, DriverError> {
    let failed = DriverError::at("examine process", Path::new("qemu"));
    let pid = match i32::try_from(child.id()) {
        Ok(pid) => pid,
        Err(error) => return Err(failed(io::Error::other(error))),
    };
    ProcessId::of(pid).map_err(failed)
}

/// Runs QEMU until `wanted` is among what it prints, or its end, or [`PROBE_WAIT_MAX`]; then kills it. Gives why not.
///
/// # Errors
/// QEMU's last words, or what the system said.
pub(super) fn prints(
    qemu: &Path,
    arguments: &[String],
    files: [File; 2],
    confinement: Confinement,
    wanted: &str,
) -> Result<(), String> {
    let fds = files.map(OwnedFd::from);
    let mut command = Command::new(qemu);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let told = |error: io::Error| error.to_string();
    sys::pass_fds(&mut command, &fds.iter().collect::<Vec<_>>()).map_err(told)?;
    sys::confine(&mut command, confinement);
    let mut child = command.spawn().map_err(told)?;
    let out = child.stdout.take().map(OwnedFd::from);
    let errors = child.stderr.take();
    let seen = out.is_some_and(|out| wait_for(out, wanted));
    // Ended already is what is wanted.
    let _ = child.kill();
    let _ = child.wait();
    if seen {
        return Ok(());
    }
    let mut words = String::new();
    // What cannot be read is simply not told.
    let _ = errors.map(|errors| errors.take(4096).read_to_string(&mut words));
    let last = words.lines().rev().find(|line| !line.trim().is_empty());
    Err(last
        .unwrap_or("the kernel said nothing in time")
        .trim()
        .to_owned())
}

fn wait_for(out: OwnedFd, wanted: &str) -> bool {
    let deadline = Instant::now() + PROBE_WAIT_MAX;
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while crate::program::wait_readable(&out, deadline).unwrap_or(false) {
        let read = nix::unistd::read(&out, &mut piece).unwrap_or(0);
        if read == 0 {
            return false;
        }
        text.extend_from_slice(&piece[..read]);
        if text
            .windows(wanted.len())
            .any(|part| part == wanted.as_bytes())
        {
            return true;
        }
    }
    false
}
