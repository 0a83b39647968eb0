//! Where the tests of this folder run: on a kernel with device-mapper, and a disk that they may overwrite.
//!
//! Each runs in a virtual machine that `slipway-loadtest vm` boots, with this very program in it; and, where this kernel has
//! device-mapper, here as well. `SLIPWAY_VOLUMES_TEST_DISK` names a disk, and says that this is the place.

use std::path::{Path, PathBuf};
use std::process::Command;

const DISK_ENV: &str = "SLIPWAY_VOLUMES_TEST_DISK";
const DISK_MIB: u64 = 2048;
/// Ends a test that hangs; the longest takes a third of it on two idle cores.
const SECONDS_MAX: u64 = 800;

/// The disk that a test overwrites.
pub(super) fn disk() -> String {
    std::env::var(DISK_ENV).unwrap()
}

/// Whether this is where the tests run.
pub(super) fn is_the_machine() -> bool {
    std::env::var_os(DISK_ENV).is_some()
}

/// What a test in this folder is called.
pub(super) fn name(test: &str) -> String {
    format!("pool::machine_tests::{test}")
}

/// Runs `body`, which is that of `test`, where it can run.
pub(super) fn with_device_mapper(test: &str, body: impl FnOnce()) {
    if is_the_machine() {
        return body();
    }
    if Path::new("/dev/mapper/control").exists() && nix::unistd::geteuid().is_root() {
        on_this_kernel(test);
    }
    let disk = format!("--disk=pool={DISK_MIB}");
    in_a_machine(test, &[&disk], "");
}

fn on_this_kernel(test: &str) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let image = dir.path().join("disk");
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(DISK_MIB << 20).unwrap();
    let loop_disk = Command::new("losetup")
        .args(["--find", "--show"])
        .arg(&image)
        .output()
        .unwrap();
    let path = String::from_utf8(loop_disk.stdout).unwrap();
    let path = path.trim();
    assert!(path.starts_with("/dev/loop"), "{path}");
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name(test), "--nocapture"])
        .env(DISK_ENV, path)
        .status();
    let _ = Command::new("losetup").args(["--detach", path]).status();
    assert!(ended.unwrap().success(), "on this kernel, with {path}");
}

/// Boots a virtual machine for `test`, with what it needs in its environment, such as `A=1 B=2`, and more `arguments` to
/// `slipway-loadtest vm`, among them a disk `pool`. Gives what it printed.
pub(super) fn in_a_machine(test: &str, arguments: &[&str], environment: &str) -> String {
    let suite = std::env::current_exe().unwrap();
    let script = format!(
        "export CI=true RUST_BACKTRACE=1 DM_DISABLE_UDEV=1 {DISK_ENV}=$(readlink -f /dev/disk/by-test/pool)\n\
         {environment} /run/test/suite --exact {} --nocapture",
        name(test)
    );
    let output = Command::new(loadtest_program(&suite))
        .args(["vm", "--seconds", &SECONDS_MAX.to_string()])
        .arg("--file")
        .arg(format!("suite={}", suite.display()))
        .args(arguments)
        .arg(script)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{printed}");
    assert!(
        output.status.success(),
        "in the virtual machine: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

/// The build that made this program made that as well.
fn loadtest_program(suite: &Path) -> PathBuf {
    let built = suite.ancestors().nth(2).unwrap();
    let program = built.join("slipway-loadtest");
    assert!(
        program.exists(),
        "{} is missing (hint: cargo build --workspace)",
        program.display()
    );
    program
}
