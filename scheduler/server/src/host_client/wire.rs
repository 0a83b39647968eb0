//! Frames of the host API on a stream, with the descriptor that may come along.

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde::Serialize;
use slipway_core::fence::VolumeFence;
use slipway_core::host_api::{FENCED_SINCE, HostRequest, HostRequestFrame, Page};
use slipway_core::key::KeyLease;
use slipway_core::limits::HOST_API_FRAME_BYTES_MAX;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

/// More than any request takes.
const FRAME_BYTES: usize = 4 << 10;

/// A frame as it is sent. Nothing of it is copied.
#[derive(Serialize)]
struct Sent<'a> {
    version: u32,
    request: &'a HostRequest,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<&'a KeyLease>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fence: Option<&'a VolumeFence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<&'a Page>,
}

/// The bytes of a frame in this version: an older one has less in it. There may be a key in them, so that they are wiped when they are sent.
pub(super) fn encode(
    frame: &HostRequestFrame,
    version: u32,
) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    // Room enough from the start: a buffer that grows leaves copies behind.
    let mut body = Zeroizing::new(Vec::with_capacity(FRAME_BYTES));
    let fenced = version >= FENCED_SINCE;
    let sent = Sent {
        version,
        request: &frame.request,
        lease: frame.lease.as_ref(),
        fence: frame.fence.as_ref().filter(|_| fenced),
        page: frame.page.as_ref().filter(|_| fenced),
    };
    serde_json::to_writer(&mut *body, &sent).map(|()| body)
}

/// One request and its reply.
pub(super) async fn exchange_on(
    stream: &mut UnixStream,
    body: &[u8],
) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut frame = Zeroizing::new(Vec::with_capacity(4 + body.len()));
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(body);
    stream.write_all(&frame).await?;

    let mut head = [0u8; 4];
    let (got, fd) = receive_head(stream, &mut head).await?;
    stream.read_exact(&mut head[got..]).await?;
    let length = u32::from_be_bytes(head) as usize;
    if length > HOST_API_FRAME_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "reply frame is too large",
        ));
    }
    let mut reply = vec![0; length];
    stream.read_exact(&mut reply).await?;
    Ok((reply, fd))
}

/// Reads the beginning of a reply's length, with the descriptor that may come along on its first byte.
async fn receive_head(
    stream: &UnixStream,
    head: &mut [u8; 4],
) -> io::Result<(usize, Option<OwnedFd>)> {
    loop {
        stream.readable().await?;
        let tried = stream.try_io(Interest::READABLE, || {
            let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
            let mut parts = [IoSliceMut::new(head)];
            let message = recvmsg::<()>(
                stream.as_raw_fd(),
                &mut parts,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            )?;
            let mut received = None;
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(fds) = control {
                    // All are owned, so that none leaks; more than one is not in the protocol.
                    received = fds.into_iter().map(own).next_back();
                }
            }
            Ok((message.bytes, received))
        });
        match tried {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

#[expect(
    unsafe_code,
    reason = "a descriptor received by SCM_RIGHTS arrives as a bare number"
)]
fn own(fd: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
