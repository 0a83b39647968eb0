//! Loop devices: a file as a block device.
//!
//! A device made here clears itself when its last user closes it (`LO_FLAGS_AUTOCLEAR`), so that a killed process
//! leaves none behind, unless it was made to last. The kernel keeps the very open file it was given for as long as the device lives: a `flock` on
//! that file is therefore held exactly as long as the device is in use, by whichever process or mount.
//!
//! Interface: `include/uapi/linux/loop.h` of Linux (5.8 or newer for `LOOP_CONFIGURE`).
//!
//! Must not know: what is on them.

use crate::backing::Device;
use crate::error::VolumeError;
use crate::limits::LOOP_DEVICE_TRIES_MAX;
use crate::tool;
use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// The block size of the file systems on it, so that direct I/O is always aligned.
const BLOCK_BYTES: u32 = 4096;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);

#[expect(unsafe_code, reason = "the loop driver is spoken to by ioctl alone")]
mod sys {
    use super::LoopConfig;
    use nix::libc::c_int;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    nix::ioctl_none_bad!(ctl_get_free, 0x4C82);
    nix::ioctl_write_ptr_bad!(configure_raw, 0x4C0A, LoopConfig);
    nix::ioctl_none_bad!(clear_raw, 0x4C01);
    nix::ioctl_none_bad!(set_capacity_raw, 0x4C07);

    /// `LOOP_CLR_FD`: frees the device, now or when its last user closes it.
    pub(super) fn clear(device: &File) -> nix::Result<()> {
        // SAFETY: the descriptor is open for the call; the request takes no pointer.
        unsafe { clear_raw(device.as_raw_fd()) }.map(drop)
    }

    /// `LOOP_SET_CAPACITY`: the device becomes as large as its file.
    pub(super) fn set_capacity(device: &File) -> nix::Result<()> {
        // SAFETY: as above.
        unsafe { set_capacity_raw(device.as_raw_fd()) }.map(drop)
    }

    /// `LOOP_CTL_GET_FREE`: the number of a device that is free right now.
    pub(super) fn get_free(control: &File) -> nix::Result<c_int> {
        // SAFETY: the descriptor is open for the call; the request takes no pointer.
        unsafe { ctl_get_free(control.as_raw_fd()) }
    }

    /// `LOOP_CONFIGURE`: backing file and settings in one step.
    pub(super) fn configure(device: &File, config: &LoopConfig) -> nix::Result<()> {
        // SAFETY: the descriptor is open for the call, and `config` is a live `struct loop_config` (its size is
        // asserted) that the kernel only reads.
        unsafe { configure_raw(device.as_raw_fd(), config) }.map(drop)
    }
}

const CONTROL: &str = "/dev/loop-control";

/// Refuses where there are no loop devices.
pub(crate) fn check() -> Result<(), VolumeError> {
    if tool::load_module("loop", CONTROL) {
        return Ok(());
    }
    Err(VolumeError::Unsupported(format!(
        "there is no {CONTROL}, which volumes in files need (hint: modprobe loop; in a container, give it that device)"
    )))
}

/// A loop device in use. Dropping it lets go of it; the device lives on while it is mounted.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    path: PathBuf,
    open: File,
}

impl LoopDevice {
    /// Makes a device of `backing`, which must be open for reading and writing.
    ///
    /// Uses direct I/O where the backing file system can, so that data is not cached twice. A `lasting` one stays when it is
    /// closed, until [`release`].
    pub(crate) fn attach(backing: &File, lasting: bool) -> io::Result<Self> {
        let control = open_rw(Path::new(CONTROL))?;
        for _ in 0..LOOP_DEVICE_TRIES_MAX {
            let path = PathBuf::from(format!("/dev/loop{}", sys::get_free(&control)?));
            let device = open_rw(&path)?;
            match configure(&device, backing, lasting) {
                Ok(()) => {
                    return Ok(Self { path, open: device });
                }
                // Somebody else took it in between.
                Err(Errno::EBUSY) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(Errno::EBUSY.into())
    }

    pub(crate) fn into_device(self) -> Device {
        Device {
            path: self.path,
            _open: Some(self.open),
        }
    }

    /// The device whose backing file is at `backing` (a canonical path), if there is one.
    pub(crate) fn find(backing: &Path) -> io::Result<Option<PathBuf>> {
        Ok(in_use()?
            .into_iter()
            .find(|(file, _)| file == backing)
            .map(|(_, device)| device))
    }
}

/// All loop devices in use: backing file and device. As sysfs has it at this moment.
pub(crate) fn in_use() -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|n| n.starts_with("loop")) else {
            continue;
        };
        // Absent while the device is free, and it may become free as we look.
        if let Ok(file) = std::fs::read_to_string(entry.path().join("loop/backing_file")) {
            found.push((
                PathBuf::from(file.trim_end_matches('\n')),
                Path::new("/dev").join(name),
            ));
        }
    }
    Ok(found)
}

/// The device of `backing`, open: it cannot become another file's meanwhile.
fn open_device_of(backing: &Path) -> io::Result<Option<File>> {
    let Some(path) = LoopDevice::find(backing)? else {
        return Ok(None);
    };
    let device = open_rw(&path)?;
    Ok((LoopDevice::find(backing)?.as_ref() == Some(&path)).then_some(device))
}

/// Frees the device of `backing` as soon as its last user is gone; none is fine.
pub(crate) fn release(backing: &Path) -> io::Result<()> {
    let Some(device) = open_device_of(backing)? else {
        return Ok(());
    };
    match sys::clear(&device) {
        // It is being freed.
        Ok(()) | Err(Errno::ENXIO | Errno::EBUSY) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The device of `backing`, if there is one, becomes as large as it.
pub(crate) fn follow(backing: &Path) -> io::Result<()> {
    match open_device_of(backing)? {
        Some(device) => Ok(sys::set_capacity(&device)?),
        None => Ok(()),
    }
}

fn configure(device: &File, backing: &File, lasting: bool) -> Result<(), Errno> {
    let with = |flags| LoopConfig {
        fd: backing.as_raw_fd().cast_unsigned(),
        block_size: BLOCK_BYTES,
        info: LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    let flags = if lasting { 0 } else { LO_FLAGS_AUTOCLEAR };
    match sys::configure(device, &with(flags | LO_FLAGS_DIRECT_IO)) {
        // The backing file system has no direct I/O.
        Err(Errno::EINVAL) => sys::configure(device, &with(flags)),
        other => other,
    }
}

fn open_rw(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}
