//! What a machine may have made below its cgroup: killed and removed whatever its depth, its names, or who is frozen in it.
//!
//! A machine's root makes cgroups as it likes. So nothing here recurses or opens a path from the top (which may be longer than
//! the kernel takes): each step is from one opened directory to the next, and one is open at a time.
//!
//! Must not know: hierarchies, limits.

use crate::sys;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// One directory on the way down: its name, and the children that are still to be seen.
struct Level {
    name: CString,
    children: Vec<CString>,
}

/// The names of the cgroups right below an open one.
fn children(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::openat(dir, c".", DIRECTORY, Mode::empty())? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == Some(Type::Directory) && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Absent is fine, whatever was asked of it: cgroups go away meanwhile.
fn unless_gone<T>(result: nix::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        // What reads and writes get of a cgroup that is removed meanwhile is ENODEV.
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Goes through all cgroups below `top`: `enter` before those below one, `leave` after them, with the parent and the name.
fn walk(
    top: &Path,
    mut enter: impl FnMut(&OwnedFd) -> io::Result<()>,
    mut leave: impl FnMut(&OwnedFd, &CString) -> io::Result<()>,
) -> io::Result<()> {
    let opened = nix::fcntl::open(top, DIRECTORY, Mode::empty());
    let Some(mut here) = unless_gone(opened)? else {
        return Ok(());
    };
    enter(&here)?;
    let mut above = vec![Level {
        name: CString::default(),
        children: children(&here)?,
    }];
    while let Some(level) = above.last_mut() {
        if let Some(name) = level.children.pop() {
            let opened = openat(&here, name.as_c_str(), DIRECTORY, Mode::empty());
            if let Some(below) = unless_gone(opened)? {
                enter(&below)?;
                let children = children(&below)?;
                above.push(Level { name, children });
                here = below;
            }
        } else if let Some(done) = above.pop()
            && !above.is_empty()
        {
            here = openat(&here, c"..", DIRECTORY, Mode::empty())?;
            leave(&here, &done.name)?;
        }
    }
    Ok(())
}

/// Removes `top` and all below it. Absent is fine; one with processes in it is `EBUSY`.
pub(super) fn remove(top: &Path) -> io::Result<()> {
    walk(
        top,
        |_| Ok(()),
        |parent, name| {
            let removed = unlinkat(parent, name.as_c_str(), UnlinkatFlags::RemoveDir);
            unless_gone(removed).map(drop)
        },
    )?;
    unless_gone(nix::unistd::unlinkat(
        nix::fcntl::AT_FDCWD,
        top,
        UnlinkatFlags::RemoveDir,
    ))
    .map(drop)
}

/// Kills everything in `top` and below, frozen or not. What is begun meanwhile may be missed, so the caller first sees to it that
/// nothing can be, or calls again.
pub(super) fn kill(top: &Path) -> io::Result<()> {
    walk(top, kill_in, |_, _| Ok(()))
}

/// Has everything that is frozen in `top` and below go on, if only to its death.
pub(super) fn thaw(top: &Path) -> io::Result<()> {
    walk(
        top,
        |dir| {
            let write = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let opened = openat(dir, c"freezer.state", write, Mode::empty());
            match unless_gone(opened)? {
                Some(state) => match File::from(state).write_all(b"THAWED") {
                    Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
                    written => written,
                },
                None => Ok(()),
            }
        },
        |_, _| Ok(()),
    )
}

fn processes(dir: impl AsFd) -> io::Result<BTreeSet<i32>> {
    let read = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let Some(procs) = unless_gone(openat(dir, c"cgroup.procs", read, Mode::empty()))? else {
        return Ok(BTreeSet::new());
    };
    let mut text = String::new();
    match File::from(procs).read_to_string(&mut text) {
        // A cgroup of threads (v2) lists its processes in the one above.
        Err(error)
            if [Some(nix::libc::ENODEV), Some(nix::libc::EOPNOTSUPP)]
                .contains(&error.raw_os_error()) =>
        {
            return Ok(BTreeSet::new());
        }
        read => read?,
    };
    // 0 is a process of another PID namespace, which a cgroup of the host has none of.
    let pids = text.lines().filter_map(|line| line.parse().ok());
    Ok(pids.filter(|pid| *pid > 0).collect())
}

fn kill_in(dir: &OwnedFd) -> io::Result<()> {
    let seen = processes(dir)?;
    let opened: Vec<_> = seen
        .into_iter()
        .filter_map(|pid| Some((pid, sys::pidfd_open(pid).ok()?)))
        .collect();
    // Numbers are used again. Whoever is listed now under a number that was opened before is the one that was opened, or came
    // after it and is of this machine, too.
    let still = processes(dir)?;
    for (_, process) in opened.iter().filter(|(pid, _)| still.contains(pid)) {
        match sys::pidfd_send_signal(process, nix::libc::SIGKILL) {
            Err(error) if error.raw_os_error() != Some(nix::libc::ESRCH) => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Any file system does for what walks: longer paths than the kernel takes, deeper than a stack.
    #[test]
    fn a_tree_of_any_depth_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        let mut here = nix::fcntl::open(&top, DIRECTORY, Mode::empty()).unwrap();
        let long = CString::new("d".repeat(200)).unwrap();
        for level in 0..2000 {
            for name in [long.as_c_str(), c"beside"] {
                nix::sys::stat::mkdirat(&here, name, Mode::S_IRWXU).unwrap();
            }
            here = openat(&here, long.as_c_str(), DIRECTORY, Mode::empty())
                .unwrap_or_else(|error| panic!("level {level}: {error}"));
        }
        let mut entered = 0;
        walk(
            &top,
            |_| {
                entered += 1;
                Ok(())
            },
            |_, _| Ok(()),
        )
        .unwrap();
        assert_eq!(entered, 1 + 2 * 2000);
        remove(&top).unwrap();
        assert!(!top.exists());
        remove(&top).unwrap();
    }

    #[test]
    fn what_is_in_the_way_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/b/file"), "").unwrap();
        remove(&top).unwrap_err();
        assert!(top.join("a/b/file").exists());
    }
}
