//! Encryption of volumes: LUKS2 with aes-xts-plain64, opened by a random key.
//!
//! Keys go to `cryptsetup` by pipes, never by arguments, files or its environment. Since the key is random and not a
//! password, nothing is gained by a slow derivation: the lowest that LUKS allows is used, so that attaching stays fast.
//!
//! Must not know: where keys come from, whose they are, what is stored.

use crate::driver::Encryption;
use crate::error::VolumeError;
use crate::limits::CRYPTSETUP_DURATION_MAX;
use crate::tool::{self, Ended};
use slipway_core::id::VolumeId;
use slipway_core::key::{VOLUME_KEY_BYTES, VolumeKey};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// What LUKS2 takes at the beginning of a device, in bytes.
pub(crate) const HEADER_BYTES: u64 = 4 << 20;
/// The same in sectors of 512 bytes, as cryptsetup wants it.
const HEADER_SECTORS: &str = "8192";
/// Of the encrypted device. Its size is a multiple of it.
pub(crate) const SECTOR_BYTES: u64 = 4096;
const KEY_BYTES: &str = "64";
const PBKDF: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

const _: () = assert!(VOLUME_KEY_BYTES == 64);

/// Whether this kernel can encrypt devices, and why not.
fn unavailable() -> Option<&'static str> {
    // Its module brings device-mapper, whose control node this is.
    if !tool::load_module("dm_crypt", "/dev/mapper/control") {
        return Some("this kernel has no device-mapper");
    }
    tool::run(
        "cryptsetup",
        &[OsStr::new("--version")],
        CRYPTSETUP_DURATION_MAX,
    )
    .is_err()
    .then_some("cryptsetup is not installed")
}

/// Refuses to encrypt where that cannot be.
pub(crate) fn check(encryption: Encryption) -> Result<(), VolumeError> {
    match (encryption, unavailable()) {
        (Encryption::Required, Some(reason)) => Err(VolumeError::EncryptionUnavailable { reason }),
        (Encryption::Required, None) | (Encryption::Off, _) => Ok(()),
    }
}

/// The device in clear of an opened one.
pub(crate) fn clear_path(name: &str) -> PathBuf {
    Path::new("/dev/mapper").join(name)
}

/// Makes `device` an encrypted one that `key` opens. What was on it is lost.
pub(crate) fn format(device: &Path, key: &VolumeKey) -> Result<(), VolumeError> {
    let mut args: Vec<&OsStr> = [
        "luksFormat",
        "--batch-mode",
        "--type",
        "luks2",
        "--cipher",
        "aes-xts-plain64",
        "--key-size",
        "512",
        "--hash",
        "sha256",
        "--sector-size",
        "4096",
        "--offset",
        HEADER_SECTORS,
        "--luks2-metadata-size",
        "16k",
    ]
    .map(OsStr::new)
    .to_vec();
    args.extend(PBKDF.map(OsStr::new));
    args.extend(key_from_stdin());
    args.push(device.as_os_str());
    cryptsetup(&args, Some(key))?.success("cryptsetup")
}

/// Opens `device` as [`clear_path`] of `name`; one that is open stays so.
///
/// # Errors
/// [`VolumeError::WrongKey`], or [`VolumeError::Damaged`] if there is no header to be read.
pub(crate) fn open(
    volume: &VolumeId,
    device: &Path,
    name: &str,
    key: &VolumeKey,
    writable: bool,
) -> Result<PathBuf, VolumeError> {
    let clear = clear_path(name);
    if clear.exists() {
        return Ok(clear);
    }
    let mut args: Vec<&OsStr> = ["open", "--type", "luks2", "--allow-discards"]
        .map(OsStr::new)
        .to_vec();
    if !writable {
        args.push(OsStr::new("--readonly"));
    }
    args.extend(key_from_stdin());
    args.extend([device.as_os_str(), OsStr::new(name)]);
    let ended = cryptsetup(&args, Some(key))?;
    // Exit codes of cryptsetup(8).
    match ended.code {
        Some(0) => Ok(clear),
        Some(2) => Err(VolumeError::WrongKey {
            volume: volume.clone(),
        }),
        Some(1) => Err(VolumeError::Damaged {
            volume: volume.clone(),
            detail: format!("the LUKS header: {}", ended.output),
        }),
        Some(_) | None => ended.success("cryptsetup").map(|()| clear),
    }
}

/// Closes the device in clear; one that is not open is fine. Gives whether it is closed now.
pub(crate) fn close(name: &str) -> Result<bool, VolumeError> {
    if !clear_path(name).exists() {
        return Ok(true);
    }
    let ended = cryptsetup(&[OsStr::new("close"), OsStr::new(name)], None)?;
    match ended.code {
        // 4: it is not open any more. 5: it is busy.
        Some(0 | 4) => Ok(true),
        Some(5) => Ok(false),
        Some(_) | None => ended.success("cryptsetup").map(|()| true),
    }
}

/// Makes an open device as large as what is below it.
pub(crate) fn resize(name: &str, key: &VolumeKey) -> Result<(), VolumeError> {
    let mut args = vec![OsStr::new("resize")];
    args.extend(key_from_stdin());
    args.push(OsStr::new(name));
    cryptsetup(&args, Some(key))?.success("cryptsetup")
}

/// From now on `new` opens `device`, and `old` does not.
pub(crate) fn change_key(
    volume: &VolumeId,
    device: &Path,
    old: &VolumeKey,
    new: &VolumeKey,
) -> Result<(), VolumeError> {
    // The second key comes by a pipe of ours that it opens by name. Its buffer takes a key at once.
    let pipe = |error| VolumeError::io::<io::Error>("pipe", Path::new("cryptsetup"))(error);
    let (reader, mut writer) = io::pipe().map_err(pipe)?;
    writer.write_all(new.expose()).map_err(pipe)?;
    drop(writer);
    let new_key = format!("/proc/{}/fd/{}", std::process::id(), reader.as_raw_fd());
    let mut args: Vec<&OsStr> = [
        "luksChangeKey",
        "--batch-mode",
        "--new-keyfile-size",
        KEY_BYTES,
    ]
    .map(OsStr::new)
    .to_vec();
    args.extend(PBKDF.map(OsStr::new));
    args.extend(key_from_stdin());
    args.extend([device.as_os_str(), OsStr::new(&new_key)]);
    let ended = cryptsetup(&args, Some(old))?;
    match ended.code {
        Some(2) => Err(VolumeError::WrongKey {
            volume: volume.clone(),
        }),
        Some(_) | None => ended.success("cryptsetup"),
    }
}

/// Destroys every way to open `device`: what is on it can be read by nobody any more, whatever key they have.
pub(crate) fn erase(device: &Path) -> Result<(), VolumeError> {
    let args = [
        OsStr::new("luksErase"),
        OsStr::new("--batch-mode"),
        device.as_os_str(),
    ];
    let ended = cryptsetup(&args, None)?;
    match ended.code {
        // 1: there is no header any more.
        Some(0 | 1) => Ok(()),
        Some(_) | None => ended.success("cryptsetup"),
    }
}

fn key_from_stdin() -> [&'static OsStr; 4] {
    ["--key-file", "-", "--keyfile-size", KEY_BYTES].map(OsStr::new)
}

fn cryptsetup(args: &[&OsStr], key: Option<&VolumeKey>) -> Result<Ended, VolumeError> {
    let input = key.map(|key| &key.expose()[..]);
    tool::run_with_input("cryptsetup", args, input, CRYPTSETUP_DURATION_MAX)
}
