//! A stream to a listener of a machine.
//!
//! Whoever listens in a machine is hostile, and over a unix socket may attach descriptors to its answers (`SCM_RIGHTS`). The
//! kernel closes those that nobody takes in the thread that reads or closes the stream, and to close a TCP socket with
//! `SO_LINGER` may take that thread as long as the sender likes. So no descriptor may get as far as a thread of the runtime:
//!
//! | kernel | what keeps them out |
//! |---|---|
//! | 6.16 and later | `SO_PASSRIGHTS=0`, which the host sets before it connects: the sender gets an error |
//! | older | [`Guard::Peek`]: each read looks first, and leaves a message with descriptors where it is. Such a stream is broken, and is closed by [`disposal`] |
//!
//! Which of them holds is asked of each socket, since the host may be another computer's.
//!
//! Must not know: what is spoken on it, or which machine it leads to.

mod disposal;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockaddrLike, SockaddrStorage, getsockname, getsockopt,
    recv, recvmsg, setsockopt, shutdown, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// `SO_PASSRIGHTS` of the kernel's `asm-generic/socket.h`.
const SO_PASSRIGHTS: libc::c_int = 83;

nix::getsockopt_impl!(
    PassRights,
    libc::SOL_SOCKET,
    SO_PASSRIGHTS,
    bool,
    sockopt::GetBool
);

/// Whether a unix socket takes descriptors that nobody asked for.
#[derive(Clone, Copy)]
struct PassRights;

/// What keeps descriptors away from whoever reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guard {
    /// The kernel refuses them.
    Kernel,
    /// Each read looks whether there are any.
    Peek,
}

/// A stream that a machine answers on.
#[derive(Debug)]
pub struct MachineStream(Inner);

#[derive(Debug)]
enum Inner {
    Tcp(TcpStream),
    /// Absent only while it is dropped.
    Unix(Option<UnixStream>, Guard),
}

impl MachineStream {
    /// Takes a connected socket that came from a host.
    ///
    /// # Errors
    /// It is no stream of TCP or of a unix socket, or what the system said.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let family = getsockname::<SockaddrStorage>(socket.as_raw_fd())?.family();
        if family == Some(AddressFamily::Inet) || family == Some(AddressFamily::Inet6) {
            let stream = std::net::TcpStream::from(socket);
            stream.set_nonblocking(true)?;
            return Ok(Self(Inner::Tcp(TcpStream::from_std(stream)?)));
        }
        if family == Some(AddressFamily::Unix) {
            let guard = guard_of(&socket)?;
            let stream = std::os::unix::net::UnixStream::from(socket);
            stream.set_nonblocking(true)?;
            let stream = UnixStream::from_std(stream)?;
            return Ok(Self(Inner::Unix(Some(stream), guard)));
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a machine's stream is neither TCP nor a unix socket",
        ))
    }
}

/// What must be done to read from `socket`.
fn guard_of(socket: &OwnedFd) -> io::Result<Guard> {
    match getsockopt(socket, PassRights) {
        Ok(false) => Ok(Guard::Kernel),
        Ok(true) | Err(Errno::ENOPROTOOPT) => {
            // Else a read drops an urgent byte that a look does not see, with all that is attached to it.
            setsockopt(socket, sockopt::OobInline, &true)?;
            Ok(Guard::Peek)
        }
        Err(error) => Err(error.into()),
    }
}

/// The error of a stream whose sender attached descriptors.
fn refused() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the machine attached descriptors to its answer",
    )
}

/// Looks at what there is, without taking it. Nothing more to come is 0.
fn look(socket: RawFd, into: &mut [u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let mut parts = [IoSliceMut::new(into)];
    // Without room for them, descriptors are told of and stay where they are.
    let message = recvmsg::<()>(socket, &mut parts, None, flags)?;
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(refused());
    }
    Ok(message.bytes)
}

/// Reads what came without descriptors.
fn read_guarded(socket: RawFd, into: &mut [u8]) -> io::Result<usize> {
    let seen = look(socket, into)?;
    if seen == 0 {
        return Ok(0);
    }
    // Nobody else reads here, so that these are the very bytes that were looked at.
    Ok(recv(socket, &mut into[..seen], MsgFlags::MSG_DONTWAIT)?)
}

fn poll_read_guarded(
    stream: &UnixStream,
    cx: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    if buffer.remaining() == 0 {
        return Poll::Ready(Ok(()));
    }
    loop {
        ready!(stream.poll_read_ready(cx))?;
        let into = buffer.initialize_unfilled();
        match stream.try_io(Interest::READABLE, || {
            read_guarded(stream.as_raw_fd(), into)
        }) {
            Ok(n) => {
                buffer.advance(n);
                return Poll::Ready(Ok(()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

impl AsyncRead for MachineStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Inner::Unix(Some(stream), Guard::Kernel) => Pin::new(stream).poll_read(cx, buffer),
            Inner::Unix(Some(stream), Guard::Peek) => poll_read_guarded(stream, cx, buffer),
            Inner::Unix(None, _) => Poll::Ready(Ok(())),
        }
    }
}

impl Inner {
    fn writer(&mut self) -> Option<Pin<&mut dyn AsyncWrite>> {
        match self {
            Self::Tcp(stream) => Some(Pin::new(stream) as Pin<&mut dyn AsyncWrite>),
            Self::Unix(stream, _) => stream.as_mut().map(|s| Pin::new(s) as _),
        }
    }
}

impl AsyncWrite for MachineStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.0.writer() {
            Some(writer) => writer.poll_write(cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.0.writer() {
            Some(writer) => writer.poll_write_vectored(cx, parts),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0.writer() {
            Some(writer) => writer.poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0.writer() {
            Some(writer) => writer.poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for MachineStream {
    fn drop(&mut self) {
        let Inner::Unix(stream, Guard::Peek) = &mut self.0 else {
            return;
        };
        let Some(stream) = stream.take() else {
            return;
        };
        // From here on nothing more arrives, so that a look tells what closing would close.
        let ended = shutdown(stream.as_raw_fd(), Shutdown::Both);
        let left = look(stream.as_raw_fd(), &mut [0]);
        match (ended, left, stream.into_std()) {
            (Ok(()), Ok(0), Ok(empty)) => drop(empty),
            (_, _, Ok(stream)) => disposal::dispose(stream.into()),
            // The runtime ends, and nobody is left whom closing could hold up.
            (_, _, Err(_)) => {}
        }
    }
}
