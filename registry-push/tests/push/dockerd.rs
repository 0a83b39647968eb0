//! A dockerd of the tests' own: from a root file system, in its own namespaces, gone with the test.
//!
//! Needs root and `SLIPWAY_TEST_ROOTFS`, the path of a tar archive of a root file system that holds dockerd and the Docker CLI.

use crate::{run, skip};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

const ROOTFS: &str = "SLIPWAY_TEST_ROOTFS";
const READY_WAIT_MAX: Duration = Duration::from_secs(300);

/// Where it keeps its images.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Classic,
    Containerd,
}

impl Store {
    fn settings(self) -> &'static str {
        match self {
            Store::Classic => r#"{"storage-driver": "overlay2"}"#,
            Store::Containerd => {
                r#"{"storage-driver": "overlayfs", "features": {"containerd-snapshotter": true}}"#
            }
        }
    }
}

/// A running dockerd. Ends when dropped; should the test die first, with the pipe that holds it.
pub(crate) struct Dockerd {
    child: Child,
    hold: Option<ChildStdin>,
    dir: tempfile::TempDir,
}

impl Dockerd {
    /// Starts one; `None` when something it needs is missing, which is then said.
    pub(crate) fn start(store: Store) -> Option<Dockerd> {
        let Some(rootfs) =
            std::env::var_os(ROOTFS).filter(|_| rustix::process::geteuid().is_root())
        else {
            skip(&format!(
                "needs root and {ROOTFS}, a root file system with dockerd"
            ));
            return None;
        };
        let dir = tempfile::Builder::new()
            .prefix("slipway-push-dockerd-")
            .tempdir()
            .unwrap();
        let base = dir.path();
        std::fs::set_permissions(base, std::fs::Permissions::from_mode(0o755)).unwrap();
        for sub in ["root", "data", "sock", "exchange"] {
            std::fs::create_dir(base.join(sub)).unwrap();
        }
        run(Command::new("tar")
            .arg("-C")
            .arg(base.join("root"))
            .arg("-xf")
            .arg(rootfs));
        for mount_point in ["data", "sock", "exchange"] {
            std::fs::create_dir(base.join("root").join(mount_point)).unwrap();
        }
        std::fs::create_dir_all(base.join("root/etc/docker")).unwrap();
        let settings = base.join("root/etc/docker/daemon.json");
        std::fs::write(settings, store.settings()).unwrap();
        let log = std::fs::File::create(base.join("log")).unwrap();
        let mut child = Command::new("unshare")
            .args([
                "--mount", "--pid", "--ipc", "--uts", "--fork", "sh", "-ceu", START, "start",
            ])
            .arg(base)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let hold = child.stdin.take();
        let mut dockerd = Dockerd { child, hold, dir };
        dockerd.wait_ready();
        Some(dockerd)
    }

    fn wait_ready(&mut self) {
        let deadline = Instant::now() + READY_WAIT_MAX;
        let socket = self.dir.path().join("sock/docker.sock");
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
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

    /// Its data root, as it is on this side.
    pub(crate) fn data_root(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Its process id, as it is on this side.
    pub(crate) fn process(&self) -> u32 {
        let root = self.dir.path().join("root");
        let is_it = |process: &u32| {
            let proc = PathBuf::from(format!("/proc/{process}"));
            std::fs::read_link(proc.join("root")).is_ok_and(|of| of == root)
                && std::fs::read_to_string(proc.join("comm")).is_ok_and(|name| name == "dockerd\n")
        };
        let processes = std::fs::read_dir("/proc").unwrap();
        let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        numbers.into_iter().find(is_it).expect("dockerd runs")
    }

    /// A directory that dockerd's CLI sees as `/exchange`.
    pub(crate) fn exchange(&self) -> PathBuf {
        self.dir.path().join("exchange")
    }

    /// Runs the Docker CLI; gives its output.
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        let output = self.try_docker(arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker {arguments:?}: {told}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs containerd's own client on the containerd below dockerd, in a namespace of the tests; gives its output.
    pub(crate) fn ctr(&self, arguments: &[&str]) -> String {
        let socket = "/sock/exec/containerd/containerd.sock";
        let output = self.run_inside(&["ctr", "-a", socket, "-n", "tests"], arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {arguments:?}: {told}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The root of that containerd, as it is on this side.
    pub(crate) fn containerd_root(&self) -> PathBuf {
        self.data_root().join("containerd/daemon")
    }

    fn try_docker(&self, arguments: &[&str]) -> Output {
        self.run_inside(&["docker"], arguments)
    }

    fn run_inside(&self, program: &[&str], arguments: &[&str]) -> Output {
        Command::new("unshare")
            .args(["--mount", "sh", "-ceu", CLI, "cli"])
            .arg(self.dir.path())
            .args(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// diffIDs by dockerd.
    pub(crate) fn diff_ids(&self, image: &str) -> Vec<String> {
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
        let _ = self.child.wait();
    }
}

/// Makes an archive of a directory, with owners, links, extended attributes and sparse files as they are.
pub(crate) fn tar(directory: &Path, archive: &Path) {
    run(Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--format=posix", "-C"])
        .arg(directory)
        .arg("-cf")
        .arg(archive)
        .arg("."));
}

/// The first process of the namespaces: it makes the mounts, starts dockerd, and ends (and all with it) with its input.
const START: &str = r#"
base=$1; root=$base/root
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
for dir in data sock exchange; do mount --bind "$base/$dir" "$root/$dir"; done
chroot "$root" dockerd -H unix:///sock/docker.sock --data-root /data --exec-root /sock/exec \
    --pidfile /run/docker.pid --bridge=none --iptables=false --ip6tables=false --insecure-registry 127.0.0.0/8 </dev/null &
cat >/dev/null
"#;

/// The CLI in a view of its own.
const CLI: &str = r#"
base=$1; root=$base/root; shift
mount --make-rprivate /
mount --bind "$base/sock" "$root/sock"
mount --bind "$base/exchange" "$root/exchange"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
exec chroot "$root" env HOME=/root DOCKER_HOST=unix:///sock/docker.sock "$@"
"#;
