//! A TCP proxy that delays every byte by the same time each way, as a distant registry would: for kernels without netem.
//! Order and bandwidth stay as they are.

use anyhow::Result;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pieces on their way in one direction of one connection; the reader waits beyond it.
const PIECES_MAX: usize = 256;

/// Listens until it is dropped.
pub(super) struct DelayProxy {
    address: String,
    ended: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl DelayProxy {
    /// Forwards to `target`; a byte takes `delay` each way.
    pub(super) fn start(target: &str, delay: Duration) -> Result<DelayProxy> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let ended = Arc::new(AtomicBool::new(false));
        let accepting = std::thread::spawn({
            let (ended, target) = (ended.clone(), target.to_owned());
            move || {
                for near in listener.incoming() {
                    if ended.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(near) = near else { continue };
                    let Ok(far) = TcpStream::connect(&target) else {
                        continue;
                    };
                    if let Err(error) = join(near, far, delay) {
                        eprintln!("delaying proxy: {error:#}");
                    }
                }
            }
        });
        Ok(DelayProxy {
            address,
            ended,
            accepting: Some(accepting),
        })
    }

    /// `ip:port`.
    pub(super) fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for DelayProxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _woken = TcpStream::connect(&self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ended = accepting.join();
        }
    }
}

fn join(near: TcpStream, far: TcpStream, delay: Duration) -> Result<()> {
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (near_again, far_again) = (near.try_clone()?, far.try_clone()?);
    one_way(near, far, delay);
    one_way(far_again, near_again, delay);
    Ok(())
}

/// Two threads: one notes when each piece came, the other sends it when its time has come.
fn one_way(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (pieces, due) = mpsc::sync_channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    std::thread::spawn(move || {
        loop {
            let mut piece = vec![0; 64 << 10];
            match from.read(&mut piece) {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    piece.truncate(length);
                    if pieces.send((Instant::now() + delay, piece)).is_err() {
                        return;
                    }
                }
            }
        }
    });
    std::thread::spawn(move || {
        for (at, piece) in due {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        let _closed = to.shutdown(Shutdown::Write);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_late_and_in_order() {
        let far = TcpListener::bind("127.0.0.1:0").unwrap();
        let delay = Duration::from_millis(20);
        let proxy = DelayProxy::start(&far.local_addr().unwrap().to_string(), delay).unwrap();
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = far.accept().unwrap();
            let mut word = [0; 5];
            stream.read_exact(&mut word).unwrap();
            stream.write_all(&word).unwrap();
        });
        let mut near = TcpStream::connect(proxy.address()).unwrap();
        let began = Instant::now();
        near.write_all(b"hello").unwrap();
        let mut answer = String::new();
        near.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "hello");
        assert!(began.elapsed() >= 2 * delay);
        echo.join().unwrap();
    }
}
