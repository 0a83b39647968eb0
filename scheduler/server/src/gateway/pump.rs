//! Bytes both ways between two streams, until both directions have ended.
//!
//! An idle stream holds no buffer: bytes are read into one that belongs to the thread, and only what the other side does
//! not take at once is kept, until it does. The end of one direction is passed on (TLS: close_notify) and leaves the
//! other open, as `docker exec -i` needs; a break of either ends both.
//!
//! Must not know: HTTP, what the bytes mean.

use crate::bounds::PUMP_BYTES;
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Steps of one direction before it lets others run.
const STEPS_PER_POLL: usize = 32;

/// Copies until both directions have ended. Gives the bytes from `a` to `b` and from `b` to `a`.
///
/// # Errors
/// The first break of either side.
pub(super) async fn pump<A, B>(mut a: A, mut b: B) -> io::Result<(u64, u64)>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Direction::default(), Direction::default());
    std::future::poll_fn(|cx| {
        let there_done = there.poll(cx, Pin::new(&mut a), Pin::new(&mut b))?;
        let back_done = back.poll(cx, Pin::new(&mut b), Pin::new(&mut a))?;
        match (there_done, back_done) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok((there.copied, back.copied))),
            (Poll::Ready(()) | Poll::Pending, Poll::Ready(()) | Poll::Pending) => Poll::Pending,
        }
    })
    .await
}

#[derive(Debug, Default)]
struct Direction {
    state: State,
    /// What was read and not yet taken; empty (and without memory) most of the time.
    kept: Vec<u8>,
    taken: usize,
    copied: u64,
    unflushed: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The reader has ended, the writer is to be told.
    Ending,
    Ended,
}

impl Direction {
    fn poll<R: AsyncRead, W: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        mut reader: Pin<&mut R>,
        mut writer: Pin<&mut W>,
    ) -> Poll<io::Result<()>> {
        for _ in 0..STEPS_PER_POLL {
            if self.state == State::Ended {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_write_kept(cx, writer.as_mut()))?;
            if self.state == State::Ending {
                ready!(writer.as_mut().poll_shutdown(cx))?;
                self.state = State::Ended;
                return Poll::Ready(Ok(()));
            }
            if self
                .poll_step(cx, reader.as_mut(), writer.as_mut())?
                .is_pending()
            {
                if self.unflushed {
                    ready!(writer.as_mut().poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_write_kept<W: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        mut writer: Pin<&mut W>,
    ) -> Poll<io::Result<()>> {
        while self.taken < self.kept.len() {
            let n = ready!(writer.as_mut().poll_write(cx, &self.kept[self.taken..]))?;
            self.wrote(n)?;
            self.taken += n;
        }
        self.kept = Vec::new();
        self.taken = 0;
        Poll::Ready(Ok(()))
    }

    /// Reads once, and writes as much of it as is taken at once. `Pending`: there is nothing to read.
    fn poll_step<R: AsyncRead, W: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        reader: Pin<&mut R>,
        mut writer: Pin<&mut W>,
    ) -> Poll<io::Result<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.is_empty() {
                scratch.resize(PUMP_BYTES, 0);
            }
            let mut buffer = ReadBuf::new(scratch);
            ready!(reader.poll_read(cx, &mut buffer))?;
            let mut rest = buffer.filled();
            if rest.is_empty() {
                self.state = State::Ending;
            }
            while !rest.is_empty() {
                match writer.as_mut().poll_write(cx, rest) {
                    Poll::Ready(Ok(n)) => {
                        self.wrote(n)?;
                        rest = &rest[n..];
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        self.kept = rest.to_vec();
                        break;
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
    }

    fn wrote(&mut self, n: usize) -> io::Result<()> {
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.copied += n as u64;
        self.unflushed = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn each_direction_ends_by_itself() {
        let (mut client, a) = duplex(7);
        let (b, mut server) = duplex(5);
        let pumped = tokio::spawn(pump(a, b));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        assert_eq!(pumped.await.unwrap().unwrap(), (8, 6));
    }

    #[tokio::test]
    async fn a_slow_reader_slows_the_writer_and_nothing_is_lost() {
        let (mut client, a) = duplex(1 << 10);
        let (b, mut server) = duplex(1 << 10);
        let pumped = tokio::spawn(pump(a, b));
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            client
        });
        let mut got = Vec::new();
        let mut piece = [0; 333];
        loop {
            tokio::task::yield_now().await;
            match server.read(&mut piece).await.unwrap() {
                0 => break,
                n => got.extend_from_slice(&piece[..n]),
            }
        }
        assert!(got == expected);
        drop(server);
        writer.await.unwrap();
        assert_eq!(pumped.await.unwrap().unwrap(), (1_000_000, 0));
    }
}
