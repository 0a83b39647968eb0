//! Pulling the plug: what is left of a host whose power goes, without taking this computer's.

use super::Testbed;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

/// `EXT4_IOC_SHUTDOWN` with `NOLOGFLUSH`: from now on nothing more reaches the disk, as if it had no power.
const CUT_OFF: &str = "import fcntl, os, struct, sys\n\
    fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

impl Testbed {
    /// The process ids of the machines that run, as this computer numbers them.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn machine_pids(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for entry in std::fs::read_dir(self.dir().join("host/machines"))? {
            let record = entry?.path().join("record.json");
            let Ok(text) = std::fs::read(&record) else {
                continue;
            };
            let record: Value = serde_json::from_slice(&text)?;
            if let Some(pid) = record["phase"]["process"]["pid"].as_i64() {
                pids.push(i32::try_from(pid)?);
            }
        }
        Ok(pids)
    }

    /// The images of the pool's volumes.
    ///
    /// # Errors
    /// The pool cannot be read.
    pub fn volume_images(&self) -> Result<Vec<PathBuf>> {
        let mut images = Vec::new();
        for entry in std::fs::read_dir(self.dir().join("pool/volumes"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "img") {
                images.push(path);
            }
        }
        Ok(images)
    }

    /// The image of one volume.
    ///
    /// # Errors
    /// It is not in the pool.
    pub fn volume_image(&self, id: &str) -> Result<PathBuf> {
        let is_it = |path: &PathBuf| {
            let name = path.file_name();
            name.is_some_and(|name| name.to_string_lossy().starts_with(id))
        };
        let images = self.volume_images()?;
        images
            .into_iter()
            .find(is_it)
            .with_context(|| id.to_owned())
    }

    /// Power goes: nothing more reaches the volumes' disks, machines, host daemon and control plane are gone at the same moment, and
    /// so are their mounts, devices and links. The registry and this computer stay.
    ///
    /// # Errors
    /// The system refuses something of it.
    pub fn pull_the_plug(&mut self) -> Result<()> {
        let machines = self.machine_pids()?;
        ensure!(!machines.is_empty(), "no machine runs");
        for pid in &machines {
            // Only the machine itself has its volume mounted.
            let volume = PathBuf::from(format!("/proc/{pid}/root/var/lib/docker"));
            let output = Command::new("python3")
                .args(["-c", CUT_OFF])
                .arg(&volume)
                .output()?;
            ensure!(
                output.status.success(),
                "cut off {}: {}",
                volume.display(),
                super::show(&output)
            );
        }
        for pid in machines {
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        }
        self.kill_host();
        self.kill_serve();
        self.forget_as_a_boot_does()
    }

    fn forget_as_a_boot_does(&self) -> Result<()> {
        super::leftovers::unmount_below(&self.dir().join("run"))?;
        super::leftovers::free_devices_below(&self.dir().join("pool"))?;
        std::fs::remove_dir_all(self.dir().join("run")).context("empty /run")?;
        Ok(())
    }
}
