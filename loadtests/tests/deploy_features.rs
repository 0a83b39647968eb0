//! What users of flyctl and buildx type, on one farm.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use slipway_loadtests::testbed::{Engine, ImageStore, Testbed, show, wait_for};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// `slipway deploy` of a directory, with more flags.
fn deploy(bed: &Testbed, dir: &Path, more: &[&str]) -> Command {
    let mut command = bed.slipway(&["deploy"]);
    command
        .arg(dir)
        .args(["--app", "web", "--org", "acme", "--remote-only"])
        .args(more);
    command
}

/// What a command says that gets something on its standard input.
fn fed(mut command: Command, input: &[u8]) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    std::thread::scope(|scope| {
        // One that ends early says why.
        scope.spawn(move || drop(stdin.write_all(input)));
        Ok(child.wait_with_output()?)
    })
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

/// An agent with one key; ends with the value.
struct Agent {
    process: Child,
    socket: PathBuf,
    key: PathBuf,
}

impl Agent {
    fn start(dir: &Path) -> Result<Self> {
        let (socket, key) = (dir.join("agent.sock"), dir.join("key"));
        let process = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()?;
        let agent = Self {
            process,
            socket,
            key,
        };
        wait_for("the agent", Duration::from_secs(30), || {
            UnixStream::connect(&agent.socket)?;
            Ok(())
        })?;
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "forwarded", "-f"])
            .arg(&agent.key)
            .status()?;
        let added = Command::new("ssh-add")
            .arg(&agent.key)
            .env("SSH_AUTH_SOCK", &agent.socket)
            .output()?;
        ensure!(made.success() && added.status.success(), "{}", show(&added));
        Ok(agent)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// A program of this computer with the libraries it needs, for a base image that has neither.
fn with_libraries(program: &str, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let linked = Command::new("ldd").arg(program).output()?;
    let linked = String::from_utf8(linked.stdout)?;
    let words = linked
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for file in words.chain([program]) {
        let name = Path::new(file).file_name().context("a file")?;
        std::fs::copy(file, dir.join(name))?;
    }
    Ok(())
}

fn an_ssh_agent_is_forwarded(bed: &Testbed) -> Result<()> {
    let registry = bed.registry.address().to_owned();
    let list =
        "for loader in /ssh/ld-linux*; do $loader --library-path /ssh /ssh/ssh-add -l >/keys; done";
    let dockerfile = format!(
        "FROM {registry}/library/busybox AS list\nCOPY ssh /ssh\nRUN --mount=type=ssh,required=true {list}\n\
         FROM scratch\nCOPY --from=list /keys /keys\n"
    );
    let dir = bed.project("ssh", &[("Dockerfile", &dockerfile)])?;
    with_libraries("/usr/bin/ssh-add", &dir.join("ssh"))?;
    let agent = Agent::start(bed.dir())?;
    let out = bed.dir().join("ssh-out");
    let to = out.to_str().context("path")?;

    bed.deployed(
        deploy(bed, &dir, &["--ssh", "default", "-o", to]).env("SSH_AUTH_SOCK", &agent.socket),
    )?;
    let keys = std::fs::read_to_string(out.join("keys"))?;
    ensure!(keys.contains("forwarded"), "{keys}");
    // The key itself, which gets an agent of its own.
    let key = format!("default={}", agent.key.display());
    let more = ["--ssh", &key, "-o", to, "--no-cache"];
    std::fs::remove_file(out.join("keys"))?;
    bed.deployed(deploy(bed, &dir, &more).env_remove("SSH_AUTH_SOCK"))?;
    let keys = std::fs::read_to_string(out.join("keys"))?;
    ensure!(keys.contains("forwarded"), "{keys}");
    Ok(())
}

/// Names, contexts, and what ends up here.
fn flags_of_buildx(bed: &Testbed) -> Result<()> {
    let registry = bed.registry.address().to_owned();
    let base = format!("FROM {registry}/library/busybox");
    let dockerfile = format!(
        "{base} AS build\nCOPY --from=more x /x\nCOPY --from=img /bin/busybox /other\n\
         RUN grep named.host /etc/hosts >/hosts && ulimit -n >/ulimit && df -k /dev/shm | tail -1 >/shm\n\
         RUN --network=host cat /etc/hosts >/dev/null\n\
         FROM scratch\nCOPY --from=build /x /hosts /ulimit /shm /out/\n"
    );
    let files = [("docker/other", dockerfile.as_str()), ("more/x", "more\n")];
    let dir = bed.project("flags", &files)?;
    let path = |name: &str| bed.dir().join(name).to_string_lossy().into_owned();
    let (one, two) = (
        format!("{registry}/flags:1"),
        format!("{registry}/other/flags:2"),
    );
    let more = format!("more={}", dir.join("more").display());
    let img = format!("img=docker-image://{registry}/library/busybox");
    let file = dir.join("docker/other").to_string_lossy().into_owned();
    let (iid, metadata, out) = (path("iid"), path("metadata.json"), path("out"));
    let typed = [
        "-t",
        &one,
        "--tag",
        &two,
        "-f",
        &file,
        "--build-context",
        &more,
        "--build-context",
        &img,
        "--add-host",
        "named.host:10.1.2.3",
        "--ulimit",
        "nofile=321",
        "--shm-size",
        "12m",
        "--allow",
        "network.host",
        "--iidfile",
        &iid,
        "--metadata-file",
        &metadata,
        "-o",
        &out,
        "--push",
        "--cache-to",
        "type=inline",
    ];
    let done = bed.deployed(&mut deploy(bed, &dir, &typed))?;
    ensure!(digest(bed, &one)? == digest(bed, &two)?, "{done}");
    ensure!(std::fs::read_to_string(&iid)? == done["image_id"], "{done}");
    let known: Value = serde_json::from_str(&std::fs::read_to_string(&metadata)?)?;
    ensure!(known["containerimage.digest"] == done["digest"], "{known}");
    ensure!(known["image.name"] == format!("{one},{two}"), "{known}");
    let read = |name: &str| std::fs::read_to_string(format!("{out}/out/{name}"));
    ensure!(read("x")? == "more\n" && read("ulimit")? == "321\n");
    ensure!(read("hosts")?.contains("10.1.2.3"), "{}", read("hosts")?);
    ensure!(read("shm")?.contains("12288"), "{}", read("shm")?);

    // A Dockerfile and an archive from standard input; the archive's result to standard output.
    let said = fed(
        deploy(bed, Path::new("-"), &["--image", &one]),
        format!("{base}\nRUN true\n").as_bytes(),
    )?;
    ensure!(said.status.success(), "{}", show(&said));
    std::fs::write(
        dir.join("Dockerfile"),
        "FROM scratch\nCOPY more/x /from-archive\n",
    )?;
    let archive = Command::new("tar")
        .arg("-C")
        .arg(&dir)
        .args(["-cz", "."])
        .output()?;
    let got = fed(deploy(bed, Path::new("-"), &["-o", "-"]), &archive.stdout)?;
    ensure!(got.status.success(), "{}", show(&got));
    let listed = fed(
        {
            let mut tar = Command::new("tar");
            tar.arg("-t");
            tar
        },
        &got.stdout,
    )?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(listed.contains("from-archive"), "{listed}");
    Ok(())
}

/// A builder's image into the Docker that runs here, pushed as well or not; a builder that cannot send it says so.
fn an_image_is_loaded_here(bed: &Testbed, can: bool) -> Result<()> {
    let registry = bed.registry.address().to_owned();
    let files = [
        (
            "Dockerfile",
            &*format!("FROM {registry}/library/busybox\nCOPY here /here\nLABEL made=there\n"),
        ),
        ("here", "loaded\n"),
    ];
    let dir = bed.project("load", &files)?;
    let engine = Engine::start(&bed.dir().join("engine"), ImageStore::Classic, &[])?;
    let docker = format!("unix://{}", engine.socket().display());
    let load = |more: &[&str]| {
        let mut command = deploy(bed, &dir, &["--load"]);
        command.args(more).env("DOCKER_HOST", &docker);
        command
    };
    if !can {
        let says = ["sends no image for --load", "docker pull"];
        return bed.refused(&mut load(&[]), 1, &says).map(drop);
    }
    let (name, short) = (format!("{registry}/load:1"), "short:2");
    let done = bed.deployed(&mut load(&["-t", &name, "-t", short]))?;
    ensure!(done["build"].is_string(), "not by a builder: {done}");
    ensure!(done["digest"].is_null(), "it was pushed: {done}");
    for name in [&name, short] {
        let form = "{{.Id}} {{.Config.Labels.made}} {{.Architecture}}";
        let output = engine.docker_ok(&["image", "inspect", "-f", form, name])?;
        let told = String::from_utf8(output.stdout)?;
        let id = done["image_id"].as_str().context("no id")?;
        ensure!(told.starts_with(&format!("{id} there ")), "{told}: {done}");
    }
    let made = engine.docker_ok(&["create", short, "true"])?;
    let file = format!("{}:/here", String::from_utf8(made.stdout)?.trim());
    let copied = engine.docker_ok(&["cp", &file, "-"])?;
    ensure!(String::from_utf8_lossy(&copied.stdout).contains("loaded\n"));

    // Pushed too: what is in the registry is what was loaded.
    let pushed = bed.deployed(&mut load(&["-t", &name, "--push", "--no-cache"]))?;
    ensure!(pushed["digest"].is_string(), "it was not pushed: {pushed}");
    ensure!(digest(bed, &name)? == pushed["image_id"].to_string());

    let nobody = "unix:///nobody.sock";
    bed.refused(
        load(&[]).env("DOCKER_HOST", nobody),
        1,
        &["no Docker answers at", "leave --load out"],
    )
    .map(drop)
}

/// Questions to the Dockerfile's frontend, which build nothing; one that the engine's own does not know is refused by name.
fn the_frontend_is_asked(bed: &Testbed) -> Result<()> {
    let dockerfile =
        "ARG VERSION=1\nFROM scratch AS first\nFROM scratch AS second\nARG COLOUR=blue\nCOPY x /\n";
    let files = [
        ("Dockerfile", dockerfile),
        ("bad/Dockerfile", "FROM scratch\nRUNN x\n"),
    ];
    let dir = bed.project("asked", &files)?;
    let builds = || bed.slipway_json(&["builds", "list", "--org", "acme", "--json"]);
    let before = builds()?;
    let ask = |more: &[&str]| {
        let output = deploy(bed, &dir, more).output()?;
        ensure!(output.status.success(), "{}\n{}", show(&output), bed.logs());
        Ok(String::from_utf8(output.stdout)?)
    };
    let said = ask(&["--call", "targets"])?;
    ensure!(said.contains("first") && said.contains("second"), "{said}");
    let said = ask(&["--call=outline", "--json"])?;
    let last: Value = serde_json::from_str(said.lines().last().context("nothing was said")?)?;
    ensure!(last["type"] == "answer", "{said}");
    ensure!(
        last["answer"]["args"].to_string().contains("COLOUR"),
        "{said}"
    );
    bed.refused(
        &mut deploy(bed, &dir, &["--check"]),
        1,
        &["frontend.lint", "BuildKit v0.", "# syntax="],
    )?;
    bed.refused(
        &mut deploy(bed, &dir.join("bad"), &["--call", "outline"]),
        1,
        &["unknown instruction: RUNN"],
    )?;
    ensure!(builds()? == before, "a question is among the builds");
    Ok(())
}

/// A cache in a registry where the builder's engine can write one, else the way out; and an image without any layer.
fn caches_and_empty_images(bed: &Testbed, is_containerd: bool) -> Result<()> {
    let dir = bed.project(
        "empty",
        &[("Dockerfile", "FROM scratch\nLABEL what=this\n")],
    )?;
    let empty = bed.deployed(&mut bed.deploy(&dir, "empty:1"))?;
    ensure!(empty["digest"].is_string(), "{empty}");
    let dir = bed.project(
        "cached",
        &[("Dockerfile", "FROM busybox\nRUN echo 1 > /1\n")],
    )?;
    let cache = format!("type=registry,ref={}/cached:cache", bed.registry.address());
    let mut command = bed.deploy(&dir, "cached:1");
    command.args(["--cache-to", &cache]);
    if is_containerd {
        bed.deployed(&mut command)?;
        return Ok(());
    }
    bed.refused(
        &mut command,
        1,
        &["no cache of type registry", "--cache-to type=inline"],
    )
    .map(drop)
}

fn what_users_type(image_store: &str) -> Result<()> {
    let bed = Testbed::start_with(&format!(
        "isolation = \"sandbox\"\nimage_store = \"{image_store}\"\n"
    ))?;
    bed.registry.seed(&["busybox"])?;
    a_fly_file_is_used_told_or_refused(&bed)?;
    an_ssh_agent_is_forwarded(&bed)?;
    flags_of_buildx(&bed)?;
    the_frontend_is_asked(&bed)?;
    caches_and_empty_images(&bed, image_store == "containerd")?;
    an_image_is_loaded_here(&bed, image_store == "containerd")
}

#[test]
fn what_users_of_flyctl_and_buildx_type() -> Result<()> {
    what_users_type("classic")
}

#[test]
fn what_users_type_works_with_containerds_image_store_too() -> Result<()> {
    what_users_type("containerd")
}
