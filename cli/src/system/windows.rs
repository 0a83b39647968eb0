//! Windows. Who may read a file is what its directory says: the user's own profile is the user's alone.

use std::fs::{File, FileType, OpenOptions};
use std::io::Result;
use std::path::Path;
use tokio::net::windows::named_pipe::{ClientOptions, NamedPipeClient};

/// Where Docker listens unless told otherwise.
pub(crate) const DOCKER_SOCKET: &str = r"\\.\pipe\docker_engine";
/// Where the SSH agent of the system listens.
pub(crate) const AGENT_PIPE: Option<&str> = Some(r"\\.\pipe\openssh-ssh-agent");

/// A stream to a program of this computer.
pub(crate) type LocalStream = NamedPipeClient;

/// Connects to a program of this computer.
///
/// # Errors
/// What the system says.
#[allow(clippy::unused_async, reason = "as on Unix")]
pub(crate) async fn connect_local(path: &Path) -> Result<LocalStream> {
    ClientOptions::new().open(path)
}

/// A program accepts connections there. Opening a pipe would take its turn away from somebody, so it is only looked up.
///
/// # Errors
/// What the system says.
pub(crate) fn is_listening(pipe: &Path) -> Result<()> {
    std::fs::metadata(pipe).map(drop)
}

/// It is the pipe of a program: those have names of their own kind, and no type.
pub(crate) fn is_socket(path: &Path, _kind: FileType) -> bool {
    path.starts_with(r"\\.\pipe")
}

/// Nothing is to be done: the directory inherits.
///
/// # Errors
/// None.
#[allow(clippy::unnecessary_wraps, reason = "as on Unix")]
pub(crate) fn keep_private(_dir: &Path) -> Result<()> {
    Ok(())
}

/// Makes a file that only the user reads; it must not exist.
///
/// # Errors
/// What the system says.
pub(crate) fn create_private(path: &Path) -> Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// Nothing is to be done: the file inherits.
///
/// # Errors
/// None.
#[allow(clippy::unnecessary_wraps, reason = "as on Unix")]
pub(crate) fn let_others_read(_file: &File) -> Result<()> {
    Ok(())
}
