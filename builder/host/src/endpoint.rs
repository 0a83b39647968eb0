//! Unix listeners of machines: bound by the host in a directory that only root can enter.
//!
//! Whoever listens in a machine is hostile. A stream to it takes no descriptors: the kernel would close those in whatever
//! thread reads the stream, which the sender can make wait (`SO_LINGER`). Kernels before 6.16 cannot refuse them; readers then
//! see to it.
//!
//! Must not know: who accepts, or what is spoken.

use crate::files::remove_all;
use crate::limits::ENDPOINT_BACKLOG;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket;
use nix::sys::socket::sockopt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `SO_PASSRIGHTS` of the kernel's `asm-generic/socket.h`.
const SO_PASSRIGHTS: libc::c_int = 83;

nix::setsockopt_impl!(
    PassRights,
    libc::SOL_SOCKET,
    SO_PASSRIGHTS,
    bool,
    sockopt::SetBool
);

/// Whether a unix socket takes descriptors that nobody asked for.
#[derive(Clone, Copy)]
struct PassRights;

/// Makes a unix socket refuse descriptors; their sender gets an error. What a listener accepts is as the listener is. Kernels
/// before 6.16 know no way, which is no error.
///
/// # Errors
/// What the system said.
pub(crate) fn refuse_descriptors(socket: &impl AsFd) -> io::Result<()> {
    match socket::setsockopt(socket, PassRights, &false) {
        Ok(()) | Err(Errno::ENOPROTOOPT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

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
    // Before the other end can know of the stream.
    refuse_descriptors(&stream)?;
    socket::connect(stream.as_raw_fd(), &address)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::IoSlice;

    fn send_descriptor(to: &OwnedFd, flags: MsgFlags) -> nix::Result<usize> {
        let null = fs::File::open("/dev/null").unwrap();
        let descriptors = [null.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let data = [IoSlice::new(b"x")];
        sendmsg::<()>(to.as_raw_fd(), &data, &rights, flags, None)
    }

    #[test]
    fn a_stream_to_a_machine_takes_no_descriptors_where_the_kernel_can_refuse_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let listener = std::os::unix::net::UnixListener::from(listen(&path).unwrap());
        let stream = connect(&path).unwrap();
        let machine = OwnedFd::from(listener.accept().unwrap().0);
        if socket::setsockopt(&stream, PassRights, &false) == Err(Errno::ENOPROTOOPT) {
            eprintln!("this kernel cannot refuse descriptors; readers see to it");
            return;
        }
        for flags in [MsgFlags::empty(), MsgFlags::MSG_OOB] {
            assert_eq!(send_descriptor(&machine, flags), Err(Errno::EPERM));
        }
        // Bytes alone arrive as ever.
        let data = [IoSlice::new(b"x")];
        let sent = sendmsg::<()>(machine.as_raw_fd(), &data, &[], MsgFlags::empty(), None);
        assert_eq!(sent, Ok(1));
    }

    #[test]
    fn what_a_listener_accepts_refuses_descriptors_as_the_listener_does() {
        let (peer, ours) = {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("host.sock");
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            refuse_descriptors(&listener).unwrap();
            let peer = std::os::unix::net::UnixStream::connect(&path).unwrap();
            (OwnedFd::from(peer), listener.accept().unwrap().0)
        };
        if socket::setsockopt(&ours, PassRights, &false) == Err(Errno::ENOPROTOOPT) {
            eprintln!("this kernel cannot refuse descriptors; readers see to it");
            return;
        }
        assert_eq!(send_descriptor(&peer, MsgFlags::empty()), Err(Errno::EPERM));
    }
}
