//! A host daemon of a test's own: its directories, addresses, ids and names are nobody else's, and nothing of it is left.

use crate::client::Client;
use crate::leftovers::{clear, clear_dead_run, leftovers};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use slipway_core::generation::Generation;
use slipway_core::host_api::{EndpointPort, MachineRunState, MachineSpec};
use slipway_core::id::{MachineId, VolumeId};
use slipway_core::isolation::Isolation;
use slipway_core::vm::{Answer, CHANNEL_PORT, Wanted};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// Far more than a boot with an emulated processor takes on a computer that is slow and busy: it only ends a test that hangs.
pub(crate) const WAIT: Duration = Duration::from_secs(400);
const SETTINGS: &str = "SLIPWAY_HOST_TEST_SETTINGS";
const IMAGE: &str = "/var/cache/slipway/image/base.squashfs";
const KERNEL: &str = "/var/cache/slipway/image/kernel/vmlinuz";
const PLACES: u8 = 200;

#[derive(Clone, Copy)]
pub(crate) enum Guest {
    /// dockerd on the docker endpoint.
    Docker,
    /// Nothing; starts and ends at once.
    Idle,
    /// Never ends by itself.
    Deaf,
}

/// A machine driver.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Sandbox,
    /// Its guest is always the real one, for it has to boot.
    Vm,
}

pub(crate) struct Host {
    pub(crate) dir: PathBuf,
    /// Third number of its `10.222.N.0/24`, and what its names end in.
    pub(crate) place: u8,
    kind: Kind,
    pub(crate) settings: serde_json::Value,
    daemon: Option<Child>,
    _place: Flock<File>,
}

/// What the daemon process of a test does. Called by a test of that name, which otherwise returns at once.
pub(crate) fn daemon_main() {
    let Ok(settings) = std::env::var(SETTINGS) else {
        return;
    };
    // It must not outlive a test that is killed.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .init();
    let settings = serde_json::from_str(&fs::read_to_string(settings).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let ended = runtime.block_on(async {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        slipway_host::run(settings, async move {
            terminate.recv().await;
        })
        .await
    });
    if let Err(error) = ended {
        panic!("{error:?}");
    }
}

/// The real guest, which `make build` makes beside this program.
fn built_guest() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.ancestors().nth(2).unwrap().join("slipway-guest")
}

/// Whether what these tests need is here. In CI it must be.
fn missing(kind: Kind) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    if !Path::new(IMAGE).exists() {
        return Some(format!("{IMAGE} is not built"));
    }
    let built = [built_guest(), PathBuf::from(KERNEL)];
    if kind == Kind::Vm
        && let Some(path) = built.into_iter().find(|path| !path.exists())
    {
        return Some(format!("{} is not built", path.display()));
    }
    let qemu = (kind == Kind::Vm).then_some("qemu-system-x86_64");
    ["runc", "nft", "ip", "nsenter"]
        .into_iter()
        .chain(qemu)
        .find(|program| Command::new(program).arg("--version").output().is_err())
        .map(|program| format!("{program} is not installed"))
}

impl Host {
    /// A running daemon, or nothing if this computer cannot have one (the reason is printed).
    pub(crate) fn start(guest: Guest) -> Option<Self> {
        Self::start_with(guest, |_, _| {})
    }

    pub(crate) fn start_with(
        guest: Guest,
        change: impl FnOnce(&mut serde_json::Value, u8),
    ) -> Option<Self> {
        Self::start_kind_with(Kind::Sandbox, guest, change)
    }

    pub(crate) fn start_kind(kind: Kind, guest: Guest) -> Option<Self> {
        Self::start_kind_with(kind, guest, |_, _| {})
    }

    pub(crate) fn start_kind_with(
        kind: Kind,
        guest: Guest,
        change: impl FnOnce(&mut serde_json::Value, u8),
    ) -> Option<Self> {
        if let Some(reason) = missing(kind) {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "CI must run this test, but: {reason}"
            );
            println!("skipped: {reason}");
            return None;
        }
        let (place, lock) = take_place();
        let dir = place_dir(place);
        clear_dead_run(&dir, place);
        fs::create_dir_all(&dir).unwrap();
        let guest_binary = dir.join("guest");
        let script = match guest {
            Guest::Docker => include_str!("guest-docker.sh"),
            Guest::Idle => include_str!("guest-idle.sh"),
            Guest::Deaf => "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n",
        };
        // `SLIPWAY_TEST_GUEST` and `SLIPWAY_TEST_RUNC` try the tests on another guest program or runtime.
        let real = std::env::var_os("SLIPWAY_TEST_GUEST").map(PathBuf::from);
        match (kind, guest, real) {
            (Kind::Vm, _, real) => {
                fs::copy(real.unwrap_or(built_guest()), &guest_binary).unwrap();
            }
            (Kind::Sandbox, Guest::Docker, Some(real)) => {
                fs::copy(real, &guest_binary).unwrap();
            }
            (Kind::Sandbox, _, _) => fs::write(&guest_binary, script).unwrap(),
        }
        let isolation = match kind {
            Kind::Sandbox => "sandbox",
            Kind::Vm => "vm",
        };
        let runc = std::env::var("SLIPWAY_TEST_RUNC").unwrap_or("runc".to_owned());
        let mut settings = serde_json::json!({
            "state_dir": dir.join("state"),
            "run_dir": dir.join("run"),
            "socket": dir.join("host.sock"),
            "pool_dir": dir.join("pool"),
            "pool_capacity": "40GiB",
            "image_base": IMAGE,
            "guest_binary": guest_binary,
            "isolation": isolation,
            "runc": runc,
            "machines_max": 8,
            "id_base": (1u32 << 29) + u32::from(place) * 8 * 65536,
            "machine_cidr": format!("10.222.{place}.0/24"),
            "interface": format!("slt{place}"),
            "veth_prefix": format!("slt{place}-"),
            "nft_table": format!("slipway-test-{place}"),
            "cgroup_parent": format!("slipway-test-{place}"),
        });
        change(&mut settings, place);
        let mut host = Self {
            dir,
            place,
            kind,
            settings,
            daemon: None,
            _place: lock,
        };
        host.start_daemon();
        Some(host)
    }

    pub(crate) fn start_daemon(&mut self) {
        let path = self.dir.join("settings.json");
        fs::write(&path, self.settings.to_string()).unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("daemon.log"))
            .unwrap();
        let program = std::env::current_exe().unwrap();
        let apart = namespace(self.place, "host");
        // It becomes the program in place: the daemon's parent is the test's thread, which must live as long (see `daemon_main`).
        let mut command = if apart.exists() {
            let mut enter = Command::new("nsenter");
            enter.arg(format!("--net={}", apart.display())).arg(program);
            enter
        } else {
            Command::new(program)
        };
        command
            .args(["--exact", "daemon_of_a_test", "--nocapture"])
            .env(SETTINGS, path);
        command
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0);
        self.daemon = Some(command.spawn().unwrap());
        let socket = self.dir.join("host.sock");
        wait_for("the daemon's socket", || {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the daemon ended: {}", self.log());
            Client::connect(&socket).ok()
        });
    }

    /// SIGKILL.
    pub(crate) fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.dir.join("host.sock")).unwrap()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default()
    }

    pub(crate) fn spec(&self, number: u8, generation: u64) -> MachineSpec {
        MachineSpec {
            machine: MachineId::from_entropy([number; 10]),
            generation: Generation(generation),
            volume: VolumeId::from_entropy([number; 10]),
            cpu_millis: 2000,
            memory_bytes: match self.kind {
                Kind::Sandbox => 2 << 30,
                // All of it may be taken by several at once.
                Kind::Vm => 1 << 30,
            },
            pids_max: 2000,
            isolation: Isolation::Auto,
        }
    }

    /// A running machine with a volume of its own.
    pub(crate) fn machine(&self, client: &mut Client, number: u8) -> MachineSpec {
        let spec = self.spec(number, 1);
        client.ensure_volume(&spec.volume, 4 << 30);
        let report = client
            .ensure(&spec)
            .unwrap_or_else(|code| panic!("{code:?}: {}", self.log()));
        assert_eq!(report.state, MachineRunState::Running);
        spec
    }

    pub(crate) fn address(&self, slot: u8) -> String {
        format!("10.222.{}.{}", self.place, slot + 2)
    }

    pub(crate) fn gateway(&self) -> String {
        format!("10.222.{}.1", self.place)
    }

    /// Runs a shell command inside, as the machine's root and with all its rights.
    pub(crate) fn inside(&self, machine: &MachineId, script: &str) -> Output {
        let mut command = Command::new("runc");
        command
            .arg("--root")
            .arg(self.dir.join("run/runc"))
            .arg("exec")
            .arg(machine.as_str());
        command.args(["bash", "-c", script]).output().unwrap()
    }

    /// A stream into a machine that may still be booting.
    pub(crate) fn open_when_up(&self, spec: &MachineSpec, port: EndpointPort) -> UnixStream {
        let mut client = self.client();
        wait_for("the machine's endpoint", || {
            let opened = client.open(&spec.machine, spec.generation.0, port);
            if opened.is_err() {
                let reports = client.watch(0, Duration::ZERO).1;
                let own = reports.iter().find(|it| it.machine == spec.machine);
                let state = own.map(|report| report.state);
                assert_eq!(state, Some(MachineRunState::Running), "it ended");
            }
            opened.ok()
        })
    }

    /// What machines have said on their consoles, those that run and those that have ended.
    fn consoles(&self) -> String {
        let mut said = String::new();
        for (below, name) in [
            ("run/machines", "log/console.log"),
            ("run/machines", "log/qemu.log"),
            ("state/machines", "console.log"),
        ] {
            let dirs = fs::read_dir(self.dir.join(below)).into_iter().flatten();
            for path in dirs.flatten().map(|dir| dir.path().join(name)) {
                if let Ok(text) = fs::read(&path) {
                    let text = String::from_utf8_lossy(&text);
                    said += &format!("{}:\n{text}\n", path.display());
                }
            }
        }
        said
    }

    /// Has a machine end well, and not by way of the daemon.
    pub(crate) fn end_by_itself(&self, machine: &MachineId) {
        match self.kind {
            Kind::Sandbox => {
                let pid = nix::unistd::Pid::from_raw(self.pid(machine));
                nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
            }
            Kind::Vm => wait_for("the machine to hear", || self.knock(machine, Wanted::End)),
        }
    }

    /// Opens the door of a virtual machine as the daemon does; nothing as long as it does not.
    pub(crate) fn knock(&self, machine: &MachineId, wanted: Wanted) -> Option<()> {
        let state = self.dir.join("state/machines").join(machine.as_str());
        let door: serde_json::Value =
            serde_json::from_slice(&fs::read(state.join("door.json")).unwrap()).unwrap();
        let secret: Vec<u8> = serde_json::from_value(door["secret"].clone()).unwrap();
        let address: std::net::IpAddr = serde_json::from_value(door["address"].clone()).unwrap();
        let wait = Duration::from_secs(1);
        let connect =
            || std::net::TcpStream::connect_timeout(&(address, CHANNEL_PORT).into(), wait);
        let mut stream = in_namespace(&self.router(), connect).ok()?;
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let greeting = [secret.as_slice(), &[wanted.byte()]].concat();
        std::io::Write::write_all(&mut stream, &greeting).ok()?;
        let mut answer = [0];
        stream.read_exact(&mut answer).ok()?;
        (Answer::from_byte(answer[0]) == Some(Answer::Taken)).then_some(())
    }

    /// The network namespace between machines and host.
    pub(crate) fn router(&self) -> PathBuf {
        self.dir.join("run/router")
    }

    pub(crate) fn slot(&self, machine: &MachineId) -> u64 {
        self.record(machine)["phase"]["slot"].as_u64().unwrap()
    }

    pub(crate) fn pid(&self, machine: &MachineId) -> i32 {
        let record = self.record(machine);
        i32::try_from(record["phase"]["process"]["pid"].as_i64().unwrap()).unwrap()
    }

    fn record(&self, machine: &MachineId) -> serde_json::Value {
        let path = self
            .dir
            .join("state/machines")
            .join(machine.as_str())
            .join("record.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// What there is of machines outside the records; empty when all is cleared away.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        leftovers(&self.dir, self.place)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the daemon's log:\n{}", self.log());
            println!("{}", self.consoles());
        }
        if let Ok(mut client) = Client::connect(&self.dir.join("host.sock")) {
            for report in client.watch(0, Duration::ZERO).1 {
                if report.state == MachineRunState::Running {
                    let _ = client.stop(&report.machine, u64::MAX, Duration::ZERO);
                    client.wait_exit(&report.machine, WAIT);
                }
            }
        }
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        clear(&self.dir, self.place);
    }
}

/// Where a namespace of a place lies that a test made with `ip netns`. A daemon runs in the one named `host`, if there is one.
pub(crate) fn namespace(place: u8, name: &str) -> PathBuf {
    PathBuf::from(format!("/run/netns/slt{place}-{name}"))
}

/// Does `work` on a thread in a network namespace.
pub(crate) fn in_namespace<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(namespace).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// A place that no other test, of this process or another, has.
fn take_place() -> (u8, Flock<File>) {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    loop {
        let place = NEXT.fetch_add(1, Ordering::Relaxed) % PLACES;
        if let Some(lock) = lock_place(place) {
            return (place, lock);
        }
    }
}

pub(crate) fn lock_place(place: u8) -> Option<Flock<File>> {
    let dir = Path::new("/tmp/slipway-host-test-places");
    fs::create_dir_all(dir).unwrap();
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(place.to_string()))
        .unwrap();
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}

pub(crate) fn place_dir(place: u8) -> PathBuf {
    PathBuf::from(format!("/tmp/slipway-host-test-{place}"))
}

/// Asks until there is an answer, at most [`WAIT`].
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An HTTP/1.1 request on a stream that is closed after it: status and the raw rest.
pub(crate) fn http(
    mut stream: impl std::io::Write + Read,
    head: &str,
    body: &[u8],
) -> (u16, String) {
    let request = format!(
        "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-tar\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    let reply = String::from_utf8_lossy(&reply).into_owned();
    let status = reply
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    (status, reply)
}
