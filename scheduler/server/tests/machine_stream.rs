//! A machine that attaches descriptors to its answers holds up nobody.
//!
//! Each case runs on a runtime of one thread. The descriptors are TCP sockets that linger for an hour, so that a thread that
//! closes one stands still for longer than any test is waited for.

use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use slipway_scheduler::machine_stream::MachineStream;
use std::io::{IoSlice, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// `SO_PASSRIGHTS` of the kernel's `asm-generic/socket.h`.
const SO_PASSRIGHTS: libc::c_int = 83;

nix::setsockopt_impl!(
    PassRights,
    libc::SOL_SOCKET,
    SO_PASSRIGHTS,
    bool,
    nix::sys::socket::sockopt::SetBool
);

#[derive(Clone, Copy)]
struct PassRights;

const LINGER_S: i32 = 3600;
/// What a case takes is milliseconds.
const STANDS_STILL: Duration = Duration::from_secs(60);

/// A TCP socket with unsent bytes that takes an hour to close, and what keeps it so.
struct Lingering {
    socket: Option<TcpStream>,
    _far: TcpListener,
}

impl Lingering {
    fn new() -> Self {
        let far = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut socket =
            TcpStream::connect(far.local_addr().expect("its address")).expect("connected");
        socket.set_nonblocking(true).expect("set");
        while socket.write(&[0; 64 << 10]).is_ok() {}
        socket.set_nonblocking(false).expect("set");
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: LINGER_S,
        };
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Linger, &linger)
            .expect("set");
        Self {
            socket: Some(socket),
            _far: far,
        }
    }

    /// Sends `bytes` with the socket; from then on nobody else has it.
    fn send(&mut self, machine: &UnixStream, bytes: &[u8], flags: MsgFlags) -> nix::Result<usize> {
        let socket = self.socket.take().expect("not sent yet");
        let descriptors = [socket.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let parts = [IoSlice::new(bytes)];
        let sent = sendmsg::<()>(machine.as_raw_fd(), &parts, &rights, flags, None);
        if sent.is_err() {
            // Not taken, so that it would linger here.
            self.socket = Some(socket);
        }
        sent
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            let linger = libc::linger {
                l_onoff: 0,
                l_linger: 0,
            };
            nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::Linger, &linger)
                .expect("set");
        }
    }
}

/// Runs a case on a runtime of one thread, and says when that thread stands still.
fn alone<T: Send + 'static>(
    what: &str,
    case: impl FnOnce(UnixStream, OwnedFd) -> std::pin::Pin<Box<dyn Future<Output = T>>>
    + Send
    + 'static,
) -> T {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let (machine, ours) = UnixStream::pair().expect("a pair");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let done = runtime.block_on(async move {
            let done = case(machine, ours.into()).await;
            // Whatever else the runtime has to do is done.
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            done
        });
        let _ = tell.send(done);
    });
    let done = told.recv_timeout(STANDS_STILL);
    done.unwrap_or_else(|_| panic!("the runtime stands still: {what}"))
}

#[test]
fn descriptors_in_an_answer_break_that_stream_and_hold_up_nobody() {
    for flags in [MsgFlags::empty(), MsgFlags::MSG_OOB] {
        let read = alone("reads an answer with descriptors", move |machine, ours| {
            Box::pin(async move {
                let mut stream = MachineStream::new(ours).expect("a stream");
                let mut lingering = Lingering::new();
                lingering
                    .send(&machine, b"HTTP/1.1 200 OK\r\n", flags)
                    .expect("sent");
                let mut some = [0; 64];
                let read = stream.read(&mut some).await;
                // What follows is not read either.
                (&machine).write_all(b"more").expect("sent");
                (read, stream.read(&mut some).await)
            })
        });
        match read {
            (Err(first), Err(second)) => {
                for error in [first, second] {
                    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
                }
            }
            // An urgent byte carries them; those before it come alone.
            (Ok(_), Err(error)) if flags == MsgFlags::MSG_OOB => {
                assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn bytes_before_descriptors_are_read() {
    let (first, second) = alone("reads what came before", |machine, ours| {
        Box::pin(async move {
            let mut stream = MachineStream::new(ours).expect("a stream");
            (&machine).write_all(b"first").expect("sent");
            let mut first = [0; 5];
            stream.read_exact(&mut first).await.expect("read");
            let mut lingering = Lingering::new();
            lingering
                .send(&machine, b"second", MsgFlags::empty())
                .expect("sent");
            (first, stream.read(&mut [0; 64]).await)
        })
    });
    assert_eq!(&first, b"first");
    second.expect_err("descriptors came with it");
}

#[test]
fn a_stream_that_is_closed_with_descriptors_in_it_holds_up_nobody() {
    for urgent in [false, true] {
        alone(
            "closes a stream with descriptors in it",
            move |machine, ours| {
                Box::pin(async move {
                    let stream = MachineStream::new(ours).expect("a stream");
                    let flags = if urgent {
                        MsgFlags::MSG_OOB
                    } else {
                        MsgFlags::empty()
                    };
                    let mut sent: Vec<Lingering> = (0..3).map(|_| Lingering::new()).collect();
                    for lingering in &mut sent {
                        lingering.send(&machine, b"x", flags).expect("sent");
                    }
                    drop(stream);
                })
            },
        );
    }
}

#[test]
fn closing_closes_what_was_attached() {
    let (machine, ours) = UnixStream::pair().expect("a pair");
    let (far, attached) = UnixStream::pair().expect("a pair");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let stream = MachineStream::new(ours.into()).expect("a stream");
        let descriptors = [attached.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let parts = [IoSlice::new(b"x")];
        sendmsg::<()>(
            machine.as_raw_fd(),
            &parts,
            &rights,
            MsgFlags::empty(),
            None,
        )
        .expect("sent");
        drop(attached);
        drop(stream);
    });
    far.set_read_timeout(Some(STANDS_STILL)).expect("set");
    let end = std::io::Read::read(&mut &far, &mut [0]).expect("the other end is closed");
    assert_eq!(end, 0);
}

#[test]
fn a_stream_without_descriptors_carries_all_bytes_both_ways() {
    let got = alone("copies", |machine, ours| {
        Box::pin(async move {
            machine.set_nonblocking(true).expect("set");
            let machine = tokio::net::UnixStream::from_std(machine).expect("a stream");
            let (mut from, mut to) = machine.into_split();
            let echo = tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
            let stream = MachineStream::new(ours).expect("a stream");
            let (mut reader, mut writer) = tokio::io::split(stream);
            let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
            let copy = sent.clone();
            let writing = tokio::spawn(async move {
                writer.write_all(&copy).await.expect("written");
                writer.shutdown().await.expect("ended");
            });
            let mut got = Vec::new();
            reader.read_to_end(&mut got).await.expect("read");
            writing.await.expect("ended");
            echo.await.expect("ended").expect("copied");
            got == sent
        })
    });
    assert!(got);
}

/// As a host sets a socket up where the kernel can refuse descriptors.
#[test]
fn a_socket_that_refuses_descriptors_is_read_as_it_is() {
    let (machine, ours) = UnixStream::pair().expect("a pair");
    if nix::sys::socket::setsockopt(&ours, PassRights, &false).is_err() {
        eprintln!("this kernel cannot refuse descriptors");
        return;
    }
    let mut lingering = Lingering::new();
    assert_eq!(
        lingering.send(&machine, b"x", MsgFlags::empty()),
        Err(nix::errno::Errno::EPERM)
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut stream = MachineStream::new(ours.into()).expect("a stream");
        (&machine).write_all(b"answer").expect("sent");
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await.expect("read");
        assert_eq!(&answer, b"answer");
    });
}
