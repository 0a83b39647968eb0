//! A dockerd of its own for the tests: started from a root file system, in its own namespaces, gone with the test.
//!
//! Needs root and `SLIPWAY_TEST_ROOTFS`, the path of a tar archive of a root file system that holds dockerd, the
//! Docker CLI and buildx. Without them a test says why it is skipped, and fails where `CI` is `true`.

use slipway_buildkit::{
    Client, LocalDir, RegistryLogin, SecretSource, Session, SessionOptions, SessionStats,
    SolveError, SolveEvent, SolveFailure, SolveRequest, SolveResult, StatsHandle, dial_docker_grpc,
    dial_docker_session,
};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::UnixStream;

const ROOTFS: &str = "SLIPWAY_TEST_ROOTFS";
const READY_WAIT_MAX: Duration = Duration::from_secs(300);

/// The base image of the tests: busybox, and nothing else.
pub(crate) const BASE: &str = "buildkit-tests/base:1";

/// A running dockerd. Ends when dropped; and, should the test die first, with the pipe that holds it.
pub(crate) struct Dockerd {
    child: Child,
    hold: Option<ChildStdin>,
    dir: TempDir,
}

static SHARED: Mutex<Weak<Dockerd>> = Mutex::new(Weak::new());
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The dockerd that tests share while any of them runs. `None`: what it needs is missing, and it was said.
pub(crate) fn dockerd() -> Option<Arc<Dockerd>> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(running) = shared.upgrade() {
        return Some(running);
    }
    let rootfs = match (nix::unistd::geteuid().is_root(), std::env::var_os(ROOTFS)) {
        (true, Some(rootfs)) => PathBuf::from(rootfs),
        (is_root, rootfs) => {
            let why = format!("needs root ({is_root}) and {ROOTFS} ({rootfs:?})");
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{why}");
            eprintln!("skipped: {why}");
            return None;
        }
    };
    let started = Arc::new(Dockerd::start(&rootfs));
    *shared = Arc::downgrade(&started);
    Some(started)
}

impl Dockerd {
    fn start(rootfs: &Path) -> Dockerd {
        let dir = tempfile::Builder::new()
            .prefix("slipway-buildkit-")
            .tempdir()
            .unwrap();
        let base = dir.path();
        std::fs::set_permissions(base, PermissionsExt::from_mode(0o755)).unwrap();
        for sub in ["root", "data", "sock", "work"] {
            std::fs::create_dir(base.join(sub)).unwrap();
        }
        run(Command::new("tar")
            .arg("-C")
            .arg(base.join("root"))
            .arg("-xf")
            .arg(rootfs));
        for mount_point in ["data", "sock", "work"] {
            std::fs::create_dir(base.join("root").join(mount_point)).unwrap();
        }
        let log = std::fs::File::create(base.join("dockerd.log")).unwrap();
        let mut child = Command::new("unshare")
            .args([
                "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "sh", "-ceu", START,
                "start",
            ])
            .arg(base)
            .arg(program("docker-registry").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let hold = child.stdin.take();
        let mut dockerd = Dockerd { child, hold, dir };
        dockerd.wait_ready();
        dockerd.import_base();
        dockerd
    }

    fn wait_ready(&mut self) {
        let deadline = Instant::now() + READY_WAIT_MAX;
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            let log = self.dir.path().join("dockerd.log");
            let log = || std::fs::read_to_string(&log).unwrap_or_default();
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "dockerd ended, {ended:?}:\n{}", log());
            assert!(
                Instant::now() < deadline,
                "dockerd did not get ready:\n{}",
                log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn import_base(&self) {
        let base = self.work_dir("base");
        std::fs::create_dir_all(base.join("bin")).unwrap();
        std::fs::create_dir_all(base.join("tmp")).unwrap();
        let busybox = program("busybox").expect("busybox-static must be installed");
        std::fs::copy(busybox, base.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "ls", "cat", "sleep", "stat", "find", "dd", "test", "mkdir", "true",
        ] {
            std::os::unix::fs::symlink("busybox", base.join("bin").join(applet)).unwrap();
        }
        let tar = self.work_dir("base-tar").join("base.tar");
        run(Command::new("tar")
            .arg("-C")
            .arg(&base)
            .arg("-cf")
            .arg(&tar)
            .arg("."));
        self.docker(&["import", tar.to_str().unwrap(), BASE]);
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("sock/docker.sock")
    }

    /// A new directory that dockerd's own CLI sees under the same path.
    pub(crate) fn work_dir(&self, name: &str) -> PathBuf {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.path().join(format!("work/{number}-{name}"));
        std::fs::create_dir(&path).unwrap();
        path
    }

    /// A new name for an image.
    pub(crate) fn image_name(&self) -> String {
        format!(
            "buildkit-tests/image-{}:1",
            COUNT.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// Runs the Docker CLI of the root file system; gives its output.
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        let output = self.try_docker(arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker {arguments:?}: {told}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn try_docker(&self, arguments: &[&str]) -> Output {
        Command::new("unshare")
            .args(["--mount", "sh", "-ceu", CLI, "cli"])
            .arg(self.dir.path())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Digests of an image's layers, uncompressed.
    pub(crate) fn layers(&self, image: &str) -> Vec<String> {
        let layers = self.docker(&[
            "image",
            "inspect",
            "--format",
            "{{json .RootFS.Layers}}",
            image,
        ]);
        serde_json::from_str(&layers).unwrap()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        drop(self.hold.take());
        self.child.wait().unwrap();
    }
}

/// The first process of the namespaces: it makes the mounts, starts dockerd, and ends (and all with it) with its input.
const START: &str = r#"
base=$1; registry=$2; root=$base/root
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
for dir in data sock work; do mount --bind "$base/$dir" "$root/$dir"; done
ip link set lo up
if [ -n "$registry" ]; then
    mkdir "$base/registry"
    printf 'test:%s\n' '$2b$04$f5CkZ78cnnbYnNGBGASOG.0sv5Hpd9gENveIS0EfShM6JiDyyFlBu' >"$base/registry/users"
    cat >"$base/registry/config.yml" <<EOF
version: 0.1
storage: {filesystem: {rootdirectory: $base/registry/data}}
http: {addr: "127.0.0.1:5000"}
auth: {htpasswd: {realm: test, path: $base/registry/users}}
EOF
    "$registry" serve "$base/registry/config.yml" </dev/null >"$base/registry/log" 2>&1 &
fi
chroot "$root" dockerd -H unix:///sock/docker.sock --data-root /data --exec-root /run/docker \
    --pidfile /run/docker.pid --bridge=none --iptables=false --ip6tables=false </dev/null &
cat >/dev/null
"#;

/// The CLI in a view of its own, in which the work directories have the paths they have here.
const CLI: &str = r#"
base=$1; root=$base/root; shift
mount --make-rprivate /
mkdir -p "$root$base"
mount --bind "$base" "$root$base"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
exec chroot "$root" env HOME=/root DOCKER_HOST="unix://$base/sock/docker.sock" docker "$@"
"#;

/// Where a program is.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// A build through this crate, both halves of it.
pub(crate) struct Build {
    pub(crate) context: PathBuf,
    pub(crate) attrs: BTreeMap<String, String>,
    pub(crate) secrets: BTreeMap<String, SecretSource>,
    pub(crate) credentials: Vec<RegistryLogin>,
    pub(crate) ssh: BTreeMap<String, PathBuf>,
    pub(crate) archive: Option<PathBuf>,
    pub(crate) shared_key: String,
    pub(crate) image: String,
}

/// What came of a build.
pub(crate) struct Built {
    pub(crate) result: Result<SolveResult, SolveFailure>,
    pub(crate) events: Vec<SolveEvent>,
    pub(crate) stats: SessionStats,
}

impl Build {
    pub(crate) fn new(dockerd: &Dockerd, context: &Path) -> Build {
        Build {
            context: context.to_owned(),
            // The tests' dockerd has no bridge.
            attrs: BTreeMap::from([("force-network-mode".to_owned(), "none".to_owned())]),
            secrets: BTreeMap::new(),
            credentials: Vec::new(),
            ssh: BTreeMap::new(),
            archive: None,
            shared_key: format!("tests:{}", context.display()),
            image: dockerd.image_name(),
        }
    }

    pub(crate) fn attr(mut self, key: &str, value: &str) -> Build {
        self.attrs.insert(key.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn session(&self, id: &str) -> (Session, StatsHandle) {
        let stats = StatsHandle::default();
        let local = |name: &str| LocalDir {
            name: name.to_owned(),
            root: self.context.clone(),
        };
        let session = Session::new(SessionOptions {
            id: id.to_owned(),
            name: "test".to_owned(),
            shared_key: self.shared_key.clone(),
            locals: vec![local("context"), local("dockerfile")],
            secrets: self.secrets.clone(),
            credentials: std::sync::Arc::new(self.credentials.clone()),
            ssh: self.ssh.clone(),
            archive: self.archive.clone(),
            stats: stats.clone(),
            ..SessionOptions::default()
        });
        (session, stats)
    }

    pub(crate) async fn run(self, dockerd: &Dockerd) -> Built {
        let id = new_id();
        let (session, stats) = self.session(&id);
        let stream = UnixStream::connect(dockerd.socket()).await.unwrap();
        let stream = dial_docker_session(stream, &session.headers())
            .await
            .unwrap();
        let served = tokio::spawn(session.serve(stream));

        let (sender, mut receiver) = tokio::sync::mpsc::channel(16);
        let collected = tokio::spawn(async move {
            let mut events = Vec::new();
            while let Some(event) = receiver.recv().await {
                events.push(event);
            }
            events
        });
        let client = connect(dockerd).await;
        let request = self.request(&id);
        let result = client.solve(request, sender).await;
        let events = collected.await.unwrap();
        served.abort();
        Built {
            result,
            events,
            stats: stats.snapshot(),
        }
    }

    pub(crate) fn request(&self, session: &str) -> SolveRequest {
        SolveRequest {
            build_ref: new_id(),
            session: session.to_owned(),
            frontend_attrs: self.attrs.clone(),
            image_name: self.image.clone(),
            ..SolveRequest::default()
        }
    }
}

pub(crate) async fn connect(dockerd: &Dockerd) -> Client {
    let stream = UnixStream::connect(dockerd.socket()).await.unwrap();
    Client::connect(dial_docker_grpc(stream).await.unwrap())
        .await
        .unwrap()
}

impl Built {
    /// All that the steps wrote.
    pub(crate) fn log(&self) -> String {
        let mut log = Vec::new();
        for event in &self.events {
            if let SolveEvent::Log { bytes, .. } = event {
                log.write_all(bytes).unwrap();
            }
        }
        String::from_utf8_lossy(&log).into_owned()
    }

    pub(crate) fn image(&self) -> &SolveResult {
        self.result
            .as_ref()
            .unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    pub(crate) fn error(&self) -> &SolveError {
        &self.failure().error
    }

    /// The lines of the Dockerfile round the fault.
    pub(crate) fn excerpt(&self) -> &str {
        self.failure().excerpt.as_deref().unwrap_or_default()
    }

    fn failure(&self) -> &SolveFailure {
        self.result.as_ref().expect_err("the build must fail")
    }
}

pub(crate) fn new_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "test{}x{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Writes files of a context: path and content.
pub(crate) fn write_files(root: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}
