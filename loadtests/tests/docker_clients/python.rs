//! docker-py, unmodified: a script of ours, and its own integration suite held against a plain dockerd.

use super::certificates;
use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::{
    Authority, DockerClient, ImageStore, PlainDockerd, Python, Testbed, checkout_dir, show,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const LIBRARY: &str = "docker==7.1.0";
/// And what the suite itself needs.
const SUITE_NEEDS: [&str; 5] = [
    LIBRARY,
    "pytest==7.4.2",
    "pytest-timeout==2.1.0",
    "paramiko==5.1.0",
    "websocket-client==1.9.2",
];
/// The last version whose source archive has the suite.
const SUITE: &str = "7.0.0";

#[test]
fn docker_py_and_testcontainers_work_unmodified() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["debian", "busybox"])?;
    let certificates = certificates(&bed)?;
    let tests = checkout_dir().join("loadtests/tests");
    let address = bed.address("docker")?;
    let docker_py = Python::with("docker-py", &[LIBRARY])?
        .command()
        .arg(tests.join("docker_py/check.py"))
        .env("DOCKER_URL", format!("https://{address}"))
        .env("DOCKER_CERT_PATH", &certificates)
        .env("PUSH_TARGET", format!("{}/py:1", bed.registry.address()))
        .output()?;
    ensure!(
        docker_py.status.success(),
        "{}\n{}",
        show(&docker_py),
        bed.logs()
    );
    let testcontainers = Python::with("testcontainers", &[LIBRARY, "testcontainers==4.15.0"])?
        .command()
        .arg(tests.join("testcontainers/check.py"))
        .env("HOME", bed.dir())
        .env("DOCKER_HOST", format!("tcp://{address}"))
        .env("DOCKER_TLS_VERIFY", "1")
        .env("DOCKER_CERT_PATH", &certificates)
        .env("TESTCONTAINERS_RYUK_DISABLED", "true")
        .output()?;
    ensure!(
        testcontainers.status.success(),
        "{}\n{}",
        show(&testcontainers),
        bed.logs()
    );
    Ok(())
}

/// Files of the suite that are left out: a builder has neither a swarm nor plugins (`check.py` has how it says so), and on a
/// plain dockerd they take minutes; and what no daemon is asked for.
const LEFT_OUT: [&str; 7] = [
    "*config_test.py",
    "*nodes_test.py",
    "*plugin_test.py",
    "*secret_test.py",
    "*service*_test.py",
    "*swarm_test.py",
    "*/credentials",
];
/// Tests that are left out, since dockerd looks for a plugin for 15 s, or waits 10 s for a container.
const SLOW: [&str; 3] = [
    "api_container_test.py::CreateContainerTest::test_invalid_log_driver_raises_exception",
    "api_volume_test.py::TestVolumes::test_create_volume_invalid_driver",
    "models_containers_test.py::ContainerTest::test_restart",
];

/// Outcomes of tests by name, and why those that failed did.
type Outcomes = BTreeMap<String, (String, String)>;

/// A Docker API that the suite is run on.
struct Api<'a> {
    python: &'a Python,
    dir: PathBuf,
    address: String,
    certificates: &'a Path,
}

/// One run of the suite.
struct Run {
    child: Child,
    outcomes: PathBuf,
    log: PathBuf,
}

impl Api<'_> {
    /// Starts these tests, or files or folders of them.
    fn start(&self, names: &[&str]) -> Result<Run> {
        if self.dir.exists() {
            std::fs::remove_dir_all(&self.dir)?;
        }
        let suite = self.python.source("docker", SUITE)?;
        std::fs::create_dir_all(self.dir.join("home"))?;
        // Without the library beside it, so that the installed one is what is tested.
        let copied = Command::new("cp")
            .arg("-r")
            .args([suite.join("tests"), suite.join("pytest.ini")])
            .arg(&self.dir)
            .output()?;
        ensure!(copied.status.success(), "{}", show(&copied));
        let (outcomes, log) = (self.dir.join("outcomes"), self.dir.join("log"));
        let out = std::fs::File::create(&log)?;
        let plugin = checkout_dir().join("loadtests/tests/docker_py");
        let child = self
            .python
            .command()
            .args(["-m", "pytest", "-p", "outcomes", "-q"])
            .args(["--timeout", "120", "--durations", "20"])
            .args(LEFT_OUT.map(|files| format!("--ignore-glob={files}")))
            .args(SLOW.map(|of| format!("--deselect=tests/integration/{of}")))
            .args(names)
            .current_dir(&self.dir)
            .env("HOME", self.dir.join("home"))
            .env("OUTCOMES", &outcomes)
            .env("PYTHONPATH", plugin)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("DOCKER_HOST", format!("tcp://{}", self.address))
            .env("DOCKER_TLS_VERIFY", "1")
            .env("DOCKER_CERT_PATH", self.certificates)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        Ok(Run {
            child,
            outcomes,
            log,
        })
    }
}

impl Run {
    /// Waits for its end.
    fn ended(mut self) -> Result<Outcomes> {
        let status = self.child.wait()?;
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        println!("{said}");
        let text = std::fs::read_to_string(&self.outcomes)
            .with_context(|| format!("pytest ended with {status}"))?;
        let mut outcomes = Outcomes::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, '\t').map(str::to_owned);
            let mut next = || fields.next().context("a half line");
            outcomes.insert(next()?, (next()?, next()?));
        }
        Ok(outcomes)
    }
}

/// What the suite pulls from Docker Hub, each an image of its own.
const IMAGES: [&str; 3] = ["alpine:3.10", "alpine:latest", "hello-world:latest"];

fn make_images(bed: &Testbed, docker: &DockerClient) -> Result<()> {
    let context = docker.root().join("images");
    std::fs::create_dir_all(&context)?;
    for name in IMAGES {
        let dockerfile = format!("FROM busybox\nLABEL name={name}\nCMD [\"echo\", \"Hello\"]\n");
        std::fs::write(context.join("Dockerfile"), dockerfile)?;
        let whole = format!("{}/library/{name}", bed.registry.address());
        docker.docker_ok(&["build", "--quiet", "-t", &whole, "/images"])?;
        docker.docker_ok(&["push", "--quiet", &whole])?;
    }
    docker.docker_ok(&["builder", "prune", "--all", "--force"])?;
    docker.docker_ok(&["image", "prune", "--all", "--force"])?;
    Ok(())
}

/// Why a test may end otherwise through the gateway than on a plain dockerd: names' beginnings, and reasons.
fn intended() -> Result<Vec<(String, String)>> {
    let list = checkout_dir().join("loadtests/tests/docker_py/differences");
    let text = std::fs::read_to_string(&list)?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (name, reason) = line.split_once(' ').with_context(|| line.to_owned())?;
            Ok((name.to_owned(), reason.trim().to_owned()))
        })
        .collect()
}

#[test]
fn docker_pys_own_suite_ends_as_on_a_plain_dockerd() -> Result<()> {
    let bed = Testbed::start()?;
    bed.registry.seed(&["busybox"])?;
    let of_farm = certificates(&bed)?;
    let farm = DockerClient::mount(&bed.dir().join("client"), &of_farm, &bed.address("docker")?)?;
    let store = match farm.docker_ok(&["info", "--format", "{{.Driver}}"])?.trim() {
        "overlay2" => ImageStore::Classic,
        _ => ImageStore::Containerd,
    };
    let authority = Authority::new()?;
    let plain = PlainDockerd::start(&bed, &bed.dir().join("plain"), store, &authority)?;
    let of_plain = bed.dir().join("of-plain");
    std::fs::create_dir_all(&of_plain)?;
    for name in ["cert.pem", "key.pem"] {
        std::fs::copy(of_farm.join(name), of_plain.join(name))?;
    }
    std::fs::write(of_plain.join("ca.pem"), &authority.pem)?;
    let docker = DockerClient::mount(&bed.dir().join("plainly"), &of_plain, plain.address())?;
    make_images(&bed, &docker)?;

    let python = Python::with("docker-py-suite", &SUITE_NEEDS)?;
    let api = |name: &str, address: String, certificates| Api {
        python: &python,
        dir: bed.dir().join(name),
        address,
        certificates,
    };
    let plainly = api("suite-plain", plain.address().to_owned(), &of_plain);
    let through = api("suite-farm", bed.address("docker")?, &of_farm);
    let intended = intended()?;
    let of_all = both(&plainly, &through, &["tests/integration"])?;
    ensure!(of_all.0.len() > 200, "{} tests", of_all.0.len());
    let first = Differences::between(&of_all, &intended);
    ensure!(
        first.gone.is_empty(),
        "no differences any more: {:?}",
        first.gone
    );
    // Some of its tests go by the clock, or by what others have left: a difference is what is there again.
    let names: Vec<_> = first.new.keys().map(String::as_str).collect();
    if !names.is_empty() {
        let again = Differences::between(&both(&plainly, &through, &names)?, &intended);
        ensure!(again.new.is_empty(), "new differences: {:#?}", again.new);
    }
    Ok(())
}

fn both(plainly: &Api, through: &Api, names: &[&str]) -> Result<(Outcomes, Outcomes)> {
    let runs = (plainly.start(names)?, through.start(names)?);
    let (plainly, through) = (runs.0.ended()?, runs.1.ended()?);
    let passed = |of: &Outcomes| of.values().filter(|ended| ended.0 == "passed").count();
    println!(
        "passed: {} plainly, {} through the gateway",
        passed(&plainly),
        passed(&through)
    );
    Ok((plainly, through))
}

/// What of two runs ended in two ways.
struct Differences {
    /// That are not intended, by the test's name: how both ended.
    new: BTreeMap<String, String>,
    /// That are intended, and are none.
    gone: Vec<String>,
}

impl Differences {
    fn between((plainly, through): &(Outcomes, Outcomes), intended: &[(String, String)]) -> Self {
        let mut gone: BTreeSet<_> = intended.iter().map(|(begins, _)| begins).collect();
        let mut new = BTreeMap::new();
        let none = (String::new(), String::new());
        for name in plainly.keys().chain(through.keys()) {
            let before = plainly.get(name).unwrap_or(&none);
            let after = through.get(name).unwrap_or(&none);
            if before.0 == after.0 {
                continue;
            }
            let known = intended.iter().find(|(begins, _)| name.starts_with(begins));
            match known {
                Some((begins, _)) => drop(gone.remove(begins)),
                None => {
                    let both = format!("{before:?}, through the gateway {after:?}");
                    new.insert(name.clone(), both);
                }
            }
        }
        let gone = gone.into_iter().cloned().collect();
        Self { new, gone }
    }
}
