//! `slipway deploy --detach`: two processes. The one that was called passes signals on and waits; the other one deploys,
//! tells it when the directory is sent, and stays in the background while steps may still ask its session for something
//! (secrets, logins of registries): BuildKit knows only at the end of a solve that they will not.
//!
//! Must not know what a deploy does.

use crate::api::shapes::Build;
use crate::interrupt::Interrupts;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use serde::Serialize;
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::{Format, Printer};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use tokio::io::AsyncReadExt;

/// Set for the process that stays; its standard input is then a socket to the one that was called.
const KEEPER: &str = "SLIPWAY_DEPLOY_KEEPER";

/// Starts the deploy in a process of its own, and returns when that one stays in the background. If it ends before, this
/// process ends with its exit code: it has said everything.
///
/// # Errors
/// Ours: there can be no such process, or it was killed.
pub(in crate::deploy) async fn supervise() -> Outcome<()> {
    let fail = |error: std::io::Error| Failure::system_caused("start the deploy", &error);
    let mut interrupts = Interrupts::new()?;
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    ours.set_nonblocking(true).map_err(fail)?;
    let mut child = Command::new(std::env::current_exe().map_err(fail)?)
        .args(std::env::args_os().skip(1))
        .env(KEEPER, "1")
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .map_err(fail)?;
    let mut ours = tokio::net::UnixStream::from_std(ours).map_err(fail)?;
    loop {
        tokio::select! {
            word = ours.read_u8() => match word {
                Ok(_) => return Ok(()),
                Err(_closed) => return end_like(&mut child),
            },
            () = interrupts.wait() => pass_on(&child),
        }
    }
}

/// The other process is in a session of its own: a Ctrl-C reaches this one alone.
fn pass_on(child: &Child) {
    if let Ok(id) = i32::try_from(child.id()) {
        let _gone = kill(Pid::from_raw(id), Signal::SIGINT);
    }
}

fn end_like(child: &mut Child) -> Outcome<()> {
    let status = child
        .wait()
        .map_err(|error| Failure::system_caused("wait for the deploy", &error))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => std::process::exit(code),
        None => Err(Failure::system(format!("the deploy was ended: {status}"))
            .hint("`slipway builds list` shows whether the build goes on")),
    }
}

/// The right to stay behind.
#[derive(Debug)]
pub(in crate::deploy) struct HandOver {
    caller: UnixStream,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "detached")]
struct Detached<'a> {
    build: &'a str,
    image: &'a str,
    pid: u32,
}

impl HandOver {
    /// Of this process, if it was started by [`supervise`]. Signals of the terminal no longer reach it.
    pub(in crate::deploy) fn of_this_process() -> Option<Self> {
        std::env::var_os(KEEPER)?;
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().ok()?;
        let _already = setsid();
        Some(Self {
            caller: UnixStream::from(stdin),
        })
    }

    /// Says how to go on, lets go of terminal, pipes and directory, and lets the caller return.
    ///
    /// # Errors
    /// Ours: there is no `/dev/null`.
    pub(in crate::deploy) fn done(mut self, build: &Build, printer: Printer) -> Outcome<()> {
        let (id, pid) = (&build.id, std::process::id());
        match printer.format() {
            Format::Json => printer.json(&Detached {
                build: id,
                image: &build.image,
                pid,
            }),
            Format::Human => {
                printer.note(&format!(
                    "build {id} goes on: `slipway builds attach {id}` shows it, `slipway builds cancel {id}` ends it\n\
                     process {pid} of this computer serves its secrets and logins until its steps are done"
                ));
                printer.data(id);
            }
        }
        let nowhere = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(|error| Failure::system_caused("open /dev/null", &error))?;
        // Whoever reads the other ends would wait for this process.
        dup2_stdin(&nowhere)
            .and_then(|()| dup2_stdout(&nowhere))
            .and_then(|()| dup2_stderr(&nowhere))
            .map_err(|error| Failure::system_caused("let go of the terminal", &error))?;
        let _kept = std::env::set_current_dir("/");
        // A caller that is gone needs no word.
        let _gone = self.caller.write_all(b"d");
        Ok(())
    }
}
