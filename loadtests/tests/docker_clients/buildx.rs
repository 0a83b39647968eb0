//! buildx as people use it: README's own lines, and every way out of a build where containerd keeps the images.

use super::{certificates, write};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use slipway_loadtests::testbed::{DockerClient, Testbed, checkout_dir, show};
use std::process::Command;

const STORE: &str = "isolation = \"sandbox\"\nimage_store = \"containerd\"\n";
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const REMOTE: &str = "cacert=/certs/ca.pem,cert=/certs/cert.pem,key=/certs/key.pem";

/// README's lines that begin with these words, each with the command that its remark shows.
fn readmes_lines(begin: &str) -> Result<(String, String)> {
    let text = std::fs::read_to_string(checkout_dir().join("README.md"))?;
    let line = text.lines().find(|line| line.starts_with(begin));
    let (command, then) = line
        .and_then(|line| line.split_once('#'))
        .with_context(|| format!("README has no line '{begin} ... # ...'"))?;
    Ok((command.trim().to_owned(), then.trim().to_owned()))
}

#[test]
fn readmes_docker_lines_work_in_any_order_and_again() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let client = super::client(&bed)?;
    write(&client, "ctx/Dockerfile", "FROM busybox\nRUN echo a > /a\n")?;
    std::fs::copy(
        bed.slipway::<&str>(&[]).get_program(),
        client.root().join("usr/bin/slipway"),
    )?;
    let config = client.root().join("settings");
    std::fs::create_dir_all(&config)?;
    std::fs::copy(
        bed.dir().join("config/config.toml"),
        config.join("config.toml"),
    )?;
    let context = readmes_lines("slipway docker-context create")?;
    let buildx = readmes_lines("eval \"$(slipway buildx)\"")?;
    for (home, lines) in [("/a", [&context, &buildx]), ("/b", [&buildx, &context])] {
        std::fs::create_dir_all(client.root().join(&home[1..]))?;
        let made = lines.map(|(make, _)| make.as_str()).join("\n");
        let used = lines.map(|(_, build)| build.as_str()).join("\n");
        // A second certificate for the builder that buildx has already.
        let again = &buildx.0;
        let script = format!("cd /ctx\n{made}\n{used}\n{again}\n{}\n", buildx.1);
        let output = client
            .command("sh", &["-exc", &script])
            .env("HOME", home)
            .env("SLIPWAY_CONFIG_DIR", "/settings")
            .env("SLIPWAY_ORG", "acme")
            .env_remove("DOCKER_HOST")
            .env_remove("DOCKER_TLS_VERIFY")
            .env_remove("DOCKER_CERT_PATH")
            .output()?;
        ensure!(output.status.success(), "{}\n{}", show(&output), bed.logs());
    }
    let taken = bed.slipway(&["buildx", "farm", "--org", "acme"]).output()?;
    let text = show(&taken);
    ensure!(taken.status.code() == Some(1), "{text}");
    ensure!(text.contains("there is a docker context farm"), "{text}");
    Ok(())
}

/// A farm, and buildx with a builder in it.
pub(crate) struct Farm {
    pub(crate) docker: DockerClient,
    pub(crate) registry: String,
    pub(crate) bed: Testbed,
}

impl Farm {
    pub(crate) fn start(settings: &str) -> Result<Farm> {
        let bed = Testbed::start_with(settings)?;
        bed.registry.seed(&["busybox"])?;
        let certificates = certificates(&bed)?;
        let docker = DockerClient::mount(
            &bed.dir().join("client"),
            &certificates,
            &bed.address("docker")?,
        )?;
        let address = format!("tcp://{}", bed.address("buildkit")?);
        docker.docker_ok(&[
            "buildx",
            "create",
            "--name",
            "farm",
            "--driver",
            "remote",
            "--driver-opt",
            REMOTE,
            &address,
        ])?;
        Ok(Farm {
            registry: bed.registry.address().to_owned(),
            docker,
            bed,
        })
    }

    pub(crate) fn build(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["buildx", "build", "--builder", "farm"];
        all.extend(arguments);
        all.push("/ctx");
        self.docker
            .docker_ok(&all)
            .with_context(|| format!("{arguments:?}\n{}", self.bed.logs()))
    }

    /// A manifest or index in the farm's registry.
    pub(crate) fn manifest(&self, repository: &str, reference: &str) -> Result<Value> {
        let url = format!(
            "http://{}/v2/{repository}/manifests/{reference}",
            self.registry
        );
        let mut curl = Command::new("curl");
        for kind in MANIFESTS {
            curl.args(["--header", &format!("Accept: {kind}")]);
        }
        let output = curl
            .args(["--fail", "--silent", "--show-error", &url])
            .output()?;
        ensure!(output.status.success(), "{url}: {}", show(&output));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn empty_cache(&self) -> Result<()> {
        let prune = ["buildx", "prune", "--builder", "farm", "--force", "--all"];
        self.docker.docker_ok(&prune).map(drop)
    }

    /// Whether the first step came from a cache, with these options.
    fn is_cached(&self, options: &[&str]) -> Result<bool> {
        let mut all = vec![
            "buildx",
            "build",
            "--builder",
            "farm",
            "--progress",
            "plain",
        ];
        all.extend(options);
        all.extend(["--output", "type=local,dest=/again", "/ctx"]);
        let output = self.docker.command("docker", &all).output()?;
        let text = show(&output);
        ensure!(output.status.success(), "{options:?}: {text}");
        let step = text.lines().find(|line| line.contains("RUN echo made"));
        let number = step.and_then(|line| line.trim_start().split(' ').next());
        let number = number.with_context(|| format!("no step: {text}"))?;
        Ok(text.contains(&format!("{number} CACHED")))
    }
}

#[test]
fn buildx_pushes_loads_exports_and_caches_where_containerd_keeps_the_images() -> Result<()> {
    let farm = Farm::start(STORE)?;
    write(
        &farm.docker,
        "ctx/Dockerfile",
        "FROM busybox\nRUN echo made > /m\nCOPY x /x\n",
    )?;
    write(&farm.docker, "ctx/x", "x\n")?;
    pushes_and_loads(&farm)?;
    exports(&farm)?;
    caches(&farm)?;
    bakes(&farm)?;
    let used = farm
        .docker
        .docker_ok(&["buildx", "du", "--builder", "farm"])?;
    ensure!(used.contains("Total:"), "{used}");
    farm.empty_cache()?;
    deploys(&farm)
}

fn pushes_and_loads(farm: &Farm) -> Result<()> {
    let image = |tag: &str| format!("{}/pushed:{tag}", farm.registry);
    farm.build(&["--push", "-t", &image("1"), "--metadata-file", "/meta.json"])?;
    let told: Value =
        serde_json::from_slice(&std::fs::read(farm.docker.root().join("meta.json"))?)?;
    let digest = told["containerimage.digest"]
        .as_str()
        .context("no digest")?;
    farm.manifest("pushed", digest)?;
    farm.build(&[
        "--output",
        &format!("type=image,name={},push=true", image("2")),
    ])?;
    farm.manifest("pushed", "2")?;
    // An index with what made it.
    farm.build(&["--push", "--provenance=mode=max", "-t", &image("3")])?;
    let index = farm.manifest("pushed", "3")?;
    ensure!(
        index["manifests"]
            .as_array()
            .is_some_and(|all| all.len() == 2),
        "{index}"
    );
    farm.build(&["--load", "-t", "loaded:1"])?;
    farm.build(&["--output", "type=image,name=docker.io/library/named:1"])?;
    // The second of these was not unpacked when it was made.
    for name in ["loaded:1", "named:1"] {
        let said = farm
            .docker
            .docker_ok(&["run", "--rm", name, "cat", "/m", "/x"])?;
        ensure!(said == "made\nx\n", "{name}: {said}");
    }
    // docker's own push goes by the gateway, and takes the name.
    let target = image("4");
    farm.docker.docker_ok(&["tag", "named:1", &target])?;
    let pushed = farm.docker.docker_ok(&["push", &target])?;
    ensure!(pushed.contains("digest: sha256:"), "{pushed}");
    farm.manifest("pushed", "4").map(drop)
}

fn exports(farm: &Farm) -> Result<()> {
    let root = farm.docker.root();
    for (kind, made) in [
        ("type=oci,dest=/oci.tar", "oci.tar"),
        (
            "type=docker,dest=/docker.tar,name=docker.io/library/exported:1",
            "docker.tar",
        ),
        ("type=tar,dest=/plain.tar", "plain.tar"),
        ("type=local,dest=/out", "out/m"),
    ] {
        farm.build(&["--output", kind])?;
        let length = std::fs::metadata(root.join(made)).context(kind)?.len();
        ensure!(length > 0, "{kind} wrote nothing");
    }
    let loaded = farm.docker.docker_ok(&["load", "--input", "/docker.tar"])?;
    ensure!(loaded.contains("exported:1"), "{loaded}");
    Ok(())
}

/// Each cache fills an empty builder's: what it holds needs not be run again.
fn caches(farm: &Farm) -> Result<()> {
    let registry = format!("type=registry,ref={}/cache:1", farm.registry);
    let inlined = format!("{}/inlined:1", farm.registry);
    let from_inlined = format!("type=registry,ref={inlined}");
    for (to, from, push) in [
        ("type=local,dest=/cache", "type=local,src=/cache", None),
        (registry.as_str(), registry.as_str(), None),
        ("type=inline", from_inlined.as_str(), Some(&inlined)),
    ] {
        let push = push.map_or(vec![], |name| vec!["--push", "-t", name]);
        farm.build(&[&["--cache-to", to], &push[..]].concat())?;
        farm.empty_cache()?;
        ensure!(
            farm.is_cached(&["--cache-from", from])?,
            "{from} had nothing"
        );
        farm.empty_cache()?;
    }
    ensure!(
        !farm.is_cached(&[])?,
        "the builder's own cache was not empty"
    );
    Ok(())
}

fn bakes(farm: &Farm) -> Result<()> {
    let file = format!(
        "group \"default\" {{ targets = [\"a\", \"b\"] }}\n\
         target \"a\" {{\n context = \"/ctx\"\n tags = [\"{0}/baked:a\"]\n}}\n\
         target \"b\" {{\n context = \"/ctx\"\n tags = [\"{0}/baked:b\"]\n}}\n",
        farm.registry
    );
    write(&farm.docker, "bake.hcl", &file)?;
    let bake = [
        "buildx",
        "bake",
        "--builder",
        "farm",
        "--file",
        "/bake.hcl",
        "--push",
    ];
    farm.docker.docker_ok(&bake)?;
    farm.manifest("baked", "a")?;
    farm.manifest("baked", "b").map(drop)
}

/// `slipway deploy` over the same store: the base image's blobs go as they came, new layers are compressed on the way.
fn deploys(farm: &Farm) -> Result<()> {
    let dockerfile = "FROM busybox\nRUN seq 1 200000 > /numbers\n";
    let dir = farm.bed.project("web", &[("Dockerfile", dockerfile)])?;
    let first = farm.bed.deployed(&mut farm.bed.deploy(&dir, "web:1"))?;
    let base = farm.manifest("library/busybox", "latest")?;
    let ours = farm.manifest("web", "1")?;
    ensure!(
        ours["layers"][0]["digest"] == base["layers"][0]["digest"],
        "{base} {ours}"
    );
    let kind = &ours["layers"][1]["mediaType"];
    ensure!(
        kind.as_str().is_some_and(|kind| kind.ends_with("gzip")),
        "{ours}"
    );
    let second = farm.bed.deployed(&mut farm.bed.deploy(&dir, "web:1"))?;
    ensure!(second["digest"] == first["digest"], "{first} {second}");
    // Read back from the registry by a dockerd that has lost it.
    let image = format!("{}/web:1", farm.registry);
    farm.docker.docker_ok(&["image", "rm", "--force", &image])?;
    let said = farm
        .docker
        .docker_ok(&["run", "--rm", &image, "tail", "-n", "1", "/numbers"])?;
    ensure!(said == "200000\n", "{said}");
    // The cache is there after the builder has ended, and the same store with it, whatever the setting says by then.
    farm.bed
        .slipway_ok(&["builders", "stop", "--org", "acme"])?;
    let third = farm.bed.deployed(&mut farm.bed.deploy(&dir, "web:2"))?;
    ensure!(third["steps_cached"] == third["steps"], "{third}");
    let org = ["builders", "list", "--org", "acme", "--json"];
    let builders = farm.bed.slipway_json(&org)?;
    let engine = &builders[0]["engine"];
    ensure!(engine["imageStore"] == "containerd", "{builders}");
    ensure!(
        engine["version"]
            .as_str()
            .is_some_and(|version| version.starts_with("26.")),
        "{builders}"
    );
    let driver = farm
        .docker
        .docker_ok(&["info", "--format", "{{.Driver}}"])?;
    ensure!(driver == "overlayfs\n", "{driver}");
    Ok(())
}
