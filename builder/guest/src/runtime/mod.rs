//! What the daemons run as `runc`: this program under that name. It fits a container to its machine and becomes the real
//! `runc`. For steps of builds there is no other place: BuildKit has no settings for it.
//!
//! It must not know which daemon calls, nor what a container is for.

mod fit;

use crate::share::{CGROUPS, Share, meminfo};
use anyhow::{Context as _, Result};
use fit::Machine;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::{FsFlags, statvfs};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The name by which the daemons call their runtime.
const NAME: &str = "runc";
/// Programs that the daemons find before the image's own.
pub(crate) const PROGRAMS_DIR: &str = "/run/slipway/bin";
/// By how much a container is more likely than the daemons to be ended when memory runs out (proc_pid_oom_score_adj(5)).
const OOM_SCORE: &str = "300";
/// Limits that Docker's clients raise.
const RLIMITS: [(&str, Resource); 12] = [
    ("RLIMIT_AS", Resource::RLIMIT_AS),
    ("RLIMIT_CORE", Resource::RLIMIT_CORE),
    ("RLIMIT_CPU", Resource::RLIMIT_CPU),
    ("RLIMIT_DATA", Resource::RLIMIT_DATA),
    ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE),
    ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK),
    ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
    ("RLIMIT_NICE", Resource::RLIMIT_NICE),
    ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE),
    ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
    ("RLIMIT_RTPRIO", Resource::RLIMIT_RTPRIO),
    ("RLIMIT_STACK", Resource::RLIMIT_STACK),
];

/// Whether this program was called as the runtime.
pub(crate) fn is_called() -> bool {
    let called = std::env::args_os().next();
    called.is_some_and(|name| Path::new(&name).file_name() == Some(NAME.as_ref()))
}

/// Has the daemons find this program as their runtime.
pub(crate) fn install() -> Result<()> {
    fs::create_dir_all(PROGRAMS_DIR).with_context(|| format!("make {PROGRAMS_DIR}"))?;
    let program = std::env::current_exe().context("find this program")?;
    let link = Path::new(PROGRAMS_DIR).join(NAME);
    if fs::symlink_metadata(&link).is_ok() {
        fs::remove_file(&link).context("remove a stale link")?;
    }
    std::os::unix::fs::symlink(program, &link).context("link the runtime")
}

/// Does what it is there for, and becomes the real runtime. Returns only if there is none.
pub(crate) fn become_runc() -> std::io::Error {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    // Without any of it a container runs as well, though it may take itself for larger than it is.
    let _unspared = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    if let Some(document) = document(&arguments) {
        let _as_it_is = adapt(&document);
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let path = path
        .strip_prefix(&format!("{PROGRAMS_DIR}:"))
        .unwrap_or(&path);
    Command::new(NAME).args(arguments).env("PATH", path).exec()
}

/// A file of the runtime's caller.
#[derive(Debug, PartialEq, Eq)]
enum Document {
    /// The configuration of a container that is to be made.
    Container(PathBuf),
    /// A process that is to be started in a container.
    Process(PathBuf),
}

/// Which file tells what these arguments start, if they start anything. Pure.
fn document(arguments: &[OsString]) -> Option<Document> {
    let after = |long: &str, short: &str| {
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let text = argument.to_str()?;
            if text == long || text == short {
                return rest.next().map(PathBuf::from);
            }
            if let Some(value) = text.strip_prefix(long).and_then(|v| v.strip_prefix('=')) {
                return Some(PathBuf::from(value));
            }
        }
        None
    };
    let starts = |verb: &str| arguments.iter().any(|argument| argument == verb);
    if starts("create") || starts("run") {
        let bundle = after("--bundle", "-b")?;
        return Some(Document::Container(bundle.join("config.json")));
    }
    if starts("exec") {
        return after("--process", "-p").map(Document::Process);
    }
    None
}

fn adapt(document: &Document) -> Result<()> {
    let (Document::Container(path) | Document::Process(path)) = document;
    let before: Value = serde_json::from_slice(&fs::read(path)?)?;
    let mut after = before.clone();
    let machine = machine();
    match document {
        Document::Container(_) => fit::container(&mut after, &machine, flags_of),
        Document::Process(_) => fit::process(&mut after, &machine),
    }
    if after != before {
        fs::write(path, after.to_string())?;
    }
    Ok(())
}

fn flags_of(path: &str) -> Vec<&'static str> {
    let Ok(found) = statvfs(path) else {
        return Vec::new();
    };
    let flags = [
        (FsFlags::ST_NODEV, "nodev"),
        (FsFlags::ST_NOSUID, "nosuid"),
        (FsFlags::ST_NOEXEC, "noexec"),
    ];
    let set = flags
        .into_iter()
        .filter(|(flag, _)| found.flags().contains(*flag));
    set.map(|(_, name)| name).collect()
}

fn machine() -> Machine {
    let in_namespace = fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| !map.split_whitespace().eq(["0", "0", "4294967295"]));
    let hard = |(name, resource)| getrlimit(resource).ok().map(|(_, hard)| (name, hard));
    Machine {
        share: Share::read(Path::new(CGROUPS)),
        rlimits: if in_namespace {
            RLIMITS.into_iter().filter_map(hard).collect()
        } else {
            Vec::new()
        },
        meminfo: Path::new(meminfo::FILE).exists(),
        may_be_spared: !in_namespace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_started_is_found_in_the_arguments_of_both_daemons() {
        let container = |path: &str| Some(Document::Container(PathBuf::from(path)));
        for (line, found) in [
            (
                "--root /r --log /l --log-format json create --bundle /b/1 --pid-file /p 1",
                container("/b/1/config.json"),
            ),
            (
                "--log /l --log-format json run --bundle /b/2 --keep 2",
                container("/b/2/config.json"),
            ),
            ("run -b /b/3 3", container("/b/3/config.json")),
            ("run --bundle=/b/4 4", container("/b/4/config.json")),
            (
                "--root /r exec --process /x/p.json --detach 1",
                Some(Document::Process(PathBuf::from("/x/p.json"))),
            ),
            ("exec 1 true", None),
            ("--root /r delete --force 1", None),
            ("--version", None),
            ("create", None),
        ] {
            let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(document(&arguments), found, "{line}");
        }
    }
}
