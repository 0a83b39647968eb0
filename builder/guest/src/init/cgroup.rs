//! Lays out the machine's cgroup v2 so that containers can have limits: v2 allows no processes in a cgroup whose
//! controllers are handed on to children, so the guest and its daemons move to a leaf. On v1 there is nothing to do.
//!
//! It must not know which limits anybody sets.

use std::io;
use std::path::Path;

const ROOT: &str = "/sys/fs/cgroup";
const LEAF: &str = "slipway-guest";

/// Prepares the cgroup tree. What cannot be done is logged: dockerd works without it, only its containers have no
/// limits of their own.
pub(crate) fn prepare() {
    let root = Path::new(ROOT);
    if !root.join("cgroup.controllers").exists() {
        return;
    }
    if let Err(error) = hand_on(root) {
        tracing::warn!(%error, "containers will have no limits of their own");
    }
}

fn hand_on(root: &Path) -> io::Result<()> {
    let leaf = root.join(LEAF);
    match std::fs::create_dir(&leaf) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    for pid in std::fs::read_to_string(root.join("cgroup.procs"))?.lines() {
        match std::fs::write(leaf.join("cgroup.procs"), pid) {
            // It ended meanwhile, or is a thread of the kernel, which a virtual machine has in its top cgroup.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(nix::libc::ESRCH | nix::libc::EINVAL)
                ) => {}
            moved => moved?,
        }
    }
    let controllers = std::fs::read_to_string(root.join("cgroup.controllers"))?;
    for controller in controllers.split_whitespace() {
        // One by one: a controller that the host keeps to itself must not cost the others.
        if let Err(error) = std::fs::write(
            root.join("cgroup.subtree_control"),
            format!("+{controller}"),
        ) {
            tracing::warn!(controller, %error, "controller is not handed on");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_move_to_the_leaf_and_every_controller_is_asked_for() {
        let root = tempfile::tempdir().expect("temp dir");
        let write =
            |name: &str, text: &str| std::fs::write(root.path().join(name), text).expect("write");
        write("cgroup.procs", "1\n");
        write("cgroup.controllers", "cpu memory\n");
        write("cgroup.subtree_control", "");
        hand_on(root.path()).expect("plain files take writes");
        let read = |name: &str| std::fs::read_to_string(root.path().join(name)).expect("read");
        assert_eq!(read("slipway-guest/cgroup.procs"), "1");
        assert_eq!(
            read("cgroup.subtree_control"),
            "+memory",
            "the last one written"
        );
        hand_on(root.path()).expect("a second time changes nothing");
    }
}
