//! A unix socket in front of dockerd's, for peers that cannot speak to it as it is: each connection is opened as the peer needs it, and
//! then bytes pass both ways.

use anyhow::Result;
use std::io::{Error, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

const ASK_FOR_BUILDKIT: &[u8] =
    b"POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
/// Longest head of dockerd's answer.
const HEAD_BYTES_MAX: usize = 16 << 10;
const OLD: &[u8] = b"/v1.22/";
const NEW: &[u8] = b"/v1.24/";

type Dial = fn(&Path) -> std::io::Result<UnixStream>;
type Change = fn(&mut [u8]);

/// Listens until it is dropped.
pub(super) struct Relay {
    path: PathBuf,
    ended: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Relay {
    /// To dockerd's BuildKit, as buildx's `remote` driver wants it. buildx of Debian 13 pushes through `docker push` when it uses the
    /// `docker` driver; through this it lets BuildKit push.
    pub(super) fn to_buildkit(path: &Path, docker: &Path) -> Result<Relay> {
        Relay::start(path, docker, upgraded, |_| ())
    }

    /// To dockerd, for clients whose API version it no longer takes: skopeo of Debian 12 asks for 1.22, dockerd 26 begins at 1.24.
    /// The version is put right in the request's path.
    pub(super) fn for_old_clients(path: &Path, docker: &Path) -> Result<Relay> {
        Relay::start(
            path,
            docker,
            |docker| UnixStream::connect(docker),
            put_right,
        )
    }

    fn start(path: &Path, docker: &Path, dial: Dial, change: Change) -> Result<Relay> {
        let listener = UnixListener::bind(path)?;
        let ended = Arc::new(AtomicBool::new(false));
        let accepting = std::thread::spawn({
            let (ended, docker) = (ended.clone(), docker.to_owned());
            move || {
                for near in listener.incoming() {
                    if ended.load(Ordering::SeqCst) {
                        return;
                    }
                    let joined = near.and_then(|near| join(near, dial(&docker)?, change));
                    if let Err(error) = joined {
                        eprintln!("way to dockerd: {error}");
                    }
                }
            }
        });
        Ok(Relay {
            path: path.to_owned(),
            ended,
            accepting: Some(accepting),
        })
    }

    /// Its socket, as clients want it (`unix://...`).
    pub(super) fn host(&self) -> String {
        format!("unix://{}", self.path.display())
    }
}

impl Drop for Relay {
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
    stream.write_all(ASK_FOR_BUILDKIT)?;
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

fn join(near: UnixStream, far: UnixStream, change: Change) -> std::io::Result<()> {
    let (near_again, far_again) = (near.try_clone()?, far.try_clone()?);
    std::thread::spawn(move || copy(near, far, change));
    std::thread::spawn(move || copy(far_again, near_again, |_| ()));
    Ok(())
}

fn copy(mut from: UnixStream, mut to: UnixStream, change: Change) {
    let mut piece = vec![0; 1 << 20];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let bytes = &mut piece[..length];
        change(bytes);
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _closed = to.shutdown(Shutdown::Write);
}

/// A client sends a request's head at once, so its path is in one piece.
fn put_right(bytes: &mut [u8]) {
    for at in 0..bytes.len().saturating_sub(OLD.len() - 1) {
        let place = &mut bytes[at..at + OLD.len()];
        if place == OLD {
            place.copy_from_slice(NEW);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_version_of_the_path_changes() {
        let mut request = b"GET /v1.22/images/x/get HTTP/1.1\r\n\r\n".to_vec();
        put_right(&mut request);
        assert_eq!(request, b"GET /v1.24/images/x/get HTTP/1.1\r\n\r\n");
        for unchanged in [&b"GET /v1.45/info"[..], b"", b"/v1.22"] {
            let mut bytes = unchanged.to_vec();
            put_right(&mut bytes);
            assert_eq!(bytes, unchanged);
        }
    }

    #[test]
    fn bytes_pass_both_ways_and_an_end_too() {
        let dir = tempfile::tempdir().expect("a directory");
        let (far, near) = (dir.path().join("far"), dir.path().join("near"));
        let daemon = UnixListener::bind(&far).expect("a socket");
        let relay = Relay::for_old_clients(&near, &far).expect("a relay");
        let mut client = UnixStream::connect(&near).expect("the relay");
        let (mut there, _) = daemon.accept().expect("the relay's connection");
        client.write_all(b"GET /v1.22/info").expect("sent");
        client.shutdown(Shutdown::Write).expect("ended");
        let mut heard = String::new();
        there.read_to_string(&mut heard).expect("heard");
        assert_eq!(heard, "GET /v1.24/info");
        there.write_all(b"/v1.22/ stays").expect("answered");
        drop(there);
        heard.clear();
        client.read_to_string(&mut heard).expect("the answer");
        assert_eq!(heard, "/v1.22/ stays");
        drop(relay);
    }
}
