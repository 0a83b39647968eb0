//! Contexts that are empty, large, unreadable, or hold what is no file.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::{Testbed, check_refusal};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// `deploy` as the user nobody, with the org's token.
fn as_nobody(bed: &Testbed, dir: &Path) -> Result<Command> {
    let ours = bed.deploy(dir, "web:1");
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(bed.dir().join("slipway"))
        .args(ours.get_args())
        .env("SLIPWAY_SERVER", format!("https://{}", bed.address("api")?))
        .env("SLIPWAY_CA", bed.ca())
        .env("SLIPWAY_TOKEN", bed.org_token("acme")?)
        .env("HOME", "/nonexistent")
        .env_remove("XDG_CONFIG_HOME");
    Ok(command)
}

#[test]
fn what_is_no_file_and_what_cannot_be_read() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let dir = bed.project("empty", &[])?;
    let file = bed.project(
        "elsewhere",
        &[(
            "Dockerfile",
            "FROM busybox\nCOPY . /c\nRUN test -z \"$(ls -A /c)\"\n",
        )],
    )?;
    bed.deployed(
        bed.deploy(&dir, "empty:1")
            .arg("-f")
            .arg(file.join("Dockerfile")),
    )?;

    let dir = bed.project(
        "odd",
        &[("Dockerfile", "FROM busybox\nCOPY . /c\nRUN readlink /c/dangling && test -p /c/pipe && ls -l /c\n"), ("a", "1")],
    )?;
    symlink("nowhere/at-all", dir.join("dangling"))?;
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket"))?;
    nix::unistd::mkfifo(
        &dir.join("pipe"),
        nix::sys::stat::Mode::from_bits_truncate(0o644),
    )?;
    bed.deployed(&mut bed.deploy(&dir, "odd:1"))?;
    let made = Command::new("mknod")
        .arg(dir.join("device"))
        .args(["c", "1", "3"])
        .status()?;
    ensure!(made.success(), "mknod");
    bed.refused(&mut bed.deploy(&dir, "odd:2"), 1, &["device", "hint: "])?;
    std::fs::write(dir.join(".dockerignore"), "device\n")?;
    bed.deployed(&mut bed.deploy(&dir, "odd:3"))?;

    let dir = bed.project(
        "private",
        &[
            ("Dockerfile", "FROM busybox\nCOPY . /c\n"),
            ("a", "1"),
            ("sub/secret", "x"),
        ],
    )?;
    std::fs::set_permissions(dir.join("sub/secret"), PermissionsExt::from_mode(0o000))?;
    let output = as_nobody(&bed, &dir)?.output()?;
    check_refusal(&output, 1, &["sub/secret", ".dockerignore"]).with_context(|| bed.logs())?;
    std::fs::write(dir.join(".dockerignore"), "sub/secret\n")?;
    bed.deployed(&mut as_nobody(&bed, &dir)?)?;
    std::fs::set_permissions(dir.join("sub"), PermissionsExt::from_mode(0o700))?;
    let output = as_nobody(&bed, &dir)?.output()?;
    check_refusal(&output, 1, &["sub", ".dockerignore"]).with_context(|| bed.logs())?;
    Ok(())
}

#[test]
fn a_hundred_thousand_files_are_sent_once() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let dir = bed.project("many", &[("Dockerfile", "FROM busybox\nCOPY . /c\nRUN find /c -type f | wc -l > /count && grep -q 100002 /count\n"), (".dockerignore", "")])?;
    for n in 0..100 {
        let below = dir.join(format!("{n}"));
        std::fs::create_dir(&below)?;
        for m in 0..1000 {
            std::fs::write(below.join(format!("{m}")), format!("{n} {m}\n"))?;
        }
    }
    let build = || {
        let mut deploy = bed.deploy(&dir, "many:1");
        deploy.arg("--build-only");
        bed.deployed(&mut deploy)
    };
    let first = build()?;
    let again = build()?;
    let number = |of: &serde_json::Value, name: &str| of[name].as_u64().context("a number");
    ensure!(again["steps_cached"] == again["steps"], "{again}");
    let (sent_first, sent_again) = (number(&first, "sent_bytes")?, number(&again, "sent_bytes")?);
    let total = |of: &serde_json::Value| of["time"]["total_ms"].as_u64().context("total_ms");
    println!(
        "100,000 files: {} ms and {sent_first} bytes, unchanged {} ms and {sent_again} bytes",
        total(&first)?,
        total(&again)?
    );
    ensure!(sent_again * 2 < sent_first, "{first} {again}");
    ensure!(total(&again)? * 2 < total(&first)?, "{first} {again}");
    Ok(())
}
