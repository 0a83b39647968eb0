//! A machine for the tests: the builder image, a cache volume of its own, and the guest as PID 1 in its own namespaces,
//! with the three descriptors a host hands over. Gone with the test.
//!
//! Needs root, the builder image (`make setup`) and the programs in [`PROGRAMS`]. Without them a test says why it is
//! skipped, and fails where `CI` is `true`.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const IMAGE: &str = "/var/cache/slipway/image/base.squashfs";
const PROGRAMS: [&str; 8] = [
    "unshare",
    "nsenter",
    "mkfs.ext4",
    "ip",
    "bash",
    "busybox",
    "docker-registry",
    "curl",
];
/// How long a status request waits for ready; it is asked again.
pub(crate) const READY_WAIT_MS: u64 = 60_000;
/// Far more than anything takes on a computer that is slow and busy: it only ends a test that hangs.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// What a machine keeps when it is started again: the volume. Everything else is new each time.
pub(crate) struct Volume {
    dir: TempDir,
    store: &'static str,
}

/// A running machine.
pub(crate) struct Machine<'v> {
    volume: &'v Volume,
    dir: TempDir,
    unshare: Mutex<Child>,
}

/// An answer over HTTP.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub(crate) fn lines(&self) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
        };
        self.body.lines().map(parse).collect()
    }
}

/// A new volume of this size; none if something is missing, which was said.
pub(crate) fn volume(bytes: u64) -> Option<Volume> {
    volume_with("classic", bytes)
}

/// The same, for machines whose images are kept in this store.
pub(crate) fn volume_with(store: &'static str, bytes: u64) -> Option<Volume> {
    let missing: Vec<&str> = PROGRAMS
        .into_iter()
        .filter(|name| !is_program(name))
        .collect();
    let why = if !nix::unistd::geteuid().is_root() {
        "not root".to_owned()
    } else if !Path::new(IMAGE).exists() {
        format!("no builder image at {IMAGE}; run `make setup`")
    } else if !missing.is_empty() {
        format!("missing: {}", missing.join(", "))
    } else {
        let dir = tempfile::Builder::new()
            .prefix("slipway-guest-test-")
            .tempdir()
            .expect("temp dir");
        let image = File::create(dir.path().join("volume")).expect("create the volume");
        image.set_len(bytes).expect("size the volume");
        run(Command::new("mkfs.ext4")
            .args([
                "-q",
                "-m",
                "0",
                "-E",
                "lazy_itable_init=1,lazy_journal_init=1",
            ])
            .arg(dir.path().join("volume")));
        return Some(Volume { dir, store });
    };
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{why}");
    eprintln!("skipped: {why}");
    None
}

impl Volume {
    /// Puts a file where the engine keeps a directory, as a file system that lost one may have it: dockerd's volumes, or what
    /// containerd knows of its images.
    pub(crate) fn spoil(&self) {
        let lost = match self.store {
            "containerd" => "containerd/io.containerd.metadata.v1.bolt",
            _ => "volumes",
        };
        let script = format!(
            "mount -o loop $VOLUME /mnt && rm -rf /mnt/{lost} && echo x > /mnt/{lost} && umount /mnt"
        );
        run(Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .env("VOLUME", self.dir.path().join("volume")));
    }

    /// Starts a machine on it, and waits until it is ready.
    pub(crate) fn start(&self) -> Machine<'_> {
        let machine = self.boot();
        let path = format!("/v1/status?wait_ready_ms={READY_WAIT_MS}");
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let status = machine.guest("GET", &path, "").json();
            if status["ready"] == true {
                return machine;
            }
            let late = Instant::now() >= deadline;
            assert!(!late, "not ready: {status}\n{}", machine.console());
        }
    }

    /// Starts a machine on it, and waits for nothing.
    pub(crate) fn boot(&self) -> Machine<'_> {
        self.boot_changed(":")
    }

    /// The same with a root file system in which this shell script has changed something, as another image has it.
    pub(crate) fn boot_changed(&self, change: &str) -> Machine<'_> {
        let dir = tempfile::Builder::new()
            .prefix("slipway-guest-test-")
            .tempdir()
            .expect("temp dir");
        let path = |name: &str| dir.path().join(name);
        let docker = UnixListener::bind(path("docker.sock")).expect("bind");
        let guest = UnixListener::bind(path("guest.sock")).expect("bind");
        let record = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path("record"))
            .expect("record");
        let console = File::create(path("console")).expect("console");
        for descriptor in [docker.as_fd(), guest.as_fd(), record.as_fd()] {
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).expect("let it be inherited");
        }
        let script = format!(
            "exec {{a}}<&{} {{b}}<&{} {{c}}<&{}; exec 3<&$a 4<&$b 5<&$c {{a}}<&- {{b}}<&- {{c}}<&-; exec unshare --fork --kill-child --pid --mount --net --ipc --uts --cgroup bash -euc \"$1\"",
            docker.as_raw_fd(),
            guest.as_raw_fd(),
            record.as_raw_fd()
        );
        let unshare = Command::new("bash")
            .args(["-euc", &script, "bash", INSIDE])
            .env("IMAGE", IMAGE)
            .env("VOLUME", self.dir.path().join("volume"))
            .env("GUEST", env!("CARGO_BIN_EXE_slipway-guest"))
            .env("DIR", dir.path())
            .env("STORE", self.store)
            .env("CHANGE", change)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(console)
            .spawn()
            .expect("start the machine");
        Machine {
            volume: self,
            dir,
            unshare: Mutex::new(unshare),
        }
    }
}

/// Run as PID 1 of the machine's namespaces, before it becomes the guest. Its mounts go with its mount namespace.
const INSIDE: &str = r#"
mount --make-rprivate /
mkdir $DIR/low $DIR/tmp $DIR/root
mount -t squashfs -o loop,ro $IMAGE $DIR/low
mount -t tmpfs tmpfs $DIR/tmp
mkdir $DIR/tmp/up $DIR/tmp/work
mount -t overlay overlay -o lowerdir=$DIR/low,upperdir=$DIR/tmp/up,workdir=$DIR/tmp/work $DIR/root
cd $DIR/root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mount -t cgroup2 cgroup2 sys/fs/cgroup
else
  mount -t tmpfs tmpfs sys/fs/cgroup
  for c in cpu cpuacct cpuset memory devices freezer blkio pids; do
    mkdir sys/fs/cgroup/$c; mount -t cgroup -o $c cgroup sys/fs/cgroup/$c
  done
fi
mkdir -p var/lib/docker etc/slipway
mount -o loop $VOLUME var/lib/docker
ip link set lo up
cp $GUEST sbin/slipway-guest
echo '{"insecure_registries": ["127.0.0.1:5000"], "image_store": "'"$STORE"'"}' > etc/slipway/guest.json
eval "$CHANGE"
exec chroot . /sbin/slipway-guest
"#;

impl Machine<'_> {
    /// Asks the guest.
    pub(crate) fn guest(&self, method: &str, path: &str, body: &str) -> Answer {
        ask(&self.socket("guest.sock"), method, path, body)
    }

    /// Asks, and waits until the first line of the answer's body has come.
    pub(crate) fn guest_begin(&self, path: &str) -> OpenAnswer {
        let mut stream = send(&self.socket("guest.sock"), "GET", path, "");
        let (mut read, mut piece) = (Vec::new(), [0; 4096]);
        let has_line = |read: &[u8]| {
            let text = String::from_utf8_lossy(read);
            text.split_once("\r\n\r\n")
                .is_some_and(|(_, body)| body.contains('\n'))
        };
        while !has_line(&read) {
            let length = stream.read(&mut piece).expect("read the answer");
            assert_ne!(length, 0, "ended early: {}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&piece[..length]);
        }
        OpenAnswer { stream, read }
    }

    /// Reads an answer of the guest as it comes, until it holds this text.
    pub(crate) fn guest_until(&self, path: &str, text: &str) {
        let mut stream = send(&self.socket("guest.sock"), "GET", path, "");
        let (mut read, mut piece) = (Vec::new(), [0; 4096]);
        while !String::from_utf8_lossy(&read).contains(text) {
            let length = stream.read(&mut piece).expect("read the answer");
            assert_ne!(
                length,
                0,
                "ended without '{text}': {}",
                String::from_utf8_lossy(&read)
            );
            read.extend_from_slice(&piece[..length]);
        }
    }

    /// Asks dockerd.
    pub(crate) fn docker(&self, method: &str, path: &str, body: &str) -> Answer {
        ask(&self.socket("docker.sock"), method, path, body)
    }

    pub(crate) fn status(&self) -> Value {
        self.guest("GET", "/v1/status", "").json()
    }

    /// Whether a process of the machine ends its command line with these arguments.
    pub(crate) fn runs(&self, arguments: &[&str]) -> bool {
        let wanted: String = arguments.iter().map(|word| format!("\0{word}\0")).collect();
        let wanted = wanted.replace("\0\0", "\0");
        let init = self.pid();
        let processes = std::fs::read_dir("/proc").expect("/proc");
        processes.flatten().any(|entry| {
            let command = std::fs::read_to_string(entry.path().join("cmdline"));
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            command.is_ok_and(|command| command.ends_with(&wanted))
                && number.is_some_and(|number: i32| descends(number, init.as_raw()))
        })
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn record(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("record")).expect("the record")
    }

    pub(crate) fn console(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("console")).expect("the console")
    }

    /// Process id of the guest, as the test sees it.
    pub(crate) fn pid(&self) -> Pid {
        let children = children_of(Pid::from_raw(
            self.unshare
                .lock()
                .expect("no panic")
                .id()
                .try_into()
                .expect("a pid"),
        ));
        *children.first().expect("the guest runs")
    }

    /// A daemon of the machine, by its name.
    pub(crate) fn daemon(&self, name: &str) -> Pid {
        let named = |pid: &Pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.trim() == name)
        };
        children_of(self.pid())
            .into_iter()
            .find(named)
            .unwrap_or_else(|| panic!("{name} does not run"))
    }

    /// A command that runs inside the machine: its network and processes, but the test's own programs and files.
    pub(crate) fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-n", "-p", "-t", &self.pid().to_string(), "--", program]);
        command
    }

    /// A registry inside the machine, on port 5000 of its loopback.
    pub(crate) fn registry(&self) -> Registry {
        let config = self.dir.path().join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}/registry}}}}\nhttp: {{addr: \"127.0.0.1:5000\"}}\n",
            self.dir.path().display()
        );
        std::fs::write(&config, text).expect("write its settings");
        let log = File::create(self.dir.path().join("registry.log")).expect("its log");
        let mut command = Command::new("nsenter");
        // In the network alone, so that the process started here is the registry itself.
        command.args([
            "-n",
            "-t",
            &self.pid().to_string(),
            "--",
            "docker-registry",
            "serve",
        ]);
        let child = command
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start the registry");
        let registry = Registry { child };
        wait_for("the registry", || {
            self.fetch("http://127.0.0.1:5000/v2/", "").is_some()
        });
        registry
    }

    /// What a URL inside the machine answers, if it does so with 200.
    pub(crate) fn fetch(&self, url: &str, accept: &str) -> Option<String> {
        let fetched = self
            .inside("curl")
            .args(["-fsS", "-i", "-H", &format!("Accept: {accept}"), url])
            .output()
            .expect("run curl");
        fetched
            .status
            .success()
            .then(|| String::from_utf8_lossy(&fetched.stdout).into_owned())
    }

    /// Waits for the end; gives its status.
    pub(crate) fn wait(&self) -> ExitStatus {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            if let Some(status) = self
                .unshare
                .lock()
                .expect("no panic")
                .try_wait()
                .expect("wait")
            {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the machine did not end:\n{}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks for the end and waits for it; it must be a clean one.
    pub(crate) fn end(&self) {
        let answer = self.guest("POST", "/v1/end", "");
        assert_eq!(answer.status, 202, "{}", answer.body);
        assert_eq!(self.wait().code(), Some(0), "{}", self.console());
        assert_eq!(self.record(), "end 0\n");
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- console of the machine on {}:\n{}---",
                self.volume.dir.path().display(),
                self.console()
            );
        }
        // The guest dies with it (--kill-child), and all its processes with the guest.
        let mut unshare = self.unshare.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = unshare.kill();
        let _ = unshare.wait();
    }
}

/// Whether a process has `ancestor` above it. It may end meanwhile.
fn descends(mut process: i32, ancestor: i32) -> bool {
    while process > 1 && process != ancestor {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"));
        let parent = status.ok().and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
            line.trim().parse().ok()
        });
        process = parent.unwrap_or(0);
    }
    process == ancestor
}

/// A registry that ends when dropped.
pub(crate) struct Registry {
    child: Child,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `condition` holds; panics if it takes too long.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a signal to a process of the machine.
pub(crate) fn signal(pid: Pid, signal: Signal) {
    kill(pid, signal).expect("send a signal");
}

/// Processes whose parent this is.
pub(crate) fn children_of(pid: Pid) -> Vec<Pid> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let children = |task: std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("children")).unwrap_or_default()
    };
    let all: String = tasks.flatten().map(children).collect();
    all.split_whitespace()
        .map(|pid| Pid::from_raw(pid.parse().expect("a pid")))
        .collect()
}

/// One request over HTTP/1.0, whose answer ends with the connection.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Answer {
    let stream = send(socket, method, path, body);
    OpenAnswer {
        stream,
        read: Vec::new(),
    }
    .rest()
}

/// An answer that has begun.
pub(crate) struct OpenAnswer {
    stream: UnixStream,
    read: Vec<u8>,
}

impl OpenAnswer {
    /// All of it, when it has ended.
    pub(crate) fn rest(mut self) -> Answer {
        self.stream
            .read_to_end(&mut self.read)
            .expect("read the answer");
        parse(&String::from_utf8(self.read).expect("text"))
    }
}

fn parse(answer: &str) -> Answer {
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no HTTP: {answer}"));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Answer {
        status: status.unwrap_or_else(|| panic!("no status: {head}")),
        body: body.to_owned(),
    }
}

fn send(socket: &Path, method: &str, path: &str, body: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("connect");
    stream
        .set_read_timeout(Some(WAIT_MAX))
        .expect("set a bound");
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("send");
    stream.write_all(body.as_bytes()).expect("send");
    stream
}

fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

fn run(command: &mut Command) {
    let output = command.output().expect("start");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
