//! The builder image as a writable root, for programs that run from it with chroot.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Mounted below a directory of its own; unmounted when dropped.
#[derive(Debug)]
pub struct ImageRoot {
    dir: PathBuf,
    mounted: Vec<PathBuf>,
}

/// Its mounts are shared as on a computer that systemd started.
const PIVOT: &str = "cd \"$1\" && shift && pivot_root . mnt && umount -l /mnt && mount --make-rshared / && exec \"$@\"";

impl ImageRoot {
    /// Mounts the builder image with a writable layer, `/proc`, `/sys` and `/dev`; `binds` are directories of this machine and
    /// where they are inside.
    ///
    /// # Errors
    /// Not root, no image (`make setup`), or a mount fails.
    pub fn mount(dir: &Path, binds: &[(&Path, &str)]) -> Result<ImageRoot> {
        for name in ["base", "upper", "work", "root"] {
            std::fs::create_dir_all(dir.join(name))?;
        }
        let image = super::cache_dir().join("image/base.squashfs");
        ensure!(
            image.exists(),
            "{} is missing; run `make setup`",
            image.display()
        );
        let mut root = ImageRoot {
            dir: dir.to_owned(),
            mounted: Vec::new(),
        };
        let d = dir.display();
        let layers = format!("lowerdir={d}/base,upperdir={d}/upper,workdir={d}/work");
        root.add(&["-t", "squashfs", "-o", "loop,ro"], &image, "base")?;
        root.add(
            &["-t", "overlay", "-o", &layers],
            Path::new("overlay"),
            "root",
        )?;
        root.add(&["-t", "proc"], Path::new("proc"), "root/proc")?;
        for tree in ["/sys", "/dev"] {
            let inside = format!("root{tree}");
            root.add(&["--rbind", "--make-rprivate"], Path::new(tree), &inside)?;
        }
        for (outside, inside) in binds {
            let inside = format!("root{inside}");
            std::fs::create_dir_all(dir.join(&inside))?;
            root.add(&["--bind"], outside, &inside)?;
        }
        Ok(root)
    }

    /// The root; what lies below it, the programs see below `/`.
    pub fn path(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The image alone, read-only.
    pub fn image(&self) -> PathBuf {
        self.dir.join("base")
    }

    /// A program of the root, with nothing of this process's environment.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, program: &str, arguments: &[S]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(self.path()).arg(program).args(arguments);
        clean(&mut command);
        command
    }

    /// The same as PID 1 of a PID namespace with a `/proc` of its own (runc looks there): what it starts or mounts ends with it.
    pub fn daemon<S: AsRef<std::ffi::OsStr>>(&self, program: &str, arguments: &[S]) -> Command {
        let mut command = self.in_namespaces(&[]);
        command.arg("chroot").arg(self.path());
        command.arg(program).args(arguments);
        clean(&mut command);
        command
    }

    /// The same with a network namespace too, and the root as the mount namespace's own: with chroot alone, what is run in a running
    /// container (`docker exec`) would have this machine's root.
    pub(super) fn daemon_apart<S: AsRef<std::ffi::OsStr>>(
        &self,
        program: &str,
        arguments: &[S],
    ) -> Command {
        let mut command = self.in_namespaces(&["--net"]);
        command.args(["sh", "-c", PIVOT, "sh"]);
        command.arg(self.path()).arg(program).args(arguments);
        clean(&mut command);
        command
    }

    fn in_namespaces(&self, more: &[&str]) -> Command {
        let mut command = super::process::dies_with_us(&[]);
        let proc = format!("--mount-proc={}", self.path().join("proc").display());
        command.arg("unshare").args(more);
        command.args(["--pid", "--fork", "--kill-child", &proc]);
        command
    }

    fn add(&mut self, options: &[&str], what: &Path, at: &str) -> Result<()> {
        let at = self.dir.join(at);
        let mut command = Command::new("mount");
        let output = command.args(options).arg(what).arg(&at).output()?;
        ensure!(
            output.status.success(),
            "mount {}: {}",
            at.display(),
            super::show(&output)
        );
        self.mounted.push(at);
        Ok(())
    }
}

fn clean(command: &mut Command) {
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin")
        .env("HOME", "/root")
        .stdin(Stdio::null());
}

impl Drop for ImageRoot {
    fn drop(&mut self) {
        for at in self.mounted.iter().rev() {
            // Recursive and lazy: what a daemon mounted below goes too.
            let mut command = Command::new("umount");
            let done = command.args(["--recursive", "--lazy"]).arg(at).output();
            if let Err(error) = done.context("umount") {
                eprintln!("{} stays mounted: {error}", at.display());
            }
        }
    }
}
