//! The duties of PID 1: children are reaped, cgroups are laid out, mounts are shared, everything left is killed at the end.
//!
//! It must not know what the children are for.

mod cgroup;
mod children;

pub(crate) use cgroup::prepare as prepare_cgroups;
pub(crate) use children::{Child, Children, Exit};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Has containers that ask for it see what is mounted later (`-v /x:/y:rshared`), as on a computer whose init does so. It is the
/// machine's own mount namespace: what is mounted here goes to no other. Does nothing unless this is PID 1.
pub(crate) fn share_mounts() {
    if Pid::this() != Pid::from_raw(1) {
        return;
    }
    let none: Option<&str> = None;
    let flags = MsFlags::MS_REC | MsFlags::MS_SHARED;
    if let Err(error) = mount(none, "/", none, flags, none) {
        tracing::warn!(%error, "no container can share mounts");
    }
}

/// Kills every other process of the machine, so that none writes to the cache volume any more. Does nothing unless
/// this is PID 1: anywhere else it would reach the wrong processes.
pub(crate) fn kill_all() {
    if Pid::this() != Pid::from_raw(1) {
        return;
    }
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        // ESRCH: nobody is left, which is the usual case.
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => tracing::warn!(%error, "processes that are left could not be killed"),
    }
}
