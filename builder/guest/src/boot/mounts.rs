//! The file systems of a virtual machine that every Linux has, and its cgroups.

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use std::fs;

/// Room for sockets, pid files and locks in `/run`, as in the sandbox.
const RUN_OPTIONS: &str = "size=64m,mode=0755";

/// Mounts everything but the root, `/dev`, `/proc` and `/sys`, which the initrd did, and the cache volume.
pub(super) fn mount_all() -> Result<()> {
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let nodev = MsFlags::MS_NODEV;
    for (kind, target, flags, options) in [
        (
            "devpts",
            "/dev/pts",
            strict,
            "ptmxmode=0666,mode=0620,gid=5",
        ),
        ("tmpfs", "/dev/shm", strict | nodev, "mode=1777,size=65536k"),
        ("mqueue", "/dev/mqueue", strict | nodev, ""),
        ("cgroup2", "/sys/fs/cgroup", strict | nodev, ""),
        ("tmpfs", "/run", MsFlags::MS_NOSUID | nodev, RUN_OPTIONS),
    ] {
        if !target.starts_with("/sys/") {
            fs::create_dir_all(target).with_context(|| format!("make {target}"))?;
        }
        mount(Some(kind), target, Some(kind), flags, Some(options))
            .with_context(|| format!("mount {target}"))?;
    }
    // What a devtmpfs has no links for.
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match std::os::unix::fs::symlink(to, link) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("link {link}"));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
