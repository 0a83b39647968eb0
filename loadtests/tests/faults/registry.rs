//! The registry is down, hangs up, demands a login, or is slow.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use slipway_loadtests::testbed::{
    DockerClient, Manner, Registry, Testbed, checkout_dir, show, wait_for,
};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Random, so that no layer of it is there already or is compressed.
const LARGE: &str =
    "FROM busybox\nRUN dd if=/dev/urandom of=/large bs=1024 count=1536 && echo written\n";

#[test]
fn a_registry_that_cannot_be_pushed_to_is_told_and_the_next_deploy_works() -> Result<()> {
    let mut bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let proxy = bed.proxy()?;
    let dir = bed.project(
        "web",
        &[("Dockerfile", "FROM busybox\nCOPY a /a\n"), ("a", "1")],
    )?;
    let through = format!("{}/web:1", proxy.address());
    bed.deployed(&mut bed.deploy_as(&dir, &through))?;

    std::fs::write(dir.join("a"), "2")?;
    proxy.be(Manner::HangUp);
    bed.refused(
        &mut bed.deploy_as(&dir, &through),
        2,
        &["push", proxy.address()],
    )?;
    proxy.be(Manner::Pass);
    bed.deployed(&mut bed.deploy_as(&dir, &through))?;

    std::fs::write(dir.join("a"), "3")?;
    drop(proxy);
    bed.refused(&mut bed.deploy_as(&dir, &through), 2, &["push", &through])?;
    bed.registry.end();
    // A base image that nobody has yet cannot be had either.
    let other = bed.project("other", &[("Dockerfile", "FROM busybox:other\n")])?;
    bed.refused(
        &mut bed.deploy(&other, "other:1"),
        2,
        &["busybox:other", "does not answer the builder"],
    )?;
    bed.registry.start()?;
    let pushed = bed.deployed(&mut bed.deploy(&dir, "web:1"))?;
    let digest = pushed["digest"].as_str().unwrap_or_default();
    let (code, _) = bed.registry.get(&format!("/v2/web/manifests/{digest}"))?;
    ensure!(code == 200, "{code} for {digest}");
    Ok(())
}

#[test]
fn a_registry_that_demands_a_login_says_how() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let private = bed.private_registry()?;
    let dir = bed.project("web", &[("Dockerfile", "FROM busybox\nRUN echo 1 > /1\n")])?;
    let image = format!("{}/web:1", private.address());
    let deploy = || bed.deploy_as(&dir, &image);
    bed.refused(
        &mut deploy(),
        1,
        &[private.address(), "slipway registry login"],
    )?;
    // Told while a step runs that would take longer than any test.
    let endless = "FROM busybox\nRUN sleep 100000\n";
    std::fs::write(dir.join("Dockerfile"), endless)?;
    login(&bed, private.address(), "wrong-word")?;
    let said = bed.refused(&mut deploy(), 1, &[private.address()])?;
    ensure!(
        !said.contains("wrong-word"),
        "the password is shown: {said}"
    );
    login(&bed, private.address(), "secret-word")?;
    std::fs::write(dir.join("Dockerfile"), "FROM busybox\nRUN echo 2 > /2\n")?;
    bed.deployed(&mut deploy())?;
    // The password is for the push alone: it is not handed to BuildKit, which pulls base images.
    let docker = DockerClient::of_farm(&bed)?;
    docker.docker_ok(&["rmi", &image])?;
    let from = bed.project("from", &[("Dockerfile", &format!("FROM {image}\n"))])?;
    bed.refused(
        &mut bed.deploy(&from, "from:1"),
        1,
        &["takes passwords", "docker login"],
    )?;

    // With tokens, builders are lent these: they cannot reach the token server, so they never had the password to show there.
    drop(private);
    let (private, tokens) = bed.token_registry()?;
    bed.deployed(&mut deploy())?;
    let scopes = tokens.scopes();
    ensure!(
        scopes.iter().all(|it| it == "repository:web:pull,push") && !scopes.is_empty(),
        "{scopes:?}"
    );
    // By docker push through the gateway too, and from one repository into another.
    let other = format!("{}/other/web:1", private.address());
    docker.docker_ok(&["tag", &image, &other])?;
    docker.docker_ok(&["push", &other])?;
    // A base image is pulled with a lent token too, from the first deploy after the login on.
    docker.docker_ok(&["rmi", &image, &other])?;
    std::fs::write(
        from.join("Dockerfile"),
        format!("FROM {other}\nRUN echo 3 > /3\n"),
    )?;
    let base = || bed.deploy(&from, "from:1");
    bed.slipway_ok(&["registry", "logout", private.address(), "--org", "acme"])?;
    // Without one BuildKit asks the token server itself, which it cannot reach.
    bed.refused(&mut base(), 2, &[&other, "anonymous"])?;
    login(&bed, private.address(), "secret-word")?;
    bed.deployed(&mut base())?;
    let pull = "repository:other/web:pull".to_owned();
    ensure!(tokens.scopes().contains(&pull), "{:?}", tokens.scopes());
    let log = std::fs::read_to_string(bed.dir().join("serve.log"))?;
    let lent = log.lines().find(|it| it.contains("token for pulls lent"));
    let lent = lent.context("the loan is not logged")?;
    ensure!(lent.contains("other/web"), "{lent}");
    for name in ["serve.log", "host.log"] {
        let log = std::fs::read_to_string(bed.dir().join(name))?;
        ensure!(!log.contains("secret-word"), "{name} has the password");
    }
    login(&bed, private.address(), "wrong-word")?;
    let refuses = "refuses the login that the org has stored";
    bed.refused(&mut base(), 1, &[private.address(), refuses])?;
    std::fs::write(dir.join("Dockerfile"), endless)?;
    bed.refused(&mut deploy(), 1, &[private.address(), "incorrect username"])?;
    ensure!(
        private.head("/v2/other/web/manifests/1")? == 401,
        "the registry is open"
    );
    Ok(())
}

/// Writes the mirrors' settings as docs/operations.md has them typed, below `root`, with these in the place of what is typed there.
fn type_the_recipe(root: &Path, instead: &[(&str, &str)]) -> Result<()> {
    let page = std::fs::read_to_string(checkout_dir().join("docs/operations.md"))?;
    let (_, recipe) = page
        .split_once("**Mirrors of registries**")
        .context("gone")?;
    let blocks = recipe.split("```sh\n").skip(1).take(2);
    let typed: Vec<&str> = blocks.filter_map(|it| it.split("```").next()).collect();
    // What needs the system's own services is not for a test.
    let of_the_system = |line: &&str| {
        ["apt-get", "systemctl", "install"]
            .iter()
            .any(|command| line.starts_with(command))
    };
    let typed = typed.concat();
    let lines: Vec<&str> = typed.lines().filter(|it| !of_the_system(it)).collect();
    let mut script = lines.join("\n");
    let var = format!("{}/var/lib/", root.display());
    let etc = format!("{}/etc/", root.display());
    let below_root = [("/var/lib/", var.as_str()), ("/etc/", etc.as_str())];
    for (from, to) in below_root.iter().chain(instead) {
        ensure!(
            script.contains(from),
            "{from} is not in the recipe: {script}"
        );
        script = script.replace(from, to);
    }
    for dir in ["etc/docker/registry", "etc/systemd/system", "var/lib"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    let output = Command::new("sh").args(["-euc", &script]).output()?;
    ensure!(output.status.success(), "{script}\n{}", show(&output));
    Ok(())
}

#[test]
fn a_farm_with_mirrors_asks_each_registry_for_a_layer_once() -> Result<()> {
    // Of the last one nobody listens: the registry itself is there.
    let mut bed = Testbed::start_with(
        "registry_mirrors = { \"docker.io\" = \"http://GATEWAY:5000\", \"other.test\" = \"http://GATEWAY:5007\", \
         \"GATEWAY:5000\" = \"http://GATEWAY:5008\" }\n",
    )?;
    // The registries are where builders cannot reach them.
    let upstream = |name: &str| -> Result<Registry> {
        let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let dir = bed.dir().join(name);
        std::fs::create_dir_all(&dir)?;
        let mut registry = Registry::at(&dir, &free.to_string());
        registry.start()?;
        registry.seed(&["busybox"])?;
        Ok(registry)
    };
    let (hub, other) = (upstream("hub")?, upstream("other")?);
    let gateway = bed.registry.address().trim_end_matches(":5000").to_owned();
    let root = bed.dir().join("mirrors");
    type_the_recipe(
        &root,
        &[
            (":5000", bed.registry.address()),
            (":5001", &format!("{gateway}:5007")),
            (
                "https://registry-1.docker.io",
                &format!("http://{}", hub.address()),
            ),
            ("https://ghcr.io", &format!("http://{}", other.address())),
        ],
    )?;
    let unit = root.join("etc/systemd/system/docker-registry-ghcr.service");
    let unit = std::fs::read_to_string(unit)?;
    ensure!(unit.contains("/etc/docker/registry/ghcr.yml"), "{unit}");
    let settings = root.join("etc/docker/registry");
    bed.registry.start_by(&settings.join("config.yml"))?;
    let mut second = Registry::at(&root, &format!("{gateway}:5007"));
    second.start_by(&settings.join("ghcr.yml"))?;

    let deploy = |org: &str, from: &str| -> Result<()> {
        let dockerfile = format!("FROM {from}\nRUN echo 1 > /1\n");
        let dir = bed.project("web", &[("Dockerfile", &dockerfile)])?;
        let mut command = bed.slipway(&["deploy"]);
        command.arg(&dir).args(["--app", "web", "--org", org]);
        let output = command.args(["--remote-only", "--build-only"]).output()?;
        ensure!(output.status.success(), "{}\n{}", show(&output), bed.logs());
        Ok(())
    };
    // Each builder is a new one: a layer that it has is not fetched, whatever registry it is of.
    for org in ["beta", "gamma", "delta"] {
        bed.slipway_ok(&["orgs", "create", org])?;
    }
    for (registry, from, [one, another]) in [
        (&hub, "busybox", ["acme", "beta"]),
        (&other, "other.test/library/busybox", ["gamma", "delta"]),
    ] {
        let seeded = registry.blobs_given();
        deploy(one, from)?;
        let asked = registry.blobs_given();
        ensure!(asked > seeded, "{from} came from elsewhere");
        deploy(another, from)?;
        ensure!(
            registry.blobs_given() == asked,
            "{from} was asked for again"
        );
    }
    deploy(
        "acme",
        &format!("{}/library/busybox", bed.registry.address()),
    )
}

fn login(bed: &Testbed, registry: &str, password: &str) -> Result<()> {
    let mut child = bed
        .slipway(&[
            "registry",
            "login",
            registry,
            "--username",
            "someone",
            "--org",
            "acme",
        ])
        .stdin(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(password.as_bytes())?;
    }
    ensure!(child.wait()?.success(), "registry login failed");
    Ok(())
}

#[test]
fn a_slow_push_goes_on_and_can_be_interrupted() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let proxy = bed.proxy()?;
    let dir = bed.project("slow", &[("Dockerfile", LARGE)])?;
    let image = format!("{}/slow:1", proxy.address());

    proxy.be(Manner::Slow(128 << 10));
    let began = Instant::now();
    let output = bed.deploy_as(&dir, &image).arg("--json").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}\n{}", bed.logs());
    let told = text
        .lines()
        .filter(|line| line.contains(r#""state":"pushing""#))
        .count();
    ensure!(began.elapsed() > Duration::from_secs(10), "it was not slow");
    ensure!(told >= 5, "progress was told {told} times: {text}");

    // The same again under a new name and with a new layer, cut off in the middle.
    std::fs::write(dir.join("Dockerfile"), format!("{LARGE}RUN echo other\n"))?;
    proxy.be(Manner::Slow(16 << 10));
    let before = proxy.taken();
    let image = format!("{}/slow-other:2", proxy.address());
    let deploy = bed.start_deploy(bed.deploy_as(&dir, &image).arg("--no-cache"))?;
    wait_for("the push to be under way", Duration::from_secs(60), || {
        ensure!(proxy.taken() > before + (64 << 10), "{}", deploy.said());
        Ok(())
    })?;
    deploy.signal(Signal::SIGINT)?;
    let (code, said) = deploy.end()?;
    ensure!(code == Some(130), "{code:?}: {said}");
    proxy.be(Manner::Pass);
    let (code, _) = bed.registry.get("/v2/slow-other/manifests/2")?;
    ensure!(code == 404, "a push that was cut off left a tag: {code}");
    Ok(())
}
