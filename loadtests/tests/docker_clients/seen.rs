//! Builds that Docker clients bring along are in the list of builds, whichever way they came.

use super::write;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use slipway_loadtests::testbed::{DockerClient, Testbed, show, wait_for};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);

struct Farm {
    docker: DockerClient,
    bed: Testbed,
}

impl Farm {
    /// The newest build of these names, once it has ended.
    fn ended(&self, image: &str) -> Result<Value> {
        let mut found = Value::Null;
        wait_for(&format!("the build of {image} to end"), WAIT, || {
            let list = self
                .bed
                .slipway_json(&["builds", "list", "--org", "acme", "--json"])?;
            let builds = list.as_array().context("a list")?;
            let build = builds.iter().find(|build| {
                let name = build["image"].as_str().unwrap_or_default();
                name == image || name == format!("docker.io/library/{image}:latest")
            });
            found = build.with_context(|| format!("{list}"))?.clone();
            ensure!(!found["endedAt"].is_null(), "{found}");
            Ok(())
        })?;
        Ok(found)
    }

    fn log(&self, build: &Value) -> Result<String> {
        let id = build["id"].as_str().context("an id")?;
        self.bed.slipway_ok(&["builds", "logs", id])
    }

    fn build(&self, buildkit: bool, image: &str, dockerfile: &str) -> Result<bool> {
        write(&self.docker, &format!("{image}/Dockerfile"), dockerfile)?;
        let context = format!("/{image}");
        let output = self
            .docker
            .command("docker", &["build", "-t", image, &context])
            .env("DOCKER_BUILDKIT", if buildkit { "1" } else { "0" })
            .output()?;
        println!("{}", show(&output));
        Ok(output.status.success())
    }
}

fn field<'v>(build: &'v Value, name: &str) -> &'v str {
    build[name].as_str().unwrap_or_default()
}

#[test]
fn builds_of_docker_clients_are_listed_with_source_user_steps_log_and_end() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let docker = super::client(&bed)?;
    let farm = Farm { docker, bed };
    let good = "FROM busybox\nRUN echo said-$((40 + 2))\nRUN true\n";
    let bad = "FROM busybox\nRUN echo before; exit 3\n";
    for (kind, buildkit) in [("kit", true), ("classic", false)] {
        let name = format!("good-{kind}");
        ensure!(farm.build(buildkit, &name, good)?);
        let build = farm.ended(&name)?;
        ensure!(field(&build, "state") == "SUCCEEDED", "{build}");
        ensure!(field(&build, "source") == "DOCKER", "{build}");
        ensure!(field(&build, "askedBy") == "administrator", "{build}");
        ensure!(build["steps"] == 2, "{build}");
        let log = farm.log(&build)?;
        ensure!(log.contains("said-42"), "{log}");
        ensure!(log.contains("RUN true"), "{log}");

        let name = format!("bad-{kind}");
        ensure!(!farm.build(buildkit, &name, bad)?);
        let build = farm.ended(&name)?;
        ensure!(field(&build, "state") == "FAILED", "{build}");
        ensure!(field(&build, "error").contains("code: 3"), "{build}");
        ensure!(farm.log(&build)?.contains("before"), "{build}");
    }

    // By buildx, with a result that is no image.
    let certificates = "cacert=/certs/ca.pem,cert=/certs/cert.pem,key=/certs/key.pem";
    let address = format!("tcp://{}", farm.bed.address("buildkit")?);
    farm.docker.docker_ok(&[
        "buildx",
        "create",
        "--name",
        "farm",
        "--driver",
        "remote",
        "--driver-opt",
        certificates,
        &address,
    ])?;
    write(
        &farm.docker,
        "out/Dockerfile",
        "FROM busybox AS b\nRUN echo by-buildx > /made\nFROM scratch\nCOPY --from=b /made /\n",
    )?;
    farm.docker.docker_ok(&[
        "buildx",
        "build",
        "--builder",
        "farm",
        "-o",
        "/made",
        "/out",
    ])?;
    let build = farm.ended("")?;
    ensure!(field(&build, "source") == "BUILDKIT", "{build}");
    ensure!(field(&build, "state") == "SUCCEEDED", "{build}");
    ensure!(field(&build, "askedBy") == "administrator", "{build}");

    // A deploy is there once.
    let project = farm.bed.project("once", &[("Dockerfile", good)])?;
    let deploy = farm
        .bed
        .slipway(&["deploy", "--org", "acme", "--app", "once", "--build-only"])
        .current_dir(project)
        .output()?;
    ensure!(deploy.status.success(), "{}", show(&deploy));
    let list = farm
        .bed
        .slipway_json(&["builds", "list", "--org", "acme", "--json"])?;
    let sources = |source: &str| {
        let builds = list.as_array().into_iter().flatten();
        builds
            .filter(|build| field(build, "source") == source)
            .count()
    };
    ensure!(sources("DEPLOY") == 1, "{list}");
    ensure!(sources("DOCKER") == 4 && sources("BUILDKIT") == 1, "{list}");
    a_build_ends_with_its_client(&farm)
}

fn a_build_ends_with_its_client(farm: &Farm) -> Result<()> {
    write(
        &farm.docker,
        "slow/Dockerfile",
        "FROM busybox\nRUN echo it-runs; sleep 600\n",
    )?;
    for (name, buildkit) in [("slow-kit", "1"), ("slow-classic", "0")] {
        let mut client = farm
            .docker
            .command("docker", &["build", "-t", name, "/slow"])
            .env("DOCKER_BUILDKIT", buildkit)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        let mut id = String::new();
        wait_for("the build's output", WAIT, || {
            let list = farm
                .bed
                .slipway_json(&["builds", "list", "--org", "acme", "--json"])?;
            let newest = &list[0];
            ensure!(field(newest, "image").contains(name), "{newest}");
            ensure!(field(newest, "state") == "RUNNING", "{newest}");
            id = field(newest, "id").to_owned();
            let log = farm.log(newest)?;
            ensure!(log.contains("it-runs"), "{log}");
            Ok(())
        })?;
        let refused = farm.bed.slipway(&["builds", "cancel", &id]).output()?;
        let text = show(&refused);
        ensure!(refused.status.code() == Some(1), "{text}");
        ensure!(text.contains("Docker client"), "{text}");
        client.kill()?;
        client.wait()?;
        let build = farm.ended(name)?;
        ensure!(field(&build, "state") == "CANCELLED", "{build}");
    }
    Ok(())
}
