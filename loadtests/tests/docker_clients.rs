//! Unmodified Docker clients through the gateway: build, run, exec, attach, logs, cp, events, save, load, push, buildx.

#[path = "docker_clients/buildx.rs"]
mod buildx;
#[path = "docker_clients/platforms.rs"]
mod platforms;
#[path = "docker_clients/python.rs"]
mod python;
#[path = "docker_clients/seen.rs"]
mod seen;

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::{DockerClient, Testbed, show, wait_for};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

fn client(bed: &Testbed) -> Result<DockerClient> {
    let certificates = certificates(bed)?;
    DockerClient::mount(
        &bed.dir().join("client"),
        &certificates,
        &bed.address("docker")?,
    )
}

/// A directory with `ca.pem`, `cert.pem` and `key.pem` of a client of the org.
fn certificates(bed: &Testbed) -> Result<PathBuf> {
    bed.slipway_ok(&["docker-context", "create", "farm", "--org", "acme"])?;
    let tls = bed.dir().join("docker-config/contexts/tls");
    let context = std::fs::read_dir(&tls)?
        .next()
        .context("no context was written")??
        .path();
    let written = context.join("docker");
    let certificates = bed.dir().join("certificates");
    std::fs::create_dir_all(&certificates)?;
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        std::fs::copy(written.join(name), certificates.join(name)).context(name)?;
    }
    Ok(certificates)
}

fn write(client: &DockerClient, path: &str, text: &str) -> Result<PathBuf> {
    let path = client.root().join(path);
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    std::fs::write(&path, text)?;
    Ok(path)
}

#[test]
fn docker_cli_works_unmodified() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["debian"])?;
    let docker = client(&bed)?;
    let version = docker.docker_ok(&["version", "--format", "{{.Server.Version}}"])?;
    ensure!(version.starts_with("26."), "{version}");

    write(
        &docker,
        "ctx/Dockerfile",
        "FROM debian:trixie\nRUN echo built > /built\nCOPY x /x\n",
    )?;
    write(&docker, "ctx/x", "from the context\n")?;
    docker.docker_ok(&["build", "-t", "one", "/ctx"])?;
    let classic = docker
        .command("docker", &["build", "-t", "two", "/ctx"])
        .env("DOCKER_BUILDKIT", "0")
        .output()?;
    ensure!(
        classic.status.success(),
        "classic builder: {}",
        show(&classic)
    );

    let out = docker.docker_ok(&["run", "--rm", "one", "cat", "/built", "/x"])?;
    ensure!(out == "built\nfrom the context\n", "{out}");

    // Attached stdin with half-close: cat ends only if the end of input arrives.
    let mut cat = docker
        .command("docker", &["run", "--rm", "-i", "one", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let text = "line\n".repeat(100_000);
    let mut stdin = cat.stdin.take().context("stdin")?;
    let writer = std::thread::spawn({
        let text = text.clone();
        move || stdin.write_all(text.as_bytes())
    });
    let echoed = cat.wait_with_output()?;
    writer
        .join()
        .map_err(|_| anyhow::anyhow!("writer panicked"))??;
    ensure!(
        echoed.stdout.len() == text.len(),
        "{} of {}",
        echoed.stdout.len(),
        text.len()
    );

    containers(&docker)?;
    images(&bed, &docker)
}

fn containers(docker: &DockerClient) -> Result<()> {
    let id = docker.docker_ok(&[
        "run",
        "-d",
        "--name",
        "long",
        "one",
        "sh",
        "-c",
        "echo hello; exec sleep 300",
    ])?;
    ensure!(!id.trim().is_empty());
    let said = docker.docker_ok(&["exec", "long", "cat", "/x"])?;
    ensure!(said == "from the context\n", "{said}");
    let code = docker
        .command("docker", &["exec", "long", "sh", "-c", "exit 7"])
        .output()?;
    ensure!(code.status.code() == Some(7), "{}", show(&code));
    docker.docker_ok(&["cp", "long:/built", "/copied"])?;
    ensure!(std::fs::read_to_string(docker.root().join("copied"))? == "built\n");
    wait_for("the container's output", Duration::from_secs(20), || {
        let logs = docker.docker_ok(&["logs", "long"])?;
        ensure!(logs == "hello\n", "{logs}");
        Ok(())
    })?;
    docker.docker_ok(&["rm", "-f", "long"])?;
    let events = docker.docker_ok(&[
        "events",
        "--since",
        "10m",
        "--until",
        "0s",
        "--filter",
        "event=die",
    ])?;
    ensure!(events.contains("container die"), "{events}");

    Ok(())
}

fn images(bed: &Testbed, docker: &DockerClient) -> Result<()> {
    docker.docker_ok(&["save", "-o", "/saved.tar", "one"])?;
    docker.docker_ok(&["rmi", "-f", "one"])?;
    docker.docker_ok(&["load", "-i", "/saved.tar"])?;

    let target = format!("{}/pushed:1", bed.registry.address());
    docker.docker_ok(&["tag", "one", &target])?;
    let pushed = docker.docker_ok(&["push", &target])?;
    ensure!(pushed.contains("digest: sha256:"), "{pushed}");
    let (code, _) = bed.registry.get("/v2/pushed/manifests/1")?;
    ensure!(code == 200, "{code}");

    for refused in [
        vec!["swarm", "init"],
        vec![
            "plugin",
            "install",
            "--grant-all-permissions",
            "some/plugin",
        ],
        vec!["node", "ls"],
    ] {
        let output = docker.command("docker", &refused).output()?;
        ensure!(
            !output.status.success(),
            "{refused:?} was let through: {}",
            show(&output)
        );
    }
    let plugins = docker.docker_ok(&["plugin", "ls", "--quiet"])?;
    ensure!(plugins.trim().is_empty(), "{plugins}");
    Ok(())
}

#[test]
fn buildx_builds_through_the_buildkit_gateway() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["debian"])?;
    let docker = client(&bed)?;
    write(
        &docker,
        "ctx/Dockerfile",
        "FROM debian:trixie AS b\nRUN echo made > /m\nFROM scratch\nCOPY --from=b /m /m\n",
    )?;
    let address = format!("tcp://{}", bed.address("buildkit")?);
    let certificates = "cacert=/certs/ca.pem,cert=/certs/cert.pem,key=/certs/key.pem";
    docker.docker_ok(&[
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
    docker.docker_ok(&["buildx", "build", "--builder", "farm", "-o", "/out", "/ctx"])?;
    let made = std::fs::read_to_string(docker.root().join("out/m"))?;
    ensure!(made == "made\n", "{made}");
    Ok(())
}

const COMPOSE: &str = "\
services:
  store:
    build: {context: ./store, args: {WORD: hello}}
    image: two-store:1
  web:
    build: ./web
    image: two-web:1
    depends_on: [store]
    command: [sh, -c, 'until wget -qO- http://store:8000/word; do sleep 0.1; done; echo; exec sleep 300']
";

#[test]
fn docker_compose_builds_and_runs_two_services() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let docker = client(&bed)?;
    write(&docker, "two/compose.yaml", COMPOSE)?;
    write(
        &docker,
        "two/store/Dockerfile",
        "FROM busybox\nARG WORD\nRUN mkdir /srv && echo $WORD from the store > /srv/word\n\
         CMD [\"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/srv\"]\n",
    )?;
    write(&docker, "two/web/Dockerfile", "FROM busybox\nCOPY x /x\n")?;
    write(&docker, "two/web/x", "x\n")?;
    let compose = |arguments: &[&str]| {
        let all = ["compose", "--project-directory", "/two"];
        docker.docker_ok(&[&all[..], arguments].concat())
    };
    compose(&["build"])?;
    compose(&["up", "--detach", "--no-build"])?;
    wait_for(
        "one service to hear the other",
        Duration::from_secs(30),
        || {
            let logs = compose(&["logs", "web"])?;
            ensure!(logs.contains("hello from the store"), "{logs}");
            Ok(())
        },
    )?;
    let running = compose(&["ps", "--services", "--status", "running"])?;
    let mut running: Vec<_> = running.lines().collect();
    running.sort_unstable();
    ensure!(running == ["store", "web"], "{running:?}");
    let word = compose(&["exec", "-T", "store", "cat", "/srv/word"])?;
    ensure!(word == "hello from the store\n", "{word}");
    compose(&["down", "--timeout", "0"])?;
    let left = docker.docker_ok(&["ps", "--all", "--quiet"])?;
    ensure!(left.is_empty(), "containers are left: {left}");
    Ok(())
}
