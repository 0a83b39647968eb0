//! What a virtual machine lacks when the initrd hands over to the guest, and a sandbox is born with: mounts, a link, the
//! cache volume, the three descriptors. After it, the guest lives the same life in both.
//!
//! It must not know what is done with any of it.

mod channel;
mod ext4;
mod given;
mod mounts;
mod network;
mod volume;

pub(crate) use channel::Channel;
pub(crate) use given::{Given, Machine};
pub(crate) use volume::OwnVolume;

use crate::descriptors;
use anyhow::{Context as _, Result, ensure};
use slipway_core::vm::{BOOT_FILE, Boot, END_PORT};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the initrd starts the guest with.
const ARGUMENT: &str = "--virtual-machine";
/// Has `modprobe` and `ip`, in the builder image.
const BUSYBOX: &str = "/usr/bin/busybox";
const CHANNEL_DIR: &str = "/run/slipway";
const FIRMWARE: &str = "/sys/firmware/qemu_fw_cfg/by_name";

/// Whether this is PID 1 of a virtual machine.
pub(crate) fn is_virtual_machine() -> bool {
    std::process::id() == 1 && std::env::args().nth(1).as_deref() == Some(ARGUMENT)
}

/// Makes this virtual machine what a sandbox is from the start.
pub(crate) fn boot() -> Result<Given> {
    mounts::mount_all()?;
    fs::create_dir_all(CHANNEL_DIR).context("make the channel's directory")?;
    let docker = PathBuf::from(CHANNEL_DIR).join("docker.sock");
    let guest = PathBuf::from(CHANNEL_DIR).join("guest.sock");
    // Before anything else opens a descriptor, as its number matters.
    let listeners = descriptors::listen(&docker, &guest)?;
    allow_many_files()?;
    // The kernel calls it for what dockerd needs; the image has no other.
    let modprobe = Path::new("/usr/sbin/modprobe");
    if !modprobe.exists() {
        std::os::unix::fs::symlink(BUSYBOX, modprobe).context("link modprobe")?;
    }
    let boot = read_boot()?;
    for module in ["virtio_net", "virtio_balloon", "virtio-rng"] {
        run(Command::new(modprobe).arg(module))?;
    }
    nix::unistd::sethostname(&boot.hostname).context("set the host name")?;
    network::set_up(&boot.network)?;
    let mut record = end_record()?;
    let volume = OwnVolume::mount();
    if let Err(error) = &volume
        && error.is::<ext4::Damaged>()
    {
        let written = record.write_all(slipway_core::end_record::DAMAGED);
        written.context("write the end record")?;
    }
    let volume = volume?;
    let descriptors = listeners.with_record(record);
    let channel = Channel::listen(boot.network.address, &boot.secret, docker, guest)?;
    Ok(Given {
        descriptors,
        machine: Machine::Virtual {
            channel,
            volume,
            emulated: boot.emulated,
            offers_memory: boot.offers_memory,
        },
    })
}

/// Unmounts the cache volume, when everything that used it has ended.
pub(crate) fn release_volume() -> Result<()> {
    volume::unmount_volume()
}

/// Switches the machine off. Returns only if the kernel refuses.
pub(crate) fn power_off() {
    nix::unistd::sync();
    let refused = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF);
    tracing::error!(?refused, "cannot switch off");
}

fn read_boot() -> Result<Boot> {
    let modprobe = || Command::new("/usr/sbin/modprobe");
    run(modprobe().arg("qemu_fw_cfg"))?;
    let path = Path::new(FIRMWARE).join(BOOT_FILE).join("raw");
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    // Nothing else is to read it from there.
    run(modprobe().args(["-r", "qemu_fw_cfg"]))?;
    // serde's words could quote the secret.
    serde_json::from_slice(&text).map_err(|_| anyhow::anyhow!("the boot file is not one"))
}

/// The serial port that the host keeps the end record of.
fn end_record() -> Result<File> {
    let class = Path::new("/sys/class/virtio-ports");
    for entry in fs::read_dir(class).context("list serial ports")? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == END_PORT {
            let device = Path::new("/dev").join(entry.file_name());
            let opened = File::options().write(true).open(&device);
            return opened.with_context(|| format!("open {}", device.display()));
        }
    }
    anyhow::bail!("no serial port takes the end record")
}

/// As many as the kernel allows one process for whoever asks for them: the sandbox's runtime does so too. Programs that close all
/// that they may have open take a minute for a billion.
fn allow_many_files() -> Result<()> {
    use nix::sys::resource::{Resource, setrlimit};
    let text = fs::read_to_string("/proc/sys/fs/nr_open").context("read fs.nr_open")?;
    let most: u64 = text.trim().parse().context("read fs.nr_open")?;
    setrlimit(
        Resource::RLIMIT_NOFILE,
        most.min(crate::limits::OPEN_FILES_SOFT),
        most,
    )
    .context("raise the limit of files")
}

/// Runs a program to its end. Before the runtime is there: nobody else reaps.
fn run(command: &mut Command) -> Result<()> {
    let name = format!("{command:?}");
    let output = command.output().with_context(|| format!("run {name}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed: {}", words.trim());
    Ok(())
}
