//! A whole farm on this machine: host daemon, control plane, registry, each a real process, under names that no other
//! farm uses, in one temporary directory. Dropping it ends all of it.

mod authority;
mod caller;
mod deploy;
mod docker_client;
mod engine;
mod foreign;
mod http;
mod image_root;
mod leftovers;
mod plain;
mod power;
mod process;
mod proxy;
mod python;
mod registry;
mod slot;
mod tokens;

pub use authority::Authority;
pub use deploy::{RunningDeploy, check_refusal};
pub use docker_client::DockerClient;
pub use engine::{Engine, ImageStore};
pub use foreign::foreign_busybox;
pub use http::Connection;
pub use image_root::ImageRoot;
pub use plain::PlainDockerd;
pub use process::{Process, running, wait_for};
pub use proxy::{Manner, Proxy};
pub use python::Python;
pub use registry::Registry;
pub use tokens::TokenServer;

use anyhow::{Context, Result, bail, ensure};
use process::dies_with_us;
use serde_json::Value;
use slot::Slot;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// The unprivileged user that `slipwayd serve` runs as in a testbed (nobody).
const SERVE_UID: u32 = 65534;
const START_WAIT: Duration = Duration::from_secs(30);

/// Where else builders may find a registry, on the registry's address.
const PROXY_PORT: u16 = 5001;
const PRIVATE_PORT: u16 = 5002;
/// Port of a registry with TLS beside the farm's own.
const SECURE_PORT: u16 = 5003;

/// A running farm.
#[derive(Debug)]
pub struct Testbed {
    // Fields are dropped in this order: clients of a thing before the thing.
    serve: Option<Process>,
    host: Option<Process>,
    /// The registry that builders and this machine both reach.
    pub registry: Registry,
    dir: PathBuf,
    binaries: PathBuf,
    slot: Slot,
}

impl Testbed {
    /// Starts a farm with one org, `acme`, logged in.
    ///
    /// # Errors
    /// Not root, a binary or the builder image is missing (`make setup`), or a process did not come up.
    pub fn start() -> Result<Self> {
        Self::start_with("isolation = \"sandbox\"\n")
    }

    /// The same with these lines in the host's settings, its `isolation` among them. `GATEWAY` in them is the farm's gateway address.
    /// Without an `image_base` among them it boots the image of `make setup`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(host_settings: &str) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "a testbed needs root (it makes machines)"
        );
        let binaries = binaries_dir()?;
        let mut slot = Slot::take()?;
        if let Some(dir) = slot.left_behind()? {
            leftovers::clear(&binaries, &dir)?;
        }
        let dir = tempfile::Builder::new()
            .prefix("slipway-test-")
            .tempdir_in("/var/tmp")?
            .keep();
        slot.note(&dir)?;
        let mut bed = Self {
            serve: None,
            host: None,
            registry: Registry::new(&dir, slot.gateway()),
            dir,
            binaries,
            slot,
        };
        bed.write_settings(host_settings)?;
        bed.start_host()?;
        bed.registry.start()?;
        bed.start_serve()?;
        bed.login()?;
        Ok(bed)
    }

    /// Where everything of this farm lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The control plane's process; absent while it is down.
    pub fn serve(&mut self) -> Option<&mut Process> {
        self.serve.as_mut()
    }

    /// The host daemon's process; absent while it is down.
    pub fn host(&mut self) -> Option<&mut Process> {
        self.host.as_mut()
    }

    /// Starts a proxy in front of the registry.
    ///
    /// # Errors
    /// One runs already.
    pub fn proxy(&self) -> Result<Proxy> {
        Proxy::start(&self.beside(PROXY_PORT), self.registry.address())
    }

    /// Starts a second, empty registry that demands the login `someone` with the password `secret-word`.
    ///
    /// # Errors
    /// It does not answer.
    pub fn private_registry(&self) -> Result<Registry> {
        let dir = self.dir.join("private");
        std::fs::create_dir_all(&dir)?;
        let mut registry = Registry::private(&dir, self.beside(PRIVATE_PORT));
        registry.start()?;
        Ok(registry)
    }

    /// Starts one that wants tokens, in the place of the one with passwords.
    ///
    /// # Errors
    /// It does not answer.
    pub fn token_registry(&self) -> Result<(Registry, TokenServer)> {
        let tokens = TokenServer::start(&self.dir.join("tokens"))?;
        let dir = self.dir.join("with-tokens");
        std::fs::create_dir_all(&dir)?;
        let mut registry = Registry::with_tokens(&dir, self.beside(PRIVATE_PORT), &tokens);
        registry.start()?;
        Ok((registry, tokens))
    }

    /// Starts a third, empty registry with TLS, whose certificate this authority signs.
    ///
    /// # Errors
    /// It does not answer.
    pub fn secure_registry(&self, authority: &Authority) -> Result<Registry> {
        let dir = self.dir.join("secure");
        std::fs::create_dir_all(&dir)?;
        let (certificate, key) = (dir.join("certificate.pem"), dir.join("key.pem"));
        let made = authority.sign(self.slot.gateway().into())?;
        std::fs::write(&certificate, made.certificate)?;
        std::fs::write(&key, made.key)?;
        let mut registry = Registry::secure(&dir, self.beside(SECURE_PORT), &certificate, &key);
        registry.start()?;
        Ok(registry)
    }

    fn beside(&self, port: u16) -> String {
        format!("{}:{port}", self.slot.gateway())
    }

    /// Address of a listener of the control plane: `api`, `docker` or `buildkit`.
    ///
    /// # Errors
    /// It has not written its addresses.
    pub fn address(&self, listener: &str) -> Result<String> {
        let text = std::fs::read_to_string(self.dir.join("serve/addresses.json"))?;
        let value: Value = serde_json::from_str(&text)?;
        value[listener]
            .as_str()
            .map(str::to_owned)
            .context("no such listener")
    }

    /// The certificate authority of the control plane.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("serve/ca.pem")
    }

    /// The first token, which may do everything.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn admin_token(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.join("serve/admin.token"))?
            .trim()
            .to_owned())
    }

    /// A new token of an org.
    ///
    /// # Errors
    /// `slipway tokens create` fails.
    pub fn org_token(&self, org: &str) -> Result<String> {
        Ok(self
            .slipway_ok(&["tokens", "create", "test", "--org", org])?
            .trim()
            .to_owned())
    }

    /// dockerd's own socket of the one machine that runs, which only root reaches.
    ///
    /// # Errors
    /// There is none.
    pub fn machine_socket(&self) -> Result<PathBuf> {
        let machines = self.dir.join("host/machines");
        for entry in std::fs::read_dir(&machines)? {
            let socket = entry?.path().join("docker.sock");
            if socket.exists() {
                return Ok(socket);
            }
        }
        bail!("no machine below {}", machines.display())
    }

    /// Memory that the control plane has at this moment, in bytes.
    ///
    /// # Errors
    /// It does not run.
    pub fn serve_memory(&self) -> Result<u64> {
        let pid = self.serve.as_ref().context("no control plane")?.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.context("no VmRSS")?.parse::<u64>()? * 1024)
    }

    /// A `slipway` command as the logged-in user.
    pub fn slipway<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(self.binaries.join("slipway"));
        command
            .args(arguments)
            .env("SLIPWAY_CONFIG_DIR", self.dir.join("config"))
            .env("DOCKER_CONFIG", self.dir.join("docker-config"))
            .stdin(Stdio::null());
        command
    }

    /// Runs `slipway`, and demands that it ends well.
    ///
    /// # Errors
    /// It does not; the error has all it printed.
    pub fn slipway_ok<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<String> {
        let output = self.slipway(arguments).output()?;
        let shown = show(&output);
        ensure!(
            output.status.success(),
            "slipway failed:\n{shown}\n{}",
            self.logs()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `slipway ... --json`, and gives what it printed.
    ///
    /// # Errors
    /// It fails, or prints no JSON.
    pub fn slipway_json<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<Value> {
        let text = self.slipway_ok(arguments)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// SIGKILLs the control plane.
    pub fn kill_serve(&mut self) {
        if let Some(mut serve) = self.serve.take() {
            serve.kill();
        }
    }

    /// SIGKILLs the host daemon.
    pub fn kill_host(&mut self) {
        if let Some(mut host) = self.host.take() {
            host.kill();
        }
    }

    /// Starts the host daemon (again).
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_host(&mut self) -> Result<()> {
        let socket = self.dir.join("host.sock");
        let mut command = dies_with_us(&[]);
        command
            .arg(self.binaries.join("slipwayd"))
            .args(["host", "--config"])
            .arg(self.dir.join("host.toml"));
        command.env("SLIPWAY_LOG", "debug");
        let mut host = Process::start("slipwayd host", command, &self.dir.join("host.log"))?;
        wait_for("the host daemon", START_WAIT, || {
            ensure!(host.is_running(), "slipwayd host ended:\n{}", host.output());
            Ok(std::os::unix::net::UnixStream::connect(&socket).map(drop)?)
        })?;
        self.host = Some(host);
        Ok(())
    }

    /// Starts the control plane (again), as an ordinary user, on the addresses it had.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_serve(&mut self) -> Result<()> {
        let data = self.dir.join("serve");
        let addresses = data.join("addresses.json");
        let _absent = std::fs::remove_file(&addresses);
        let mut command = dies_with_us(&[
            format!("--reuid={SERVE_UID}"),
            format!("--regid={SERVE_UID}"),
            "--clear-groups".to_owned(),
        ]);
        command
            .arg(self.dir.join("slipwayd"))
            .args(["serve", "--config"])
            .arg(self.dir.join("serve.toml"));
        let mut serve = Process::start("slipwayd serve", command, &self.dir.join("serve.log"))?;
        wait_for("the control plane", START_WAIT, || {
            ensure!(
                serve.is_running(),
                "slipwayd serve ended:\n{}",
                serve.output()
            );
            let text = std::fs::read_to_string(&addresses)?;
            serde_json::from_str::<Value>(&text)
                .map(drop)
                .context("half written")
        })?;
        self.serve = Some(serve);
        Ok(())
    }

    /// What host daemon, control plane and registry said, the ends of it.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        for name in ["host.log", "serve.log", "registry.log"] {
            let text = std::fs::read_to_string(self.dir.join(name)).unwrap_or_default();
            let from = text.len().saturating_sub(6000);
            let tail = text.get(from..).unwrap_or(&text);
            all.push_str(&format!("--- {name}\n{tail}\n"));
        }
        for entry in std::fs::read_dir(self.dir.join("host/machines"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let text =
                std::fs::read_to_string(entry.path().join("console.log")).unwrap_or_default();
            let from = text.len().saturating_sub(4000);
            let tail = text.get(from..).unwrap_or(&text);
            all.push_str(&format!(
                "--- console of {}\n{tail}\n",
                entry.path().display()
            ));
        }
        all
    }

    fn write_settings(&self, host_settings: &str) -> Result<()> {
        let (dir, bin) = (self.dir.display(), self.binaries.display());
        let registry = self.registry.address();
        let registries = [
            registry.to_owned(),
            self.beside(PROXY_PORT),
            self.beside(PRIVATE_PORT),
        ]
        .map(|address| format!("\"{address}\""))
        .join(", ");
        let secure = self.beside(SECURE_PORT);
        let cache = cache_dir();
        let host_settings = host_settings.replace("GATEWAY", &self.slot.gateway().to_string());
        let base = cache.join("image/base.squashfs");
        ensure!(
            base.exists(),
            "{} is missing; run `make setup`",
            base.display()
        );
        let image = if host_settings.contains("image_base") {
            String::new()
        } else {
            format!("image_base = \"{}\"", base.display())
        };
        let mirrors = match host_settings.contains("registry_mirrors") {
            true => String::new(),
            false => format!("registry_mirrors = [\"http://{registry}\"]"),
        };
        let host = format!(
            r#"state_dir = "{dir}/host"
run_dir = "{dir}/run"
socket = "{dir}/host.sock"
pool_dir = "{dir}/pool"
pool_capacity = "200GiB"
{image}
guest_binary = "{bin}/slipway-guest"
kernel_dir = "{kernel}"
{host_settings}
allowed_uids = [{SERVE_UID}]
socket_group = "nogroup"
machine_cidr = "{cidr}"
interface = "{interface}"
nft_table = "{table}"
id_base = {uid_base}
veth_prefix = "{interface}m"
cgroup_parent = "{table}"
machines_max = 64
allow = [{registries}, "{secure}"]
{mirrors}
insecure_registries = [{registries}]
"#,
            kernel = cache.join("image/kernel").display(),
            cidr = self.slot.cidr(),
            interface = self.slot.interface(),
            table = self.slot.table(),
            uid_base = self.slot.uid_base(),
        );
        std::fs::write(self.dir.join("host.toml"), host)?;
        let port = |n| self.slot.port(n);
        let serve = format!(
            r#"data_dir = "{dir}/serve"
listen_api = "127.0.0.1:{api}"
listen_docker = "127.0.0.1:{docker}"
listen_buildkit = "127.0.0.1:{buildkit}"

[[hosts]]
name = "test"
region = "local"
socket = "{dir}/host.sock"

[registries]
allow = ["{gateway}", "127.0.0.1"]
insecure = [{registries}]
"#,
            gateway = self.slot.gateway(),
            api = port(0),
            docker = port(1),
            buildkit = port(2),
        );
        std::fs::write(self.dir.join("serve.toml"), serve)?;
        std::fs::create_dir(self.dir.join("serve"))?;
        std::os::unix::fs::chown(self.dir.join("serve"), Some(SERVE_UID), Some(SERVE_UID))?;
        for program in ["slipway", "slipwayd"] {
            std::fs::copy(self.binaries.join(program), self.dir.join(program))?;
        }
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&self.dir, open)?;
        Ok(())
    }

    fn login(&self) -> Result<()> {
        let mut command = self.slipway(&["login", "--token-stdin", "--server"]);
        command
            .arg(format!("https://{}", self.address("api")?))
            .arg("--ca")
            .arg(self.ca());
        command.stdin(std::fs::File::open(self.dir.join("serve/admin.token"))?);
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "login failed:\n{}\n{}",
            show(&output),
            self.logs()
        );
        self.slipway_ok(&["orgs", "create", "acme"])?;
        Ok(())
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        drop(self.serve.take());
        drop(self.host.take());
        self.registry.end();
        if let Err(error) = leftovers::clear(&self.binaries, &self.dir) {
            eprintln!("{} stays: {error:#}", self.dir.display());
        }
    }
}

/// Both outputs of a command and its status, for people.
pub fn show(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Where `make setup` keeps what is made once.
pub fn cache_dir() -> PathBuf {
    std::env::var_os("SLIPWAY_CACHE").map_or_else(|| "/var/cache/slipway".into(), PathBuf::from)
}

/// The top folder of this checkout.
pub fn checkout_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(PathBuf::new, Path::to_owned)
}

/// What a farm needs of this build.
const PROGRAMS: [&str; 3] = ["slipway", "slipwayd", "slipway-guest"];

/// Where the programs of this build lie.
///
/// # Errors
/// They are not built.
pub fn binaries_dir() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    for dir in here.ancestors() {
        if PROGRAMS.iter().all(|program| dir.join(program).is_file()) {
            return Ok(dir.to_owned());
        }
    }
    bail!(
        "no {} near {}; run `cargo build --workspace`",
        PROGRAMS.join(", "),
        here.display()
    )
}
