//! What users of flyctl and buildx type, on one farm.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use slipway_loadtests::testbed::{Testbed, show};
use std::path::Path;
use std::process::Command;

/// `slipway deploy` of a directory, with more flags.
fn deploy(bed: &Testbed, dir: &Path, more: &[&str]) -> Command {
    let mut command = bed.slipway(&["deploy"]);
    command
        .arg(dir)
        .args(["--app", "web", "--org", "acme", "--remote-only"])
        .args(more);
    command
}

/// The digest of a tag of the registry.
fn digest(bed: &Testbed, image: &str) -> Result<String> {
    let (repository, tag) = image
        .strip_prefix(bed.registry.address())
        .and_then(|path| path.trim_start_matches('/').rsplit_once(':'))
        .context("not of this registry")?;
    let (code, body) = bed
        .registry
        .get(&format!("/v2/{repository}/manifests/{tag}"))?;
    ensure!(code == 200, "{image}: {code} {body}");
    let manifest: Value = serde_json::from_str(&body)?;
    Ok(manifest["config"]["digest"].to_string())
}

/// A Fly file as `fly launch` writes it: its region is none of this farm's, and it names an image that is there.
fn a_fly_file_is_used_told_or_refused(bed: &Testbed) -> Result<()> {
    let registry = bed.registry.address().to_owned();
    let ready = format!("{registry}/fly:stable");
    let dockerfile = format!("FROM {registry}/library/busybox\nRUN echo built > /built\n");
    let fly = "app = 'web'\nprimary_region = 'iad'\n[env]\nA = '1'\n";
    let names = format!("{fly}[build]\nimage = '{ready}'\n");
    let files = [
        ("Dockerfile", dockerfile.as_str()),
        ("fly.toml", &names),
        ("fly.staging.toml", fly),
    ];
    let dir = bed.project("fly", &files)?;
    let staging = dir.join("fly.staging.toml");
    let staging = staging.to_str().context("path")?;

    let output = deploy(bed, &dir, &["-c", staging, "--image", &ready]).output()?;
    let said = show(&output);
    ensure!(output.status.success(), "{said}\n{}", bed.logs());
    ensure!(said.contains("primary_region 'iad'"), "{said}");
    ensure!(said.contains("fly.staging.toml: [env]"), "{said}");
    let before = digest(bed, &ready)?;
    std::fs::write(dir.join("Dockerfile"), format!("{dockerfile}RUN true\n"))?;
    bed.refused(
        &mut deploy(bed, &dir, &[]),
        1,
        &["is run as it is", "--image"],
    )?;
    ensure!(digest(bed, &ready)? == before, "the image was overwritten");
    Ok(())
}

#[test]
fn what_users_of_flyctl_and_buildx_type() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    a_fly_file_is_used_told_or_refused(&bed)?;
    Ok(())
}
