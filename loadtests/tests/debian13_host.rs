//! A host as Debian 13 makes one: its own kernel, systemd, and cgroup v2 alone, in a virtual machine.
#![cfg(target_arch = "x86_64")]

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::{binaries_dir, cache_dir, checkout_dir, show};
use slipway_loadtests::vm::{Init, Vm};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Far more than any of it takes on a computer that is slow and busy: it only ends one that hangs.
const WITHIN: Duration = Duration::from_secs(1000);

/// Host daemon, control plane and registry come up; a deploy is built cold and warm; the machine's limits hold; the builder
/// ends itself and leaves no cgroup behind. loadtests/vm/deploy.sh says what is looked at.
#[test]
fn builds_and_ends_on_cgroup_v2() -> Result<()> {
    deploy("/run/test/deploy.sh")
}

/// The same with encrypted volumes of a thin pool: keys made by the control plane and lent to the host for each start, also after
/// the host daemon was killed.
#[test]
fn builds_on_an_encrypted_thin_volume_with_a_lent_key() -> Result<()> {
    deploy("/run/test/deploy.sh encrypted")
}

fn deploy(command: &str) -> Result<()> {
    let binaries = binaries_dir()?;
    let end = Vm::new()?
        .init(Init::Systemd)
        .file("slipway", &binaries.join("slipway"))
        .file("slipwayd", &binaries.join("slipwayd"))
        .file("slipway-guest", &binaries.join("slipway-guest"))
        .file("base.squashfs", &cache_dir().join("image/base.squashfs"))
        .file("deploy.sh", &checkout_dir().join("loadtests/vm/deploy.sh"))
        .disk("farm", 8 << 30)
        .disk("pool", 5 << 30)
        .run(command, WITHIN)?;
    println!("{}\nafter {:?}", end.output, end.took);
    ensure!(end.exit_code == 0, "it ended with {}", end.exit_code);
    Ok(())
}

/// `make install` under systemd: units, user, settings; a restart of both services ends no machine; udev, LVM and what else the
/// system has look into no volume. loadtests/vm/install.sh and loadtests/vm/udev.sh say what is looked at.
#[test]
fn an_installed_farm_runs_under_systemd() -> Result<()> {
    let binaries = binaries_dir()?;
    let dir = tempfile::tempdir()?;
    let tree = dir.path().join("tree.tar");
    let packed = Command::new("tar")
        .arg("-C")
        .arg(checkout_dir())
        .arg("-cf")
        .arg(&tree)
        .args([
            "scripts",
            "docs",
            "README.md",
            "CHANGELOG.md",
            "loadtests/vm",
        ])
        .output()?;
    ensure!(packed.status.success(), "tar: {}", show(&packed));
    let end = Vm::new()?
        .init(Init::Systemd)
        .file("slipway", &binaries.join("slipway"))
        .file("slipwayd", &binaries.join("slipwayd"))
        .file("slipway-guest", &binaries.join("slipway-guest"))
        .file("slipway-push", &binaries.join("slipway-push"))
        .file("base.squashfs", &cache_dir().join("image/base.squashfs"))
        .file("tree.tar", &tree)
        .file(
            "install.sh",
            &checkout_dir().join("loadtests/vm/install.sh"),
        )
        .disk("farm", 8 << 30)
        .run("/run/test/install.sh", WITHIN)?;
    println!("{}\nafter {:?}", end.output, end.took);
    ensure!(end.exit_code == 0, "it ended with {}", end.exit_code);
    Ok(())
}

/// The host crate's own tests of machines, on that kernel.
#[test]
fn machines_are_walled_in_on_cgroup_v2() -> Result<()> {
    let end = Vm::new()?
        .file("sandbox", &newest_test("sandbox")?)
        .file("base.squashfs", &cache_dir().join("image/base.squashfs"))
        .disk("tmp", 8 << 30)
        .run(
            "set -e\nmodprobe loop\nmkfs.ext4 -q /dev/disk/by-test/tmp\nmount /dev/disk/by-test/tmp /tmp\n\
             mkdir -p /var/cache/slipway/image\nln -s /run/test/base.squashfs /var/cache/slipway/image/base.squashfs\n\
             CI=true /run/test/sandbox --test-threads=1 --skip vm_walls walls:: an_adopted_sandbox\n",
            WITHIN,
        )?;
    println!("{}\nafter {:?}", end.output, end.took);
    ensure!(end.exit_code == 0, "it ended with {}", end.exit_code);
    Ok(())
}

/// The program of another crate's test, as the build that made this one left it.
fn newest_test(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let dir = here.parent().context("a test lies in a directory")?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.starts_with(&format!("{name}-")) && !file.contains('.') {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    let (_, path) = found
        .into_iter()
        .max()
        .with_context(|| format!("no test {name} (hint: cargo build --workspace --tests)"))?;
    Ok(path)
}
