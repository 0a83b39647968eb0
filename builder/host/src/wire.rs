//! Frames of the host API on a stream: a big-endian `u32` length and that many bytes of JSON; at most one descriptor
//! goes with the first byte.
//!
//! Must not know: what is asked or answered.

use crate::limits::FRAME_WAIT_MAX;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use slipway_core::limits::HOST_API_FRAME_BYTES_MAX;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The peer closed between two frames.
    #[error("closed")]
    Closed,
    /// Longer than allowed.
    #[error("a frame of {0} bytes is too long (at most {HOST_API_FRAME_BYTES_MAX})")]
    TooLong(usize),
    /// Begun and not ended in time, or not taken in time.
    #[error("the peer took more than {} s for a frame", FRAME_WAIT_MAX.as_secs())]
    TooSlow,
    /// The stream broke.
    #[error("the connection broke")]
    Broken(#[from] io::Error),
}

/// Reads a frame's bytes. Waits for its first byte without end, for the rest [`FRAME_WAIT_MAX`].
///
/// # Errors
/// [`FrameError`]. Dropping the future before the first byte is fine; after it, the stream's place is lost.
pub(crate) async fn read(stream: &mut UnixStream) -> Result<Vec<u8>, FrameError> {
    let mut first = [0];
    if stream.read(&mut first).await? == 0 {
        return Err(FrameError::Closed);
    }
    timeout(FRAME_WAIT_MAX, read_rest(stream, first[0]))
        .await
        .map_err(|_| FrameError::TooSlow)?
}

async fn read_rest(stream: &mut UnixStream, first: u8) -> Result<Vec<u8>, FrameError> {
    let mut length = [first, 0, 0, 0];
    stream.read_exact(&mut length[1..]).await?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > HOST_API_FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Writes a frame, with `descriptor` on its first byte.
///
/// # Errors
/// [`FrameError`].
pub(crate) async fn write(
    stream: &mut UnixStream,
    json: &[u8],
    descriptor: Option<&OwnedFd>,
) -> Result<(), FrameError> {
    if json.len() > HOST_API_FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(json.len()));
    }
    let length = u32::try_from(json.len()).map_err(|_| FrameError::TooLong(json.len()))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(json);
    let written = timeout(FRAME_WAIT_MAX, async {
        let sent = match descriptor {
            Some(descriptor) => send_first_byte(stream, frame[0], descriptor).await?,
            None => 0,
        };
        stream.write_all(&frame[sent..]).await
    });
    Ok(written.await.map_err(|_| FrameError::TooSlow)??)
}

async fn send_first_byte(stream: &UnixStream, byte: u8, descriptor: &OwnedFd) -> io::Result<usize> {
    let descriptors = [descriptor.as_raw_fd()];
    let send = || {
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let (data, flags) = ([byte], MsgFlags::MSG_NOSIGNAL);
        Ok(sendmsg::<()>(
            stream.as_raw_fd(),
            &[IoSlice::new(&data)],
            &rights,
            flags,
            None,
        )?)
    };
    stream.async_io(Interest::WRITABLE, send).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_over_whole_and_long_ones_are_refused() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        write(&mut a, b"{}", None).await.unwrap();
        write(&mut a, b"", None).await.unwrap();
        assert_eq!(read(&mut b).await.unwrap(), b"{}");
        assert_eq!(read(&mut b).await.unwrap(), b"");
        a.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        assert!(matches!(read(&mut b).await, Err(FrameError::TooLong(_))));
        let long = vec![b' '; HOST_API_FRAME_BYTES_MAX + 1];
        assert!(matches!(
            write(&mut a, &long, None).await,
            Err(FrameError::TooLong(_))
        ));
        drop(a);
        assert!(matches!(read(&mut b).await, Err(FrameError::Closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_stream_is_waited_for() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        write(&mut a, b"1", None).await.unwrap();
        assert_eq!(read(&mut b).await.unwrap(), b"1");
        let late = async {
            tokio::time::sleep(FRAME_WAIT_MAX * 5).await;
            write(&mut a, b"2", None).await.unwrap();
        };
        let (frame, ()) = tokio::join!(read(&mut b), late);
        assert_eq!(frame.unwrap(), b"2");
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_stops_half_way_is_given_up() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        a.write_all(&[0, 0]).await.unwrap();
        assert!(matches!(read(&mut b).await, Err(FrameError::TooSlow)));
    }
}
