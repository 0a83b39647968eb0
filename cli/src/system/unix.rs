//! Linux and macOS.

use std::fs::{File, FileType, OpenOptions, Permissions};
use std::io::Result;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use tokio::net::UnixStream;

/// Where dockerd listens unless told otherwise.
pub(crate) const DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// Where an SSH agent listens if no variable says so: nowhere.
pub(crate) const AGENT_PIPE: Option<&str> = None;

/// A stream to a program of this computer.
pub(crate) type LocalStream = UnixStream;

/// Connects to a program of this computer.
///
/// # Errors
/// What the system says.
pub(crate) async fn connect_local(path: &Path) -> Result<LocalStream> {
    UnixStream::connect(path).await
}

/// A program accepts connections there.
///
/// # Errors
/// What the system says.
pub(crate) fn is_listening(socket: &Path) -> Result<()> {
    std::os::unix::net::UnixStream::connect(socket).map(drop)
}

/// It is the socket of a program.
pub(crate) fn is_socket(_path: &Path, kind: FileType) -> bool {
    kind.is_socket()
}

/// Only the user enters this directory from now on.
///
/// # Errors
/// What the system says.
pub(crate) fn keep_private(dir: &Path) -> Result<()> {
    std::fs::set_permissions(dir, Permissions::from_mode(0o700))
}

/// Makes a file that only the user reads; it must not exist.
///
/// # Errors
/// What the system says.
pub(crate) fn create_private(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Everybody may read this file from now on.
///
/// # Errors
/// What the system says.
pub(crate) fn let_others_read(file: &File) -> Result<()> {
    file.set_permissions(Permissions::from_mode(0o644))
}
