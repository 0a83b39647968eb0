//! A virtual machine for one command: Debian 13 with its own kernel, pure cgroup v2, device-mapper, in QEMU.
//!
//! Owns: booting the image that loadtests/vm/image.sh makes, handing files and empty disks in, and getting the exit code and
//! the output back. It emulates the processor (TCG), because a `/dev/kvm` that exists is no proof that it works; the
//! environment variable `SLIPWAY_VM_ACCEL=kvm` says that it does. Must not know: what the command does.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use slipway_loadtests::vm::Vm;
//! let end = Vm::new()?.file("suite", "target/debug/deps/suite-1".as_ref()).disk("pool", 2 << 30)
//!     .run("/run/test/suite --test-threads=1", std::time::Duration::from_secs(240))?;
//! assert_eq!(end.exit_code, 0, "{}", end.output);
//! # Ok(()) }
//! ```

mod by_hand;
#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

pub use by_hand::{Arguments, main};

use crate::testbed::{Process, cache_dir, show, wait_for};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Between the end of the command's time and that of the whole machine's: boot and power-off, slow under TCG.
const BOOT_WAIT: Duration = Duration::from_secs(120);
/// On a computer with far more to do than it can, QEMU 10.0 has been seen to abort in a guest's first seconds (an assertion on
/// MSI-X); so often it is tried in all.
const BOOTS_MAX: u32 = 3;
/// The last line of the output, before the code; machine-init prints it.
const END_MARK: &str = "\nslipway-test-exit ";

/// What is PID 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Init {
    /// A script that mounts what is needed. The command runs 3 s after the start.
    #[default]
    Script,
    /// systemd with udev; the command is a unit with `Delegate=yes`. About 20 s.
    Systemd,
}

/// What to boot.
#[derive(Debug)]
pub struct Vm {
    image: PathBuf,
    memory_mib: u32,
    cpus: u8,
    init: Init,
    files: Vec<(String, PathBuf)>,
    disks: Vec<(String, Disk)>,
    cut_at: Option<String>,
}

#[derive(Debug)]
enum Disk {
    /// Empty, of so many bytes, gone afterwards.
    Scratch(u64),
    /// A file that stays.
    Kept(PathBuf),
}

/// How it went.
#[derive(Debug)]
pub struct End {
    /// The command's exit code; 124 or 137 when its time was over, and 137 when the power was cut.
    pub exit_code: i32,
    /// What it printed, both outputs together.
    pub output: String,
    /// What the kernel said.
    pub console: String,
    /// From the start of QEMU to its end.
    pub took: Duration,
}

impl Vm {
    /// Two processors, 2 GiB.
    ///
    /// # Errors
    /// The image or QEMU is missing (`make setup`).
    pub fn new() -> Result<Self> {
        let image = cache_dir().join("vm/current");
        ensure!(
            image.join("root.squashfs").exists(),
            "{} is missing; run `make setup`",
            image.display()
        );
        Ok(Self {
            image,
            memory_mib: 2048,
            cpus: 2,
            init: Init::Script,
            files: Vec::new(),
            disks: Vec::new(),
            cut_at: None,
        })
    }

    /// How much memory it has; the root's writable layer lives in it.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// What is PID 1.
    #[must_use]
    pub fn init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// The file `path` of this machine appears, executable, as `/run/test/NAME`.
    #[must_use]
    pub fn file(mut self, name: &str, path: &Path) -> Self {
        self.files.push((name.to_owned(), path.to_owned()));
        self
    }

    /// An empty disk appears as `/dev/disk/by-test/NAME` (at most 20 characters). It takes what is written to it, and
    /// gives it back when it is discarded.
    #[must_use]
    pub fn disk(mut self, name: &str, bytes: u64) -> Self {
        self.disks.push((name.to_owned(), Disk::Scratch(bytes)));
        self
    }

    /// The same with the file `path` of this machine as the disk: what is written to it stays.
    #[must_use]
    pub fn kept_disk(mut self, name: &str, path: &Path) -> Self {
        self.disks
            .push((name.to_owned(), Disk::Kept(path.to_owned())));
        self
    }

    /// As soon as the command has printed `text`, QEMU is killed. What the guest has in its memory is lost; what its disks
    /// have said to have written is there.
    #[must_use]
    pub fn cut_power_at(mut self, text: &str) -> Self {
        self.cut_at = Some(text.to_owned());
        self
    }

    /// Boots, runs `command` (a bash script) as root for at most `within`, and powers off. QEMU does not outlive this call,
    /// nor the calling thread.
    ///
    /// # Errors
    /// The machine did not come to run the command, or did not end. A command that fails is no error: see [`End`].
    pub fn run(&self, command: &str, within: Duration) -> Result<End> {
        for _ in 1..BOOTS_MAX {
            if let Some(end) = self.boot(command, within)? {
                return Ok(end);
            }
        }
        let end = self.boot(command, within)?;
        end.context("QEMU failed each time")
    }

    /// Nothing if QEMU gave up before the command began, which says nothing of the command.
    fn boot(&self, command: &str, within: Duration) -> Result<Option<End>> {
        let dir = tempfile::Builder::new()
            .prefix("slipway-vm-")
            .tempdir_in("/var/tmp")?;
        self.pack_files(dir.path(), command, within)?;
        for (name, disk) in &self.disks {
            if let Disk::Scratch(bytes) = disk {
                std::fs::File::create(dir.path().join(name))?.set_len(*bytes)?;
            }
        }
        let began = Instant::now();
        let mut qemu = Process::start("qemu", self.qemu(dir.path()), &dir.path().join("qemu.log"))?;
        let read = |name: &str| {
            let bytes = std::fs::read(dir.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let is_cut = || {
            let text = self.cut_at.as_ref()?;
            read("output").contains(text).then_some(())
        };
        let ended = wait_for("the end of the machine", within + BOOT_WAIT, || {
            ensure!(!qemu.is_running() || is_cut().is_some(), "it runs");
            Ok(())
        });
        let cut = qemu.is_running() && ended.is_ok();
        if qemu.is_running() {
            qemu.kill();
        }
        let (console, output) = (read("console"), read("output"));
        let told = || {
            format!(
                "console:\n{console}\noutput:\n{output}\nqemu:\n{}",
                read("qemu.log")
            )
        };
        ended.with_context(told)?;
        let (output, exit_code) = match output.rsplit_once(END_MARK) {
            _ if cut => (output.clone(), 137),
            Some((output, code)) => (output.to_owned(), code.trim().parse().with_context(told)?),
            None if output.is_empty() && !read("qemu.log").is_empty() => {
                eprintln!("{}", told());
                return Ok(None);
            }
            None => bail!("the machine ended before its command\n{}", told()),
        };
        Ok(Some(End {
            exit_code,
            output,
            console: console.clone(),
            took: began.elapsed(),
        }))
    }

    /// Everything that goes in, as a squashfs: no copy is made before, and reading needs no network and no shared folder.
    fn pack_files(&self, dir: &Path, command: &str, within: Duration) -> Result<()> {
        let own = dir.join("own");
        std::fs::create_dir(&own)?;
        std::fs::write(own.join("command"), command)?;
        std::fs::write(own.join("seconds"), within.as_secs().max(1).to_string())?;
        let mut pack = Command::new("mksquashfs");
        pack.arg(&own).arg(dir.join("files")).args([
            "-noappend",
            "-quiet",
            "-no-progress",
            "-comp",
            "zstd",
            "-Xcompression-level",
            "1",
        ]);
        for (name, path) in &self.files {
            let path = std::fs::canonicalize(path).with_context(|| path.display().to_string())?;
            // A shell runs what stands after the owner.
            let quoted = path.display().to_string().replace('\'', r"'\''");
            pack.arg("-p")
                .arg(format!("{name} f 0755 0 0 cat '{quoted}'"));
        }
        let output = pack.output().context("mksquashfs")?;
        ensure!(output.status.success(), "mksquashfs: {}", show(&output));
        Ok(())
    }

    fn qemu(&self, dir: &Path) -> Command {
        let accel = std::env::var("SLIPWAY_VM_ACCEL").unwrap_or_else(|_| "tcg,thread=multi".into());
        let init = match self.init {
            Init::Script => "/sbin/slipway-test-init",
            Init::Systemd => "/lib/systemd/systemd",
        };
        // The kernel kills QEMU when this thread ends, however it ends.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-accel", &accel, "-M", "q35", "-cpu", "max"])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-m", &self.memory_mib.to_string()])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none"]);
        for line in ["console", "output"] {
            qemu.arg("-serial")
                .arg(format!("file:{}", dir.join(line).display()));
        }
        // On a busy computer the emulated timer may miss its first tick; the kernel need not take that for broken hardware.
        qemu.arg("-kernel")
            .arg(self.image.join("vmlinuz"))
            .arg("-initrd")
            .arg(self.image.join("initrd"))
            .arg("-append")
            .arg(format!(
                "console=ttyS0 quiet panic=-1 edd=off no_timer_check nohz=off highres=off slipway.init={init}"
            ));
        disk(&mut qemu, "root", &self.image.join("root.squashfs"), true);
        disk(&mut qemu, "files", &dir.join("files"), true);
        for (name, is) in &self.disks {
            let path = match is {
                Disk::Scratch(_) => dir.join(name),
                Disk::Kept(path) => path.clone(),
            };
            disk(&mut qemu, name, &path, false);
        }
        qemu
    }
}

/// Adds a disk; `serial` is how it is found inside.
fn disk(qemu: &mut Command, serial: &str, path: &Path, read_only: bool) {
    let how = if read_only {
        "readonly=on"
    } else {
        "cache=unsafe,discard=unmap,detect-zeroes=unmap"
    };
    qemu.arg("-drive")
        .arg(format!(
            "if=none,id={serial},format=raw,file={},{how}",
            path.display()
        ))
        .arg("-device")
        .arg(format!("virtio-blk-pci,drive={serial},serial={serial}"));
}
