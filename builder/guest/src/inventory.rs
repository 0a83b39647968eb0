//! What a builder image has to have, and whether the one that the machine has booted does. An operator may choose another engine than
//! the recipe's, or a root file system of his own, so what cannot work is refused in words that whoever waits for the builder reads.
//!
//! What is there is only looked for, which takes no time that a start would notice. Programs are asked for their versions once the
//! engine has failed to start.
//!
//! It must not know how the daemons are started, nor who reads the words.

use crate::limits::ENGINE_MAJOR_MIN;
use std::path::Path;

/// What the engine is made of and what it calls for each container.
const PROGRAMS: [&str; 6] = [
    "sh",
    "dockerd",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
    "iptables",
];
/// Where programs look for the authorities that they trust; one of them is enough.
const CERTIFICATES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];
/// What dockerd says before the reason when it gives its start up.
const REASONS: [&str; 2] = [
    "failed to start daemon: ",
    "unable to configure the Docker daemon with file ",
];

/// Why the engine cannot start in the root directory `root`, with programs looked up in `path` and with this list of the kernel's file
/// systems (`/proc/filesystems`). Nothing if all that is needed is there.
pub(crate) fn missing(root: &Path, path: &str, filesystems: &str) -> Option<String> {
    let below = |file: &str| root.join(file.trim_start_matches('/'));
    let is_there = |program: &str| {
        let mut dirs = path.split(':').filter(|dir| !dir.is_empty());
        dirs.any(|dir| below(dir).join(program).symlink_metadata().is_ok())
    };
    let programs = PROGRAMS.into_iter().filter(|program| !is_there(program));
    let certificates = (!CERTIFICATES
        .into_iter()
        .any(|file| below(file).symlink_metadata().is_ok()))
    .then_some("certificates of authorities (ca-certificates)");
    let lacks: Vec<&str> = programs.chain(certificates).collect();
    if !lacks.is_empty() {
        return Some(format!(
            "the builder image of this farm cannot be used: it has no {}",
            lacks.join(", no ")
        ));
    }
    let has_overlay = filesystems
        .lines()
        .any(|line| line.split_whitespace().last() == Some("overlay"));
    (!has_overlay).then(|| {
        "the kernel under this builder has no overlayfs, in which Docker keeps layers".to_owned()
    })
}

/// Why an engine of this version (as `dockerd --version` writes it) does not work here, if it is for its age.
pub(crate) fn too_old(answer: &str) -> Option<String> {
    let version = answer.split_once("version ")?.1.split([',', ' ']).next()?;
    let major: u32 = version.split('.').next()?.parse().ok()?;
    (major < ENGINE_MAJOR_MIN).then(|| {
        format!(
            "the builder image of this farm cannot be used: its Docker {version} is too old, {ENGINE_MAJOR_MIN} or later is needed"
        )
    })
}

/// What the last lines of daemons that did not start, dockerd's after containerd's, say of the reason.
pub(crate) fn reason<'a>(mut lines: impl DoubleEndedIterator<Item = &'a str> + Clone) -> String {
    let told = lines.clone().rev().find_map(|line| {
        let found = REASONS.iter().filter_map(|words| line.find(words));
        found.min().map(|at| &line[at..])
    });
    let last = || lines.rfind(|line| !line.trim().is_empty());
    match told.or_else(last) {
        Some(line) => format!("Docker does not start: {}", line.trim()),
        None => "Docker does not start, and says nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/usr/sbin:/usr/bin";
    const OVERLAY: &str = "nodev\tproc\nnodev\toverlay\n\text4\n";

    fn root(without: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for dirs in ["usr/bin", "usr/sbin", "etc/ssl/certs"] {
            std::fs::create_dir_all(dir.path().join(dirs)).expect("made");
        }
        let files = PROGRAMS.map(|program| format!("usr/bin/{program}"));
        let certificates = CERTIFICATES[0].trim_start_matches('/').to_owned();
        for file in files.into_iter().chain([certificates]) {
            if !file.ends_with(&format!("/{without}")) {
                std::fs::write(dir.path().join(file), "").expect("written");
            }
        }
        dir
    }

    #[test]
    fn what_an_image_lacks_is_named() {
        for (without, want) in [
            ("nothing", None),
            ("iptables", Some("it has no iptables")),
            ("dockerd", Some("it has no dockerd")),
            ("ca-certificates.crt", Some("it has no certificates")),
        ] {
            let root = root(without);
            let found = missing(root.path(), PATH, OVERLAY);
            match want {
                None => assert_eq!(found, None),
                Some(want) => assert!(
                    found.as_ref().is_some_and(|why| why.contains(want)),
                    "{found:?}"
                ),
            }
        }
        let root = root("nothing");
        let found = missing(root.path(), PATH, "\text4\nnodev\toverlayfs2\n");
        assert!(
            found.as_ref().is_some_and(|why| why.contains("overlayfs")),
            "{found:?}"
        );
        assert!(missing(root.path(), "/opt", OVERLAY).is_some());
    }

    #[test]
    fn an_engine_that_does_not_know_our_settings_is_too_old() {
        for (answer, old) in [
            ("Docker version 20.10.24+dfsg1, build 5d6db84", true),
            ("Docker version 23.0.6, build 9dbdbd4", true),
            ("Docker version 24.0.0, build x", false),
            ("Docker version 28.5.2+dfsg4, build 89c5e8fd", false),
            ("Docker version 26.1.5+dfsg1, build 411e817", false),
            ("Docker version dev, build x", false),
            ("", false),
        ] {
            assert_eq!(too_old(answer).is_some(), old, "{answer}");
        }
    }

    #[test]
    fn the_reason_is_dockerds_own_or_else_its_last_line() {
        for (lines, want) in [
            (
                &[
                    "time=x level=info msg=\"Starting up\"",
                    "failed to start daemon: Error initializing network controller: no nft",
                    "",
                ][..],
                "Docker does not start: failed to start daemon: Error initializing network controller: no nft",
            ),
            (
                &[
                    "unable to configure the Docker daemon with file /run/slipway/daemon.json: the following directives don't match any configuration option: x",
                ],
                "Docker does not start: unable to configure the Docker daemon with file /run/slipway/daemon.json: the following directives don't match any configuration option: x",
            ),
            (&["a", "b", " "], "Docker does not start: b"),
            (&[], "Docker does not start, and says nothing"),
        ] {
            assert_eq!(reason(lines.iter().copied()), want);
        }
    }
}
