//! dockerd's BuildKit as buildx's `remote` driver wants it: each connection asks dockerd for `/grpc`, and then passes bytes. buildx of
//! Debian 13 pushes through `docker push` when it uses the `docker` driver; through this it lets BuildKit push.

use anyhow::Result;
use std::io::{Error, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

const ASK: &[u8] =
    b"POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";

/// Longest head of dockerd's answer.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Listens until it is dropped.
pub(super) struct Grpc {
    path: PathBuf,
    ended: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Grpc {
    /// Listens at `path`, in front of the dockerd of this socket.
    pub(super) fn start(path: &Path, docker: &Path) -> Result<Grpc> {
        let listener = UnixListener::bind(path)?;
        let ended = Arc::new(AtomicBool::new(false));
        let accepting = std::thread::spawn({
            let (ended, docker) = (ended.clone(), docker.to_owned());
            move || {
                for near in listener.incoming() {
                    if ended.load(Ordering::SeqCst) {
                        return;
                    }
                    let joined = near.and_then(|near| join(near, upgraded(&docker)?));
                    if let Err(error) = joined {
                        eprintln!("way to BuildKit: {error}");
                    }
                }
            }
        });
        Ok(Grpc {
            path: path.to_owned(),
            ended,
            accepting: Some(accepting),
        })
    }
}

impl Drop for Grpc {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _woken = UnixStream::connect(&self.path);
        if let Some(accepting) = self.accepting.take() {
            let _ended = accepting.join();
        }
    }
}

/// A stream on which dockerd's BuildKit speaks HTTP/2.
fn upgraded(docker: &Path) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(docker)?;
    stream.write_all(ASK)?;
    let mut head = Vec::new();
    // Byte by byte: what follows the head belongs to the client.
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(Error::other(String::from_utf8_lossy(&head).into_owned()));
    }
    Ok(stream)
}

fn join(near: UnixStream, far: UnixStream) -> std::io::Result<()> {
    let (near_again, far_again) = (near.try_clone()?, far.try_clone()?);
    for (mut from, mut to) in [(near, far), (far_again, near_again)] {
        std::thread::spawn(move || {
            let _broken = std::io::copy(&mut from, &mut to);
            let _closed = to.shutdown(Shutdown::Write);
        });
    }
    Ok(())
}
