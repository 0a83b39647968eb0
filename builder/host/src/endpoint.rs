//! Unix listeners of machines: bound by the host in a directory that only root can enter.
//!
//! Must not know: who accepts, or what is spoken.

use crate::files::remove_all;
use crate::limits::ENDPOINT_BACKLOG;
use nix::sys::socket;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A unix address by way of its opened directory: state directories may be longer than the 107 bytes of an address.
fn address(path: &Path) -> io::Result<(fs::File, socket::UnixAddr)> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let dir = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECTORY)
        .open(parent)?;
    let short = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name);
    Ok((dir, socket::UnixAddr::new(&short)?))
}

fn stream() -> io::Result<OwnedFd> {
    let flags = socket::SockFlag::SOCK_CLOEXEC | socket::SockFlag::SOCK_NONBLOCK;
    Ok(socket::socket(
        socket::AddressFamily::Unix,
        socket::SockType::Stream,
        flags,
        None,
    )?)
}

/// A listener at `path`, in the place of any before it. It does not block: the guest's runtime expects that, and dockerd
/// does not care.
pub(crate) fn listen(path: &Path) -> io::Result<OwnedFd> {
    remove_all(path)?;
    let (_dir, address) = address(path)?;
    let listener = stream()?;
    socket::bind(listener.as_raw_fd(), &address)?;
    socket::listen(&listener, socket::Backlog::new(ENDPOINT_BACKLOG)?)?;
    Ok(listener)
}

/// A stream to the listener at `path`; it does not block. `WouldBlock` when the backlog is full.
pub(crate) fn connect(path: &Path) -> io::Result<OwnedFd> {
    let (_dir, address) = address(path)?;
    let stream = stream()?;
    socket::connect(stream.as_raw_fd(), &address)?;
    Ok(stream)
}
