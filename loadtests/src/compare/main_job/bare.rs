//! A bare dockerd of the builder image: its own root, no sandbox, started and ended by itself. The yardstick for a wake.

use crate::testbed::{Connection, Process, cache_dir, show, wait_for};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// Who starts containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Containerd {
    /// dockerd itself, as it does when nobody tells it of one.
    ByDockerd,
    /// Somebody before it, as a service manager does. dockerd comes when it listens.
    First,
}

/// Mounted, and used for any number of starts.
#[derive(Debug)]
pub(super) struct BareDocker {
    dir: PathBuf,
}

impl BareDocker {
    /// Mounts the image with a writable layer and a data root on the same file system as the pool.
    pub(super) fn prepare(dir: &Path) -> Result<Self> {
        for name in ["base", "upper", "work", "root", "data"] {
            std::fs::create_dir_all(dir.join(name))?;
        }
        let bare = Self {
            dir: dir.to_owned(),
        };
        let image = cache_dir().join("image/base.squashfs");
        bare.mount(&["-t", "squashfs", "-o", "loop,ro"], &image, "base")?;
        let d = dir.display();
        let overlay = format!("lowerdir={d}/base,upperdir={d}/upper,workdir={d}/work");
        bare.mount(
            &["-t", "overlay", "-o", &overlay],
            Path::new("overlay"),
            "root",
        )?;
        bare.mount(&["-t", "proc"], Path::new("proc"), "root/proc")?;
        bare.mount(&["--rbind"], Path::new("/sys"), "root/sys")?;
        bare.mount(&["--rbind"], Path::new("/dev"), "root/dev")?;
        bare.mount(&["--bind"], &dir.join("data"), "root/var/lib/docker")?;
        Ok(bare)
    }

    /// Starts it in a network namespace of its own (so that it makes its bridge as ours does), waits for `/_ping`, ends it.
    pub(super) fn start_to_ping(&self, containerd: Containerd) -> Result<Duration> {
        let root = self.dir.join("root");
        for stale in ["run/docker.sock", "run/docker.pid", "var/run/docker.pid"] {
            let _absent = std::fs::remove_file(root.join(stale));
        }
        for stale in ["run/containerd", "run/docker"] {
            let _absent = std::fs::remove_dir_all(root.join(stale));
        }
        let mut command = Command::new("unshare");
        command.args(["--net", "--pid", "--fork", "--kill-child", "chroot"]);
        command.arg(&root);
        let dockerd = "dockerd -H unix:///run/docker.sock";
        match containerd {
            Containerd::ByDockerd => command.args(dockerd.split(' ')),
            // The shell is PID 1 there, so that both end with it.
            Containerd::First => command.args(["sh", "-c"]).arg(format!(
                "containerd --log-level warn & while [ ! -S {CONTAINERD} ]; do sleep 0.002; done; \
                 trap : TERM; {dockerd} --containerd {CONTAINERD} & wait; kill $!; wait $!"
            )),
        };
        let socket = root.join("run/docker.sock");
        let begin = Instant::now();
        let mut process = Process::start("dockerd", command, &self.dir.join("dockerd.log"))?;
        let until = begin + Duration::from_secs(30);
        let took = loop {
            let answers = |mut connection: Connection| {
                let answer = connection.get("/_ping");
                answer.is_ok_and(|(status, _)| status == 200)
            };
            if Connection::direct(&socket).is_ok_and(answers) {
                break begin.elapsed();
            }
            let shown = process.output();
            ensure!(Instant::now() < until, "dockerd did not start:\n{shown}");
            std::thread::sleep(Duration::from_millis(2));
        };
        end_dockerd(&mut process)?;
        Ok(took)
    }

    fn mount(&self, options: &[&str], what: &Path, at: &str) -> Result<()> {
        let output = Command::new("mount")
            .args(options)
            .arg(what)
            .arg(self.dir.join(at))
            .output()?;
        ensure!(output.status.success(), "mount {at}: {}", show(&output));
        Ok(())
    }
}

/// Asks dockerd itself to end (unshare, its parent, ignores the request), and waits for both.
fn end_dockerd(process: &mut Process) -> Result<()> {
    let pid = process.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let dockerd = children
        .split_whitespace()
        .next()
        .context("unshare has no child")?
        .parse()?;
    let dockerd = nix::unistd::Pid::from_raw(dockerd);
    nix::sys::signal::kill(dockerd, nix::sys::signal::Signal::SIGTERM)?;
    wait_for("the bare dockerd's end", Duration::from_secs(30), || {
        ensure!(!process.is_running(), "it still runs");
        Ok(())
    })
}

impl Drop for BareDocker {
    fn drop(&mut self) {
        // Recursive: what dockerd and the bound trees have mounted below goes too. Lazy and private, so the host's stay.
        for name in [
            "root/var/lib/docker",
            "root/sys",
            "root/dev",
            "root",
            "base",
        ] {
            let at = self.dir.join(name);
            let _private = Command::new("mount")
                .arg("--make-rprivate")
                .arg(&at)
                .output();
            let done = Command::new("umount")
                .arg("--recursive")
                .arg("--lazy")
                .arg(&at)
                .output();
            if let Err(error) = done.context("umount") {
                eprintln!("{}: {error}", at.display());
            }
        }
    }
}
