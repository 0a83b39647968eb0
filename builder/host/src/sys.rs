//! The system calls that neither std nor nix wraps: idmapped mounts, user namespaces for them, pidfds, tap interfaces,
//! descriptors handed to a child under fixed numbers, and what a child gives up before it begins. The only unsafe code of this crate.
//!
//! Must not know: machines, settings, or why any of it is done.

#![expect(
    unsafe_code,
    reason = "mount_setattr, open_tree, move_mount, pidfd_* and fork-with-user-namespace have no safe wrapper"
)]

use nix::libc;
use slipway_volumes::BareRoot;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The number of the first descriptor that [`pass_fds`] passes.
const FIRST_PASSED: RawFd = 3;
/// Lowest descriptor number that [`pass_fds`] parks its sources at, above every target number.
const PARKED_FD_MIN: RawFd = 64;

/// What to change on a detached mount besides its id map.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MountFlags {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub(crate) clear: u64,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let raw = RawFd::try_from(check(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel just returned this descriptor to us, and nobody else has seen its number.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// A descriptor of the process `pid` that stays bound to it even when its number is used again.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers; returns a new close-on-exec descriptor or an error.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Sends `signal` to the process of a pidfd. `ESRCH` if it has been reaped.
pub(crate) fn pidfd_send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed; the other arguments are integers.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// Lets the runtime wait until `fd` is readable.
pub(crate) fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor stays open and its number stays the same until the AsyncFd, which owns it, drops it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// A user namespace that maps ids `0..count` inside to `base..base + count` outside, kept alive by the
/// returned descriptor alone.
pub(crate) fn user_namespace(base: u32, count: u32) -> io::Result<OwnedFd> {
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    let parent = libc::c_long::from(std::process::id());
    // SAFETY: like fork(2), with a new user namespace. The child makes raw system calls only (no allocation, no
    // locks) until it is killed, which is what a child of a process with threads may do.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0);
        if pid == 0 {
            // It never executes another program, so that it would keep all that is open here: locks, sockets, and pipes on
            // whose end somebody waits.
            libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
            libc::syscall(
                libc::SYS_prctl,
                libc::PR_SET_PDEATHSIG,
                libc::SIGKILL,
                0,
                0,
                0,
            );
            // It may have ended just before. A parent outside of the PID namespace cannot be: that was not changed.
            while libc::syscall(libc::SYS_getppid) == parent {
                // Until it is killed.
                libc::syscall(
                    libc::SYS_ppoll,
                    std::ptr::null::<libc::pollfd>(),
                    0,
                    0,
                    0,
                    0,
                );
            }
            libc::syscall(libc::SYS_exit_group, 0);
        }
        pid
    };
    let child = nix::unistd::Pid::from_raw(i32::try_from(check(pid)?).map_err(io::Error::other)?);
    let namespace = map_and_open(child.as_raw(), base, count);
    // It is nobody else's number until it is waited for.
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL)?;
    loop {
        match nix::sys::wait::waitpid(child, None) {
            Err(nix::errno::Errno::EINTR) => {}
            waited => break waited.map(drop)?,
        }
    }
    namespace
}

fn map_and_open(pid: i32, base: u32, count: u32) -> io::Result<OwnedFd> {
    let map = format!("0 {base} {count}");
    fs::write(format!("/proc/{pid}/uid_map"), &map)?;
    fs::write(format!("/proc/{pid}/gid_map"), &map)?;
    Ok(fs::File::open(format!("/proc/{pid}/ns/user"))?.into())
}

/// A detached copy of the mount that `path` lies on, rooted at `path`. It goes away with its descriptor unless
/// it is attached.
pub(crate) fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: `path` is a C string that outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// Gives a detached mount the id map of a user namespace, and changes its flags. `EINVAL` when the file system
/// cannot be idmapped on this kernel.
pub(crate) fn idmap_mount(
    mount: &impl AsFd,
    namespace: &OwnedFd,
    flags: MountFlags,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | flags.set,
        attr_clr: flags.clear,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor itself; `attr` outlives the call and its true
    // size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Attaches a detached mount at `path`.
pub(crate) fn attach_mount(mount: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: both paths are C strings that outlive the call; the empty one means the descriptor itself.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// Takes the lowest numbers that are free here, up to `end`, for as long as this process lives: std makes a pipe for each child,
/// by which the child tells why it cannot start, and a `dup2` onto its number would send that word into whatever was passed.
fn occupy(end: RawFd) -> io::Result<()> {
    let null = fs::File::open("/dev/null")?;
    loop {
        // SAFETY: F_DUPFD_CLOEXEC on a descriptor that is open for the call; the result is ours alone.
        let lowest = owned(libc::c_long::from(unsafe {
            libc::fcntl(null.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FIRST_PASSED)
        }))?;
        if lowest.as_raw_fd() >= end {
            return Ok(());
        }
        std::mem::forget(lowest);
    }
}

/// Makes `command` start with `fds` as its descriptors 3, 4, 5, ... in this order.
pub(crate) fn pass_fds(command: &mut Command, fds: &[&OwnedFd]) -> io::Result<()> {
    let end = RawFd::try_from(fds.len()).map_err(io::Error::other)? + FIRST_PASSED;
    if end > PARKED_FD_MIN {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    occupy(end)?;
    let mut parked = Vec::with_capacity(fds.len());
    for fd in fds {
        // SAFETY: F_DUPFD_CLOEXEC on a descriptor that `fds` borrows; the result is ours alone.
        parked.push(owned(libc::c_long::from(unsafe {
            libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, PARKED_FD_MIN)
        }))?);
    }
    // SAFETY: the closure runs between fork and exec and makes dup2 calls only, which are async-signal-safe. The
    // sources were parked above every target, so no dup2 overwrites one that is still needed.
    unsafe {
        command.pre_exec(move || {
            for (target, source) in (FIRST_PASSED..).zip(&parked) {
                if libc::dup2(source.as_raw_fd(), target) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Ok(())
}

/// Makes `command` be killed when the thread that starts it ends. That thread must wait for it, so that this happens only
/// when this process is killed: what it had begun must not go on under the eyes of the next one.
pub(crate) fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec and makes two system calls, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            check(libc::c_long::from(libc::prctl(
                libc::PR_SET_PDEATHSIG,
                libc::SIGKILL,
            )))?;
            // It may have ended just before.
            if u32::try_from(libc::getppid()).is_ok_and(|now| now == parent) {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            }
        });
    }
}

/// A tap interface named `name` in this network namespace. It is there for as long as the descriptor, or a copy of it, is
/// open. Frames on it carry a virtio header, so that whole segments pass at once.
pub(crate) fn tap(name: &str) -> io::Result<OwnedFd> {
    let device = fs::File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: an all-zero `ifreq` is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: the name is a C string.
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is open for the call, and `request` outlives it.
    check(libc::c_long::from(unsafe {
        libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw const request)
    }))?;
    Ok(device.into())
}

/// What a program gives up before it begins.
#[derive(Debug)]
pub(crate) struct Confinement {
    /// Its user and group.
    pub(crate) id: u32,
    /// The only other group it is in.
    pub(crate) group: Option<u32>,
    /// The `cgroup.procs` of its cgroups.
    pub(crate) cgroups: Vec<fs::File>,
    /// What it sees of the host's files.
    pub(crate) root: BareRoot,
}

/// Makes `command` start in its cgroups, in empty namespaces of its own for network, IPC and host name, with a root directory of
/// its own, in a session of its own, as an ordinary user that can never become another. It outlives this process.
pub(crate) fn confine(command: &mut Command, confinement: Confinement) {
    let Confinement {
        id,
        group,
        cgroups,
        root,
    } = confinement;
    // SAFETY: the closure runs between fork and exec and makes system calls only (no allocation, no locks); what it reads
    // was made before the fork.
    unsafe {
        command.pre_exec(move || {
            for procs in &cgroups {
                check(libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) as libc::c_long)?;
            }
            // A daemon that is spared when memory runs out does not pass that on.
            let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY);
            if score >= 0 {
                libc::write(score, b"0".as_ptr().cast(), 1);
                libc::close(score);
            }
            // A byte: with none, a core dump of it would still go to a program of the host (core(5)).
            let core = libc::rlimit {
                rlim_cur: 1,
                rlim_max: 1,
            };
            check(libc::c_long::from(libc::setrlimit(
                libc::RLIMIT_CORE,
                &raw const core,
            )))?;
            let empty = libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
            check(libc::c_long::from(libc::unshare(empty)))?;
            root.enter()?;
            check(libc::c_long::from(libc::setsid()))?;
            let groups = [group.unwrap_or(id)];
            check(libc::c_long::from(libc::setgroups(1, groups.as_ptr())))?;
            check(libc::c_long::from(libc::setresgid(id, id, id)))?;
            check(libc::c_long::from(libc::setresuid(id, id, id)))?;
            check(libc::c_long::from(libc::prctl(
                libc::PR_SET_NO_NEW_PRIVS,
                1,
                0,
                0,
                0,
            )))
            .map(drop)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_child_gets_its_descriptors_in_order() {
        let mut files = Vec::new();
        for text in ["a", "b", "c"] {
            let path =
                std::env::temp_dir().join(format!("slipway-passfd-{}-{text}", std::process::id()));
            fs::write(&path, text).unwrap();
            files.push(OwnedFd::from(fs::File::open(&path).unwrap()));
            fs::remove_file(&path).unwrap();
        }
        let mut command = Command::new("sh");
        command
            .args(["-c", "cat <&3; cat <&4; cat <&5"])
            .stdout(std::process::Stdio::piped());
        pass_fds(&mut command, &files.iter().collect::<Vec<_>>()).unwrap();
        let mut child = command.spawn().unwrap();
        let mut out = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut out)
            .unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(out, "abc");
    }

    #[test]
    fn a_child_that_cannot_start_tells_so_and_writes_into_nothing_that_was_passed() {
        let mut files = Vec::new();
        for _ in 0..13 {
            files.push(OwnedFd::from(tempfile::tempfile().unwrap()));
        }
        let mut command = Command::new("/nonexistent/program");
        pass_fds(&mut command, &files.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(command.spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
        for file in files {
            assert_eq!(fs::File::from(file).metadata().unwrap().len(), 0);
        }
    }

    /// The helper of one namespace must not keep what another's waits for, nor a lock or a socket of this process.
    #[test]
    fn namespaces_are_made_at_once_and_keep_nothing_of_this_process_open() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (tell, told) = std::sync::mpsc::channel();
        for _ in 0..8 {
            let tell = tell.clone();
            std::thread::spawn(move || {
                for _ in 0..50 {
                    user_namespace(1 << 30, 1 << 16).unwrap();
                }
                tell.send(()).unwrap();
            });
        }
        for _ in 0..8 {
            told.recv_timeout(std::time::Duration::from_secs(120))
                .expect("a namespace is never made");
        }
    }

    #[test]
    fn a_pidfd_refuses_a_pid_that_is_gone() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        assert!(pidfd_open(pid).is_err());
    }
}
