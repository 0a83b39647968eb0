//! Programs of other processors, under QEMU's user-mode emulators: the kernel is told which program runs which kind of file
//! (`binfmt_misc`). From Linux 6.7 on a user namespace has such a table of its own, so what is told here holds in this machine alone.
//!
//! It must not know who runs such programs.

use crate::limits;
use nix::mount::{MsFlags, mount};
use slipway_core::platform::{Platform, own_arch};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use tokio::sync::OnceCell;

/// Where the table is mounted. The usual place is not there before the kernel has loaded the module.
const TABLE: &str = "/run/binfmt_misc";
const EMULATORS: &str = "/usr/bin";
/// The kernel opens the emulator now, so that it is found in every container (F), gives it the file opened and the file's own rights
/// (O, C), and says the program's own name (P).
const FLAGS: &str = "POCF";

/// A kind of file, by the head of an ELF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    /// As Go names it.
    arch: &'static str,
    /// As QEMU does.
    emulator: &'static str,
    /// 1 for 32 bits, 2 for 64.
    class: u8,
    /// 1 for the low byte first, 2 for the high one.
    order: u8,
    /// `e_machine`.
    machine: u8,
}

const KINDS: [Kind; 7] = [
    kind("386", "qemu-i386", 1, 1, 0x03),
    kind("amd64", "qemu-x86_64", 2, 1, 0x3e),
    kind("arm", "qemu-arm", 1, 1, 0x28),
    kind("arm64", "qemu-aarch64", 2, 1, 0xb7),
    kind("ppc64le", "qemu-ppc64le", 2, 1, 0x15),
    kind("riscv64", "qemu-riscv64", 2, 1, 0xf3),
    kind("s390x", "qemu-s390x", 2, 2, 0x16),
];

const fn kind(
    arch: &'static str,
    emulator: &'static str,
    class: u8,
    order: u8,
    machine: u8,
) -> Kind {
    Kind {
        arch,
        emulator,
        class,
        order,
        machine,
    }
}

impl Kind {
    /// The line by which the kernel is told.
    fn line(&self) -> String {
        let mut head = [0; 20];
        head[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', self.class, self.order, 1]);
        let mut mask = [0xff; 20];
        // Whatever system it says that it is for.
        mask[7] = 0;
        // A program, or one that can lie anywhere: 2 or 3.
        let (low, machine) = if self.order == 1 { (16, 18) } else { (17, 19) };
        head[low] = 2;
        mask[low] = 0xfe;
        head[machine] = self.machine;
        let Kind { emulator, .. } = self;
        let (head, mask) = (escaped(&head), escaped(&mask));
        format!(":{emulator}:M::{head}:{mask}:{EMULATORS}/{emulator}:{FLAGS}")
    }
}

fn escaped(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A text takes all that is written to it.
        let _ = write!(text, "\\x{byte:02x}");
        text
    })
}

/// The emulators of this machine. They are told to the kernel once, after dockerd has started: BuildKit tries each of them when it starts.
#[derive(Debug, Default)]
pub(crate) struct Emulation {
    told: OnceCell<Result<Vec<&'static str>, String>>,
}

impl Emulation {
    /// Why programs of one of these platforms do not run here, and whose they are; none if all do.
    pub(crate) async fn lacks(&self, platforms: &[Platform]) -> Option<String> {
        if platforms.iter().all(|it| it.is_native_to(own_arch())) {
            return None;
        }
        let arches = match self.ready().await {
            Ok(arches) => arches,
            Err(why) => return Some(why.clone()),
        };
        let runs = |it: &&Platform| it.is_native_to(own_arch()) || arches.contains(&it.arch());
        let missing = platforms.iter().find(|it| !runs(it))?;
        Some(format!("the builder has no emulator for {missing}"))
    }

    /// Tells the kernel, the first time; gives the processors that are emulated, or why none is.
    pub(crate) async fn ready(&self) -> &Result<Vec<&'static str>, String> {
        let tell = || async {
            let told = tokio::task::spawn_blocking(tell_all).await;
            told.unwrap_or_else(|_| Err("the emulators could not be set up".to_owned()))
                .inspect_err(|why| tracing::warn!(why, "nothing is emulated"))
        };
        self.told.get_or_init(tell).await
    }
}

fn tell_all() -> Result<Vec<&'static str>, String> {
    mount_table().map_err(|error| reason(&error))?;
    let mut told = Vec::new();
    let foreign = |kind: &&Kind| {
        // What the processor can run, if not every one of its kind, is not taken from it.
        let is_arm = own_arch() == "arm64" && kind.arch == "arm";
        kind.arch != own_arch() && !(own_arch() == "amd64" && kind.arch == "386") && !is_arm
    };
    for kind in KINDS.iter().filter(foreign) {
        if !Path::new(EMULATORS).join(kind.emulator).exists() {
            continue;
        }
        match fs::write(Path::new(TABLE).join("register"), kind.line()) {
            Ok(()) => told.push(kind.arch),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => told.push(kind.arch),
            Err(error) => tracing::warn!(%error, emulator = kind.emulator, "is not emulated"),
        }
    }
    if told.is_empty() {
        return Err("the builder's image has no emulators (the package qemu-user)".to_owned());
    }
    Ok(told)
}

fn mount_table() -> io::Result<()> {
    fs::create_dir_all(TABLE)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let none: Option<&str> = None;
    mount(Some("binfmt_misc"), TABLE, Some("binfmt_misc"), flags, none).map_err(io::Error::from)
}

fn reason(error: &io::Error) -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release: String = release
        .trim()
        .chars()
        .take(limits::RELEASE_CHARS_MAX)
        .collect();
    format!(
        "the host's kernel {release} does not let a sandbox have emulators of its own, which takes Linux 6.7 with binfmt_misc ({error})"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_head_of_a_program() {
        let line = |arch: &str| {
            let kind = KINDS.iter().find(|kind| kind.arch == arch);
            kind.expect("a kind").line()
        };
        assert_eq!(
            line("arm64"),
            r":qemu-aarch64:M::\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64:POCF"
        );
        assert!(
            line("s390x").contains(r"\x00\x02\x00\x16:"),
            "{}",
            line("s390x")
        );
        assert!(
            line("s390x").contains(r"\xff\xfe\xff\xff:"),
            "{}",
            line("s390x")
        );
    }
}
