//! What a virtual machine boots besides the builder image: kernel, initrd and modules of the recipe, and the guest's layer
//! as a disk.
//!
//! Must not know: machines, or QEMU.

use crate::driver::DriverError;
use crate::files::{publish, remove_all};
use crate::program::run;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// The files that `builder/image/kernel.sh` makes.
#[derive(Debug)]
pub(super) struct Kernel {
    dir: PathBuf,
    /// One at a time makes a layer's disk.
    making: Mutex<()>,
}

/// The files a machine boots, open for reading. Replacing one does not touch a machine that has it open.
#[derive(Debug)]
pub(super) struct KernelFiles {
    pub(super) kernel: File,
    pub(super) initrd: File,
    pub(super) modules: File,
}

impl Kernel {
    /// In `dir`; nothing is looked at yet.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            making: Mutex::default(),
        }
    }

    /// Opens all of them.
    ///
    /// # Errors
    /// [`DriverError::System`] that names the missing one.
    pub(super) fn open(&self) -> Result<KernelFiles, DriverError> {
        // A refresh points the link elsewhere at any moment: a kernel is of use only with its own modules.
        let dir = std::fs::canonicalize(&self.dir).map_err(DriverError::at("find", &self.dir))?;
        Ok(KernelFiles {
            kernel: open(&dir.join("vmlinuz"))?,
            initrd: open(&dir.join("initrd"))?,
            modules: open(&dir.join("modules.squashfs"))?,
        })
    }

    /// The layer in directory `layer` as a disk; made once, beside it. The layer's name is its content, so the disk's is too.
    ///
    /// # Errors
    /// [`DriverError`].
    pub(super) fn layer_disk(&self, layer: &Path) -> Result<File, DriverError> {
        let disk = layer.with_extension("squashfs");
        let _one = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        match File::open(&disk) {
            Ok(file) => return Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(DriverError::at("open", &disk)(error)),
        }
        let part = layer.with_extension("squashfs.part");
        remove_all(&part).map_err(DriverError::at("remove", &part))?;
        let mut command = Command::new("mksquashfs");
        command.arg(layer).arg(&part).args([
            "-comp",
            "zstd",
            "-Xcompression-level",
            "1",
            "-all-root",
            "-noappend",
            "-no-progress",
            "-quiet",
        ]);
        run(&mut command, "").map_err(|source| DriverError::Runtime {
            action: "make a disk of the guest's layer",
            source,
        })?;
        publish(&part, &disk).map_err(DriverError::at("rename", &part))?;
        open(&disk)
    }
}

/// Opens a file for reading.
///
/// # Errors
/// [`DriverError::System`].
pub(super) fn open(path: &Path) -> Result<File, DriverError> {
    File::open(path).map_err(DriverError::at("open", path))
}
