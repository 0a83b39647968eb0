//! Closes sockets that may have a hostile sender's descriptors in their queue.
//!
//! A thread that ends does not linger (the kernel's `inet_release`). So the last reference to the socket is that of a thread
//! with a table of descriptors of its own, which ends at once.
//!
//! Must not know: streams, or the runtime.

use crate::limits::DISPOSALS_MAX;
use nix::sched::{CloneFlags, unshare};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;

static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

struct Place;

impl Place {
    fn take() -> Option<Self> {
        let taken = UNDER_WAY.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
            (n < DISPOSALS_MAX).then_some(n + 1)
        });
        taken.is_ok().then_some(Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Closes `socket` without holding up the caller.
pub(super) fn dispose(socket: OwnedFd) {
    let Some(place) = Place::take() else {
        return keep_open(socket, "too many at once");
    };
    // In a cell of its own, so that it is not closed here if there is no thread.
    let (give, taken) = sync_channel(1);
    let spawned = thread::Builder::new()
        .name("disposal".to_owned())
        .spawn(move || {
            if let Ok(socket) = taken.recv() {
                close(socket);
            }
            drop(place);
        });
    match spawned {
        Ok(_detached) => {
            if let Err(unsent) = give.send(socket) {
                keep_open(unsent.0, "its thread has ended");
            }
        }
        Err(error) => keep_open(socket, &error.to_string()),
    }
}

/// A descriptor that is lost for good is better than a runtime that stands still.
fn keep_open(socket: OwnedFd, why: &str) {
    let fd = socket.into_raw_fd();
    tracing::error!(
        fd,
        why,
        "a builder's stream with descriptors in it is left open"
    );
}

fn close(socket: OwnedFd) {
    let (tell, told) = sync_channel(1);
    let (end, ended) = sync_channel::<()>(1);
    let last = thread::Builder::new().spawn(move || {
        // With all descriptors of this moment; they are closed again when this thread ends.
        let own_table = unshare(CloneFlags::CLONE_FILES);
        if tell.send(own_table).is_ok() {
            // Ends when the other reference is gone.
            let _ = ended.recv();
        }
    });
    let Ok(last) = last else {
        return keep_open(socket, "no thread to close it");
    };
    if let Ok(Err(error)) | Err(error) = told.recv().map_err(|_| nix::errno::Errno::ECHILD) {
        tracing::warn!(%error, "descriptors of a builder are closed by a thread that may have to wait");
    }
    drop(socket);
    drop(end);
    if last.join().is_err() {
        tracing::error!("a thread that closes broke off");
    }
}
