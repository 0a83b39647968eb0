//! Whether programs of this host look into volumes: udev does, and what it starts, unless the rules of `scripts/install` are there.
//!
//! Must not know: what a volume is.

use std::path::Path;

/// There while udev runs.
const UDEV: &str = "run/udev/control";
/// The rules, in any of the directories that udev reads.
const RULES: &str = "12-slipway.rules";
const DIRECTORIES: [&str; 4] = [
    "etc/udev/rules.d",
    "run/udev/rules.d",
    "usr/local/lib/udev/rules.d",
    "usr/lib/udev/rules.d",
];

/// Whether udev runs on the system below `root` without the rules.
pub(crate) fn looks_into_volumes(root: &Path) -> bool {
    let has_rules = |dir: &&str| root.join(dir).join(RULES).exists();
    root.join(UDEV).exists() && !DIRECTORIES.iter().any(has_rules)
}

/// Says so in the log.
pub(crate) fn warn_if_it_looks_into_volumes() {
    if looks_into_volumes(Path::new("/")) {
        tracing::warn!(
            "udev looks into volumes: a tenant's disk may take the name of another, or be assembled as LVM or RAID (hint: put \
             scripts/install/{RULES} into /etc/udev/rules.d, then `udevadm control --reload`)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn it_looks_unless_it_does_not_run_or_has_the_rules() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        assert!(!looks_into_volumes(root.path()));
        write(UDEV);
        assert!(looks_into_volumes(root.path()));
        write("etc/udev/rules.d/60-other.rules");
        assert!(looks_into_volumes(root.path()));
        write("usr/lib/udev/rules.d/12-slipway.rules");
        assert!(!looks_into_volumes(root.path()));
    }
}
