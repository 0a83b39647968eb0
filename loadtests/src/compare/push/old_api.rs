//! A way to dockerd for clients whose API version it no longer takes: skopeo of Debian 12 asks for 1.22, dockerd 26 begins at 1.24. The
//! version is put right in the request's path; everything else passes as it is.

use anyhow::Result;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

const OLD: &[u8] = b"/v1.22/";
const NEW: &[u8] = b"/v1.24/";

/// Listens until it is dropped.
pub(super) struct OldApi {
    path: PathBuf,
    ended: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl OldApi {
    /// Forwards from a new socket at `path` to dockerd's.
    pub(super) fn start(path: &Path, docker: &Path) -> Result<OldApi> {
        let listener = UnixListener::bind(path)?;
        let ended = Arc::new(AtomicBool::new(false));
        let accepting = std::thread::spawn({
            let (ended, docker) = (ended.clone(), docker.to_owned());
            move || {
                for near in listener.incoming() {
                    if ended.load(Ordering::SeqCst) {
                        return;
                    }
                    let joined = near.and_then(|near| join(near, UnixStream::connect(&docker)?));
                    if let Err(error) = joined {
                        eprintln!("way to dockerd: {error}");
                    }
                }
            }
        });
        Ok(OldApi {
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

impl Drop for OldApi {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _woken = UnixStream::connect(&self.path);
        if let Some(accepting) = self.accepting.take() {
            let _ended = accepting.join();
        }
    }
}

fn join(near: UnixStream, far: UnixStream) -> std::io::Result<()> {
    let (near_again, far_again) = (near.try_clone()?, far.try_clone()?);
    std::thread::spawn(move || copy(near, far, true));
    std::thread::spawn(move || copy(far_again, near_again, false));
    Ok(())
}

fn copy(mut from: UnixStream, mut to: UnixStream, is_request: bool) {
    let mut piece = vec![0; 1 << 20];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let bytes = &mut piece[..length];
        if is_request {
            put_right(bytes);
        }
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
}
