//! Images of several platforms, and what is attested of images: by `slipway deploy`, by buildx, and run by docker. The other platform is
//! emulated in the builder.

use super::buildx::Farm;
use super::write;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use slipway_loadtests::testbed::{Registry, Testbed, foreign_busybox, show};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const SETTINGS: &str = "isolation = \"sandbox\"\nimage_store = \"containerd\"\nsbom_scanner = \"GATEWAY:5000/scanner:1\"\n";
const BOTH: &str = "linux/amd64,linux/arm64";
/// Its program for each platform comes from Debian's package; the links are made by running it, which is emulated for one of them.
const BASE: &str = "FROM scratch\nARG TARGETARCH\nCOPY busybox-$TARGETARCH /bin/busybox\n\
     RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";
/// Writes what BuildKit asks of a scanner: a statement about the files that it is shown.
const SCAN: &str = "#!/bin/sh\nset -e\n\
     found=$(ls \"$BUILDKIT_SCAN_SOURCE\" | wc -l)\n\
     printf '{\"_type\":\"https://in-toto.io/Statement/v0.1\",\"predicateType\":\"https://spdx.dev/Document\",\
     \"predicate\":{\"spdxVersion\":\"SPDX-2.3\",\"found\":%s}}' \"$found\" >\"$BUILDKIT_SCAN_DESTINATION/sbom.spdx.json\"\n";

#[test]
fn several_platforms_and_attestations_go_out_as_one_index() -> Result<()> {
    let farm = Farm::start(SETTINGS)?;
    let bed = &farm.bed;
    makes_a_base(&farm)?;
    attests(&farm)?;
    let image = format!("{}/app:1", farm.registry);
    for (platform, machine) in [("linux/arm64", "aarch64"), ("linux/amd64", "x86_64")] {
        let run = ["run", "--rm", "--platform", platform, &image];
        let said = farm
            .docker
            .docker_ok(&[&run[..], &["sh", "-c", "uname -m; cat /machine"]].concat())?;
        ensure!(
            said == format!("{machine}\n{machine}\n"),
            "{platform}: {said}"
        );
    }
    inspects(&farm)?;

    // One platform alone, of another processor: the farm has no builder with it.
    let dir = bed.project("one", &[("Dockerfile", &from_base(&farm))])?;
    let one = bed.deployed(
        bed.deploy(&dir, "one:1")
            .args(["--platform", "linux/arm64"]),
    )?;
    ensure!(
        one["platforms"] == serde_json::json!([{ "platform": "linux/arm64", "emulated": true }]),
        "{one}"
    );
    let manifest = farm.manifest("one", "1")?;
    ensure!(manifest["layers"].is_array(), "{manifest}");

    write(&farm.docker, "ctx/Dockerfile", &from_base(&farm))?;
    let tag = format!("{}/byx:1", farm.registry);
    farm.build(&[
        "--platform",
        BOTH,
        "--push",
        "--provenance=false",
        "-t",
        &tag,
    ])?;
    ensure!(platforms(&farm.manifest("byx", "1")?) == BOTH, "{tag}");
    refuses(bed, &dir)
}

fn from_base(farm: &Farm) -> String {
    format!("FROM {}/base:1\nRUN uname -m > /machine\n", farm.registry)
}

/// The platforms of an index, with commas; attestations left out.
fn platforms(index: &Value) -> String {
    let entries = index["manifests"].as_array().into_iter().flatten();
    let named = entries.filter_map(|entry| {
        let platform = &entry["platform"];
        let (os, arch) = (platform["os"].as_str()?, platform["architecture"].as_str()?);
        (os != "unknown").then(|| format!("{os}/{arch}"))
    });
    named.collect::<Vec<_>>().join(",")
}

fn makes_a_base(farm: &Farm) -> Result<()> {
    let bed = &farm.bed;
    let dir = bed.project("base", &[("Dockerfile", BASE)])?;
    let own = PathBuf::from("/bin/busybox");
    for (arch, program) in [("amd64", own), ("arm64", foreign_busybox("arm64")?)] {
        let to = dir.join(format!("busybox-{arch}"));
        std::fs::copy(&program, to).with_context(|| program.display().to_string())?;
    }
    let made = bed.deployed(bed.deploy(&dir, "base:1").args(["--platform", BOTH]))?;
    ensure!(
        made["platforms"]
            == serde_json::json!([
                { "platform": "linux/amd64", "emulated": false },
                { "platform": "linux/arm64", "emulated": true },
            ]),
        "{made}"
    );
    let index = farm.manifest("base", "1")?;
    ensure!(platforms(&index) == BOTH, "{index}");
    let again = bed.deployed(bed.deploy(&dir, "base:1").args(["--platform", BOTH]))?;
    ensure!(again["digest"] == made["digest"], "{made} {again}");

    let files = [
        ("scan", SCAN),
        (
            "Dockerfile",
            "FROM busybox\nCOPY --chmod=755 scan /scan\nENTRYPOINT [\"/scan\"]\n",
        ),
    ];
    let dir = bed.project("scanner", &files)?;
    bed.deployed(&mut bed.deploy(&dir, "scanner:1")).map(drop)
}

/// Everything at once: two platforms, two names, annotations, provenance, the farm's scanner.
fn attests(farm: &Farm) -> Result<()> {
    let bed = &farm.bed;
    let dir = bed.project("app", &[("Dockerfile", &from_base(farm))])?;
    let other = format!("{}/other:2", farm.registry);
    let done = bed.deployed(bed.deploy(&dir, "app:1").args([
        "--platform",
        BOTH,
        "--provenance=max",
        "--sbom",
        "--annotation",
        "index:org.example.what=the index",
        "--annotation",
        "manifest[linux/arm64]:org.example.what=the arm",
        "-t",
        &other,
    ]))?;
    ensure!(done["tags"] == serde_json::json!([other]), "{done}");
    let index = farm.manifest("app", "1")?;
    ensure!(index == farm.manifest("other", "2")?, "{index}");
    ensure!(platforms(&index) == BOTH, "{index}");
    ensure!(
        index["annotations"]["org.example.what"] == "the index",
        "{index}"
    );
    let entries = index["manifests"].as_array().context("no manifests")?;
    ensure!(entries.len() == 4, "{index}");
    let digest = |entry: &Value| entry["digest"].as_str().unwrap_or_default().to_owned();
    let arm = farm.manifest("app", &digest(&entries[1]))?;
    ensure!(arm["annotations"]["org.example.what"] == "the arm", "{arm}");
    for attesting in &entries[2..] {
        let subject = attesting["annotations"]["vnd.docker.reference.digest"]
            .as_str()
            .with_context(|| attesting.to_string())?;
        ensure!(
            entries[..2].iter().any(|entry| digest(entry) == subject),
            "{index}"
        );
        let mut kinds = Vec::new();
        let manifest = farm.manifest("app", &digest(attesting))?;
        for layer in manifest["layers"].as_array().context("no statements")? {
            let path = format!("/v2/app/blobs/{}", digest(layer));
            let (status, body) = bed.registry.get(&path)?;
            ensure!(status == 200, "{path}: {status}");
            let statement: Value = serde_json::from_str(&body)?;
            let named = statement["subject"][0]["digest"]["sha256"].as_str();
            ensure!(
                named.is_some_and(|hex| subject == format!("sha256:{hex}")),
                "{subject}: {statement}"
            );
            kinds.push(
                statement["predicateType"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            );
        }
        kinds.sort();
        ensure!(
            kinds
                == [
                    "https://slsa.dev/provenance/v0.2",
                    "https://spdx.dev/Document"
                ],
            "{kinds:?}"
        );
    }
    // What the build's record says of it.
    let id = done["build"].as_str().context("no build")?;
    let build = bed.slipway_json(&["builds", "show", id, "--json"])?;
    let statements = build["statements"].as_array().context("no statements")?;
    ensure!(statements.len() == 4, "{build}");
    let of_arm = statements.iter().find(|statement| {
        statement["platform"] == "linux/arm64"
            && statement["predicateType"] == "https://slsa.dev/provenance/v0.2"
    });
    let text = of_arm.and_then(|statement| statement["text"].as_str());
    let text = text.with_context(|| build.to_string())?;
    // Of the mode max: the Dockerfile is in it.
    ensure!(text.contains("buildConfig"), "{text}");
    let builds = bed.slipway_json(&["builds", "list", "--org", "acme", "--json"])?;
    ensure!(!builds.to_string().contains("buildConfig"), "{builds}");
    let shown = bed.slipway_ok(&["builds", "show", id])?;
    ensure!(shown.contains("linux/arm64 (emulated)"), "{shown}");
    ensure!(shown.contains("buildConfig"), "{shown}");
    Ok(())
}

/// buildx's own reading. It speaks to loopback alone without TLS, so a second registry there serves what the farm's has.
fn inspects(farm: &Farm) -> Result<()> {
    let near = farm.bed.dir().join("near");
    std::fs::create_dir_all(&near)?;
    symlink(farm.bed.dir().join("registry"), near.join("registry"))?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let mut registry = Registry::at(&near, &address);
    registry.start()?;
    let image = format!("{address}/app:1");
    let inspect = ["buildx", "imagetools", "inspect", &image, "--format"];
    let ask = |what: &str| farm.docker.docker_ok(&[&inspect[..], &[what]].concat());
    let provenance = ask("{{json .Provenance}}")?;
    let provenance: Value = serde_json::from_str(&provenance)?;
    for platform in ["linux/amd64", "linux/arm64"] {
        ensure!(
            provenance[platform]["SLSA"]["buildType"].is_string(),
            "{provenance}"
        );
    }
    let sbom: Value = serde_json::from_str(&ask("{{json .SBOM}}")?)?;
    ensure!(
        sbom["linux/arm64"]["SPDX"]["spdxVersion"] == "SPDX-2.3",
        "{sbom}"
    );
    Ok(())
}

fn refuses(bed: &Testbed, dir: &Path) -> Result<()> {
    let unknown = format!("generator={}/nobody:1", bed.registry.address());
    let sbom = format!("--sbom={unknown}");
    bed.refused(bed.deploy(dir, "no:1").arg(&sbom), 1, &["nobody:1"])?;
    let alone = ["--annotation", "index:a=b"];
    bed.refused(
        bed.deploy(dir, "no:1").args(alone),
        1,
        &["no index to annotate"],
    )?;
    let output = bed
        .deploy(dir, "no:1")
        .args(["--platform", "linux/vax"])
        .output()?;
    ensure!(output.status.code() == Some(1), "{}", show(&output));
    Ok(())
}
