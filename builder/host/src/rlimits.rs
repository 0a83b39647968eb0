//! Limits of processes that machines inherit from the daemon: what it has is the most that programs in a sandbox can have, for
//! only the host's root may raise them.
//!
//! Must not know: machines.

use crate::limits::OPEN_FILES_MAX;
use nix::libc::RLIM_INFINITY;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises this process's limits, as far as the host lets its root: open files to what the kernel allows one process, and locked
/// memory to any amount, for locked or not it counts as the machine's and is bounded with it.
///
/// A user namespace bounds all its processes together by the locked memory that its maker may have, and counts them to the
/// maker's account: with a finite limit, the machines of a host would have one amount between them.
pub(crate) fn raise() {
    let files = std::fs::read_to_string("/proc/sys/fs/nr_open");
    let files = files
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .map_or(OPEN_FILES_MAX, |most| most.min(OPEN_FILES_MAX));
    let (soft, hard) = limits(Resource::RLIMIT_NOFILE);
    if hard < files && setrlimit(Resource::RLIMIT_NOFILE, soft, files).is_err() {
        tracing::info!(
            hard,
            wanted = files,
            "containers can raise their limit of open files to that of the daemon only"
        );
    }
    let raised = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    if raised.is_err() {
        let (_, hard) = limits(Resource::RLIMIT_MEMLOCK);
        tracing::info!(hard, "containers can lock so many bytes of memory only");
    }
}

/// The most that a process of a machine can have.
pub(crate) fn hard(resource: Resource) -> u64 {
    limits(resource).1
}

fn limits(resource: Resource) -> (u64, u64) {
    getrlimit(resource).unwrap_or((0, 0))
}
