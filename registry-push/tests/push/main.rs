//! Pushes to Debian's docker-registry, straight, through a hostile proxy, and out of a real dockerd's store.
//!
//! Each test starts what it needs and ends it. What is missing on the machine fails the test where `CI` is `true`, and is said otherwise.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod ahead;
mod dockerd;
mod faults;
mod image;
mod lending;
mod memory;
mod plain;
mod profiles;
mod proxy;
mod registry;
mod secure;
mod sharing;
mod sources;
mod spec;
mod store;
mod whole;

/// A test that cannot run here: fails in CI, says so elsewhere.
pub(crate) fn skip(why: &str) {
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{why}");
    eprintln!("skipped: {why}");
}

/// Where a program is.
pub(crate) fn program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}

/// Runs a program to its end; gives its output.
pub(crate) fn run(command: &mut std::process::Command) -> String {
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{told}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
